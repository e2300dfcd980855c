// Draws the report of a study from the JSON in #data, behind charts.js and front.js. Nothing is fetched; plotly stands in the same file.

const report = JSON.parse(document.getElementById("data").textContent);
const quantities = new Map(report.quantities.map((quantity) => [quantity.name, quantity]));
// Of a study with several boards the page shows either all, where the worst board's values count, or one of them.
let view = "";
let trials, byNumber, front;
lookAt(view);
const parallelConfig = { ...plotConfig, displayModeBar: false };

let chosen = startTrial();
let sorting = { key: "number", ascending: true };
let shownStates = new Set(["front", "complete", "infeasible", "stopped", "fault"]);

// ---------------------------------------------------------------- all boards, or one

function lookAt(kind) {
  view = kind;
  trials = report.trials.map((trial) => (kind ? { ...trial, ...trial.boards[kind] } : trial));
  byNumber = new Map(trials.map((trial) => [trial.number, trial]));
  front = trials.filter((trial) => trial.front);
}

function setUpViews() {
  const tabs = [...document.querySelectorAll(".tabs button")];
  const mark = () => {
    for (const tab of tabs) tab.setAttribute("aria-selected", String(tab.dataset.view === view));
    if (tabs.length) $("view-hint").textContent = viewHint();
    if (tabs.length) $("front-title").textContent = view ? `Pareto front of ${view}` : "Joint Pareto front";
  };
  for (const tab of tabs) {
    tab.addEventListener("click", () => { lookAt(tab.dataset.view); mark(); fillTrials(); drawAll(); });
  }
  mark();
}

function viewHint() {
  const board = report.boards.find(({ kind }) => kind === view);
  if (board) return [board.text, "every value below is this board's own"].filter(Boolean).join("; ");
  return "Every value below is that of the board where it is worst; a limit holds on every board.";
}

// What stands in the first table's cell of the joint view: the value on each board, unless they are all alike.
function onEach(trial, name) {
  const own = view ? [] : report.boards.map(({ kind }) => [kind, trial.boards[kind]?.values[name]]).filter(([, value]) => value);
  if (new Set(own.map(([, value]) => value.text)).size < 2) return [];
  return own.map(([kind, value]) => element("span", { class: "each" }, `${kind} ${value.text}`, sourceMark(value)));
}

// ---------------------------------------------------------------- the boards' fronts

function setUpBoards() {
  if (!report.boards.length) return;
  const entries = report.quantities.map((quantity) => [quantity.name, quantity.title]);
  const names = entries.map(([name]) => name);
  const pick = (...wishes) => wishes.find((name) => names.includes(name)) ?? names[0];
  fillSelect($("boards-x"), entries, pick("latency", "energy", "rom", "ram"));
  fillSelect($("boards-y"), entries, pick("error", "ram"));
  for (const id of ["boards-x", "boards-y"]) $(id).addEventListener("change", drawBoards);
}

function frontOf(kind) {
  return report.trials.map((trial) => (kind ? { ...trial, ...trial.boards[kind] } : trial)).filter((trial) => trial.front);
}

function drawBoards() {
  if (!report.boards.length) return;
  drawBoardsTable();
  const x = quantities.get($("boards-x").value), y = quantities.get($("boards-y").value);
  const traces = [{ kind: "", words: "joint, the worst counts" }, ...report.boards.map(({ kind }) => ({ kind, words: kind }))]
    .flatMap((one, index) => boardTraces(one, index, x, y));
  if (!traces.length) { drawEmpty("boards-plot", "No trial is on a front yet."); return; }
  const amounts = traces.flatMap((trace) => trace.x);
  const isLog = Math.min(...amounts) > 0 && Math.max(...amounts) > 10 * Math.min(...amounts);
  Plotly.react("boards-plot", traces, layout({
    xaxis: { title: title(axisTitle(x)), ...(isLog ? { type: "log", dtick: "D2", tickformat: "~g" } : { type: "linear", rangemode: "tozero" }) },
    yaxis: { title: title(axisTitle(y)), rangemode: "tozero" },
  }), plotConfig);
}

