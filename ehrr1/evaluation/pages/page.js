const data = JSON.parse(document.getElementById("data").textContent);
const results = data.results.map((result, at) => ({...result, at}));
const hidden = new Set(results.filter(result => result.hidden).map(result => result.at));
const visible = () => results.filter(result => !hidden.has(result.at));
const part = id => document.querySelector(`#${id} .body`);
const redraws = [];

/** A new element: its classes, its text (never parsed as HTML), what it is put into. */
function add(parent, tag, classes = "", text = "") {
  const made = document.createElement(tag);
  if (classes) made.className = classes;
  made.textContent = text;
  parent.append(made);
  return made;
}

/** A result's mark beside its name. */
function chip(parent, result) {
  const made = add(parent, "span", "result");
  const svg = draw(made, "svg", {width: 12, height: 12, "aria-hidden": "true", ...coloured(result)});
  mark(svg, result, 6, 6, 4);
  made.append(result.name);
  return made;
}

/** Buttons, or a list where there are many, one of which is chosen. */
function choose(id, names, label, chosen) {
  const place = document.querySelector(`#${id} .choice`);
  let now = 0;
  if (names.length < 2) return () => now;
  if (names.length > 6) {
    const list = add(place, "select");
    list.setAttribute("aria-label", label);
    for (const name of names) add(list, "option", "", name);
    list.addEventListener("change", () => { now = list.selectedIndex; chosen(); });
    return () => now;
  }
  const buttons = names.map((name, at) => {
    const button = add(place, "button", "", name);
    button.type = "button";
    button.setAttribute("aria-pressed", at === 0);
    button.addEventListener("click", () => {
      now = at;
      buttons.forEach((other, place) => other.setAttribute("aria-pressed", place === at));
      chosen();
    });
    return button;
  });
  return () => now;
}

/** A section that is drawn again when results are toggled or its width changes. */
function section(id, there, paint) {
  document.getElementById(id).hidden = !there;
  if (!there) return () => {};
  const again = () => { part(id).replaceChildren(); paint(part(id)); };
  redraws.push(again);
  return again;
}

// --- tables ---------------------------------------------------------------------------------

const isNumber = cell => typeof cell === "number" || Array.isArray(cell);
const worth = cell => Array.isArray(cell) ? cell[0] : cell && cell.result !== undefined ? cell.result : cell;
const LOWER = /^(Brier|ECE|log loss)/;

/** By number or by text; what is missing comes last. */
function order(one, two, down) {
  const [a, b] = [worth(one), worth(two)];
  if (a === null || b === null || a === "" || b === "") return (a === null || a === "") - (b === null || b === "");
  const sign = typeof a === "number" ? a - b : String(a).localeCompare(String(b), "en", {numeric: true});
  return down ? -sign : sign;
}

/** A table whose headings sort it. `sorting` is kept between drawings: {column, down}. */
function table(parent, spec, sorting, best = false) {
  const scroll = add(parent, "div", spec.rows.length > 30 ? "scroll tall" : "scroll");
  scroll.tabIndex = 0;
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-label", spec.label);
  const grid = add(scroll, "table");
  const row = add(add(grid, "thead"), "tr");
  const rows = spec.rows.filter(cells => cells.every(cell => !(cell && hidden.has(cell.result))));
  const numeric = spec.head.map((_, at) => rows.some(cells => isNumber(cells[at])));
  const body = add(grid, "tbody");
  const fill = () => {
    body.replaceChildren();
    const sorted = sorting.column === undefined ? rows
      : [...rows].sort((a, b) => order(a[sorting.column], b[sorting.column], sorting.down));
    const compares = best && spec.head[0] === "result"; // rows of a table by task are not rivals
    const tops = spec.head.map((name, at) => compares && numeric[at] ? peak(rows.map(cells => cells[at]), LOWER.test(name)) : null);
    for (const cells of sorted) {
      const line = add(body, "tr");
      cells.forEach((cell, at) => fillCell(line, cell, numeric[at], tops[at]));
    }
    [...row.children].forEach((head, at) => {
      head.setAttribute("aria-sort", at !== sorting.column ? "none" : sorting.down ? "descending" : "ascending");
    });
  };
  spec.head.forEach((name, at) => {
    const head = add(row, "th", numeric[at] ? "" : "text");
    head.scope = "col";
    const button = add(head, "button", "", name);
    button.type = "button";
    button.addEventListener("click", () => {
      sorting.down = sorting.column === at ? !sorting.down : numeric[at];
      sorting.column = at;
      fill();
    });
  });
  fill();
  if (scroll.scrollWidth <= scroll.clientWidth) return;
  scroll.classList.add("wider");
  add(parent, "p", "hint", "Wider than the page: scroll sideways.");
}

