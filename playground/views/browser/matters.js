// What a policy listens to: the prompt coloured by effect, then a bar with its interval for each
// variant and policy.

function head(value) {
  const { title, badge, notice, family } = value.policy;
  const name = make("header", { class: "policy" }, make("span", { class: "dot", "aria-hidden": "true" }), make("strong", {}, title), make("span", { class: "badge", title: notice }, badge));
  return make("section", { "data-family": family }, name, words(value.words), make("p", { class: "how" }, value.how));
}

/** Each word on a wash as strong as its effect, with the number below it. */
function words(parts) {
  const pieces = parts.map(([text, amount, effect, sentence]) =>
    effect === null ? text : make("span", { class: "word", style: `--effect:${effect}`, title: sentence }, text, make("small", {}, amount ?? "–")),
  );
  return parts.length ? make("p", { class: "prompt", role: "group", "aria-label": "The prompt, each word with its effect" }, ...pieces) : null;
}

function track({ percent, interval, spread, dimensions, sentence }, widest) {
  if (percent === null) return make("td");
  const mark = (name, low, high) => make("i", { class: name, style: `left:${(100 * low) / widest}%;width:${(100 * (high - low)) / widest}%` });
  const marks = [mark("seeds", 0, spread), mark("amount", 0, percent), interval ? mark("interval", ...interval) : null];
  const strip = dimensions.map(([effect, title]) => make("i", { style: `--effect:${effect}`, title }));
  return make("td", { title: sentence }, make("div", { class: "track" }, ...marks), percent ? make("div", { class: "dimensions", "aria-hidden": "true" }, ...strip) : null);
}

function numbers(row) {
  if (row.short) return make("td", { class: "number", title: row.sentence }, row.short);
  return make("td", { class: "number" }, make("b", {}, row.amount), ...row.details.map((text) => make("small", {}, text)));
}

function row(run, variant, one, place) {
  const { policy } = run.policies[one.policy];
  const dot = make("span", { class: "dot", "aria-hidden": "true" });
  const who = make("td", { class: "who", title: `${policy.title} · ${policy.badge}` }, dot, make("span", {}, policy.title));
  const name = place ? null : make("th", { rowspan: variant.rows.length, scope: "row" }, make("bdi", {}, variant.name));
  return make("tr", { "data-family": policy.family }, name, who, track(one, run.widest), numbers(one));
}

function table(run) {
  const text = `Bars: mean change of the chunk in % of each dimension's range in the norm stats, from 0 to ${run.axis}. Lines: 95 % intervals. Grey: what another seed alone changes. Strips: each action dimension, the darkest is the largest of its row.`;
  const columns = ["variant", "who", "change", "numbers"].map((name) => make("col", { class: name }));
  const titles = ["Variant", "Policy", "Change", "Numbers"].map((title) => make("th", { scope: "col" }, title));
  const body = run.groups.flatMap(({ title, variants }) => [
    make("tr", { class: "group" }, make("th", { colspan: 4, scope: "rowgroup" }, title)),
    ...variants.flatMap((variant) => variant.rows.map((one, place) => row(run, variant, one, place))),
  ]);
  return make("table", {}, make("caption", {}, text), make("colgroup", {}, ...columns), make("thead", { class: "hidden" }, make("tr", {}, ...titles)), make("tbody", {}, ...body));
}

/** Once all is measured: before, every update would close the details again. */
function details(run) {
  const said = Object.values(run.policies).flatMap(({ policy, sentences }) => sentences.map((text) => make("li", {}, `${policy.title}: ${text}`)));
  return said.length ? make("details", {}, make("summary", {}, "In sentences"), make("ul", {}, ...said)) : null;
}

begin("What each policy listens to appears here.", (run) => {
  const going = run.done < run.of;
  view.replaceChildren(
    make(
      "div",
      { class: "matters" },
      going ? make("p", { class: "notice", role: "status" }, `Measured ${run.done} of ${run.of} answers `, make("progress", { max: run.of, value: run.done })) : "",
      ...Object.values(run.policies).map(head),
      run.groups.length ? table(run) : "",
      details(run) ?? "",
      run.left_out.length ? make("ul", { class: "notice" }, ...run.left_out.map((text) => make("li", {}, text))) : "",
      make("p", { class: "notice" }, run.caveat),
    ),
  );
});
