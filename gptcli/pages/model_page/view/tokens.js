/* The strip of tokens: the reader chooses a token, and sees how much it looks at the others. */

class Strip {
  /** `onFollow(at)` is called when the reader chooses a token. `at` is the token's position in the
      text. */
  constructor(pieces, onFollow) {
    Object.assign(this, { pieces, onFollow });
    this.box = byId("strip");
    this.box.onkeydown = (event) => this.key(event);
    this.box.onpointerover = (event) => this.point(event.target.closest(".token"));
    this.box.onpointerleave = () => this.point(null);
    this.box.onclick = (event) => {
      const token = event.target.closest(".token");
      if (token) this.follow(Number(token.dataset.at), true);
    };
  }

  /** Shows the tokens from position `from` on. `weightsOf(at)` returns the attention weights of the
      token at position `at`. */
  show(tokens, from, weightsOf) {
    Object.assign(this, { tokens, from, weightsOf });
    const items = [];
    for (let at = from; at < tokens.length; at++) {
      const bytes = this.pieces[tokens[at]];
      items.push(
        element(
          "span.token",
          {
            role: "option",
            id: `token-${at}`,
            "data-at": at,
            tabindex: -1,
            "aria-selected": "false",
          },
          visible(bytes),
          element("span.weight", { "aria-hidden": "true" }),
          element("span.share", { "aria-hidden": "true" }),
        ),
      );
      const blankLine = this.pieces[tokens[at + 1]]?.[0] === 10;
      if (bytes.at(-1) === 10 && !blankLine)
        items.push(element("span.line-break", { "aria-hidden": "true" }));
    }
    this.box.replaceChildren(...items);
  }

  item(at) {
    return byId(`token-${at}`);
  }

  /** Chooses a token. If `focus`, moves the keyboard focus to the token. */
  follow(at, focus = false) {
    const old = this.box.querySelector('[aria-selected="true"]');
    old?.setAttribute("aria-selected", "false");
    old?.setAttribute("tabindex", "-1");
    this.at = at;
    const item = this.item(at);
    item.setAttribute("aria-selected", "true");
    item.setAttribute("tabindex", "0");
    if (focus) item.focus({ preventScroll: false });
    this.draw(at);
    this.onFollow(at);
  }

  /** Shows the attention weights of the token under the pointer. If there is no such token, shows
      the weights of the followed token. */
  point(token) {
    if (this.at === undefined || !this.weightsOf) return;
    this.draw(token ? Number(token.dataset.at) : this.at);
    this.onPoint?.(token ? Number(token.dataset.at) : this.at);
  }

  draw(at) {
    const weights = this.weightsOf(at);
    byId("later-help").hidden = at === this.tokens.length - 1;
    for (let place = this.from; place < this.tokens.length; place++) {
      const item = this.item(place);
      item.classList.toggle("later", place > at);
      const weight = place <= at ? weights[place - this.from] : 0;
      item.style.setProperty("--weight", weight);
      item.lastChild.textContent = weight >= 0.045 ? Math.round(100 * weight) : "";
    }
  }

  key(event) {
    const last = this.tokens.length - 1;
    const steps = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 };
    let goal = null;
    if (event.key in steps) goal = this.at + steps[event.key];
    if (event.key === "Home") goal = this.from;
    if (event.key === "End") goal = last;
    if (goal === null) return;
    event.preventDefault();
    this.follow(Math.min(last, Math.max(this.from, goal)), true);
  }
}
