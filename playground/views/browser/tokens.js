// The token rail: FAST's tokens as they came, with probability and runners-up, and the chunk that
// the tokens so far decode to.

const kept = { position: null, cursor: 0, wide: new Set(), looping: false, speed: 1 };

class Tokens {
  constructor(value) {
    this.tokens = value.tokens;
    this.partial = value.partial ? unpack(value.partial).values : null;
    this.failure = value.failure;
    const [, horizon, width] = value.partial ? value.partial.shape : [0, value.horizon, value.dims.length];
    Object.assign(this, { horizon, width, focus: null });
    this.anything = value.actions || (this.partial && this.partial.some((v) => !Number.isNaN(v)));
    this.final = value.actions ? unpack(value.actions).values : null;
    const drawn = [this.partial, this.final].filter(Boolean);
    this.limits = ranges(drawn, width);
    this.camera = value.camera ? new Camera(value.camera) : null;
    this.build(value);
  }

  build(value) {
    this.panels = new Panels({
      dims: value.dims,
      horizon: this.horizon,
      hz: value.hz,
      layers: ["final", "estimate"],
      wide: kept.wide,
      cursor: kept.cursor,
      oncursor: () => this.readings(),
    });
    this.limits.forEach((range, d) => this.panels.range(d, range));
    if (this.final)
      this.panels.panels.forEach((panel, d) => {
        const path = trail(this.final, d, this.width, this.horizon, panel.range);
        panel.layers.final.setAttribute("d", path);
      });
    this.player = new Player({
      label: "Token",
      last: this.tokens.length,
      rate: 8,
      smooth: false,
      words: (position) => this.words(position),
      onmove: (position, playing) => this.frame(position, playing),
    });
    this.chips = this.tokens.map((token, i) => this.chip(token, i));
    this.rail = make(
      "ol",
      { class: "rail", "aria-label": "Tokens in the order they came; arrow keys move" },
      ...this.chips.map((chip) => make("li", {}, chip)),
    );
    this.rail.addEventListener("keydown", (event) => this.key(event));
    this.rail.addEventListener("pointerleave", () => this.show(null));
    this.clock = make("p", { class: "clock number" });
    this.status = make("p", { class: "hidden", role: "status" });
    this.detail = make("div", { class: "detail" });
    this.state = make("p", { class: "notice" });
    view.replaceChildren(
      heading(value.policy),
      make("p", { class: "hidden" }, value.summary),
      this.failure
        ? make("p", { class: "failure", role: "note" }, make("strong", {}, "Decoding failed. "), this.failure)
        : "",
      make("div", { class: "controls" }, this.player.node, this.clock),
      this.status,
      this.rail,
      this.detail,
      this.camera && this.anything ? this.camera.node : "",
      this.camera && this.anything ? this.camera.legend() : "",
      this.legend(),
      this.state,
      this.anything ? this.panels.grid : "",
      this.anything ? this.panels.reader : "",
      make("p", { class: "notice" }, value.policy.notice),
    );
    this.player.setLooping(kept.looping);
    this.player.setSpeed(kept.speed);
    this.player.move(kept.position === null ? this.tokens.length : kept.position);
  }

  legend() {
    const scale = make("span", { class: "scale", "aria-hidden": "true" });
    const entries = [
      make("li", {}, "probability 0", scale, "1"),
    ];
    if (this.tokens.some((token) => !token.likeliest)) {
      entries.push(make("li", {}, make("span", { class: "passed" }), "a likelier token was passed over"));
    }
    if (this.anything) entries.push(make("li", {}, swatch("estimate"), "decoded from the tokens so far"));
    if (this.final) entries.push(make("li", {}, swatch("final"), "whole chunk"));
    return make("ul", { class: "legend" }, ...entries);
  }

  chip(token, i) {
    const label = `token ${i + 1}: ${visible(token.text)}, id ${token.id}, probability ${percent(token.p)}`;
    const chip = make(
      "button",
      { type: "button", class: token.likeliest ? "token" : "token passed", style: `--p:${token.p}`, "aria-label": label, tabindex: -1 },
      make("bdi", {}, visible(token.text)),
    );
    chip.addEventListener("pointerenter", () => this.show(i));
    chip.addEventListener("focus", () => this.show(i));
    chip.addEventListener("click", () => {
      this.player.pause();
      this.player.move(i + 1);
    });
    return chip;
  }

