// Texts of a page whose contrast with their ground is below 4.5 (WCAG 2.1, 1.4.3).
const channel = part => (part /= 255) <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
const parse = colour => colour.match(/[0-9.]+/g).map(Number);
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const mix = (over, under) => over.slice(0, 3)
  .map((part, at) => part * (over[3] ?? 1) + under[at] * (1 - (over[3] ?? 1)));
const behind = element => {
  const layers = [];
  for (let one = element; one; one = one.parentElement) layers.unshift(parse(getComputedStyle(one).backgroundColor));
  const root = matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18] : [255, 255, 255];
  return layers.reduce((under, over) => mix(over, under), root);
};
const low = [];
for (const element of document.querySelectorAll("body *")) {
  const words = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
  if (!words || !element.checkVisibility() || ["SCRIPT", "STYLE"].includes(element.tagName)) continue;
  if (element.closest("[aria-pressed=false]")) continue;
  const style = getComputedStyle(element), ground = behind(element);
  const ink = mix(parse(element.ownerSVGElement ? style.fill : style.color), ground);
  const [bright, dark] = [light(ink), light(ground)].sort((a, b) => b - a);
  const ratio = (bright + 0.05) / (dark + 0.05);
  if (ratio < 4.5) low.push(`${element.tagName}.${element.getAttribute("class")} ${element.textContent.slice(0, 30)} ${ratio.toFixed(2)}`);
}
return low;