// One front: its points, and the border of what it dominates in these two quantities.
function boardTraces({ kind, words }, index, x, y) {
  const members = frontOf(kind).filter((trial) => scaled(trial, x) !== null && scaled(trial, y) !== null);
  if (!members.length) return [];
  const colour = kind ? boardColour(index - 1) : css("text");
  const symbols = ["circle", "square", "triangle-up", "diamond", "cross", "star", "hexagon", "pentagon"];
  const marker = kind
    ? { color: colour, size: 9, symbol: symbols[(index - 1) % symbols.length] }
    : { color: colour, size: 15, symbol: "circle-open", line: { width: 1.5 } };
  return [
    { ...pointTrace(words, members, x, y, marker), legendgroup: words },
    { ...stairs(x, y, members), legendgroup: words, line: { shape: "hv", color: colour, width: 1.5, dash: kind ? "solid" : "dot" } },
  ];
}

function boardColour(index) {
  return [css("front"), css("infeasible"), css("emulated"), css("measured"), css("stopped"), css("estimated"), css("fault"), css("dominated")][index % 8];
}

function drawBoardsTable() {
  const names = report.objectives.map(({ name }) => name);
  const titles = report.boards.flatMap(({ best }) => best).reduce((found, one) => found.set(one.name, one.title), new Map());
  $("boards-table").tHead.replaceChildren(element("tr", {}, element("th", {}, "board"), element("th", { class: "number" }, "on its front"),
    element("th", { class: "number" }, "hypervolume"), ...names.map((name) => element("th", { class: "number" }, titles.get(name) ?? name))));
  $("boards-table").tBodies[0].replaceChildren(...report.boards.map((board) => element("tr", { class: board.kind === view ? "chosen" : "" },
    element("td", {}, board.kind), element("td", { class: "number" }, String(board.front_size)),
    element("td", { class: "number" }, board.hypervolume.toFixed(4)),
    ...names.map((name) => bestCell(board.best.find((one) => one.name === name))))));
}

function bestCell(best) {
  if (!best) return element("td", { class: "number quiet" }, "–");
  const pick = element("button", { type: "button", title: `show trial ${best.trial}`, onclick: () => choose(best.trial) }, `trial ${best.trial}`);
  return element("td", { class: "number" }, best.text, sourceMark(best), pick);
}

// ---------------------------------------------------------------- small helpers

function startTrial() {
  const ranked = [...front].sort((a, b) => (amount(a, "error") ?? Infinity) - (amount(b, "error") ?? Infinity));
  const middle = ranked[Math.floor(ranked.length / 2)] ?? trials.find((trial) => trial.state === "complete") ?? trials[0];
  return middle ? middle.number : null;
}

function amount(trial, name) {
  const value = trial.values[name];
  return value === undefined ? undefined : value.amount;
}

function scaled(trial, quantity) {
  const value = amount(trial, quantity.name);
  return value === undefined ? null : value * quantity.factor;
}

function axisTitle(quantity) {
  return quantity.axis_unit ? `${quantity.title}, ${quantity.axis_unit}` : quantity.title;
}

function paramText(value) {
  return typeof value === "number" && !Number.isInteger(value) ? value.toPrecision(3) : String(value);
}

function stateOf(trial) {
  return trial.front ? "front" : trial.state;
}

function stateWords(trial) {
  return { complete: "dominated", stopped: "stopped early" }[stateOf(trial)] ?? stateOf(trial);
}

function colourScale() {
  // Dark to light on a light page, light to dark on a dark one: small values always stand out.
  return isDark()
    ? [[0, "#d0f4f9"], [0.35, "#3bc9db"], [0.7, "#1f8ea3"], [1, "#1d6474"]]
    : [[0, "#073b4c"], [0.35, "#0b7285"], [0.7, "#4fb3bf"], [1, "#b2e3e8"]];
}

function hoverText(trial) {
  const lines = [`<b>trial ${trial.number}</b> · ${trial.front ? "on the front" : trial.state}`];
  for (const { name, title: label } of report.quantities) {
    const value = trial.values[name];
    if (value) lines.push(`${label}: <b>${value.text}</b> <i>${value.source}</i>`);
  }
  if (trial.reason) lines.push(escape(trial.reason.length > 70 ? `${trial.reason.slice(0, 68)}…` : trial.reason));
  const params = report.params.filter((name) => name in trial.params).slice(0, 12);
  lines.push(...params.map((name) => `<span style="opacity:.7">${escape(name)} ${escape(paramText(trial.params[name]))}</span>`));
  return lines.join("<br>");
}

