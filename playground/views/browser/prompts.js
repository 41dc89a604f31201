// Prompts side by side: a card each with the paths, and for each policy who is how far from whom.

const board = make("div", { class: "board" });
const heads = make("div", { class: "headlines" });
const matrices = make("div", { class: "matrices" });
let chosen = null;

function lineOf(policy, place) {
  if (!policy.line) return "";
  const { shape: [, count], values } = policy.lines;
  let path = "";
  for (let i = 0; i < count; i++) {
    const [x, y] = values.subarray((place * count + i) * 2, (place * count + i) * 2 + 2);
    if (!Number.isNaN(x)) path += `${path ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
  }
  return path;
}

function photo(value, place) {
  const { picture, policies } = value;
  if (!picture) return "";
  const aside = 0.15 * picture.width;
  const lines = policies.flatMap((policy) => [
    place ? shape("path", { class: "ghost", "data-family": policy.policy.family, d: lineOf(policy, 0) }) : null,
    shape("path", { class: "under", d: lineOf(policy, place) }),
    shape("path", { class: "over", "data-family": policy.policy.family, d: lineOf(policy, place) }),
  ]);
  const box = `${-aside} 0 ${picture.width + 2 * aside} ${picture.height}`;
  return make("div", { class: "photo wide" }, make("img", { src: picture.url, alt: "" }), shape("svg", { viewBox: box, "aria-hidden": "true" }, ...lines.filter(Boolean)));
}

/** "12 % · 3.1 × seeds" of one policy and prompt. */
function amount(policy, place) {
  const percent = policy.change[place];
  if (policy.failures[place]) return make("span", { title: policy.failures[place] }, "no chunk");
  if (percent === null || percent === undefined) return "…";
  const times = policy.spread ? ` · ${(percent / policy.spread).toFixed(1)} × seeds` : "";
  return `${percent.toFixed(percent < 10 ? 1 : 0)} %${times}`;
}

function card(value, { text, label }, place) {
  const numbers = value.policies.map((policy) =>
    make("span", { class: "amount number", "data-family": policy.policy.family }, make("i", { class: "dot" }), amount(policy, place)),
  );
  const button = make(
    "button",
    { type: "button", class: place ? "card-of-prompt" : "card-of-prompt first", title: `Run “${text}”` },
    photo(value, place),
    make("span", { class: "text-of-prompt" }, text || "∅ no words"),
    label ? make("small", {}, label) : null,
    ...(place ? numbers : [make("span", { class: "amount" }, "the others are compared with it")]),
  );
  button.addEventListener("click", () => {
    chosen = text;
    props.value = { ...props.value, chosen: text };
    trigger("select");
  });
  return button;
}

function matrix(policy) {
  const { prompts, values } = policy.matrix;
  const most = Math.max(...values.flat(), 1e-6);
  const cells = values.flatMap((row, i) =>
    row.map((v, j) =>
      make("i", {
        style: `--share:${v / most}`,
        title: `“${prompts[i]}” against “${prompts[j]}”: ${v.toFixed(1)} % of range`,
      }),
    ),
  );
  const rows = prompts.map((text) => make("span", { title: text }, make("bdi", {}, text || "∅")));
  const label = `How much each of ${prompts.length} prompts changes the chunk against each other; arrow keys read a cell`;
  const grid = make("div", { class: "cells", tabindex: 0, role: "application", "aria-label": label }, ...cells);
  const reading = make("p", { class: "reading", role: "status" }, "Point at a cell, or use the arrow keys, to read it.");
  readable(grid, cells, prompts.length, reading);
  return make(
    "figure",
    { class: "matrix", "data-family": policy.policy.family },
    make("figcaption", {}, make("i", { class: "dot" }), make("strong", {}, policy.policy.title), ` every prompt against every prompt; darkest: ${most.toFixed(1)} % of range`),
    make("div", { class: "grid-of-prompts", style: `--count:${prompts.length}` }, make("div", { class: "names-of-prompts" }, ...rows), grid),
    reading,
  );
}

/** A square of cells that pointer and arrow keys read out, one at a time. */
function readable(grid, cells, side, reading) {
  let at = 0;
  const read = (place) => {
    cells[at].classList.remove("now");
    at = place;
    cells[at].classList.add("now");
    reading.textContent = cells[at].title;
  };
  const within = (place) => Math.min(side - 1, Math.max(0, place));
  grid.addEventListener("focus", () => read(at));
  grid.addEventListener("pointerover", (event) => cells.includes(event.target) && read(cells.indexOf(event.target)));
  grid.addEventListener("keydown", (event) => {
    const move = arrow(event);
    if (!move) return;
    event.preventDefault();
    read(within(Math.floor(at / side) + move[0]) * side + within((at % side) + move[1]));
  });
}

/** The table as CSV: a row a prompt and policy. */
function csv(value) {
  const quote = (text) => `"${String(text).replace(/"/g, '""')}"`;
  const rows = value.policies.flatMap((policy) =>
    value.prompts.map(({ text, label }, place) =>
      [policy.name, policy.policy.badge, text, label, policy.change[place] ?? "", policy.spread ?? ""].map(quote).join(","),
    ),
  );
  return ["policy,badge,prompt,label,percent_of_range,seed_spread", ...rows].join("\r\n");
}

