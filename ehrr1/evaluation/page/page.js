// The page: reads the data, draws, and draws again when a choice changes.
const data = JSON.parse(document.getElementById("data").textContent);
// Okabe and Ito's colours, which are told apart without red and green; baselines are grey
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#b5a400"];
const GREYS = ["#6f7785", "#989fab", "#454c59", "#b3b8c1", "#7d6f63"];
const colours = {}, hidden = new Set();
let models = 0, baselines = 0;
for (const { name, baseline } of data.results) {
  colours[name] = baseline ? GREYS[baselines++ % GREYS.length] : COLOURS[models++ % COLOURS.length];
}
const at = (id) => document.getElementById(id);
const shown = (values) => data.results.map(({ name }) => name)
  .filter((name) => name in values && !hidden.has(name));
const state = {
  tasks: data.tasks.some((task) => task.kind === "risk") ? "risk/auroc" : "decision/f1",
  table: null, curve: null, subgroup: "auroc", sort: null, down: true,
};
state.table = state.tasks;
const metricNames = [...new Set(data.tasks.flatMap((task) => Object.keys(task.metrics).map((metric) => `${task.kind}/${metric}`)))];
const label = (metric) => metric.replace("/", ": ").replaceAll("_", " ").replace("auroc", "AUROC").replace("auprc", "AUPRC").replace("ece", "ECE").replace("f1", "F1");

function choice(id, options, current, choose) {
  const box = at(id);
  if (options.length > 7) {
    const select = make("select", { "aria-label": id });
    for (const option of options) select.append(make("option", { value: option }, label(option)));
    select.value = current;
    select.addEventListener("change", () => { choose(select.value); draw(); });
    box.replaceChildren(select);
    return;
  }
  box.replaceChildren(...options.map((option) => make("button", {
    type: "button", "aria-pressed": option === current, onclick: () => { choose(option); draw(); },
  }, label(option))));
}

function table(head, rows, options = {}) {
  const cells = (row) => row.map((cell) => {
    const td = make("td");
    if (Array.isArray(cell)) {
      td.append(three(cell[0]));
      if (cell.length > 1) td.append(" ", make("span", { class: "range" }, `[${three(cell[1])}, ${three(cell[2])}]`));
    } else td.append(cell ?? "");
    return td;
  });
  const titles = head.map((title, n) => make("th", { scope: "col" }, options.sort
    ? make("button", { type: "button", onclick: () => options.sort(n) }, title + (state.sort === n ? (state.down ? " ↓" : " ↑") : "")) : title));
  const body = rows.map((row) => make("tr", row.macro ? { class: "macro" } : {}, ...cells(row.cells ?? row)));
  return make("table", {}, make("thead", {}, make("tr", {}, ...titles)), make("tbody", {}, ...body));
}

function window_of(values, around) {
  const flat = values.flat().concat(around === undefined ? [] : [around]);
  const low = Math.min(...flat), high = Math.max(...flat), room = (high - low) * 0.05 || 0.05;
  return { low: low - room, high: high + room };
}

function drawLegend() {
  at("legend").replaceChildren(...data.results.map(({ name }) => make("button", {
    type: "button", "aria-pressed": !hidden.has(name),
    onclick: () => { hidden.has(name) ? hidden.delete(name) : hidden.add(name); draw(); },
  }, make("span", { class: "dot", style: `background:${colours[name]}` }), name)));
}

function drawOverview() {
  const parts = ["risk/auroc", "decision/f1", "risk/brier", "risk/ece"].filter((metric) => metric in data.macros).map((metric) => {
    const values = data.macros[metric];
    const groups = shown(values).map((name) => ({ label: name, values: [{ name, colour: colours[name], value: values[name] }] }));
    const guide = metric === "risk/auroc" ? 0.5 : undefined;
    const range = groups.length ? window_of(groups.map((group) => group.values[0].value), guide) : {};
    return make("div", {}, make("h3", {}, `${label(metric)}, mean over tasks`), whiskers(groups, { ...range, guide, labelled: true, width: 520, left: 150, title: metric }));
  });
  at("overview").replaceChildren(...parts);
}

