// Keeps what a visitor has put in, in their own browser; not before the page has been set from it.
(browser, ...form) => (browser && browser.key ? { ...browser, form } : browser)
