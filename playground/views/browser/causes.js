// Where a difference between two prompts acts: for each policy a headline, the picture with what
// each patch recovers, and a table of places and layers. A click runs that one patch.

function ask(policy, cell) {
  props.value = { ...props.value, cell: JSON.stringify({ policy: policy.name, ...cell }) };
  trigger("select");
}

function cellOf(policy, row, column) {
  const value = row.values[column];
  const interval = row.intervals[column];
  const all = column === row.values.length - 1;
  const range = interval ? `, 95 % interval ${share(interval[0])} to ${share(interval[1])}` : "";
  const label = `${row.label}, ${policy.columns[column]}: ${share(value)} comes back${range}`;
  const button = make("button", { type: "button", class: "number", title: `${label}. Click to see where this leads.`, "aria-label": label, style: `--share:${strength(value)}`, disabled: value === null }, share(value));
  button.addEventListener("click", () => ask(policy, { group: row.name, layer: all ? null : column + 1, patch: null }));
  return make("td", {}, button);
}

function grid(policy) {
  const head = make("tr", {}, make("th", { scope: "col" }, "place in the model's input"), ...policy.columns.map((name) => make("th", { scope: "col" }, name)));
  const rows = policy.rows.map((row) =>
    make("tr", { class: `${row.changed ? "changed" : ""} ${["pictures", "shared text", "everything"].includes(row.kind) ? "together" : ""}` }, make("th", { scope: "row" }, make("bdi", {}, row.label)), ...row.values.map((_, column) => cellOf(policy, row, column))),
  );
  const caption = "The same by place and layer: words, pictures and everything else that the model reads.";
  const table = make("table", { class: "causes-table", "aria-label": caption }, make("thead", {}, head), make("tbody", {}, ...rows));
  return make("figure", { class: "causes-map" }, make("figcaption", {}, caption), make("div", { class: "table-scroll" }, table));
}

function map(policy, found) {
  const most = Math.max(...found.values.map((value) => value || 0));
  const cell = (value, i, where) => {
    const estimated = found.exact.length && !found.exact[i];
    const text = `${found.label}, ${where}: ${estimated ? "estimated, " : ""}${share(value)} comes back`;
    const button = make("button", { type: "button", class: "number", title: text, "aria-label": text, style: `--share:${strength(value)}`, disabled: value === null }, value !== null && value >= 0.05 ? `${estimated ? "≈ " : ""}${share(value)}` : "");
    button.addEventListener("click", () => ask(policy, { group: found.slot, layer: null, patch: i }));
    return button;
  };
  const ran = found.exact.filter(Boolean).length;
  const rest = found.exact.length ? `; ${ran} of ${found.exact.length} were run, the others (≈) are estimated from a derivative` : "";
  const caption = `${found.label}: one patch of the picture at a time, all layers${most < 0.05 ? "; none brings 5 % back" : ""}${rest}`;
  return make("figure", { class: "causes-map" }, make("figcaption", {}, caption), patches(found, cell));
}

function read({ image, text }) {
  const row = (name, values) => (values.length ? `${name} ${values.map(share).join(", ")}` : null);
  const parts = [row("picture", image), row("text", text)].filter(Boolean);
  return parts.length ? make("p", { class: "notice" }, `Read, used or not: how far the prompts differ inside, layer by layer: ${parts.join("; ")}.`) : null;
}

function column(policy) {
  const nodes = policy.failure
    ? [make("p", { class: "failure" }, policy.failure)]
    : [
        make("p", { class: "causes-headline" }, policy.headline),
        policy.effect ? make("p", { class: "notice" }, `The two chunks are ${policy.effect} apart. ${policy.done < policy.of ? `${policy.done} of ${policy.of} patches are measured: ${policy.plan}.` : ""}`) : null,
        make("p", { class: "causes-meaning" }, `Each number: the policy is asked to “${policy.counterfactual}”, but in this one place of the model it reads what “${policy.prompt}” has left there. 0 %: it does as it is asked. 100 %: it does “${policy.prompt}” after all, so the difference acts here.`),
        make("div", { class: "causes-maps of-slots" }, ...policy.maps.map((found) => map(policy, found))),
        policy.rows.length ? grid(policy) : null,
        read(policy.read),
        ...policy.notes.map((note) => make("p", { class: "notice" }, note)),
      ];
  return make("section", { class: "causes-column", "data-family": policy.policy.family }, policyLine(policy.policy), ...nodes);
}

/** Every number as CSV: a row a place and layer, then a row a patch. */
function csv({ policies }) {
  const rows = policies.flatMap((policy) => {
    const about = [policy.name, policy.policy.badge, policy.prompt, policy.counterfactual];
    const cells = policy.rows.flatMap((row) => row.values.map((value, i) => [...about, row.label, policy.columns[i], "", value, ...(row.intervals[i] || ["", ""]), true]));
    const dots = policy.maps.flatMap(({ slot, values, exact }) => values.map((value, i) => [...about, slot, "all layers", i, value, "", "", !exact.length || exact[i]]));
    return [...cells, ...dots];
  });
  return table([["policy", "badge", "prompt", "counterfactual", "place", "layer", "patch", "recovered", "low", "high", "exact"], ...rows]);
}

