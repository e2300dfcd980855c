// The live page, behind charts.js: asks for one JSON document again and again and brings the page up to date in place.
// What has not changed is not touched, so nothing flickers and a chosen axis stays chosen.

const EVERY_MS = 2000;
const liveConfig = { displaylogo: false, responsive: true, displayModeBar: false };
const here = decodeURIComponent(location.pathname.match(/^\/study\/(.+)$/)?.[1] ?? "");
const letters = { exact: "x", measured: "m", emulated: "e", estimated: "s" };
const wall = matchMedia("(min-width: 1500px) and (min-height: 800px)"); // as in live.css: nothing is scrolled there
let study = null, boards = { boards: [], text: "" }, offset = 0, heard = 0;

// ---------------------------------------------------------------- small helpers

function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function span(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${String(s % 60).padStart(2, "0")} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${String(Math.floor(s / 60) % 60).padStart(2, "0")} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor(s / 3600) % 24} h`;
}

function now() { return Date.now() / 1000 + offset; }

/** Children of ``parent`` become one node an item, in order; a node stays with its key and is only written anew. */
function sync(parent, items, keyOf, make, write) {
  const nodes = new Map([...parent.children].map((node) => [node.dataset.key, node]));
  const isFirst = !parent.dataset.filled;
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = String(keyOf(item));
    let node = nodes.get(key);
    if (!node) {
      node = make(item);
      node.dataset.key = key;
      if (!isFirst) node.classList.add("news");
    }
    nodes.delete(key);
    if (node !== place) parent.insertBefore(node, place);
    else place = place.nextElementSibling;
    write(node, item);
  }
  for (const node of nodes.values()) node.remove();
  parent.dataset.filled = "yes";
}

/** Writes cells as [class, content, what it is]; content is text or a list of nodes, which is only put in anew when it
 * differs. */
function cells(row, entries) {
  while (row.cells.length < entries.length) row.append(element("td"));
  entries.forEach(([kind, content, label = ""], index) => {
    const cell = row.cells[index];
    if (cell.dataset.label !== label) cell.dataset.label = label;
    if (cell.className !== kind) cell.className = kind;
    if (typeof content === "string") {
      say(cell, content);
      if (kind === "reason") cell.title = content; // on a wall it may be cut off
      return;
    }
    const mark = content.map((node) => node.outerHTML).join("");
    if (cell.dataset.mark !== mark) { cell.replaceChildren(...content); cell.dataset.mark = mark; }
  });
}

function pill(node, state) {
  say(node, { quiet: `nothing new for ${span(now() - state.since)}`, stopped: "stopped", ended: "finished", new: "new" }[state.word] ?? state.word);
  node.className = `pill ${state.word}`;
  node.title = state.text;
}

// ---------------------------------------------------------------- one study

function drawHead() {
  document.title = `${study.told}/${study.budget} ${study.name} · Edgefront`;
  say($("name"), study.name);
  pill($("state"), study.state);
  say($("lead"), `${study.family} networks for ${study.dataset} on ${study.board}, searched with ${study.sampler}`);
  say($("told"), study.told.toLocaleString("en"));
  say($("budget"), ` / ${study.budget.toLocaleString("en")} trials`);
  $("bar").style.width = `${Math.min(100, 100 * study.told / Math.max(1, study.budget))}%`;
  $("figures").style.setProperty("--letters", Math.max(7, ...study.figures.map(({ figure }) => figure.length)));
  sync($("figures"), study.figures, (figure) => figure.title, () => element("div", { class: "figure" },
    element("p", { class: "figure-title" }), element("p", { class: "figure-value" }), element("p", { class: "figure-about" })),
  (node, figure) => {
    node.dataset.gained = figure.since ?? "";
    [figure.title, figure.figure, figure.since ? gained(figure.since) : figure.about].forEach((text, index) => say(node.children[index], text));
  });
}

function gained(since) { return `last gain ${span(now() - since)} ago`; }

function setUpAxes() {
  const names = study.objectives.map(({ name }) => name);
  const pick = (...wishes) => wishes.find((name) => names.includes(name)) ?? names[0];
  const first = pick("rom", "latency", "ram", "flops", "energy");
  const second = pick("error", ...names.filter((name) => name !== first));
  for (const [id, chosen] of [["x-axis", first], ["y-axis", second]]) {
    if ($(id).options.length) continue;
    $(id).replaceChildren(...study.objectives.map(({ name, title: words }) => element("option", { value: name, selected: name === chosen }, words)));
    $(id).addEventListener("change", drawFront);
  }
}

function quantity(id) {
  return study.objectives.find(({ name }) => name === $(id).value);
}

function size() {
  return parseFloat(getComputedStyle(document.documentElement).fontSize);
}

function axis(words) {
  const font = { size: 0.8 * size(), color: css("quiet") };
  return { title: { text: words, font, standoff: 6 }, tickfont: font };
}

function drawFront() {
  const x = quantity("x-axis"), y = quantity("y-axis");
  const { number, state, values } = study.points;
  const rows = number.map((one, index) => ({ number: one, state: state[index], x: values[x.name][index], y: values[y.name][index] }))
    .filter((row) => row.x !== null && row.y !== null)
    .map((row) => ({ ...row, x: row.x * x.factor, y: row.y * y.factor }));
  if (!rows.length) { showEmpty("front-plot", "No trial has ended yet."); return; }
  const dot = size();
  const marks = {
    complete: ["dominated", { color: css("dominated"), size: 0.5 * dot, opacity: 0.7 }],
    infeasible: ["infeasible", { color: css("infeasible"), size: 0.55 * dot, symbol: "x-thin-open", line: { width: 2 } }],
    front: ["front", { color: css("front"), size: 0.85 * dot, line: { color: css("card"), width: 1.5 } }],
  };
  const traces = Object.entries(marks).map(([kind, [words, marker]]) => {
    const members = rows.filter((row) => row.state === kind);
    return {
      type: "scatter", mode: "markers", name: words, marker, x: members.map((row) => row.x), y: members.map((row) => row.y),
      text: members.map((row) => `trial ${row.number}`), hovertemplate: "%{text}<br>%{x:.4g} · %{y:.4g}<extra></extra>",
    };
  });
  const steps = [];
  for (const row of rows.filter((one) => one.state === "front").sort((a, b) => a.x - b.x || a.y - b.y)) {
    if (!steps.length || row.y < steps[steps.length - 1].y) steps.push(row);
  }
  traces.push({
    type: "scatter", mode: "lines", showlegend: false, hoverinfo: "skip", x: steps.map((row) => row.x), y: steps.map((row) => row.y),
    line: { shape: "hv", color: css("front"), width: 2, dash: "dot" },
  });
  const amounts = rows.map((row) => row.x);
  const isWide = Math.min(...amounts) > 0 && Math.max(...amounts) > 10 * Math.min(...amounts);
  const words = (one) => (one.axis_unit ? `${one.title}, ${one.axis_unit}` : one.title);
  Plotly.react("front-plot", traces, layout({
    uirevision: `${x.name} ${y.name}`, margin: { l: 10, r: 10, t: 6, b: 10 }, font: { size: 0.8 * dot, color: css("text") },
    legend: { orientation: "h", y: 1, yanchor: "bottom", x: 0, font: { size: 0.8 * dot, color: css("quiet") } },
    xaxis: { ...axis(words(x)), ...(isWide ? { type: "log", dtick: "D2", tickformat: "~g" } : { type: "linear", rangemode: "tozero" }) },
    yaxis: { ...axis(words(y)), rangemode: "tozero" },
  }), liveConfig);
}

function drawHistory() {
  say($("history-hint"), study.edits.length ? "judged by the limits that hold now" : "");
  if (!study.history.length) { showEmpty("history-plot", "No trial is on a front yet."); return; }
  const last = study.history[study.history.length - 1];
  const until = ["running", "pausing", "stopping"].includes(study.state.word) ? now() : study.state.since ?? last[0];
  const points = [...study.history, [Math.max(until, last[0]), last[1]]];
  const firstEdit = study.edits[0]?.[0];
  if (firstEdit < points[0][0]) points.unshift([firstEdit, 0]);
  Plotly.react("history-plot", [{
    type: "scatter", mode: "lines", x: points.map(([time]) => new Date(1000 * time)), y: points.map(([, value]) => value),
    line: { shape: "hv", color: css("front"), width: 0.2 * size() }, fill: "tozeroy", fillcolor: css("accent-soft"),
    hovertemplate: "%{x|%d %b %H:%M:%S}<br>%{y:.4f}<extra></extra>",
  }], layout({
    uirevision: "history", margin: { l: 10, r: 14, t: 6, b: 10 }, font: { size: 0.8 * size(), color: css("text") },
    xaxis: { ...axis(""), type: "date" }, yaxis: { ...axis("0 to 1"), rangemode: "tozero" },
    ...editMarks(study.edits.map(([time, words]) => [new Date(1000 * time), words]), 0.8 * size()),
  }), liveConfig);
}

function showEmpty(id, text) {
  if ($(id).textContent !== text) drawEmpty(id, text);
}

function steps(row) {
  const at = study.stages.indexOf(row.stage);
  const now = { running: "now", queued: "next" }[row.state] ?? "done";
  const marks = study.stages.map((stage, index) => element("i", { title: stage, class: index < at ? "done" : index === at ? now : "" }));
  return element("span", { class: "steps", title: study.stages.join(" → ") }, ...marks);
}

function doing(row) {
  const again = row.attempt > 1 ? `, attempt ${row.attempt}` : "";
  const where = row.state === "running" && row.worker ? ` on ${row.worker}` : "";
  if (row.epochs) {
    const accuracy = row.accuracy === undefined || row.accuracy === null ? "" : `, accuracy ${(100 * row.accuracy).toFixed(1)} %`;
    return [element("span", {}, `epoch ${row.epoch}/${row.epochs}${accuracy}${again}`), element("progress", { max: row.epochs, value: row.epoch })];
  }
  const words = { proposed: "just proposed", queued: "waits for a worker", running: `runs${where}` }[row.state] ?? row.state;
  return [element("span", {}, words + again)];
}

function drawWay() {
  document.body.classList.toggle("idle", !study.under_way.length);
  sync($("way").tBodies[0], study.under_way, (row) => row.number, () => element("tr", { "data-way": "" }), (node, row) => {
    node.dataset.since = row.since;
    cells(node, [["number", `#${row.number}`], ["", [steps(row)]], ["", row.stage || "–"], ["wide", doing(row)], ["number for", span(now() - row.since)]]);
  });
}

