// Reloads the page as soon as another start of the program answers. A page of a start that may yet
// go back to the former one watches until its policies are loaded.
async () => {
  if (window.playgroundFollows) return; // one watch is enough
  window.playgroundFollows = true;
  const before = window.gradio_config.app_id;
  const pause = () => new Promise((resolve) => setTimeout(resolve, 500));
  const ready = () => fetch("readyz").then((answer) => answer.ok, () => false);
  const starting = !(await ready());
  for (;;) {
    await pause();
    try {
      const answer = await fetch("gradio_api/app_id", { cache: "no-store", signal: AbortSignal.timeout(5000) });
      if ((await answer.json()).app_id !== before) return location.reload();
      if (starting && (await ready())) return;
    } catch {
      // nobody answers meanwhile
    }
  }
}
