// Robots that are connected: who, how fast, what one of them sees, its chunk after those that it has
// executed, and in shadow mode how far our answers lie from its server's. Asks for news while it is
// in sight.

const NEWS = 700; // ms between an answer and the next question
const LOST = 5000; // ms after which an unanswered question is asked again

let inSight = false;
let timer = 0;
let watching = null; // connection
let number_ = null; // of a request; null: the newest
let drawn = ""; // what the lower part shows
const wide = new Set();

const list = make("div", { class: "robots" });
const body = make("div", { class: "robot-shown" });
const slider = make("input", { type: "range", min: 0, max: 0, "aria-label": "Request of the robot" });
const place = make("output", { class: "number" });
const live = make("input", { type: "checkbox", checked: true });
const freeze = make("button", { type: "button", class: "plain" }, "Freeze into the page");
const save = make("a", { class: "plain", download: true }, "Save the episode");
const controls = make(
  "div",
  { class: "controls" },
  make("label", { class: "check" }, live, "Live"),
  make("label", { class: "reader" }, make("span", {}, "request"), slider, place),
  make("span", { class: "actions" }, freeze, save),
);
let numbers = [];

slider.addEventListener("input", () => follow(numbers[Number(slider.value)]));
live.addEventListener("change", () => follow(live.checked ? null : (numbers.at(-1) ?? null)));
freeze.addEventListener("click", () => trigger("select", { connection: watching, number: numbers[Number(slider.value)] }));

/** Shows a request from now on; null: always the newest. */
function follow(which) {
  number_ = which;
  live.checked = which === null;
  ask();
}

function watchRobot(connection) {
  watching = connection;
  follow(null);
}

function ask() {
  clearTimeout(timer);
  if (!inSight || !view.isConnected) return;
  timer = setTimeout(ask, LOST);
  if (document.hidden) return;
  props.value = { watching, number: number_ };
  trigger("input");
}

function milliseconds(value) {
  return value === null ? "–" : `${value.toFixed(value < 10 ? 1 : 0)} ms`;
}

/** A table of the robots; a click shows one. */
function table(value) {
  const head = ["robot", "answered by", "requests", "a second", "latency, median", "95 %", "a control step lasts"];
  const rows = value.robots.map((robot) => {
    const pick = make("input", { type: "radio", name: "robot-watched", checked: robot.connection === value.watching, "aria-label": `Show ${robot.robot} ${robot.connection}` });
    pick.addEventListener("change", () => watchRobot(robot.connection));
    const cells = [robot.robot, robot.policy, String(robot.requests), robot.per_s.toFixed(1), milliseconds(robot.p50), milliseconds(robot.p95), milliseconds(robot.period_ms)];
    const row = make("tr", {}, make("td", {}, pick), ...cells.map((cell) => make("td", { class: "number" }, make("bdi", {}, cell))));
    const problem = robot.problem ? make("tr", {}, make("td"), make("td", { colspan: 7, class: "problem" }, robot.problem)) : null;
    return [row, problem];
  });
  return make(
    "table",
    {},
    make("caption", { class: "hidden" }, "Robots that are connected"),
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, make("span", { class: "hidden" }, "shown")), ...head.map((text) => make("th", { scope: "col" }, text)))),
    make("tbody", {}, ...rows.flat().filter(Boolean)),
  );
}

/** One panel a dimension. lines: {kind, family, start, values}; from, to: steps; lowest: where every
 * axis begins, null for a little below its values; notes: a text beside each name. */
function multiples(dims, lines, from, to, lowest = null, notes = []) {
  const fields = lines.map((line) => ({ ...line, ...unpack(line.values) }));
  const around = ranges(fields.map((field) => field.values), dims.length).map(([low, high]) => [lowest ?? low, high]);
  return make("div", { class: "panels" }, ...dims.map((dim, d) => {
    const range = around[d];
    const svg = shape("svg", { viewBox: `${from} 0 ${Math.max(1, to - from)} 100`, preserveAspectRatio: "none", "aria-hidden": "true" });
    svg.append(shape("line", { class: "cursor", x1: 0, x2: 0, y1: 0, y2: 100 }));
    for (const { kind, family, start, values, shape: [steps, width] } of fields) {
      const group = shape("g", { transform: `translate(${start} 0)`, "data-family": family || null });
      group.append(shape("path", { class: kind, d: trail(values, d, width, steps, range) }));
      svg.append(group);
    }
    const span = range[1] - range[0];
    const tick = (kind, text) => make("span", { class: `tick ${kind}` }, text);
    const plot = make("div", { class: "plot" }, svg, tick("high", number(range[1], span)), tick("low", range[0] === 0 ? "0" : number(range[0], span)), tick("unit", unitOf(dim)));
    const name = make("button", { type: "button", class: "name", title: `${dim.name}: enlarge or shrink`, "aria-pressed": String(wide.has(dim.name)) }, make("bdi", {}, dim.name));
    const panel = make("figure", { class: wide.has(dim.name) ? "panel wide" : "panel" }, make("figcaption", {}, name, ...notes.slice(d, d + 1).map((note) => make("span", { class: "notice number" }, note))), plot);
    name.addEventListener("click", () => {
      if (!wide.delete(dim.name)) wide.add(dim.name);
      panel.classList.toggle("wide", wide.has(dim.name));
      name.setAttribute("aria-pressed", String(wide.has(dim.name)));
    });
    return panel;
  }));
}