  /** Arrow keys walk the rail, Home and End go to its ends. */
  key(event) {
    const here = this.chips.indexOf(event.target);
    const last = this.chips.length - 1;
    const there = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: last }[event.key];
    if (here < 0 || there === undefined || there < 0 || there > last) return;
    event.preventDefault();
    this.player.pause();
    this.player.move(there + 1);
    this.chips[there].focus();
  }

  words(position) {
    if (position < 1) return "before the first token";
    const token = this.tokens[position - 1];
    return `token ${position} of ${this.tokens.length}, ${visible(token.text)}, ${percent(token.p)}`;
  }

  frame(position, playing) {
    const last = this.tokens.length;
    kept.position = position >= last ? null : position;
    kept.looping = this.player.looping;
    kept.speed = this.player.speed;
    this.position = position;
    this.chips.forEach((chip, i) => {
      chip.classList.toggle("later", i >= position);
      chip.classList.toggle("now", i === position - 1);
      chip.tabIndex = i === Math.max(0, position - 1) ? 0 : -1;
    });
    this.follow(position);
    this.clock.replaceChildren(
      make("span", {}, make("small", {}, "tokens"), `${position} of ${last}`),
    );
    if (!playing) this.status.textContent = this.words(position);
    this.show(null);
    const there = this.drawn();
    this.panels.panels.forEach((panel, d) => {
      const start = (position - 1) * this.horizon * this.width + d;
      const path = there ? trail(this.partial, start, this.width, this.horizon, panel.range) : "";
      panel.layers.estimate.setAttribute("d", path);
    });
    if (this.camera) this.camera.draw(there ? position - 1 : null);
    this.state.textContent = there ? "" : this.nothing();
    this.readings();
  }

  /** Keeps the current token in sight without moving the page. With the next frame, which lays the
   * page out anyway. */
  follow(position) {
    cancelAnimationFrame(this.following);
    this.following = requestAnimationFrame(() => {
      const chip = this.chips[Math.max(0, position - 1)];
      if (!chip || this.rail.scrollHeight <= this.rail.clientHeight) return;
      this.rail.scrollTop = chip.offsetTop - this.rail.offsetTop - this.rail.clientHeight / 2;
    });
  }

  /** Whether the tokens up to the position decode to a chunk. */
  drawn() {
    if (this.position < 1 || !this.partial) return false;
    return !Number.isNaN(this.partial[(this.position - 1) * this.horizon * this.width]);
  }

  nothing() {
    if (this.position === 0) return "No token yet, so no chunk.";
    const complete = this.position === this.tokens.length && this.failure;
    return complete ? "The tokens did not decode: there is no chunk." : "These tokens decode to nothing yet.";
  }

  readings() {
    kept.cursor = this.panels.cursor;
    const there = this.position !== undefined && this.drawn();
    this.panels.panels.forEach((panel, d) => {
      const i = ((this.position - 1) * this.horizon + kept.cursor) * this.width + d;
      panel.value.textContent = there ? number(this.partial[i], panel.range[1] - panel.range[0]) : "–";
    });
  }

  /** Runners-up of a token, or of the current one. */
  show(i) {
    const place = i === null ? this.position - 1 : i;
    if (place < 0 || place >= this.tokens.length) {
      this.detail.replaceChildren(make("p", {}, "Before the first token."));
      return;
    }
    const token = this.tokens[place];
    const row = ([id, text, p], chosen) => [
      make("span", { class: "text" }, make("bdi", {}, visible(text))),
      make("span", { class: "meter" }, make("i", { style: `width:${100 * p}%`, class: chosen ? "chosen" : "" })),
      make("span", { class: "number" }, `${percent(p)} · id ${id}`),
    ];
    this.detail.replaceChildren(
      make(
        "div",
        {},
        make("h3", {}, make("bdi", {}, visible(token.text))),
        make("p", {}, `token ${place + 1} of ${this.tokens.length}, id ${token.id}`),
      ),
      make(
        "div",
        { class: "rivals" },
        ...row([token.id, token.text, token.p], true),
        ...token.others.flatMap((other) => row(other, false)),
      ),
    );
  }
}

begin("Run pi0-FAST to see its tokens.", (value) => new Tokens(value));