function peak(cells, lower) {
  const values = cells.filter(Array.isArray).map(worth);
  return values.length > 1 ? Math[lower ? "min" : "max"](...values) : null;
}

function fillCell(line, cell, numeric, top) {
  const place = add(line, "td", numeric ? "" : "text");
  if (cell === null || cell === "") return;
  if (cell.result !== undefined) { chip(place, results[cell.result]); return; }
  if (!isNumber(cell)) {
    place.textContent = cell;
    if (cell.length > 40) place.classList.add("long");
    return;
  }
  if (!Array.isArray(cell)) { place.textContent = cell.toLocaleString("en"); return; }
  add(place, "span", cell[0] === top ? "best" : "", number(cell[0]));
  if (cell.length > 1) add(place, "small", "", `${number(cell[1])} – ${number(cell[2])}`);
}

/** A section of tables: all of them, or one that is chosen. */
function tables(id, specs, {pick = false, best = false} = {}) {
  const sortings = (specs || []).map(() => ({}));
  const names = (specs || []).map(spec => spec.label);
  let now = () => 0;
  const again = section(id, names.length, place => specs.forEach((spec, at) => {
    if (pick && at !== now()) return;
    const box = add(place, "div");
    if (!pick && specs.length > 1) add(box, "h3", "", spec.label);
    table(box, spec, sortings[at], best);
  }));
  if (pick && names.length) now = choose(id, names, "Table", again);
}

// --- charts ---------------------------------------------------------------------------------

/** Long charts stand in two columns where there is room, on the same scale. */
function splitBars(place, chart) {
  const shown = visible();
  const rows = chart.rows.filter(row => row.heading || shown.some(result => row.values[result.at]));
  if (!shown.length || !rows.some(row => !row.heading)) { add(place, "p", "soft", "No result is chosen."); return; }
  const values = rows.flatMap(row => row.heading ? [] : shown.map(result => row.values[result.at]).filter(Boolean));
  const bounds = range(values, chart.base);
  const halves = place.clientWidth > 980 && rows.length > 5 ? cut(rows) : [rows];
  const columns = add(place, "div", halves.length > 1 ? "two" : "");
  const boxes = halves.map(() => add(columns, "div"));
  const longest = Math.max(...rows.map(row => row.label.length));
  halves.forEach((half, at) => barChart(boxes[at], chart.title, half, chart.base, shown, bounds, longest));
}

/** Two halves about as long; a heading stays with what is under it. */
function cut(rows) {
  const half = Math.ceil(rows.length / 2);
  const heads = rows.map((row, at) => row.heading ? at : -1).filter(at => at > 0);
  const near = heads.sort((a, b) => Math.abs(a - half) - Math.abs(b - half))[0] ?? half;
  return [rows.slice(0, near), rows.slice(near)];
}

function charts(id, specs) {
  let now = () => 0;
  const again = section(id, specs && specs.length, place => splitBars(place, specs[now()]));
  if (specs && specs.length) now = choose(id, specs.map(spec => spec.title), "Chart", again);
}

function differences() {
  const names = Object.keys(data.differences || {});
  let now = () => 0;
  const again = section("differences", names.length, place => {
    forest(place, names[now()], data.differences[names[now()]]);
    const notes = new Set(data.differences[names[now()]].map(row => row.note).filter(Boolean));
    if (notes.size) table(place, {label: "Matched samples", head: ["difference", "matched"],
      rows: data.differences[names[now()]].map(row => [row.label, row.note])}, {});
  });
  if (names.length) now = choose("differences", names, "What is compared", again);
}

const UNIT = [0, 1];

