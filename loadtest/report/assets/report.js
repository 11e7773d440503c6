// Draws the charts of the page with uPlot from the JSON beside it. Drag to zoom, double-click to see everything again.
"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f",
    "#b2182b", "#1b7837", "#5e3c99", "#a6611a"];
  const BANDS = { fault: "rgba(127,127,127,0.28)", attack: "rgba(213,94,0,0.22)", alarm: "rgba(196,49,75,0.9)",
    phase: "rgba(0,114,178,0.12)" };
  const HEIGHT = 260;
  const drawn = [];

  function number(value) {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size >= 1e5 || size < 1e-3)) return value.toExponential(2);
    return String(Number(value.toPrecision(4)));
  }

  function table(chart) {
    return uPlot.join(chart.series.map((one) => [one.x, one.y]), chart.series.map((one) => one.y.map(() => 1)));
  }

  // The ends of an error bar by the place of its point.
  function bars(one) {
    const ends = new Map();
    if (one.low && one.high) {
      one.x.forEach((x, i) => { if (one.low[i] !== null && one.high[i] !== null) ends.set(x, [one.low[i], one.high[i]]); });
    }
    return ends;
  }

  function drawBars(u, chart) {
    const ratio = devicePixelRatio, context = u.ctx;
    context.save();
    context.beginPath();
    context.rect(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height);
    context.clip();
    chart.series.forEach((one, index) => {
      if (!u.series[index + 1].show) return;
      context.strokeStyle = COLOURS[index % COLOURS.length];
      context.lineWidth = 1.5 * ratio;
      for (const [x, [low, high]] of bars(one)) {
        const at = u.valToPos(x, "x", true), floor = u.scales.y.distr === 3 ? u.scales.y.min : -Infinity;
        const from = u.valToPos(Math.max(low, floor), "y", true), to = u.valToPos(high, "y", true), cap = 4 * ratio;
        context.beginPath();
        context.moveTo(at, from); context.lineTo(at, to);
        context.moveTo(at - cap, from); context.lineTo(at + cap, from);
        context.moveTo(at - cap, to); context.lineTo(at + cap, to);
        context.stroke();
      }
    });
    context.restore();
  }

  function drawMarks(u, chart) {
    const ratio = devicePixelRatio, context = u.ctx;
    context.save();
    context.beginPath();
    context.rect(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height);
    context.clip();
    for (const mark of chart.marks) {
      const from = u.valToPos(mark.start, "x", true), to = u.valToPos(mark.end, "x", true);
      context.fillStyle = BANDS[mark.kind];
      context.fillRect(from, u.bbox.top, Math.max(to - from, 1.5 * ratio), u.bbox.height);
    }
    context.restore();
  }

  // What lasts under the cursor, in words below the chart.
  function sayMarks(u, chart, place) {
    const x = u.cursor.idx === null || u.cursor.idx === undefined ? null : u.posToVal(u.cursor.left, "x");
    const slack = x === null ? 0 : (u.scales.x.max - u.scales.x.min) / 150;
    const held = x === null ? [] : chart.marks.filter((m) => m.start - slack <= x && x <= m.end + slack);
    place.textContent = held.map((m) => m.label).join(" · ") || "\u00a0";
  }

  function axis(label, colours, log, fixed) {
    const one = { label, stroke: colours.ink, grid: { stroke: colours.line, width: 1 }, ticks: { stroke: colours.line, width: 1 },
      values: (u, splits) => splits.map((v) => (v === null ? "" : number(v))), labelSize: 22, font: "12px system-ui",
      labelFont: "12px system-ui" };
    if (fixed) { one.splits = () => fixed; one.filter = (u, splits) => splits; }
    return one;
  }

  function options(chart, width, colours, place) {
    const few = chart.x_values && chart.x_values.length <= 12 ? chart.x_values : null;
    return {
      width, height: HEIGHT, legend: { live: true }, focus: { alpha: 0.35 },
      cursor: { drag: { x: true, y: true, uni: 30 }, focus: { prox: 24 } },
      scales: {
        x: { time: false, distr: chart.log_x ? 3 : 1, range: chart.log_x ? undefined : padded },
        y: { distr: chart.log_y ? 3 : 1, range: chart.log_y ? undefined : fromZero(chart) },
      },
      axes: [{ ...axis(chart.x_label, colours, chart.log_x, few), size: 42 },
        { ...axis(chart.y_label, colours, chart.log_y, null), size: 62 }],
      series: [{ label: chart.x_label, value: (u, v) => number(v) }].concat(chart.series.map((one, index) => ({
        label: one.label, stroke: COLOURS[index % COLOURS.length], width: 1.6, spanGaps: true,
        value: (u, v) => number(v), points: { show: one.points || one.x.length < 2, size: 6 },
      }))),
      hooks: { drawClear: [(u) => drawMarks(u, chart)], draw: [(u) => drawBars(u, chart)],
        setCursor: chart.marks.length ? [(u) => sayMarks(u, chart, place)] : [] },
    };
  }

  function padded(u, low, high) {
    const space = (high - low) * 0.03 || 0.5;
    return [low - space, high + space];
  }

  function fromZero(chart) {
    const tops = chart.series.flatMap((one) => (one.high || []).filter((v) => v !== null));
    return (u, low, high) => {
      if (low === null) return [0, 1];
      const zoomed = u.status === 1 && u.select && u.select.width > 0;
      if (zoomed) return [low, high];
      const top = Math.max(high, ...tops);
      return [Math.min(0, low), top > 0 ? top * 1.06 : 1];
    };
  }

  function draw() {
    while (drawn.length) drawn.pop().destroy();
    const style = getComputedStyle(document.documentElement);
    const colours = { ink: style.getPropertyValue("--ink").trim(), line: style.getPropertyValue("--line").trim() };
    for (const chart of charts) {
      const holder = document.getElementById("chart-" + chart.name);
      const place = holder.parentElement.querySelector(".marks");
      drawn.push(new uPlot(options(chart, holder.clientWidth, colours, place), table(chart), holder));
    }
    document.documentElement.dataset.charts = String(drawn.length);
  }

  document.getElementById("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    draw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  let waiting = 0;
  addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(draw, 150); });
  draw();
})();
