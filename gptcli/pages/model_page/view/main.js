/* Starts the page: opens the model, connects the parts of the page, and reads the prompt and the
   settings from the page's address. */

const FIRST_TOKENS = 80; // how many tokens the page writes when it opens
const MOST_FOLLOWED = 40; // the most tokens in the strip

async function start() {
  const data = JSON.parse(byId("page-data").textContent);
  showSamples(data.samples);
  if (typeof DecompressionStream === "undefined" || typeof Worker === "undefined")
    throw new Error("this browser is too old; use one from 2023 or later");
  const engine = new Engine();
  const model = await engine.ask("open", { payload: byId("payload").textContent, simd: true });
  byId("kernels").textContent = model.kernels;
  document.documentElement.dataset.kernels = model.kernels;

  let looked = 0;
  let shown = 0; // `writing.changes` of the text whose attention is shown
  const strip = new Strip(model.pieces, (at) => lookAt(at));
  const attention = new Attention(model, strip, () => lookAt(strip.at));
  strip.onPoint = (at) => attention.describe(at);

  /** Shows the eight steps and the logit lens of the token at position `at`. The reader
      follows this token. */
  async function lookAt(at) {
    const mine = ++looked;
    document.documentElement.dataset.changing = "";
    const { tokens } = attention;
    const { layer, head } = attention;
    attention.describe(at);
    attention.drawMap();
    const found = await engine.ask("steps", { tokens, at, layer, head });
    const rows = await engine.ask("lens", { tokens, at, count: GUESSES });
    if (mine !== looked) return;
    showSteps({ found, model, tokens, at, layer, head });
    showLens({ rows, model, tokens, at });
    document.documentElement.dataset.looked = String(at);
    if (shown === writing.changes) delete document.documentElement.dataset.changing;
  }

  const writing = new Writing(engine, model, async (tokens, change) => {
    await new Promise((resolve) => setTimeout(resolve, 60));
    if (change !== writing.changes || writing.busy) return;
    const maps = await engine.ask("maps", { tokens, most: MOST_FOLLOWED });
    if (change !== writing.changes || writing.busy) return;
    shown = change;
    attention.found = maps;
    attention.tokens = tokens;
    strip.show(tokens, maps.from, (at) => attention.weightsOf(at));
    attention.show(maps, tokens);
    strip.follow(tokens.length - 1);
  });

  window.addEventListener("hashchange", () => writeFromAddress(writing));
  if (!(await writeFromAddress(writing))) {
    byId("prompt").value = data.prompt;
    await writing.setPrompt(data.prompt);
    await writing.write(FIRST_TOKENS, true);
  }
  document.documentElement.dataset.ready = "";
}

/** Writes the text that the page's address asks for, such as #prompt=Once&n=40. Returns false if
    the address has no prompt. */
async function writeFromAddress(writing) {
  const asked = new URLSearchParams(location.hash.slice(1));
  if (!asked.has("prompt")) return false;
  const ids = { temperature: "temperature", top_k: "top-k", top_p: "top-p", seed: "seed" };
  for (const [name, id] of Object.entries(ids))
    if (asked.has(name)) byId(id).value = asked.get(name);
  writing.showSettings();
  byId("prompt").value = asked.get("prompt");
  if (!(await writing.setPrompt(asked.get("prompt")))) return true;
  const count = Number(asked.get("n") ?? writing.setting("count"));
  await writing.write(Number.isInteger(count) && count > 0 ? count : 0);
  return true;
}

/** Shows the samples of the run. The reader chooses one with a slider. */
function showSamples(samples) {
  if (!samples.length) return;
  byId("samples").hidden = false;
  const slider = byId("sample");
  slider.max = samples.length - 1;
  slider.value = samples.length - 1;
  slider.hidden = samples.length === 1;
  slider.oninput = () => {
    const { step, text } = samples[Number(slider.value)];
    byId("sample-value").textContent = step.toLocaleString("en");
    slider.setAttribute("aria-valuetext", `step ${step}`);
    byId("sample-text").textContent = text;
  };
  slider.oninput();
}

start().catch((error) => {
  byId("problem").hidden = false;
  byId("problem").textContent = `The model could not start: ${error.message}`;
  byId("status").textContent = "";
});
