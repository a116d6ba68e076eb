// The report's interactive view. Reads the packed table from #view-data (analysis/interactive.py writes it), draws the
// chosen rows with plotly.js, lists them in a table that sorts, and writes CSV. Nothing is fetched.
"use strict";
(() => {
  const $ = (name) => document.getElementById("view-" + name);
  const packed = JSON.parse($("data").textContent);
  const ROWS_A_PAGE = 15, Z = 1.959963984540054, THRESHOLD = "#d55e00";

  // ---- unpacking -----------------------------------------------------------------------------------------------
  function bytes(text) {
    const raw = atob(text), out = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
    return out.buffer;
  }
  function column(stored) {
    if ("all" in stored) return () => stored.all;
    if ("numbers" in stored) { const values = new Float64Array(bytes(stored.numbers)); return (i) => values[i]; }
    const index = new Uint32Array(bytes(stored.index));
    return (i) => stored.texts[index[i]];
  }
  const checkpoint = {};
  for (const [name, stored] of Object.entries(packed.checkpoints)) checkpoint[name] = column(stored);
  // A series is unpacked when it is first looked at.
  function open(series) {
    if (!series.opened) {
      const at = new Uint32Array(bytes(series.checkpoint));
      series.opened = { at, length: at.length };
      for (const name of ["value", "stderr", "rows", "chance"]) series.opened[name] = column(series[name]);
    }
    return series.opened;
  }

  // ---- what is chosen ------------------------------------------------------------------------------------------
  const chosen = { task: packed.series[0].task, metric: packed.series[0].metric, axis: packed.axes[0].column,
    sizes: new Set(packed.sizes.map((size) => size.name)), sort: "loss", down: true, page: 0 };
  const asked = new URLSearchParams(location.hash.slice(1));
  const series = () => packed.series.find((s) => s.task === chosen.task && s.metric === chosen.metric);
  const axis = () => packed.axes.find((a) => a.column === chosen.axis);
  function choose(task, metric) {
    const ofTask = packed.series.filter((s) => s.task === task);
    chosen.task = task;
    chosen.metric = (ofTask.find((s) => s.metric === metric) || ofTask[0]).metric;
    fill($("metric"), ofTask.map((s) => [s.metric, s.metricTitle]), chosen.metric);
  }
  function fill(select, options, value) {
    select.replaceChildren(...options.map(([key, title]) => new Option(title, key)));
    select.value = value;
  }

  // Wilson's interval of a share, 1.96 standard errors of anything else; as analysis.figures.style.intervals.
  function interval(ofSeries, value, stderr, rows) {
    if (!ofSeries.share) return Number.isFinite(stderr) ? [value - Z * stderr, value + Z * stderr] : [value, value];
    const z2 = Z * Z / rows, centre = (value + z2 / 2) / (1 + z2);
    const half = Z / (1 + z2) * Math.sqrt(value * (1 - value) / rows + z2 / (4 * rows));
    return [Math.min(Math.max(0, centre - half), value), Math.max(Math.min(1, centre + half), value)];
  }
  function rowsShown() {
    const ofSeries = series(), data = open(ofSeries), along = checkpoint[chosen.axis], out = [];
    const finalOnly = $("final").checked;
    for (let i = 0; i < data.length; i++) {
      const at = data.at[i], size = checkpoint.size(at), final = checkpoint.final(at) === "True";
      const x = along(at);
      if (!chosen.sizes.has(size) || (finalOnly && !final) || !Number.isFinite(x)) continue;
      const value = data.value(i), stderr = data.stderr(i), rows = data.rows(i);
      const [low, high] = interval(ofSeries, value, stderr, rows);
      out.push({ i, at, x, size, final, run: checkpoint.run(at), step: checkpoint.step(at), tokens: checkpoint.tokens(at),
        loss: checkpoint[packed.loss](at), value, low, high, rows, chance: data.chance(i) });
    }
    return out;
  }

  // ---- words ---------------------------------------------------------------------------------------------------
  function short(value) {
    for (const [limit, unit] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]])
      if (Math.abs(value) >= limit) return Number((value / limit).toPrecision(3)) + unit;
    return String(Number(value.toPrecision(3)));
  }
  const fixed = (value, digits) => (Number.isFinite(value) ? value.toFixed(digits).replace("-", "\u2212") : "\u2013");
  const escaped = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  function hover(row) {
    const at = row.at, grid = checkpoint.grid ? checkpoint.grid(at) : "";
    const compute = checkpoint.flops_6nd ? checkpoint.flops_6nd(at) : NaN;
    const lines = [`<b>${escaped(grid ? grid + "/" : "")}${escaped(row.run)}</b>, step ${row.step.toLocaleString("en")}` +
      (row.final ? " (end of the run)" : ""),
      `${escaped(row.size)}: ${short(checkpoint.parameters(at))} parameters, ${short(row.tokens)} tokens` +
      (Number.isFinite(compute) ? `, ${compute.toExponential(1)} FLOPs` : ""),
      `loss ${fixed(row.loss, 4)}`,
      `${escaped(series().metricTitle)} <b>${fixed(row.value, 4)}</b> [${fixed(row.low, 4)}, ${fixed(row.high, 4)}]`,
      `${row.rows.toLocaleString("en")} rows` + (Number.isFinite(row.chance) ? `, chance ${fixed(row.chance, 3)}` : "")];
    return lines.join("<br>");
  }
  function mark() {
    return packed.marks.find((m) => m.task === chosen.task && m.metric === chosen.metric && m.axis === chosen.axis);
  }
  function place(value, found) {
    const width = found.high - found.low;
    if (!axis().log) return fixed(value, width >= 0.02 ? 2 : width >= 0.002 ? 3 : 4);
    return chosen.axis.startsWith("flops") ? value.toExponential(1).replace("e+", "e") : short(value);
  }
  function verdictWords(found) {
    return found.words + ("at" in found ? `, ${found.name} = ${place(found.at, found)} [${place(found.low, found)}, ${place(found.high, found)}]` : "");
  }

  // ---- the plot ------------------------------------------------------------------------------------------------
  function median(values) {
    const sorted = values.filter(Number.isFinite).sort((a, b) => a - b);
    return sorted.length ? sorted[Math.floor(sorted.length / 2)] : NaN;
  }
  function draw(rows) {
    const along = axis(), ofSeries = series(), narrow = window.innerWidth <= 640;
    const crowded = rows.length > 1500;
    const bars = $("bars").checked && !crowded;
    const traces = packed.sizes.filter((size) => chosen.sizes.has(size.name)).map((size) => {
      const own = rows.filter((row) => row.size === size.name);
      return { type: "scatter", mode: "markers", name: size.name, x: own.map((row) => row.x), y: own.map((row) => row.value),
        text: own.map(hover), hovertemplate: "%{text}<extra></extra>",
        marker: { color: size.colour, size: crowded ? 5 : narrow ? 7 : 8, line: { width: crowded ? 1 : 1.4 },
          symbol: own.map((row) => size.symbol + (row.final ? "" : "-open")) },
        error_y: { type: "data", visible: bars, symmetric: false, array: own.map((row) => row.high - row.value),
          arrayminus: own.map((row) => row.value - row.low), thickness: 0.8, width: 0, color: size.colour + "70" } };
    });
    const shapes = [], annotations = [], chance = median(rows.map((row) => row.chance));
    const found = mark();
    if (Number.isFinite(chance)) {
      shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: chance, y1: chance, layer: "between",
        line: { color: "#333", width: 1.3, dash: "6px,4px" } });
      annotations.push({ xref: "paper", x: 1, xanchor: "right", y: chance, yanchor: "bottom", showarrow: false,
        text: `chance ${Number(chance.toPrecision(3))}`, font: { size: 11, color: "#444" }, bgcolor: "rgba(255,255,255,0.7)" });
    }
    if (found) {
      if ("at" in found) {
        shapes.push({ type: "rect", yref: "paper", y0: 0, y1: 1, x0: found.low, x1: found.high, layer: "below",
          line: { width: 0 }, fillcolor: THRESHOLD, opacity: 0.18, name: "interval" });
        shapes.push({ type: "line", yref: "paper", y0: 0, y1: 1, x0: found.at, x1: found.at, layer: "between",
          line: { color: THRESHOLD, width: 1.8 }, name: "threshold" });
      }
      annotations.push({ xref: "paper", yref: "paper", x: 0.01, y: 0.99, xanchor: "left", yanchor: "top", showarrow: false,
        text: escaped(verdictWords(found)), font: { size: 13, color: "at" in found ? "#a04000" : "#444" },
        bgcolor: "rgba(255,255,255,0.8)" });
    }
    const better = ofSeries.higherIsBetter ? "" : " (lower is better)";
    // The range by hand: plotly's own ignores shapes, so that chance could lie outside.
    let low = Infinity, high = -Infinity;
    for (const row of rows) { low = Math.min(low, row.value); high = Math.max(high, row.value); }
    if (Number.isFinite(chance)) { low = Math.min(low, chance); high = Math.max(high, chance); }
    const room = 0.07 * (high - low) || 0.05;
    const layout = { margin: { l: narrow ? 48 : 62, r: 16, t: narrow ? 34 : 40, b: 52 },
      title: { text: `<b>${escaped(ofSeries.taskTitle)}</b>`, x: 0, xref: "paper", xanchor: "left", font: { size: 16 } },
      showlegend: false, hovermode: "closest", shapes, annotations, dragmode: narrow ? false : "zoom",
      font: { family: 'system-ui, "Noto Sans", "Segoe UI", Roboto, Helvetica, Arial, sans-serif', color: "#333" },
      hoverlabel: { bgcolor: "#fff", bordercolor: "#888", align: "left", font: { size: 13, color: "#1d1d1f" } },
      paper_bgcolor: "#fff", plot_bgcolor: "#fff",
      xaxis: { type: along.log ? "log" : "linear", autorange: along.falling ? "reversed" : true,
        title: { text: along.label + (along.falling ? "  \u2192  better" : ""), font: { size: 13 } }, gridcolor: "#ececec",
        linecolor: "#999", zeroline: false, exponentformat: along.column.startsWith("flops") ? "power" : "B",
        ticks: "outside", tickcolor: "#999", ...(along.log ? { dtick: narrow ? 1 : undefined } : { nticks: narrow ? 6 : 10 }) },
      yaxis: { title: { text: ofSeries.metricTitle + better, font: { size: 13 } }, gridcolor: "#ececec", linecolor: "#999",
        zeroline: false, ticks: "outside", tickcolor: "#999", range: rows.length ? [low - room, high + 1.8 * room] : [0, 1] } };
    if (!rows.length) annotations.push({ xref: "paper", yref: "paper", x: 0.5, y: 0.5, showarrow: false,
      text: "no checkpoint is chosen", font: { size: 15, color: "#666" } });
    Plotly.react($("plot"), traces, layout, { responsive: true, displaylogo: false, doubleClick: "reset",
      modeBarButtonsToRemove: ["sendChartToCloud", "select2d", "lasso2d", "autoScale2d"],
      toImageButtonOptions: { format: "svg", filename: `${chosen.task}-${chosen.metric}-${chosen.axis}` } });
    const kind = [ofSeries.languageTitle, ofSeries.kind].filter(Boolean).join(", ");
    const words = found ? ` Verdict on this axis: ${verdictWords(found)} (${found.reason}).` : "";
    const hidden = crowded && $("bars").checked ? " Intervals are not drawn for more than 1,500 markers." : "";
    $("verdict").textContent = `${ofSeries.taskTitle} (${kind}).${words}${hidden}`;
  }

  // ---- the table -----------------------------------------------------------------------------------------------
  const COLUMNS = [["run", "run", (r) => r.run], ["size", "size", (r) => r.size, (r) => checkpoint.parameters(r.at)],
    ["tokens", "tokens", (r) => short(r.tokens), (r) => r.tokens],
    ["loss", "loss", (r) => fixed(r.loss, 4), (r) => r.loss], ["value", "value", (r) => fixed(r.value, 4), (r) => r.value],
    ["low", "95 % from", (r) => fixed(r.low, 4), (r) => r.low], ["high", "to", (r) => fixed(r.high, 4), (r) => r.high],
    ["rows", "rows", (r) => r.rows.toLocaleString("en"), (r) => r.rows],
    ["step", "step", (r) => r.step.toLocaleString("en"), (r) => r.step]];
  function sorted(rows) {
    const [, , words, number] = COLUMNS.find(([name]) => name === chosen.sort), sign = chosen.down ? 1 : -1;
    const key = number || words;
    return rows.slice().sort((a, b) => {
      const x = key(a), y = key(b);
      return sign * (typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y) || a.at - b.at;
    });
  }
  function header() {
    const cells = COLUMNS.map(([name, title, , number]) => {
      const cell = document.createElement("th"), button = document.createElement("button");
      cell.scope = "col";
      if (number && name !== "size") cell.className = "n";
      const now = chosen.sort === name;
      cell.setAttribute("aria-sort", now ? (chosen.down ? "ascending" : "descending") : "none");
      button.type = "button";
      button.dataset.column = name;
      button.textContent = title + (now ? (chosen.down ? " \u25b4" : " \u25be") : "");
      button.onclick = () => { chosen.down = now ? !chosen.down : true; chosen.sort = name; chosen.page = 0; update(false); };
      cell.append(button);
      return cell;
    });
    const line = document.createElement("tr");
    line.append(...cells);
    $("table").tHead.replaceChildren(line);
  }
  function list(rows) {
    header();
    const pages = Math.max(1, Math.ceil(rows.length / ROWS_A_PAGE));
    chosen.page = Math.min(chosen.page, pages - 1);
    const first = chosen.page * ROWS_A_PAGE;
    $("table").tBodies[0].replaceChildren(...sorted(rows).slice(first, first + ROWS_A_PAGE).map((row) => {
      const line = document.createElement("tr");
      for (const [name, , words, number] of COLUMNS) {
        const cell = line.insertCell();
        cell.textContent = words(row);
        if (number && name !== "size") cell.className = "n";
      }
      return line;
    }));
    $("page").textContent = rows.length ? `${first + 1} to ${Math.min(first + ROWS_A_PAGE, rows.length)} of ${rows.length.toLocaleString("en")}` : "no rows";
    $("back").disabled = chosen.page === 0;
    $("on").disabled = chosen.page >= pages - 1;
    const all = packed.series.reduce((sum, s) => sum + open(s).length, 0);
    $("count").textContent = `${rows.length.toLocaleString("en")} of ${all.toLocaleString("en")} rows shown`;
  }

  // ---- CSV -----------------------------------------------------------------------------------------------------
  const quoted = (text) => (/[",\n\r]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text);
  function cell(value) {
    if (typeof value !== "number") return quoted(String(value));
    return Number.isNaN(value) ? "" : String(value);
  }
  function csv(pieces) {
    const names = Object.keys(checkpoint), lines = [];
    const own = ["task", "language", "kind", "metric", "value", "stderr", "rows", "chance", "higher_is_better"];
    lines.push([...names, ...own].join(","));
    const known = new Map();  // the checkpoint's half of a line, shared by its tasks
    for (const [s, rows] of pieces) {
      const data = open(s), fore = [s.task, s.language, s.kind, s.metric].map(quoted).join(",");
      const aft = s.higherIsBetter ? "True" : "False";
      for (let k = 0; k < (rows ? rows.length : data.length); k++) {
        const i = rows ? rows[k] : k, at = data.at[i];
        let half = known.get(at);
        if (half === undefined) known.set(at, (half = names.map((name) => cell(checkpoint[name](at))).join(",")));
        lines.push(`${half},${fore},${cell(data.value(i))},${cell(data.stderr(i))},${cell(data.rows(i))},${cell(data.chance(i))},${aft}`);
      }
    }
    return lines.join("\n") + "\n";
  }
  function save(text, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  // ---- controls ------------------------------------------------------------------------------------------------
  let rows = [];
  function update(plot = true) {
    if (plot) { rows = rowsShown(); draw(rows); }
    list(rows);
    history.replaceState(null, "", "#" + new URLSearchParams({ task: chosen.task, metric: chosen.metric, axis: chosen.axis }));
  }
  const tasks = [...new Map(packed.series.map((s) => [s.task, s.taskTitle]))];
  const wished = tasks.some(([task]) => task === asked.get("task")) ? asked.get("task") : chosen.task;
  fill($("task"), tasks, wished);
  choose(wished, asked.get("metric"));
  if (packed.axes.some((a) => a.column === asked.get("axis"))) chosen.axis = asked.get("axis");
  fill($("axis"), packed.axes.map((a) => [a.column, a.short]), chosen.axis);
  $("task").onchange = (event) => { choose(event.target.value, chosen.metric); chosen.page = 0; update(); };
  $("metric").onchange = (event) => { chosen.metric = event.target.value; chosen.page = 0; update(); };
  $("axis").onchange = (event) => { chosen.axis = event.target.value; update(); };
  $("final").onchange = $("bars").onchange = () => { chosen.page = 0; update(); };
  $("sizes").replaceChildren(...packed.sizes.map((size) => {
    const button = document.createElement("button"), glyph = document.createElement("span");
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    button.dataset.size = size.name;
    glyph.textContent = size.glyph;
    glyph.style.color = size.colour;
    button.append(glyph, " " + size.name);
    button.onclick = () => {
      if (!chosen.sizes.delete(size.name)) chosen.sizes.add(size.name);
      button.setAttribute("aria-pressed", String(chosen.sizes.has(size.name)));
      chosen.page = 0;
      update();
    };
    return button;
  }));
  $("back").onclick = () => { chosen.page--; list(rows); };
  $("on").onclick = () => { chosen.page++; list(rows); };
  $("download").onclick = () => save(csv(packed.series.map((s) => [s, null])), "all_rows.csv");
  $("download-shown").onclick = () => save(csv([[series(), rows.map((row) => row.i)]]), `${chosen.task}-${chosen.metric}.csv`);
  // Margins and markers are made for one width; plotly only stretches what there is.
  window.matchMedia("(max-width: 640px)").addEventListener("change", () => update());
  update();
})();
