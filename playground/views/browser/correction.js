// The denoising of a chunk under real-time chunking, Euler step by Euler step: the estimate
// x_t - t v_t as the model makes it, and the corrected one with which the step is taken.

// What a person chose, kept when the next seam replaces the value. position null: the last stop.
const keptSteps = { position: null, cursor: 0, wide: new Set(), looping: false, speed: 1 };

class Correction {
  constructor(value) {
    const [before, after] = [unpack(value.before), unpack(value.after)];
    const [steps, horizon, width] = before.shape;
    Object.assign(this, { steps, horizon, width, times: value.times, order: value.order });
    this.dims = value.order.map((d) => value.dims[d]);
    this.before = before.values;
    this.after = after.values;
    this.planned = unpack(value.planned).values;
    this.chunk = unpack(value.guided).values.slice(value.since * width);
    this.ranges = ranges([this.before, this.after, this.planned, this.chunk], width);
    this.sizes = this.largest();
    this.build(value);
  }

  /** The largest correction of each step and dimension, with its sign: [steps, width]. */
  largest() {
    const found = new Float32Array(this.steps * this.width);
    for (let i = 0; i < this.before.length; i++) {
      const at = Math.floor(i / (this.horizon * this.width)) * this.width + (i % this.width);
      const moved = this.after[i] - this.before[i];
      if (Math.abs(moved) > Math.abs(found[at])) found[at] = moved;
    }
    return found;
  }

  build(value) {
    this.panels = new Panels({
      dims: this.dims,
      horizon: this.horizon,
      hz: value.hz,
      layers: ["corrected", "seam-old", "seam-guided rest", "seam-plain", "seam-guided"],
      bars: this.steps,
      wide: keptSteps.wide,
      cursor: keptSteps.cursor,
      oncursor: () => this.readings(Math.floor(this.player.position)),
    });
    this.player = new Player({
      label: "Euler step of real-time chunking",
      last: this.steps,
      rate: 2.5,
      smooth: false,
      words: (position) => this.words(Math.floor(position)),
      onmove: (position, playing) => this.frame(Math.floor(position), playing),
    });
    this.clock = make("p", { class: "clock number" });
    this.status = make("p", { class: "words correction-words", role: "status" });
    const held = value.weights.filter((weight) => weight === 1).length;
    const some = value.weights.filter((weight) => weight > 0).length;
    const legend = [
      ["seam-plain", "estimate x_t − t·v_t before the correction"],
      ["seam-guided", "after it: the step goes there"],
      ["corrected", "the correction"],
      ["seam-old", "old chunk"],
      ["seam-guided rest", "chunk at t = 0"],
      ["bar", "largest correction of each Euler step"],
    ];
    const sample = (kind) => (kind === "bar" ? swatch(kind) : kind === "corrected" ? area() : key(kind));
    this.node = make(
      "section",
      { class: "correction" },
      make("h3", {}, "How real-time chunking corrects, step by step"),
      make("p", { class: "notice" }, `Each Euler step pulls the chunk towards the old one: fully over its first ${held} steps, less and less until step ${some}, and only through the model beyond.`),
      make("div", { class: "controls" }, this.player.node, this.clock),
      this.status,
      make("ul", { class: "legend" }, ...legend.map(([kind, text]) => make("li", {}, sample(kind), text))),
      this.panels.grid,
      this.panels.reader,
    );
    this.panels.below("before, after the correction: at chunk step");
    this.order.forEach((d, i) => this.still(this.panels.panels[i], d, i));
    this.player.setLooping(keptSteps.looping);
    this.player.setSpeed(keptSteps.speed);
    this.player.move(keptSteps.position === null ? this.steps : keptSteps.position);
  }

  /** What does not move: the range, the old chunk, the new one, and the bars. */
  still(panel, d, i) {
    this.panels.range(i, this.ranges[d]);
    const { layers, bars } = panel;
    layers["seam-old"].setAttribute("d", this.line(this.planned, 0, d));
    layers["seam-guided rest"].setAttribute("d", this.line(this.chunk, 0, d));
    const sizes = bars.map((_, s) => Math.abs(this.sizes[s * this.width + d]));
    const most = Math.max(...sizes, 1e-12);
    bars.forEach((bar, s) => {
      const tall = Math.max(2, (100 * sizes[s]) / most);
      bar.setAttribute("height", tall);
      bar.setAttribute("y", 100 - tall);
    });
  }

  line(values, step, d) {
    return trail(values, step * this.horizon * this.width + d, this.width, this.horizon, this.ranges[d]);
  }

  column(values, step, d) {
    const first = step * this.horizon * this.width + d;
    return Float32Array.from({ length: this.horizon }, (_, h) => values[first + h * this.width]);
  }

  words(step) {
    if (step >= this.steps) return `step ${step} of ${this.steps}: the chunk`;
    const size = (d) => Math.abs(this.sizes[step * this.width + d]);
    const share = (d) => size(d) / (this.ranges[d][1] - this.ranges[d][0]);
    const i = this.order.reduce((best, d, at) => (share(d) > share(this.order[best]) ? at : best), 0);
    const { name, unit } = this.dims[i];
    const moved = size(this.order[i]);
    return `Step ${step} of ${this.steps}: the correction moves the estimate by up to ${number(moved, moved)} ${unit} (${name})`;
  }

  frame(step, playing) {
    keptSteps.position = step >= this.steps ? null : step;
    keptSteps.looping = this.player.looping;
    keptSteps.speed = this.player.speed;
    const t = this.times[step];
    const readouts = [["step", `${step} of ${this.steps}`], ["t", t.toFixed(2)], ["τ = 1 − t", (1 - t).toFixed(2)]];
    this.clock.replaceChildren(...readouts.map(([label, text]) => make("span", {}, make("small", {}, label), text)));
    if (!playing) this.status.textContent = `${this.words(step)}.`;
    this.order.forEach((d, i) => this.draw(this.panels.panels[i], d, step));
    this.readings(step);
  }

  draw({ layers, bars }, d, step) {
    const there = step < this.steps;
    layers["seam-plain"].setAttribute("d", there ? this.line(this.before, step, d) : "");
    layers["seam-guided"].setAttribute("d", there ? this.line(this.after, step, d) : this.line(this.chunk, 0, d));
    const [low, high] = there ? [this.before, this.after].map((values) => this.column(values, step, d)) : [];
    layers.corrected.setAttribute("d", there ? ribbon(low, high, this.ranges[d]) : "");
    bars.forEach((bar, s) => bar.classList.toggle("now", s === step));
  }

  readings(step) {
    keptSteps.cursor = this.panels.cursor;
    this.order.forEach((d, i) => {
      const span = this.ranges[d][1] - this.ranges[d][0];
      const at = (values) => number(values[(step * this.horizon + this.panels.cursor) * this.width + d], span);
      const panel = this.panels.panels[i];
      const there = step < this.steps;
      panel.value.textContent = there ? `${at(this.before)}  ${at(this.after)}` : number(this.chunk[this.panels.cursor * this.width + d], span);
      panel.barValue.textContent = there ? `correction ${number(this.sizes[step * this.width + d], span)}` : "t = 0";
    });
  }
}

/** A sample of the area between two lines, for the legend. */
function area() {
  return shape("svg", { class: "swatch", viewBox: "0 0 24 12", "aria-hidden": "true" }, shape("path", { class: "corrected", d: "M0 11H24V2H0Z" }));
}
