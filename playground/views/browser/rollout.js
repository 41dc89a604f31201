// A rollout: frames as they stream in, then a film to scrub. The path is what is left of the chunk.

let film = null; // {id, camera, look, ...} of the value on show

class Film {
  constructor(value) {
    this.id = value.id;
    this.look = 0;
    this.camera = new Camera({ image: { url: value.frames[0].url, width: 224, height: 224 }, grippers: [] }, "Camera picture of the simulated table");
    this.player = new Player({
      label: "Frame",
      last: 0,
      rate: 10,
      smooth: false,
      words: (position) => this.words(position),
      onmove: (position) => this.draw(position),
    });
    this.clock = make("p", { class: "clock number" });
    this.seen = make("div");
    this.note = make("p", { class: "failure", role: "note" });
    this.verdict = make("p", { class: "verdict", role: "status" });
    this.what = make("p", { class: "notice" }, "Simulation of the table, scene ", make("span", { class: "number" }, String(value.scene)), ": “", make("bdi", {}, value.prompt), "”");
    view.replaceChildren(
      heading(value.policy),
      this.what,
      make("div", { class: "controls" }, this.player.node, this.clock),
      this.verdict,
      make("div", { class: "film" }, this.camera.node, this.seen),
      this.note,
      make("p", { class: "notice" }, value.policy.notice),
    );
  }

  /** More frames of the same rollout; whoever watches the newest one goes on watching it. */
  update(value) {
    const following = !this.value || this.player.position >= this.player.last;
    this.value = value;
    this.player.last = value.frames.length - 1;
    this.player.slider.max = this.player.last;
    this.verdict.replaceChildren(value.say, ...(value.measured ? [make("small", {}, ` ${value.measured}`)] : []));
    this.verdict.hidden = !value.say;
    this.verdict.dataset.verdict = value.verdict;
    if (following && !this.player.playing) this.player.move(this.player.last);
  }

  words(position) {
    const { time, look } = this.value.frames[Math.floor(position)];
    return `${time.toFixed(1)} s, chunk ${look}`;
  }

  draw(position) {
    const frame = this.value.frames[Math.floor(position)];
    const { grippers, failure, seen } = this.value.looks[frame.look - 1];
    this.camera.picture.src = frame.url;
    if (frame.look !== this.look) {
      this.look = frame.look;
      this.camera.set(grippers);
      const which = make("span", { class: "number" }, String(frame.look));
      this.seen.replaceChildren(make("p", { class: "notice" }, "What the policy saw for chunk ", which), camerasSeen(seen, `for chunk ${frame.look}`));
    }
    this.camera.draw(0, frame.executed);
    this.note.textContent = failure ? `Chunk ${frame.look} did not decode, the arms hold still: ${failure}` : "";
    this.note.hidden = !failure;
    const readouts = [["time", `${frame.time.toFixed(1)} s`], ["chunk", String(frame.look)], ["step of it", String(frame.executed)]];
    this.clock.replaceChildren(...readouts.map(([label, text]) => make("span", {}, make("small", {}, label), text)));
  }
}

begin("A rollout shows here: the policy acts on the simulated table until it is done.", (value) => {
  if (!value.frames.length) {
    film = null;
    delete view.dataset.family;
    const say = value.say || "Setting the table.";
    return view.replaceChildren(make("p", { class: "waiting", role: "status" }, say));
  }
  if (!film || film.id !== value.id) film = new Film(value);
  film.update(value);
});
