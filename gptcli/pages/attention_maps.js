// Draws attention maps: a small one for each head, and a large one of the chosen head.
//
// attentionMaps(root, labels) returns { show(heads) }. `heads` is a list of { layer, head, kind,
// share, habit, weights }: `weights` is the lower triangle of the head's attention weights in
// base64, with one byte per weight. `habit` says in words what the head does.

function unpackTriangle(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const rows = [];
  for (let start = 0, t = 1; start < bytes.length; start += t, t += 1) {
    rows.push(Array.from(bytes.subarray(start, start + t), (b) => b / 255));
  }
  return rows;
}

function attentionMaps(root, labels) {
  const make = (name, attributes = {}, text = "") => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = text;
    return element;
  };
  const rgb = () => getComputedStyle(document.documentElement).getPropertyValue("--blue-rgb");
  const grid = make("div", { class: "heads", role: "group", "aria-label": "Heads" });
  const large = make("div", { class: "large panel" });
  const title = make("h3");
  const habit = make("p", { class: "habit" });
  const hint = make("p", { class: "quiet" },
    "Point at a token, or move to it with the Tab key. The numbers show how much of the token's " +
    "attention goes to itself and to each earlier token.");
  const strip = make("div", { class: "tokens" });
  const frame = make("div", { class: "frame", tabindex: "0", role: "region", "aria-label": "Map" });
  const canvas = make("canvas", { class: "map", role: "img" });
  const sentence = make("p", { class: "sentence", "aria-live": "polite" });
  frame.append(canvas, make("p", { class: "quiet" },
    "Each row is a token that looks, and each column a token that it looks at. A stronger colour " +
    "means more attention. The upper right half is empty, because a token cannot see later tokens."));
  large.append(title, habit, hint, strip, sentence, frame);
  root.append(grid, large);

  let heads = [];
  let chosen = null; // "layer.head"
  let token = labels.length - 1;
  let mapped = { cell: 1, edge: 0 }; // large map, in pixels: width of a cell, and of the labels
  const tokens = labels.map((label, at) => {
    const button = make("button", { class: "token", type: "button" });
    const share = make("span", { class: "share" });
    button.append(make("span", { class: "piece" }, label), share);
    const point = () => { token = at; drawTokens(); };
    button.addEventListener("pointerenter", point);
    button.addEventListener("focus", point);
    button.addEventListener("click", point);
    strip.append(button);
    return { button, share };
  });

  canvas.addEventListener("pointermove", (event) => {
    const row = Math.floor((event.offsetY - mapped.edge) / mapped.cell);
    if (row >= 0 && row < labels.length && row !== token) { token = row; drawTokens(); }
  });

  const key = (one) => `${one.layer}.${one.head}`;
  const current = () => heads.find((one) => key(one) === chosen) ?? heads[0];

  // Draws a map. If its cells have room for labels, writes the labels in `named` at the left of
  // the map and above it. Returns the width of the labels in pixels, or 0 if there are none.
  function draw(target, rows, cell, named = []) {
    const ratio = Math.max(1, Math.min(3, devicePixelRatio || 1));
    const size = rows.length * cell;
    const context = target.getContext("2d");
    const font = `${Math.min(13, cell - 1)}px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace`;
    context.font = font;
    const widest = Math.max(0, ...named.map((label) => context.measureText(label).width));
    const edge = named.length && cell >= 9 ? Math.ceil(Math.min(90, widest)) + 5 : 0;
    target.width = target.height = Math.round((size + edge) * ratio);
    context.scale(ratio, ratio);
    const colour = rgb();
    if (edge) {
      context.font = font;
      context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--ink");
      context.textBaseline = "middle";
      context.textAlign = "right";
      named.forEach((label, t) =>
        context.fillText(label, edge - 4, edge + (t + 0.5) * cell, edge - 4));
      context.textAlign = widest < cell ? "center" : "left";
      named.forEach((label, s) => {
        context.save();
        context.translate(edge + (s + 0.5) * cell, widest < cell ? edge / 2 : edge - 4);
        if (widest >= cell) context.rotate(-Math.PI / 2);
        context.fillText(label, 0, 0, edge - 4);
        context.restore();
      });
    }
    context.translate(edge, edge);
    rows.forEach((row, t) => row.forEach((weight, s) => {
      context.fillStyle = `rgba(${colour}, ${0.05 + 0.95 * Math.sqrt(weight)})`; // keeps small shares visible
      context.fillRect(s * cell, t * cell, Math.max(1, cell - (cell > 5 ? 1 : 0)),
        Math.max(1, cell - (cell > 5 ? 1 : 0)));
    }));
    target.style.width = target.style.height = `${size + edge}px`;
    return edge;
  }

  function drawTokens() {
    const one = current();
    if (!one) return;
    const row = one.rows[token];
    let best = 0;
    row.forEach((weight, s) => { if (weight > row[best]) best = s; });
    tokens.forEach(({ button, share }, s) => {
      const weight = s <= token ? row[s] : 0;
      button.style.backgroundColor = s <= token ? `rgba(${rgb()}, ${0.55 * weight})` : "";
      button.classList.toggle("future", s > token);
      button.setAttribute("aria-pressed", String(s === token));
      share.textContent = s > token ? "" : `${Math.round(100 * weight)}%`;
    });
    sentence.textContent =
      `“${labels[token]}” (token ${token + 1}) looked most at “${labels[best]}” ` +
      `(token ${best + 1}), with ${Math.round(100 * row[best])} % of its attention.`;
  }

  function drawLarge() {
    const one = current();
    if (!one) return;
    title.textContent = `Layer ${one.layer}, head ${one.head}: ${one.kind}`;
    habit.textContent = `This head ${one.habit}.`;
    const cell = Math.max(4, Math.min(20, Math.floor(420 / one.rows.length)));
    mapped = { cell, edge: draw(canvas, one.rows, cell, labels) };
    canvas.setAttribute("aria-label",
      `Attention weights of layer ${one.layer}, head ${one.head}: rows are tokens, columns are ` +
      "the tokens that they look at. A stronger colour means more attention.");
    for (const button of grid.children) {
      button.setAttribute("aria-pressed", String(button.dataset.key === key(one)));
    }
    drawTokens();
  }

  function show(given) {
    heads = given.map((one) => ({ ...one, rows: unpackTriangle(one.weights) }));
    if (!heads.some((one) => key(one) === chosen)) chosen = heads.length ? key(heads[0]) : null;
    grid.replaceChildren(...heads.map((one) => {
      const button = make("button", { class: "head", type: "button" });
      button.dataset.key = key(one);
      const small = make("canvas", { "aria-hidden": "true" });
      draw(small, one.rows, Math.max(1, Math.floor(72 / one.rows.length)));
      button.append(small, make("span", {}, `layer ${one.layer}, head ${one.head}`),
        make("span", { class: "kind" }, one.share === null ? one.kind
          : `${one.kind} ${one.share} %`));
      button.addEventListener("click", () => { chosen = key(one); drawLarge(); });
      return button;
    }));
    drawLarge();
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => show(heads));
  return { show };
}
