// Draws every <div class="plot"> from the JSON in it with uPlot: hover for values, drag to zoom, double-click to reset.
(() => {
  const root = document.documentElement;
  const color = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const power = (value) => (+value.toPrecision(3)).toExponential();
  const ticks = (values) => {
    const small = Math.max(...values.map(Math.abs)) < 0.01;
    return values.map((value) => small && value ? power(value) : short(value));
  };
  const short = (value) => {
    if (value == null) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size < 0.001 || size >= 1e6)) return power(value);
    return String(+value.toPrecision(size >= 1000 ? 6 : 4));
  };
  const charts = [];
  const draw = (place) => {
    const spec = JSON.parse(place.querySelector("script").textContent);
    const unit = spec.unit ? " " + spec.unit : "";
    const axis = { stroke: () => color("--faint"), grid: { stroke: () => color("--line"), width: 1 },
      ticks: { show: false }, font: "12px system-ui, sans-serif" };
    const series = spec.series.map((one) => ({
      label: one.label, stroke: () => color("--c" + one.color), width: 1.8, spanGaps: true,
      dash: one.dashed ? [5, 4] : undefined, value: (u, value) => short(value) + (value == null ? "" : unit),
      points: { show: spec.x.length < 60, size: 5, fill: () => color("--c" + one.color) },
    }));
    const ends = [spec.x, ...spec.series.map((one) => one.values)].map((all) => all.findLastIndex((one) => one != null));
    const rest = (u) => u.cursor.idx == null && u.setLegend({ idxs: ends }, false); // without a cursor: the last values
    const options = {
      width: place.clientWidth, height: 220, padding: [8, 12, 0, 0],
      hooks: { ready: [rest], setCursor: [rest] },
      cursor: { sync: { key: "step" }, drag: { x: true, y: false }, points: { size: 7 } },
      scales: { x: { time: false }, y: { range: (u, low, high) => {
        if (low == null) return [0, 1];
        const room = (high - low || Math.abs(high) || 1) * 0.08;
        return [spec.zero && low >= 0 ? 0 : low - room, high + room];
      } } },
      axes: [{ ...axis, size: 34, values: (u, all) => all.map((value) => value % 1 ? "" : value.toLocaleString("en")) },
        { ...axis, size: 58, values: (u, all) => ticks(all) }],
      series: [{ label: "step", value: (u, value) => value == null ? "–" : value.toLocaleString("en") }, ...series],
    };
    const chart = new uPlot(options, [spec.x, ...spec.series.map((one) => one.values)], place);
    charts.push([chart, place]);
  };
  document.querySelectorAll(".plot").forEach(draw);
  const fit = () => charts.forEach(([chart, place]) => {
    if (place.clientWidth !== chart.width) chart.setSize({ width: place.clientWidth, height: 220 });
  });
  const redraw = () => charts.forEach(([chart]) => chart.redraw(false, true));
  new ResizeObserver(fit).observe(document.querySelector("main"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("beforeprint", () => { root.dataset.print = ""; fit(); redraw(); });
  addEventListener("afterprint", () => { delete root.dataset.print; fit(); redraw(); });
})();
