/* Draws the maps of all heads, and describes what the chosen head looks at. */

const LEAST_LABEL = 9; // a smaller cell, in pixels, has no room for a letter
const LONGEST_LABEL = 7; // characters

const HABITS = {
  before: "the token just before",
  repeated: "what came after an earlier copy of the same token",
  itself: "the token itself",
  first: "the first token shown",
  same: "earlier copies of the same token",
};

class Attention {
  /** `onChoose()` is called when the reader chooses a head. */
  constructor(model, strip, onChoose) {
    Object.assign(this, { model, strip, onChoose });
    this.layer = 0;
    this.head = 0;
    this.picked = false; // whether the reader chose the head
    this.canvas = byId("map");
    this.margin = 0;
    this.canvas.onpointermove = (event) => {
      const box = this.canvas.getBoundingClientRect();
      const place = ((event.clientY - box.top) / box.height) * (this.found.count + this.margin);
      const row = Math.floor(place - this.margin);
      if (row >= 0 && row < this.found.count) this.point(this.found.from + row);
    };
    this.canvas.onpointerleave = () => this.point(null);
    window
      .matchMedia("(prefers-color-scheme: dark)")
      .addEventListener("change", () => this.drawAll());
    window.addEventListener("resize", () => this.drawAll());
  }

  point(at) {
    this.strip.draw(at ?? this.strip.at);
    this.describe(at ?? this.strip.at);
  }

  /** Shows new maps. `found` is the worker's answer to "maps". */
  show(found, tokens) {
    Object.assign(this, { found, tokens });
    if (!this.picked) this.chooseTypical();
    this.showHeads();
    this.drawAll();
  }

  get map() {
    return this.found.maps[this.layer * this.model.sizes.n_head + this.head];
  }

  habits(layer, head) {
    return this.found.habits[layer * this.model.sizes.n_head + head];
  }

  /** The attention weights of the token at position `at` in the chosen head, one for each token in
      the strip. */
  weightsOf(at) {
    const { from, count } = this.found;
    return this.map.subarray((at - from) * count, (at - from + 1) * count);
  }

  /** What a head looks at most, the share of its attention that goes there, and the mean distance
      at which the head looks. */
  mainHabit(layer, head) {
    const shares = this.habits(layer, head);
    const [name, share] = Object.keys(HABITS)
      .map((key) => [key, shares[key]])
      .reduce((best, one) => (one[1] > best[1] ? one : best));
    return { name, share, distance: shares.distance };
  }

  habitWords(layer, head) {
    const { name, share, distance } = this.mainHabit(layer, head);
    if (share >= 0.3) return `${percent(share)} of its attention goes to ${HABITS[name]}`;
    return `it spreads its attention; on average, it looks ${distance.toFixed(1)} tokens back`;
  }

  /** Chooses the head that looks most clearly at the token before, or that is most clearly an
      induction head. */
  chooseTypical() {
    const { n_layer, n_head } = this.model.sizes;
    let best = -1;
    for (let l = 0; l < n_layer; l++)
      for (let h = 0; h < n_head; h++) {
        const { before, repeated } = this.habits(l, h);
        const score = Math.max(before, 1.2 * repeated);
        if (score > best) [best, this.layer, this.head] = [score, l, h];
      }
  }

  choose(layer, head) {
    [this.layer, this.head, this.picked] = [layer, head, true];
    for (const button of byId("heads").querySelectorAll("button"))
      button.setAttribute(
        "aria-pressed",
        String(Number(button.dataset.layer) === layer && Number(button.dataset.head) === head),
      );
    this.drawMap();
    this.point(null);
    this.onChoose();
  }

  headName(layer = this.layer, head = this.head) {
    return `head ${head + 1} of layer ${layer + 1}`;
  }

  showHeads() {
    const { n_layer, n_head } = this.model.sizes;
    const box = byId("heads");
    if (!box.children.length)
      for (let l = 0; l < n_layer; l++)
        box.append(
          element(
            "div.head-row",
            { "--heads": n_head },
            element("span", {}, `layer ${l + 1}`),
            Array.from({ length: n_head }, (_, h) =>
              element(
                "button.head",
                {
                  type: "button",
                  "data-layer": l,
                  "data-head": h,
                  onclick: () => this.choose(l, h),
                },
                element("canvas"),
              ),
            ),
          ),
        );
    for (const button of box.querySelectorAll("button")) {
      const [l, h] = [Number(button.dataset.layer), Number(button.dataset.head)];
      button.setAttribute("aria-pressed", String(l === this.layer && h === this.head));
      const words = `Layer ${l + 1}, head ${h + 1}: ${this.habitWords(l, h)}`;
      button.setAttribute("aria-label", words);
      button.title = words;
    }
    this.showStandingOut();
  }

