// An evaluation of one episode: a summary, errors by dimension, the frames with the largest errors,
// and small multiples of every chunk over the recording, or of the errors over time.

const SPANS = [["0", "first step"], ["1", "executed steps"], ["2", "whole chunk"]];
const chosen = { what: "worms", span: "1", series: 0, wide: new Set() };

class Evaluation {
  constructor(value) {
    this.value = value;
    this.width = value.dims.length;
    this.recorded = unpack(value.recorded);
    this.series = value.series.map((one) => ({ ...one, chunks: unpack(one.chunks), errors: unpack(one.errors) }));
    chosen.series = Math.min(chosen.series, this.series.length - 1);
    this.plots = make("div", { class: "panels worm-panels" });
    this.legend = make("ul", { class: "legend" });
    this.summary = make("div", { class: "table-scroll" });
    const what = choice("Plots", [["worms", "chunks over the recording"], ["errors", "errors over time"]], chosen.what, (to) => this.set({ what: to }));
    this.spans = choice("Steps", SPANS, chosen.span, (to) => this.set({ span: to }));
    const names = this.series.map((one, i) => [i, this.name(one)]);
    this.which = names.length > 1 ? choice("Chunks of", names, chosen.series, (to) => this.set({ series: Number(to) })) : null;
    const links = value.files
      ? make("p", { class: "actions" }, make("a", { class: "plain", href: `${value.files}/errors.csv`, download: "errors.csv" }, "Table (CSV)"),
          make("a", { class: "plain", href: `${value.files}/report.html`, download: "report.html" }, "Report (HTML)"))
      : null;
    view.replaceChildren(
      make("p", { class: "caveat" }, value.caveat),
      ...this.series.map((one) => this.headline(one)),
      make("div", { class: "controls" }, what, this.which, this.spans),
      this.legend,
      this.plots,
      make("details", {}, make("summary", {}, "Errors by dimension"), this.summary),
      links,
    );
    this.set({});
  }

  name(one) {
    return one.prompt === null ? one.policy.title : `${one.policy.title}, “${one.prompt}”`;
  }

  headline(one) {
    const [first, executed, whole] = one.mean.map((value) => (value === null ? "–" : `${value.toFixed(1)} %`));
    const text = ` is off by ${executed} of the recorded range over the executed steps (first step ${first}, whole chunk ${whole}), mean of the dimensions.`;
    const frames = one.worst.map(([frame, percent]) => {
      const button = make("button", { type: "button", class: "jump number", title: `${percent} % of range: go there` }, String(frame));
      button.addEventListener("click", () => dispatchEvent(new CustomEvent("playground-frame", { detail: frame })));
      return button;
    });
    const failed = one.failed ? make("p", { class: "notice" }, `${one.failed} frames have no answer, the first: ${one.failures[0][1]}`) : null;
    return make("div", { class: "evaluated", "data-family": one.policy.family },
      make("p", {}, make("span", { class: "dot", "aria-hidden": "true" }), make("strong", {}, make("bdi", {}, this.name(one))), " ", make("span", { class: "badge", title: one.policy.notice }, one.policy.badge), text),
      make("p", { class: "notice" }, "Largest errors at frame ", ...frames.flatMap((b) => [b, " "])), failed);
  }

  set(what) {
    Object.assign(chosen, what);
    const worms = chosen.what === "worms";
    if (this.which) this.which.hidden = !worms;
    this.spans.hidden = worms;
    const entry = (kind, text, family = "") => make("li", family ? { "data-family": family } : {}, stroke(kind), text);
    const one = this.series[chosen.series];
    this.legend.replaceChildren(...(worms
      ? [entry("recorded-line", "recorded"), entry("chunk", `each chunk of ${this.name(one)}`, one.policy.family)]
      : this.series.map((s) => entry(s.prompt === null ? "chunk" : "chunk other", this.name(s), s.policy.family))));
    this.plots.replaceChildren(...this.value.dims.map((dim, d) => this.panel(dim, d, worms)));
    this.table();
  }

