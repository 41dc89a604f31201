// Examples to click: a picture and its prompt.

function refresh() {
  view.classList.add("examples");
  view.closest(".body").toggleAttribute("data-no-examples", !(props.value || []).length);
  view.replaceChildren(
    ...(props.value || []).map((example, index) => {
      const button = make(
        "button",
        { type: "button", "aria-label": `Run the example: ${example.prompt}` },
        make("img", { src: example.picture, alt: "" }),
        make("span", {}, example.prompt),
      );
      button.addEventListener("click", () => trigger("select", { index }));
      return button;
    }),
  );
}
watch("value", refresh);
refresh();
