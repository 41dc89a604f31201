// Shows the page once its parts are there, see gate.css, and marks from then on whether another tab
// than the first is open, which page.css asks for.
() => {
  const gate = document.getElementById("gate");
  if (!gate) return;
  const parts = ["strip", "prompt", "run", "rewordings", "examples", "picture-0", "absent", "link", "tour", "advanced", "tabs", "overview"];
  const arrived = new MutationObserver(open);
  function open() {
    if (!parts.every((part) => document.getElementById(part))) return;
    arrived.disconnect();
    gate.remove();
    const tabs = document.getElementById("tabs");
    const chosen = new MutationObserver(() => mark(tabs));
    chosen.observe(tabs, { attributes: true, attributeFilter: ["aria-selected"], subtree: true });
    mark(tabs);
  }
  function mark(tabs) {
    const first = tabs.querySelector("[role=tab]").getAttribute("aria-selected") === "true";
    tabs.closest(".body").toggleAttribute("data-other-tab", !first);
  }
  arrived.observe(document.body, { childList: true, subtree: true });
  open();
}
