// First script of every component. Gradio runs them as one function body with `element`, `props`
// and `watch`. Whatever comes in a value reaches the page as a text node or an attribute set by
// name, never as markup.

const view = element.querySelector(".view");

/** An HTML element; null children are left out, strings become text. */
function make(tag, attributes = {}, ...children) {
  return furnish(document.createElement(tag), attributes, children);
}

/** An SVG element. */
function shape(tag, attributes = {}, ...children) {
  return furnish(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function furnish(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/**
 * Runs `show(value)` once the component is in sight, and whenever the value changes; without a
 * value, says `waiting`. A text stands for a part of whichever run the overview shows (see
 * playground/views/overview.py, reference): its arrays travel once.
 */
function begin(waiting, show) {
  let drawn;
  let inSight = false;
  const refresh = () => {
    const value = resolved(props.value);
    if (!inSight || value === drawn) return;
    drawn = value;
    if (value) return keepFocus(() => show(value));
    delete view.dataset.family;
    view.replaceChildren(make("p", { class: "waiting" }, waiting));
  };
  const sight = new IntersectionObserver((entries) => {
    inSight = entries.at(-1).isIntersecting;
    refresh();
  }, { rootMargin: "4000px 0px" });
  view.replaceChildren(make("p", { class: "waiting" }, waiting));
  sight.observe(view);
  watch("value", refresh);
  addEventListener("playground-run", refresh);
}

/** Draws anew. Whoever is at a control by keyboard is then at the one in its place. */
function keepFocus(draw) {
  const controls = () => [...view.querySelectorAll("a, button, input, select, summary, [tabindex]")];
  const place = controls().indexOf(document.activeElement);
  draw();
  if (place >= 0) controls()[place]?.focus({ preventScroll: true });
}

/** What a value stands for; null for nothing. */
function resolved(value) {
  if (typeof value !== "string" || !value) return value || null;
  const [policy, part] = JSON.parse(value);
  const run = window.playgroundRun || null;
  const whole = policy && run ? run.policies[policy] : run;
  return (part && whole ? whole[part] : whole) || null;
}

/** Makes a run known to every component of the page; null: there is none any more. */
function publish(run) {
  window.playgroundRun = run;
  dispatchEvent(new CustomEvent("playground-run"));
}

/** What base64 holds. In a loop: a function called for each letter takes twenty times as long. */
function bytesOf(text) {
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  return bytes;
}

/** The float array of a field written by theme.packed, row-major, with its shape. */
function unpack(field) {
  const bytes = bytesOf(field.data);
  if (field.low === null) return { shape: field.shape, values: new Float32Array(bytes.buffer) };
  const codes = new Uint16Array(bytes.buffer);
  const values = new Float32Array(codes.length);
  const width = field.low.length;
  for (let i = 0; i < codes.length; i++) {
    const [low, high] = [field.low[i % width], field.high[i % width]];
    values[i] = codes[i] === 65535 ? NaN : low + (codes[i] / 65534) * (high - low);
  }
  return { shape: field.shape, values };
}

/** A number with as many decimals as a range of `span` deserves, and a real minus sign. */
function number(value, span) {
  if (!Number.isFinite(value)) return "–";
  const decimals = span > 0 ? Math.min(6, Math.max(0, 2 - Math.floor(Math.log10(span)))) : 3;
  const text = value.toFixed(decimals);
  return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "−");
}

function percent(p) {
  if (p === 0) return "0 %";
  if (p > 0 && p < 0.001) return "< 0.1 %";
  return `${(100 * p).toFixed(p < 0.1 ? 1 : 0)} %`;
}

/** Characters that do not show, shown: a token may be a lone space or a line break. */
function visible(text) {
  const shown = text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "␣");
  return shown === "" ? "∅" : shown.replace(/[\u0000-\u001f\u007f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, "·");
}

/** Heading of a component: policy and badge. */
function heading(policy) {
  view.dataset.family = policy.family;
  return make(
    "header",
    { class: "policy" },
    make("span", { class: "dot", "aria-hidden": "true" }),
    make("strong", {}, policy.title),
    make("span", { class: "badge", title: policy.notice }, policy.badge),
  );
}

/** One of several, as a row of radio buttons: [[value, label], ...]. */
function choice(label, options, chosen, onchange) {
  const name = `choice-${Math.random().toString(36).slice(2)}`;
  return make(
    "fieldset",
    { class: "choice" },
    make("legend", { class: "hidden" }, label),
    ...options.map(([value, text]) => {
      const input = make("input", { type: "radio", name, value, checked: value === chosen });
      input.addEventListener("change", () => onchange(value));
      return make("label", {}, input, make("span", {}, text));
    }),
  );
}

/** A check box with its label. */
function check(label, checked, onchange) {
  const input = make("input", { type: "checkbox", checked });
  input.addEventListener("change", () => onchange(input.checked));
  return make("label", { class: "check" }, input, label);
}

/** A button with an SVG path (24 x 24) as its face. */
function iconButton(label, path, onclick) {
  const icon = shape("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, shape("path", { d: path }));
  const button = make("button", { type: "button", class: "icon", "aria-label": label, title: label }, icon);
  button.addEventListener("click", onclick);
  return button;
}

/** Rows and columns that an arrow key leads on by; null of any other key. */
function arrow({ key }) {
  return { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[key] || null;
}

const knownPixels = (window.playgroundPixels ??= new Map()); // by CSS colour: reading a canvas back takes long

/** [red, green, blue, alpha] of a CSS colour, 0 to 255. */
function pixel(colour) {
  if (!knownPixels.has(colour)) {
    const context = make("canvas", { width: 1, height: 1 }).getContext("2d");
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    knownPixels.set(colour, context.getImageData(0, 0, 1, 1).data);
  }
  return knownPixels.get(colour);
}
