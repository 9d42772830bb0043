// Charts of a page, drawn by uPlot: zoom by dragging, values at the pointer, colours of the theme.
//
// drawChart(root, { title, note, xLabel, yLabel, x, series, clip, sync, log }) where a series is
// { label, values, style }. Styles differ in colour, dashes and marks, so that no line is told by
// its colour alone.

const CHARTS = [];

const STYLES = [
  { colour: "--blue", dash: [], mark: false },
  { colour: "--orange", dash: [], mark: true },
  { colour: "--ink", dash: [7, 4], mark: false },
  { colour: "--blue", dash: [2, 3], mark: false },
  { colour: "--orange", dash: [8, 3, 2, 3], mark: false },
  { colour: "--quiet", dash: [], mark: false },
  { colour: "--ink", dash: [1, 4], mark: true },
  { colour: "--quiet", dash: [10, 5], mark: false },
];

function drawChart(root, given) {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const figure = document.createElement("figure");
  figure.className = "chart";
  const caption = document.createElement("figcaption");
  caption.textContent = given.title;
  const place = document.createElement("div");
  place.setAttribute("role", "img");
  place.setAttribute("aria-label", `${given.title}. ${given.note ?? ""}`);
  const reset = document.createElement("button");
  reset.type = "button";
  reset.className = "small no-print";
  reset.textContent = "Show all";
  reset.hidden = true;
  caption.append(reset);
  figure.append(caption, place);
  if (given.note) {
    const note = document.createElement("p");
    note.className = "quiet";
    note.textContent = given.note;
    figure.append(note);
  }
  root.append(figure);
  const first = given.x[0];
  const last = given.x[given.x.length - 1];
  let plot = null;

  // Without the steep start, which would flatten everything that comes later.
  function clipped(low, high, from, to) {
    const whole = from <= first && to >= last;
    if (whole && given.clip) {
      const later = given.series.flatMap((one) =>
        one.values.filter((value, i) => value !== null && given.x[i] > first + 0.08 * (last - first)));
      if (later.length) high = Math.max(...later);
    }
    const margin = 0.06 * (high - low || Math.abs(high) || 1);
    return [low - margin, high + margin];
  }

  function build() {
    plot?.destroy();
    const axis = {
      stroke: colour("--quiet"),
      grid: { stroke: colour("--line"), width: 1 },
      ticks: { stroke: colour("--line"), width: 1 },
      font: "12px system-ui, sans-serif",
      labelFont: "12px system-ui, sans-serif",
      labelSize: 20,
    };
    plot = new uPlot({
      width: Math.max(260, figure.clientWidth),
      height: given.height ?? 260,
      cursor: { sync: given.sync ? { key: given.sync } : undefined, drag: { x: true, y: false } },
      scales: {
        x: { time: false, distr: given.logX ? 3 : 1 },
        y: given.log ? { distr: 3 } : {
          range: (u, low, high) => low === null ? [0, 1]
            : clipped(low, high, u.scales.x.min, u.scales.x.max),
        },
      },
      axes: [{ ...axis, label: given.xLabel ?? "step" },
        { ...axis, label: given.yLabel, size: 62 }],
      legend: { live: true },
      series: [
        { label: given.xLabel ?? "step" },
        ...given.series.map((one, i) => {
          const style = STYLES[(one.style ?? i) % STYLES.length];
          return {
            label: one.label,
            stroke: colour(style.colour),
            dash: style.dash,
            width: 2,
            spanGaps: true,
            points: { show: style.mark || undefined, size: 6, fill: colour("--panel") },
            value: (u, value) => value === null || value === undefined ? "–"
              : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en")
                : Number(value.toPrecision(4)).toString(),
          };
        }),
      ],
      hooks: {
        setScale: [(u, key) => {
          if (key === "x") reset.hidden = u.scales.x.min <= first && u.scales.x.max >= last;
        }],
      },
    }, [given.x, ...given.series.map((one) => one.values)], place);
  }
  reset.addEventListener("click", () => plot.setScale("x", { min: first, max: last }));
  build();
  CHARTS.push({ build, size: () => plot.setSize({
    width: Math.max(260, figure.clientWidth), height: given.height ?? 260 }) });
}

addEventListener("resize", () => CHARTS.forEach((one) => one.size()));
addEventListener("beforeprint", () => CHARTS.forEach((one) => one.size()));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change",
  () => CHARTS.forEach((one) => one.build()));
