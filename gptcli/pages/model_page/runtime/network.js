/* Computes the network one token at a time: embedding, blocks, head. Keeps the inputs, queries,
   keys and values of all layers for each token.

   Dimensions: T tokens, C channels (n_embd), H heads, K heads of keys and values, D channels of a
   head, P = D rounded up to a multiple of 16 (how far the heads are apart in `mixed`), F hidden
   width, V vocabulary, W width of the window (block_size, at most LONGEST_TEXT). */

const LONGEST_TEXT = 4096; // in tokens; the page ends each text at this length

class Network {
  /** Builds the network of a payload: {header, section}. `simd` says whether to try WebAssembly. */
  constructor({ header, section }, simd = true) {
    const m = (this.model = header.model);
    const { n_layer: L, n_embd: C, n_head: H, n_kv_head: K, head_dim: D, hidden_width: F } = m;
    const stored = padded(D, 16);
    Object.assign(this, { L, C, H, K, D, P: stored, F, V: m.vocab_size });
    const shapes = header.matrices;
    const widest = padded(Math.max(C, F, H * stored, this.V), 32);
    const scratch = 16 * widest;
    // `ring` holds keys and values. Those of the token at position p are in slot p mod W.
    this.W = Math.min(m.block_size, LONGEST_TEXT);
    this.keyStride = padded(D, 8);
    this.slots = padded(this.W, 32);
    const ringFloats = 2 * L * K * (this.slots * padded(D, 32) + 32);
    const floats = Object.values(shapes).reduce((sum, [r, c]) => sum + matrixFloats(r, c), scratch);
    this.kernels = new Kernels(floats + ringFloats + 2 * this.slots, simd);
    this.weights = {};
    for (const [name, [rows, columns]] of Object.entries(shapes)) {
      const matrix = this.kernels.matrix(rows, columns);
      dequantise(section, name, rows, matrix.stride, matrix.data);
      this.weights[name] = matrix;
    }
    for (const name of header.vectors) this.weights[name] = float32(section(name));
    this.weights["lm_head.weight"] ??= this.weights["wte.weight"]; // if the head is tied
    const array = (count) => this.kernels.array(count);
    this.x = array(C);
    this.normed = array(C);
    this.q = array(H * D);
    this.k = array(K * D);
    this.v = array(K * D);
    this.mixed = array(H * stored);
    this.branch = array(C);
    this.hidden = array(F);
    this.gate = array(F);
    this.logits = array(this.V);
    this.scores = array(this.slots);
    this.headQuery = array(D);
    this.headMixed = array(D);
    this.ring = Array.from({ length: L }, () => ({
      keys: Array.from({ length: K }, () => array(this.slots * this.keyStride)),
      values: Array.from({ length: K }, () => array(padded(D, 4) * this.slots)), // transposed
    }));
    this.length = 0; // the number of tokens that have been read, and whose values are kept
    this.room = 0;
    this.reserve(64);
  }

  /** Makes room for `count` tokens. For each token, each layer stores its input (C numbers),
      queries, keys and values. */
  reserve(count) {
    if (count <= this.room) return;
    const old = this.kept;
    this.room = Math.max(count, 2 * this.room);
    const grown = (width, from) => {
      const array = new Float32Array(this.room * width);
      if (from) array.set(from);
      return array;
    };
    this.kept = Array.from({ length: this.L }, (_, l) => ({
      x: grown(this.C, old?.[l].x),
      q: grown(this.H * this.D, old?.[l].q),
      k: grown(this.K * this.D, old?.[l].k),
      v: grown(this.K * this.D, old?.[l].v),
    }));
    this.last = grown(this.C, this.last); // the residual stream after the last block
  }

  /** Forgets all tokens but the first `length`. */
  truncate(length) {
    if (length >= this.length) return;
    const overwritten = this.length > this.W;
    this.length = Math.max(0, length);
    if (overwritten)
      for (let at = Math.max(0, this.length - this.W); at < this.length; at++)
        for (let l = 0; l < this.L; l++) this.toRing(l, at);
  }