// ---------------------------------------------------------------- one trial

function choose(number) {
  chosen = number;
  drawFront();
  drawDetail();
  for (const row of $("table").tBodies[0].rows) row.classList.toggle("chosen", Number(row.dataset.number) === number);
  if (byNumber.get(number)?.front) { $("export-trial").value = number; drawExport(); }
  if (byNumber.get(number)?.layers.length) { $("layers-trial").value = number; drawLayers(); }
  if (byNumber.get(number)?.memory) { $("memory-trial").value = number; drawMemoryOfTrial(); }
}

function sourceMark(value) {
  return element("sup", { class: `source ${value.source}`, title: [value.source, value.note].filter(Boolean).join(": ") },
    { exact: "x", measured: "m", emulated: "e", estimated: "s" }[value.source]);
}

function pairs(rows) {
  return element("table", {}, element("tbody", {}, ...rows.map(([name, ...cell]) =>
    element("tr", {}, element("td", {}, name), element("td", {}, ...cell)))));
}

function drawDetail() {
  const trial = byNumber.get(chosen);
  if (!trial) { $("detail").replaceChildren("No trial has ended yet."); return; }
  const order = [...report.quantities.map((quantity) => quantity.name), ...Object.keys(trial.values)];
  const names = [...new Set(order)].filter((name) => name in trial.values);
  const parts = [element("h3", {}, `Trial ${trial.number}`, element("span", { class: `badge ${stateOf(trial)}` }, trial.front ? "on the front" : stateWords(trial)))];
  if (trial.reason) parts.push(element("p", { class: "hint" }, trial.reason));
  if (trial.downloads.length) {
    parts.push(element("h4", {}, "Download"), element("div", { class: "downloads" },
      ...trial.downloads.map(([label, link]) => element("a", { href: link, download: "" }, label))));
  }
  if (names.length) {
    parts.push(element("h4", {}, "Outcome", view ? ` on ${view}` : ""), pairs(names.map((name) =>
      [trial.values[name].title, trial.values[name].text, sourceMark(trial.values[name]), ...onEach(trial, name)])));
  }
  parts.push(element("h4", {}, "Parameters"), pairs(Object.entries(trial.params).map(([name, value]) => [name, paramText(value)])));
  const stages = Object.entries(trial.seconds);
  if (stages.length) parts.push(element("h4", {}, "Time"), pairs(stages.map(([stage, seconds]) => [stage, `${seconds.toFixed(1)} s`])));
  $("detail").replaceChildren(...parts);
}

// ---------------------------------------------------------------- history, test, parallel coordinates

function drawHistory() {
  if (!report.history.length) {
    drawEmpty("history-plot", "No trial has ended yet.");
    return;
  }
  const x = [0, ...report.history.map(([number]) => number)], y = [0, ...report.history.map(([, value]) => value)];
  const shapes = report.initial < (x.at(-1) ?? 0)
    ? [{ type: "line", xref: "x", yref: "paper", x0: report.initial, x1: report.initial, y0: 0, y1: 1, line: { color: css("quiet"), width: 1, dash: "dot" } }]
    : [];
  const annotations = shapes.map((shape) => ({
    x: shape.x0, y: 0.03, xref: "x", yref: "paper", xanchor: "left", yanchor: "bottom", showarrow: false,
    text: ` ${report.sampler} from here on`, font: { size: 11, color: css("quiet") },
  }));
  const marks = editMarks(report.edits, 11);
  Plotly.react("history-plot", [{
    type: "scatter", mode: x.length > 4 ? "lines" : "lines+markers", x, y, marker: { color: css("front"), size: 8 }, line: { color: css("front"), width: 2.5, shape: "hv" },
    fill: "tozeroy", fillcolor: isDark() ? "rgba(59,201,219,.12)" : "rgba(11,114,133,.09)",
    hovertemplate: "after %{x} trials: %{y:.4f}<extra></extra>",
  }], layout({
    xaxis: { title: title("trials told"), range: [0, 1.03 * x.at(-1)], ...(x.at(-1) < 8 ? { dtick: 1 } : {}) }, yaxis: { title: title("hypervolume"), range: [0, Math.max(...y, 0.01) * 1.08] },
    shapes: [...shapes, ...marks.shapes], annotations: [...annotations, ...marks.annotations], showlegend: false,
  }), plotConfig);
}

