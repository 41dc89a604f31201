// What one model received: pictures after padding, the exact text, its tokens.

function token([id, text]) {
  return make("li", { title: `token ${id}` }, visible(text));
}

begin("What the models receive appears here after a run.", (value) => {
  const cut = value.truncated ? `, ${value.truncated} more were cut off` : "";
  view.replaceChildren(
    heading(value.policy),
    make("h3", {}, "Pictures"),
    camerasSeen(value.cameras, "as the model gets it"),
    make("p", { class: "notice" }, value.pictures),
    make("h3", {}, "Text"),
    make("pre", { class: "text", tabindex: 0 }, value.text.replace(/\n/g, "⏎\n")),
    make("h3", {}, `Tokens`, make("small", {}, ` ${value.tokens.length} of at most ${value.limit}${cut}`)),
    make("ul", { class: "pieces" }, ...value.tokens.map(token)),
    make("h3", {}, "Recipe"),
    make("dl", { class: "recipe" }, ...value.recipe.flatMap(([k, v]) => [make("dt", {}, k), make("dd", {}, v)])),
  );
});
