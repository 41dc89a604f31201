// The state as a table: one number a dimension, and beside it what each model gets for it.
//
// props.value {dims: [{name, unit}], values: [...]} travels both ways; props.judged comes from the
// server: a column for each policy.

let inputs = [];
let cells = [];
let waiting = 0;

function build(value) {
  const head = make("tr", {}, make("th", { scope: "col" }, "dimension"), make("th", { scope: "col" }, "value"));
  const body = make("tbody");
  inputs = [];
  cells = [];
  value.dims.forEach((dim, i) => {
    const input = make("input", {
      type: "text", inputmode: "decimal", autocomplete: "off", spellcheck: "false",
      "aria-label": `${dim.name} in ${dim.unit}`,
    });
    input.addEventListener("input", () => edited(i));
    inputs.push(input);
    const name = make("th", { scope: "row" }, dim.name, make("small", {}, dim.unit));
    const row = make("tr", {}, name, make("td", {}, input));
    cells.push(row);
    body.append(row);
  });
  view.replaceChildren(
    make("table", { class: "state" }, make("caption", { class: "hidden" }, "State of the robot"), make("thead", {}, head), body),
    make("p", { class: "notice legend-note" }),
  );
  fill(value);
}

function fill(value) {
  value.values.forEach((v, i) => {
    if (document.activeElement === inputs[i]) return;
    inputs[i].value = typeof v === "number" ? String(Math.round(v * 1e4) / 1e4) : v;
    inputs[i].toggleAttribute("aria-invalid", typeof v !== "number");
  });
}

function edited(i) {
  const text = inputs[i].value.trim().replace(",", ".").replace("−", "-");
  const value = text === "" || Number.isNaN(Number(text)) ? inputs[i].value : Number(text);
  inputs[i].toggleAttribute("aria-invalid", typeof value !== "number");
  const values = [...props.value.values];
  values[i] = value;
  props.value = { ...props.value, values };
  clearTimeout(waiting);
  waiting = setTimeout(() => trigger("input"), 250);
}

// By how a policy scales its state: what the model gets, and how much of the data a range holds.
const METHODS = {
  "z-score": ["mean 0, deviation 1", "98 % of"],
  quantile: ["q01 to q99 is −1 to 1", "98 % of"],
  "quantile-10": ["q10 to q90 is −1 to 1", "80 % of"],
  "min-max": ["the smallest to the largest value is −1 to 1", "all of"],
  identity: ["as it is", "98 % of"],
};

function judge() {
  const columns = props.judged || [];
  const head = view.querySelector("thead tr");
  // With another robot both props change, one after the other.
  if (!head || columns.some((column) => column.values.length !== cells.length)) return;
  for (const row of [head, ...cells]) row.querySelectorAll(".judged").forEach((cell) => cell.remove());
  let flagged = 0;
  for (const column of columns) {
    const [method, share] = METHODS[column.method];
    head.append(make("th", { scope: "col", class: "judged", title: method }, column.title));
    column.values.forEach((value, i) => {
      const range = column.ranges && column.ranges[i];
      const outside = Boolean(range && range[2]);
      flagged += outside;
      const where = range
        ? `${share} the training data: ${number(range[0], 1)} to ${number(range[1], 1)}`
        : "";
      cells[i].append(
        make(
          "td",
          { class: `judged number${outside ? " outside" : ""}`, title: where, "data-family": column.family },
          outside ? make("span", { class: "flag", role: "img", "aria-label": "outside the training data" }, "▲ ") : null,
          number(value, 4),
        ),
      );
    });
  }
  const note = view.querySelector(".legend-note");
  note.textContent = columns.length
    ? `Right: as each model gets it, normalised. ${flagged ? "▲ outside the range of the training data; nothing is clipped." : ""}`
    : "";
}

let shape0 = "";
function refresh() {
  if (!props.value) return;
  const now = JSON.stringify(props.value.dims);
  if (now !== shape0) {
    shape0 = now;
    build(props.value);
  } else fill(props.value);
  judge();
}
watch("value", refresh);
watch("judged", judge);
refresh();