function legend(lines) {
  const words = { past: "chunks before, as far as they were executed by the clock", now: "this chunk" };
  const entries = new Map(lines.map((line) => [line.kind === "beside" ? `beside, ${line.title}` : words[line.kind], line]));
  return make("ul", { class: "legend" }, ...[...entries].map(([text, { kind, family }]) => make("li", { "data-family": family || null }, swatch(kind), text)));
}

function shownRequest(shown) {
  const { lines } = shown;
  const lengths = lines.map((line) => line.start + line.values.shape[0]);
  const seed = shown.seed === null ? "" : `, noise of seed ${shown.seed}`;
  const title = shown.policy ? heading(shown.policy) : make("header", { class: "policy" }, make("strong", {}, "Answered by ", make("bdi", {}, shown.who)));
  if (!shown.policy) delete view.dataset.family;
  return [
    title,
    make("p", { class: "words" }, "“", make("bdi", {}, shown.prompt), "”"),
    make("p", { class: "notice number" }, `Request ${shown.number}, ${shown.time_s.toFixed(1)} s after the start, answered in ${milliseconds(shown.latency_ms)}${seed}.`),
    shown.warnings.length ? make("ul", { class: "warnings", "aria-label": "Warnings" }, ...shown.warnings.map((text) => make("li", {}, text))) : null,
    camerasSeen(shown.cameras, "of the robot"),
    legend(lines),
    multiples(shown.dims, lines, Math.min(...lines.map((line) => line.start)), Math.max(...lengths) - 1),
  ];
}

/** How far a policy's answers lie from the robot's own server's, over the requests kept. */
function distance({ policy, dims, numbers: at, values, mean }) {
  const requests = `request ${at[0]} to ${at.at(-1)}`;
  const same = mean.every((value) => value === 0);
  const means = mean.map((value) => `mean ${number(value, value)}`);
  return make(
    "section",
    { "data-family": policy.family },
    make("h3", {}, `Beside it, ${policy.title}: ${same ? "the same actions" : "mean distance over the steps of a chunk"}, ${requests}`),
    ...(same ? [] : [multiples(dims, [{ kind: "now", family: policy.family, start: 0, values }], 0, at.length - 1, 0, means)]),
  );
}

function show(value) {
  watching = value.watching;
  numbers = value.numbers;
  list.replaceChildren(
    value.robots.length
      ? table(value)
      : make("p", { class: "waiting" }, value.shown ? "No robot is connected; below is what is kept of one." : "No robot is connected.", " To try one without hardware: ", make("code", {}, `python -m playground.tabletop.robot --connect ws://127.0.0.1:${value.port}`)),
  );
  controls.hidden = !value.shown;
  if (!value.shown) {
    drawn = "";
    return body.replaceChildren();
  }
  slider.max = numbers.length - 1;
  slider.value = numbers.indexOf(value.shown.number);
  place.textContent = `${value.shown.number} of ${numbers.at(-1)}`;
  save.href = value.link;
  const now = JSON.stringify([value.watching, value.shown.number, value.shown.lines.length, (value.apart || []).map((one) => one.numbers.length)]);
  if (now === drawn) return;
  drawn = now;
  body.replaceChildren(...shownRequest(value.shown).filter(Boolean), ...(value.apart || []).map(distance));
}

watch("value", () => {
  if (!props.value || !props.value.robots) return; // a question of our own
  show(props.value);
  clearTimeout(timer);
  timer = setTimeout(ask, NEWS);
});
controls.hidden = true;
view.replaceChildren(list, controls, body);
new IntersectionObserver((entries) => {
  inSight = entries.at(-1).isIntersecting;
  ask();
}).observe(view);
