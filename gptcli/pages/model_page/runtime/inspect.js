/* Returns what the network computed for a text: the attention of its heads, the eight steps of one
   head, and the logit lens. */

/** The attention weights of one head for the token at `at`: one for each token from firstSeen(at)
    to `at`. */
function attentionWeights(network, l, h, at) {
  const { scaled } = attentionScores(network, l, h, at);
  const top = Math.max(...scaled);
  const weights = scaled.map((score) => Math.exp(score - top));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => weight / total);
}

/** Step 4 for one head and one token: the products of the token's query with the keys of all tokens
    that it sees, and the scaled products. */
function attentionScores(network, l, h, at) {
  const { H, D, K } = network;
  const { q, k } = network.kept[l];
  const first = network.firstSeen(at);
  const query = (at * H + h) * D;
  const products = new Float64Array(at - first + 1);
  for (let s = 0; s < products.length; s++) {
    const key = ((first + s) * K + Math.floor((h * K) / H)) * D;
    for (let d = 0; d < D; d++) products[s] += q[query + d] * k[key + d];
  }
  return { products, scaled: products.map((product) => product / Math.sqrt(D)) };
}

/** For each head, the attention weights of the last `count` tokens on one another. These tokens
    begin at `from`. Returns {from, count, maps}: maps[l * H + h] has `count` rows of `count`
    weights. */
function attentionMaps(network, from) {
  const count = network.length - from;
  const maps = [];
  for (let l = 0; l < network.L; l++)
    for (let h = 0; h < network.H; h++) {
      const map = new Float32Array(count * count);
      for (let row = 0; row < count; row++) {
        const first = network.firstSeen(from + row);
        attentionWeights(network, l, h, from + row).forEach((weight, s) => {
          const column = first + s - from;
          if (column >= 0) map[row * count + column] = weight;
        });
      }
      maps.push(map);
    }
  return { from, count, maps };
}

/** What a head looks at: the shares of its attention, and the mean distance in tokens at which it
    looks. Each is an average over the rows of a map, without the first two rows. A copy is an
    earlier token with the same id as the row's token. `same` is the share for the copies, and
    `repeated` is the share for the tokens that follow the copies, except the row's token and the
    token just before it. Rows without a copy do not count in these two averages. Both are 0 if at
    most three rows have a copy.
    `tokens` are the token ids of the rows. */
function headHabits(map, tokens) {
  const count = tokens.length;
  const sums = { itself: 0, before: 0, first: 0, same: 0, repeated: 0, distance: 0 };
  let rows = 0;
  let repeats = 0;
  for (let row = 2; row < count; row++) {
    const weight = (column) => map[row * count + column];
    rows++;
    sums.itself += weight(row);
    sums.before += weight(row - 1);
    sums.first += weight(0);
    let [same, repeated, earlier] = [0, 0, false];
    for (let column = 0; column < row; column++) {
      sums.distance += weight(column) * (row - column);
      if (tokens[column] !== tokens[row]) continue;
      earlier = true;
      same += weight(column);
      // An induction head looks at the token that followed an earlier copy of the current token.
      if (column + 1 < row - 1) repeated += weight(column + 1);
    }
    if (earlier)
      [sums.same, sums.repeated, repeats] = [
        sums.same + same,
        sums.repeated + repeated,
        repeats + 1,
      ];
  }
  const share = (name) => (rows ? sums[name] / rows : 0);
  const shareIfRepeated = (name) => (repeats > 3 ? sums[name] / repeats : 0);
  return {
    itself: share("itself"),
    before: share("before"),
    first: share("first"),
    same: shareIfRepeated("same"),
    repeated: shareIfRepeated("repeated"),
    distance: share("distance"),
  };
}

/** The numbers of all eight steps of attention, for one head and one token. */
function attentionSteps(network, l, h, at) {
  const { C, D, H, K, P } = network;
  const name = `h.${l}.attn`;
  const kept = network.kept[l];
  const group = Math.floor((h * K) / H);
  const part = (array, width, from, size) =>
    Array.from(array.subarray(at * width + from, at * width + from + size));
  const stream = part(kept.x, C, 0, C);
  network.x.set(stream);
  network.norm(network.x, `h.${l}.ln_1`, network.normed);
  const normed = Array.from(network.normed.subarray(0, C));
  network.linear(`${name}.query`, network.normed, network.q);
  network.linear(`${name}.key`, network.normed, network.k);
  const query = Array.from(network.q.subarray(0, H * D));
  const key = Array.from(network.k.subarray(0, K * D));
  const value = part(kept.v, K * D, 0, K * D);
  const { products, scaled } = attentionScores(network, l, h, at);
  const weights = attentionWeights(network, l, h, at);
  const first = network.firstSeen(at);
  const mixed = network.mixed.fill(0);
  for (let head = 0; head < H; head++)
    attentionWeights(network, l, head, at).forEach((weight, s) => {
      const from = ((first + s) * K + Math.floor((head * K) / H)) * D;
      for (let d = 0; d < D; d++) mixed[head * P + d] += weight * kept.v[from + d];
    });
  network.linear(`${name}.c_proj`, mixed, network.branch);
  const most = weights.indexOf(Math.max(...weights));
  const ofMost = (array) => {
    const from = ((first + most) * K + group) * D;
    return Array.from(array.subarray(from, from + D));
  };
  return {
    stream,
    normed,
    query,
    key,
    value,
    headQuery: part(kept.q, H * D, h * D, D), // normalised and rotated, if the model does this
    headKey: part(kept.k, K * D, group * D, D),
    headValue: value.slice(group * D, (group + 1) * D),
    rawQuery: query.slice(h * D, (h + 1) * D),
    first,
    products: Array.from(products),
    scaled: Array.from(scaled),
    weights: Array.from(weights),
    most: first + most,
    mostKey: ofMost(kept.k),
    mostValue: ofMost(kept.v),
    mixed: Array.from(mixed.subarray(h * P, h * P + D)),
    all: Array.from({ length: H }, (_, head) => Array.from(mixed.subarray(head * P, head * P + D))),
    projected: Array.from(network.branch.subarray(0, C)),
  };
}

/** The logit lens: the likeliest next tokens before the first block and after each block, as the
    output head gives them. Source: nostalgebraist 2020, "interpreting GPT: the logit lens". */
function logitLens(network, at, count) {
  const rows = [];
  for (let l = 0; l <= network.L; l++) {
    const from = l < network.L ? network.kept[l].x : network.last;
    network.x.set(from.subarray(at * network.C, (at + 1) * network.C));
    network.head(network.x);
    const chances = likelihoods(network.logits, network.V, { temperature: 1 });
    rows.push(likeliest(chances, count));
  }
  return rows;
}

/** The `count` likeliest tokens, as pairs [id, likelihood]. */
function likeliest(chances, count) {
  const best = [];
  for (let id = 0; id < chances.length; id++) {
    if (best.length === count && chances[id] <= best[count - 1][1]) continue;
    let place = best.length;
    while (place > 0 && best[place - 1][1] < chances[id]) place--;
    best.splice(place, 0, [id, chances[id]]);
    if (best.length > count) best.pop();
  }
  return best;
}