function save(blob, name) {
  const url = URL.createObjectURL(blob);
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** The first prompt's words, each as dark as leaving it out changes the chunk. */
function byEffect({ words }, { policy, change }) {
  const amounts = words.map(([, place]) => (place === null ? null : change[place] ?? null));
  const most = Math.max(...amounts.filter((amount) => amount !== null), 1e-6);
  if (amounts.every((amount) => amount === null)) return "";
  const parts = words.map(([text], i) => {
    const amount = amounts[i];
    const said = amount === null ? "" : `without “${text}”: ${amount.toFixed(1)} % of range`;
    return make("span", { style: `--share:${amount === null ? 0 : amount / most}`, title: said }, text, make("small", { class: "number" }, amount === null ? "" : ` ${amount.toFixed(1)} %`));
  });
  return make("p", { class: "by-effect", "data-family": policy.family }, ...parts);
}

/** The text, cut off where it would be wider. */
function clipped(context, text, width) {
  let shown = text;
  while (shown && context.measureText(shown).width > width) shown = shown.slice(0, -2).trimEnd();
  return shown === text ? text : `${shown}…`;
}

/** The headlines and the cards as a picture on white paper. */
async function draw(value) {
  const [wide, gap, columns] = [230, 14, Math.min(5, value.prompts.length)];
  const high = value.picture ? Math.round(wide / 1.3) : 0;
  const tall = high + 26 + 18 * (value.policies.length + 1);
  const top = 16 + 24 * value.policies.length;
  const canvas = make("canvas", { width: 2 * (columns * (wide + gap) + gap), height: 2 * (top + Math.ceil(value.prompts.length / columns) * (tall + gap) + 24) });
  const context = canvas.getContext("2d");
  const ink = "#1B2027";
  const hue = Object.fromEntries(value.policies.map(({ policy }) => [policy.family, getComputedStyle(heads.querySelector(`[data-family="${policy.family}"] .dot`)).backgroundColor]));
  const write = (text, x, y, width, size, colour) => {
    context.fillStyle = colour;
    context.font = `${size}px sans-serif`;
    context.fillText(clipped(context, text, width), x, y);
  };
  context.scale(2, 2);
  context.lineJoin = context.lineCap = "round";
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  value.policies.forEach(({ policy, headline }, i) => write(`${headline} (${policy.badge})`, gap, 26 + 24 * i, canvas.width / 2 - 2 * gap, 15, hue[policy.family]));
  const photo = value.picture && make("img", { src: value.picture.url });
  if (photo) await photo.decode();
  value.prompts.forEach(({ text, label }, place) => {
    const [x, y] = [gap + (place % columns) * (wide + gap), top + Math.floor(place / columns) * (tall + gap)];
    if (photo) {
      context.save();
      context.beginPath();
      context.rect(x, y, wide, high);
      context.clip();
      const scale = high / value.picture.height;
      context.translate(x + (wide - scale * value.picture.width) / 2, y);
      context.scale(scale, scale);
      context.drawImage(photo, 0, 0);
      for (const policy of value.policies)
        for (const [width, colour, of] of [[1.3, hue[policy.policy.family], 0], [5, "white", place], [2.6, hue[policy.policy.family], place]]) {
          [context.lineWidth, context.strokeStyle] = [width, colour];
          context.stroke(new Path2D(lineOf(policy, of)));
        }
      context.restore();
    }
    write(text || "(no words)", x, y + high + 18, wide, 13, ink);
    write(label, x, y + high + 34, wide, 11, "#59616D");
    value.policies.forEach((policy, i) => write(place ? amount(policy, place).textContent ?? amount(policy, place) : "compared with", x, y + high + 52 + 18 * i, wide, 12, hue[policy.policy.family]));
  });
  write("Same observation, same noise; thin: the path of the first prompt. Change of the chunk in % of each dimension's range.", gap, canvas.height / 2 - 10, canvas.width / 2 - 2 * gap, 11, "#59616D");
  canvas.toBlob((blob) => save(blob, "prompts.png"), "image/png");
}

function button(label, onclick) {
  const node = make("button", { type: "button", class: "plain" }, label);
  node.addEventListener("click", onclick);
  return node;
}

begin("Compare prompts to see what each policy tells apart.", (value) => {
  if (chosen !== null && value.chosen === chosen) return; // only what was clicked is new
  for (const policy of value.policies) policy.lines = policy.line && unpack(policy.line);
  board.replaceChildren(...value.prompts.map((prompt, place) => card(value, prompt, place)));
  heads.replaceChildren(
    ...value.policies.flatMap((policy) => [
      byEffect(value, policy),
      make("p", { "data-family": policy.policy.family }, make("i", { class: "dot" }), policy.headline),
    ]),
  );
  const whole = value.done === value.of;
  matrices.replaceChildren(...(whole && value.prompts.length > 2 ? value.policies.map(matrix) : []));
  const saving = make(
    "div",
    { class: "actions" },
    button("Save as CSV", () => save(new Blob([csv(value)], { type: "text/csv" }), "prompts.csv")),
    button("Save as picture (PNG)", () => draw(value)),
  );
  view.replaceChildren(
    heads,
    board,
    matrices,
    whole ? saving : make("p", { class: "notice", role: "status" }, `${value.done} of ${value.of} answers`),
    make("p", { class: "notice" }, "Same observation, same noise. Dashed: the path of the first prompt. Change of the chunk in % of each dimension's range, and in spreads between seeds. One observation, open loop: a change says that the answer depends on the words, not that it is right."),
  );
});
