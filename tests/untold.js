// Parts of a page that go on sideways and do not show it: neither `wider` nor a shade that stays in place.
const cut = [...document.querySelectorAll("body *")].filter(one => one.checkVisibility()
  && ["auto", "scroll"].includes(getComputedStyle(one).overflowX) && one.scrollWidth > one.clientWidth + 1);
const shaded = one => getComputedStyle(one).backgroundAttachment.includes("local");
const told = one => one.classList.contains("wider") || shaded(one);
const wrong = [...document.querySelectorAll(".wider")].filter(one => one.checkVisibility() && !cut.includes(one));
return [...cut.filter(one => !told(one)), ...wrong].map(one => one.outerHTML.slice(0, 90));
