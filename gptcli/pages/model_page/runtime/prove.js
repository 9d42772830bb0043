/* Answers what gptcli asks before it writes a page: token ids, logits and greedy texts.

   gptcli/pages/model_page/proof.py compares these answers with those of the network in Python. */

/** Computes for each text its token ids, the logits of the token after it, and `steps` greedy
    tokens after it. Returns {answer: {ids, tokens, kernels}, logits}. The logits are float32
    (texts, V). */
async function prove(payloadText, { texts, steps, simd }) {
  const payload = await readPayload(payloadText);
  const tokenizer = new Tokenizer(payload.header.tokenizer, payload.section("merges"));
  const network = new Network(payload, simd);
  const logits = new Float32Array(texts.length * network.V);
  const answer = { ids: [], tokens: [], kernels: network.kernels.name };
  texts.forEach((text, number) => {
    const { ids } = tokenizer.encode(text);
    answer.ids.push(ids);
    const growing = new GrowingText(network);
    network.truncate(0);
    growing.set(ids.length ? ids : tokenizer.start);
    logits.set(growing.logits().subarray(0, network.V), number * network.V);
    const tokens = [];
    let state = tokenizer.states ? utf8StateAfter(tokenizer.states, growing.tokens) : 0;
    for (let step = 0; step < steps; step++) {
      const row = tokenizer.states?.[state];
      const allowed = row && ((id) => row[id] !== INVALID);
      const token = chooseToken(growing.logits(), network.V, { temperature: 0 }, 0, allowed);
      if (row) state = row[token];
      tokens.push(token);
      growing.push(token);
    }
    answer.tokens.push(tokens);
  });
  return { answer, logits };
}
