// The chunk of one policy while it is being made: small multiples, redrawn as estimates come in.

const wide = new Set();
let panels = null;
let key = "";
const line = make("p", { class: "notice number" });

function show(value) {
  const { shape, values } = unpack(value.actions);
  const [horizon, width] = shape;
  const now = JSON.stringify([value.policy.title, horizon, value.dims]);
  if (now !== key || !panels) {
    key = now;
    panels = new Panels({
      dims: value.dims, horizon, hz: value.hz, layers: ["estimate"], wide, cursor: horizon - 1,
      oncursor: () => {},
    });
    view.replaceChildren(heading(value.policy), line, panels.grid);
  }
  line.textContent = value.line;
  ranges([values], width).forEach((range, d) => {
    panels.range(d, range);
    panels.panels[d].layers.estimate.setAttribute("d", trail(values, d, width, horizon, range));
  });
}

watch("value", () => {
  if (props.value) return show(props.value);
  key = "";
  view.replaceChildren();
});
if (props.value) show(props.value);
