// The connections that the next run goes without, each with a button that mends it. A mask says
// what was clicked in it by an event: a cut, or one to be mended, as text like "actions>text:1,3".

const list = make("ul", { class: "cut-list", "aria-label": "Cut connections" });
view.classList.add("cuts");
view.append(list);

/** "actions → text, layers 1, 3" */
function words(text) {
  const [connection, layers] = text.split(":");
  const [query, key] = connection.split(">").map((name) => name.replace(/_rgb$/, "").replace(/_/g, " "));
  const many = layers && layers.includes(",");
  return `${query} → ${key}${layers ? `, layer${many ? "s" : ""} ${layers.replace(/,/g, ", ")}` : ""}`;
}

function change(values) {
  props.value = { ...props.value, values };
  draw();
  trigger("input");
}

function draw() {
  const values = (props.value && props.value.values) || [];
  window.playgroundCuts = values;
  dispatchEvent(new CustomEvent("playground-cuts"));
  const parts = values.map((text) => {
    const button = make("button", { type: "button", "aria-label": `Mend ${words(text)}`, title: "Mend it" }, words(text), make("span", { "aria-hidden": "true" }, " ×"));
    button.addEventListener("click", () => change(values.filter((other) => other !== text)));
    return make("li", {}, button);
  });
  if (values.length > 1) {
    const all = make("button", { type: "button", class: "plain small" }, "Mend all");
    all.addEventListener("click", () => change([]));
    parts.push(make("li", {}, all));
  }
  list.replaceChildren(...(values.length ? [make("li", { class: "lead-in" }, "Cut, not the policy as it is:")] : []), ...parts);
}

function clicked({ detail: { cut, mend } }) {
  if (!view.isConnected) return removeEventListener("playground-cut", clicked);
  const values = (props.value && props.value.values) || [];
  change(mend ? values.filter((other) => other !== mend) : [...values, cut]);
}
addEventListener("playground-cut", clicked);
watch("value", draw);
draw();
