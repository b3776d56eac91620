// What the views share: making elements, numbers for people, line charts with a cursor, colour scales.
"use strict";
const Probe = (() => {
  const MARKS = ["circle", "square", "up", "diamond", "down", "cross"];
  const DASHES = ["", "7 3", "2 2.5", "8 3 2 3", "4 3"];
  const COLOURS = 7;

  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    return filled(made, attributes, children);
  }

  function shape(name, attributes = {}, ...children) {
    return filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
  }

  // Children that are texts become text, never markup: names come from data.
  function filled(made, attributes, children) {
    for (const [key, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
      else made.setAttribute(key, value === true ? "" : value);
    }
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  }

  function data(name) {
    return JSON.parse(document.getElementById(name + "-data").textContent);
  }

  // Four digits behind the point, or four in all where that says more.
  function number(value, signed = false) {
    if (value === null || value === undefined || !Number.isFinite(value)) return "–";
    const size = Math.abs(value);
    let text;
    if (size !== 0 && (size < 5e-4 || size >= 1e5)) text = value.toExponential(2);
    else text = value.toFixed(size >= 1000 ? 1 : size >= 100 ? 2 : size >= 10 ? 3 : 4);
    if (signed && value > 0) text = "+" + text;
    return text.replaceAll("-", "−");
  }

  function interval(low, high, signed = false) {
    return low === null || low === undefined ? "" : `[${number(low, signed)}, ${number(high, signed)}]`;
  }

  function ticks(low, high, most, whole = false) {
    const rough = (high - low) / Math.max(most, 1);
    const power = 10 ** Math.floor(Math.log10(rough || 1));
    const steps = [1, 2, 2.5, 5, 10].map((step) => step * power).filter((step) => !whole || (step >= 1 && step % 1 === 0));
    const step = steps.find((step) => step >= rough * 0.999) || Math.max(1, Math.ceil(rough));
    const found = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k += 1) found.push(Number((k * step).toPrecision(12)));
    return found;
  }

  function colour(style) {
    return `var(--s${style % COLOURS})`;
  }

  function dash(number) {
    return DASHES[number % DASHES.length];
  }

  function markPath(style, x, y, r) {
    const at = (points) => "M" + points.map(([dx, dy]) => `${(x + r * dx).toFixed(2)} ${(y + r * dy).toFixed(2)}`).join("L") + "Z";
    switch (MARKS[style % MARKS.length]) {
      case "circle": return `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0Z`;
      case "square": return at([[-0.88, -0.88], [0.88, -0.88], [0.88, 0.88], [-0.88, 0.88]]);
      case "up": return at([[0, -1.2], [1.1, 0.8], [-1.1, 0.8]]);
      case "diamond": return at([[0, -1.25], [1.1, 0], [0, 1.25], [-1.1, 0]]);
      case "down": return at([[0, 1.2], [1.1, -0.8], [-1.1, -0.8]]);
      default: return at([[-1.1, -0.38], [-0.38, -0.38], [-0.38, -1.1], [0.38, -1.1], [0.38, -0.38], [1.1, -0.38],
        [1.1, 0.38], [0.38, 0.38], [0.38, 1.1], [-0.38, 1.1], [-0.38, 0.38], [-1.1, 0.38]]);
    }
  }

  function mark(look, x, y, r, hollow) {
    return shape("path", {
      d: markPath(look.mark, x, y, r), fill: hollow ? "var(--paper)" : colour(look.style),
      stroke: hollow ? colour(look.style) : "var(--paper)", "stroke-width": hollow ? 1.6 : 1, opacity: look.pale ? "var(--pale)" : null,
    });
  }

  function swatch(look) {
    const line = { x1: 1, x2: 29, y1: 7, y2: 7, stroke: colour(look.style), "stroke-width": 2, "stroke-dasharray": dash(look.dash) };
    const opacity = look.pale ? "var(--pale)" : null;
    return shape("svg", { class: "swatch", viewBox: "0 0 30 14", "aria-hidden": "true" },
      shape("line", { ...line, opacity }), mark(look, 15, 7, 4, false));
  }

  // Places for labels that want to stand at `wanted`, at least `gap` apart, within the plot.
  function spread(wanted, gap, low, high) {
    const order = wanted.map((y, i) => [y, i]).sort((a, b) => a[0] - b[0]);
    const placed = [];
    let last = low - gap;
    for (const [y, i] of order) { last = Math.max(y, last + gap); placed.push([last, i]); }
    let limit = high;
    for (let k = placed.length - 1; k >= 0; k -= 1) { placed[k][0] = Math.min(placed[k][0], limit); limit = placed[k][0] - gap; }
    const found = [];
    for (const [y, i] of placed) found[i] = y;
    return found;
  }

  // A line chart in `box`. `spec`: series (label, look, points with x, y, low, high, hollow), x and y labels, `read`, which
  // gives title and rows of the read-out for a place on the axis, and `said`, what the chart shows in words.
  function chart(box, spec) {
    const state = { at: null };
    const out = element("div", { class: "readout", hidden: true });
    const live = element("div", { class: "visually-hidden", "aria-live": "polite" });
    // Where nothing has a value there is no place on the axis.
    const all = spec.series.flatMap((series) => series.points).filter((point) => Number.isFinite(point.y));
    const xs = [...new Set(all.map((point) => point.x))].sort((a, b) => a - b);
    box.replaceChildren();
    if (all.length === 0) {
      box.append(element("p", { class: "says" }, "Nothing to show: no value was measured here."));
      return;
    }
    const draw = () => {
      const width = Math.max(280, box.clientWidth - 12);
      const height = Math.round(Math.min(430, Math.max(270, width * 0.5)));
      const named = spec.series.filter((series) => series.points.some((point) => point.y !== null));
      const direct = width >= 620 && named.length > 1 && named.length <= 9;
      const longest = Math.max(0, ...named.map((series) => series.label.length));
      const right = width - (direct ? Math.min(190, 14 + 6.8 * longest) : 14);
      const values = all.flatMap((point) => [point.y, point.low, point.high]).filter(Number.isFinite).concat(spec.zero ? [0] : []);
      let [low, high] = [Math.min(...values), Math.max(...values)];
      const air = (high - low || Math.abs(high) || 1) * 0.05;
      [low, high] = [low - air, high + air];
      const [first, last] = [xs[0], xs[xs.length - 1]];
      const yTicks = ticks(low, high, 6);
      const digits = Math.max(0, ...yTicks.map((tick) => (String(tick).split(".")[1] || "").length));
      const name = (tick) => tick.toFixed(Math.min(digits, 6)).replace("-", "−");
      const left = 30 + 7 * Math.max(...yTicks.map((tick) => name(tick).length));
      const [top, bottom] = [14, height - 44];
      const px = (x) => left + 8 + ((x - first) / (last - first || 1)) * (right - left - 16);
      const py = (y) => bottom - ((y - low) / (high - low)) * (bottom - top);
      const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": spec.said });
      for (const tick of yTicks) {
        svg.append(shape("line", { x1: left, x2: right, y1: py(tick), y2: py(tick), class: tick === 0 ? "axis" : "grid" }),
          shape("text", { x: left - 6, y: py(tick) + 4, "text-anchor": "end" }, name(tick)));
      }
      const most = Math.max(2, Math.floor((right - left) / 60));
      const along = spec.ticks ? spec.ticks(first, last, most) : ticks(first, last, most);
      svg.append(shape("line", { x1: left, x2: right, y1: bottom, y2: bottom, class: "axis" }));
      for (const tick of along) {
        svg.append(shape("line", { x1: px(tick), x2: px(tick), y1: bottom, y2: bottom + 4, class: "axis" }),
          shape("text", { x: px(tick), y: bottom + 17, "text-anchor": "middle" }, String(tick).replace("-", "−")));
      }
      svg.append(shape("text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, spec.xLabel),
        shape("text", { transform: `translate(13 ${(top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle", style: fitted(spec.yLabel, height - 20) }, spec.yLabel));
      if (spec.errors) {
        const known = spec.errors.filter((point) => Number.isFinite(point.error) && point.x >= first && point.x <= last);
        const edge = (sign) => known.map((point) => `${px(point.x)} ${py(Math.max(low, Math.min(high, sign * point.error)))}`);
        if (known.length > 1) svg.append(shape("path", { class: "error", d: "M" + edge(1).concat(edge(-1).reverse()).join("L") + "Z" }));
      }
      const behind = (series) => (series.look.pale ? 0 : 1);
      for (const series of [...named].sort((a, b) => behind(a) - behind(b))) drawSeries(svg, series, px, py);
      if (direct) drawLabels(svg, named, px, py, right, [top + 4, bottom]);
      const cursor = shape("line", { y1: top, y2: bottom, class: "cursor", visibility: "hidden" });
      svg.append(cursor);
      const show = (at, say) => {
        state.at = at;
        const x = xs[at];
        cursor.setAttribute("x1", px(x)); cursor.setAttribute("x2", px(x)); cursor.setAttribute("visibility", "visible");
        const { title, rows } = spec.read(x);
        const body = rows.map((row) => element("tr", {}, element("td", {}, row.look ? swatch(row.look) : ""),
          element("td", {}, row.name), element("td", { class: "number" }, row.text)));
        out.replaceChildren(element("b", {}, title), element("table", {}, element("tbody", {}, ...body)));
        out.hidden = false;
        const room = px(x) > width / 2;
        out.style.left = room ? "" : `${px(x) + 16}px`;
        out.style.right = room ? `${width - px(x) + 16}px` : "";
        if (width < 520) { out.style.left = room ? "0.5rem" : ""; out.style.right = room ? "" : "0.5rem"; }
        if (say) live.textContent = `${title}. ` + rows.map((row) => `${row.name}: ${row.text}`).join("; ");
      };
      const hide = () => { state.at = null; out.hidden = true; cursor.setAttribute("visibility", "hidden"); };
      const nearest = (event) => {
        const frame = svg.getBoundingClientRect();
        const x = (event.clientX - frame.left) * (width / frame.width);
        let best = 0;
        xs.forEach((value, i) => { if (Math.abs(px(value) - x) < Math.abs(px(xs[best]) - x)) best = i; });
        return best;
      };
      svg.addEventListener("pointermove", (event) => show(nearest(event), false));
      svg.addEventListener("pointerdown", (event) => show(nearest(event), true));
      svg.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
      svg.setAttribute("tabindex", "0");
      svg.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (event.key === "Escape") hide();
        if (step === undefined && event.key !== "Home" && event.key !== "End") return;
        event.preventDefault();
        const now = state.at === null ? (step === -1 ? xs.length : -1) : state.at;
        const next = event.key === "Home" ? 0 : event.key === "End" ? xs.length - 1 : now + step;
        show(Math.max(0, Math.min(xs.length - 1, next)), true);
      });
      svg.addEventListener("blur", hide);
      box.replaceChildren(svg, out, live);
    };
    draw();
    redrawn(box, draw);
  }

  // A long name of an axis is set smaller, so that it stays within the chart.
  function fitted(text, room) {
    const wanted = 6.6 * text.length;
    return wanted > room ? `font-size: ${Math.max(8, (12 * room) / wanted).toFixed(1)}px` : null;
  }

  function drawSeries(svg, series, px, py) {
    const { look } = series;
    const line = series.points.filter((point) => !point.apart);
    const opacity = look.pale ? "var(--pale)" : null;
    // A gap ends a piece.
    const pieces = [[]];
    for (const point of line) {
      if (Number.isFinite(point.y)) pieces[pieces.length - 1].push(point);
      else pieces.push([]);
    }
    for (const piece of pieces.filter((piece) => piece.length)) {
      const banded = piece.filter((point) => Number.isFinite(point.low));
      if (banded.length > 1 && !look.pale) {
        const edge = (key) => banded.map((point) => `${px(point.x).toFixed(2)} ${py(point[key]).toFixed(2)}`);
        svg.append(shape("path", { d: "M" + edge("high").concat(edge("low").reverse()).join("L") + "Z", fill: colour(look.style), opacity: 0.16 }));
      }
      const d = "M" + piece.map((point) => `${px(point.x).toFixed(2)} ${py(point.y).toFixed(2)}`).join("L");
      svg.append(shape("path", { d, fill: "none", stroke: colour(look.style), "stroke-width": 1.8, "stroke-dasharray": dash(look.dash), opacity }));
    }
    const dense = line.length > 45;
    for (const point of series.points.filter((point) => Number.isFinite(point.y))) {
      if (point.apart && Number.isFinite(point.low)) {
        svg.append(shape("line", { x1: px(point.x), x2: px(point.x), y1: py(point.low), y2: py(point.high), stroke: colour(look.style), opacity: opacity || 0.6, "stroke-width": 1.4 }));
      }
      if (!dense || point.apart) svg.append(mark(look, px(point.x), py(point.y), 3.6, Boolean(point.hollow)));
    }
  }

  function drawLabels(svg, named, px, py, right, [top, bottom]) {
    const ends = named.map((series) => series.points.filter((point) => Number.isFinite(point.y)).pop());
    const places = spread(ends.map((point) => py(point.y)), 14, top, bottom);
    named.forEach((series, i) => {
      const [x, y] = [px(ends[i].x), py(ends[i].y)];
      svg.append(shape("path", { d: `M${x + 6} ${y}L${right + 2} ${places[i]}`, stroke: colour(series.look.style), fill: "none", "stroke-width": 0.8, opacity: 0.55 }));
      const text = shape("text", { x: right + 6, y: places[i] + 4, style: `fill: ${colour(series.look.style)}`, opacity: series.look.pale ? 0.85 : null }, shortened(series.label, 27));
      text.append(shape("title", {}, series.label));
      svg.append(text);
    });
  }

  function shortened(text, most) {
    const letters = [...text];
    return letters.length > most ? letters.slice(0, most - 1).join("") + "…" : text;
  }

  // Draws again when the box has another width; the last one that was asked for is the one that draws.
  const watched = new WeakMap();
  function redrawn(box, draw) {
    if (!watched.has(box)) {
      let width = box.clientWidth;
      new ResizeObserver(() => {
        if (box.clientWidth !== width) { width = box.clientWidth; watched.get(box)(); }
      }).observe(box);
    }
    watched.set(box, draw);
  }

  const SEQUENTIAL = [[68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142], [31, 158, 137], [53, 183, 121], [109, 205, 89], [180, 222, 44], [253, 231, 37]];
  const DIVERGING = [[33, 102, 172], [67, 147, 195], [146, 197, 222], [209, 229, 240], [247, 247, 247], [253, 219, 199], [244, 165, 130], [214, 96, 77], [178, 24, 43]];

  // The colours of values from `low` to `high`: of two directions around 0 where `diverging`.
  function scale(low, high, diverging) {
    const reach = Math.max(Math.abs(low), Math.abs(high)) || 1;
    const [from, to] = diverging ? [-reach, reach] : [low, high > low ? high : low + 1e-9];
    const map = diverging ? DIVERGING : SEQUENTIAL;
    const rgb = (value) => {
      const place = Math.max(0, Math.min(1, (value - from) / (to - from))) * (map.length - 1);
      const below = Math.min(Math.floor(place), map.length - 2);
      return map[below].map((channel, i) => Math.round(channel + (place - below) * (map[below + 1][i] - channel)));
    };
    const css = (value) => `rgb(${rgb(value).join(" ")})`;
    // Words on a cell are black or white, whichever is further from it.
    const ink = (value) => {
      const [r, g, b] = rgb(value).map((c) => (c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
    };
    const stops = Array.from({ length: 11 }, (_, i) => css(from + (i / 10) * (to - from)));
    const legend = (label) => element("div", { class: "scale" }, element("span", {}, number(from, diverging)),
      element("span", { class: "bar", style: `background: linear-gradient(to right, ${stops.join(", ")})` }),
      element("span", {}, number(to, diverging)), element("span", {}, label));
    return { css, ink, legend, from, to };
  }

  function select(label, options, onchange, attributes = {}) {
    const box = element("select", { onchange: () => onchange(Number(box.value)), ...attributes },
      ...options.map((text, i) => element("option", { value: i }, text)));
    return { box, field: element("label", {}, label, box) };
  }

  // A canvas of cells that pointer and arrow keys move over. `spec`: rows, columns, colour(row, column), read(row, column),
  // cell sizes, and room and painter for labels.
  function matrix(box, spec) {
    const canvas = element("canvas", { tabindex: "0", role: "img", "aria-label": spec.said });
    const says = element("p", { class: "says", "aria-live": "polite" }, spec.hint);
    box.replaceChildren(element("div", { class: "matrix" }, canvas), says);
    let at = null;
    let frame = null;
    const draw = () => {
      const width = Math.max(240, box.clientWidth);
      const { left, top, bottom, cellWidth, cellHeight } = spec.layout(width);
      const size = [left + cellWidth * spec.columns + 12, top + cellHeight * spec.rows + bottom];
      const ratio = devicePixelRatio || 1;
      [canvas.width, canvas.height] = size.map((length) => Math.round(length * ratio));
      canvas.style.width = `${size[0]}px`; canvas.style.height = `${size[1]}px`;
      const pen = canvas.getContext("2d");
      pen.scale(ratio, ratio);
      const style = getComputedStyle(box);
      const ink = style.getPropertyValue("--ink");
      pen.font = `11px ${style.fontFamily}`;
      for (let row = 0; row < spec.rows; row += 1) {
        for (let column = 0; column < spec.columns; column += 1) {
          pen.fillStyle = spec.colour(row, column) || style.getPropertyValue("--rule");
          const [x, y] = [left + column * cellWidth, top + row * cellHeight];
          // Cells meet without seams.
          pen.fillRect(x, y, cellWidth + 0.5, cellHeight + 0.5);
        }
      }
      frame = { left, top, cellWidth, cellHeight };
      pen.fillStyle = ink;
      spec.labels(pen, frame);
      if (at) {
        pen.strokeStyle = ink; pen.lineWidth = 2;
        pen.strokeRect(left + at[1] * cellWidth - 1, top + at[0] * cellHeight - 1, cellWidth + 2, cellHeight + 2);
      }
    };
    const go = (row, column) => {
      at = [Math.max(0, Math.min(spec.rows - 1, row)), Math.max(0, Math.min(spec.columns - 1, column))];
      says.textContent = spec.read(...at);
      draw();
    };
    const point = (event) => {
      const corner = canvas.getBoundingClientRect();
      const row = Math.floor((event.clientY - corner.top - frame.top) / frame.cellHeight);
      const column = Math.floor((event.clientX - corner.left - frame.left) / frame.cellWidth);
      if (row >= 0 && column >= 0 && row < spec.rows && column < spec.columns) go(row, column);
    };
    canvas.addEventListener("pointermove", point);
    canvas.addEventListener("pointerdown", point);
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
      if (!step) return;
      event.preventDefault();
      const [row, column] = at || [0, -1 + (step[1] < 0)];
      go(at ? row + step[0] : 0, at ? column + step[1] : 0);
    });
    draw();
    redrawn(box, draw);
    // A canvas does not follow the style sheet by itself, nor onto paper.
    for (const asked of ["(prefers-color-scheme: dark)", "print"]) matchMedia(asked).addEventListener("change", draw);
    return go;
  }

  return { element, data, number, interval, ticks, chart, swatch, scale, select, matrix, shortened };
})();
