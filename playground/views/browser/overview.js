// A run at one glance: a row a policy, and one scrubber that moves every panel of every row.
//
// The scrubber counts the stops of the policy that has most; the others are at the same share of
// their way. Hovering an action step marks it in the paths, the curves and the masks of all rows.

const kept = { share: null, looping: false, speed: 1 }; // share of the way; null: the end
const HUGE = 32; // dimensions beyond which curves would be too small to see

/** Small curves of every dimension: the estimate at the scrubber, its noise, the finished chunk. */
class Curves {
  constructor({ dims, horizon, hz, onstep }) {
    Object.assign(this, { dims, horizon, hz });
    this.count = Math.min(dims.length, HUGE);
    this.cells = dims.slice(0, this.count).map((dim, d) => this.cell(dim, d, onstep));
    const columns = this.count > 16 ? 4 : this.count > 3 ? 2 : 1;
    const slider = { tabindex: 0, role: "slider", "aria-label": "Action step", "aria-valuemin": 0, "aria-valuemax": horizon - 1 };
    this.node = make("div", { class: "curves", ...slider, style: `--columns:${columns};--rows:${Math.ceil(this.count / columns)}` }, ...this.cells.map(({ node }) => node));
    this.node.addEventListener("pointerleave", () => onstep(null));
    this.node.addEventListener("blur", () => onstep(null));
    this.node.addEventListener("keydown", (event) => this.key(event, onstep));
    this.marked = null;
  }

  /** Arrows mark an action step, as the pointer does; Escape marks none. */
  key(event, onstep) {
    const last = this.horizon - 1;
    const by = (steps) => (this.marked === null ? 0 : Math.min(last, Math.max(0, this.marked + steps)));
    const moves = { ArrowRight: by(1), ArrowUp: by(1), ArrowLeft: by(-1), ArrowDown: by(-1), PageUp: by(10), PageDown: by(-10), Home: 0, End: last, Escape: null };
    if (!(event.key in moves)) return;
    event.preventDefault();
    onstep(moves[event.key]);
  }

  cell(dim, d, onstep) {
    const layers = {};
    const cursor = shape("line", { class: "cursor", y1: 0, y2: 100 });
    for (const name of ["noise", "final", "estimate"]) layers[name] = shape("path", { class: name });
    const box = { viewBox: `0 0 ${this.horizon - 1} 100`, preserveAspectRatio: "none", "aria-hidden": "true" };
    const label = make("span", { class: "label", title: `${dim.name} (${unitOf(dim)})` }, make("bdi", {}, dim.name));
    const value = make("span", { class: "at number" });
    const node = make("div", { class: "curve" }, shape("svg", box, cursor, ...Object.values(layers)), label, value);
    node.addEventListener("pointermove", (event) => {
      const place = node.getBoundingClientRect();
      const share = Math.min(1, Math.max(0, (event.clientX - place.left) / place.width));
      onstep(Math.round(share * (this.horizon - 1)));
    });
    return { node, layers, cursor, value, range: [0, 1], d };
  }

  /** arrays: all that will be drawn, for the axes; final: where the finished chunk begins in the last. */
  scale(arrays, width) {
    ranges(arrays, width).slice(0, this.count).forEach((range, d) => (this.cells[d].range = range));
  }

  /** Draws a layer from values [..., horizon, width] at the index `first`; null clears it. */
  draw(layer, values, first, width) {
    for (const { layers, range, d } of this.cells)
      layers[layer].setAttribute("d", values ? trail(values, first + d, width, this.horizon, range) : "");
  }

  /** read(d): the number to show beside a dimension. */
  step(step, read) {
    this.marked = step === null ? null : Math.min(step, this.horizon - 1);
    for (const { cursor, value, d } of this.cells) {
      cursor.style.display = step === null ? "none" : "";
      if (step !== null) for (const end of ["x1", "x2"]) cursor.setAttribute(end, step);
      value.textContent = step === null ? "" : read(d);
    }
    const values = this.cells.map(({ value, d }) => `${this.dims[d].name} ${value.textContent}`);
    this.node.setAttribute("aria-valuenow", this.marked ?? 0);
    this.node.setAttribute("aria-valuetext", step === null ? "none marked" : `${this.marked}: ${values.join(", ")}`);
  }
}

