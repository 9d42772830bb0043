// The page of `gptcli report`: charts, then a passage in which each token is coloured by its loss,
// and attention maps. The passage and the maps are shown for several steps of the training.

const report = JSON.parse(document.getElementById("report").textContent);
for (const one of report.charts) drawChart(document.getElementById(one.place), one);

// ---- the passage ----

const LEVELS = [
  [0.5, "expected", "expected (above 1/2)"],
  [0.1, "likely", "likely (above 1/10)"],
  [0.01, "unlikely", "unlikely (above 1/100)"],
  [0, "surprising", "surprising"],
];

// A token's loss and probability in words. A loss that was not finite is null in JSON.
function predicted(loss) {
  if (loss === null) return "the loss was not a finite number";
  return `loss ${loss.toFixed(2)}, probability ${(100 * Math.exp(-loss)).toPrecision(2)} %`;
}

function setUpPassage() {
  const { moments, labels, breaks, opensAt } = report.passage;
  const place = document.getElementById("passage");
  const slider = document.getElementById("passage-step");
  const words = document.getElementById("passage-words");
  const pointed = document.getElementById("passage-token");
  const spans = labels.map((label, i) => {
    const span = document.createElement("span");
    span.textContent = label;
    span.className = "piece";
    span.addEventListener("pointerenter", () => point(i));
    place.append(span);
    if (breaks[i]) place.append(document.createElement("br"));
    return span;
  });
  let at = 0;
  const moment = () => moments[Number(slider.value)];
  function point(i) {
    spans[at].classList.remove("pointed");
    at = i;
    spans[at].classList.add("pointed");
    pointed.textContent = i === 0
      ? `“${labels[i]}” is the first token, so the network did not predict it.`
      : `“${labels[i]}” (token ${i + 1}): ${predicted(moment().losses[i - 1])}`;
  }
  function show() {
    const { losses, step } = moment();
    const known = losses.filter((loss) => loss !== null);
    const mean = known.reduce((sum, loss) => sum + loss, 0) / known.length;
    const counts = LEVELS.map(() => 0);
    spans.forEach((span, i) => {
      span.classList.remove(...LEVELS.map((level) => level[1]));
      if (i === 0 || losses[i - 1] === null) return;
      const level = LEVELS.findIndex(([least]) => Math.exp(-losses[i - 1]) >= least);
      counts[level] += 1;
      span.classList.add(LEVELS[level][1]);
    });
    const missing = losses.length - known.length;
    words.textContent = `Step ${step.toLocaleString("en")}: ` +
      (known.length ? `mean loss ${mean.toFixed(2)}; ` : "") +
      LEVELS.map(([, name], i) => `${counts[i]} ${counts[i] === 1 ? "token" : "tokens"} ${name}`).join(", ") +
      (missing ? `, ${missing} without a finite loss` : "") + ".";
    slider.setAttribute("aria-valuetext", `step ${step}`);
    point(at);
  }
  place.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!move) return;
    event.preventDefault();
    point(Math.max(0, Math.min(spans.length - 1, at + move)));
  });
  slider.addEventListener("input", show);
  slider.value = String(opensAt);
  show();
}
if (report.passage) setUpPassage();

// ---- attention maps ----

function setUpMaps() {
  const { moments, labels, opensAt } = report.maps;
  const maps = attentionMaps(document.getElementById("maps"), labels);
  const slider = document.getElementById("maps-step");
  const words = document.getElementById("maps-words");
  function show() {
    const { step, heads } = moments[Number(slider.value)];
    words.textContent = `Step ${step.toLocaleString("en")}`;
    slider.setAttribute("aria-valuetext", `step ${step}`);
    maps.show(heads);
  }
  slider.addEventListener("input", show);
  slider.value = String(opensAt);
  show();
}
if (report.maps) setUpMaps();
document.documentElement.dataset.height = String(document.documentElement.scrollHeight);
