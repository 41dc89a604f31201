// Measured attention: an overlay on each camera and the weight on each block, for one step, query,
// layer and head, or the mean over layers or heads.

// -1: the mean. shade: what shades the heads, a block's place or -1 for the entropy.
const kept = { pass: null, query: 0, layer: -1, head: -1, padding: true, shade: -1 };

class Attention {
  constructor(value) {
    this.value = value;
    this.overlay = bytesOf(value.overlay);
    const [peak, mass, entropy] = [value.peak, value.mass, value.entropy].map(unpack);
    [this.peak, this.mass, this.entropy, this.axes] = [peak.values, mass.values, entropy.values, peak.shape];
    this.readouts = [];
    this.width = this.overlay.length / this.peak.length;
    this.build();
  }

  build() {
    const { value } = this;
    const [passes, layers, heads, queries] = this.axes;
    const clip = (chosen, count) => Math.min(chosen, count - 1);
    kept.pass = kept.pass === null ? passes - 1 : clip(kept.pass, passes);
    [kept.query, kept.layer, kept.head] = [clip(kept.query, queries), clip(kept.layer, layers), clip(kept.head, heads)];
    kept.shade = clip(kept.shade, value.blocks.length);
    const query = ([name, text]) => (text ? `${name} “${visible(text)}”` : name);
    const mean = (kind) => (i) => (i < 0 ? `mean over ${kind}s` : `${kind} ${i}`);
    this.pictures = value.cameras.map((camera) => this.camera(camera));
    const hidden = this.pictures.filter(({ canvas }) => !canvas).map(({ title }) => title);
    this.masses = make("div", { class: "masses" });
    this.scale = make("span", { class: "number" });
    view.replaceChildren(
      heading(value.policy),
      make("p", { class: "hidden" }, value.summary),
      make(
        "div",
        { class: "picks" },
        value.passes.length ? this.pick("step", "pass", 0, passes - 1, (i) => value.passes[i]) : "",
        this.pick("query", "query", 0, queries - 1, (i) => query(value.queries[i])),
        this.pick("layer", "layer", -1, layers - 1, mean("layer")),
        heads > 1 ? this.pick("head", "head", -1, heads - 1, mean("head")) : "",
      ),
      make(
        "ul",
        { class: "legend" },
        make("li", {}, "weight of a patch: 0", make("span", { class: "ramp", "aria-hidden": "true" }), this.scale),
      ),
      make("div", { class: "cameras" }, ...this.pictures.filter(({ canvas }) => canvas).map(({ node }) => node)),
      hidden.length ? make("p", { class: "notice" }, `${hidden.join("; ")}: no token may attend there.`) : "",
      this.heads(),
      check("count padding", kept.padding, (padding) => this.change({ padding })),
      this.masses,
      make("p", { class: "caveat" }, value.caveat),
      make("p", { class: "notice" }, `${value.kept}. `, value.policy.notice),
    );
    this.themes = new MutationObserver(() => this.draw());
    this.themes.observe(document.body, { attributes: true, attributeFilter: ["class"] });
    this.draw();
  }

  close() {
    this.themes.disconnect();
  }

  change(changes) {
    Object.assign(kept, changes);
    this.readouts.forEach((tell) => tell());
    this.draw();
  }

  /** A small picture of every head to choose from, shaded by its entropy or its weight on a block. */
  heads() {
    const [, layers, heads] = this.axes;
    const shown = this.pictures.findIndex(({ canvas }) => canvas);
    const side = shown < 0 ? 1 : this.pictures[shown].side;
    this.patches = [this.pictures.slice(0, Math.max(0, shown)).reduce((sum, { side: s }) => sum + s * s, 0), shown < 0 ? 0 : side * side];
    this.cells = Array.from({ length: layers * heads }, (_, i) => {
      const [layer, head] = [Math.floor(i / heads), i % heads];
      const canvas = make("canvas", { width: side, height: side, "aria-hidden": "true" });
      const words = make("span", { class: "number" });
      const node = make("button", { type: "button" }, canvas, words);
      node.addEventListener("click", () => {
        const same = kept.layer === layer && kept.head === (heads > 1 ? head : -1);
        this.change({ layer: same ? -1 : layer, head: same || heads === 1 ? -1 : head });
      });
      return { node, canvas, words, layer, head };
    });
    const options = [[-1, "entropy (bits)"], ...this.value.blocks.map(({ label }, b) => [b, `weight on ${label}`])];
    const select = make("select", {}, ...options.map(([b, text]) => make("option", { value: b, selected: b === kept.shade }, text)));
    select.addEventListener("change", () => this.change({ shade: Number(select.value) }));
    return make(
      "div",
      { class: "heads" },
      make("label", {}, heads > 1 ? "Heads (rows: layers), shaded by " : "Layers, shaded by ", select),
      make("div", { class: "grid", role: "group", "aria-label": "Choose a head", style: `--heads:${heads}` }, ...this.cells.map(({ node }) => node)),
    );
  }

