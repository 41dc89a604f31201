// The mask, cell by cell, on a canvas: one bitmap of codes, drawn block by block so that even a
// block of a single token is seen, and zoomed until a cell is as large as a finger.

const CODES = ["blocked", "allowed", "padding"];
const SEAM = 2; // px left free between blocks, at any zoom
const MOST_ZOOM = 64;

const kept = { layout: "blocks", pass: "together", padding: false, zoom: 1, left: 0, top: 0, cell: null, click: "read", layers: null };

class Mask {
  constructor(value) {
    this.value = value;
    this.texts = new Map(value.texts);
    [this.rows, this.columns] = value.shape;
    this.codes = cellCodes(value);
    this.build();
    this.hear();
  }

  build() {
    const { policy, summary } = this.value;
    this.canvas = make("canvas", {
      tabindex: 0,
      role: "application",
      "aria-label": `Attention mask of ${policy.title}: arrow keys walk the cells, with Shift by block; plus and minus zoom, 0 shows all`,
    });
    this.left = make("div", { class: "side rows", "aria-hidden": "true" });
    this.top = make("div", { class: "side columns", "aria-hidden": "true" });
    this.frame = make("div", { class: "mask" }, this.top, this.left, this.canvas);
    this.reading = make("p", { class: "reading", role: "status" });
    this.keys = CODES.map((code) => make("span", { class: `code ${code}` }));
    const names = ["blocked", "allowed", "padding"];
    const legend = [1, 0, 2].map((i) => make("li", {}, this.keys[i], names[i]));
    const passes = [["together", "together"], ["prefix", "prefix pass"], ["suffix", "suffix pass"]];
    const parts = [
      heading(policy),
      make("p", { class: "hidden" }, summary),
      make(
        "div",
        { class: "controls" },
        choice("Pass", passes, kept.pass, (pass) => this.set({ pass, cell: null })),
        choice("Scale", [["blocks", "by block"], ["cells", "true scale"]], kept.layout, (layout) => this.set({ layout })),
        make(
          "div",
          { class: "zoom", role: "group", "aria-label": "Zoom" },
          iconButton("Zoom out", "M5 11h14v2H5z", () => this.zoom(1 / 2)),
          iconButton("Zoom in", "M11 5h2v6h6v2h-6v6h-2v-6H5v-2h6z", () => this.zoom(2)),
          iconButton("Show all", "M4 4h6v2H6v4H4zM14 4h6v6h-2V6h-4zM4 14h2v4h4v2H4zM18 14h2v6h-6v-2h4z", () => this.zoom(0)),
        ),
        check("padding queries", kept.padding, (padding) => this.set({ padding })),
      ),
      this.scissors(),
      make("ul", { class: "legend" }, ...legend, make("li", {}, make("span", { class: "code cut" }), "cut in this run")),
      this.value.cut ? make("p", { class: "causes-headline" }, this.value.cut) : null,
      make("p", { class: "axis-title" }, "rows: queries · columns: keys they may attend to"),
      this.frame,
      this.reading,
      this.table(),
      make("p", { class: "notice" }, "A mask says who may attend, not who does. ", policy.notice),
    ];
    view.replaceChildren(...parts.filter(Boolean));
  }

  /** What a click does: read a cell, or cut its block, and then in which layers. */
  scissors() {
    const chips = Array.from({ length: this.value.layers }, (_, i) => i + 1).map((layer) => {
      const on = !kept.layers || kept.layers.includes(layer);
      const chip = make("button", { type: "button", "aria-pressed": String(on), "aria-label": `Layer ${layer}` }, String(layer));
      chip.addEventListener("click", () => {
        const all = Array.from({ length: this.value.layers }, (_, i) => i + 1);
        const now = kept.layers || all;
        const next = now.includes(layer) ? now.filter((other) => other !== layer) : [...now, layer].sort((a, b) => a - b);
        if (!next.length) return;
        kept.layers = next.length === all.length ? null : next;
        chip.setAttribute("aria-pressed", String(next.includes(layer)));
      });
      return chip;
    });
    const layers = make("div", { class: "layers", role: "group", "aria-label": "Layers to cut in", hidden: kept.click !== "cut" }, make("span", {}, "in layers"), ...chips);
    const clicks = choice("Click", [["read", "click to read"], ["cut", "click to cut"]], kept.click, (click) => {
      kept.click = click;
      layers.hidden = click !== "cut";
      this.tell();
    });
    return make("div", { class: "controls scissors" }, clicks, layers);
  }

