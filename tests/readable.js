// Texts of a page whose contrast with their ground is below 4.5 (WCAG 2.1, 1.4.3); only disabled controls may be.
const channel = part => (part /= 255) <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
const parse = colour => {
  const numbers = colour.match(/-?[0-9.]+(e-?[0-9]+)?/g).map(Number);
  return colour.startsWith("color(srgb") ? [...numbers.slice(0, 3).map(part => 255 * part), numbers[3] ?? 1] : numbers;
};
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const mix = (over, under, opacity = 1) => over.slice(0, 3)
  .map((part, at) => part * (over[3] ?? 1) * opacity + under[at] * (1 - (over[3] ?? 1) * opacity));
// the ground behind an element, and how opaque it is with what it lies in
const behind = element => {
  const layers = [];
  for (let one = element; one; one = one.parentElement) layers.unshift(getComputedStyle(one));
  let ground = matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18] : [255, 255, 255], opacity = 1;
  for (const style of layers) {
    opacity *= Number(style.opacity);
    ground = mix(parse(style.backgroundColor), ground, opacity);
  }
  return [ground, opacity];
};
const low = [];
for (const element of document.querySelectorAll("body *")) {
  const words = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
  if (!words || !element.checkVisibility() || ["SCRIPT", "STYLE"].includes(element.tagName)) continue;
  if (element.closest(":disabled, [aria-disabled=true]")) continue;
  const style = getComputedStyle(element), [ground, opacity] = behind(element);
  const ink = mix(parse(element.ownerSVGElement ? style.fill : style.color), ground, opacity);
  const [bright, dark] = [light(ink), light(ground)].sort((a, b) => b - a);
  const ratio = (bright + 0.05) / (dark + 0.05);
  if (ratio < 4.5) low.push(`${element.tagName}.${element.getAttribute("class")} ${element.textContent.slice(0, 30)} ${ratio.toFixed(2)}`);
}
return low;
