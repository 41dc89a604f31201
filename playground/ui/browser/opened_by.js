// Hands the address's query on with what the browser keeps, and takes it out of the address: a reload
// then shows what its visitor made of it.
(browser) => {
  const query = location.search;
  if (!query) return browser;
  const theme = new URLSearchParams(query).get("__theme");
  history.replaceState(null, "", location.pathname + (theme ? `?__theme=${encodeURIComponent(theme)}` : ""));
  return { ...browser, query };
}
