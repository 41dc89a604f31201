// The line on top: a chip for each policy that opens to its details, and one sentence on what is
// happening. What must not be missed (notices, warnings, failures) stands below it, once.

const sentence = make("p", { class: "say", role: "status" });
const chips = make("div", { class: "cards" });
const notes = make("ul", { class: "notes" });
view.classList.add("strip");
view.append(make("div", { class: "now" }, sentence, chips), notes);
const drawn = new Map(); // by policy: what its chip was drawn from

function milliseconds(ms) {
  return ms < 1000 ? `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

const took = (card) => milliseconds(card.stages.reduce((sum, [, ms]) => sum + ms, 0));

function stages(card) {
  const total = card.stages.reduce((sum, [, ms]) => sum + ms, 0);
  const depth = (i) => `--depth:${i / Math.max(1, card.stages.length - 1)}`;
  const bar = make("div", { class: "stages", "aria-hidden": "true" });
  card.stages.forEach(([name, ms], i) =>
    bar.append(make("i", { title: `${name}: ${milliseconds(ms)}`, style: `width:${(100 * ms) / total}%;${depth(i)}` })),
  );
  const list = card.stages.map(([name, ms], i) =>
    make("li", {}, make("i", { style: depth(i) }), `${name} `, make("span", { class: "number" }, milliseconds(ms))),
  );
  return [
    make("p", { class: "took" }, "Answered in ", make("strong", { class: "number" }, took(card))),
    bar,
    make("ul", { class: "stage-list" }, ...list),
    card.reused.length ? make("p", { class: "notice" }, `Reused: ${card.reused.join(", ")}`) : null,
  ];
}

function meter(card) {
  const track = make("span", { class: "meter", role: "progressbar", "aria-label": card.policy.title });
  const fill = make("i");
  if (card.share === null) track.classList.add("unknown");
  else {
    fill.style.width = `${100 * card.share}%`;
    track.setAttribute("aria-valuenow", String(Math.round(100 * card.share)));
  }
  track.append(fill);
  return track;
}

/** What a closed chip says of the run. */
function state(card) {
  if (card.state === "running") return meter(card);
  if (card.state === "waiting") return make("span", { class: "state" }, "waiting");
  if (card.state === "stopped") return make("span", { class: "state" }, "stopped");
  if (card.state === "failed") return make("span", { class: "state" }, "failed");
  // An answer from the cache took its time when the program started.
  return card.stages.length && !card.cached ? make("span", { class: "state number" }, took(card)) : "";
}

function details(card) {
  if (card.state === "running") return [make("p", { class: "line number" }, card.line)];
  if (card.state === "waiting") return [make("p", { class: "line" }, "Waiting for its turn")];
  return card.stages.length ? stages(card) : [];
}

function draw(card, open) {
  const { policy } = card;
  return make(
    "details",
    { class: `card is-${card.state}`, "data-family": policy.family, open },
    make(
      "summary",
      { title: "Details" },
      make("span", { class: "dot", "aria-hidden": "true" }),
      make("strong", {}, policy.title),
      // A notice, which stands below the chips, says it already.
      policy.notice ? null : make("span", { class: "badge" }, policy.badge),
      state(card),
    ),
    make(
      "div",
      { class: "inside" },
      make("p", { class: "notice" }, make("span", { class: "badge" }, policy.badge), ` ${policy.notice}`),
      card.about ? make("p", { class: "about" }, card.about) : null,
      ...details(card),
      card.failure ? make("p", { class: "failure" }, card.failure) : null,
      card.decode_failure
        ? make("p", { class: "failure" }, `The tokens did not decode: ${card.decode_failure}`)
        : null,
      card.warnings.length ? make("ul", { class: "warnings" }, ...card.warnings.map((text) => make("li", {}, text))) : null,
      card.link ? make("a", { class: "save", href: card.link, download: true }, "Save trace") : null,
    ),
  );
}

/** Each text once, with the policies that it is about. */
function gathered(cards, texts) {
  const found = new Map();
  for (const card of cards)
    for (const text of texts(card)) found.set(text, [...(found.get(text) || []), card.policy.title]);
  return [...found];
}

function drawNotes(cards) {
  const all = cards.length;
  const who = (titles) => (titles.length === all ? "" : `${titles.join(", ")}: `);
  const rows = [
    ...gathered(cards, (card) => (card.failure ? [card.failure] : [])).map(([text, titles]) => make("li", { class: "failed", role: "alert" }, who(titles), text)),
    ...gathered(cards, (card) => card.warnings).map(([text, titles]) => make("li", { class: "warned" }, who(titles), text)),
    ...gathered(cards, (card) => (card.policy.notice ? [card.policy.notice] : [])).map(([text, titles]) => make("li", {}, who(titles), text)),
  ];
  notes.replaceChildren(...rows);
}

function refresh() {
  const { value } = props;
  if (!value) return;
  view.dataset.state = value.state;
  if (sentence.textContent !== value.say) sentence.title = sentence.textContent = value.say;
  const names = value.policies.map((card) => card.name);
  for (const name of drawn.keys())
    if (!names.includes(name)) {
      drawn.get(name).node.remove();
      drawn.delete(name);
    }
  let changed = false;
  for (const card of value.policies) {
    const key = JSON.stringify(card);
    const old = drawn.get(card.name);
    if (old && old.key === key) continue;
    changed = true;
    const node = draw(card, Boolean(old && old.node.open));
    if (old) old.node.replaceWith(node);
    else chips.append(node);
    drawn.set(card.name, { key, node });
  }
  if (changed) drawNotes(value.policies);
}

watch("value", refresh);
refresh();
document.addEventListener("click", (event) => {
  for (const { node } of drawn.values()) if (node.open && !node.contains(event.target)) node.open = false;
});
