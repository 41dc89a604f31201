// Where a difference between two prompts acts: for each policy a headline, the picture with what
// each patch recovers, and a table of places and layers. A click runs that one patch.

/** A share as text: "97 %", "< 1 %", "…" while it is not measured. */
function share(value) {
  if (value === null || value === undefined) return "…";
  const rounded = Math.round(100 * value);
  return `${rounded < 0 ? "−" : ""}${Math.abs(rounded)} %`;
}

function strength(value) {
  return Math.max(0, Math.min(1, value || 0)).toFixed(3);
}

function ask(policy, cell) {
  props.value = { ...props.value, cell: JSON.stringify({ policy: policy.name, ...cell }) };
  trigger("select");
}

function cellOf(policy, row, column) {
  const value = row.values[column];
  const interval = row.intervals[column];
  const all = column === row.values.length - 1;
  const range = interval ? `, 95 % interval ${share(interval[0])} to ${share(interval[1])}` : "";
  const label = `${row.label}, ${policy.columns[column]}: ${share(value)} recovered${range}`;
  const button = make("button", { type: "button", class: "number", title: `${label}. Click to see where this patch leads.`, "aria-label": label, style: `--share:${strength(value)}`, disabled: value === null }, share(value));
  button.addEventListener("click", () => ask(policy, { group: row.name, layer: all ? null : column + 1, patch: null }));
  return make("td", {}, button);
}

function table(policy) {
  const head = make("tr", {}, make("th", { scope: "col" }, "keys and values of"), ...policy.columns.map((name) => make("th", { scope: "col" }, name)));
  const rows = policy.rows.map((row) =>
    make("tr", { class: `${row.changed ? "changed" : ""} ${["pictures", "shared text", "everything"].includes(row.kind) ? "together" : ""}` }, make("th", { scope: "row" }, make("bdi", {}, row.label)), ...row.values.map((_, column) => cellOf(policy, row, column))),
  );
  const caption = make("caption", {}, `How much of “${policy.prompt}” comes back when “${policy.counterfactual}” runs with its keys and values in one place: 0 % nothing, 100 % all of it.`);
  return make("div", { class: "table-scroll" }, make("table", { class: "causes-table" }, caption, make("thead", {}, head), make("tbody", {}, ...rows)));
}

function map(policy, { slot, label, picture, side, values }) {
  const most = Math.max(...values.map((value) => value || 0));
  const cells = values.map((value, i) => {
    const where = `row ${Math.floor(i / side) + 1}, column ${(i % side) + 1}`;
    const text = `${label}, ${where}: ${share(value)} recovered`;
    const shown = value !== null && value >= 0.05 ? share(value) : "";
    const button = make("button", { type: "button", class: "number", title: text, "aria-label": text, style: `--share:${strength(value)}`, disabled: value === null }, shown);
    button.addEventListener("click", () => ask(policy, { group: slot, layer: null, patch: i }));
    return button;
  });
  return make(
    "figure",
    { class: "causes-map" },
    make("figcaption", {}, `${label}: each patch alone, all layers${most < 0.05 ? "; none recovers 5 %" : ""}`),
    make("div", { class: "causes-photo" }, make("img", { src: picture.url, alt: "" }), make("div", { class: "causes-cells", style: `--side:${side}` }, ...cells)),
  );
}

function read({ image, text }) {
  const row = (name, values) => (values.length ? `${name} ${values.map(share).join(", ")}` : null);
  const parts = [row("picture", image), row("text", text)].filter(Boolean);
  return parts.length ? make("p", { class: "notice" }, `Read, used or not: how far the prompts' values differ, layer by layer: ${parts.join("; ")}.`) : null;
}

function column(policy) {
  const { family, title, badge, notice } = policy.policy;
  const head = make("header", { class: "policy" }, make("span", { class: "dot", "aria-hidden": "true" }), make("strong", {}, title), make("span", { class: "badge", title: notice }, badge));
  const nodes = policy.failure
    ? [make("p", { class: "failure" }, policy.failure)]
    : [
        make("p", { class: "causes-headline" }, policy.headline),
        policy.effect ? make("p", { class: "notice" }, `The two chunks are ${policy.effect} apart. ${policy.done < policy.of ? `${policy.done} of ${policy.of} patches are measured.` : ""}`) : null,
        ...policy.maps.map((found) => map(policy, found)),
        policy.rows.length ? table(policy) : null,
        read(policy.read),
        ...policy.notes.map((note) => make("p", { class: "notice" }, note)),
      ];
  return make("section", { class: "causes-column", "data-family": family }, head, ...nodes);
}

/** Every number as CSV: a row a place and layer, then a row a patch. */
function csv({ policies }) {
  const quote = (text) => `"${String(text ?? "").replace(/"/g, '""')}"`;
  const rows = policies.flatMap((policy) => {
    const about = [policy.name, policy.policy.badge, policy.prompt, policy.counterfactual];
    const cells = policy.rows.flatMap((row) => row.values.map((value, i) => [...about, row.label, policy.columns[i], "", value, ...(row.intervals[i] || ["", ""])]));
    const dots = policy.maps.flatMap(({ slot, values }) => values.map((value, i) => [...about, slot, "all layers", i, value, "", ""]));
    return [...cells, ...dots].map((row) => row.map(quote).join(","));
  });
  return ["policy,badge,prompt,counterfactual,place,layer,patch,recovered,low,high", ...rows].join("\r\n");
}

function save(text) {
  const url = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  make("a", { href: url, download: "causes.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

const CAVEATS = "One observation, open loop. Rows need not add up to the last one, where everything is patched at once. A patch tells what is read there, not that the answer is right.";

let drawn = null;
begin("Trace a prompt against another one to see where the difference acts.", (value) => {
  if (drawn === value.policies) return; // only what was clicked is new
  drawn = value.policies;
  const button = make("button", { type: "button", class: "plain" }, "Save as CSV");
  button.addEventListener("click", () => save(csv(value)));
  view.replaceChildren(make("div", { class: "causes-pair" }, ...value.policies.map(column)), make("p", { class: "notice" }, CAVEATS), make("div", {}, button));
});
