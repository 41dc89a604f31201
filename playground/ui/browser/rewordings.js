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

const find = (words) => new RegExp(`(?<![a-z])(${words.join("|")})(?![a-z])`, "gi");

/** The words of a kind that stand in the prompt, as they are written and in their order, one for
 *  each group of words that mean the same; and the groups: [{at, word, group}]. */
function said(prompt, kind) {
  const found = [];
  for (const group of kind)
    for (const word of [...group].sort((a, b) => b.length - a.length)) {
      const match = find([word]).exec(prompt);
      if (!match) continue;
      found.push({ at: match.index, word: match[0], group });
      break;
    }
  return found.sort((a, b) => a.at - b.at);
}

/** The prompt with each of these words by another, wherever it stands. */
const replaced = (prompt, words) => prompt.replace(find(Object.keys(words)), (word) => words[word] ?? word);

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
  for (const kind of words.kinds) {
    const [first, ...more] = said(prompt, kind);
    if (!first) continue;
    for (const group of kind.filter((group) => !more.some((one) => one.group === group)))
      for (const other of group) if (other !== first.word.toLowerCase()) put(other, replaced(prompt, { [first.word]: other }));
    for (const { word } of more.slice(0, 1))
      put(`${first.word} ↔ ${word}`, replaced(prompt, { [first.word]: word, [word]: first.word }));
  }
  for (const task of words.tasks) if (!words.kinds.length || !prompt.trim()) put(task, task);
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