/** The mask of the run by block; rows that did not run at the scrubber's place are faded. */
class SmallMask {
  constructor(value) {
    this.value = value;
    [this.rows, this.columns] = value.shape;
    this.codes = cellCodes(value);
    this.queries = segmentsOf(value, 0, this.rows, true);
    this.keys = segmentsOf(value, 0, this.columns, false);
    this.canvas = make("canvas", { role: "img", "aria-label": value.summary });
    this.side = make("div", { class: "names", "aria-hidden": "true" });
    this.node = make("div", { class: "small-mask" }, this.side, this.canvas);
    this.samples = ["blocked", "allowed", "padding"].map((code) => make("i", { class: `code ${code}` }));
    this.node.append(make("div", { class: "hidden" }, ...this.samples));
    this.sizes = new ResizeObserver(() => this.lay());
    this.sizes.observe(this.canvas);
    this.themes = new MutationObserver(() => this.lay());
    this.themes.observe(document.body, { attributes: true, attributeFilter: ["class"] });
    this.canvas.addEventListener("pointermove", ({ offsetX, offsetY }) => this.read(offsetX, offsetY));
  }

  /** Says as a hover text which block may attend to which, at a place on the canvas. */
  read(x, y) {
    if (!this.across) return;
    const [row, column] = [this.down.cellAt(y), this.across.cellAt(x)];
    const [query, key] = [this.down.segmentOf(row).block.label, this.across.segmentOf(column).block.label];
    const code = this.codes[row * this.columns + column];
    this.canvas.title = [`${query} may not attend to ${key}`, `${query} may attend to ${key}`, `${key}: padding, which nobody attends to`][code];
  }

  close() {
    this.sizes.disconnect();
    this.themes.disconnect();
  }

  lay() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !height) return;
    const colours = this.samples.map((sample) => word(getComputedStyle(sample).backgroundColor));
    this.bitmap = bitmap(this.columns, this.rows, this.codes, colours);
    this.across = new Axis(this.keys, width, true);
    this.down = new Axis(this.queries, height, true);
    const density = window.devicePixelRatio || 1;
    Object.assign(this.canvas, { width: Math.round(width * density), height: Math.round(height * density) });
    let free = -Infinity;
    this.side.replaceChildren(
      ...this.down.segments.flatMap(({ block, from, size }) => {
        const middle = from + size / 2;
        if (middle - free < 12) return [];
        free = middle;
        return [make("span", { style: `top:${middle}px`, title: block.name }, make("bdi", {}, block.label))];
      }),
    );
    this.paint();
  }

  /** ran(row): whether a query's row ran at the scrubber's place; marked: a row to outline. */
  show(ran, marked) {
    this.state = [ran, marked];
    this.paint();
  }

  paint() {
    if (!this.bitmap || !this.state) return;
    const [ran, marked] = this.state;
    const context = this.canvas.getContext("2d");
    const density = this.canvas.width / this.across.length;
    context.setTransform(density, 0, 0, density, 0, 0);
    context.clearRect(0, 0, this.across.length, this.down.length);
    for (const down of this.down.segments)
      for (const across of this.across.segments) {
        const [columns, rows] = [across.stop - across.start, down.stop - down.start];
        context.imageSmoothingEnabled = across.scale < 1 && down.scale < 1;
        context.globalAlpha = 1;
        context.drawImage(this.bitmap, across.start, down.start, columns, rows, across.from, down.from, across.size - 1, down.size - 1);
      }
    context.globalCompositeOperation = "destination-out";
    context.globalAlpha = 0.72;
    for (const down of this.down.segments)
      for (let row = down.start; row < down.stop; row++) {
        const first = row;
        while (row < down.stop && !ran(row)) row++;
        context.fillRect(0, down.from + (first - down.start) * down.scale, this.across.length, (row - first) * down.scale);
      }
    context.globalCompositeOperation = "source-over";
    context.globalAlpha = 1;
    this.cuts(context);
    if (marked === null || !this.down.rank.has(marked)) return;
    const [from, size] = this.down.span(marked);
    context.fillStyle = getComputedStyle(view).color;
    context.fillRect(0, from, this.across.length, Math.max(2, size));
  }

  /** Hatches what this run went without, as the large mask does. */
  cuts(context) {
    const ink = getComputedStyle(view).color;
    for (const down of this.down.segments)
      for (const across of this.across.segments) {
        if (!this.value.cuts.some((text) => covers(text, down.block, across.block))) continue;
        const [x, y, width, height] = [across.from, down.from, across.size - 1, down.size - 1];
        context.save();
        context.beginPath();
        context.rect(x, y, width, height);
        context.clip();
        crossHatch(context, x, y, width, height, ink, 5);
        context.strokeStyle = ink;
        context.lineWidth = 2;
        context.strokeRect(x, y, width, height);
        context.restore();
      }
  }
}

