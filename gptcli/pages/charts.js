// Draws the charts of a page with uPlot, in the colours of the theme. Readers zoom by dragging or
// with keys, read values with the pointer or the arrow keys, and hide lines with the legend.
//
// drawChart(root, { title, note, xLabel, yLabel, x, series, bands, clip, sync, log, logX, height })
// A series is { label, values, style, points }. If `points` is true, the series has marks and no
// line. `bands` is a list of pairs of series; the area between the two lines of a pair is tinted.
// Any two styles differ in dashes or marks, so that readers can tell lines apart without colours.

const CHARTS = [];

const STYLES = [
  { colour: "--blue", dash: [], mark: false },
  { colour: "--orange", dash: [], mark: true, isFilled: true },
  { colour: "--ink", dash: [7, 4], mark: false },
  { colour: "--blue", dash: [2, 3], mark: false },
  { colour: "--orange", dash: [8, 3, 2, 3], mark: false },
  { colour: "--quiet", dash: [12, 3, 2, 3, 2, 3], mark: false },
  { colour: "--ink", dash: [1, 4], mark: true },
  { colour: "--quiet", dash: [10, 5], mark: false },
];

function chartNumber(value) {
  if (value === null || value === undefined) return "–";
  return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en")
    : Number(value.toPrecision(4)).toString();
}

// The label of a tick on a logarithmic axis, such as "10 k" or "1 M". Ticks between powers of ten
// have no label ("").
function powerOfTen(value) {
  if (value === null || Math.abs(Math.log10(value) % 1) > 1e-6) return "";
  const [size, unit] = value >= 1e9 ? [1e9, " G"] : value >= 1e6 ? [1e6, " M"]
    : value >= 1e3 ? [1e3, " k"] : [1, ""];
  return `${value / size}${unit}`;
}

function themeColour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function styleOf(series, i) {
  const style = STYLES[(series.style ?? i) % STYLES.length];
  return series.points ? { ...style, dash: [], mark: true } : style;
}

// A picture for the legend: a short piece of the line with its dashes and its mark.
function lineSample(style, hasLine) {
  const space = "http://www.w3.org/2000/svg";
  const picture = document.createElementNS(space, "svg");
  const add = (name, attributes) => {
    const part = document.createElementNS(space, name);
    for (const [key, value] of Object.entries(attributes)) part.setAttribute(key, value);
    picture.append(part);
  };
  for (const [key, value] of Object.entries({
    width: 30, height: 12, viewBox: "0 0 30 12", "aria-hidden": "true", class: style.colour.slice(2),
  })) picture.setAttribute(key, value);
  if (hasLine) {
    add("line", { x1: 0, x2: 30, y1: 6, y2: 6, "stroke-width": 2.5, stroke: "currentColor",
      "stroke-dasharray": style.dash.join(" ") });
  }
  if (style.mark) {
    add("circle", { cx: 15, cy: 6, r: 3.5, class: style.isFilled ? "mark filled" : "mark",
      stroke: "currentColor", "stroke-width": 2 });
  }
  return picture;
}

