// What hiding each patch does to the chunk, beside where the policy looks.

function one(map, values, title, text) {
  const most = Math.max(...values.map((value) => Math.abs(value || 0)), 1e-9);
  const cell = (value, i, where) => make("span", { class: "cell", title: `${where}: ${text(value)}`, style: `--share:${strength(Math.abs(value || 0) / most)}` });
  const shown = patches({ ...map, values }, cell);
  return make("figure", { class: "causes-map" }, make("figcaption", {}, title), shown);
}

function pair(policy, map) {
  const change = (value) => (value === null ? "not hidden yet" : `the chunk changes by ${value.toFixed(2)} ${policy.unit}`);
  const most = Math.max(...map.values.map((value) => value || 0));
  const looked = map.attention.reduce((a, b) => a + b, 0);
  return make(
    "div",
    { class: "causes-maps" },
    one(map, map.values, `${map.label}: matters when hidden (at most ${most.toFixed(1)} ${policy.unit})`, change),
    one(map, map.attention, `${map.label}: looked at (${share(looked)} of all attention)`, (value) => `${(100 * value).toFixed(2)} % of all attention`),
  );
}

function column(policy) {
  const nodes = policy.failure ? [make("p", { class: "failure" }, policy.failure)] : [make("p", { class: "causes-headline" }, policy.words), ...policy.maps.map((map) => pair(policy, map))];
  return make("section", { class: "causes-column", "data-family": policy.policy.family }, policyLine(policy.policy), ...nodes);
}

function csv({ policies }) {
  const rows = policies.flatMap((policy) => policy.maps.flatMap(({ slot, side, values, attention }) => values.map((value, i) => [policy.name, policy.policy.badge, slot, Math.floor(i / side), i % side, value, policy.unit, attention[i]])));
  return table([["policy", "badge", "slot", "row", "column", "change", "unit", "attention"], ...rows]);
}

begin("Hide every patch of the picture in turn to see which of them the policies need.", (value) => {
  view.replaceChildren(
    make("div", { class: "causes-pair" }, ...value.policies.map(column)),
    make("div", { class: "actions" }, action("Save as CSV", () => save(new Blob([csv(value)], { type: "text/csv" }), "occlusion.csv"))),
  );
});