/** How a flow policy's chunk came about: x_t of the dimension that moves most, and |v_t|. */
class Flow {
  constructor(value) {
    const [x, v, robot] = [unpack(value.x), unpack(value.v), unpack(value.robot)];
    const [stops, samples, horizon, width] = x.shape;
    Object.assign(this, { horizon, width, times: value.times, last: stops - 1, size: samples * horizon * width });
    Object.assign(this, { x: x.values, robot: robot.values, dims: value.dims });
    this.estimates = this.x.map((here, i) => {
      const s = Math.floor(i / this.size);
      return s < this.last ? here - value.times[s] * v.values[i] : here;
    });
    this.speeds = Array.from({ length: this.last }, (_, s) => {
      const part = v.values.subarray(s * this.size, (s + 1) * this.size);
      return Math.sqrt(part.reduce((sum, value) => sum + value * value, 0) / part.length);
    });
    const end = this.last * this.size;
    const spans = value.dims.map((_, d) => {
      const along = Array.from({ length: horizon }, (__, h) => this.x[end + h * width + d]);
      return Math.max(...along) - Math.min(...along);
    });
    this.dim = spans.indexOf(Math.max(...spans));
    this.title = "Denoising";
    this.build();
  }

  build() {
    const range = ranges([this.x.filter((_, i) => i % this.width === this.dim && i % this.size < this.horizon * this.width)], 1)[0];
    const line = (s, name) => shape("path", { class: name, d: trail(this.x, s * this.size + this.dim, this.width, this.horizon, range) });
    this.lines = Array.from({ length: this.last + 1 }, (_, s) => {
      const path = line(s, "stop");
      path.style.setProperty("--share", s / this.last);
      return path;
    });
    const box = { viewBox: `0 0 ${this.horizon - 1} 100`, preserveAspectRatio: "none", "aria-hidden": "true" };
    const fastest = Math.max(...this.speeds, 1e-9);
    this.bars = this.speeds.map((speed) => make("i", { style: `height:${Math.max(4, (100 * speed) / fastest)}%` }));
    this.node = make(
      "div",
      { class: "making" },
      make("div", { class: "stops" }, shape("svg", box, ...this.lines), make("span", { class: "label" }, "x_t of ", make("bdi", {}, this.dims[this.dim].name), ": noise → action")),
      make("div", { class: "speeds" }, make("span", { class: "label" }, "|v_t|"), ...this.bars),
    );
  }

  readout(stop) {
    const t = this.times[stop];
    return `step ${stop} of ${this.last} · t ${t.toFixed(2)} · τ ${(1 - t).toFixed(2)}`;
  }

  draw(stop, curves) {
    const first = stop * this.size;
    curves.draw("noise", stop < this.last ? this.x : null, first, this.width);
    curves.draw("estimate", this.estimates, first, this.width);
    this.lines.forEach((line, s) => line.classList.toggle("now", s === stop));
    this.bars.forEach((bar, s) => bar.classList.toggle("now", s === stop));
  }

  prepare(curves) {
    curves.scale([this.x.subarray(this.last * this.size), this.estimates], this.width);
    curves.draw("final", this.x, this.last * this.size, this.width);
  }

  read(stop, step, d) {
    return number(this.robot[stop * this.size + step * this.width + d], 1);
  }

  /** Frame of the camera's paths at a stop. */
  frame(stop) {
    return stop;
  }

  ran(stop, suffix) {
    if (stop === this.last) return () => true;
    return stop === 0 ? (row) => row < suffix : (row) => row >= suffix;
  }

  /** The mask's row of an action step. */
  row(step, stop, { blocks }) {
    const actions = blocks.find(({ kind }) => kind === "actions");
    return actions && step !== null ? Math.min(actions.stop - 1, actions.start + step) : null;
  }
}

/** A token's text for a small chip: of action tokens, which PaliGemma calls <loc0123>, the number. */
function short(text) {
  return visible(text).replace(/^<loc0*(\d+)>$/, "$1");
}

/** How pi0-FAST's chunk came about: its tokens with their probability. */
class Fast {
  constructor(value) {
    const partial = value.partial ? unpack(value.partial) : null;
    const [, horizon, width] = partial ? partial.shape : [0, value.horizon, value.dims.length];
    Object.assign(this, { horizon, width, tokens: value.tokens, last: value.tokens.length, dims: value.dims });
    this.size = horizon * width;
    this.partial = partial && partial.values;
    this.final = value.actions ? unpack(value.actions).values : null;
    this.title = "Tokens";
    this.chips = this.tokens.map((token, i) =>
      make("span", { class: "token", style: `--p:${token.p}`, title: `token ${i + 1}: ${visible(token.text)}, ${percent(token.p)}` }, make("bdi", {}, short(token.text))),
    );
    this.detail = make("p", { class: "label number" });
    this.rail = make("div", { class: "chips", tabindex: 0, role: "img", "aria-label": `${this.last} tokens; the scrubber reads them one by one` }, ...this.chips);
    this.node = make("div", { class: "making" }, this.rail, this.detail);
  }

