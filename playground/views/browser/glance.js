// Every policy's path on one small picture, and a sentence each. A person sees here what any tab is
// about. The value names a run that the overview was sent.

begin("The paths of both policies appear here.", ({ policies }) => {
  const rows = Object.values(policies);
  const cameras = rows.map((row) => ({ row, camera: (row.flow || row.fast || {}).camera || row.path }));
  const known = cameras.filter(({ camera }) => camera);
  const lines = rows.map(({ policy, sentence }) =>
    make("p", { class: "says", "data-family": policy.family }, make("span", { class: "dot", "aria-hidden": "true" }), make("strong", {}, policy.title), ` ${sentence}`),
  );
  if (!known.length) {
    const picture = rows.map((row) => row.picture).find(Boolean);
    const photo = picture ? make("img", { class: "alone", src: picture.url, alt: "Camera picture" }) : "";
    return view.replaceChildren(photo, ...lines);
  }
  const [first, ...others] = known.map(({ row, camera }) => {
    const drawn = new Camera(camera, "Camera picture with the paths of every policy");
    drawn.svg.dataset.family = row.policy.family;
    for (const { curve } of drawn.grippers) drawn.last = curve.shape[0] - 1;
    drawn.draw(drawn.last ?? null);
    return drawn;
  });
  for (const other of others) first.node.querySelector(".photo").append(other.svg);
  view.replaceChildren(first.node, ...lines);
});
