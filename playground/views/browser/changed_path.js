// Where a changed run leads, beside the unchanged ones: a path each on the picture.

function lineOf({ shape: [, count], values }, place) {
  let path = "";
  for (let i = 0; i < count; i++) {
    const [x, y] = values.subarray((place * count + i) * 2, (place * count + i) * 2 + 2);
    if (!Number.isNaN(x)) path += `${path ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
  }
  return path;
}

/** The last of the paths is the changed run's, the others those that it is compared with. */
function kindOf(place, count) {
  return place === count - 1 ? "causes-changed" : ["causes-first", "causes-second"][place];
}

/** A section with everything that `lines` of playground/views/causes.py sent. */
function changedPath(value) {
  const found = unpack(value.line);
  const count = value.names.length;
  const kinds = value.names.map((_, i) => kindOf(i, count));
  const key = value.names.map((name, i) => make("li", {}, shape("svg", { class: "swatch", viewBox: "0 0 24 12", "aria-hidden": "true" }, shape("path", { class: kinds[i], d: "M2 6H22" })), make("bdi", {}, name)));
  const nodes = [];
  if (value.picture) {
    const { url, width, height } = value.picture;
    const aside = 0.15 * width;
    const parts = kinds.flatMap((kind, i) => {
      const d = lineOf(found, i);
      const end = d.split(/[ML]/).at(-1);
      return [shape("path", { class: "under", d }), shape("path", { class: kind, d }), end ? shape("path", { class: `${kind} causes-end`, d: `M${end} h0` }) : null];
    });
    nodes.push(make("div", { class: "photo wide causes-path" }, make("img", { src: url, alt: "" }), shape("svg", { viewBox: `${-aside} 0 ${width + 2 * aside} ${height}`, "aria-hidden": "true" }, ...parts.filter(Boolean))));
  }
  const head = heading(value.policy);
  return make("section", { class: "causes-column", "data-family": value.policy.family }, head, make("p", { class: "causes-headline" }, value.what), ...nodes, make("ul", { class: "legend" }, ...key), make("p", { class: "notice" }, value.words));
}
