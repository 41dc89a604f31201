// A button that copies a link to what is shown, and says so; where a browser lends no clipboard, the
// link itself to copy by hand.

const WORDS = "Copy link";
const button = make("button", { type: "button", class: "plain small", title: "A link to this prompt, scene, options and tab. Your own pictures and state are not in it." }, WORDS);
const address = make("input", { type: "text", readonly: true, "aria-label": "Link to what is shown", hidden: true });
const said = make("span", { class: "hidden", role: "status" });
view.classList.add("copy-link");
view.append(button, address, said);
button.addEventListener("click", () => trigger("select"));

let timer = 0;
watch("value", () => {
  const { say, address: text } = props.value || {};
  if (!text) return;
  button.textContent = say || WORDS;
  said.textContent = say;
  address.hidden = Boolean(say);
  address.value = text;
  if (!say) address.select();
  clearTimeout(timer);
  timer = setTimeout(() => { button.textContent = WORDS; }, 2000);
});
