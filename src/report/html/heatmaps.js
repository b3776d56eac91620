// Token × token cosines of a text, and the text itself coloured by what is like one token.
"use strict";
(() => {
  const { element, number, select, matrix, scale, shortened } = Probe;
  const data = Probe.data("heatmaps");
  const root = document.getElementById("heatmaps");
  const distinct = (key) => [...new Set(data.maps.map((map) => map[key]))];
  const [runs, texts] = [distinct("run"), distinct("text")];
  const layersOf = () => data.maps.filter((map) => map.run === runs[state.run] && map.text === texts[state.text]);
  const state = { run: 0, text: 0, map: data.maps[0], token: 0 };

  const cells = element("div", { id: "cells" });
  const sentence = element("div", { class: "tokens", id: "sentence" });
  const likeness = element("p", { class: "says", id: "likeness", "aria-live": "polite" });
  const legend = element("div");
  const layer = element("select", { id: "heat-layer", onchange: () => { state.map = layersOf()[Number(layer.value)]; draw(); } });
  // The upper triangle row by row, in ten-thousandths.
  const cosine = (map, i, j) => {
    const [low, high] = i < j ? [i, j] : [j, i];
    const whole = map.cosines[(low * (2 * map.tokens.length - low + 1)) / 2 + high - low];
    return whole === null ? null : whole / 10000;
  };

  function colours(map) {
    const values = [];
    map.tokens.forEach((_, i) => { for (let j = i + 1; j < map.tokens.length; j += 1) { const v = cosine(map, i, j); if (v !== null) values.push(v); } });
    const [low, high] = [values.reduce((a, b) => Math.min(a, b), 1), values.reduce((a, b) => Math.max(a, b), -1)];
    return scale(low, high, low < -0.15 * Math.max(-low, high) && high > 0.15 * Math.max(-low, high));
  }

  const named = (map, i) => `“${map.tokens[i]}” (${map.first + i})`;

  function draw() {
    const { map } = state;
    const n = map.tokens.length;
    state.token = Math.min(state.token, n - 1);
    const shades = colours(map);
    legend.replaceChildren(shades.legend("cosine of two tokens; the scale leaves out a token with itself"));
    matrix(cells, {
      rows: n, columns: n,
      said: `Token by token cosine of text ${map.text}, ${map.run}, layer ${map.layer}, ${n} tokens. Arrow keys move over the cells.`,
      hint: "Point at a cell, or press the arrow keys in the map.",
      colour: (i, j) => (i === j || cosine(map, i, j) === null ? null : shades.css(cosine(map, i, j))),
      read: (i, j) => (i === j ? `${named(map, i)} with itself` : `${named(map, i)} × ${named(map, j)}: cosine ${number(cosine(map, i, j))}`),
      layout: (width) => {
        const left = 92;
        const side = Math.max(3, Math.min(20, (width - left - 14) / n));
        const longest = Math.min(12, Math.max(...map.tokens.map((token) => token.length)));
        return { left, top: 4, bottom: 14 + 7 * longest, cellWidth: side, cellHeight: side };
      },
      labels: (pen, { left, top, cellWidth }) => {
        const every = Math.max(1, Math.ceil(12 / cellWidth));
        map.tokens.forEach((token, i) => {
          if (i % every) return;
          const middle = (i + 0.5) * cellWidth;
          pen.textAlign = "right";
          pen.fillText(shortened(token, 12), left - 5, top + middle + 4, 84);
          pen.save();
          pen.translate(left + middle + 4, top + n * cellWidth + 5);
          pen.rotate(-Math.PI / 2);
          pen.fillText(shortened(token, 12), 0, 0, 84);
          pen.restore();
        });
      },
    });
    sentence.replaceChildren(...map.tokens.map((token, i) => {
      const like = i === state.token ? null : cosine(map, state.token, i);
      const style = like === null ? "" : `background: ${shades.css(like)}; color: ${shades.ink(like)}`;
      return element("button", { type: "button", style, "aria-pressed": String(i === state.token), title: like === null ? token : `${token}: ${number(like)}`, onclick: () => {
        state.token = i;
        draw();
        sentence.children[i].focus();
      } }, token);
    }));
    const others = map.tokens.map((_, i) => [i, i === state.token ? null : cosine(map, state.token, i)]).filter(([, v]) => v !== null).sort((a, b) => b[1] - a[1]);
    likeness.textContent = others.length === 0 ? `${named(map, state.token)} has no direction.` : `Most like ${named(map, state.token)}: `
      + others.slice(0, 3).map(([i, v]) => `${named(map, i)} ${number(v)}`).join(", ") + `; least: ${named(map, others[others.length - 1][0])} ${number(others[others.length - 1][1])}.`;
  }

  function relist() {
    const maps = layersOf();
    layer.replaceChildren(...maps.map((map, i) => element("option", { value: i }, `${map.layer} (${map.site.replaceAll("_", " ")})`)));
    const same = maps.findIndex((map) => map.layer === state.map.layer && map.site === state.map.site);
    layer.value = Math.max(0, same);
    state.map = maps[Math.max(0, same)] || state.map;
    draw();
  }

  root.hidden = false;
  root.append(element("div", { class: "controls" },
    select("Run", runs, (i) => { state.run = i; relist(); }, { id: "heat-run" }).field,
    select("Text", texts.map(String), (i) => { state.text = i; state.token = 0; relist(); }, { id: "heat-text" }).field,
    element("label", {}, "Layer", layer)), legend, cells,
  element("h3", {}, "The text, by likeness to one token"), element("p", { class: "hint" }, "Choose a token: the others take the colour of their cosine with it."), sentence, likeness);
  if (data.left_out.length) root.append(element("p", { class: "hint" }, `For want of room these maps are in their tables only: ${data.left_out.join(", ")}.`));
  relist();
})();
