"use strict";
// Charts as SVG, drawn as wide as there is room. A value is [estimate, low, high] or [estimate].
const SVG = document.createElementNS("http://www.w3.org/2000/svg", "svg").namespaceURI;

/** A new SVG element; text is never parsed. */
function draw(parent, tag, attributes = {}, text = "") {
  const made = document.createElementNS(SVG, tag);
  for (const name in attributes) made.setAttribute(name, attributes[name]);
  made.textContent = text;
  parent.append(made);
  return made;
}

function sheet(parent, width, height, name) {
  const made = draw(parent, "svg", {width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": name});
  draw(made, "title", {}, name);
  return made;
}

/** Three decimals; what rounds to 0 has no sign. */
const number = value => value === undefined || value === null ? "" : value.toFixed(3).replace(/^-(?!0\.000$)/, "−").replace("-", "");
const told = value => number(value[0]) + (value.length > 1 ? ` [${number(value[1])}, ${number(value[2])}]` : "");

/** Corners of the marks of a model's second and later modes and runs, around the origin. */
const CORNERS = [[[0, -1.35], [1.35, 0], [0, 1.35], [-1.35, 0]], [[0, -1.2], [1.25, 1], [-1.25, 1]], [[0, 1.2], [1.25, -1], [-1.25, -1]],
  [[1.2, 0], [-1, 1.25], [-1, -1.25]], [[-1.2, 0], [1, 1.25], [1, -1.25]]];

/** A result's mark: baselines are squares, `_cut` and what cannot be told apart hollow. */
function mark(parent, result, x, y, size = 3.6, hollow = false) {
  const classes = `mark${hollow || result.name.endsWith("_cut") ? " hollow" : ""}`;
  if (result.baseline) draw(parent, "rect", {class: classes, x: x - size, y: y - size, width: 2 * size, height: 2 * size});
  else if (result.mark) {
    const corners = CORNERS[(result.mark - 1) % CORNERS.length];
    draw(parent, "polygon", {class: classes, points: corners.map(([right, down]) => `${x + size * right},${y + size * down}`).join(" ")});
  } else draw(parent, "circle", {class: classes, cx: x, cy: y, r: size});
}

const DASHES = {boosting: "7 3", boosting_cut: "7 3 1.5 3", logistic: "3 3", logistic_cut: "3 3 1 3", frequency: "1 3", copy: "1 3", copy_cut: "1 3", knn: "3 3", knn_cut: "3 3 1 3", linear: "7 3", linear_cut: "7 3 1.5 3", list_frequency: "1 3", list_only: "3 3"};
const MARK_DASHES = ["none", "8 2", "2 2", "8 2 2 2", "12 3 3 3", "5 5"];
const coloured = result => ({style: `color: var(--${result.colour})`});

/** Round steps that cut a range into about `count` parts. */
function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map(factor => factor * power).find(size => size >= rough);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({length: Math.floor(high / step + 1e-9) - first + 1}, (_, at) => (first + at) * step);
}

const places = steps => steps.length > 1 && steps[1] - steps[0] < 0.0999 ? 2 : 1;

/** The range of all ends of values, with a little room; `base` is in it. */
function range(values, base) {
  const ends = [base, ...values.flat()];
  const low = Math.min(...ends), high = Math.max(...ends), room = (high - low || 0.1) * 0.04;
  return [low === base ? low : low - room, high === base ? high : high + room];
}

/** Bars from `base` with whiskers: rows of {label, note, values (one a result), strong, heading}.
 *  `longest`: the letters of the longest label, for which there is room up to half of the width. */
function barChart(parent, title, rows, base, results, bounds, longest) {
  const width = Math.max(280, parent.clientWidth), wide = width > 440;
  const left = wide ? Math.min(Math.max(196, 6.4 * longest + 12), width / 2) : 2, right = 44, top = 22;
  const [low, high] = bounds;
  const x = value => left + (width - left - right) * (value - low) / (high - low);
  const named = results.length <= 4;
  const pitch = named ? 13 : 9, gap = 9, above = wide ? 0 : 17;
  const drawn = rows.map(row => ({...row, shown: row.heading ? [] : results.filter(result => row.values[result.at])}));
  const tall = row => row.heading ? 24 : above + Math.max(row.shown.length * pitch, 14) + gap;
  const height = top + drawn.reduce((sum, row) => sum + tall(row), 0) + 4;
  const svg = sheet(parent, width, height, title);
  const steps = ticks(low, high, wide ? 6 : 4);
  for (const step of steps) {
    draw(svg, "line", {class: "grid", x1: x(step), x2: x(step), y1: top - 4, y2: height});
    draw(svg, "text", {class: "small", x: x(step), y: 11, "text-anchor": "middle"}, step.toFixed(places(steps)));
  }
  draw(svg, "line", {class: "base", x1: x(base), x2: x(base), y1: top - 4, y2: height});
  let y = top;
  for (const row of drawn) {
    if (row.heading) draw(svg, "text", {class: "head", x: 2, y: y + 17}, row.label);
    else barRow(svg, row, {y: y + above, left, width, base, pitch, x, wide, named});
    y += tall(row);
  }
}

function barRow(svg, row, place) {
  const {left, base, pitch, x, wide, named} = place;
  const middle = place.y + Math.max(row.shown.length * pitch, 14) / 2;
  const classes = row.strong ? "strong" : "";
  const label = draw(svg, "text", wide
    ? {class: classes, x: left - 10, y: middle + (row.note ? -3 : 4), "text-anchor": "end"}
    : {class: classes, x: 2, y: place.y - 4}, row.label + (row.note && !wide ? `, ${row.note}` : ""));
  if (wide && row.note) draw(svg, "text", {class: "small", x: left - 10, y: middle + 11, "text-anchor": "end"}, row.note);
  fit(label, wide ? left - 12 : place.width);
  row.shown.forEach((result, at) => {
    const value = row.values[result.at], y = place.y + (at + 0.5) * pitch;
    const group = draw(svg, "g", {class: "row", ...coloured(result)});
    draw(group, "title", {}, `${row.label}, ${result.name}: ${told(value)}`);
    const [from, to] = [x(base), x(value[0])].sort((a, b) => a - b);
    draw(group, "rect", {class: "bar", x: from, y: y - pitch / 2 + 1, width: to - from, height: pitch - 2});
    if (value.length > 1) draw(group, "line", {class: "whisker", x1: x(value[1]), x2: x(value[2]), y1: y, y2: y});
    mark(group, result, x(value[0]), y, named ? 3.6 : 2.9);
    if (named) draw(svg, "text", {class: "number", x: place.width - 36, y: y + 4}, number(value[0]));
  });
}

/** Cut a label that is too long for its place; the whole stands in its tooltip. */
function fit(label, room) {
  const whole = label.textContent;
  const long = label.getComputedTextLength();
  if (long <= room) return;
  label.textContent = whole.slice(0, Math.floor(whole.length * room / long) - 1) + "…";
  draw(label, "title", {}, whole);
}

/** Differences with intervals around 0: rows of {label, note, value, lower}. */
function forest(parent, title, rows) {
  const width = Math.max(280, parent.clientWidth), wide = width > 560;
  const longest = Math.max(...rows.map(row => row.label.length));
  const left = wide ? Math.min(0.42 * width, 6.8 * longest + 24) : 4, right = wide ? 186 : 6, top = 22, pitch = wide ? 24 : 42;
  const [low, high] = range(rows.map(row => row.value), 0);
  const x = value => left + (width - left - right) * (value - low) / (high - low);
  const height = top + rows.length * pitch + 4;
  const svg = sheet(parent, width, height, title);
  const steps = ticks(low, high, wide ? 6 : 4);
  for (const step of steps) {
    draw(svg, "line", {class: "grid", x1: x(step), x2: x(step), y1: top - 4, y2: height});
    draw(svg, "text", {class: "small", x: x(step), y: 11, "text-anchor": "middle"}, (step > 1e-9 ? "+" : "") + step.toFixed(places(steps)).replace("-", "−"));
  }
  draw(svg, "line", {class: "base", x1: x(0), x2: x(0), y1: top - 4, y2: height});
  rows.forEach((row, at) => {
    const [value, from, to] = row.value;
    const apart = from > 0 || to < 0, better = (value > 0) !== row.lower;
    const y = top + at * pitch + (wide ? pitch / 2 : 30);
    const words = (value > 0 ? "+" : "") + told(row.value);
    const group = draw(svg, "g", {style: `color: var(--${!apart ? "soft" : better ? "good" : "bad"})`});
    draw(group, "title", {}, `${row.label}: ${words}${row.note ? `, ${row.note}` : ""}`);
    if (from !== undefined) draw(group, "line", {class: "whisker", x1: x(from), x2: x(to), y1: y, y2: y});
    mark(group, {name: ""}, x(value), y, 4.2, !apart);
    const label = draw(svg, "text", wide ? {x: left - 10, y: y + 4, "text-anchor": "end"} : {x: 2, y: y - 14}, row.label);
    const said = draw(svg, "text", {class: `number${apart ? " strong" : ""}`, x: wide ? width - right + 12 : width - 2,
      y: wide ? y + 4 : y - 14, "text-anchor": wide ? "start" : "end"}, words);
    fit(label, wide ? left - 12 : width - said.getComputedTextLength() - 12);
  });
}

/** Lines of results in a square: series of {result, x, y, sizes, dashed}; guides are plain lines. */
function curveChart(parent, title, axes, series, guides) {
  const width = Math.max(220, Math.min(parent.clientWidth, 340)), height = width * 0.88;
  const left = 46, bottom = 34, top = 6, right = 8;
  const [[xLow, xHigh], [yLow, yHigh]] = [axes.x, axes.y];
  const x = value => left + (width - left - right) * (value - xLow) / (xHigh - xLow);
  const y = value => height - bottom - (height - bottom - top) * (Math.max(yLow, value) - yLow) / (yHigh - yLow);
  const svg = sheet(parent, width, height, title);
  const [across, up] = [ticks(xLow, xHigh, 5), ticks(yLow, yHigh, 5)];
  for (const step of across) {
    draw(svg, "line", {class: "grid", x1: x(step), x2: x(step), y1: top, y2: height - bottom});
    draw(svg, "text", {class: "small", x: x(step), y: height - bottom + 14, "text-anchor": "middle"}, step.toFixed(places(across)));
  }
  for (const step of up) {
    draw(svg, "line", {class: "grid", x1: left, x2: width - right, y1: y(step), y2: y(step)});
    draw(svg, "text", {class: "small", x: left - 5, y: y(step) + 4, "text-anchor": "end"}, step.toFixed(places(up)).replace("-", "−"));
  }
  draw(svg, "text", {class: "small", x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle"}, axes.xName);
  const name = draw(svg, "text", {class: "small", x: 0, y: 0, "text-anchor": "middle"}, axes.yName);
  name.setAttribute("transform", `translate(8 ${(height - bottom + top) / 2}) rotate(-90)`);
  const path = (xs, ys) => xs.map((value, at) => `${at ? "L" : "M"}${x(value).toFixed(1)} ${y(ys[at]).toFixed(1)}`).join("");
  for (const guide of guides) draw(svg, "path", {class: "base", d: path(guide.x, guide.y)});
  for (const one of series) {
    const group = draw(svg, "g", coloured(one.result));
    draw(group, "title", {}, one.result.name + (one.dashed ? ", recalibrated" : ""));
    const dash = one.dashed ? "4 3" : one.result.baseline ? DASHES[one.result.name] : MARK_DASHES[one.result.mark % MARK_DASHES.length];
    draw(group, "path", {class: "curve", d: path(one.x, one.y), "stroke-dasharray": dash});
    if (one.sizes) {
      const most = Math.max(...one.sizes);
      one.x.forEach((value, at) => mark(group, one.result, x(value), y(one.y[at]), 1.4 + 3 * Math.sqrt(one.sizes[at] / most), one.dashed));
    }
  }
}