function drawTest() {
  const members = front.filter((trial) => amount(trial, "error") !== undefined)
    .sort((a, b) => amount(a, "error") - amount(b, "error"));
  if (!members.length) {
    drawEmpty("test-plot", "No trial is on the front yet.");
    return;
  }
  const labels = members.map((trial) => String(trial.number));
  const share = (trial, name) => (amount(trial, name) === undefined ? null : 100 * amount(trial, name));
  const link = { x: [], y: [] };
  for (const trial of members) {
    if (amount(trial, "test_error") === undefined) continue;
    link.x.push(String(trial.number), String(trial.number), null);
    link.y.push(share(trial, "error"), share(trial, "test_error"), null);
  }
  const dots = (name, label, marker) => ({
    type: "scatter", mode: "markers", name: label, x: labels, y: members.map((trial) => share(trial, name)), marker,
    hovertemplate: `trial %{x}, ${label}: %{y:.2f} %<extra></extra>`,
  });
  Plotly.react("test-plot", [
    { type: "scatter", mode: "lines", ...link, line: { color: css("dominated"), width: 2 }, hoverinfo: "skip", showlegend: false },
    dots("error", "validation", { color: css("front"), size: 9 }),
    dots("test_error", "test", { color: css("infeasible"), size: 9, symbol: "diamond" }),
  ], layout({
    xaxis: { title: title("trial, by validation error"), type: "category" },
    yaxis: { title: title("error, %"), rangemode: "tozero" },
  }), plotConfig);
}

function parallelDimension(members, name, values, isLog, unit) {
  const label = unit ? `${name}, ${unit}` : name;
  const numeric = values.every((value) => typeof value === "number");
  if (!numeric) {
    const choices = [...new Set(values.map(String))].sort();
    return { label, values: values.map((value) => choices.indexOf(String(value))), tickvals: choices.map((_, i) => i), ticktext: choices };
  }
  if (!isLog) {
    const kinds = [...new Set(values)].sort((a, b) => a - b);
    const ticks = apart(kinds);
    return kinds.length <= 8 ? { label, values, tickvals: ticks, ticktext: ticks.map(paramText) } : { label, values };
  }
  const logs = values.map((value) => Math.log10(value));
  const low = Math.min(...logs), high = Math.max(...logs);
  const evenly = [0, 0.25, 0.5, 0.75, 1].map((share) => low + share * (high - low));
  const isWhole = values.every(Number.isInteger);
  const ticks = apart(isWhole ? [...new Set(evenly.map((tick) => Math.round(10 ** tick)))].map(Math.log10) : evenly);
  return { label: `${label} (log)`, values: logs, tickvals: ticks, ticktext: ticks.map((tick) => (isWhole ? String(Math.round(10 ** tick)) : (10 ** tick).toPrecision(2))) };
}

function shortLabels(names) {
  // The section's name (network., training., compression.) is left out where the rest stays unique.
  const rest = names.map((name) => name.slice(name.indexOf(".") + 1));
  return names.map((name, index) => (rest.filter((other) => other === rest[index]).length > 1 ? name : rest[index]).replaceAll("_", " "));
}

function drawParallel() {
  const pool = $("only-front").checked ? front : trials.filter((trial) => trial.state === "complete");
  const members = pool.filter((trial) => report.objectives.every(({ name }) => amount(trial, name) !== undefined));
  const plot = $("parallel-plot");
  if (!members.length) { drawEmpty("parallel-plot", "No complete trial yet."); return; }
  plot.querySelector(".empty")?.remove();
  const names = report.params.filter((name) => members.every((trial) => name in trial.params));
  const labels = shortLabels(names);
  const dimensions = names.map((name, index) =>
    parallelDimension(members, labels[index], members.map((trial) => trial.params[name]), report.log_params.includes(name)));
  for (const quantity of report.objectives) {
    dimensions.push(parallelDimension(members, quantity.name, members.map((trial) => scaled(trial, quantity)), false, quantity.axis_unit));
  }
  const colour = quantities.get("error") && members.every((trial) => amount(trial, "error") !== undefined) ? quantities.get("error") : report.objectives[0];
  plot.style.minWidth = `${Math.max(0, dimensions.length * 84)}px`;
  Plotly.react(plot, [{
    type: "parcoords", dimensions, labelfont: { size: 11.5, color: css("text") }, tickfont: { size: 10.5, color: css("quiet") },
    rangefont: { size: 1, color: "rgba(0,0,0,0)" }, labelangle: dimensions.length > 9 ? -18 : 0, labelside: "top",
    line: { color: members.map((trial) => scaled(trial, colour)), colorscale: colourScale() },
    unselected: { line: { color: css("dominated"), opacity: 0.08 } },
  }], layout({ margin: { l: 44, r: 40, t: dimensions.length > 9 ? 88 : 48, b: 16 }, height: 350 }), parallelConfig);
}

