// Where one clicked patch, or a weighed prompt, leads.

begin("Click a number, or a patch of the picture, to see where that one patch leads.", (value) => {
  view.replaceChildren(changedPath(value));
});
