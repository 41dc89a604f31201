// The recipe of the last run: to read, to copy, to save.

const said = make("p", { class: "status-line", role: "status" });

/** Without the clipboard's own interface, which browsers give to secure pages only, by selection. */
async function copy(text, block) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    getSelection().selectAllChildren(block);
    if (!document.execCommand("copy")) return "Press Ctrl C: the recipe is selected.";
  }
  return "Copied.";
}

function save(text, name) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

function button(label, onclick) {
  const node = make("button", { type: "button", class: "plain" }, label);
  node.addEventListener("click", onclick);
  return node;
}

begin("The recipe of a run appears here after it.", (value) => {
  const block = make("pre", { class: "text", tabindex: 0, "aria-label": "Recipe of the last run" }, value.text);
  said.textContent = "";
  view.replaceChildren(
    make(
      "div",
      { class: "actions" },
      button("Copy recipe", async () => { said.textContent = await copy(value.text, block); }),
      button("Save recipe (JSON)", () => save(value.text, `${value.file}.json`)),
      make("a", { class: "plain", href: value.link, download: true }, "Save everything (ZIP)"),
      said,
    ),
    make("p", { class: "notice" }, value.about),
    block,
  );
});
