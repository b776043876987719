"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const SVG = document.querySelector("svg").namespaceURI;
const HINT = "Click a line or a node: what it rests on lights up, with its numbers. Esc clears.";
const at = id => document.getElementById(id);

/** A new element: its classes, its text (never parsed as HTML), what it is put into. */
function add(parent, tag, classes = "", text = "") {
  const made = document.createElement(tag);
  made.className = classes;
  made.textContent = text;
  parent.append(made);
  return made;
}

/** "1 event", "2 events". */
const count = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;

// --- header ---------------------------------------------------------------------------------

at("question").textContent = data.question;
at("sample").textContent = `${data.task}, asked at ${data.prediction_time}; sample ${data.sample_id}`;
at("closed").hidden = data.open;
for (const item of data.answer) add(at("answer"), "li", "", item);

// --- timeline -------------------------------------------------------------------------------

const events = new Map();
const nodes = new Map(data.nodes.map(node => [node.id, node]));
const near = new Map(data.nodes.map(node => [node.id, []]));
data.edges.forEach((edge, index) => {
  near.get(edge.source).push([edge.target, index]);
  near.get(edge.target).push([edge.source, index]);
});

function table(parent, event, names) {
  const rows = add(parent, "div", "rows");
  if (event.text !== null) { add(rows, "pre", "", event.text); return; }
  const shown = event.keys.map((_, at) => at).filter(at => event.rows.some(row => row[at]));
  const grid = add(rows, "table");
  const head = add(grid, "tr");
  for (const at of shown) add(head, "th", "", event.keys[at]);
  for (const row of event.rows) {
    const line = add(grid, "tr", row.some(cell => names.has(cell)) ? "hit" : "");
    for (const at of shown) add(line, "td", "", row[at]);
  }
}

function timeline() {
  const body = document.querySelector("#timeline .body");
  let day = null, list = null;
  for (const event of data.events) {
    const date = event.time ? event.time.slice(0, 10) : "without a time";
    if (date !== day) {
      add(body, "h3", "day", date);
      list = add(body, "ol");
      day = date;
    }
    const names = new Set((near.get(event.id) || []).map(([node]) => nodes.get(node).label));
    const item = add(list, "li", names.size ? "event evidence" : "event");
    const inner = add(item, "div");
    const fold = add(inner, "details");
    const summary = add(fold, "summary");
    if (event.time) add(summary, "time", "", event.time.slice(11, 16));
    summary.append(event.heading);
    if (names.size) {
      add(summary, "div", "names", [...names].join(", "));
      const mark = add(item, "button", "mark", `◆ ${names.size}`);
      mark.type = "button";
      mark.setAttribute("aria-label", `evidence in ${event.heading}: ${[...names].join(", ")}`);
      mark.addEventListener("click", () => press(mark, ...ofNode(event.id)));
      pressable.push(mark);
    }
    fold.addEventListener("toggle", () => {
      if (fold.open && !fold.querySelector(".rows")) table(fold, event, names);
    });
    item.dataset.node = event.id;
    events.set(event.id, item);
  }
  add(body, "h3", "day", `${data.prediction_time}: the question`);
  const marked = data.events.filter(event => nodes.has(event.id)).length;
  at("counted").textContent = `${count(data.events.length, "event")}, ${marked} with evidence (◆)`;
}

// --- graph ----------------------------------------------------------------------------------

const ROW = 28, TOP = 4, BOX = 22, GAP = 46;
const WIDTH = {Events: 144, Concepts: 230, Knowledge: 150, Answers: 180};
const [NARROWEST, WIDEST] = [0.8, 1.5];
const drawn = new Map();
const edges = new Map();