  drawHeads(colour) {
    const [, layers, heads, queries] = this.axes;
    const blocks = this.value.blocks.length;
    const row = ({ layer, head }) => ((kept.pass * layers + layer) * heads + head) * queries + kept.query;
    const amount = (cell) => (kept.shade < 0 ? this.entropy[row(cell)] : this.mass[row(cell) * blocks + kept.shade]);
    const amounts = this.cells.map(amount);
    const [least, most] = kept.shade < 0 ? [Math.min(...amounts), Math.max(...amounts)] : [0, Math.max(...amounts)];
    const [from, count] = this.patches;
    this.cells.forEach(({ node, canvas, words, layer, head }, i) => {
      const first = row(this.cells[i]) * this.width + from;
      const text = kept.shade < 0 ? amounts[i].toFixed(1) : percent(amounts[i]);
      if (count) paint(canvas, this.overlay.subarray(first, first + count), 255, colour);
      node.style.setProperty("--share", most > least ? (amounts[i] - least) / (most - least) : 0);
      node.setAttribute("aria-pressed", String(kept.layer === layer && (heads === 1 || kept.head === head)));
      node.setAttribute("aria-label", `layer ${layer}${heads > 1 ? `, head ${head}` : ""}: ${text}${kept.shade < 0 ? " bits" : ""}`);
      words.textContent = text;
    });
  }

  pick(label, name, min, max, words) {
    const input = make("input", { type: "range", min, max, step: 1, value: kept[name], "aria-label": label });
    const output = make("output", {}, words(kept[name]));
    const tell = () => {
      input.value = kept[name];
      output.textContent = words(kept[name]);
      output.title = words(kept[name]);
      input.setAttribute("aria-valuetext", words(kept[name]));
    };
    input.addEventListener("input", () => this.change({ [name]: Number(input.value) }));
    this.readouts.push(tell);
    tell();
    return make("label", {}, make("span", {}, label), input, output);
  }

  camera({ label, side, image, note, masked }) {
    if (masked) return { canvas: null, title: label, side };
    const canvas = make("canvas", { width: side, height: side, "aria-hidden": "true" });
    const alt = image ? `${label}: what the model saw` : "";
    const photo = image ? make("img", { src: image.url, alt }) : null;
    const caption = make("figcaption", {});
    const node = make("figure", {}, make("div", { class: "photo" }, photo, canvas), caption);
    return { node, canvas, caption, title: note ? `${label}, ${note}` : label, side };
  }

  /** (flat index into [P, L, K, Q]) of each row that the choice averages over. */
  rows() {
    const [, layers, heads, queries] = this.axes;
    const all = (chosen, count) => (chosen < 0 ? Array.from({ length: count }, (_, i) => i) : [chosen]);
    return all(kept.layer, layers).flatMap((l) =>
      all(kept.head, heads).map((k) => ((kept.pass * layers + l) * heads + k) * queries + kept.query),
    );
  }

  draw() {
    const rows = this.rows();
    const weights = new Float32Array(this.width);
    for (const row of rows)
      for (let c = 0; c < this.width; c++)
        weights[c] += ((this.overlay[row * this.width + c] / 255) * this.peak[row]) / rows.length;
    const most = weights.reduce((a, b) => Math.max(a, b), 0);
    this.scale.textContent = percent(most);
    const colour = pixel(getComputedStyle(view.querySelector(".dot")).backgroundColor);
    let start = 0;
    for (const { canvas, caption, title, side } of this.pictures) {
      const patches = weights.subarray(start, start + side * side);
      start += side * side;
      if (!canvas) continue;
      paint(canvas, patches, most, colour);
      caption.textContent = `${title} · ${percent(patches.reduce((a, b) => a + b, 0))}`;
    }
    this.drawHeads(colour);
    this.drawMasses(rows);
  }

  drawMasses(rows) {
    const { blocks } = this.value;
    let mass = blocks.map((_, b) => rows.reduce((sum, row) => sum + this.mass[row * blocks.length + b], 0) / rows.length);
    if (!kept.padding) {
      mass = mass.map((share, b) => (blocks[b].padding ? null : share));
      const whole = mass.reduce((a, b) => a + (b || 0), 0) || 1;
      mass = mass.map((share) => (share === null ? null : share / whole));
    }
    this.masses.replaceChildren(
      ...mass.flatMap((share, b) => {
        if (share === null) return [];
        const { label, padding } = blocks[b];
        const name = label + (padding && label !== "padding" ? " (padding)" : "");
        return [
          make("span", { class: padding ? "pad" : "" }, make("bdi", {}, name)),
          make("span", { class: "meter" }, make("i", { style: `width:${100 * share}%` })),
          make("span", { class: "number" }, percent(share)),
        ];
      }),
    );
  }
}

/** Patches as one colour, more opaque with more weight. */
function paint(canvas, patches, most, [red, green, blue]) {
  const image = new ImageData(canvas.width, canvas.height);
  patches.forEach((weight, i) => image.data.set([red, green, blue, most ? (235 * weight) / most : 0], 4 * i));
  canvas.getContext("2d").putImageData(image, 0, 0);
}

let shown = null;
begin("Measured attention appears here.", (value) => {
  if (shown) shown.close();
  shown = new Attention(value);
});
