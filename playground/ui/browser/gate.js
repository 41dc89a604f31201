// Shows the page once its parts are there, see gate.css.
() => {
  const gate = document.getElementById("gate");
  if (!gate) return;
  const parts = ["strip", "prompt", "run", "rewordings", "examples", "picture-0", "absent", "link", "tour", "advanced", "tabs", "overview"];
  const arrived = new MutationObserver(open);
  function open() {
    if (!parts.every((part) => document.getElementById(part))) return;
    arrived.disconnect();
    gate.remove();
  }
  arrived.observe(document.body, { childList: true, subtree: true });
  open();
}
