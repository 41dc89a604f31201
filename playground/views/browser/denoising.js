// The denoising player: x_t, the estimate x_t - t v_t and |v_t| of every Euler step.
//
// Within a step x moves on a straight line and the estimate stands still (x_t - t v_t is the same
// all along that line), so the frames between two stops are exact too, not decoration.

// What a person chose, kept when the next run replaces the value. position null: the last stop.
const kept = { position: null, units: "model", cursor: 0, wide: new Set(), looping: false, speed: 1 };

class Denoising {
  constructor(value) {
    const [x, v, robot] = [unpack(value.x), unpack(value.v), unpack(value.robot)];
    const [stops, samples, horizon, width] = x.shape;
    Object.assign(this, { samples, horizon, width, dims: value.dims, times: value.times });
    this.steps = stops - 1;
    this.size = samples * horizon * width; // values of one stop
    this.x = x.values;
    this.estimates = {
      model: this.x.map((here, i) => {
        const s = Math.floor(i / this.size);
        return s < this.steps ? here - value.times[s] * v.values[i] : here;
      }),
      robot: robot.values,
    };
    this.limits = {
      model: ranges([this.x, this.estimates.model], width),
      robot: ranges([robot.values], width),
    };
    this.speeds = this.rootMeanSquare(v.values);
    this.fastest = this.speeds.reduce((a, b) => Math.max(a, b), 1e-9);
    this.camera = value.camera ? new Camera(value.camera) : null;
    this.build(value);
  }

  /** |v_t| over samples and chunk, of each step and dimension: [steps, width]. */
  rootMeanSquare(v) {
    const sums = new Float32Array(this.steps * this.width);
    for (let i = 0; i < v.length; i++)
      sums[Math.floor(i / this.size) * this.width + (i % this.width)] += v[i] ** 2;
    return sums.map((sum) => Math.sqrt((sum * this.width) / this.size));
  }

  build(value) {
    this.panels = new Panels({
      dims: this.dims,
      horizon: this.horizon,
      hz: value.hz,
      layers: ["noise", "fan", "final", "estimate"],
      bars: this.steps,
      wide: kept.wide,
      cursor: kept.cursor,
      oncursor: () => this.readings(Math.floor(this.player.position)),
    });
    this.player = new Player({
      label: "Euler step",
      last: this.steps,
      rate: 2.5,
      smooth: true,
      words: (position) => this.moment(position).words,
      onmove: (position, playing) => this.frame(position, playing),
    });
    this.clock = make("p", { class: "clock number" });
    this.status = make("p", { class: "hidden", role: "status" });
    this.legend = make("ul", { class: "legend" });
    const units = [["model", "model units"], ["robot", "robot units"]];
    view.replaceChildren(
      heading(value.policy),
      make("p", { class: "hidden" }, value.summary),
      make(
        "div",
        { class: "controls" },
        this.player.node,
        this.clock,
        choice("Units", units, kept.units, (chosen) => this.setUnits(chosen)),
      ),
      this.status,
      this.camera ? this.camera.node : "",
      this.camera ? this.camera.legend() : "",
      this.legend,
      this.panels.grid,
      this.panels.reader,
      make("p", { class: "notice" }, value.policy.notice),
    );
    this.drawBars();
    this.setUnits(kept.units, false);
    this.player.setLooping(kept.looping);
    this.player.setSpeed(kept.speed);
    this.player.move(kept.position === null ? this.steps : kept.position);
  }

  drawBars() {
    this.panels.panels.forEach((panel, d) =>
      panel.bars.forEach((bar, s) => {
        const tall = Math.max(2, (100 * this.speeds[s * this.width + d]) / this.fastest);
        bar.setAttribute("height", tall);
        bar.setAttribute("y", 100 - tall);
      }),
    );
  }

  setUnits(units, redraw = true) {
    kept.units = units;
    this.limits[units].forEach((range, d) => this.panels.range(d, range));
    this.panels.panels.forEach((panel, d) => {
      panel.unit.textContent = units === "model" ? "normalised" : unitOf(this.dims[d]);
      const end = this.steps * this.size + d;
      const path = trail(this.estimates[units], end, this.width, this.horizon, panel.range);
      panel.layers.final.setAttribute("d", path);
    });
    const entries = [["estimate", "estimate x_t − t·v_t"], ["final", "chunk at t = 0"]];
    if (units === "model") entries.unshift(["noise", "x_t"]);
    if (this.samples > 1) entries.push(["fan", `range over ${this.samples} seeds`]);
    entries.push(["bar", "|v_t| of each step"]);
    this.legend.replaceChildren(
      ...entries.map(([kind, text]) => make("li", {}, swatch(kind), text)),
    );
    if (redraw) this.frame(this.player.position, this.player.playing);
  }

