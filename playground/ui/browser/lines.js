// Plain sentences about a run, a paragraph each; nothing where there are none.

begin("", (lines) => view.replaceChildren(...lines.map((line) => make("p", { class: "compare" }, line))));
