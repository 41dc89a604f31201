// Measured attention of the run that is shown. Where measuring costs little, it is asked for as soon
// as somebody looks here; else there is a button.

let asked = null; // key of the run it was last asked for

function ask({ key }) {
  asked = key;
  view.replaceChildren(make("p", { class: "notice", role: "status" }, "Measuring this run."));
  trigger("input");
}

begin("", (value) => {
  if (value.measured) return view.replaceChildren();
  if (value.little && asked !== value.key) return ask(value);
  const button = make("button", { type: "button", class: "plain" }, "Measure this run");
  button.addEventListener("click", () => ask(value));
  view.replaceChildren(button, make("p", { class: "notice" }, "Slower than a run, and the first time it compiles."));
});
