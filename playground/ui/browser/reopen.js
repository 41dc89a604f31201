// Reloads the page as soon as another start of the program answers.
async () => {
  const id = async () => (await (await fetch("config", { cache: "no-store" })).json()).app_id;
  const before = window.gradio_config.app_id;
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, 500));
    try {
      if ((await id()) !== before) return location.reload();
    } catch {
      // nobody answers meanwhile
    }
  }
}