  /** The blocks of a cell, and the cut of the form that covers them, if any. */
  blocks([row, column]) {
    const [query, key] = [this.down.segmentOf(row).block, this.across.segmentOf(column).block];
    const cuts = window.playgroundCuts || [];
    return { query, key, cut: cuts.find((text) => covers(text, query, key)) };
  }

  /** Cuts the block of the chosen cell, or mends it; the page runs the policies again. */
  toggle() {
    const { query, key, cut } = this.blocks(kept.cell);
    const send = (detail) => dispatchEvent(new CustomEvent("playground-cut", { detail }));
    if (cut) return send({ mend: cut });
    if (!this.share(this.down.segmentOf(kept.cell[0]), this.across.segmentOf(kept.cell[1]))) {
      this.reading.replaceChildren(make("b", {}, `${query.label} may not attend to ${key.label} anyway: there is nothing to cut.`));
      return;
    }
    send({ cut: `${nameOf(query)}>${nameOf(key)}${kept.layers ? `:${kept.layers.join(",")}` : ""}` });
  }

  hear() {
    const place = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    const fingers = new Map();
    let pressed = null; // where a click began
    this.canvas.addEventListener("pointerdown", (event) => {
      pressed = fingers.size ? null : place(event);
      fingers.set(event.pointerId, place(event));
      this.canvas.setPointerCapture(event.pointerId);
      this.point(...place(event));
    });
    this.canvas.addEventListener("pointermove", (event) => {
      const [now, before] = [place(event), fingers.get(event.pointerId)];
      if (!before) return this.point(...now);
      const others = [...fingers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
      fingers.set(event.pointerId, now);
      const apart = (a, b) => Math.max(8, Math.hypot(a[0] - b[0], a[1] - b[1]));
      if (others.length) this.zoom(apart(now, others[0]) / apart(before, others[0]), others[0]);
      else this.pan(before[0] - now[0], before[1] - now[1]);
    });
    this.canvas.addEventListener("pointerup", (event) => {
      const at = place(event);
      const still = pressed && Math.hypot(at[0] - pressed[0], at[1] - pressed[1]) < 5;
      pressed = null;
      if (still && kept.click === "cut" && event.button === 0) this.toggle();
    });
    for (const name of ["pointerup", "pointercancel", "lostpointercapture"])
      this.canvas.addEventListener(name, (event) => fingers.delete(event.pointerId));
    this.canvas.addEventListener("dblclick", (event) => kept.click === "read" && this.zoom(4, place(event)));
    this.canvas.addEventListener(
      "wheel",
      (event) => {
        if (!event.ctrlKey && !event.metaKey) return;
        event.preventDefault();
        this.zoom(Math.exp(-event.deltaY / 200), place(event));
      },
      { passive: false },
    );
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.sizes = new ResizeObserver(() => this.lay());
    this.sizes.observe(this.frame);
    this.themes = new MutationObserver(() => this.colour());
    this.themes.observe(document.body, { attributes: true, attributeFilter: ["class"] });
    this.chosen = () => this.bitmap && this.across && this.paint();
    addEventListener("playground-cuts", this.chosen);
    this.colour();
  }

  close() {
    removeEventListener("playground-cuts", this.chosen);
    this.sizes.disconnect();
    this.themes.disconnect();
  }

  set(changes) {
    Object.assign(kept, changes, { zoom: 1, left: 0, top: 0 });
    this.lay();
  }

  /** The bitmap of codes and the padding's hatching, in the colours of the page's theme. */
  colour() {
    const colours = this.keys.map((key) => word(getComputedStyle(key).backgroundColor));
    const black = word("black");
    this.bitmap = bitmap(this.columns, this.rows, this.codes, colours);
    this.hatched = bitmap(this.columns, this.rows, this.codes, [0, 0, black]);
    this.layer = make("canvas");
    this.ink = getComputedStyle(view).color;
    this.lay();
  }

  /** Segments of one side: blocks within [from, to), without padding queries unless asked for. */
  segments(from, to, skipPadding) {
    return segmentsOf(this.value, from, to, skipPadding);
  }

  /** Sizes and axes for the room there is; then draws. */
  lay() {
    const across = this.frame.clientWidth - this.left.offsetWidth;
    if (across <= 0 || !this.bitmap) return;
    const { suffix } = this.value;
    const [from, to] = { together: [0, this.rows], prefix: [0, suffix], suffix: [suffix, this.rows] }[kept.pass];
    const keys = this.segments(0, kept.pass === "prefix" ? suffix : this.columns, false);
    const queries = this.segments(from, Math.min(to, this.rows), !kept.padding);
    this.empty = !queries.length || !keys.length;
    if (this.empty) queries.push(...this.segments(0, this.rows, false));
    const evenly = kept.layout === "blocks";
    const count = (list) => list.reduce((sum, { start, stop }) => sum + stop - start, 0);
    const ratio = evenly ? queries.length / keys.length : count(queries) / count(keys);
    const width = Math.min(across - 24, 620);
    const height = Math.round(Math.min(width, Math.max(width * ratio, queries.length * 26, 90)));
    this.across = new Axis(keys, width, evenly);
    this.down = new Axis(queries, height, evenly);
    const density = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(width * density);
    this.canvas.height = Math.round(height * density);
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${height}px`;
    this.left.style.height = `${height}px`;
    this.top.style.width = `${width}px`;
    if (kept.cell && !(this.down.rank.has(kept.cell[0]) && this.across.rank.has(kept.cell[1]))) kept.cell = null;
    this.pan(0, 0);
    this.tell();
  }

  /** Zooms by a factor about a place (the middle by default); 0 shows everything. */
  zoom(factor, [x, y] = [this.across.length / 2, this.down.length / 2]) {
    const zoom = factor === 0 ? 1 : Math.min(MOST_ZOOM, Math.max(1, kept.zoom * factor));
    const grow = zoom / kept.zoom;
    kept.zoom = zoom;
    kept.left = (kept.left + x) * grow - x;
    kept.top = (kept.top + y) * grow - y;
    this.pan(0, 0);
  }

  pan(dx, dy) {
    const within = (place, length) => Math.min(length * (kept.zoom - 1), Math.max(0, place));
    kept.left = within(kept.left + dx, this.across.length);
    kept.top = within(kept.top + dy, this.down.length);
    this.canvas.style.touchAction = kept.zoom > 1 ? "none" : "pan-y";
    this.paint();
  }

  point(x, y) {
    const cell = [
      this.down.cellAt((y + kept.top) / kept.zoom),
      this.across.cellAt((x + kept.left) / kept.zoom),
    ];
    if (kept.cell && cell[0] === kept.cell[0] && cell[1] === kept.cell[1]) return;
    kept.cell = cell;
    this.paint();
    this.tell();
  }

  key(event) {
    const step = arrow(event);
    const zoom = { "+": 2, "=": 2, "-": 1 / 2, 0: 0 }[event.key];
    if (zoom !== undefined && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      return this.zoom(zoom, kept.cell ? this.middle(kept.cell) : undefined);
    }
    if (kept.click === "cut" && kept.cell && (event.key === "Enter" || event.key === " ")) {
      event.preventDefault();
      return this.toggle();
    }
    if (!step) return;
    event.preventDefault();
    const start = kept.cell || [this.down.order[0], this.across.order[0]];
    const axes = [this.down, this.across];
    kept.cell = start.map((cell, i) => {
      if (!step[i]) return cell;
      if (!event.shiftKey) return axes[i].neighbour(cell, step[i]);
      const { start: first, stop } = axes[i].segmentOf(cell);
      return axes[i].neighbour(step[i] > 0 ? stop - 1 : first, step[i]);
    });
    const [x, y] = this.middle(kept.cell);
    this.pan(
      x < 0 || x > this.across.length ? x - this.across.length / 2 : 0,
      y < 0 || y > this.down.length ? y - this.down.length / 2 : 0,
    );
    this.tell();
  }

  /** Where the middle of a cell is drawn. */
  middle([row, column]) {
    const [x, width] = this.across.span(column);
    const [y, height] = this.down.span(row);
    return [(x + width / 2) * kept.zoom - kept.left, (y + height / 2) * kept.zoom - kept.top];
  }

  paint() {
    const context = this.canvas.getContext("2d");
    const density = this.canvas.width / this.across.length;
    context.setTransform(density, 0, 0, density, 0, 0);
    context.clearRect(0, 0, this.across.length, this.down.length);
    if (!this.empty) {
      this.tiles(context, this.bitmap);
      Object.assign(this.layer, { width: this.canvas.width, height: this.canvas.height });
      const over = this.layer.getContext("2d");
      over.setTransform(density, 0, 0, density, 0, 0);
      this.tiles(over, this.hatched);
      over.globalCompositeOperation = "source-in";
      hatch(over, this.across.length, this.down.length, this.ink);
      context.drawImage(this.layer, 0, 0, this.across.length, this.down.length);
      this.seams(context);
      this.cuts(context);
      if (kept.cell) this.mark(context);
    }
    this.label(this.left, this.down, kept.top, "top");
    this.label(this.top, this.across, kept.left, "left");
  }

  /** Draws what is in sight of each block from a bitmap of cells. */
  tiles(context, source) {
    for (const down of this.down.segments)
      for (const across of this.across.segments) {
        const [c, columns, x, width] = inSight(across, kept.left, this.across.length);
        const [r, rows, y, height] = inSight(down, kept.top, this.down.length);
        if (columns <= 0 || rows <= 0) continue;
        // Smoothing reaches over the edge of what it is given, so only where cells are sub-pixel.
        context.imageSmoothingEnabled = width < columns && height < rows;
        context.imageSmoothingQuality = "high";
        context.drawImage(source, c, r, columns, rows, x, y, width, height);
        const cell = Math.min(width / columns, height / rows);
        if (source === this.bitmap && cell > 7) grid(context, x, y, width / columns, height / rows, columns, rows);
      }
  }

  /** Gaps between blocks, where both are large enough to keep most of their room. */
  seams(context) {
    const places = (axis, offset) =>
      axis.segments
        .slice(1)
        .filter(({ size }, i) => Math.min(size, axis.segments[i].size) * kept.zoom > 4 * SEAM)
        .map(({ from }) => from * kept.zoom - offset - SEAM / 2);
    for (const x of places(this.across, kept.left)) context.clearRect(x, 0, SEAM, this.down.length);
    for (const y of places(this.down, kept.top)) context.clearRect(0, y, this.across.length, SEAM);
  }

  /** Hatches what this run went without, and frames what the next one will. */
  cuts(context) {
    for (const down of this.down.segments)
      for (const across of this.across.segments) {
        const covered = (texts) => texts.some((text) => covers(text, down.block, across.block));
        const [ran, next] = [covered(this.value.cuts), covered(window.playgroundCuts || [])];
        if (!ran && !next) continue;
        const [x, width] = [across.from * kept.zoom - kept.left, across.size * kept.zoom];
        const [y, height] = [down.from * kept.zoom - kept.top, down.size * kept.zoom];
        context.save();
        context.beginPath();
        context.rect(x + 1, y + 1, width - 2, height - 2);
        context.clip();
        if (ran) crossHatch(context, x, y, width, height, this.ink, 8);
        context.lineWidth = 4;
        context.strokeStyle = this.ink;
        context.setLineDash(ran === next ? [] : [5, 4]);
        context.strokeRect(x + 1, y + 1, width - 2, height - 2);
        context.restore();
      }
  }

  /** Outlines the chosen cell and shades its row and column. */
  mark(context) {
    const [x, width] = this.across.span(kept.cell[1]).map((v) => v * kept.zoom);
    const [y, height] = this.down.span(kept.cell[0]).map((v) => v * kept.zoom);
    const [left, top] = [x - kept.left, y - kept.top];
    const grow = [Math.max(width, 3), Math.max(height, 3)];
    context.globalAlpha = 0.14;
    context.fillStyle = this.ink;
    context.fillRect(left, 0, grow[0], this.down.length);
    context.fillRect(0, top, this.across.length, grow[1]);
    context.globalAlpha = 1;
    context.strokeStyle = this.ink;
    context.lineWidth = 1.5;
    context.strokeRect(left - 0.5, top - 0.5, grow[0] + 1, grow[1] + 1);
  }

  /** Block names along a side, at the middle of what is in sight, where they do not collide. */
  label(side, axis, offset, edge) {
    const labels = [];
    let free = -Infinity;
    for (const { block, start, stop, from, size } of axis.segments) {
      const [low, high] = [from * kept.zoom - offset, (from + size) * kept.zoom - offset];
      const middle = (Math.max(0, low) + Math.min(axis.length, high)) / 2;
      if (high <= 0 || low >= axis.length || middle - free < 13) continue;
      free = middle;
      const title = `${block.name}: ${stop - start} tokens`;
      labels.push(make("span", { style: `${edge}:${middle}px`, title }, make("bdi", {}, block.label)));
    }
    side.replaceChildren(...labels);
  }

  /** The chosen cell in words. */
  tell() {
    if (this.empty) return (this.reading.textContent = "Nothing to show in this pass.");
    if (!kept.cell) return (this.reading.textContent = "Point at a cell, or use the arrow keys, to read it.");
    const [row, column] = kept.cell;
    const [query, key] = [this.name(row), this.name(column)];
    const code = CODES[this.codes[row * this.columns + column]];
    const says = { allowed: " may attend to ", blocked: " may not attend to ", padding: " and " }[code];
    this.reading.replaceChildren(
      make("bdi", {}, query),
      make("b", { class: code }, says),
      make("bdi", {}, key),
      code === "padding" ? ": padding" : "",
      make("small", {}, `${this.extent(this.down.segmentOf(row), this.across.segmentOf(column))} ${this.offer()}`),
    );
  }

  /** What a click would do. */
  offer() {
    if (kept.click !== "cut") return "";
    const { query, key, cut } = this.blocks(kept.cell);
    return `Click to ${cut ? "mend" : "cut"} ${query.label} → ${key.label}.`;
  }

  /** "text 5 “▁cube”" */
  name(cell) {
    const block = this.value.blocks.find(({ start, stop }) => cell >= start && cell < stop);
    const text = this.texts.get(cell);
    const place = block.stop - block.start > 1 ? ` ${cell - block.start}` : "";
    const quoted = text === undefined || text === block.name || block.kind === "actions" ? "" : ` “${visible(text)}”`;
    return block.label + place + quoted;
  }

  /** How much of one block may attend to another, real queries only; null without any. */
  share(query, key) {
    let [allowed, cells] = [0, 0];
    for (let r = query.start; r < query.stop; r++) {
      if (this.codes[r * this.columns + r] === 2) continue;
      for (let c = key.start; c < key.stop; c++) {
        cells++;
        if (this.codes[r * this.columns + c] === 1) allowed++;
      }
    }
    return cells ? allowed / cells : null;
  }

  /** The same in words. */
  extent(query, key) {
    const share = this.share(query, key);
    if (share === null) return `${query.block.label} holds padding only.`;
    const how = share === 1 ? "all of" : share === 0 ? "nothing of" : `${percent(share)} of`;
    const cut = this.value.cuts.some((text) => covers(text, query.block, key.block));
    return `${query.block.label} may attend to ${how} ${key.block.label}${cut ? "; cut in this run" : ""}.`;
  }

  /** The blocks' relations as a table, for screen readers. */
  table() {
    const all = this.segments(0, this.columns, false);
    const queries = this.segments(0, this.rows, true);
    const row = (query) => {
      const cells = all.map((key) => make("td", {}, this.extent(query, key)));
      return make("tr", {}, make("th", { scope: "row" }, query.block.label), ...cells);
    };
    return make(
      "div",
      { class: "hidden" },
      make(
        "table",
        {},
        make("caption", {}, "Which block may attend to which"),
        make("tr", {}, make("td"), ...all.map((key) => make("th", { scope: "col" }, key.block.label))),
        ...queries.map(row),
      ),
    );
  }
}

/** First cell, number of cells, place and size of the part of a segment that is in sight. */
function inSight({ start, stop, from, scale }, offset, length) {
  const size = scale * kept.zoom;
  const origin = from * kept.zoom - offset;
  const first = Math.max(0, Math.floor(-origin / size));
  const last = Math.min(stop - start, Math.ceil((length - origin) / size));
  return [start + first, last - first, origin + first * size, (last - first) * size];
}

function grid(context, x, y, width, height, columns, rows) {
  context.fillStyle = "rgba(128, 128, 128, 0.25)";
  for (let c = 1; c < columns; c++) context.fillRect(x + c * width - 0.5, y, 1, rows * height);
  for (let r = 1; r < rows; r++) context.fillRect(x, y + r * height - 0.5, columns * width, 1);
}

function hatch(context, width, height, ink) {
  context.strokeStyle = ink;
  context.globalAlpha = 0.3;
  context.lineWidth = 1;
  context.beginPath();
  for (let x = -height; x < width; x += 6) {
    context.moveTo(x, height);
    context.lineTo(x + height, 0);
  }
  context.stroke();
}

let shown = null;
begin("Run a policy to see who may attend to whom.", (value) => {
  if (shown) shown.close();
  shown = new Mask(value);
});
