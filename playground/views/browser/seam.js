// Two successive chunks at their seam: the old one, and the new one without and with real-time
// chunking; what the robot would do is bold.

const WAYS = { plain: "switched at once", guided: "by real-time chunking" };
const wide = new Set();
const kept = { cursor: null };

begin("The old chunk, the new one without and with real-time chunking, and the jump between them show here.", (value) => {
  const { dims, span, since, delay, hz, order } = value;
  const at = value.done ? "step" : "frame";
  const width = dims.length;
  const lines = Object.fromEntries(["old", "plain", "guided", "recorded"].map((name) => [name, unpack(value[name]).values]));
  const seam = since + delay;
  const named = order.map((d) => dims[d]);
  const layers = ["recorded-line", "old rest", "plain rest", "guided rest", "old", "plain", "guided", "moment", "moment now"];
  const panels = new Panels({ dims: named, horizon: span, hz, layers: layers.map((l) => `seam-${l}`), wide, cursor: kept.cursor ?? seam, oncursor: () => read() });
  const all = ranges(Object.values(lines), width);
  order.forEach((d, i) => {
    panels.range(i, all[d]);
    const { layers: paths } = panels.panels[i];
    const draw = (layer, values, from, to) => paths[`seam-${layer}`].setAttribute("d", part(values, d, width, from, to, all[d]));
    draw("recorded-line", lines.recorded, 0, span);
    draw("old", lines.old, 0, seam);
    draw("old rest", lines.old, seam - 1, span);
    for (const way of ["plain", "guided"]) {
      draw(way, lines[way], seam, span);
      draw(`${way} rest`, lines[way], since, seam + 1);
    }
    paths["seam-moment"].setAttribute("d", `M${since} 0V100`);
    paths["seam-moment now"].setAttribute("d", `M${seam} 0V100`);
  });
  panels.below("old, at once, real-time: at step");
  function read() {
    kept.cursor = panels.cursor;
    order.forEach((d, i) => {
      const at = (name) => number(lines[name][panels.cursor * width + d], all[d][1] - all[d][0]);
      panels.panels[i].value.textContent = panels.cursor < since ? at("old") : `${at("old")}  ${at("plain")}  ${at("guided")}`;
    });
  }
  read();
  const sentence = (way) => {
    const steps = way.steps === null ? "" : `, ${way.steps.toFixed(1)} typical steps`;
    const size = number(Math.abs(way.change), Math.abs(way.change) || 1);
    return make("li", {}, key(`seam-${way.way}`), make("span", {}, make("strong", {}, WAYS[way.way]), `: largest jump ${size} ${way.unit}${steps} (${way.dimension})`));
  };
  const [plain, guided] = value.latency;
  const ms = (one) => `${one.ms.toFixed(0)} ms, ${one.steps} control step${one.steps === 1 ? "" : "s"}`;
  view.replaceChildren(
    heading(value.policy),
    make("p", { class: "words" }, `Asked at ${at} ${value.first} and, ${since} steps later, at ${at} ${value.first + since}; the answer takes ${delay} steps, so the new chunk takes over at ${at} ${value.first + seam}.`),
    make("ul", { class: "seam-ways" }, ...value.ways.map(sentence)),
    make("p", { class: "notice" }, `Measured here, an answer takes ${ms(plain)} (${ms(guided)} with real-time chunking) at ${hz} a second. A typical step is the median change of a ${value.done ? "command" : "recorded action"} while that dimension moves.`),
    make("ul", { class: "legend" }, make("li", {}, key("recorded-line"), value.done ? "done so far" : "recorded"), make("li", {}, key("seam-old"), "old chunk, thin once left"),
      ...["plain", "guided"].map((way) => make("li", {}, key(`seam-${way}`), `new chunk, ${WAYS[way]}`)), make("li", {}, key("seam-moment"), "asked"), make("li", {}, key("seam-moment now"), "the new one takes over")),
    panels.grid,
    panels.reader,
    make("details", {}, make("summary", {}, "Jumps by dimension"), table(value)),
    new Correction(value).node,
  );
});

/** Path from step `from` up to, not including, `to`. */
function part(values, d, width, from, to, range) {
  let path = "";
  let pen = "M";
  for (let h = Math.max(0, from); h < to; h++) {
    const value = values[h * width + d];
    if (Number.isNaN(value)) pen = "M";
    else {
      path += `${pen}${h} ${(((range[1] - value) * 100) / (range[1] - range[0])).toFixed(2)}`;
      pen = "L";
    }
  }
  return path;
}

function key(kind) {
  return shape("svg", { class: "swatch", viewBox: "0 0 24 12", "aria-hidden": "true" }, shape("path", { class: kind, d: kind.includes("moment") ? "M12 0V12" : "M0 6H24" }));
}

function table({ dims, ways }) {
  const head = make("tr", {}, make("th", { scope: "col" }, "dimension"), ...ways.map(({ way }) => make("th", { scope: "col" }, WAYS[way])));
  const cell = (way, d) => {
    const steps = way.all_steps[d];
    const size = Math.abs(way.changes[d]);
    return make("td", {}, number(way.changes[d], size || 1), make("small", {}, steps === null ? "" : ` ${steps.toFixed(1)} steps`));
  };
  const rows = dims.map((dim, d) => make("tr", {}, make("th", { scope: "row" }, dim.name, make("small", {}, ` ${dim.unit}`)), ...ways.map((way) => cell(way, d))));
  return make("div", { class: "table-scroll" }, make("table", { class: "errors" }, make("thead", {}, head), make("tbody", {}, ...rows)));
}
