// One line for the inputs that the robot has no camera for; a click shows them.

const button = make("button", { type: "button", class: "fold", "aria-expanded": "false" });
view.append(button);
button.addEventListener("click", () => {
  const open = document.querySelector(".left .cameras").classList.toggle("unfolded");
  button.setAttribute("aria-expanded", String(open));
});

function refresh() {
  button.textContent = props.value || "";
  view.hidden = !props.value;
}
watch("value", refresh);
refresh();
