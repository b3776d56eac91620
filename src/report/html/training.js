// Training: token similarity by layer and step, and the curves of loss and similarity over the steps.
"use strict";
(() => {
  const { element, number, chart, select, matrix, scale } = Probe;
  const data = Probe.data("training");
  const root = document.getElementById("training");
  const state = { change: 1, curve: 0 };
  const names = data.layers;

  const cells = element("div", { id: "layers-by-step" });
  const legend = element("div");
  const curves = element("div", { class: "plot", id: "course" });
  const before = data.similarity[0];
  const valueAt = (row, column) => {
    const [value, start] = [data.similarity[column][row], before[row]];
    if (value === null || (state.change === 1 && start === null)) return null;
    return state.change === 1 ? value - start : value;
  };

  function drawMap() {
    const [rows, columns] = [names.length, data.steps.length];
    const values = names.flatMap((_, row) => data.steps.map((_, column) => valueAt(row, column))).filter((v) => v !== null);
    const [low, high] = [values.reduce((a, b) => Math.min(a, b), Infinity), values.reduce((a, b) => Math.max(a, b), -Infinity)];
    const shades = scale(values.length ? low : 0, values.length ? high : 1, state.change === 1);
    legend.replaceChildren(shades.legend(state.change === 1 ? "change of token similarity since before training" : "token-wise cosine similarity"));
    matrix(cells, {
      rows, columns,
      said: `Token similarity by layer and training step, ${rows} layers and ${columns} steps. Arrow keys move over the cells.`,
      hint: "Point at a cell, or press the arrow keys in the map. The deepest layer is at the top.",
      colour: (row, column) => { const v = valueAt(rows - 1 - row, column); return v === null ? null : shades.css(v); },
      read: (row, column) => {
        const layer = rows - 1 - row;
        const [value, start] = [data.similarity[column][layer], before[layer]];
        const apart = value === null || start === null ? "" : `, ${number(value - start, true)} since before training`;
        return `${names[layer]}, ${data.steps[column] === 0 ? "before training" : `after step ${data.steps[column]}`}: ${number(value)}${apart}`;
      },
      layout: (width) => ({ left: 104, top: 4, bottom: 40, cellWidth: Math.max(4, Math.min(46, (width - 120) / columns)), cellHeight: rows > 24 ? 11 : 18 }),
      labels: (pen, { left, top, cellWidth, cellHeight }) => {
        names.forEach((name, layer) => {
          if (rows > 40 && layer % 5 !== 0 && layer < rows - 2) return;
          pen.textAlign = "right";
          pen.fillText(name, left - 6, top + (rows - 0.5 - layer) * cellHeight + 4, 96);
        });
        const every = Math.max(1, Math.ceil(34 / cellWidth));
        pen.textAlign = "center";
        data.steps.forEach((step, column) => {
          if (column % every === 0) pen.fillText(String(step), left + (column + 0.5) * cellWidth, top + rows * cellHeight + 15);
        });
        pen.fillText("training step", left + (columns * cellWidth) / 2, top + rows * cellHeight + 32);
      },
    });
  }

  function drawCurves() {
    const shown = data.curves[state.curve];
    const drawn = shown.series.map((series, i) => ({
      label: series.name, look: { style: i, mark: i, dash: i, pale: false },
      points: series.points.map(([x, y]) => ({ x, y, low: null, high: null })),
    }));
    chart(curves, {
      series: drawn, xLabel: "training step", yLabel: shown.axis, ticks: (low, high, most) => Probe.ticks(low, high, most, true),
      said: `${shown.axis} over the training steps. Arrow keys move along the steps.`,
      read: (x) => ({
        title: x === 0 ? "Before training" : `Step ${x}`,
        rows: drawn.map((s) => [s, s.points.find((point) => point.x === x)]).filter(([, point]) => point && point.y !== null)
          .map(([s, point]) => ({ look: s.look, name: s.label, text: number(point.y) })),
      }),
    });
  }

  root.hidden = false;
  if (data.steps.length) {
    const mode = select("Colour", ["similarity", "change since before training"], (i) => { state.change = i; drawMap(); }, { id: "colour" });
    mode.box.value = 1;
    root.append(element("div", { class: "controls" }, mode.field), legend, cells);
    drawMap();
  }
  root.append(element("div", { class: "controls" }, select("Curve", data.curves.map((curve) => curve.name), (i) => { state.curve = i; drawCurves(); }, { id: "curve" }).field), curves,
    element("p", { class: "hint" }, "Point at the chart, or press the arrow keys in it, for values."));
  drawCurves();
})();
