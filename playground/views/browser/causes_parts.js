// What the views of causes share: shares as text, the policy's line, patches on a picture, files.

/** A share as text: "97 %", "…" while it is not measured. */
function share(value) {
  if (value === null || value === undefined) return "…";
  const rounded = Math.round(100 * value);
  return `${rounded < 0 ? "−" : ""}${Math.abs(rounded)} %`;
}

function strength(value) {
  return Math.max(0, Math.min(1, value || 0)).toFixed(3);
}

function policyLine({ title, badge, notice }) {
  return make("header", { class: "policy" }, make("span", { class: "dot", "aria-hidden": "true" }), make("strong", {}, title), make("span", { class: "badge", title: notice }, badge));
}

/** The picture of a map under a grid of cells, one a patch; `cell(value, i, where)` makes each. */
function patches({ picture, side, values }, cell) {
  const cells = values.map((value, i) => cell(value, i, `row ${Math.floor(i / side) + 1}, column ${(i % side) + 1}`));
  return make("div", { class: "causes-photo" }, make("img", { src: picture.url, alt: "" }), make("div", { class: "causes-cells", style: `--side:${side}` }, ...cells));
}

/** Rows of values as the text of a CSV file. */
function table(rows) {
  const quote = (text) => `"${String(text ?? "").replace(/"/g, '""')}"`;
  return rows.map((row) => row.map(quote).join(",")).join("\r\n");
}

function save(blob, name) {
  const url = URL.createObjectURL(blob);
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

function action(label, onclick) {
  const button = make("button", { type: "button", class: "plain" }, label);
  button.addEventListener("click", onclick);
  return button;
}
