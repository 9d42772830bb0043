/* The Web Worker: keeps the model, answers the page's questions, and streams text. */

const UNSEEN_MS = 50; // the worker collects new tokens for this time, then sends them together
let model = null; // {tokenizer, growing, network}
let job = 0; // the number of the text that is being written; if it changes, this text ends

const answers = {
  async open({ payload, simd }) {
    const read = await readPayload(payload);
    const tokenizer = new Tokenizer(read.header.tokenizer, read.section("merges"));
    const network = new Network(read, simd);
    model = { tokenizer, network, growing: new GrowingText(network) };
    return {
      sizes: read.header.model,
      kernels: network.kernels.name,
      pieces: tokenizer.pieces,
      kind: tokenizer.kind,
      eot: tokenizer.eot,
      start: tokenizer.start,
      longest: LONGEST_TEXT,
    };
  },

  encode: ({ text }) => model.tokenizer.encode(text),

  /** The likeliest next tokens, as triples: the id, the model's likelihood, and the likelihood with
      the reader's settings, which is 0 if the settings exclude the token. `rest` is the model's
      likelihood of all other tokens together. */
  next({ tokens, params, count }) {
    const { growing, network, tokenizer } = model;
    growing.set(tokens);
    const logits = growing.logits();
    const plain = likelihoods(logits, network.V, { temperature: 1 });
    const set = likelihoods(logits, network.V, params, allowedAfter(tokenizer, tokens));
    const top = likeliest(plain, count).map(([id, chance]) => [id, chance, set[id]]);
    return { top, rest: 1 - top.reduce((sum, [, chance]) => sum + chance, 0) };
  },

  /** For the last `most` tokens of the window: the attention weights of all heads, and the heads'
      habits (see headHabits). */
  maps({ tokens, most }) {
    const { growing, network } = model;
    growing.set(tokens);
    growing.logits();
    const found = attentionMaps(network, Math.max(0, network.length - most));
    const from = growing.start + found.from;
    const habits = found.maps.map((map) => headHabits(map, tokens.slice(from)));
    return { from, maps: found.maps, count: found.count, habits };
  },

  steps({ tokens, at, layer, head }) {
    const { growing, network } = model;
    growing.set(tokens);
    growing.logits();
    growing.current = false; // attentionSteps overwrites the arrays of the last token
    const found = attentionSteps(network, layer, head, at - growing.start);
    return { ...found, first: found.first + growing.start, most: found.most + growing.start };
  },

  lens({ tokens, at, count }) {
    const { growing, network } = model;
    growing.set(tokens);
    growing.logits();
    growing.current = false;
    return logitLens(network, at - growing.start, count);
  },

  /** Writes up to `count` tokens, but stops at end-of-text. `tokens` is the text so far, and its
      last `made` tokens are the continuation. Sends new tokens as {tokens}. The answer says why the
      writing stopped. */
  async write({ tokens, made, count, params, seed }, send) {
    const { growing, network, tokenizer } = model;
    const mine = ++job;
    const numbers = new UniformNumbers(seed);
    growing.set(tokens);
    let sent = performance.now();
    let fresh = [];
    const flush = () => {
      if (fresh.length) send({ tokens: fresh });
      fresh = [];
      sent = performance.now();
    };
    let stopped = "length";
    const text = tokens.slice();
    for (let i = 0; i < count; i++) {
      if (text.length >= LONGEST_TEXT) {
        stopped = "longest";
        break;
      }
      const allowed = allowedAfter(tokenizer, text);
      const token = chooseToken(
        growing.logits(),
        network.V,
        params,
        numbers.get(made + i),
        allowed,
      );
      if (token === tokenizer.eot) {
        stopped = "end";
        break;
      }
      growing.push(token);
      text.push(token);
      fresh.push(token);
      if (performance.now() - sent > UNSEEN_MS) {
        flush();
        await otherMessages();
        if (job !== mine) {
          stopped = "stop";
          break;
        }
        growing.set(text); // another question can have changed the text
      }
    }
    flush();
    return { stopped };
  },

  stop() {
    job++;
    return null;
  },
};

/** A function that says whether a token keeps the text valid UTF-8; null if every token does. */
function allowedAfter(tokenizer, tokens) {
  if (!tokenizer.states) return null;
  const row = tokenizer.states[utf8StateAfter(tokenizer.states, tokens)];
  return (id) => row[id] !== INVALID;
}

/** Gives the worker time to read the messages that have arrived. */
function otherMessages() {
  return new Promise((resolve) => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => {
      channel.port1.close();
      resolve();
    };
    channel.port2.postMessage(null);
  });
}

self.onmessage = async ({ data: { id, kind, ...question } }) => {
  try {
    const send = (part) => self.postMessage({ id, part });
    self.postMessage({ id, answer: await answers[kind](question, send) });
  } catch (error) {
    self.postMessage({ id, error: String(error) });
  }
};
