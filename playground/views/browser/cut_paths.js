// Where each policy leads without the connections that are cut, beside itself; shown as long as the
// page shows the run that was compared.

function draw() {
  const [value, run] = [props.value, window.playgroundRun];
  const fits = value && run && run.key === value.key;
  view.replaceChildren(...(fits ? [make("div", { class: "causes-pair" }, ...value.paths.map(changedPath))] : []));
}

watch("value", draw);
addEventListener("playground-run", draw);
