// Where a changed run leads, beside the unchanged ones: one path each on the picture.

const KINDS = ["causes-first", "causes-second", "causes-changed"];

function lineOf({ shape: [, count], values }, place) {
  let path = "";
  for (let i = 0; i < count; i++) {
    const [x, y] = values.subarray((place * count + i) * 2, (place * count + i) * 2 + 2);
    if (!Number.isNaN(x)) path += `${path ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
  }
  return path;
}

begin("Click a number, or a patch of the picture, to see where that one patch leads.", (value) => {
  const found = unpack(value.line);
  const head = heading(value.policy);
  const key = value.names.map((name, i) => make("li", {}, shape("svg", { class: "swatch", viewBox: "0 0 24 12", "aria-hidden": "true" }, shape("path", { class: KINDS[i], d: "M2 6H22" })), make("bdi", {}, name)));
  const nodes = [];
  if (value.picture) {
    const { url, width, height } = value.picture;
    const aside = 0.15 * width;
    const parts = value.names.flatMap((_, i) => {
      const d = lineOf(found, i);
      const end = d.split(/[ML]/).at(-1);
      return [shape("path", { class: "under", d }), shape("path", { class: KINDS[i], d }), end ? shape("path", { class: `${KINDS[i]} causes-end`, d: `M${end} h0` }) : null];
    });
    nodes.push(make("div", { class: "photo wide causes-path" }, make("img", { src: url, alt: "" }), shape("svg", { viewBox: `${-aside} 0 ${width + 2 * aside} ${height}`, "aria-hidden": "true" }, ...parts.filter(Boolean))));
  }
  view.replaceChildren(head, make("p", { class: "causes-headline" }, value.what), ...nodes, make("ul", { class: "legend" }, ...key), make("p", { class: "notice" }, value.words));
});
