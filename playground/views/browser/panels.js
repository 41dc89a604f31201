// Small multiples over the steps of a chunk: one panel a dimension, with one cursor for all.

/** Path through `count` values from `start` on, `stride` apart; a gap where a value is missing. */
function trail(values, start, stride, count, [low, high]) {
  const scale = 100 / (high - low);
  let path = "";
  let pen = "M";
  for (let h = 0; h < count; h++) {
    const value = values[start + h * stride];
    if (Number.isNaN(value)) pen = "M";
    else {
      path += `${pen}${h} ${((high - value) * scale).toFixed(2)}`;
      pen = "L";
    }
  }
  return path;
}

/** Outline of the area between two curves [count]. */
function ribbon(lower, upper, range) {
  const back = Array.from(lower).reverse();
  const [low, high] = range;
  const scale = 100 / (high - low);
  const last = lower.length - 1;
  const there = trail(upper, 0, 1, upper.length, range);
  return there + back.map((v, i) => `L${last - i} ${((high - v) * scale).toFixed(2)}`).join("") + "Z";
}

/** [low, high] of each dimension (the last axis) over arrays of values, with a little air. */
function ranges(arrays, width) {
  return Array.from({ length: width }, (_, d) => {
    let [low, high] = [Infinity, -Infinity];
    for (const values of arrays)
      for (let i = d; i < values.length; i += width) {
        if (values[i] < low) low = values[i];
        if (values[i] > high) high = values[i];
      }
    if (low > high) return [0, 1];
    // What differs by rounding alone does not move.
    const still = high - low <= 1e-6 * Math.max(1, Math.abs(low), Math.abs(high));
    const air = still ? 0.5 : 0.12 * (high - low);
    return [low - air, high + air];
  });
}

/** Unit and, where it is not an absolute target, what a value means. */
function unitOf(dim) {
  return [dim.unit, dim.meaning === "absolute" ? "" : dim.meaning].filter(Boolean).join(" · ");
}

/** A sample of a layer's line for a legend. */
function swatch(kind) {
  const box = { fan: "M0 12H24V1H0Z", bar: "M6 12H18V2H6Z" }[kind];
  const sample = shape("path", { class: kind, d: box || "M0 6H24" });
  return shape("svg", { class: "swatch", viewBox: "0 0 24 12", "aria-hidden": "true" }, sample);
}

class Panels {
  /**
   * layers: CSS classes of the paths of each panel, back to front; bars: number of bars below
   * each plot; wide: names of enlarged dimensions (kept by the caller across updates);
   * oncursor(): the cursor moved.
   */
  constructor({ dims, horizon, hz, layers, bars = 0, wide, cursor, oncursor }) {
    Object.assign(this, { dims, horizon, hz, wide, oncursor });
    this.cursor = Math.min(cursor, horizon - 1);
    this.panels = dims.map((dim) => this.build(dim, layers, bars));
    this.grid = make("div", { class: "panels" }, ...this.panels.map((panel) => panel.node));
    this.slider = make("input", {
      type: "range",
      min: 0,
      max: horizon - 1,
      value: this.cursor,
      "aria-label": "Step of the chunk to read off",
    });
    this.slider.addEventListener("input", () => this.read(Number(this.slider.value)));
    this.place = make("output", { class: "number" });
    this.reader = make(
      "label",
      { class: "reader" },
      make("span", {}, "values at chunk step"),
      this.slider,
      this.place,
    );
    this.read(this.cursor, true);
  }

  build(dim, layers, bars) {
    const panel = { layers: {}, bars: [] };
    const svg = shape("svg", {
      viewBox: `0 0 ${this.horizon - 1} 100`,
      preserveAspectRatio: "none",
      "aria-hidden": "true",
    });
    panel.cursor = shape("line", { class: "cursor", y1: 0, y2: 100 });
    svg.append(panel.cursor);
    for (const name of layers) svg.append((panel.layers[name] = shape("path", { class: name })));
    panel.high = make("span", { class: "tick high" });
    panel.low = make("span", { class: "tick low" });
    panel.value = make("span", { class: "tick value" });
    panel.unit = make("span", { class: "tick unit" }, unitOf(dim));
    const plot = make("div", { class: "plot" }, svg, panel.high, panel.low, panel.unit, panel.value);
    const point = (event) => {
      const box = plot.getBoundingClientRect();
      const share = (event.clientX - box.left) / box.width;
      this.read(Math.round(Math.min(1, Math.max(0, share)) * (this.horizon - 1)));
    };
    plot.addEventListener("pointermove", point);
    plot.addEventListener("pointerdown", point);
    const name = make(
      "button",
      { type: "button", class: "name", title: `${dim.name}: enlarge or shrink`, "aria-pressed": "false" },
      make("bdi", {}, dim.name),
    );
    const resize = () => {
      const on = this.wide.has(dim.name);
      panel.node.classList.toggle("wide", on);
      name.setAttribute("aria-pressed", String(on));
    };
    name.addEventListener("click", () => {
      if (!this.wide.delete(dim.name)) this.wide.add(dim.name);
      resize();
    });
    const caption = make("figcaption", {}, name);
    panel.node = make("figure", { class: "panel" }, caption, plot, bars ? this.bar(panel, bars) : null);
    resize();
    return panel;
  }

  /** Values stand below their plots, where several do not cover the curves; says what they are. */
  below(what) {
    this.reader.firstChild.textContent = what;
    for (const panel of this.panels) panel.node.append(panel.value);
  }

  bar(panel, count) {
    const svg = shape("svg", {
      class: "bars",
      viewBox: `0 0 ${count} 100`,
      preserveAspectRatio: "none",
      "aria-hidden": "true",
    });
    for (let i = 0; i < count; i++) {
      panel.bars.push(shape("rect", { x: i + 0.12, width: 0.76 }));
      svg.append(panel.bars[i]);
    }
    panel.barValue = make("span", { class: "number" });
    return make("div", { class: "speed" }, svg, panel.barValue);
  }

  /** Sets the axis of panel d. */
  range(d, range) {
    const span = range[1] - range[0];
    this.panels[d].range = range;
    this.panels[d].high.textContent = number(range[1], span);
    this.panels[d].low.textContent = number(range[0], span);
  }

  read(step, quiet = false) {
    this.cursor = step;
    this.slider.value = step;
    this.place.textContent = `${step} · ${(step / this.hz).toFixed(2)} s`;
    for (const { cursor } of this.panels) {
      cursor.setAttribute("x1", step);
      cursor.setAttribute("x2", step);
    }
    if (!quiet) this.oncursor();
  }
}
