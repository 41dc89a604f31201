// Gradio draws a plot anew with every update, and Plotly's own memory of the zoom goes with the old
// one. What a person zoomed to is put back while the axes stay the same (layout.uirevision).
() => {
  const zoomed = {};
  let revision = null;
  let plot = null;

  function meet(found) {
    plot = found;
    if (plot.layout.uirevision !== revision) for (const key of Object.keys(zoomed)) delete zoomed[key];
    revision = plot.layout.uirevision;
    if (Object.keys(zoomed).length) window.Plotly.relayout(plot, { ...zoomed });
    plot.on("plotly_relayout", (change) => {
      for (const [key, value] of Object.entries(change)) {
        const axis = key.match(/^[xy]axis\d*/);
        if (!axis) continue;
        if (key.endsWith(".autorange"))
          for (const end of [0, 1]) delete zoomed[`${axis[0]}.range[${end}]`];
        else zoomed[key] = value;
      }
    });
  }

  new MutationObserver(() => {
    const found = document.querySelector("#actions-plot .js-plotly-plot");
    if (found && found !== plot && found.on && found._fullLayout) meet(found);
  }).observe(document.querySelector("#tabs"), { childList: true, subtree: true });
}