  /** Copies the keys and values of a token to the ring of layer l. */
  toRing(l, at) {
    const { K, D, keyStride, slots } = this;
    const { k, v } = this.kept[l];
    const slot = at % this.W;
    for (let h = 0; h < K; h++) {
      const from = (at * K + h) * D;
      const keys = this.ring[l].keys[h];
      const values = this.ring[l].values[h];
      for (let d = 0; d < D; d++) {
        keys[slot * keyStride + d] = k[from + d];
        values[d * slots + slot] = v[from + d];
      }
    }
  }

  /** The position of the first token that the token at position `at` attends to. */
  firstSeen(at) {
    return Math.max(0, at - this.model.block_size + 1);
  }

  /** Reads a token. If `wantsLogits`, also sets this.logits, which predict the next token. */
  feed(token, wantsLogits) {
    const at = this.length;
    const { C, L, x } = this;
    this.reserve(at + 1);
    const table = this.weights["wte.weight"];
    for (let c = 0; c < C; c++) x[c] = table.data[token * table.stride + c];
    const places = this.weights["wpe.weight"];
    if (places) for (let c = 0; c < C; c++) x[c] += places.data[at * places.stride + c];
    for (let l = 0; l < L; l++) {
      this.kept[l].x.set(x.subarray(0, C), at * C);
      this.attention(l, at);
      this.feedForward(l);
    }
    this.last.set(x.subarray(0, C), at * C);
    this.length = at + 1;
    if (wantsLogits) this.head(x);
  }

  /** Computes this.logits from a residual stream x: the final norm, then the head. */
  head(x) {
    this.norm(x, "ln_f", this.normed);
    this.kernels.multiply(this.weights["lm_head.weight"], this.normed, this.logits);
  }

  /** out = norm(x): LayerNorm if the model's norm is "layer", else RMSNorm. */
  norm(x, name, out) {
    const { C } = this;
    const { norm, norm_eps } = this.model;
    const gain = this.weights[`${name}.weight`];
    const bias = this.weights[`${name}.bias`];
    let mean = 0;
    if (norm === "layer") {
      for (let c = 0; c < C; c++) mean += x[c];
      mean /= C;
    }
    let squares = 0;
    for (let c = 0; c < C; c++) squares += (x[c] - mean) ** 2;
    const scale = 1 / Math.sqrt(squares / C + norm_eps);
    for (let c = 0; c < C; c++) out[c] = (x[c] - mean) * scale * gain[c] + (bias ? bias[c] : 0);
  }

  /** out = W x, plus the bias if there is one. `name` is the name of the linear layer. */
  linear(name, x, out) {
    const matrix = this.weights[`${name}.weight`];
    this.kernels.multiply(matrix, x, out);
    const bias = this.weights[`${name}.bias`];
    if (bias) for (let i = 0; i < matrix.rows; i++) out[i] += bias[i];
  }