/** Draw the strongest evidence, or all of it. */
function picture(view) {
  const body = at("picture");
  clear();
  for (const box of drawn.values()) pressable.splice(pressable.indexOf(box), 1);
  drawn.clear();
  edges.clear();
  body.replaceChildren();
  document.querySelector(".titles")?.remove();
  // paths through the knowledge base need the whole width
  document.querySelector("main").classList.toggle("wide", view.columns.includes("Knowledge"));
  const last = view.columns.length - 1;
  const bent = view.edges.map(index => data.edges[index])
    .some(edge => [edge.source, edge.target].every(id => view.places[id][0] === last));
  const beside = bent ? GAP / 2 : 0; // curves between two answers bend out of the last column
  const gaps = GAP * last + beside + 24;
  const boxes = view.columns.reduce((sum, title) => sum + WIDTH[title], 0);
  const fitting = (body.parentElement.clientWidth - gaps) / boxes;
  const scale = Math.max(NARROWEST, Math.min(WIDEST, fitting));
  const [lefts, widths] = [[], view.columns.map(title => Math.floor(WIDTH[title] * scale))];
  const titles = add(body.parentElement, "div", "titles");
  body.before(titles);
  let left = 2;
  view.columns.forEach((title, at) => {
    lefts.push(left);
    add(titles, "span", "", title).style.left = `${left}px`;
    left += widths[at] + GAP;
  });
  body.style.width = titles.style.width = `${left - GAP + beside + 2}px`;
  body.style.height = `${TOP + ROW * view.rows}px`;
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("width", body.style.width);
  svg.setAttribute("height", body.style.height);
  svg.append(arrow());
  body.append(svg);
  const shown = data.nodes.filter(node => node.id in view.places);
  for (const node of shown) {
    const [column, height] = view.places[node.id];
    node.column = column;
    node.left = lefts[column];
    node.right = node.left + widths[column];
    node.middle = TOP + ROW * height + BOX / 2;
  }
  for (const index of view.edges) edges.set(index, drawEdge(svg, data.edges[index], index));
  for (const node of shown) drawn.set(node.id, drawNode(body, node));
  sideways();
}

/** Say whether the graph is wider than its pane. */
function sideways() {
  const pane = at("picture").parentElement;
  const wider = pane.scrollWidth > pane.clientWidth;
  pane.classList.toggle("wider", wider);
  at("sideways").hidden = !wider;
}

/** The button that changes between the two views. */
function folding() {
  const button = at("more");
  let whole = data.strongest === null;
  button.hidden = whole;
  const draw = () => {
    button.textContent = whole ? "Show the strongest lines" : `Show all ${data.whole.edges.length} lines`;
    picture(whole ? data.whole : data.strongest);
  };
  button.addEventListener("click", () => { whole = !whole; draw(); });
  draw();
}

function arrow() {
  const defs = document.createElementNS(SVG, "defs");
  const marker = document.createElementNS(SVG, "marker");
  const head = document.createElementNS(SVG, "path");
  const shape = {id: "arrow", viewBox: "0 0 8 8", refX: 8, refY: 4, markerWidth: 7, markerHeight: 7,
    markerUnits: "userSpaceOnUse", orient: "auto-start-reverse"};
  for (const name in shape) marker.setAttribute(name, shape[name]);
  head.setAttribute("d", "M0 0 8 4 0 8z");
  marker.append(head);
  defs.append(marker);
  return defs;
}

function drawNode(body, node) {
  const box = add(body, "button", `node ${node.kind === "event" ? "event-node" : node.kind}`);
  if (!near.get(node.id).length) box.classList.add("alone");
  box.type = "button";
  box.dataset.node = node.id;
  add(box, "b", "", node.kind === "event" ? short(node) : node.label);
  if (node.kind === "concept") add(box, "small", "", node.table);
  box.style.left = `${node.left}px`;
  box.style.width = `${node.right - node.left}px`;
  box.style.top = `${node.middle - BOX / 2}px`;
  box.addEventListener("click", () => press(box, ...ofNode(node.id)));
  const about = [node.label, node.table && `in ${node.table}`, node.concept_id].filter(Boolean);
  explain(box, about.join("\n"));
  pressable.push(box);
  return box;
}

/** `03-09 05:11 Heading`: the full label stands in the timeline and on hover. */
function short(node) {
  const parts = node.label.match(/^(.*) \[\d+-(\d\d-\d\d \d\d:\d\d).*\]$/);
  return parts ? `${parts[2]} ${parts[1]}` : node.label;
}