function drawDifferences() {
  const rows = data.differences.filter(([first, second]) => !hidden.has(first) && !hidden.has(second));
  at("differences-part").hidden = !data.differences.length;
  const kinds = [...new Set(rows.map((row) => row[2]))];
  at("differences").replaceChildren(make("div", { class: "pair" }, ...kinds.map((kind) => {
    const own = rows.filter((row) => row[2] === kind);
    const groups = own.map(([first, second, , value, low, high]) => ({
      label: `${first} − ${second}`,
      values: [{ name: "", colour: colours[first] ?? "#888", value: [value, low, high], filled: low > 0 || high < 0 }],
    }));
    const range = window_of(groups.map((group) => group.values[0].value), 0);
    return make("div", {}, make("h3", {}, kind.replace("auroc", "AUROC").replace("f1", "F1")), whiskers(groups, { ...range, guide: 0, labelled: true, width: 520, left: 210, title: kind }));
  })));
}

function drawTasks() {
  choice("task-metric", metricNames, state.tasks, (metric) => { state.tasks = metric; });
  const [kind, metric] = state.tasks.split("/");
  const groups = data.tasks.filter((task) => task.kind === kind && metric in task.metrics).map((task) => ({
    label: task.key,
    values: shown(task.metrics[metric]).map((name) => ({ name, colour: colours[name], value: task.metrics[metric][name] })),
  })).filter((group) => group.values.length);
  const guide = metric === "auroc" ? 0.5 : undefined;
  const all = groups.flatMap((group) => group.values.map(({ value }) => value));
  at("tasks").replaceChildren(all.length ? whiskers(groups, { ...window_of(all, guide), guide, width: innerWidth < 600 ? 420 : 860, left: innerWidth < 600 ? 140 : 190, title: state.tasks }) : "nothing chosen");
}

function drawCurves() {
  const tasks = Object.keys(data.curves).filter((task) => Object.keys(data.curves[task]).length);
  at("curves-part").hidden = !tasks.length;
  if (!tasks.length) return;
  state.curve ??= tasks[0];
  choice("curve-task", tasks, state.curve, (task) => { state.curve = task; });
  const own = data.curves[state.curve], names = shown(own);
  const series = (kind, more = {}) => names.map((name) => ({ name, colour: colours[name], points: own[name][kind], ...more }));
  const share = own.all?.share ?? 0;
  const fitted = names.filter((name) => own[name].calibrated).map((name) => ({ name: `${name}, by temperature`, colour: colours[name], points: own[name].calibrated, dots: true, dashed: true }));
  const benefits = names.flatMap((name) => own[name].decision.map((point) => point[1]));
  at("curves").replaceChildren(
    lines(series("roc"), { title: "ROC", xlabel: "false positive rate", ylabel: "recall", guides: [[[0, 0], [1, 1]]] }),
    lines(series("pr"), { title: "Precision and recall", xlabel: "recall", ylabel: "precision", guides: [[[0, share], [1, share]]] }),
    lines([...series("reliability", { dots: true }), ...fitted], { title: "Reliability (dashed: by temperature)", xlabel: "probability said", ylabel: "frequency of yes", guides: [[[0, 0], [1, 1]]] }),
    lines(series("decision"), { title: "Decision curve (dotted: act on all, on none)", xlabel: "threshold", ylabel: "net benefit", xhigh: 0.6, low: -0.05, high: Math.max(0.05, ...benefits, share) * 1.1, guides: [own.all.decision, [[0, 0], [0.6, 0]]] }));
}