// ---------------------------------------------------------------- layers

const layerMeasures = [["cycles", "cycles"], ["instructions", "instructions"], ["macs", "MACs"], ["weights_bytes", "weight bytes"], ["output_bytes", "output bytes"]];

function fillTrialsWith(id, has) {
  // Trials that have what the card shows, those of the front first.
  const members = trials.filter(has).sort((a, b) => Number(b.front) - Number(a.front) || a.number - b.number);
  fillSelect($(id), members.map((trial) => [String(trial.number), `${trial.number}${trial.front ? " (front)" : ""}`]), String(chosen));
  return members;
}

function fillLayers() {
  return fillTrialsWith("layers-trial", (trial) => trial.layers.length);
}

function fillMemory() {
  return fillTrialsWith("memory-trial", (trial) => trial.memory);
}

function setUpLayers() {
  const members = fillLayers();
  if (!members.length) { $("layers-card").hidden = true; return; }
  const present = layerMeasures.filter(([key]) => members.some((trial) => trial.layers.some((layer) => typeof layer[key] === "number")));
  fillSelect($("layers-measure"), present, present[0]?.[0]);
  for (const id of ["layers-trial", "layers-measure"]) $(id).addEventListener("change", drawLayers);
}

function drawLayers() {
  const trial = byNumber.get(Number($("layers-trial").value)), measure = $("layers-measure").value;
  if (!trial || !measure) return;
  const words = $("layers-measure").selectedOptions[0].text;
  const where = report.boards.length ? ` on ${view || report.boards[0].kind}` : "";
  drawBars("layers-plot", trial.layers, measure, `${words} of trial ${trial.number}${where}`, trial.layer_sources[measure] ?? "");
}

function setUpMemory() {
  if (!fillMemory().length) { $("memory-card").hidden = true; return; }
  $("memory-trial").addEventListener("change", drawMemoryOfTrial);
}

function drawMemoryOfTrial() {
  const trial = byNumber.get(Number($("memory-trial").value));
  if (trial?.memory) drawMemory("memory-plot", trial.memory);
}

// ---------------------------------------------------------------- table

function columns() {
  const shown = [...new Set([...report.objectives.map(({ name }) => name), ...(quantities.has("latency") ? ["latency"] : []), ...(quantities.has("test_error") ? ["test_error"] : [])])];
  return [
    { key: "number", title: "trial", number: true, of: (trial) => trial.number },
    { key: "state", title: "ended", of: stateOf },
    ...shown.map((name) => ({ key: name, title: quantities.get(name)?.title ?? name, number: true, value: name, of: (trial) => amount(trial, name) })),
    { key: "seconds", title: "time", number: true, of: (trial) => Object.values(trial.seconds).reduce((a, b) => a + b, 0) },
    { key: "reason", title: "", of: (trial) => trial.reason },
  ];
}

function setUpTable() {
  const head = element("tr");
  for (const column of columns()) {
    head.append(element("th", {
      class: column.number ? "number" : "", "data-key": column.key, tabindex: "0",
      onclick: () => sortBy(column.key), onkeydown: (event) => { if (event.key === "Enter") sortBy(column.key); },
    }, column.title));
  }
  $("table").tHead.replaceChildren(head);
  const states = ["front", "complete", "infeasible", "stopped", "fault"].filter((state) => trials.some((trial) => stateOf(trial) === state));
  $("filters").replaceChildren(...states.map((state) => element("label", { class: "check" }, element("input", {
    type: "checkbox", checked: "checked",
    onchange: (event) => { shownStates[event.target.checked ? "add" : "delete"](state); drawTable(); },
  }), ` ${{ complete: "dominated", stopped: "stopped early" }[state] ?? state}`)));
}

