/* Draws the next token with temperature, top-k and top-p, as gptcli/sampling/next_token.py does.

   The random numbers are those of `gptcli sample --seed`: PyTorch's Mersenne Twister. So the same
   seed gives the same text, as far as rounding allows. */

/** PyTorch's random number generator on a CPU. Source: Matsumoto and Nishimura 1998, MT19937. */
class MersenneTwister {
  constructor(seed) {
    const state = (this.state = new Uint32Array(624));
    state[0] = seed;
    for (let i = 1; i < 624; i++) {
      const before = state[i - 1] ^ (state[i - 1] >>> 30);
      state[i] = Math.imul(1812433253, before) + i;
    }
    this.at = 624;
  }

  /** The next 32 random bits. */
  next() {
    const { state } = this;
    if (this.at === 624) {
      for (let i = 0; i < 624; i++) {
        const y = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
        state[i] = state[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      this.at = 0;
    }
    let y = state[this.at++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  /** The next random number in [0, 1), with 53 random bits. */
  uniform() {
    const high = this.next() & 0x1fffff;
    return (high * 2 ** 32 + this.next()) / 2 ** 53;
  }
}

/** The random numbers with which a text is drawn. They depend only on the seed. get(i) is the
    number for token i of the continuation, counted from 0. */
class UniformNumbers {
  constructor(seed) {
    const mixed = BigInt(seed) * 0x9e3779b97f4a7c15n + 0x94d049bb133111ebn;
    this.generator = new MersenneTwister(Number((mixed % 2n ** 63n) & 0xffffffffn));
    this.drawn = [];
  }

  get(index) {
    while (this.drawn.length <= index) this.drawn.push(this.generator.uniform());
    return this.drawn[index];
  }
}

const GREEDY_BELOW = 1e-6; // temperature
const NEVER_DRAWN = -87; // in the C library, e^x is 0 for x <= -87

/** The likelihood of each token after temperature, top-k and top-p: Float64Array, sum 1. If
    `allowed` is given, a token can be drawn only if `allowed(id)` is true. At temperature 0, the
    likeliest token has likelihood 1. */
function likelihoods(logits, size, { temperature, topK, topP }, allowed) {
  const chances = new Float64Array(size);
  const best = greedy(logits, size, allowed);
  if (temperature < GREEDY_BELOW) {
    chances[best] = 1;
    return chances;
  }
  const top = logits[best];
  let least = -Infinity;
  if (topK && topK < size) {
    const usable = allowed
      ? logits.subarray(0, size).filter((_, id) => allowed(id))
      : logits.slice(0, size);
    if (topK < usable.length) least = usable.sort()[usable.length - topK];
  }
  let total = 0;
  for (let id = 0; id < size; id++) {
    const below = (logits[id] - top) / temperature;
    const kept = logits[id] >= least && below > NEVER_DRAWN && (!allowed || allowed(id));
    total += chances[id] = kept ? Math.exp(below) : 0;
  }
  for (let id = 0; id < size; id++) chances[id] /= total;
  if (topP && topP < 1) keepTopP(chances, topP);
  return chances;
}

/** Top-p: keeps the likeliest tokens, as few as possible, whose likelihoods add up to at least p.
    Scales their likelihoods to the sum 1. All other tokens get likelihood 0. */
function keepTopP(chances, p) {
  const order = Uint32Array.from(chances.keys()).sort((a, b) => chances[b] - chances[a] || a - b);
  let before = 0;
  let kept = 0;
  order.forEach((id, place) => {
    const chance = chances[id];
    if (place > 0 && before >= p) chances[id] = 0;
    else kept += chance;
    before += chance;
  });
  for (let id = 0; id < chances.length; id++) chances[id] /= kept;
}

/** The first token whose cumulative likelihood exceeds the uniform number. */
function draw(chances, uniform) {
  let total = 0;
  for (const chance of chances) total += chance;
  let sum = 0;
  let last = 0;
  for (let id = 0; id < chances.length; id++) {
    if (chances[id] === 0) continue;
    sum += chances[id];
    last = id;
    if (sum > uniform * total) return id;
  }
  return last;
}

/** The likeliest of the allowed tokens. */
function greedy(logits, size, allowed) {
  let [best, top] = [0, -Infinity];
  for (let id = 0; id < size; id++)
    if (logits[id] > top && (!allowed || allowed(id))) [top, best] = [logits[id], id];
  return best;
}

/** The id of the next token. If the drawn token would make the text invalid UTF-8, another token is
    drawn among the allowed ones. */
function chooseToken(logits, size, params, uniform, allowed) {
  if (params.temperature < GREEDY_BELOW) {
    const best = greedy(logits, size);
    return !allowed || allowed(best) ? best : greedy(logits, size, allowed);
  }
  const first = draw(likelihoods(logits, size, params), uniform);
  if (!allowed || allowed(first)) return first;
  const shifted = uniform * 2 ** 26; // the lower bits of `uniform` are random, too
  return draw(likelihoods(logits, size, params, allowed), shifted - Math.floor(shifted));
}
