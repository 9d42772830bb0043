/* A text that grows and shrinks token by token, and the part of it (the window) at which the
   network looks. */

/** The index of the window's first token in a text of `length` tokens, if positions are learned.
    gptcli/sampling/streams.py has the same rule: the window moves by half of its width. */
function windowStart(length, width) {
  const stride = Math.max(1, Math.floor(width / 2));
  return length <= width ? 0 : Math.ceil((length - width) / stride) * stride;
}

class GrowingText {
  constructor(network) {
    this.network = network;
    this.tokens = [];
    this.start = 0; // the window begins at tokens[start]
  }

  /** The logits of the token after the text, float32 (V,). The array belongs to the network, which
      overwrites it. */
  logits() {
    this.feedAll();
    return this.network.logits;
  }

  /** Lets the network read all unread tokens of the window. */
  feedAll() {
    const { network, tokens } = this;
    const learned = network.model.positions === "learned";
    const start = learned ? windowStart(tokens.length, network.model.block_size) : 0;
    if (start !== this.start) {
      network.truncate(0);
      this.start = start;
      this.current = false;
    }
    if (this.current) return;
    // If the network has read all tokens but no longer has the logits, it reads the last token
    // again.
    network.truncate(tokens.length - start - 1);
    for (let i = start + network.length; i < tokens.length; i++)
      network.feed(tokens[i], i === tokens.length - 1);
    this.current = true;
  }

  push(token) {
    this.tokens.push(token);
    this.current = false;
  }

  /** Replaces the text. If the new and the old text begin with the same tokens, the network does
      not read these again. */
  set(tokens) {
    let same = 0;
    while (same < tokens.length && tokens[same] === this.tokens[same]) same++;
    if (same === tokens.length && same === this.tokens.length) return;
    this.network.truncate(Math.max(0, same - this.start));
    this.tokens = tokens.slice();
    this.current = false;
  }
}