function sortBy(key) {
  sorting = { key, ascending: sorting.key === key ? !sorting.ascending : true };
  drawTable();
}

function drawTable() {
  const all = columns();
  const column = all.find(({ key }) => key === sorting.key);
  const sign = sorting.ascending ? 1 : -1;
  const rows = trials.filter((trial) => shownStates.has(stateOf(trial)) || !["front", "complete", "infeasible", "stopped", "fault"].includes(stateOf(trial)));
  rows.sort((a, b) => {
    const [left, right] = [column.of(a), column.of(b)];
    if (left === undefined || right === undefined) return (left === undefined) - (right === undefined); // those without stay last
    return sign * (left < right ? -1 : left > right ? 1 : 0) || a.number - b.number;
  });
  for (const cell of $("table").tHead.rows[0].cells) {
    if (cell.dataset.key === sorting.key) cell.setAttribute("aria-sort", sorting.ascending ? "ascending" : "descending");
    else cell.removeAttribute("aria-sort");
  }
  $("table").tBodies[0].replaceChildren(...rows.map((trial) => tableRow(trial, all)));
}

function tableRow(trial, all) {
  const row = element("tr", { "data-number": trial.number, class: trial.number === chosen ? "chosen" : "", onclick: () => choose(trial.number) });
  for (const column of all) row.append(tableCell(trial, column));
  return row;
}

function tableCell(trial, column) {
  if (column.key === "state") return element("td", {}, element("span", { class: `badge ${stateOf(trial)}` }, stateWords(trial)));
  if (column.key === "reason") {
    const links = trial.downloads.map(([label, link]) => element("a", { href: link, download: "", onclick: (event) => event.stopPropagation() }, label));
    return element("td", { class: "reason" }, trial.reason, links.length ? element("span", { class: "downloads" }, ...links) : "");
  }
  if (column.key === "seconds") { const s = column.of(trial); return element("td", { class: "number" }, s ? `${s.toFixed(1)} s` : ""); }
  if (!column.value) return element("td", { class: "number" }, String(column.of(trial)));
  const value = trial.values[column.value];
  return value ? element("td", { class: "number" }, value.text, sourceMark(value), ...onEach(trial, column.value)) : element("td", { class: "number quiet" }, "–");
}

// ---------------------------------------------------------------- export

function fillExport() {
  const members = front.length ? front : trials.filter((trial) => trial.state === "complete");
  const text = (trial) => [trial.number, ...["error", "rom"].filter((name) => trial.values[name]).map((name) => trial.values[name].text)].join(" · ");
  fillSelect($("export-trial"), members.map((trial) => [String(trial.number), text(trial)]), String(chosen));
}

function setUpExport() {
  fillExport();
  $("export-trial").addEventListener("change", drawExport);
  $("copy").addEventListener("click", async () => {
    try { await navigator.clipboard.writeText($("export-command").textContent); $("copy").textContent = "copied"; }
    catch { getSelection().selectAllChildren($("export-command")); } // no clipboard for file:// pages: mark the text instead
    setTimeout(() => { $("copy").textContent = "copy"; }, 1500);
  });
}

function drawExport() {
  $("export-command").textContent = report.export_command
    .replaceAll("{trial}", $("export-trial").value || "N").replaceAll("{board}", view || report.boards[0]?.kind);
}

// ---------------------------------------------------------------- all of it

function fillTrials() {
  fillLayers(); fillMemory(); fillExport();
}

function drawAll() {
  drawFront(); drawBoards(); drawDetail(); drawHistory(); drawTest(); drawParallel(); drawLayers(); drawMemoryOfTrial(); drawTable(); drawExport();
}

setUpViews();
setUpFront();
setUpBoards();
setUpLayers();
setUpMemory();
setUpTable();
setUpExport();
setUpTheme(drawAll);
$("only-front").addEventListener("change", drawParallel);
drawAll();
followSizes();
$("front-plot").on?.("plotly_click", (event) => {
  const number = event.points[0].customdata;
  if (number !== undefined) choose(number);
});
document.documentElement.dataset.ready = "yes";