function drawEnded() {
  const titles = study.objectives.map(({ title: words }) => words.replace(" (validation)", ""));
  const head = element("tr", {}, ...["trial", "", ...titles, "took", ""].map((words, index) =>
    element("th", { class: index === 0 || (index > 1 && words) ? "number" : "" }, words)));
  if ($("ended").tHead.textContent !== head.textContent) $("ended").tHead.replaceChildren(head);
  const words = { complete: "dominated", stopped: "stopped early", front: "on the front" };
  sync($("ended").tBodies[0], study.ended, (row) => row.number, () => element("tr", { "data-ended": "" }), (node, row) => {
    const values = study.objectives.map(({ name }, index) => {
      const value = row.values[name];
      return ["number", value ? [element("span", {}, value.text), element("sup", { class: `source ${value.source}`, title: value.source }, letters[value.source])] : "–", titles[index]];
    });
    cells(node, [
      ["number", `#${row.number}`], ["", [element("span", { class: `badge ${row.state}` }, words[row.state] ?? row.state)]],
      ...values, ["number", span(row.seconds), "took"], ["reason", row.reason],
    ]);
  });
}



/** On a wall, rows for which there is no room are left out; answers how many are there. */
function fit(id) {
  const rows = [...$(id).tBodies[0].rows];
  for (const row of rows) row.hidden = false;
  const bottom = $(id).parentElement.getBoundingClientRect().bottom;
  const shown = wall.matches ? rows.filter((row) => row.getBoundingClientRect().bottom <= bottom + 0.5).length : rows.length;
  for (const row of rows.slice(shown)) row.hidden = true;
  return shown;
}

