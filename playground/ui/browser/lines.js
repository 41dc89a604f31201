// Plain sentences about a run, in a list; nothing where there are none.

begin("", (lines) => view.replaceChildren(lines.length ? make("ul", { class: "compare" }, ...lines.map((line) => make("li", {}, line))) : ""));