  panel(dim, d, worms) {
    const { shape: [length] } = this.recorded;
    const horizon = Math.max(...this.series.map(({ chunks }) => chunks.shape[1])) * this.value.stride;
    const last = Math.max(1, worms ? length - 1 + horizon : length - 1);
    const svg = shape("svg", { viewBox: `0 0 ${last} 100`, preserveAspectRatio: "none", "aria-hidden": "true" });
    const range = worms ? this.worms(svg, d, length) : this.errors(svg, d);
    const span = range[1] - range[0];
    const of = this.value.ranges[d];
    const unit = worms || !(of > 0) ? unitOf(dim) : `${unitOf(dim)} (range ${number(of, of)})`;
    const plot = make("div", { class: "plot" }, svg,
      make("span", { class: "tick high" }, number(range[1], span)), make("span", { class: "tick low" }, number(range[0], span)), make("span", { class: "tick unit" }, unit));
    plot.title = "click: go to this frame";
    plot.addEventListener("click", (event) => {
      const box = plot.getBoundingClientRect();
      const frame = Math.round(((event.clientX - box.left) / box.width) * last);
      dispatchEvent(new CustomEvent("playground-frame", { detail: Math.min(frame, length - 1) }));
    });
    const name = make("button", { type: "button", class: "name", title: `${dim.name}: enlarge or shrink` }, make("bdi", {}, dim.name));
    const node = make("figure", { class: `panel${chosen.wide.has(dim.name) ? " wide" : ""}` }, make("figcaption", {}, name), plot);
    name.addEventListener("click", () => {
      if (!chosen.wide.delete(dim.name)) chosen.wide.add(dim.name);
      node.classList.toggle("wide", chosen.wide.has(dim.name));
    });
    return node;
  }

  worms(svg, d, length) {
    const { width, recorded: { values }, value: { stride } } = this;
    const one = this.series[chosen.series];
    const { values: chunks, shape: [count, steps] } = one.chunks;
    const [range] = ranges([column(values, d, width), column(chunks, d, width)], 1);
    const y = (value) => (((range[1] - value) * 100) / (range[1] - range[0])).toFixed(2);
    svg.append(shape("path", { class: "recorded-line", d: trail(values, d, width, length, range) }));
    for (let k = 0; k < count; k++) {
      let path = "";
      for (let h = 0; h < steps; h++) {
        const value = chunks[(k * steps + h) * width + d];
        if (Number.isNaN(value)) continue;
        path += `${path ? "L" : "M"}${one.frames[k] + h * stride} ${y(value)}`;
      }
      svg.append(shape("path", { class: `chunk worm-${k % 2}`, "data-family": one.policy.family, d: path }));
    }
    return range;
  }

  errors(svg, d) {
    const { width } = this;
    const span = Number(chosen.span);
    const curves = this.series.map(({ errors: { values, shape: [, count] } }) =>
      Array.from({ length: count }, (_, k) => values[(span * count + k) * width + d]));
    const top = Math.max(...curves.flat().filter(Number.isFinite), 1e-9) * 1.1;
    this.series.forEach((one, i) => {
      let path = "";
      curves[i].forEach((value, k) => {
        if (Number.isFinite(value)) path += `${path ? "L" : "M"}${one.frames[k]} ${(100 - (100 * value) / top).toFixed(2)}`;
      });
      svg.append(shape("path", { class: `chunk${one.prompt === null ? "" : " other"}`, "data-family": one.policy.family, d: path }));
    });
    return [0, top];
  }

  table() {
    const heads = this.series.map((one) => make("th", { scope: "colgroup", colspan: 3, "data-family": one.policy.family }, this.name(one)));
    const spans = this.series.flatMap(() => SPANS.map(([, text]) => make("th", { scope: "col" }, text)));
    const cell = (absolute, percent, span) => make("td", {}, absolute === null ? "–" : number(absolute, span || 1), percent === null ? "" : make("small", {}, ` ${percent.toFixed(1)} %`));
    const rows = this.value.dims.map((dim, d) => make("tr", {}, make("th", { scope: "row" }, dim.name, make("small", {}, ` ${dim.unit}`)),
      ...this.series.flatMap(({ rows: all }) => SPANS.map((_, s) => cell(all[d].absolute[s], all[d].percent[s], this.value.ranges[d]))),
      make("td", {}, this.series[0].rows[d].still === null ? "–" : number(this.series[0].rows[d].still, this.value.ranges[d] || 1))));
    const mean = make("tr", {}, make("th", { scope: "row" }, "mean"), ...this.series.flatMap(({ mean: m }) => m.map((v) => make("td", {}, v === null ? "–" : `${v.toFixed(2)} %`))), make("td"));
    this.summary.replaceChildren(make("table", { class: "errors" },
      make("thead", {}, make("tr", {}, make("td"), ...heads, make("th", {}, "for comparison")), make("tr", {}, make("th", { scope: "col" }, "dimension"), ...spans, make("th", { scope: "col" }, "holding still"))),
      make("tbody", {}, ...rows, mean)));
  }
}

/** Every value of one dimension. */
function column(values, d, width) {
  return values.filter((_, i) => i % width === d);
}

function stroke(kind) {
  return shape("svg", { class: "swatch", viewBox: "0 0 24 12", "aria-hidden": "true" }, shape("path", { class: kind, d: "M0 6H24" }));
}

begin("Errors by dimension, and every predicted chunk over the recorded curve, show here.", (value) => new Evaluation(value));