function fitTables() {
  if (!study) return;
  const count = study.under_way.length, first = fit("way");
  say($("way-hint"), `${count} ${count === 1 ? "trial" : "trials"}${first < count ? `, the first ${first} shown` : ""}`);
  const sources = new Set(study.ended.flatMap((row) => Object.values(row.values).map(({ source }) => source)));
  const legend = Object.entries(letters).filter(([source]) => sources.has(source)).map(([source, letter]) => `${letter} ${source}`);
  const last = fit("ended"), words = `the last ${last === 1 ? "one" : last}`;
  say($("ended-hint"), [count ? "" : "nothing under way", last ? words : "", legend.join(", ")].filter(Boolean).join(" · "));
}

function drawBoards(prefix) {
  document.body.classList.toggle("no-boards", !boards.boards.length && !boards.text);
  say($(`${prefix}-hint`), boards.boards.length ? counts(boards.boards) : boards.text);
  sync($(prefix), boards.boards, (board) => `${board.agent}/${board.board}`, () => element("div", {}, element("b"), element("span", { class: "what" }), element("span")), (node, board) => {
    node.className = `board ${board.state}`;
    node.title = [board.board, board.kind, board.agent, board.detail].join("\n");
    [board.board, board.detail ? `${board.state}: ${board.detail}` : board.state, board.kind].forEach((text, index) => say(node.children[index], text));
  });
}