function drawChart(root, given) {
  const make = (name, attributes = {}, text = "") => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = text;
    return element;
  };
  const figure = make("figure", { class: "chart" });
  const caption = make("figcaption", {}, given.title);
  const reset = make("button", { type: "button", class: "small no-print" }, "Show all");
  const xLabel = given.xLabel ?? "step";
  reset.hidden = true;
  caption.append(reset);
  const place = make("div", {
    class: "plot", tabindex: "0", role: "group",
    "aria-label": `Chart: ${given.title}. The left and right keys read values, plus and minus zoom, ` +
      "Escape shows all again.",
  });
  const spoken = make("p", { class: "visually-hidden", "aria-live": "polite" });
  const legend = make("div", { class: "series-list" });
  const at = make("span", { class: "at" });
  legend.append(at);
  figure.append(caption, place, legend, spoken);
  const above = make("p", { class: "quiet" });
  figure.append(above);
  if (given.note) figure.append(make("p", { class: "quiet" }, given.note));
  root.append(figure);
  const first = given.x[0];
  const last = given.x[given.x.length - 1];
  const hidden = given.series.map(() => false);
  let plot = null;

  const outputs = given.series.map((one, i) => {
    const several = given.series.length > 1;
    const entry = several ? make("button", { type: "button", class: "series", "aria-pressed": "true",
      title: "Show or hide this line" }) : make("span", { class: "series" });
    const value = make("span", { class: "value" });
    entry.append(lineSample(styleOf(one, i), !one.points), make("span", {}, one.label), value);
    if (several) {
      entry.addEventListener("click", () => {
        hidden[i] = !hidden[i];
        entry.setAttribute("aria-pressed", String(!hidden[i]));
        plot.setSeries(i + 1, { show: !hidden[i] });
      });
    }
    legend.append(entry);
    return value;
  });

  function showValues(u) {
    const i = u.cursor.idx;
    const known = i !== null && i !== undefined;
    at.textContent = known ? `${xLabel} ${chartNumber(given.x[i])}` : "";
    outputs.forEach((output, s) => {
      output.textContent = known ? chartNumber(given.series[s].values[i]) : "";
    });
  }

  // uPlot asks for the range of x, then for the range of y, and updates u.scales only after both.
  // The range of y depends on the range of x, so `shown` keeps the range of x.
  let shown = [first, last];
  const keepShown = (u, from, to) => { if (from !== null) shown = [from, to]; return [from, to]; };

  // The range of y. If `clip` is set and the whole range of x is shown, the range of y leaves out
  // the steep start of the curves, because it would flatten the rest of the curves.
  function clipped(low, high) {
    const whole = shown[0] <= first && shown[1] >= last;
    if (whole && given.clip) {
      const later = given.series.flatMap((one) =>
        one.values.filter((value, i) => value !== null && given.x[i] > first + 0.08 * (last - first)));
      if (later.length) high = Math.max(...later);
    }
    const starts = given.series.map((one) => one.values.find((value) => value !== null))
      .filter((value) => value > high);
    above.textContent = whole && starts.length
      ? `The first values are above the chart. The highest is ${chartNumber(Math.max(...starts))}.` : "";
    const margin = 0.06 * (high - low || Math.abs(high) || 1);
    return [low - margin, high + margin];
  }

  const width = () => Math.max(200, place.clientWidth);

  function build() {
    plot?.destroy();
    const axis = {
      stroke: themeColour("--quiet"),
      grid: { stroke: themeColour("--line"), width: 1 },
      ticks: { stroke: themeColour("--line"), width: 1 },
      font: "13px system-ui, sans-serif",
      labelFont: "13px system-ui, sans-serif",
      labelSize: 22,
    };
    plot = new uPlot({
      width: width(),
      height: given.height ?? 260,
      cursor: { sync: given.sync ? { key: given.sync } : undefined, drag: { x: true, y: false } },
      scales: {
        x: { time: false, distr: given.logX ? 3 : 1, ...(given.clip ? { range: keepShown } : {}) },
        y: given.log ? { distr: 3 } : {
          range: (u, low, high) => low === null ? [0, 1] : clipped(low, high),
        },
      },
      axes: [{ ...axis, label: xLabel, ...(given.logX ? { values: (u, ticks) => ticks.map(powerOfTen) } : {}) }, { ...axis, label: given.yLabel, size: 62 }],
      legend: { show: false },
      bands: (given.bands ?? []).map((pair) => ({ series: pair, fill: themeColour("--blue-soft") })),
      series: [
        {},
        ...given.series.map((one, i) => {
          const style = styleOf(one, i);
          return {
            stroke: themeColour(style.colour),
            dash: style.dash,
            width: one.points ? 0 : 2,
            show: !hidden[i],
            spanGaps: true,
            points: {
              show: style.mark || undefined, size: one.points ? 10 : 7, width: 2,
              stroke: themeColour(style.colour),
              fill: themeColour(style.isFilled ? style.colour : "--panel"),
            },
          };
        }),
      ],
      hooks: {
        setScale: [(u, key) => {
          if (key === "x") reset.hidden = u.scales.x.min <= first && u.scales.x.max >= last;
        }],
        setCursor: [showValues],
      },
    }, [given.x, ...given.series.map((one) => one.values)], place);
  }

  // Charts with the same `sync` zoom together. uPlot zooms them together only if the reader drags.
  // For the keys and for the button "Show all", the code below zooms them together.
  const together = () => CHARTS.filter((one) => one === own || (given.sync && one.sync === given.sync));
  const showAll = () => together().forEach((one) => one.zoomTo(null));
  function moveTo(i) {
    const left = plot.valToPos(given.x[i], "x");
    plot.setCursor({ left, top: plot.over.clientHeight / 2 });
    spoken.textContent = `${xLabel} ${chartNumber(given.x[i])}: ` + given.series
      .map((one) => `${one.label} ${chartNumber(one.values[i])}`).join(", ");
  }
  function zoom(factor) {
    const { min, max } = plot.scales.x;
    const middle = given.x[plot.cursor.idx ?? Math.floor(given.x.length / 2)];
    const half = Math.max((max - min) * factor / 2, (last - first) / 1000);
    const range = { min: Math.max(first, middle - half), max: Math.min(last, middle + half) };
    together().forEach((one) => one.zoomTo(range));
  }
  place.addEventListener("keydown", (event) => {
    const now = plot.cursor.idx;
    const many = given.x.length - 1;
    const stride = event.shiftKey ? Math.max(1, Math.round(many / 10)) : 1;
    const keys = {
      ArrowRight: () => moveTo(Math.min(many, (now ?? -1) + stride)),
      ArrowLeft: () => moveTo(Math.max(0, (now ?? many + 1) - stride)),
      Home: () => moveTo(0),
      End: () => moveTo(many),
      "+": () => zoom(0.5),
      "=": () => zoom(0.5),
      "-": () => zoom(2),
      Escape: showAll,
    };
    if (event.ctrlKey || event.metaKey || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  reset.addEventListener("click", () => { showAll(); place.focus({ preventScroll: true }); });
  build();
  const size = () => {
    if (width() !== plot.width) plot.setSize({ width: width(), height: given.height ?? 260 });
  };
  const own = {
    build, size, sync: given.sync,
    zoomTo: (range) => plot.setScale("x", range ?? { min: first, max: last }),
  };
  CHARTS.push(own);
  // A chart's width changes if the window's width changes, or if a chart is added beside it.
  new ResizeObserver(size).observe(place);
}

addEventListener("beforeprint", () => CHARTS.forEach((one) => one.size()));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change",
  () => CHARTS.forEach((one) => one.build()));
