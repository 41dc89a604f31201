// The strip on top: a card for each policy, and one sentence on what is happening.

const sentence = make("p", { class: "say", role: "status" });
const device = make("span", { class: "device" });
const cards = make("div", { class: "cards" });
view.classList.add("strip");
view.append(make("div", { class: "now" }, sentence, device), cards);
const drawn = new Map(); // by policy: what its card was drawn from

function milliseconds(ms) {
  return ms < 1000 ? `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

function stages(card) {
  const total = card.stages.reduce((sum, [, ms]) => sum + ms, 0);
  const bar = make("div", { class: "stages", "aria-hidden": "true" });
  card.stages.forEach(([name, ms], i) => {
    const part = make("i", { title: `${name}: ${milliseconds(ms)}` });
    part.style.width = `${(100 * ms) / total}%`;
    part.style.setProperty("--depth", String(i / Math.max(1, card.stages.length - 1)));
    bar.append(part);
  });
  const list = card.stages.map(([name, ms], i) => {
    const key = make("i");
    key.style.setProperty("--depth", String(i / Math.max(1, card.stages.length - 1)));
    return make("li", {}, key, `${name} `, make("span", { class: "number" }, milliseconds(ms)));
  });
  return [
    make("p", { class: "took" }, "Answered in ", make("strong", { class: "number" }, milliseconds(total))),
    bar,
    make("ul", { class: "stage-list" }, ...list),
    card.reused.length ? make("p", { class: "notice" }, `Reused: ${card.reused.join(", ")}`) : null,
  ];
}

function meter(card) {
  const track = make("div", { class: "meter", role: "progressbar", "aria-label": `${card.policy.title}` });
  const fill = make("i");
  if (card.share === null) track.classList.add("unknown");
  else {
    fill.style.width = `${100 * card.share}%`;
    track.setAttribute("aria-valuenow", String(Math.round(100 * card.share)));
  }
  track.append(fill);
  return track;
}

function body(card) {
  if (card.state === "running") return [make("p", { class: "line number" }, card.line), meter(card)];
  if (card.state === "waiting") return [make("p", { class: "line" }, "Waiting for its turn")];
  if (card.state === "stopped") return [make("p", { class: "line" }, "Stopped")];
  if (card.state === "failed") return [make("p", { class: "failure", role: "alert" }, card.failure)];
  return card.stages.length ? stages(card) : [];
}

function draw(card) {
  const { policy } = card;
  return make(
    "article",
    { class: `card is-${card.state}`, "data-family": policy.family, "aria-label": policy.title },
    make(
      "header",
      { class: "policy" },
      make("span", { class: "dot", "aria-hidden": "true" }),
      make("strong", {}, policy.title),
      make("span", { class: "badge" }, policy.badge),
      card.link ? make("a", { class: "save", href: card.link, download: true }, "Save trace") : null,
    ),
    policy.notice ? make("p", { class: "notice" }, policy.notice) : null,
    card.about ? make("p", { class: "about" }, card.about) : null,
    ...body(card),
    card.decode_failure
      ? make("p", { class: "failure" }, make("span", {}, `The tokens did not decode: ${card.decode_failure}`))
      : null,
    card.warnings.length
      ? make("ul", { class: "warnings" }, ...card.warnings.map((text) => make("li", {}, text)))
      : null,
  );
}

/** The same sentence beside the Run button: on a phone the strip is out of sight there. */
function tellBeside(value) {
  const place = document.querySelector("#told");
  if (!place) return;
  const answered = value.policies.some((card) => card.stages.length);
  const link = make("a", { href: "#tabs" }, "See the answer");
  place.replaceChildren(value.say, answered && value.state === "done" ? link : "");
}

function refresh() {
  const value = props.value;
  if (!value) return;
  tellBeside(value);
  view.dataset.state = value.state;
  if (sentence.textContent !== value.say) sentence.textContent = value.say;
  device.textContent = value.device ? `Device: ${value.device}` : "";
  const names = value.policies.map((card) => card.name);
  for (const name of drawn.keys())
    if (!names.includes(name)) {
      drawn.get(name).node.remove();
      drawn.delete(name);
    }
  for (const card of value.policies) {
    const told = JSON.stringify(card);
    const old = drawn.get(card.name);
    if (old && old.told === told) continue;
    const node = draw(card);
    if (old) old.node.replaceWith(node);
    else cards.append(node);
    drawn.set(card.name, { told, node });
  }
}

watch("value", refresh);
refresh();
