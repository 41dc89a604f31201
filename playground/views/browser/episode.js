// A recorded episode: scrubbed in the browser, pictures fetched as they are wanted, and the chunks
// that policies predict at the frame against what was recorded.
//
// props.value {values: [frame]} goes to the server once the frame stands still; props.episode and
// props.answer come from it, see playground/views/episode.py.

const SETTLED = 50; // ms without another frame before the policies are asked
const wide = new Set();
let shown = null; // the Recording on show

class Recording {
  constructor(episode) {
    Object.assign(this, { episode, frame: -1, asked: -1, waiting: false, timer: 0 });
    this.states = episode.states && { ...episode.states, ...unpack(episode.states.values) };
    this.actions = episode.actions && { ...episode.actions, ...unpack(episode.actions.values) };
    this.player = new Player({
      label: "Frame", last: episode.length - 1, rate: episode.fps, smooth: false,
      words: (position) => this.words(Math.floor(position)),
      onmove: (position, playing) => this.move(Math.floor(position), playing),
    });
    this.clock = make("p", { class: "clock number" });
    this.task = make("p", { class: "task" });
    this.cameras = episode.cameras.map((camera) => new RecordedCamera(camera));
    this.state = make("dl", { class: "recorded-state number" });
    this.say = make("p", { class: "words", role: "status" });
    this.legend = make("ul", { class: "legend" });
    this.failures = make("div");
    this.plots = make("div", { class: "recorded-plots" });
    const states = this.states ? make("details", {}, make("summary", {}, "State at this frame"), this.state) : null;
    view.replaceChildren(
      make("div", { class: "controls" }, this.player.node, this.clock),
      this.task,
      make("div", { class: "recorded" }, make("div", { class: "recorded-cameras" }, ...this.cameras.map((c) => c.node)),
        make("div", { class: "recorded-answer" }, this.legend, this.say, this.failures, this.plots)),
      states,
    );
    this.player.move(0);
  }

  words(frame) {
    return `frame ${frame} of ${this.episode.length}, ${(frame / this.episode.fps).toFixed(2)} s`;
  }

  /** The panels, for chunks of this many steps. */
  lay(horizon, policies = []) {
    const { dims } = this.actions;
    this.horizon = horizon;
    this.names = policies.map(({ policy }) => policy.title);
    const layers = ["recorded-line", ...policies.map((_, i) => `chunk chunk-${i}`)];
    this.panels = new Panels({ dims, horizon: Math.max(horizon, 2), hz: this.episode.fps, layers, wide, cursor: 0, oncursor: () => this.read() });
    for (const panel of this.panels.panels)
      policies.forEach(({ policy }, i) => (panel.layers[`chunk chunk-${i}`].dataset.family = policy.family));
    this.panels.below("predicted less recorded, at chunk step");
    this.plots.replaceChildren(this.panels.grid, this.panels.reader);
    const entries = [make("li", {}, line("recorded-line"), "recorded")];
    for (const { policy } of policies)
      entries.push(make("li", { "data-family": policy.family }, line("chunk", policy.family), `${policy.title}, predicted (${policy.badge})`));
    this.legend.replaceChildren(...(policies.length ? entries : []));
  }