  readout(stop) {
    return `token ${stop} of ${this.last}`;
  }

  draw(stop, curves) {
    const first = (stop - 1) * this.size;
    const known = this.known(stop);
    curves.draw("estimate", known ? this.partial : null, first, this.width);
    this.chips.forEach((chip, i) => {
      chip.classList.toggle("later", i >= stop);
      chip.classList.toggle("now", i === stop - 1 && stop < this.last);
    });
    const token = this.tokens[stop - 1];
    const rival = token && token.others[0];
    this.detail.textContent = token
      ? `“${short(token.text)}” ${percent(token.p)}${rival ? ` · next likeliest “${short(rival[1])}” ${percent(rival[2])}` : ""}`
      : "before the first token";
    const chip = this.chips[Math.max(0, stop - 1)];
    if (chip && this.rail.scrollHeight > this.rail.clientHeight) this.rail.scrollTop = chip.offsetTop - this.rail.offsetTop - this.rail.clientHeight / 2;
  }

  prepare(curves) {
    curves.scale([this.partial, this.final].filter(Boolean), this.width);
    curves.draw("final", this.final, 0, this.width);
  }

  /** Whether the tokens so far decode to a chunk. */
  known(stop) {
    return stop > 0 && this.partial !== null && !Number.isNaN(this.partial[(stop - 1) * this.size]);
  }

  read(stop, step, d) {
    return this.known(stop) ? number(this.partial[(stop - 1) * this.size + step * this.width + d], 1) : "–";
  }

  frame(stop) {
    return this.known(stop) ? stop - 1 : null;
  }

  ran(stop, suffix) {
    if (stop === this.last) return () => true;
    return stop === 0 ? (row) => row < suffix : (row) => row === suffix + stop - 1;
  }

  /** A token is no step of the chunk: it is a coefficient of a cosine transform. */
  row() {
    return null;
  }
}

class Row {
  constructor(name, value, runId, onstep) {
    Object.assign(this, { name, value, runId });
    this.run = value.flow ? new Flow(value.flow) : value.fast ? new Fast(value.fast) : null;
    const { policy } = value;
    const camera = (value.flow || value.fast || {}).camera || value.path;
    this.camera = camera ? new Camera(camera, value.sentence) : null;
    this.still = !(value.flow || value.fast || {}).camera;
    const photo = value.picture ? make("img", { class: "alone", src: value.picture.url, alt: "Camera picture" }) : "";
    this.mask = new SmallMask(value.mask);
    this.readout = make("span", { class: "readout number" });
    this.step = null;
    const panels = [this.panel("Path", "Actions and denoising", this.camera ? this.camera.node : photo)];
    if (this.run) {
      this.curves = new Curves({ dims: this.run.dims, horizon: this.run.horizon, hz: 1, onstep });
      this.run.prepare(this.curves);
      panels.push(this.panel("Chunk", "Actions and denoising", this.curves.node), this.panel(this.run.title, "Actions and denoising", this.run.node));
    }
    panels.push(this.panel("Mask", "Attention", this.mask.node));
    this.node = make(
      "section",
      { class: "answer", "data-family": policy.family, "data-policy": name, "aria-label": policy.title },
      make(
        "header",
        {},
        make("span", { class: "dot", "aria-hidden": "true" }),
        make("strong", {}, policy.title),
        make("span", { class: "badge", title: policy.notice }, policy.badge),
        make("span", { class: "sentence" }, value.sentence),
        this.readout,
      ),
      value.fast && value.fast.failure ? make("p", { class: "failure", role: "note" }, make("strong", {}, "Decoding failed. "), value.fast.failure) : "",
      value.foreign ? make("p", { class: "caveat", role: "note" }, value.foreign) : "",
      make("div", { class: "panes" }, ...panels),
    );
  }

  panel(title, tab, ...content) {
    const open = make("button", { type: "button", class: "open", title: `Open ${tab}` }, title);
    open.addEventListener("click", () => {
      for (const found of document.querySelectorAll("#tabs button[role=tab]")) if (found.textContent.trim() === tab) found.click();
    });
    return make("figure", { class: `pane ${title.toLowerCase()}` }, make("figcaption", {}, open), ...content);
  }

  get last() {
    return this.run ? this.run.last : 0;
  }

