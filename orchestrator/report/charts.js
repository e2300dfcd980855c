"use strict";
// What the report of a study and that of a compiled model share. Layers and memory come as orchestrator.report.figures
// makes them.

const $ = (id) => document.getElementById(id);
const plotConfig = { displaylogo: false, responsive: true, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] };

// ---------------------------------------------------------------- small helpers

function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function layout(more) {
  const axis = {
    gridcolor: css("grid"), linecolor: css("line"), zerolinecolor: css("line"),
    tickfont: { color: css("quiet"), size: 12 }, automargin: true,
  };
  const { xaxis = {}, yaxis = {}, ...rest } = more;
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true,
    font: { family: getComputedStyle(document.body).fontFamily, color: css("text"), size: 13 },
    margin: { l: 56, r: 12, t: 12, b: 46 }, hovermode: "closest",
    hoverlabel: { bgcolor: css("card"), bordercolor: css("line"), font: { color: css("text") }, align: "left" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: css("dominated"), activecolor: css("accent") },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { color: css("quiet"), size: 12 } },
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
  };
}

function title(text) {
  return { text, font: { size: 13, color: css("quiet") }, standoff: 8 };
}

function isDark() {
  const theme = document.documentElement.dataset.theme;
  return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function escape(text) {
  return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function drawEmpty(id, text) {
  Plotly.purge(id);
  $(id).replaceChildren(element("p", { class: "empty" }, text));
}

/** Plots follow the size of their boxes, which a scroll bar or a part filled later changes without the window's doing. */
function followSizes(then = () => {}) {
  const observer = new ResizeObserver((entries) => {
    for (const { target } of entries) if (target.data && target.offsetParent) Plotly.Plots.resize(target);
    then();
  });
  for (const plot of document.querySelectorAll(".plot")) observer.observe(plot);
}

function setUpTheme(drawAll) {
  const themes = ["auto", "light", "dark"];
  const button = $("theme");
  button.addEventListener("click", () => {
    const next = themes[(themes.indexOf(document.documentElement.dataset.theme ?? "auto") + 1) % themes.length];
    if (next === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    button.textContent = `theme: ${next}`;
    drawAll();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
}

// ---------------------------------------------------------------- axes and marks

/** Whether a limit stands so near to what is shown that it belongs on the axis. */
function isNear(limit, amounts) {
  return limit !== null && limit <= 2 * Math.max(...amounts);
}

/** Where an axis starts: over these amounts and a limit near to them, with a margin; in the axis' own terms.
 * Null where there is none that the axis can show: then plotly chooses. */
function viewOf(amounts, limit, isLog, fromZero) {
  const shown = (isNear(limit, amounts) ? [...amounts, limit] : amounts).filter((value) => !isLog || value > 0);
  if (!shown.length) return null;
  const [low, high] = [Math.min(...shown), Math.max(...shown)].map((value) => (isLog ? Math.log10(value) : value));
  const margin = 0.06 * (high - low || (isLog ? 1 : Math.abs(high) || 1));
  return [fromZero && !isLog ? Math.min(0, low) : low - margin, high + margin];
}

/** Ticks that stand apart by a share of the axis, the outermost among them. */
function apart(ticks, share = 0.06) {
  const least = share * (ticks.at(-1) - ticks[0]);
  const kept = [];
  for (const tick of ticks) if (!kept.length || tick - kept.at(-1) >= least) kept.push(tick);
  if (kept.at(-1) === ticks.at(-1)) return kept;
  return [...(kept.length > 1 ? kept.slice(0, -1) : kept), ticks.at(-1)];
}

/** Lines where limits were tightened, with what they are since; ``edits`` are [place on the axis, words]. */
function editMarks(edits, size) {
  return {
    shapes: edits.map(([x]) => ({ type: "line", xref: "x", yref: "paper", x0: x, x1: x, y0: 0, y1: 1, line: { color: css("infeasible"), width: 1.5, dash: "dash" } })),
    annotations: edits.map(([x, text]) => ({
      x, y: 0.03, xref: "x", yref: "paper", xanchor: "right", yanchor: "bottom", textangle: -90, showarrow: false,
      text: escape(text), font: { size, color: css("infeasible") },
    })),
  };
}

// ---------------------------------------------------------------- layers and memory

/** One bar a layer; the source of the amounts stands in the axis title. */
function drawBars(id, layers, measure, words, source) {
  const amounts = layers.map((layer) => layer[measure] ?? 0);
  const total = amounts.reduce((sum, value) => sum + value, 0) || 1;
  const names = layers.map((layer, index) => `${index} ${layer.op ?? layer.name ?? ""}`);
  const shapeText = (layer) => (Array.isArray(layer.output_shape) ? layer.output_shape.join("×") : "");
  Plotly.react(id, [{
    type: "bar", orientation: "h", x: amounts, y: names, marker: { color: css("front"), opacity: 0.85 },
    text: amounts.map((value) => `${(100 * value / total).toFixed(1)} %`), textposition: "auto", insidetextfont: { color: css("card") },
    customdata: layers.map((layer) => [escape(String(layer.name ?? "")), shapeText(layer)]),
    hovertemplate: `%{customdata[0]} %{customdata[1]}<br>%{x:,}${source ? ` (${source})` : ""}<extra></extra>`,
  }], layout({
    xaxis: { title: title(`${words}${source ? `, ${source}` : ""}: ${total.toLocaleString("en")} in all`) },
    yaxis: { autorange: "reversed" }, height: Math.max(220, 30 * names.length + 88), bargap: 0.3, margin: { l: 110, r: 12, t: 24, b: 46 },
  }), plotConfig);
}

/** One rectangle a buffer, over the layers it lives through and at its bytes of the arena. */
function drawMemory(id, memory) {
  const colours = { activations: css("front"), scratch: css("infeasible") };
  const traces = Object.entries(memory.groups).filter(([, group]) => group.x.length).map(([name, group]) => ({
    type: "bar", name, x: group.x, width: group.width, base: group.base, y: group.height,
    customdata: group.about.map(escape), hovertemplate: "%{customdata}<extra></extra>",
    marker: { color: colours[name], opacity: 0.72, line: { color: css("card"), width: 1.5 } },
  }));
  traces.push({
    type: "scatter", mode: "text", ...memory.labels, textfont: { color: css("card"), size: memory.names.length > 20 ? 9 : 11.5 },
    hoverinfo: "skip", showlegend: false,
  });
  const bound = memory.bound_bytes, many = memory.names.length > 20;
  Plotly.react(id, traces, layout({
    barmode: "overlay", height: 380, showlegend: true,
    xaxis: {
      title: title("layer, in the order in which they run"), range: [-0.5, memory.names.length - 0.5], showgrid: false, zeroline: false,
      ...(many ? { tickformat: "d" } : { tickvals: memory.names.map((_, index) => index), ticktext: memory.names, tickangle: memory.names.length > 8 ? -40 : 0 }),
    },
    yaxis: { title: title(`bytes of the arena, exact: ${memory.arena_bytes.toLocaleString("en")} in all`), tickformat: ",d", range: [0, 1.12 * Math.max(memory.arena_bytes, bound)] },
    shapes: [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: bound, y1: bound, line: { color: css("text"), width: 1.5, dash: "dash" } }],
    annotations: [{
      xref: "paper", x: 1, y: bound, xanchor: "right", yanchor: "bottom", showarrow: false,
      text: `lower bound ${bound.toLocaleString("en")}${memory.peak_layer === null ? "" : `, set by layer ${memory.peak_layer}`}`, font: { size: 11.5, color: css("text") },
    }],
    margin: { l: 76, r: 12, t: 8, b: 60 },
  }), plotConfig);
}
