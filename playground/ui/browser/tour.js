// A tour over the real page: a card beside the part that it speaks of, which is outlined meanwhile.

let place = -1;
let marked = null;
const start = make("button", { type: "button", class: "plain small" }, "Tour");
const title = make("strong");
const text = make("p");
const count = make("span", { class: "number" });
const back = make("button", { type: "button", class: "plain small" }, "Back");
const next = make("button", { type: "button", class: "plain small" }, "Next");
const end = make("button", { type: "button", class: "plain small" }, "Close");
const card = make("div", { class: "tour-card", role: "dialog", "aria-label": "Tour of the page", hidden: true }, title, text, make("div", { class: "steps" }, count, back, next, end));
view.append(start, card);

function go(to) {
  if (marked) marked.classList.remove("toured");
  marked = null;
  place = to;
  const step = props.value[to];
  card.hidden = !step;
  if (!step) return start.focus();
  document.querySelector("#tabs button[role=tab]").click(); // the overview
  const [where, heading, words] = step;
  marked = where.split(", ").map((one) => document.querySelector(one)).find((one) => one && one.getClientRects().length);
  title.textContent = heading;
  text.textContent = words;
  count.textContent = `${to + 1} of ${props.value.length}`;
  back.disabled = to === 0;
  next.textContent = to === props.value.length - 1 ? "Done" : "Next";
  next.focus();
  if (!marked) return;
  marked.classList.add("toured");
  marked.scrollIntoView({ block: "center", behavior: "instant" });
  const box = marked.getBoundingClientRect();
  const [wide, high] = [card.offsetWidth, card.offsetHeight];
  const below = box.bottom + 10 + high <= innerHeight;
  card.style.left = `${Math.max(8, Math.min(box.left, innerWidth - wide - 8))}px`;
  card.style.top = `${below ? box.bottom + 10 : Math.max(8, box.top - high - 10)}px`;
}

start.addEventListener("click", () => go(0));
addEventListener("resize", () => card.hidden || go(place));
back.addEventListener("click", () => go(place - 1));
next.addEventListener("click", () => go(place + 1));
end.addEventListener("click", () => go(-1));
card.addEventListener("keydown", (event) => event.key === "Escape" && go(-1));
