// What cut connections do to the run that is shown: asked for once somebody looks here, where that
// costs little, else by a button. Nothing where nothing is cut.

let asked = null; // key of the run it was last asked for

function ask({ key }) {
  asked = key;
  view.replaceChildren();
  trigger("input");
}

begin("", (value) => {
  if (!value.cut || asked === value.key) return view.replaceChildren();
  if (value.little) return ask(value);
  const button = make("button", { type: "button", class: "plain" }, "Compare with the run without these cuts");
  button.addEventListener("click", () => ask(value));
  view.replaceChildren(button);
});