function drawSubgroups() {
  const kinds = ["auroc", "f1"].filter((kind) => data.subgroups.some((group) => Object.keys(group[kind]).length));
  at("subgroups-part").hidden = !kinds.length;
  if (!kinds.length) return;
  if (!kinds.includes(state.subgroup)) state.subgroup = kinds[0];
  choice("subgroup-metric", kinds, state.subgroup, (kind) => { state.subgroup = kind; });
  const groups = data.subgroups.map((group) => ({
    label: `${group.column} ${group.value} (${group.patients})`,
    values: shown(group[state.subgroup]).map((name) => ({ name, colour: colours[name], value: group[state.subgroup][name] })),
  })).filter((group) => group.values.length);
  const all = groups.flatMap((group) => group.values.map(({ value }) => value));
  at("subgroups").replaceChildren(all.length ? whiskers(groups, { ...window_of(all), width: innerWidth < 600 ? 420 : 860, left: innerWidth < 600 ? 150 : 240, title: "subgroups; in brackets the patients" }) : "nothing chosen");
}

function drawNumbers() {
  choice("table-metric", metricNames, state.table, (metric) => { state.table = metric; });
  const [kind, metric] = state.table.split("/");
  const tasks = data.tasks.filter((task) => task.kind === kind && metric in task.metrics);
  const names = data.results.map(({ name }) => name).filter((name) => !hidden.has(name) && tasks.some((task) => name in task.metrics[metric]));
  const rows = tasks.map((task) => [task.key, task.samples, task.patients, task.about, ...names.map((name) => task.metrics[metric][name] ?? "-")]);
  if (state.sort !== null) {
    const value = (cell) => Array.isArray(cell) ? cell[0] : cell;
    const order = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
    rows.sort((a, b) => order(value(a[state.sort]), value(b[state.sort])) * (state.down ? -1 : 1));
  }
  const macro = data.macros[state.table] ?? {};
  const total = { macro: true, cells: ["mean over tasks", "", "", "", ...names.map((name) => macro[name] ?? "-")] };
  at("numbers").replaceChildren(table(["task", "samples", "patients", kind === "risk" ? "prevalence" : "answer", ...names], [...rows, total], {
    sort: (n) => { state.down = state.sort === n ? !state.down : true; state.sort = n; drawNumbers(); },
  }));
}

function drawOnce() {
  const people = Math.max(...data.results.map((result) => result.patients), 0);
  at("summary").textContent = `${data.results.length} results on the ${data.split} split, ${data.tasks.length} tasks, ${people.toLocaleString("en")} patients`;
  at("warnings").replaceChildren(...data.warnings.map((text) => make("p", { class: "warning" }, text)));
  const number = (value, digits) => value === null || value === undefined ? "-" : value.toFixed(digits);
  at("asked").replaceChildren(table(
    ["result", "risk", "decisions", "candidates", "wording", "samples", "patients", "not read", "temperature", "certain"],
    data.results.map((r) => [r.name, r.risk || "-", r.decision || "-", r.candidates, r.wording, r.samples, r.patients, r.unread, number(r.temperature, 2), r.saturated === null ? "-" : number(100 * r.saturated, 1) + " %"])));
  at("settings").replaceChildren(table(["setting", ...(data.runs.length ? data.runs : ["value"])], data.settings));
  at("cases-note").textContent = data.note;
  at("cases-part").hidden = !data.cases.length && !data.note;
  at("cases").replaceChildren(...data.cases.map((one) => {
    const right = one.prediction === one.target;
    const block = (title, text) => text ? [make("h3", {}, title), make("pre", {}, text)] : [];
    return make("details", {},
      make("summary", {}, `${one.task}, ${one.result}`, make("span", { class: `tag ${right ? "right" : "wrong"}` }, right ? "right" : "differs"),
        one.probability === null ? "" : make("span", { class: "tag" }, `P(yes) ${three(one.probability)}`)),
      ...block("Truth", one.target), ...block("Answer", one.prediction || "(none)"), ...block("Written", one.completion), ...block("Record", one.context));
  }));
}

function draw() {
  drawLegend(); drawOverview(); drawDifferences(); drawTasks(); drawCurves(); drawSubgroups(); drawNumbers();
}
drawOnce();
draw();
