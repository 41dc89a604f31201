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
    make("span", { class: "amount number", "data-family": policy.policy.family }, make("i", { class: "dot" }), place ? amount(policy, place) : "compared with"),
  );
  const button = make(
    "button",
    { type: "button", class: place ? "card-of-prompt" : "card-of-prompt first", "aria-label": `Run “${text}”` },
    photo(value, place),
    make("span", { class: "text-of-prompt" }, text || "∅ no words"),
    label ? make("small", {}, label) : null,
    ...numbers,
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
  const rows = prompts.map((text) => make("span", {}, make("bdi", {}, text || "∅")));
  return make(
    "figure",
    { class: "matrix", "data-family": policy.policy.family },
    make("figcaption", {}, make("i", { class: "dot" }), make("strong", {}, policy.policy.title), ` every prompt against every prompt; darkest: ${most.toFixed(1)} % of range`),
    make("div", { class: "grid-of-prompts", style: `--count:${prompts.length}`, role: "img", "aria-label": `How much each of ${prompts.length} prompts changes the chunk against each other` }, make("div", { class: "names-of-prompts" }, ...rows), make("div", { class: "cells" }, ...cells)),
  );
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

function save(text) {
  const url = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  make("a", { href: url, download: "prompts.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

begin("Compare prompts to see what each policy tells apart.", (value) => {
  if (chosen !== null && value.chosen === chosen) return; // only what was clicked is new
  for (const policy of value.policies) policy.lines = policy.line && unpack(policy.line);
  board.replaceChildren(...value.prompts.map((prompt, place) => card(value, prompt, place)));
  heads.replaceChildren(
    ...value.policies.map(({ policy, headline }) => make("p", { "data-family": policy.family }, make("i", { class: "dot" }), headline)),
  );
  const whole = value.done === value.of;
  matrices.replaceChildren(...(whole && value.prompts.length > 2 ? value.policies.map(matrix) : []));
  const button = make("button", { type: "button", class: "plain" }, "Save as CSV");
  button.addEventListener("click", () => save(csv(value)));
  view.replaceChildren(
    heads,
    board,
    matrices,
    whole ? button : make("p", { class: "notice", role: "status" }, `${value.done} of ${value.of} answers`),
    make("p", { class: "notice" }, "Same observation, same noise. Dashed: the path of the first prompt. Change of the chunk in % of each dimension's range, and in spreads between seeds. One observation, open loop: a change says that the answer depends on the words, not that it is right."),
  );
});
