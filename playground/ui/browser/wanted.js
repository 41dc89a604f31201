// Knows which plot of the chunk is wanted: of the run that is shown, in the units that are chosen, once
// the tab is open. A run's answer brings it along; whenever another one stands here, it is asked for.

let open = false;
let asked = "null"; // what it was last asked for: an answer that never comes is not asked for again
let timer = 0;

const place = document.getElementById("chunk-place");

function compare() {
  const run = window.playgroundRun;
  place.style.minHeight = run ? `${run.chunk_height}px` : ""; // what is below stays where it is
  // Gradio (6.31) puts back the value of before when a tab is opened for the first time.
  if (props.value.open !== open) props.value = { ...props.value, open };
  const { units, execute } = props.value;
  const now = JSON.stringify(run ? [run.key, units, execute] : null);
  const shown = JSON.stringify(props.shown ?? null);
  if (now === shown) asked = now;
  if (now === shown || now === asked || (run && !open)) return;
  asked = now;
  trigger("input");
}

/** Once all of an answer has arrived. */
function soon() {
  clearTimeout(timer);
  timer = setTimeout(compare, 0);
}

new IntersectionObserver((entries) => {
  open = entries.at(-1).isIntersecting;
  if (open) dispatchEvent(new Event("resize")); // the window may have changed while the plot was hidden
  soon();
}, { rootMargin: "100000px" }).observe(view); // wherever the open tab is scrolled to
watch("value", soon);
watch("shown", soon);
addEventListener("playground-run", soon);
soon();
