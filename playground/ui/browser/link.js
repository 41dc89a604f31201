// Copies a link that reopens what is shown. What is as on a fresh page is left out of it.
async (value, robot, prompt, scene, policies, steps, samples, seed, temperature, tokens, decoding, weight, cut) => {
  const selected = document.querySelector("#tabs button[role=tab][aria-selected=true]");
  const tabs = [...document.querySelectorAll("#tabs button[role=tab]")];
  const usual = { steps: 10, samples: 1, seed: 0, temperature: 0, tokens: 256, weight: 1, cuts: "", decoding: "as the policy is meant to" };
  const shown = { prompt, robot, scene, policies: policies.join(","), steps, samples, seed, temperature, tokens, decoding: decoding.split(",")[0], weight, cuts: cut.values.join(";") };
  if (selected && selected !== tabs[0]) shown.tab = selected.textContent.trim();
  const query = new URLSearchParams();
  for (const [name, one] of Object.entries(shown)) if (one !== null && one !== undefined && one !== usual[name]) query.set(name, one);
  const address = `${location.origin}${location.pathname}?${query}`;
  try {
    await navigator.clipboard.writeText(address);
    return { ...value, address, say: "Copied" };
  } catch {
    return { ...value, address, say: "" }; // browsers give the clipboard to secure pages only
  }
}