function drawEdge(svg, edge, index) {
  const group = document.createElementNS(SVG, "g");
  group.dataset.edge = index;
  group.setAttribute("class", `edge ${edge.kind}${edge.relation === "linked" ? " linked" : ""}`);
  for (const name of ["seen", "reach"]) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("class", name);
    path.setAttribute("d", curve(nodes.get(edge.source), nodes.get(edge.target)));
    group.append(path);
  }
  const seen = group.firstChild;
  if ("width" in edge) seen.setAttribute("stroke-width", edge.width);
  if (edge.kind === "knowledge" && edge.relation !== "linked")
    seen.setAttribute(edge.inverse ? "marker-start" : "marker-end", "url(#arrow)");
  explain(group, said(edge));
  svg.append(group);
  return group;
}

function curve(start, end) {
  if (start.column === end.column) {
    const out = start.right + GAP / 2;
    return `M${start.right} ${start.middle}C${out} ${start.middle} ${out} ${end.middle} ${end.right} ${end.middle}`;
  }
  const forward = start.column < end.column;
  const [x, y] = forward ? [start.right, end.left] : [start.left, end.right];
  const bend = (x + y) / 2;
  return `M${x} ${start.middle}C${bend} ${start.middle} ${bend} ${end.middle} ${y} ${end.middle}`;
}

/** What an edge says: support and lift, relation and source, or the time. */
function said(edge) {
  const [from, to] = [nodes.get(edge.source).label, nodes.get(edge.target).label];
  if (edge.kind === "occurrence") return `${from}\nstands in: ${to}`;
  if ("lift" in edge) {
    const more = ["lift_low", "probability", "npmi", "q"].filter(name => name in edge).map(name => `, ${name} ${edge[name]}`);
    return `${from} → ${to}\nsupport ${edge.support}, lift ${edge.lift}${more.join("")}`;
  }
  if (edge.relation === "linked") return `${from} → ${to}\nthe same concept in the knowledge base`;
  const [head, tail] = edge.inverse ? [to, from] : [from, to];
  return `${head}\n${edge.relation}\n${tail}\nsource: ${edge.vocabulary}`;
}

function key() {
  const kinds = {occurrence: ["dotted", "stands in"], cooccurrence: ["solid", "goes with (width: lift)"],
    repetition: ["solid", "done before (width: lift)"],
    again: ["dashed", "done before, no lift"], routine: ["dashed", "routine"], together: ["dashed", "comes with"],
    knowledge: ["solid", "knowledge (arrow: the fact's direction)"]};
  for (const kind in kinds) {
    if (!data.edges.some(edge => edge.kind === kind)) continue;
    const part = add(at("key"), "span");
    const stroke = add(part, "i");
    stroke.style.borderTopStyle = kinds[kind][0];
    stroke.style.borderTopColor = `var(--${kind}-edge)`;
    part.append(kinds[kind][1]);
  }
  if (data.nodes.some(node => node.kind === "candidate"))
    add(at("key"), "span", "", "dashed border: likely by the record, not the answer");
  if (!data.edges.length) at("key").textContent = "The record holds no evidence for this answer.";
}

// --- chain ----------------------------------------------------------------------------------

const lines = [];