function counts(all) {
  const found = {};
  for (const { state } of all) found[state] = (found[state] ?? 0) + 1;
  return Object.entries(found).map(([state, count]) => `${count} ${state}`).join(", ");
}

function drawLinks(links) {
  const nodes = [];
  for (const [words, target] of Object.entries(links)) {
    const isAddress = /^https?:\/\//.test(target);
    nodes.push(element("span", {}, `${words}: `, isAddress ? element("a", { href: target, rel: "noreferrer" }, target) : element("code", {}, target)));
  }
  const mark = nodes.map((node) => node.outerHTML).join("");
  if ($("footer").dataset.mark !== mark) { $("footer").replaceChildren(...nodes); $("footer").dataset.mark = mark; }
}

function drawStudy() {
  $("studies").hidden = true;
  $("study").hidden = false;
  setUpAxes();
  drawHead(); drawFront(); drawHistory(); drawWay(); drawEnded(); drawBoards("boards"); drawLinks(study.links ?? {});
  fitTables();
}

// ---------------------------------------------------------------- all studies

function sparkline(history) {
  const picture = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  picture.setAttribute("class", "spark");
  picture.setAttribute("viewBox", "0 0 100 30");
  picture.setAttribute("preserveAspectRatio", "none");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  const [first, last] = [history[0]?.[0] ?? 0, Math.max(now(), history[history.length - 1]?.[0] ?? 0)];
  const highest = Math.max(1e-9, ...history.map(([, value]) => value));
  const place = ([time, value]) => `${(100 * (time - first) / Math.max(1, last - first)).toFixed(1)} ${(29 - 27 * value / highest).toFixed(1)}`;
  path.setAttribute("d", history.length ? `M 0 29 ${history.map((point, index) => (index ? `H ${place(point).split(" ")[0]} V ${place(point).split(" ")[1]}` : `L ${place(point)}`)).join(" ")} H 100` : "M 0 29 H 100");
  picture.append(path);
  return picture;
}

