"use strict";
// Charts as SVG. Each takes what it draws and returns an element.
const SVG = "http://www.w3.org/2000/svg";

function make(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "line", "circle", "rect", "path", "text", "title"].includes(name);
  const element = svg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "onclick") element.addEventListener("click", value);
    else if (value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

const three = (value) => value.toFixed(3);
const short = (text, most) => text.length > most ? text.slice(0, most - 1) + "…" : text;

// Rows of estimates with whiskers, grouped under labels:
// groups = [{label, values: [{name, colour, value: [estimate, low, high]}]}]
function whiskers(groups, options) {
  const { low = 0, high = 1, guide, labelled = false } = options;
  const left = options.left ?? 150, right = 46, width = options.width ?? 640, step = 13, gap = 9;
  const rows = groups.reduce((sum, group) => sum + group.values.length * step + gap, 0);
  const x = (value) => left + (width - left - right) * (value - low) / (high - low || 1);
  const height = rows + 26;
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": options.title });
  for (let tick = 0; tick <= 4; tick++) {
    const value = low + (high - low) * tick / 4;
    svg.append(make("line", { x1: x(value), x2: x(value), y1: 4, y2: rows, class: "axis" }));
    svg.append(make("text", { x: x(value), y: rows + 16, "text-anchor": "middle", class: "soft" }, value.toFixed(2)));
  }
  if (guide !== undefined) svg.append(make("line", { x1: x(guide), x2: x(guide), y1: 4, y2: rows, class: "guide" }));
  let y = gap;
  for (const group of groups) {
    const middle = y + group.values.length * step / 2;
    if (group.label) svg.append(make("text", { x: left - 8, y: middle + 3, "text-anchor": "end" }, short(group.label, Math.floor(left / 6.2))));
    for (const { name, colour, value, filled = true } of group.values) {
      const [estimate, from, to] = value, middle = y + step / 2;
      const row = make("g", {}, make("title", {}, `${group.label ?? ""} ${name}: ${three(estimate)} [${three(from)}, ${three(to)}]`));
      row.append(make("line", { x1: x(Math.max(from, low)), x2: x(Math.min(to, high)), y1: middle, y2: middle, stroke: colour, "stroke-width": 2 }));
      row.append(make("circle", { cx: x(estimate), cy: middle, r: 3.6, fill: filled ? colour : "var(--card)", stroke: colour, "stroke-width": 1.6 }));
      if (labelled) row.append(make("text", { x: width - right + 6, y: middle + 4 }, three(estimate)));
      svg.append(row);
      y += step;
    }
    y += gap;
  }
  return svg;
}

// Lines in a unit square or another window: lines = [{name, colour, points, dashed, dots}]
function lines(series, options) {
  const { title, xlabel, ylabel, low = 0, high = 1, xhigh = 1, guides = [] } = options;
  const width = 340, height = 290, left = 40, bottom = 36, top = 8, right = 10;
  const x = (value) => left + (width - left - right) * value / xhigh;
  const y = (value) => height - bottom - (height - bottom - top) * (value - low) / (high - low || 1);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  for (let tick = 0; tick <= 4; tick++) {
    const across = xhigh * tick / 4, up = low + (high - low) * tick / 4;
    svg.append(make("line", { x1: left, x2: width - right, y1: y(up), y2: y(up), class: "axis" }));
    svg.append(make("text", { x: left - 6, y: y(up) + 4, "text-anchor": "end", class: "soft" }, up.toFixed(2)));
    svg.append(make("text", { x: x(across), y: height - bottom + 15, "text-anchor": "middle", class: "soft" }, across.toFixed(2)));
  }
  svg.append(make("text", { x: (width + left) / 2, y: height - 4, "text-anchor": "middle" }, xlabel));
  svg.append(make("text", { x: 0, y: 0, transform: `translate(10 ${height / 2 - 10}) rotate(-90)`, "text-anchor": "middle" }, ylabel));
  const path = (points) => points.map(([a, b], n) => `${n ? "L" : "M"}${x(a).toFixed(1)} ${y(Math.max(low, Math.min(high, b))).toFixed(1)}`).join("");
  for (const guide of guides) svg.append(make("path", { d: path(guide), class: "guide" }));
  for (const { name, colour, points, dashed, dots } of series) {
    const group = make("g", {}, make("title", {}, name));
    group.append(make("path", { d: path(points), fill: "none", stroke: colour, "stroke-width": 1.8, "stroke-dasharray": dashed ? "4 3" : undefined }));
    if (dots) for (const [a, b, n] of points) {
      group.append(make("circle", { cx: x(a), cy: y(b), r: 2 + Math.min(3, Math.log10(n + 1)), fill: dashed ? "var(--card)" : colour, stroke: colour },
        make("title", {}, `${name}: said ${three(a)}, was ${three(b)}, ${n} samples`)));
    }
    svg.append(group);
  }
  return make("div", {}, make("h3", {}, title), svg);
}
