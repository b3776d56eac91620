// The explorer: curves by measure, runs and groups over layers or depth, and the paired difference of two runs.
"use strict";
(() => {
  const { element, number, interval, chart, swatch, select } = Probe;
  const data = Probe.data("explorer");
  const root = document.getElementById("explorer");
  const STREAM = ["embedding", "block", "final_norm"];
  const inner = [...new Set(data.points.map(([, site]) => site))].filter((site) => !STREAM.includes(site));
  const sites = ["residual stream (embedding, blocks, final norm)"].concat(inner.map((site) => site.replaceAll("_", " ")));
  const layers = data.points.map(([layer]) => layer);
  const [lowest, deepest] = [Math.min(...layers), Math.max(...layers)];
  const groupName = (group) => (group === null ? "all texts" : group);
  const plain = data.runs.map((run, i) => i).filter((i) => data.runs[i].kind === null);

  const find = (list) => {
    const map = new Map();
    for (const entry of list) map.set(entry.key.join(), entry.as === undefined ? entry : list[entry.as]);
    return map;
  };
  const series = find(data.series);
  const pairs = find(data.pairs);
  const errors = new Map(data.errors.map(([m, t, values]) => [`${m},${t}`, values]));
  // A model's depth is that of its deepest block, whatever another's.
  const depth = data.runs.map((_, r) => Math.max(1, ...data.series.filter((entry) => entry.key[0] === r)
    .flatMap((entry) => (series.get(entry.key.join()).mean || []).map((value, p) => (value === null ? 0 : data.points[p][0])))));

  const few = data.runs.length <= 8;
  const state = {
    measure: 0, tokens: 0, site: 0, relative: data.relative, from: lowest, to: deepest,
    runs: new Set(data.runs.map((_, i) => i).filter((i) => few || plain.includes(i)).slice(0, 12)),
    groups: new Set([Math.max(0, data.groups.indexOf(null))]),
    a: plain[plain.length - 1], b: plain[0],
  };

  const value = (column, p) => (Array.isArray(column) ? column[p] : column) ?? null;
  const inSite = (site) => (state.site === 0 ? STREAM.includes(site) : site === inner[state.site - 1]);
  const shownPoints = () => data.points.map((point, p) => p)
    .filter((p) => inSite(data.points[p][1]) && data.points[p][0] >= state.from && data.points[p][0] <= state.to);
  // The state after the final norm stands beside the last layer.
  const place = (p, run) => {
    const [layer, site] = data.points[p];
    const scale = state.relative ? depth[run] : 1;
    return Number((layer / scale + (site === "final_norm" ? (state.relative ? 0.045 : Math.max(0.45, (state.to - state.from) / 45)) : 0)).toFixed(6));
  };
  const look = (run, group) => {
    const { style, kind } = data.runs[run];
    const number = group > 0 ? group : kind === null ? style : kind + 1;
    return { style, mark: kind === null ? style : style + kind + 1, dash: number, pale: kind !== null };
  };
  const pointName = (p) => {
    const [layer, site] = data.points[p];
    if (site === "embedding") return "Layer 0, embedding";
    return site === "final_norm" ? `After the final norm (layer ${layer})` : `Layer ${layer}, ${site.replaceAll("_", " ")}`;
  };
  const placeName = (x, points, run) => {
    const at = points.find((p) => place(p, run) === x);
    if (at === undefined) return `Depth ${number(x)}`;
    return state.relative ? `${pointName(at)}, depth ${number(Math.min(1, data.points[at][0] / depth[run]))}` : pointName(at);
  };
  const xLabel = () => (state.relative ? "relative depth (0 = embedding, 1 = last block)" : "layer (0 = embedding, 1…L = blocks)");
  const wholeTicks = (low, high, most) => Probe.ticks(Math.ceil(low), Math.floor(high), most, true).filter((tick) => tick <= state.to);
  const xTicks = (low, high, most) => (state.relative ? Probe.ticks(low, Math.min(high, 1), most) : wholeTicks(low, high, most));

  const curves = element("div", { class: "plot", id: "curves" });
  const touching = element("ul", { class: "touching" });
  const about = element("p", { class: "about" });
  const values = element("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": "Values of the curves" });
  const apart = element("div", { class: "plot", id: "differences" });
  const says = element("p", { class: "says", id: "difference-says", "aria-live": "polite" });
  const differences = element("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": "Values of the differences" });

  function drawCurves() {
    const measure = data.measures[state.measure];
    const points = shownPoints();
    const several = state.groups.size > 1;
    const drawn = [];
    for (const run of [...state.runs].sort((a, b) => a - b)) {
      for (const group of [...state.groups].sort((a, b) => a - b)) {
        const entry = series.get([run, group, state.measure, state.tokens].join());
        if (!entry || !entry.mean) continue;
        const label = several ? `${data.runs[run].name}, ${groupName(data.groups[group])}` : data.runs[run].name;
        const at = points.map((p) => ({
          p, x: place(p, run), y: value(entry.mean, p), low: value(entry.low, p), high: value(entry.high, p), n: value(entry.n, p),
          apart: data.points[p][1] === "final_norm", hollow: data.points[p][1] === "final_norm",
        }));
        if (at.some((point) => point.y !== null)) drawn.push({ label, run, look: look(run, group), points: at });
      }
    }
    const tokens = data.tokens[state.tokens][1];
    chart(curves, {
      series: drawn, xLabel: xLabel(), yLabel: measure.axis, ticks: xTicks,
      said: `${measure.axis}, ${tokens}, over the layers, of ${drawn.map((s) => s.label).join(", ")}. Arrow keys move along the layers; every value is in the table below.`,
      read: (x) => {
        const here = drawn.map((s) => [s, s.points.find((point) => point.x === x && point.y !== null)]).filter(([, point]) => point);
        const [first] = here;
        const ns = new Set(here.map(([, point]) => point.n));
        const one = ns.size === 1 ? `, n = ${[...ns][0]} texts` : "";
        return {
          title: (first ? placeName(x, points, first[0].run) : "") + one,
          rows: here.map(([s, point]) => ({
            look: s.look, name: s.label,
            text: `${number(point.y)} ${interval(point.low, point.high)}${one ? "" : ` n = ${point.n}`}`,
          })),
        };
      },
    });
    const notes = data.warnings.map((warning, i) => ({ ...warning, number: i + 1 })).filter((warning) =>
      (warning.measure === measure.name || warning.measure === null) && (warning.measure !== null || warning.run !== null)
      && (warning.run === null || [...state.runs].some((run) => data.runs[run].name === warning.run)));
    touching.replaceChildren(...notes.map((warning) =>
      element("li", {}, warning.text + " ", element("a", { class: "mark", href: `#warning-${warning.number}`, "aria-label": `warning ${warning.number}` }, String(warning.number)))));
    const bands = measure.corpus ? "One number for all texts: no interval." : "Bands: 95 % bootstrap over texts.";
    const pale = drawn.some((s) => s.look.pale) ? " Pale: null baselines." : "";
    about.textContent = [bands + pale + (state.site === 0 ? " Hollow: after the final norm." : ""), measure.note, measure.hides].filter(Boolean).join(" ");
    const head = ["layer", "site"].concat(drawn.map((s) => s.label));
    const rows = points.map((p, i) => [String(data.points[p][0]), data.points[p][1].replaceAll("_", " ")].concat(drawn.map((s) => {
      const point = s.points[i];
      return point.y === null ? "" : `${number(point.y)} ${interval(point.low, point.high)}`;
    })));
    table(values, `${measure.axis}, ${tokens}: mean and 95 % interval`, head, rows);
  }

  function drawDifference() {
    const { a, b } = state;
    const group = Math.min(...state.groups);
    const measure = data.measures[state.measure];
    const names = [data.runs[a].name, data.runs[b].name];
    const key = (x, y) => pairs.get([x, y, group, state.measure, state.tokens].join());
    const found = key(a, b) || key(b, a);
    const sign = key(a, b) ? 1 : -1;
    differences.replaceChildren();
    if (a === b || !found || !found.diff) {
      apart.replaceChildren();
      const why = measure.corpus ? "it is one number for all texts" : "they share no text at these sites, or the page had no room for it";
      says.textContent = a === b ? "Choose two runs." : `No paired difference of ${measure.axis} here: ${why}.`;
      return;
    }
    const turned = (number) => (number === null ? null : sign * number);
    const points = shownPoints();
    const at = points.map((p) => {
      const ends = [turned(value(found.low, p)), turned(value(found.high, p))];
      if (sign < 0) ends.reverse();
      return {
        p, x: place(p, a), y: turned(value(found.diff, p)), low: ends[0], high: ends[1], n: value(found.n, p), probability: value(found.p, p),
        apart: data.points[p][1] === "final_norm", hollow: !(value(found.p, p) < 0.05),
      };
    });
    const known = errors.get(`${state.measure},${state.tokens}`);
    const label = `${names[0]} − ${names[1]}`;
    chart(apart, {
      series: [{ label, look: look(a, 0), points: at }], zero: true, xLabel: xLabel(), ticks: xTicks,
      yLabel: `difference in ${measure.axis}`,
      errors: known && points.map((p) => ({ x: place(p, a), error: known[p] })),
      said: `Paired difference of ${measure.axis}, ${label}, over the layers. Arrow keys move along the layers; every value is in the table below.`,
      read: (x) => {
        const point = at.find((other) => other.x === x);
        return { title: point ? `${placeName(x, points, a)}, n = ${point.n} texts` : "", rows: point && point.y !== null ? [
          { look: look(a, 0), name: label, text: `${number(point.y, true)} ${interval(point.low, point.high, true)}` },
          { name: "p, Holm over layers", text: probability(point.probability) },
        ] : [] };
      },
    });
    const defined = at.filter((point) => point.y !== null && !point.apart);
    const last = defined[defined.length - 1];
    if (last) {
      const clear = defined.filter((point) => point.probability < 0.05);
      const [down, up] = [clear.filter((point) => point.y < 0).length, clear.filter((point) => point.y > 0).length];
      says.textContent = `${pointName(last.p)}: ${names[0]} is ${number(Math.abs(last.y))} ${last.y < 0 ? "below" : "above"} ${names[1]}, `
        + `${interval(last.low, last.high, true)}, p ${probability(last.probability, true)}, n = ${last.n} texts, ${groupName(data.groups[group])}. `
        + `Of ${defined.length} layers shown, ${down} are lower and ${up} higher at p < 0.05 (Holm over the layers).`;
    } else says.textContent = "No layer is shown that both runs have.";
    table(differences, `${label}: paired difference of ${measure.axis}`, ["layer", "site", "difference", "95 % interval", "p (Holm)", "n"],
      at.filter((point) => point.y !== null).map((point) => [String(data.points[point.p][0]), data.points[point.p][1].replaceAll("_", " "),
        number(point.y, true), interval(point.low, point.high, true), probability(point.probability), String(point.n)]));
  }

  function probability(p, inWords = false) {
    if (p === null) return "–";
    const least = p < 0.001 ? "< 0.001" : p.toFixed(3);
    return inWords && p >= 0.001 ? `= ${least}` : least;
  }

  function table(box, caption, head, rows) {
    box.replaceChildren(element("table", {}, element("caption", {}, element("span", {}, caption)),
      element("thead", {}, element("tr", {}, ...head.map((name, i) => element("th", { scope: "col", class: i < 2 ? null : "number" }, name)))),
      element("tbody", {}, ...rows.map((cells) => element("tr", {}, ...cells.map((text, i) => element("td", { class: i < 2 ? "short" : "number" }, text)))))));
  }

  function draw() {
    drawCurves();
    if (plain.length > 1) drawDifference();
  }
  const change = (key) => (chosen) => { state[key] = chosen; draw(); };

  // The measures and the token sets that a choice offers are those of the table.
  const measure = select("Measure", data.measures.map((m) => m.short), change("measure"), { id: "measure" });
  const tokens = select("Tokens", data.tokens.map(([, name]) => name), change("tokens"), { id: "tokens" });
  const controls = element("div", { class: "controls" }, measure.field, tokens.field);
  if (inner.length) controls.append(select("Where", sites, change("site"), { id: "site" }).field);
  controls.append(select("Depth", ["layers", "relative"], (chosen) => { state.relative = chosen === 1; draw(); }, { id: "depth" }).field);
  const limit = (key, label) => element("input", { type: "number", id: key, min: lowest, max: deepest, value: state[key], "aria-label": label, onchange: (event) => {
    const asked = Number(event.target.value);
    state[key] = Math.max(lowest, Math.min(deepest, Number.isFinite(asked) ? Math.round(asked) : state[key]));
    if (state.from > state.to) state[key === "from" ? "to" : "from"] = state[key];
    for (const other of ["from", "to"]) document.getElementById(other).value = state[other];
    draw();
  } });
  controls.append(element("div", { class: "field" }, "Layers", element("div", {}, limit("from", "first layer"), " to ", limit("to", "last layer"))));

  const choices = (legend, set, items, kind) => element("fieldset", {}, element("legend", {}, legend), element("div", { class: "choices" },
    ...items.map(([i, name, sample]) => element("label", {}, element("input", {
      type: "checkbox", name: kind, value: i, checked: set.has(i), onchange: (event) => {
        if (event.target.checked) set.add(i); else set.delete(i);
        if (kind === "group" && set.size === 0) { set.add(i); event.target.checked = true; }
        draw();
      },
    }), sample, name))));

  root.hidden = false;
  root.append(controls, choices("Runs", state.runs, data.runs.map((run, i) => [i, run.name, swatch(look(i, 0))]), "run"));
  if (data.groups.length > 1) root.append(choices("Groups of texts", state.groups, data.groups.map((group, i) => [i, groupName(group), null]), "group"));
  root.append(curves, element("p", { class: "hint" }, "Point at the chart, or press the arrow keys in it, for values and n."), touching, about,
    element("details", {}, element("summary", {}, "Values of these curves"), values));
  if (plain.length > 1) {
    const names = plain.map((i) => data.runs[i].name);
    const a = select("Run", names, (i) => change("a")(plain[i]), { id: "run-a" });
    const b = select("minus run", names, (i) => change("b")(plain[i]), { id: "run-b" });
    a.box.value = plain.indexOf(state.a);
    b.box.value = plain.indexOf(state.b);
    root.append(element("h3", {}, "Two runs over the same texts"), element("div", { class: "controls" }, a.field, b.field), says, apart,
      element("p", { class: "hint" }, "Filled: p < 0.05, adjusted by Holm over the layers. Band: 95 % paired bootstrap over texts."
        + (data.errors.length ? " Grey: the audit's error, within which a difference says nothing." : "")),
      element("details", {}, element("summary", {}, "Values of these differences"), differences));
  }
  if (data.left_out) root.append(element("p", { class: "hint" }, `For want of room this view leaves out: ${data.left_out}. The tables beside this page have them.`));
  document.getElementById("depth").value = state.relative ? 1 : 0;
  draw();
})();
