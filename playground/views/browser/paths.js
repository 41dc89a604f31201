// One policy's chunk over the picture it was shown: where its grippers would go.

function show(value) {
  const camera = new Camera(value.camera, value.words);
  camera.draw(0);
  const drawn = camera.grippers.length > 0;
  const words = make("p", { class: "words" }, drawn || !value.foreign ? value.words : "");
  view.replaceChildren(
    heading(value.policy),
    camera.node,
    value.foreign ? make("p", { class: "caveat", role: "note" }, value.foreign) : "",
    drawn ? camera.legend() : "",
    words.textContent ? words : "",
  );
}

watch("value", () => (props.value ? show(props.value) : view.replaceChildren()));
if (props.value) show(props.value);