// --- as a picture --------------------------------------------------------------------------------

const [WIDE, PHOTO, ROW, GAP] = [620, 340, 22, 24];
const [INK, QUIET] = ["#1B2027", "#59616D"];

/** Writes a text in lines of at most WIDE; gives where the next one begins. */
function write(context, text, x, y, size, colour, weight = 400) {
  context.font = `${weight} ${size}px sans-serif`;
  context.fillStyle = colour;
  let line = "";
  for (const word of text.split(" ")) {
    const longer = line ? `${line} ${word}` : word;
    if (context.measureText(longer).width > WIDE && line) {
      context.fillText(line, x, y);
      [line, y] = [word, y + 1.3 * size];
    } else line = longer;
  }
  context.fillText(line, x, y);
  return y + 1.3 * size;
}

/** A coloured box with a share in it. */
function box(context, value, [x, y, width, height], hue, least) {
  context.globalAlpha = 0.8 * Math.max(0, Math.min(1, value || 0));
  context.fillStyle = hue;
  context.fillRect(x, y, width, height);
  context.globalAlpha = 1;
  if (value === null || value < least) return;
  context.font = "12px sans-serif";
  context.textAlign = "center";
  const text = share(value);
  [context.lineWidth, context.strokeStyle, context.fillStyle] = [3, "white", INK];
  context.strokeText(text, x + width / 2, y + height / 2 + 4);
  context.fillText(text, x + width / 2, y + height / 2 + 4);
  context.textAlign = "left";
}

async function paint(context, policy, x, hue) {
  let y = write(context, `${policy.policy.title} (${policy.policy.badge})`, x, 34, 14, hue, 600);
  y = write(context, policy.failure || policy.headline, x, y + 4, 17, INK, 600);
  if (policy.failure) return y;
  y = write(context, `“${policy.prompt}” against “${policy.counterfactual}”`, x, y, 12, QUIET);
  for (const found of policy.maps) {
    const photo = make("img", { src: found.picture.url });
    await photo.decode();
    context.drawImage(photo, x, y, PHOTO, PHOTO);
    const size = PHOTO / found.side;
    found.values.forEach((value, i) => box(context, value, [x + (i % found.side) * size, y + Math.floor(i / found.side) * size, size, size], hue, 0.05));
    y = write(context, `${found.label}: one patch of the picture at a time, all layers`, x, y + PHOTO + 16, 12, QUIET) + 6;
  }
  const wide = (WIDE - 190) / policy.columns.length;
  policy.columns.forEach((name, i) => write(context, name, x + 190 + i * wide, y + 10, 11, QUIET));
  for (const row of policy.rows) {
    y += ROW;
    write(context, row.label, x, y + 14, 12, INK, row.changed ? 600 : 400);
    row.values.forEach((value, i) => box(context, value, [x + 190 + i * wide, y, wide - 3, ROW - 3], hue, -Infinity));
  }
  return y + ROW;
}

/** Headlines, maps and tables as a picture on white paper. */
async function draw({ policies }) {
  const canvas = make("canvas", { width: 2 * (policies.length * (WIDE + GAP) + GAP), height: 1 });
  const hues = [...view.querySelectorAll(".causes-column .dot")].map((dot) => getComputedStyle(dot).backgroundColor);
  // Once to learn how high it is, once on paper of that size.
  for (const pass of [0, 1]) {
    const context = canvas.getContext("2d");
    context.scale(2, 2);
    context.fillStyle = "white";
    context.fillRect(0, 0, canvas.width, canvas.height);
    const ends = [];
    for (const [i, policy] of policies.entries()) ends.push(await paint(context, policy, GAP + i * (WIDE + GAP), hues[i]));
    const end = write(context, CAVEATS, GAP, Math.max(...ends) + 20, 11, QUIET);
    if (!pass) canvas.height = 2 * Math.ceil(end + GAP);
  }
  canvas.toBlob((blob) => save(blob, "causes.png"), "image/png");
}

const CAVEATS = "One observation, open loop. Rows need not add up to the last one, where everything is taken over at once. A place tells what is read there, not that the answer is right.";

let drawn = null;
begin("Compare two prompts to see where in the model their difference acts.", (value) => {
  if (drawn === value.policies) return; // only what was clicked is new
  drawn = value.policies;
  view.replaceChildren(
    make("div", { class: "causes-pair" }, ...value.policies.map(column)),
    make("p", { class: "notice" }, CAVEATS),
    make("div", { class: "actions" }, action("Save as CSV", () => save(new Blob([csv(value)], { type: "text/csv" }), "causes.csv")), action("Save as picture (PNG)", () => draw(value))),
  );
});