  /** Step, t and tau at a position, which may lie between two stops. */
  moment(position) {
    const s = Math.min(Math.floor(position), this.steps - 1);
    const t = this.times[s] + (position - s) * (this.times[s + 1] - this.times[s]);
    const [step, time, tau] = [Math.floor(position), t.toFixed(2), (1 - t).toFixed(2)];
    return { step, time, tau, words: `step ${step} of ${this.steps}, t ${time}, tau ${tau}` };
  }

  frame(position, playing) {
    kept.position = position >= this.steps ? null : Math.floor(position);
    kept.looping = this.player.looping;
    kept.speed = this.player.speed;
    const stop = Math.floor(position);
    const { step, time, tau, words } = this.moment(position);
    const readouts = [["step", `${step} of ${this.steps}`], ["t", time], ["τ = 1 − t", tau]];
    this.clock.replaceChildren(
      ...readouts.map(([label, text]) => make("span", {}, make("small", {}, label), text)),
    );
    if (!playing) this.status.textContent = words;
    this.panels.panels.forEach((panel, d) => this.drawPanel(panel, d, stop, position - stop));
    this.readings(stop);
    if (this.camera) this.camera.draw(stop);
  }

  drawPanel(panel, d, stop, share) {
    const { samples, horizon, width, size } = this;
    const shown = this.estimates[kept.units];
    let [noise, estimate] = ["", ""];
    for (let n = 0; n < samples; n++) {
      const first = stop * size + n * horizon * width + d;
      estimate += trail(shown, first, width, horizon, panel.range);
      if (kept.units === "model") noise += trail(this.between(first, share), 0, 1, horizon, panel.range);
    }
    panel.layers.noise.setAttribute("d", noise);
    panel.layers.estimate.setAttribute("d", estimate);
    for (const name of ["noise", "estimate"]) panel.layers[name].classList.toggle("many", samples > 1);
    if (samples > 1) panel.layers.fan.setAttribute("d", this.fan(shown, stop, d, panel.range));
    panel.bars.forEach((bar, s) => bar.classList.toggle("now", s === stop));
  }

  /** x of one sample and dimension [horizon], a share of the way to the next stop. */
  between(first, share) {
    return Float32Array.from({ length: this.horizon }, (_, h) => {
      const i = first + h * this.width;
      return share ? this.x[i] + share * (this.x[i + this.size] - this.x[i]) : this.x[i];
    });
  }

  /** Values of dimension d at chunk step h, one a sample. */
  across(values, stop, d, h) {
    const start = stop * this.size + h * this.width + d;
    return Array.from({ length: this.samples }, (_, n) => values[start + n * this.horizon * this.width]);
  }

  fan(values, stop, d, range) {
    const [lower, upper] = [[], []];
    for (let h = 0; h < this.horizon; h++) {
      const at = this.across(values, stop, d, h);
      lower.push(Math.min(...at));
      upper.push(Math.max(...at));
    }
    return ribbon(lower, upper, range);
  }

  /** Numbers in the captions: the estimate at the cursor, its spread over seeds, and |v_t|. */
  readings(stop) {
    kept.cursor = this.panels.cursor;
    this.panels.panels.forEach((panel, d) => {
      const span = panel.range[1] - panel.range[0];
      const at = this.across(this.estimates[kept.units], stop, d, kept.cursor);
      const mean = at.reduce((a, b) => a + b) / at.length;
      const squares = at.reduce((sum, value) => sum + (value - mean) ** 2, 0);
      const spread = ` ± ${number(Math.sqrt(squares / (at.length - 1)), span / 10)}`;
      panel.value.textContent = number(mean, span) + (at.length > 1 ? spread : "");
      const speed = this.speeds[stop * this.width + d];
      panel.barValue.textContent = stop < this.steps ? `|v| ${number(speed, this.fastest)}` : "t = 0";
    });
  }
}

begin("Run a flow policy to watch its chunk come out of noise.", (value) => new Denoising(value));