function drawStudies(list) {
  $("studies").hidden = false;
  say($("name"), `${list.studies.length} ${list.studies.length === 1 ? "study" : "studies"}`);
  sync($("tiles"), list.studies, (row) => row.name, (row) => element("a", { class: "card tile", href: `/study/${encodeURIComponent(row.name)}` },
    element("h3", {}, element("span", {}, row.name), element("span", { class: "pill" })),
    element("div", { class: "track" }, element("i")), element("div", { class: "pairs" }), element("p", { class: "quiet" }), element("div")),
  (node, row) => {
    if (row.error) { say(node.children[3], row.error); return; }
    pill(node.querySelector(".pill"), row.state);
    node.querySelector(".track i").style.width = `${Math.min(100, 100 * row.told / Math.max(1, row.budget))}%`;
    const pairs = [[`${row.told} / ${row.budget}`, "trials"], ...row.figures.slice(0, 3).map((figure) => [figure.figure, figure.title])];
    sync(node.children[2], pairs, ([, words]) => words, () => element("span", {}, element("b"), " ", element("span", { class: "quiet" })),
      (pair, [text, words]) => { say(pair.children[0], text); say(pair.children[1], words); });
    say(node.children[3], row.board);
    node.children[4].replaceChildren(sparkline(row.history));
  });
  drawBoards("lab");
  drawLinks(list.links);
  $("none").hidden = list.studies.length > 0;
}

// ---------------------------------------------------------------- asking, again and again

async function ask(path) {
  const answer = await fetch(path, { cache: "no-cache", credentials: "same-origin" });
  if (answer.status === 401) { location.reload(); throw new Error("the token is asked for"); }
  const data = await answer.json();
  const sent = Date.parse(answer.headers.get("Date"));
  if (sent) offset = (sent - Date.now()) / 1000; // what counts is the server's clock
  if (!answer.ok) throw Object.assign(new Error(data.error), { status: answer.status });
  return data;
}

async function look() {
  if (!here) { await lookAtAll(); return; }
  try {
    [study, boards] = await Promise.all([ask(`/api/study/${encodeURIComponent(here)}`), ask("/api/boards")]);
  } catch (error) {
    if (error.status === 404 && !study) await lookForAnother();
    throw error;
  }
  drawStudy();
}

async function lookAtAll() {
  let list;
  [list, boards] = await Promise.all([ask("/api/studies"), ask("/api/boards")]);
  drawStudies(list);
}

/** There is no such study, or not yet: those there are lead on from here. */
async function lookForAnother() {
  await lookAtAll();
  say($("name"), here);
  document.title = `no study ${here} · Edgefront`;
}

function showError(text) {
  $("error").hidden = !text;
  say($("error"), text);
}

async function again() {
  try {
    await look();
    heard = Date.now();
    showError("");
  } catch (error) {
    // A server that is away says nothing; what it said last stays, with its age.
    showError(error instanceof TypeError ? "" : error.message);
  }
  tick();
  document.documentElement.dataset.ready = "yes";
  setTimeout(again, EVERY_MS);
}

function tick() {
  const age = heard ? (Date.now() - heard) / 1000 : 0;
  const isLost = age > 3 * EVERY_MS / 1000;
  say($("fresh"), isLost ? `no answer for ${span(age)}` : new Date().toLocaleTimeString([], { hour12: false }));
  $("fresh").className = isLost ? "lost" : "";
  for (const node of document.querySelectorAll("[data-gained]")) if (node.dataset.gained) say(node.children[2], gained(Number(node.dataset.gained)));
  for (const row of document.querySelectorAll("[data-way]")) {
    const cell = row.querySelector(".for");
    if (cell) say(cell, span(now() - Number(row.dataset.since)));
  }
}

setUpTheme(() => { if (study) { drawFront(); drawHistory(); } });
followSizes(fitTables);
setInterval(tick, 1000);
again();