  move(frame, playing) {
    if (frame === this.frame) return;
    this.frame = frame;
    const time = `${(frame / this.episode.fps).toFixed(2)} s`;
    const readouts = [["frame", `${frame} of ${this.episode.length}`], ["time", time]];
    this.clock.replaceChildren(...readouts.map(([label, text]) => make("span", {}, make("small", {}, label), text)));
    const task = this.episode.tasks.findLast(([first]) => first <= frame);
    this.task.replaceChildren(make("small", {}, "recorded task "), make("bdi", {}, task ? `“${task[1]}”` : "none"));
    for (const camera of this.cameras) camera.show(frame);
    if (this.states) this.fill(frame);
    if (this.answer && this.answer.frame !== frame) this.fade(true);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.ask(), playing ? 0 : SETTLED);
  }

  fill(frame) {
    const { dims, values, shape: [, width] } = this.states;
    const cells = dims.map((dim, i) =>
      make("div", {}, make("dt", {}, dim.name), make("dd", {}, number(values[frame * width + i], 1), make("small", {}, ` ${dim.unit}`))));
    this.state.replaceChildren(...cells);
  }

  /** One question at a time; the frame that is on show when the answer comes is asked next. */
  ask() {
    if (this.waiting || !view.isConnected || this.frame === this.asked) return;
    this.waiting = true;
    this.asked = this.frame;
    props.value = { values: [this.frame] };
    trigger("input");
  }

  /** Asks anew about the same frame: another prompt, say. */
  again() {
    this.asked = -1;
    this.waiting = false;
    this.ask();
  }

  take(answer) {
    if (answer.frame !== this.asked) return; // of a question that a later one has replaced
    this.waiting = false;
    this.answer = answer;
    this.say.textContent = answer.say;
    this.say.hidden = !answer.say;
    const failed = answer.policies.filter(({ failure }) => failure);
    this.failures.replaceChildren(...failed.map(({ policy, failure }) => make("p", { class: "failure", "data-family": policy.family }, `${policy.title}: ${failure}`)));
    if (this.actions && answer.policies.length) this.draw(answer.policies, answer.frame);
    for (const camera of this.cameras) camera.paths(answer.policies);
    this.fade(answer.frame !== this.frame);
    if (answer.frame !== this.frame) this.ask();
  }

  draw(policies, frame) {
    const horizon = Math.max(...policies.map((policy) => policy.horizon));
    const names = policies.map(({ policy }) => policy.title);
    if (horizon !== this.horizon || String(this.names) !== String(names)) this.lay(horizon, policies);
    const chunks = policies.map(({ chunk }) => (chunk ? unpack(chunk) : null));
    const { values, shape: [length, width] } = this.actions;
    this.chunks = chunks;
    const count = Math.min(horizon, length - frame);
    const ahead = values.subarray(frame * width, (frame + count) * width);
    const all = ranges([values, ...chunks.filter(Boolean).map((chunk) => chunk.values)], width);
    all.forEach((range, d) => {
      this.panels.range(d, range);
      const { layers } = this.panels.panels[d];
      layers["recorded-line"].setAttribute("d", trail(ahead, d, width, count, range));
      chunks.forEach((chunk, i) => layers[`chunk chunk-${i}`].setAttribute("d", chunk ? trail(chunk.values, d, width, chunk.shape[0], range) : ""));
    });
    this.read();
  }

  /** At the cursor, how far each prediction is from the recording. */
  read() {
    if (!this.chunks) return;
    const { values, shape: [length, width] } = this.actions;
    const row = this.answer.frame + this.panels.cursor;
    this.panels.panels.forEach((panel, d) => {
      const span = panel.range[1] - panel.range[0];
      const apart = this.chunks.map((chunk) => {
        if (!chunk || row >= length || this.panels.cursor >= chunk.shape[0]) return "–";
        const off = chunk.values[this.panels.cursor * width + d] - values[row * width + d];
        return `${off < 0 ? "" : "+"}${number(off, span)}`;
      });
      panel.value.textContent = apart.join("  ");
    });
  }

  fade(on) {
    this.plots.classList.toggle("stale", on);
    for (const camera of this.cameras) camera.fade(on);
  }
}

/** The newest picture that is wanted, one request at a time. */
class RecordedCamera {
  constructor(camera) {
    Object.assign(this, { camera, busy: false, wanted: -1, drawn: -1 });
    const image = { url: "data:,", width: camera.width, height: camera.height };
    const label = `Recorded picture of ${camera.name}`;
    if (camera.table) this.over = new Camera({ image, grippers: [] }, label);
    this.picture = this.over ? this.over.picture : make("img", { alt: label, width: camera.width, height: camera.height });
    this.note = make("p", { class: "notice", role: "note" });
    this.node = make("figure", { class: "recorded-camera" }, this.over ? this.over.node : this.picture, make("figcaption", {}, camera.name), this.note);
  }

  show(frame) {
    this.wanted = frame;
    if (!this.busy) this.load();
  }

  async load() {
    this.busy = true;
    while (this.wanted !== this.drawn && view.isConnected) {
      const frame = this.wanted;
      const answer = await fetch(`${this.camera.url}${frame}`).catch(() => null);
      this.drawn = frame;
      if (answer && answer.ok) {
        const url = URL.createObjectURL(await answer.blob());
        const before = this.picture.src;
        this.picture.src = url;
        await this.picture.decode().catch(() => {});
        if (before.startsWith("blob:")) URL.revokeObjectURL(before);
        this.picture.dataset.frame = frame;
      }
      this.note.textContent = answer && !answer.ok ? await answer.text() : "";
      this.picture.classList.toggle("missing", Boolean(answer && !answer.ok));
    }
    this.busy = false;
  }

  paths(policies) {
    if (!this.over) return;
    const named = policies.flatMap(({ policy, grippers }) => grippers.map((g) => ({ ...g, name: `${policy.title}: ${g.name}`, family: policy.family })));
    this.over.set(named);
    for (const { name, group } of this.over.grippers) group.dataset.family = named.find((g) => g.name === name).family;
    this.over.draw(0);
  }

  fade(on) {
    if (this.over) this.over.svg.classList.toggle("stale", on);
  }
}

function line(kind, family = "") {
  const path = shape("path", { class: kind, d: "M0 6H24" });
  if (family) path.dataset.family = family;
  return shape("svg", { class: "swatch", viewBox: "0 0 24 12", "aria-hidden": "true" }, path);
}

function refresh() {
  const { episode } = props;
  if (!episode) {
    shown = null;
    return view.replaceChildren(make("p", { class: "waiting" }, "A recorded episode shows here: its pictures, and what the policies predict at each frame."));
  }
  if (!shown || JSON.stringify(shown.episode) !== JSON.stringify(episode)) shown = new Recording(episode);
}
watch("episode", refresh);
watch("answer", () => shown && props.answer && shown.take(props.answer));
addEventListener("playground-frame", ({ detail }) => {
  if (!shown || !view.isConnected) return;
  shown.player.pause();
  shown.player.move(detail);
  view.scrollIntoView({ block: "start", behavior: "instant" });
});
addEventListener("playground-ask", () => shown && view.isConnected && shown.again());
refresh();
