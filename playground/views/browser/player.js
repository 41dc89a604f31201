// A transport: play, scrub, loop and speed over the stops 0..last, all in the browser.

const PLAY = "M8 5v14l11-7z";
const PAUSE = "M7 5h4v14H7zM13 5h4v14h-4z";
const LOOP = "M7 7h9V4l5 4-5 4V9H9v4H7zM17 17H8v3l-5-4 5-4v3h7v-4h2z";
const SPEEDS = [0.25, 0.5, 1, 2, 4];
const REST = 0.9; // seconds at the end of a loop

class Player {
  /**
   * label: what is scrubbed; rate: stops a second at speed 1; smooth: whether positions between
   * stops are drawn while playing; words(position): the position for screen readers;
   * onmove(position, playing): draws.
   */
  constructor({ label, last, rate, smooth, words, onmove }) {
    Object.assign(this, { last, rate, words, onmove, position: last, playing: false });
    this.smooth = smooth && !matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.speed = 1;
    this.looping = false;
    this.toggle = iconButton("Play", PLAY, () => (this.playing ? this.pause() : this.play()));
    this.toggle.classList.add("play");
    this.slider = make("input", { type: "range", min: 0, max: last, step: 1, "aria-label": label });
    this.slider.addEventListener("input", () => {
      this.pause();
      this.move(Number(this.slider.value));
    });
    this.loop = iconButton("Loop", LOOP, () => this.setLooping(!this.looping));
    this.loop.setAttribute("aria-pressed", "false");
    this.rates = make(
      "select",
      { "aria-label": "Speed" },
      ...SPEEDS.map((s) => make("option", { value: s, selected: s === 1 }, `${s}×`)),
    );
    this.rates.addEventListener("change", () => (this.speed = Number(this.rates.value)));
    this.node = make(
      "div",
      { class: "transport", role: "group", "aria-label": "Player" },
      this.toggle,
      this.slider,
      this.loop,
      this.rates,
    );
  }

  move(position) {
    this.position = Math.min(this.last, Math.max(0, position));
    this.slider.value = Math.floor(this.position);
    this.slider.setAttribute("aria-valuetext", this.words(this.position));
    this.onmove(this.position, this.playing);
  }

  setLooping(on) {
    this.looping = on;
    this.loop.setAttribute("aria-pressed", String(on));
  }

  setSpeed(speed) {
    this.speed = speed;
    this.rates.value = String(speed);
  }

  play() {
    if (this.last === 0) return;
    this.face(true);
    if (this.position >= this.last) this.move(0);
    let exact = this.position;
    let before = null;
    let resting = 0;
    const frame = (now) => {
      if (!this.playing) return;
      if (!this.node.isConnected || this.node.offsetParent === null) return this.pause();
      const passed = before === null ? 0 : Math.min(0.1, (now - before) / 1000);
      before = now;
      exact += passed * this.rate * this.speed;
      if (exact < this.last) this.move(this.smooth ? exact : Math.floor(exact));
      else if (!this.looping) return this.finish();
      else {
        if (resting === 0) this.move(this.last);
        resting += passed;
        if (resting > REST) [exact, resting] = [0, 0];
      }
      requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  }

  finish() {
    this.face(false);
    this.move(this.last);
  }

  pause() {
    if (!this.playing) return;
    this.face(false);
    this.move(Math.floor(this.position));
  }

  face(playing) {
    this.playing = playing;
    const label = playing ? "Pause" : "Play";
    this.toggle.querySelector("path").setAttribute("d", playing ? PAUSE : PLAY);
    this.toggle.setAttribute("aria-label", label);
    this.toggle.title = label;
  }
}
