// A camera picture with the grippers' paths over it: start as a ring, end as a dot, a small dot
// every ten steps. What moves is bold; the other arm is thin and dashed.

const TICKS = 10; // steps of the chunk between dots
// Of the picture's width, on its left and right: arms at rest are folded back out of sight.
const MARGIN = 0.15;

class Camera {
  /** {image, grippers} as playground/views/paths.py has them; label: what the picture is. */
  constructor({ image, grippers }, label = "Camera picture with the grippers' paths") {
    this.picture = make("img", { src: image.url, alt: label });
    const aside = MARGIN * image.width;
    const box = `${-aside} 0 ${image.width + 2 * aside} ${image.height}`;
    this.svg = shape("svg", { viewBox: box, "aria-hidden": "true" });
    this.caption = make("figcaption");
    this.node = make("figure", { class: "camera" }, make("div", { class: "photo wide" }, this.picture, this.svg), this.caption);
    this.set(grippers);
  }

  /** Other paths on the same picture. */
  set(grippers) {
    // The moving arm last, on top.
    this.grippers = [...grippers]
      .sort((a, b) => a.moves - b.moves)
      .map(({ name, moves, points, noise }) => {
        const curve = unpack(points);
        const samples = curve.shape[1];
        const layer = (kind, count) =>
          Array.from({ length: count }, () => shape("path", { class: `${kind}${samples > 1 && count > 1 ? " many" : ""}` }));
        const parts = {
          noise: layer("scatter", noise ? samples : 0),
          casing: layer("casing", samples),
          path: layer("path", samples),
          halo: layer("halo", 1),
          ticks: layer("ticks", 1),
          start: layer("start", 1),
          hole: layer("hole", 1),
          end: layer("end", 1),
          mark: layer("mark", 1),
        };
        const group = shape("g", { class: moves ? "gripper moves" : "gripper" }, ...Object.values(parts).flat());
        return { name, curve, cloud: noise ? unpack(noise) : null, parts, group };
      });
    this.svg.replaceChildren(...this.grippers.map(({ group }) => group));
  }

  /** Frame of the paths; null for none. from: the step of the chunk that the path begins at. */
  draw(frame, from = 0) {
    for (const { curve, cloud, parts } of this.grippers) {
      const there = frame !== null && frame < curve.shape[0];
      const samples = curve.shape[1];
      for (let n = 0; n < samples; n++) {
        const points = there ? Camera.points(curve, frame, n).slice(from) : [];
        for (const kind of ["casing", "path"]) parts[kind][n].setAttribute("d", Camera.line(points));
        if (cloud) parts.noise[n].setAttribute("d", there ? Camera.line(Camera.points(cloud, frame, n)) : "");
        if (n === 0) Camera.marks(parts, points, from);
      }
    }
  }

  /** A dot where a step of the chunk leads; null for none. */
  mark(frame, step) {
    for (const { curve, parts } of this.grippers) {
      const known = step !== null && frame !== null && frame < curve.shape[0];
      const point = known ? Camera.points(curve, frame, 0)[step + 1] : null;
      parts.mark[0].setAttribute("d", point ? `M${point} h0` : "");
    }
  }

  /** Moves the first sample's path of the last frame there from where it was on another camera. */
  comeFrom(other, ms = 260) {
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
    const pairs = this.grippers.flatMap(({ name, curve, parts }) => {
      const before = other.grippers.find((gripper) => gripper.name === name);
      if (!before || before.curve.shape[2] !== curve.shape[2]) return [];
      const [from, to] = [before.curve, curve].map((found) => Camera.numbers(found));
      return from.concat(to).some(Number.isNaN) ? [] : [{ parts, from, to }];
    });
    let began = null;
    const frame = (now) => {
      began ??= now;
      const share = Math.min(1, (now - began) / ms);
      const eased = share * (2 - share);
      for (const { parts, from, to } of pairs) {
        const at = to.map((value, i) => from[i] + eased * (value - from[i]));
        const points = Array.from({ length: at.length / 2 }, (_, i) => `${at[2 * i].toFixed(1)} ${at[2 * i + 1].toFixed(1)}`);
        for (const kind of ["casing", "path"]) parts[kind][0].setAttribute("d", Camera.line(points));
        Camera.marks(parts, points, 0);
      }
      if (share < 1 && this.node.isConnected) requestAnimationFrame(frame);
    };
    if (pairs.length) requestAnimationFrame(frame);
  }

  /** x, y, x, y, ... of the first sample in the last frame. */
  static numbers({ shape: [frames, samples, count], values }) {
    const first = (frames - 1) * samples * count * 2;
    return Array.from(values.subarray(first, first + 2 * count));
  }

  static marks(parts, points, from) {
    const known = points.filter(Boolean);
    const dot = (point) => (point ? `M${point} h0` : "");
    const ends = [dot(known[0]), dot(known.at(-1))];
    // The path's first point is the state, so point k is where step k leads.
    const ticks = points.slice(0, -1).filter((point, k) => point && k && (k + from) % TICKS === 0);
    parts.ticks[0].setAttribute("d", ticks.map(dot).join(""));
    parts.halo[0].setAttribute("d", ends.join(""));
    parts.start[0].setAttribute("d", ends[0]);
    parts.hole[0].setAttribute("d", ends[0]);
    parts.end[0].setAttribute("d", ends[1]);
  }

  /** The points of one sample in one frame, null where one is missing. */
  static points({ shape: [, samples, count], values }, frame, n) {
    const first = (frame * samples + n) * count * 2;
    return Array.from({ length: count }, (_, i) => {
      const [x, y] = values.subarray(first + 2 * i, first + 2 * i + 2);
      return Number.isNaN(x) ? null : `${x.toFixed(1)} ${y.toFixed(1)}`;
    });
  }

  static line(points) {
    let pen = "M";
    let path = "";
    for (const point of points) {
      if (point) path += `${pen}${point}`;
      pen = point ? "L" : "M";
    }
    return path;
  }

  /** Legend entries: [kind of line, text]. */
  static key(kind) {
    const faces = {
      moves: [["casing", "M3 6H21"], ["path", "M3 6H21"], ["end", "M20 6h0"]],
      idle: [["path", "M1 6H23"]],
      start: [["halo", "M12 6h0"], ["start", "M12 6h0"], ["hole", "M12 6h0"]],
      scatter: [["scatter", "M1 9L6 2L10 10L15 3L19 9L23 4"]],
    }[kind];
    const group = shape("g", { class: kind === "idle" ? "gripper" : "gripper moves" }, ...faces.map(([name, d]) => shape("path", { class: name, d })));
    return shape("svg", { class: "swatch", viewBox: "0 0 24 12", "aria-hidden": "true" }, group);
  }

  /** What the lines mean, for a legend. */
  legend() {
    const named = (moves) => this.grippers.filter(({ group }) => group.classList.contains("moves") === moves).map(({ name }) => name).join(", ");
    const entry = (kind, ...text) => make("li", {}, Camera.key(kind), make("span", {}, ...text));
    const entries = [entry("moves", make("bdi", {}, named(true)), ", to the end of the chunk"), entry("start", "start")];
    if (named(false)) entries.push(entry("idle", make("bdi", {}, named(false))));
    if (this.grippers.some(({ cloud }) => cloud)) entries.push(entry("scatter", "the path x_t would be"));
    return make("ul", { class: "legend" }, ...entries);
  }
}