function curves() {
  const tasks = data.curves || [];
  let now = () => 0, calibrated = {checked: false};
  const again = section("curves", tasks.length, place => {
    const task = tasks[now()];
    document.querySelector("#curves > .soft").textContent = `${task.title}: ${task.samples.toLocaleString("en")} samples of ` +
      `${task.patients.toLocaleString("en")} patients, ${(100 * task.prevalence).toFixed(1)} % yes. A mark of a reliability diagram is as ` +
      "large as its bin; dashed: recalibrated on validation patients." +
      (now() ? "" : " The numbers below are means over tasks.");
    const grid = add(place, "div", "four");
    const series = task.series.map(one => ({...one, result: results[one.result]})).filter(one => !hidden.has(one.result.at));
    roc(grid, series);
    if (series.some(one => one.pr)) {
      pr(grid, series, task);
      reliability(grid, series, calibrated.checked);
      benefit(grid, series, task, calibrated.checked);
    }
  });
  if (!tasks.length) return;
  now = choose("curves", tasks.map(task => task.title), "Task", again);
  if (!tasks.some(task => task.series.some(one => one.reliability_calibrated))) return;
  const label = add(document.querySelector("#curves .choice"), "label");
  calibrated = add(label, "input");
  calibrated.type = "checkbox";
  calibrated.checked = results.length <= 3;
  label.append("recalibrated");
  calibrated.addEventListener("change", again);
}

function panel(grid, title, axes, series, guides, value) {
  const box = add(grid, "div");
  add(box, "h3", "", title);
  curveChart(box, title, axes, series, guides);
  if (!value) return;
  const key = add(box, "ul", "key");
  for (const one of series.filter(one => !one.dashed && one[value])) {
    const line = add(key, "li");
    chip(line, one.result);
    add(line, "b", "", number(one[value][0]));
    if (one[value].length > 1) add(line, "span", "soft", `${number(one[value][1])} – ${number(one[value][2])}`);
  }
}

function roc(grid, series) {
  const lines = series.map(one => ({...one, x: one.roc[0], y: one.roc[1]}));
  panel(grid, "ROC, AUROC", {x: UNIT, y: UNIT, xName: "false positive rate", yName: "true positive rate"}, lines, [{x: UNIT, y: UNIT}], "auroc");
}

function pr(grid, series, task) {
  const lines = series.filter(one => one.pr).map(one => ({...one, x: one.pr[0], y: one.pr[1]}));
  const guide = {x: UNIT, y: [task.prevalence, task.prevalence]};
  panel(grid, "Precision and recall, AUPRC", {x: UNIT, y: UNIT, xName: "recall", yName: "precision"}, lines, [guide], "auprc");
}

function reliability(grid, series, calibrated) {
  const lines = (name, dashed) => series.filter(one => one[name])
    .map(one => ({...one, x: one[name].x, y: one[name].y, sizes: one[name].n, dashed}));
  panel(grid, "Reliability, ECE", {x: UNIT, y: UNIT, xName: "probability of yes", yName: "how often yes"},
    [...lines("reliability", false), ...(calibrated ? lines("reliability_calibrated", true) : [])], [{x: UNIT, y: UNIT}], "ece");
}

function benefit(grid, series, task, calibrated) {
  const lines = (name, dashed) => series.filter(one => one[name]).map(one => ({...one, x: data.thresholds, y: one[name], dashed}));
  const ends = [data.thresholds[0], data.thresholds.at(-1)];
  const top = Math.max(0.02, task.prevalence, ...series.flatMap(one => one.net || [])) * 1.08;
  const guides = [{x: data.thresholds, y: task.everybody}, {x: ends, y: [0, 0]}];
  panel(grid, "Decision curve", {x: [0, 0.5], y: [-top / 4, top], xName: "threshold (dotted: act on all, on nobody)", yName: "net benefit"},
    [...lines("net", false), ...(calibrated ? lines("net_calibrated", true) : [])], guides);
}

// --- cases ----------------------------------------------------------------------------------

function verdict(one) {
  if (one.probability !== null) {
    const right = one.said[0] === one.truth[0];
    return [right ? "good" : "bad", `${right ? "right" : "wrong"}: said ${one.said[0]}, was ${one.truth[0]}`];
  }
  if (one.text) return ["part", `words in common: F1 ${one.goodness.toFixed(2)}`];
  return [one.goodness === 1 ? "good" : one.goodness ? "part" : "bad", `F1 ${one.goodness.toFixed(2)}`];
}

function cases() {
  const place = part("cases");
  if (!data.cases) { document.getElementById("cases").hidden = true; return; }
  if (!data.cases.length) { add(place, "p", "soft", data.no_cases); return; }
  const kinds = {all: "all", wrong: "bad", partly: "part", right: "good"};
  const made = data.cases.map(one => openable(place, one));
  const there = Object.keys(kinds).filter(name => name === "all" || made.some(one => one.kind === kinds[name]));
  const now = choose("cases", there, "Which cases", () => {
    for (const one of made) one.element.hidden = now() > 0 && one.kind !== kinds[there[now()]];
  });
}

