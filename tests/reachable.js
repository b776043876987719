// Parts of a page that a keyboard does not reach, and controls without a name.
const inert = [...document.querySelectorAll("button, select, input, a, summary")].filter(one => one.tabIndex < 0);
const scrolled = [...document.querySelectorAll("body *")].filter(one =>
  ["auto", "scroll"].includes(getComputedStyle(one).overflowX) && one.scrollWidth > one.clientWidth + 1
  && one.tabIndex < 0 && !one.querySelector("button, a"));
const nameless = [...document.querySelectorAll("button, select, input, svg[role=img], a")].filter(one =>
  !(one.textContent.trim() || one.getAttribute("aria-label") || one.closest("label")?.textContent.trim()));
return [...inert, ...scrolled, ...nameless].map(one => one.outerHTML.slice(0, 90));