  /** Shows the heads with the clearest habits as buttons: at most four, and at most one for each
      habit. */
  showStandingOut() {
    const { n_layer, n_head } = this.model.sizes;
    const best = [];
    for (const name of Object.keys(HABITS)) {
      let found = null;
      for (let l = 0; l < n_layer; l++)
        for (let h = 0; h < n_head; h++) {
          const share = this.habits(l, h)[name];
          if (share >= 0.3 && (!found || share > found.share)) found = { l, h, share, name };
        }
      if (found) best.push(found);
    }
    const items = best
      .sort((a, b) => b.share - a.share)
      .slice(0, 4)
      .map(({ l, h, share, name }) =>
        element(
          "li",
          {},
          element(
            "button",
            { type: "button", onclick: () => this.choose(l, h) },
            `Layer ${l + 1}, head ${h + 1}: ${HABITS[name]}, ${percent(share)}`,
          ),
        ),
      );
    byId("standing-out").replaceChildren(
      ...(items.length
        ? [
            element("p.small-label", {}, "Heads that stand out in this text"),
            element("ul.habits", {}, items),
          ]
        : []),
    );
  }

  drawAll() {
    if (!this.found) return;
    const { n_head } = this.model.sizes;
    for (const button of byId("heads").querySelectorAll("button")) {
      const map =
        this.found.maps[Number(button.dataset.layer) * n_head + Number(button.dataset.head)];
      this.paint(button.firstChild, map);
    }
    this.drawMap();
  }

  drawMap() {
    this.paint(this.canvas, this.map, this.strip.at);
    byId("map-label").textContent = `Attention of all tokens in ${this.headName()}`;
    const words = this.habitWords(this.layer, this.head);
    byId("habit").textContent =
      `${this.headName()[0].toUpperCase()}${this.headName().slice(1)}: ${words}.`;
  }

  /** Paints a map. A stronger colour means more attention. The followed token's row gets a
      frame. */
  paint(canvas, map, followed = null) {
    const { from, count } = this.found;
    const box = canvas.getBoundingClientRect();
    const size = Math.max(1, Math.round(box.width * window.devicePixelRatio));
    canvas.width = canvas.height = size;
    const context = canvas.getContext("2d");
    const style = getComputedStyle(document.documentElement);
    const blue = style.getPropertyValue("--blue-rgb");
    const longest = followed === null ? 0 : Math.max(...this.labels().map((label) => label.length));
    const room = 1 + Math.ceil(0.6 * longest); // the width of the labels, in cells
    const margin = followed !== null && box.width / (count + room) >= LEAST_LABEL ? room : 0;
    const cell = size / (count + margin);
    if (followed !== null) this.margin = margin;
    if (margin) this.label(context, cell, style.getPropertyValue("--ink"));
    context.translate(margin * cell, margin * cell);
    for (let row = 0; row < count; row++)
      for (let column = 0; column <= row; column++) {
        const weight = map[row * count + column];
        if (weight < 0.004) continue;
        context.fillStyle = `rgba(${blue}, ${weight ** 0.6})`;
        context.fillRect(column * cell, row * cell, Math.max(1, cell), Math.max(1, cell));
      }
    context.strokeStyle = style.getPropertyValue("--line");
    context.beginPath();
    context.moveTo(0, 0);
    context.lineTo(count * cell, count * cell);
    context.stroke();
    if (followed === null) return;
    const row = followed - from;
    context.strokeStyle = style.getPropertyValue("--orange");
    context.lineWidth = Math.max(2, size / 250);
    context.strokeRect(1, row * cell, Math.max(cell, (row + 1) * cell) - 1, cell);
  }

  /** The labels of the map's tokens. Long labels are cut. */
  labels() {
    const { from, count } = this.found;
    return this.tokens.slice(from, from + count).map((id) => {
      const whole = visible(this.model.pieces[id]);
      return whole.length > LONGEST_LABEL ? `${whole.slice(0, LONGEST_LABEL - 1)}\u2026` : whole;
    });
  }

  /** Writes the labels of the tokens beside the rows and above the columns. If any label has more
      than one character, all labels above the columns are turned by 90 degrees. */
  label(context, cell, ink) {
    const labels = this.labels();
    const turned = labels.some((label) => label.length > 1);
    context.fillStyle = ink;
    context.font = `${Math.min(cell * 0.9, 18 * window.devicePixelRatio)}px monospace`;
    context.textBaseline = "middle";
    labels.forEach((label, i) => {
      const middle = (this.margin + i + 0.5) * cell;
      const end = (this.margin - 0.35) * cell;
      context.textAlign = "right";
      context.fillText(label, end, middle);
      context.save();
      context.translate(middle, end);
      if (turned) context.rotate(Math.PI / 2);
      else context.textAlign = "center";
      context.fillText(label, 0, turned ? 0 : -0.4 * cell);
      context.restore();
    });
  }

  /** Says in a sentence which tokens the token at position `at` looks at. */
  describe(at) {
    const { from } = this.found;
    const weights = Array.from(this.weightsOf(at).subarray(0, at - from + 1));
    const order = weights
      .map((weight, place) => [weight, from + place])
      .sort((a, b) => b[0] - a[0]);
    const pieces = this.model.pieces;
    const parts = order
      .filter(([weight]) => weight >= 0.05)
      .slice(0, 4)
      .flatMap(([weight, place], i) => [
        i ? ", " : "",
        piece(pieces[this.tokens[place]]),
        ` ${percent(weight)}${place === at ? " (itself)" : place === at - 1 ? " (just before)" : ` (${at - place} back)`}`,
      ]);
    byId("followed").replaceChildren(
      `In ${this.headName()}, token ${at + 1} `,
      piece(pieces[this.tokens[at]]),
      parts.length ? " looks at " : " looks a little at many tokens",
      ...parts,
      ".",
    );
  }
}