  /** x += the attention of layer l for the token at position `at`. */
  attention(l, at) {
    const { H, D, K, P, C, q, k, v, mixed, x } = this;
    const name = `h.${l}.attn`;
    const kept = this.kept[l];
    this.norm(x, `h.${l}.ln_1`, this.normed);
    this.linear(`${name}.query`, this.normed, q);
    this.linear(`${name}.key`, this.normed, k);
    this.linear(`${name}.value`, this.normed, v);
    if (this.model.positions === "rotary") {
      const turn = this.rotation(at);
      for (let h = 0; h < H; h++) this.normRotate(q, h * D, `${name}.q_norm.weight`, turn);
      for (let h = 0; h < K; h++) this.normRotate(k, h * D, `${name}.k_norm.weight`, turn);
    }
    kept.q.set(q.subarray(0, H * D), at * H * D);
    kept.k.set(k.subarray(0, K * D), at * K * D);
    kept.v.set(v.subarray(0, K * D), at * K * D);
    this.toRing(l, at);
    const { scores, headQuery, ring, keyStride, slots, kernels } = this;
    const filled = Math.min(at + 1, this.W);
    for (let h = 0; h < H; h++) {
      const group = Math.floor((h * K) / H);
      headQuery.set(q.subarray(h * D, (h + 1) * D));
      kernels.product(ring[l].keys[group], filled, keyStride, keyStride, headQuery, scores);
      softmax(scores, filled, 1 / Math.sqrt(D));
      kernels.product(ring[l].values[group], D, slots, filled, scores, this.headMixed);
      mixed.set(this.headMixed.subarray(0, D), h * P);
    }
    this.linear(`${name}.c_proj`, mixed, this.branch);
    for (let c = 0; c < C; c++) x[c] += this.branch[c];
  }

  /** x += the feed-forward network of layer l. */
  feedForward(l) {
    const { F, C, x, hidden, gate } = this;
    const name = `h.${l}.mlp`;
    this.norm(x, `h.${l}.ln_2`, this.normed);
    if (this.model.gated) {
      this.linear(`${name}.gate_proj`, this.normed, gate);
      this.linear(`${name}.up_proj`, this.normed, hidden);
      for (let f = 0; f < F; f++) hidden[f] *= gate[f] / (1 + Math.exp(-gate[f])); // SiLU
      this.linear(`${name}.down_proj`, hidden, this.branch);
    } else {
      this.linear(`${name}.c_fc`, this.normed, hidden);
      for (let f = 0; f < F; f++) {
        const z = hidden[f]; // GELU, tanh form
        hidden[f] = 0.5 * z * (1 + Math.tanh(0.7978845608028654 * (z + 0.044715 * z * z * z)));
      }
      this.linear(`${name}.c_proj`, hidden, this.branch);
    }
    for (let c = 0; c < C; c++) x[c] += this.branch[c];
  }

  /** The cosine and the sine of each frequency's angle at position `at`: two arrays of D/2
      numbers. */
  rotation(at) {
    if (this.rotated?.at !== at) {
      const half = this.D / 2;
      const cos = new Float32Array(half);
      const sin = new Float32Array(half);
      for (let i = 0; i < half; i++) {
        const angle = at * this.model.rope_theta ** ((-2 * i) / this.D);
        cos[i] = Math.cos(angle);
        sin[i] = Math.sin(angle);
      }
      this.rotated = { at, cos, sin };
    }
    return this.rotated;
  }

  /** Rotates a head of queries or keys by its position. Normalises it first if the model has
      QK-norm. */
  normRotate(x, from, gainName, { cos, sin }) {
    const { D } = this;
    const gain = this.weights[gainName];
    if (gain) {
      let squares = 0;
      for (let d = 0; d < D; d++) squares += x[from + d] ** 2;
      const scale = 1 / Math.sqrt(squares / D + this.model.norm_eps);
      for (let d = 0; d < D; d++) x[from + d] *= scale * gain[d];
    }
    const half = D / 2;
    for (let i = 0; i < half; i++) {
      const [a, b] = [x[from + i], x[from + half + i]];
      x[from + i] = a * cos[i] - b * sin[i];
      x[from + half + i] = b * cos[i] + a * sin[i];
    }
  }
}

/** Multiplies the first `count` scores by `scale`, and replaces them by their softmax. Sets the
    padding after them to 0. */
function softmax(scores, count, scale) {
  let top = -Infinity;
  for (let s = 0; s < count; s++) if (scores[s] > top) top = scores[s];
  let total = 0;
  for (let s = 0; s < count; s++) total += scores[s] = Math.exp((scores[s] - top) * scale);
  for (let s = 0; s < count; s++) scores[s] /= total;
  scores.fill(0, count, padded(count, 8));
}