  frame(share) {
    this.stop = Math.floor(share * this.last + 1e-6);
    if (this.run) {
      this.run.draw(this.stop, this.curves);
      this.readout.textContent = this.run.readout(this.stop);
    }
    if (this.camera) this.camera.draw(this.still ? 0 : this.run.frame(this.stop));
    this.hover(this.step);
  }

  hover(step) {
    this.step = step;
    const { run } = this;
    if (run) this.curves.step(step, (d) => run.read(this.stop, Math.min(step, run.horizon - 1), d));
    if (this.camera) this.camera.mark(this.still || !run ? 0 : run.frame(this.stop), step);
    this.mask.show(run ? run.ran(this.stop, this.value.mask.suffix) : () => true, run ? run.row(step, this.stop, this.value.mask) : null);
  }
}

let rows = [];

/** A run, or as much of one as there is: without a value, a policy has not answered yet. */
function draw(run) {
  const asked = Object.entries(run.policies);
  const before = Object.fromEntries(rows.map((row) => [row.name, row]));
  const mark = (step) => rows.forEach((row) => row.hover(step));
  rows = asked.flatMap(([name, value]) => {
    const old = before[name];
    if (old && (!value || old.runId === run.run_id)) return [old];
    return value ? [new Row(name, value, run.run_id, mark)] : [];
  });
  for (const old of Object.values(before)) if (!rows.includes(old)) old.mask.close();
  for (const row of rows) row.node.classList.toggle("stale", !run.policies[row.name]);
  const missing = Array.from({ length: asked.length - rows.length }, () => make("i"));
  const last = Math.max(1, ...rows.map((row) => row.last));
  const words = () => rows.map((row) => `${row.value.policy.title}: ${row.readout.textContent}`).join("; ");
  const player = new Player({
    label: "Denoising step or token",
    last,
    rate: last / 4,
    smooth: false,
    words,
    onmove: (position) => {
      kept.share = position >= last ? null : position / last;
      [kept.looping, kept.speed] = [player.looping, player.speed];
      rows.forEach((row) => row.frame(position / last));
    },
  });
  const entries = [["estimate", "estimate now"], ["noise", "x_t, its noise (normalised)"], ["final", "finished chunk"]];
  view.replaceChildren(
    make("div", { class: "scrubber" }, player.node, make("ul", { class: "legend" }, ...entries.map(([kind, text]) => make("li", {}, swatch(kind), text)))),
    ...rows.map((row) => row.node),
    missing.length ? make("div", { class: "skeleton", "aria-hidden": "true" }, ...missing) : "",
  );
  player.setLooping(kept.looping);
  player.setSpeed(kept.speed);
  player.move(kept.share === null ? last : Math.round(kept.share * last));
  if (kept.share === null)
    for (const row of rows) {
      const old = before[row.name];
      if (old && old !== row && old.camera && row.camera) row.camera.comeFrom(old.camera);
    }
  if (!isWhole(run)) dispatchEvent(new CustomEvent("playground-row"));
}

let known = { text: "", run: null };

/** The run of a text, see playground/views/overview.py, Rows: each line adds to those before it. */
function runOf(text) {
  let run = null;
  let from = 0;
  if (known.run && text.startsWith(known.text)) [run, from] = [known.run, known.text.length];
  for (const line of text.slice(from).split("\n").filter(Boolean)) {
    const next = JSON.parse(line);
    for (const [name, value] of Object.entries(next.policies))
      next.policies[name] = value && { ...run?.policies[name], ...value };
    run = { ...run, ...next };
  }
  known = { text, run };
  return run;
}

const isWhole = (run) => Object.values(run.policies).every(Boolean);

// Not `begin`: what the other tabs show comes from here, whether or not this one is in sight.
const waiting = make("div", { class: "skeleton", "aria-hidden": "true" }, make("i"), make("i"));
let inSight = true; // until the browser says otherwise
let undrawn = null; // a run that came while another tab was open

function drawOnceInSight() {
  const run = undrawn;
  if (!run || !inSight) return;
  undrawn = null;
  keepFocus(() => draw(run));
}

function refresh() {
  if (props.value) {
    undrawn = runOf(props.value);
    if (isWhole(undrawn)) publish(undrawn);
    return drawOnceInSight();
  }
  publish(null);
  rows = [];
  undrawn = null;
  view.replaceChildren(waiting, make("p", { class: "waiting", role: "status" }, "The answers appear here: give a picture of each camera that is needed and a prompt, then Run."));
}
watch("value", refresh);
refresh();
new IntersectionObserver((entries) => {
  inSight = entries.at(-1).isIntersecting;
  drawOnceInSight();
}, { rootMargin: "4000px 0px" }).observe(view);