function openable(place, one) {
  const element = add(place, "details", "case");
  const summary = add(element, "summary");
  const [kind, words] = verdict(one);
  add(summary, "b", "", one.task);
  add(summary, "span", `badge ${kind}`, words);
  if (one.probability !== null) add(summary, "span", "", `P(yes) ${number(one.probability)}`);
  const result = results.find(result => result.name === one.result);
  if (result) chip(summary, result);
  add(summary, "small", "", one.sample);
  element.addEventListener("toggle", () => { if (element.open && element.children.length === 1) inside(element, one); });
  return {element, kind};
}

function inside(element, one) {
  const grid = add(element, "div", "inside");
  add(grid, "p", "question", one.question);
  const [record, answer] = [add(grid, "div"), add(grid, "div")];
  add(record, "h3", "", "Record");
  add(record, "pre", "", one.context).tabIndex = 0;
  if (one.text || one.probability !== null) {
    add(answer, "h3", "", "Truth");
    add(answer, "pre", "", one.truth.join("\n"));
    add(answer, "h3", "", "Answer");
    add(answer, "pre", "", one.said.join("\n"));
  } else items(answer, one);
  if (one.completion === null) return;
  add(answer, "h3", "", "As written");
  add(answer, "pre", "", one.completion).tabIndex = 0;
}

/** Items that were right, missed, and said in excess. */
function items(parent, one) {
  const [said, truth] = [one.said, one.truth].map(lines => new Map(lines.filter(Boolean).map(line => [line.toLowerCase().trim(), line])));
  const lists = [["hit", "Right", [...truth].filter(([key]) => said.has(key))],
    ["missed", "Missed", [...truth].filter(([key]) => !said.has(key))],
    ["extra", "Said, and not so", [...said].filter(([key]) => !truth.has(key))]];
  for (const [classes, title, list] of lists) {
    if (!list.length) continue;
    add(parent, "h3", classes, `${title} (${list.length})`);
    const place = add(parent, "ul");
    for (const [, line] of list) add(place, "li", "", line);
  }
}

// --- the page -------------------------------------------------------------------------------

function legend() {
  const place = document.getElementById("legend");
  for (const result of results) {
    const button = add(place, "button");
    button.type = "button";
    chip(button, result);
    button.setAttribute("aria-pressed", !hidden.has(result.at));
    button.addEventListener("click", () => {
      if (!hidden.delete(result.at)) hidden.add(result.at);
      button.setAttribute("aria-pressed", !hidden.has(result.at));
      for (const again of redraws) again();
    });
  }
  redraws.push(() => {
    place.classList.toggle("wider", place.scrollWidth > place.clientWidth);
    document.documentElement.style.scrollPaddingTop = `${place.offsetHeight + 8}px`; // it covers what is under it
  });
}

function facts(list, told) {
  for (const [name, value] of told) {
    const place = add(list, "div");
    add(place, "dt", "", name);
    add(place, "dd", "", value);
  }
}

function head() {
  for (const id of ["about", "lead"]) facts(document.getElementById(id), data[id] || []);
  for (const [run, told] of data.about_runs || []) {
    const list = add(document.getElementById("about_runs"), "dl", "facts");
    list.setAttribute("aria-label", run);
    facts(list, [["run", run], ...told]);
    list.querySelector("dd").className = "run";
  }
  document.getElementById("warnings").hidden = !data.warnings.length;
  for (const warning of data.warnings) add(document.querySelector("#warnings ul"), "li", "", warning);
  for (const rule of data.rules || []) add(document.querySelector("#asked .rules"), "li", "", rule);
}

head();
legend();
tables("runs", data.runs);
tables("differing", data.differing);
tables("overview", data.overview, {best: true});
differences();
charts("bars", data.bars);
curves();
charts("subgroups", data.subgroups);
cases();
tables("everything", data.everything, {pick: true});
tables("asked", data.asked);
tables("settings", data.settings);
for (const place of document.querySelectorAll("section:not([hidden])")) {
  add(document.querySelector("nav"), "a", "", place.querySelector("h2").textContent).href = `#${place.id}`;
}
for (const again of redraws) again();
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  for (const again of redraws) again();
});
