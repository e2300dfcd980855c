// Draws the report of a compiled model from the JSON in #data, behind charts.js.

const report = JSON.parse(document.getElementById("data").textContent);

function drawAll() {
  drawBars("layers-plot", report.layers, "cycles", "cycles", report.layer_sources.cycles ?? "");
  if (report.memory) drawMemory("memory-plot", report.memory);
}

setUpTheme(drawAll);
drawAll();
followSizes();
document.documentElement.dataset.ready = "yes";