function chain() {
  const body = document.querySelector("#chain .body");
  if (data.chain === null) { note(body); return; }
  for (const [index, line] of data.chain.lines.entries()) {
    if (line.heading) { add(body, "h3", "", line.text.replace(/^#+ */, "")); continue; }
    const button = add(body, "button", line.nodes.length ? "line" : "line nothing", line.text);
    button.type = "button";
    button.dataset.line = index;
    button.addEventListener("click", () =>
      press(button, new Set(line.nodes), new Set(line.edges), new Set([index])));
    pressable.push(button);
    lines.push(button);
  }
  const led = lines.filter(button => !button.classList.contains("nothing")).length;
  const rules = data.chain.rejected_by;
  const kept = data.chain.kept ? "kept" : `rejected (${rules.join(", ") || "another draft was kept"})`;
  at("verdict").textContent =
    `Draft ${data.chain.draft}, ${kept}; ${led} of ${count(lines.length, "line")} lead back to the graph`;
}

/** Why there is no chain; what stands between backticks is a command. */
function note(body) {
  const text = add(body, "p");
  data.note.split("`").forEach((part, at) => (at % 2 ? add(text, "code", "", part) : text.append(part)));
}

// --- what is lit ----------------------------------------------------------------------------

const pressable = [];

/** Nodes, edges and lines to light for a node: its neighbours, and for an answer all behind them. */
function ofNode(id) {
  const [lit, strokes] = [new Set([id]), new Set()];
  const behind = ["answer", "candidate"].includes(nodes.get(id).kind);
  const open = [id];
  while (open.length) {
    const node = open.pop();
    for (const [other, index] of near.get(node)) {
      const toEvents = data.edges[index].kind === "occurrence" || data.edges[index].target === node;
      if (node !== id && !toEvents) continue;
      strokes.add(index);
      if (behind && !lit.has(other)) open.push(other);
      lit.add(other);
    }
  }
  const telling = lines.map(line => +line.dataset.line)
    .filter(index => data.chain.lines[index].nodes.includes(id));
  return [lit, strokes, new Set(telling)];
}

function press(button, ...lit) {
  const again = button.getAttribute("aria-pressed") === "true";
  clear();
  if (again) return;
  button.setAttribute("aria-pressed", "true");
  light(...lit);
}

function clear() {
  document.body.classList.remove("tracing");
  for (const lit of document.querySelectorAll(".on")) lit.classList.remove("on");
  for (const button of pressable) button.setAttribute("aria-pressed", "false");
  at("status").textContent = HINT;
  at("numbers").hidden = true;
  at("numbers").replaceChildren();
}

/** List what the lit edges say, the highest lift first: a keyboard reaches no edge. */
function list(strokes) {
  const lit = [...strokes].filter(index => edges.has(index)).map(index => data.edges[index]);
  lit.sort((one, other) => (other.lift ?? 0) - (one.lift ?? 0));
  for (const edge of lit) add(at("numbers"), "li", "", said(edge).replaceAll("\n", " · "));
  at("numbers").hidden = !lit.length;
}

function light(lit, strokes, told) {
  document.body.classList.add("tracing");
  const places = [...lit].filter(id => events.has(id)).map(id => events.get(id));
  const boxes = [...lit].filter(id => drawn.has(id)).map(id => drawn.get(id));
  const texts = lines.filter(line => told.has(+line.dataset.line));
  for (const part of [...places, ...boxes, ...texts]) part.classList.add("on");
  for (const index of strokes) edges.get(index)?.classList.add("on");
  list(strokes);
  for (const parts of [places, boxes, texts]) show(parts);
  const kinds = [...lit].map(id => nodes.get(id).kind);
  const number = kind => kinds.filter(other => other === kind).length;
  at("status").textContent = "Lit: " + ["event", "concept", "answer"]
    .map(kind => count(number(kind) + (kind === "concept" ? number("knowledge") : 0), kind))
    .concat(number("candidate") ? [count(number("candidate"), "other likely item")] : []).join(", ");
}

/** Scroll the pane of these elements to the first of them, where none of them is in view. */
function show(parts) {
  if (!parts.length) return;
  const pane = parts[0].closest(".body");
  const view = pane.getBoundingClientRect();
  const boxes = parts.map(part => part.getBoundingClientRect()).sort((a, b) => a.top - b.top);
  if (boxes.some(box => box.top >= view.top && box.bottom <= view.bottom)) return;
  pane.scrollTop += boxes[0].top - view.top - view.height / 4;
}

// --- hover ----------------------------------------------------------------------------------

function explain(element, text) {
  const place = (x, y) => {
    const tip = at("tip");
    tip.textContent = text;
    tip.hidden = false;
    tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${Math.max(4, Math.min(y + 14, innerHeight - tip.offsetHeight - 8))}px`;
  };
  element.addEventListener("mousemove", event => place(event.clientX, event.clientY));
  element.addEventListener("mouseleave", () => { at("tip").hidden = true; });
  element.addEventListener("focus", () => {
    if (!element.matches(":focus-visible")) return;
    const box = element.getBoundingClientRect();
    place(box.left, box.bottom);
    element.setAttribute("aria-describedby", "tip");
  });
  element.addEventListener("blur", () => {
    at("tip").hidden = true;
    element.removeAttribute("aria-describedby");
  });
}

document.addEventListener("keydown", event => {
  if (event.key !== "Escape") return;
  clear();
  at("tip").hidden = true;
});
addEventListener("resize", sideways);
timeline();
chain();
key();
folding();
