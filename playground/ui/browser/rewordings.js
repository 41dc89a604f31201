// Rewordings of the prompt to click, and the switch of live mode: 200 ms after typing stops, the
// policies answer again.

const PAUSE = 200; // ms
const STORED = "pi0-playground-live";
const list = make("div", { class: "list" });
const input = make("input", { type: "checkbox" });
const why = make("small", {});
const live = make("label", { class: "check live-switch", title: "Answer again 200 ms after typing stops" }, input, "Live", why);
view.classList.add("rewordings");
view.append(list, live);

try {
  input.checked = localStorage.getItem(STORED) !== "off";
} catch {
  input.checked = true; // a browser that keeps nothing
}
input.addEventListener("change", () => {
  try {
    localStorage.setItem(STORED, input.checked ? "on" : "off");
  } catch {
    // kept until the page closes
  }
  tell();
});

let timer = 0;
function typed(event) {
  if (!view.isConnected) return document.removeEventListener("input", typed);
  if (!event.target.closest("#prompt") || !event.isTrusted) return;
  clearTimeout(timer);
  if (input.checked && !props.slow) timer = setTimeout(() => trigger("input"), PAUSE);
}
document.addEventListener("input", typed);

function tell() {
  const slow = props.slow || (props.waiting ? "others are waiting" : "");
  why.textContent = slow && input.checked ? ` off: ${slow}` : "";
  input.classList.toggle("paused", Boolean(slow));
}

/** The prompt with the first word of a group in it put in another's place; null without any. */
function swapped(prompt, group, other) {
  for (const word of [...group].sort((a, b) => b.length - a.length)) {
    const found = new RegExp(`(^|[^a-z])${word}(?![a-z])`, "i").exec(prompt);
    if (!found) continue;
    if (word === other) return null;
    const at = found.index + found[1].length;
    return prompt.slice(0, at) + other + prompt.slice(at + word.length);
  }
  return null;
}

/** The words in another order, the same one every time. */
function shuffled(prompt) {
  const words = prompt.split(/\s+/).filter(Boolean);
  if (new Set(words).size < 2) return null;
  const order = [...words.filter((_, i) => i % 2), ...words.filter((_, i) => i % 2 === 0)].reverse();
  const text = order.join(" ");
  return text === prompt.trim() ? words.reverse().join(" ") : text;
}

/** [label, prompt] of each rewording. */
function rewordings(words, prompt) {
  const found = new Map();
  const put = (label, text) => {
    if (text !== null && text !== prompt && !found.has(text)) found.set(text, label);
  };
  for (const group of words.swaps)
    for (const other of group) {
      const text = swapped(prompt, group, other);
      if (text !== null) put(other, text);
    }
  for (const task of words.tasks) if (!words.swaps.length || !prompt.trim()) put(task, task);
  put("shuffled", shuffled(prompt));
  put("empty", "");
  return [...found].map(([text, label]) => [label, text]);
}

let drawn = null;
function refresh() {
  const { value } = props;
  if (!value) return;
  const key = JSON.stringify([props.words, value.prompt]);
  if (key === drawn) return;
  drawn = key;
  const found = rewordings(props.words, value.prompt);
  list.replaceChildren(
    found.length ? make("span", { class: "lead-in" }, "Try") : "",
    ...found.map(([label, text]) => {
      const button = make("button", { type: "button", title: text || "no words at all", "aria-label": `${label}: Run “${text}”` }, label);
      button.addEventListener("click", () => {
        props.value = { ...props.value, chosen: text };
        trigger("select");
      });
      return button;
    }),
  );
}
watch("value", refresh);
watch("words", refresh);
watch("slow", tell);
watch("waiting", tell);
refresh();
tell();
