/* The workbench: the prompt, the text, the buttons, the settings, and the bars that show the
   likeliest next tokens. */

const BARS = 10;

class Writing {
  /** `model` is the worker's answer to "open". `onChange(tokens, change)` is called when the text no
      longer changes. `change` is the number of the text's last change. */
  constructor(engine, model, onChange) {
    Object.assign(this, { engine, model, onChange });
    this.prompt = []; // token ids
    this.made = []; // token ids of the continuation
    this.chosen = new Set(); // the tokens that the reader chose: their indices in `made`
    this.busy = false;
    this.asked = 0;
    this.changes = 0; // how many changes of the text have begun
    this.typing = 0; // the timer that runs while the reader types a prompt
    this.prompts = 0; // how many prompts have been started
    this.waiting = false; // true while a new prompt is not yet in place
    this.taken = null; // the promise that the newest call of setPrompt returned
    byId("write-button").onclick = () => this.writeAfterTyping(this.setting("count"));
    byId("step").onclick = () => this.writeAfterTyping(1);
    byId("undo").onclick = () => this.undo();
    byId("stop").onclick = () => this.engine.ask("stop");
    byId("new-seed").onclick = () => {
      byId("seed").value = 1 + Math.floor(Math.random() * 999999);
      this.showSettings();
    };
    byId("prompt").oninput = () => {
      this.begin();
      clearTimeout(this.typing);
      this.typing = setTimeout(() => this.setPrompt(byId("prompt").value), 250);
    };
    byId("prompt").onkeydown = (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey))
        this.writeAfterTyping(this.setting("count"));
    };
    for (const id of ["temperature", "top-k", "top-p", "count", "seed"])
      byId(id).oninput = () => {
        this.showSettings();
        if (id !== "count" && !this.busy) this.showNext();
      };
    const most = byId("top-k");
    most.max = Math.min(100, model.sizes.vocab_size);
    this.showSettings();
  }

  /** Notes that a change of the text begins, and returns its number. Marks the page as changing,
      until it shows the text's attention and steps. Programs that read the page wait until the
      mark is gone. */
  begin() {
    document.documentElement.dataset.changing = "";
    return ++this.changes;
  }

  setting(id) {
    const value = Number(byId(id).value);
    return Number.isFinite(value) ? value : 0;
  }

  get params() {
    return {
      temperature: this.setting("temperature"),
      topK: this.setting("top-k"),
      topP: this.setting("top-p"),
    };
  }

  /** The whole text: the prompt (or the start ids if it is empty), and the continuation. */
  get tokens() {
    return [...(this.prompt.length ? this.prompt : this.model.start), ...this.made];
  }

  showSettings() {
    const { temperature, topK, topP } = this.params;
    byId("temperature-value").textContent = temperature.toFixed(2);
    byId("top-k-value").textContent = topK ? `the ${topK} likeliest` : "off";
    byId("top-p-value").textContent = topP < 1 ? `${Math.round(100 * topP)} %` : "off";
    byId("count-value").textContent = this.setting("count");
  }

  /** Writes up to `count` tokens. If the reader has just typed a prompt, starts with this prompt. */
  async writeAfterTyping(count) {
    if (this.typing) this.setPrompt(byId("prompt").value);
    await this.taken;
    await this.write(count);
  }

  /** Starts a new text with this prompt, without a continuation. Returns a promise: true once the
      prompt is in place, false if a later prompt has replaced it. */
  setPrompt(text) {
    clearTimeout(this.typing);
    this.typing = 0;
    this.taken = this.take(text);
    return this.taken;
  }

  /** Encodes the prompt `text` and starts a new text with it, for setPrompt. */
  async take(text) {
    const mine = ++this.prompts;
    this.waiting = true;
    this.begin();
    const { ids, unknown } = await this.engine.ask("encode", { text });
    if (this.busy) await this.engine.ask("stop");
    while (this.busy) await new Promise((resolve) => setTimeout(resolve, 10));
    if (mine !== this.prompts) return false;
    this.waiting = false;
    this.prompt = ids.slice(0, this.model.longest - 1);
    this.made = [];
    this.chosen.clear();
    byId("echo").textContent = text;
    let note = "";
    if (unknown.length) {
      const names = unknown
        .slice(0, 5)
        .map((char) => `\u201c${char}\u201d`)
        .join(", ");
      note = `Left out: ${names}${unknown.length > 5 ? " and others" : ""}. This model never saw ${unknown.length > 1 ? "them" : "it"}.`;
      byId("echo").textContent = this.decoded(this.prompt);
    }
    if (ids.length > this.prompt.length)
      note += ` Only the first ${counted(this.prompt.length, "token")} of your beginning ${this.prompt.length === 1 ? "is" : "are"} used.`;
    byId("prompt-note").textContent = note;
    this.showText();
    byId("status").textContent = "";
    await this.rest();
    return true;
  }

  decoded(ids) {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    return (
      ids.map((id) => decoder.decode(this.model.pieces[id], { stream: true })).join("") +
      decoder.decode()
    );
  }

  /** Shows the whole continuation again. */
  showText() {
    this.decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    byId("output").textContent = "";
    byId("output").removeAttribute("data-done");
    this.made.forEach((_, place) => this.append(place));
  }

  /** Adds the token made[place] to the text on the page. */
  append(place) {
    const text = this.decoder.decode(this.model.pieces[this.made[place]], { stream: true });
    const output = byId("output");
    if (this.chosen.has(place))
      output.append(element("span.chosen", { title: "chosen by you" }, text));
    else if (output.lastChild?.nodeType === Node.TEXT_NODE) output.lastChild.data += text;
    else output.append(text);
  }

  /** Marks the text as complete. If the text ends within a character, shows a replacement
      character. */
  complete() {
    const rest = new TextDecoder("utf-8", { ignoreBOM: true });
    let tail = "";
    for (const id of this.made) tail = rest.decode(this.model.pieces[id], { stream: true });
    tail = rest.decode();
    if (tail) byId("output").append(element("span.unfinished", {}, tail));
    byId("output").setAttribute("data-done", "");
  }

  /** Writes up to `count` tokens. If `quietly`, shows them all at once at the end. */
  async write(count, quietly = false) {
    if (this.busy) return;
    this.busy = true;
    this.begin();
    this.enable();
    const output = byId("output");
    output.removeAttribute("data-done");
    output.querySelector(".unfinished")?.remove();
    if (!quietly) byId("status").textContent = "Writing ...";
    const begin = performance.now();
    const before = this.made.length;
    const question = {
      tokens: this.tokens,
      made: before,
      count,
      params: this.params,
      seed: Math.max(0, Math.floor(this.setting("seed"))),
    };
    let shown = before;
    const show = () => {
      for (; shown < this.made.length; shown++) this.append(shown);
      byId("paper").scrollTop = byId("paper").scrollHeight;
    };
    const take = ({ tokens }) => {
      this.made.push(...tokens);
      if (!quietly) requestAnimationFrame(show);
    };
    try {
      const { stopped } = await this.engine.ask("write", question, take);
      const written = this.made.length - before;
      const seconds = (performance.now() - begin) / 1000;
      if (quietly) this.showText();
      else show();
      byId("status").textContent = quietly ? "" : this.report(written, seconds, stopped);
    } finally {
      this.busy = false;
    }
    this.complete();
    await this.rest();
  }

  report(written, seconds, stopped) {
    const speed =
      written > 20 ? `, ${Math.round(written / seconds).toLocaleString("en")} per second` : "";
    const why = {
      end: " The model ended its text.",
      stop: " Stopped.",
      longest: " The text has the greatest length that this page allows.",
    };
    return `Wrote ${counted(written, "token")}${speed}.${why[stopped] ?? ""}`;
  }

  undo() {
    if (this.busy || this.typing || this.waiting || !this.made.length) return;
    this.made.pop();
    this.chosen.delete(this.made.length);
    this.showText();
    this.complete();
    byId("status").textContent = `Removed one token; ${this.made.length} left.`;
    this.rest();
  }

  /** Appends the token `id`, which the reader chose, to the text. */
  choose(id) {
    if (this.busy || this.typing || this.waiting) return;
    byId("output").querySelector(".unfinished")?.remove();
    this.chosen.add(this.made.length);
    this.made.push(id);
    this.append(this.made.length - 1);
    this.complete();
    byId("paper").scrollTop = byId("paper").scrollHeight;
    byId("status").textContent = `Added ${spoken(this.model.pieces[id])}.`;
    this.rest();
  }

  enable() {
    const full = this.tokens.length >= this.model.longest;
    byId("write-button").disabled = byId("step").disabled = this.busy || full;
    byId("undo").disabled = this.busy || !this.made.length;
    byId("stop").disabled = !this.busy;
    for (const bar of byId("bars").querySelectorAll("button")) bar.disabled = this.busy || full;
  }

  /** Called when the text no longer changes. Shows the likeliest tokens, and calls `onChange`. */
  async rest() {
    const change = this.begin();
    this.enable();
    await this.showNext();
    this.onChange(this.tokens, change);
  }

  async showNext() {
    const asked = ++this.asked;
    const { top, rest } = await this.engine.ask("next", {
      tokens: this.tokens,
      params: this.params,
      count: BARS,
    });
    if (asked !== this.asked || this.busy) return;
    const focused = [...byId("bars").children].findIndex((item) =>
      item.contains(document.activeElement),
    );
    byId("bars").replaceChildren(
      ...top.map(([id, chance, set]) => {
        const bytes = this.model.pieces[id];
        const is_end = id === this.model.eot;
        const cut = set === 0;
        const named = spoken(bytes);
        const more = (words) => element("span.visually-hidden", {}, words);
        return element(
          "li",
          {},
          element(
            `button.bar${cut ? ".cut" : ""}`,
            {
              type: "button",
              onclick: () => this.choose(id),
            },
            is_end ? element("span.piece", {}, "end") : piece(bytes),
            !is_end && !named.startsWith("\u201c") ? more(named) : null, // such as "space"
            element("span.track", {}, fill(chance)),
            element("span.chance", {}, percent(chance)),
            cut ? more("not drawn with these settings") : null,
          ),
        );
      }),
    );
    if (focused >= 0) byId("bars").children[Math.min(focused, top.length - 1)]?.firstChild.focus();
    byId("others").textContent =
      rest > 0.0005 ? `All other tokens together: ${percent(rest)}.` : "";
    if (top.some(([, , set]) => set === 0))
      byId("others").textContent += " Tokens that are crossed out are never drawn with these settings.";
    this.enable();
  }
}
