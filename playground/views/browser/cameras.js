// The pictures that a policy saw, each with its camera's name.

/** cameras: {name, url, mode}, mode where there is one; whose: what a screen reader adds. */
function camerasSeen(cameras, whose) {
  return make("div", { class: "cameras-seen" }, ...cameras.map(({ name, url, mode = "" }) => make(
    "figure",
    { class: `seen ${mode}` },
    make("img", { src: url, alt: `${name} ${whose}` }),
    make("figcaption", {}, make("code", {}, name), make("span", {}, mode)),
  )));
}
