// The Pareto front of a study's report: axes, points, limits. What is not here stands in charts.js and report.js.

const frontConfig = { ...plotConfig, modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomOut2d", "autoScale2d", "resetScale2d"]] };

function fillSelect(select, entries, initial) {
  select.replaceChildren(...entries.map(([value, text]) => element("option", { value, selected: value === initial }, text)));
}

function setUpFront() {
  const entries = report.quantities.map((quantity) => [quantity.name, quantity.title]);
  const names = entries.map(([name]) => name);
  const pick = (...wishes) => wishes.find((name) => names.includes(name)) ?? names[0];
  fillSelect($("x-axis"), entries, pick("rom", "flops", "ram"));
  fillSelect($("y-axis"), entries, pick("error", "latency", "ram"));
  fillSelect($("colour"), [["", "by kind"], ...entries], pick("ram", "flops"));
  for (const [axis, box] of [["x-axis", "log-x"], ["y-axis", "log-y"]]) {
    $(axis).addEventListener("change", () => { $(box).checked = isWide($(axis).value); drawFront(); });
    $(box).checked = isWide($(axis).value);
  }
  for (const id of ["colour", "log-x", "log-y"]) $(id).addEventListener("change", drawFront);
}

function isWide(name) {
  // A logarithmic axis reads better once what it starts with spans a few times its least value, and cannot show a zero.
  const quantity = quantities.get(name), { shown } = amountsOf(quantity, trials);
  const limit = limitOf(quantity), least = Math.min(...shown);
  return least > 0 && Math.max(...shown, isNear(limit, shown) ? limit : 0) > 4 * least;
}

function limitOf(quantity) {
  return quantity.limit === null ? null : quantity.limit * quantity.factor;
}

/** On an axis of this quantity: all amounts, and those it starts with: of the feasible, where there are any. */
function amountsOf(quantity, members) {
  const known = members.filter((trial) => scaled(trial, quantity) !== null);
  const feasible = known.filter((trial) => trial.state === "complete");
  return { all: known.map((trial) => scaled(trial, quantity)), shown: (feasible.length ? feasible : known).map((trial) => scaled(trial, quantity)) };
}

/** The axis of a quantity, which starts with the feasible trials and the limit; the rest is there when zoomed out. */
function frontAxis(quantity, box, members, fromZero) {
  const isLog = $(box).checked, { shown } = amountsOf(quantity, members);
  const range = viewOf(shown, limitOf(quantity), isLog, fromZero);
  const ticks = isLog ? { type: "log", dtick: range && range[1] - range[0] < 1 ? "D1" : "D2", tickformat: "~g" } : { type: "linear", dtick: null, tickformat: "" };
  return { title: title(axisTitle(quantity)), ...(range ? { range } : {}), ...(fromZero && !isLog ? { rangemode: "tozero" } : {}), ...ticks };
}

function pointTrace(name, members, x, y, marker) {
  return {
    type: "scatter", mode: "markers", name, marker,
    x: members.map((trial) => scaled(trial, x)), y: members.map((trial) => scaled(trial, y)),
    customdata: members.map((trial) => trial.number), text: members.map(hoverText), hoverinfo: "text",
  };
}

function drawFront() {
  if (!trials.some((trial) => Object.keys(trial.values).length)) {
    drawEmpty("front-plot", "No trial has ended yet.");
    return;
  }
  const x = quantities.get($("x-axis").value), y = quantities.get($("y-axis").value);
  const colour = quantities.get($("colour").value);
  const placed = trials.filter((trial) => scaled(trial, x) !== null && scaled(trial, y) !== null);
  const kind = (state) => placed.filter((trial) => stateOf(trial) === state);
  const traces = [
    pointTrace("dominated", kind("complete"), x, y, { color: css("dominated"), size: 8, opacity: 0.75 }),
    pointTrace("infeasible", kind("infeasible"), x, y, { color: css("infeasible"), size: 9, symbol: "x-thin-open", line: { width: 2 } }),
    stairs(x, y),
    pointTrace("front", kind("front"), x, y, frontMarker(kind("front"), colour)),
  ];
  for (const [state, words, symbol] of [["infeasible", "infeasible", "line-ns-open"], ["stopped", "stopped early", "triangle-up-open"]]) {
    const unknown = trials.filter((trial) => trial.state === state && scaled(trial, x) !== null && scaled(trial, y) === null);
    traces.push({
      ...pointTrace(`${words}, ${y.title} not known`, unknown, x, x, { color: css(state), symbol, size: 9, line: { width: 1.5 } }),
      y: unknown.map(() => 0.985), yaxis: "y2",
    });
  }
  const mark = byNumber.get(chosen);
  if (mark && scaled(mark, x) !== null && scaled(mark, y) !== null) {
    traces.push({
      type: "scatter", mode: "markers", x: [scaled(mark, x)], y: [scaled(mark, y)], hoverinfo: "skip", showlegend: false,
      marker: { size: 22, color: "rgba(0,0,0,0)", line: { color: css("text"), width: 1.5 } },
    });
  }
  const known = trials.filter((trial) => scaled(trial, x) !== null);
  const xaxis = frontAxis(x, "log-x", known, false), yaxis = frontAxis(y, "log-y", placed.length ? placed : trials, true);
  Plotly.react("front-plot", traces.filter((trace) => trace.x.length), layout({
    xaxis, yaxis, uirevision: [view, x.name, y.name, xaxis.type, yaxis.type].join(" "), // what was zoomed to stays
    yaxis2: { overlaying: "y", range: [0, 1], visible: false, fixedrange: true },
    margin: { l: 60, r: colour ? 8 : 14, t: 12, b: 48 },
    shapes: limitShapes(x, y),
  }), frontConfig);
  $("front-hint").textContent = frontHint(x, y) + outsideHint(known, [[x, xaxis], [y, yaxis]]);
}

function outsideHint(known, axes) {
  const isOutside = (trial) => axes.some(([quantity, { range, type }]) => {
    const value = scaled(trial, quantity), place = type === "log" ? Math.log10(value) : value;
    return value !== null && range && (place < range[0] || place > range[1]);
  });
  const count = known.filter(isOutside).length;
  return count ? ` The view starts at the feasible trials and the limits; ${count} ${count === 1 ? "trial lies" : "trials lie"} outside it: double-click into the plot to see all, and again to come back.` : "";
}

function frontMarker(members, colour) {
  const marker = { size: 12, color: css("front"), line: { color: css("card"), width: 1.5 } };
  if (!colour || !members.length) return marker;
  return {
    ...marker, color: members.map((trial) => scaled(trial, colour)), colorscale: colourScale(),
    colorbar: {
      title: { text: axisTitle(colour), side: "right", font: { size: 12, color: css("quiet") } },
      thickness: 10, outlinewidth: 0, tickfont: { color: css("quiet"), size: 11 }, len: 0.9,
    },
  };
}

function stairs(x, y, members = front) {
  // The border of what the front dominates in these two quantities alone.
  const points = members.map((trial) => [scaled(trial, x), scaled(trial, y)])
    .filter(([a, b]) => a !== null && b !== null).sort((p, q) => p[0] - q[0] || p[1] - q[1]);
  const steps = [];
  for (const point of points) if (!steps.length || point[1] < steps[steps.length - 1][1]) steps.push(point);
  return {
    type: "scatter", mode: "lines", showlegend: false, hoverinfo: "skip",
    x: steps.map((p) => p[0]), y: steps.map((p) => p[1]), line: { shape: "hv", color: css("front"), width: 1.5, dash: "dot" },
  };
}

function limitShapes(x, y) {
  const line = { color: css("infeasible"), width: 1, dash: "dash" };
  const near = (quantity) => {
    const { all, shown } = amountsOf(quantity, trials), limit = limitOf(quantity);
    return isNear(limit, shown) || (limit !== null && limit <= 1.3 * Math.max(...all));
  };
  const shapes = [];
  if (near(x)) shapes.push({ type: "line", xref: "x", yref: "paper", x0: x.limit * x.factor, x1: x.limit * x.factor, y0: 0, y1: 1, line });
  if (near(y)) shapes.push({ type: "line", yref: "y", xref: "paper", y0: y.limit * y.factor, y1: y.limit * y.factor, x0: 0, x1: 1, line });
  return shapes;
}

function frontHint(x, y) {
  const limits = [x, y].filter((quantity) => quantity.limit !== null).map((quantity) => `${quantity.title} ≤ ${quantity.limit_text}`);
  const objectives = report.objectives.length;
  const text = objectives > 2
    ? `The front is that of all ${objectives} objectives, so in two of them some of its points look dominated; the dotted stairs are the border in these two. `
    : "";
  return text + (limits.length ? `Limits: ${limits.join(", ")}.` : "");
}
