/* The eight steps of attention with the numbers of one head and one token. */

const ROWS = 6; // the most tokens in a table

/** Fills the list of the eight steps. `found` is the worker's answer to "steps". */
function showSteps({ found, model, tokens, at, layer, head }) {
  const { n_head: H, n_kv_head: K, head_dim: D, n_embd: C, qk_norm, positions } = model.sizes;
  const pieceAt = (place) => model.pieces[tokens[place]];
  const { weights, scaled, products, first } = found;
  const order = [...weights.keys()].sort((a, b) => weights[b] - weights[a]).slice(0, ROWS);
  const group = Math.floor((head * K) / H);
  const subject = spoken(pieceAt(at));
  const most = found.most;
  const text = (...parts) => element("p", {}, ...parts);
  byId("steps-subject").replaceChildren(
    `token ${at + 1}, ${subject}, in head ${head + 1} of layer ${layer + 1}`,
  );

  const steps = [
    [
      "Queries, keys and values",
      [
        text(
          "Three matrices turn the numbers of each token into three lists. The ",
          element("em", {}, "query"),
          " says what the token looks for, the ",
          element("em", {}, "key"),
          " says what it offers, and the ",
          element("em", {}, "value"),
          " is what other tokens get from it.",
        ),
        vector(`${subject} as it enters layer ${layer + 1}`, found.stream),
        vector("query", found.query, [head * D, (head + 1) * D]),
        vector("key", found.key, [group * D, (group + 1) * D]),
        vector("value", found.value, [group * D, (group + 1) * D]),
      ],
    ],
    [
      "Splitting into heads",
      [
        text(
          K < H
            ? `The query is cut into ${counted(H, "part")} of ${counted(D, "number")}, the key and the value into ${K}. So ${H / K} heads share one part of the key and of the value.`
            : `Each list is cut into ${counted(H, "part")} of ${counted(D, "number")}.`,
          ` Head ${head + 1} gets the framed parts, and does not see the others.`,
        ),
        vector(`query of head ${head + 1}`, found.rawQuery),
        ...(positions === "rotary"
          ? [
              text(
                `This model ${qk_norm ? "normalises queries and keys, and turns them" : "turns queries and keys"} by angles that depend on the token's place in the text. So a head can tell how far back a key is.`,
              ),
              vector(
                `the same query, ${qk_norm ? "normalised and " : ""}turned for place ${at + 1}`,
                found.headQuery,
              ),
            ]
          : [
              text(
                "The model has a list of numbers for each place in the text. It added this list to the token's numbers before the first layer.",
              ),
            ]),
      ],
    ],
    [
      "Folding batch and heads",
      [
        text(
          `The heads do not need each other, so they are ${counted(H, "separate problem")} of the same shape: ${counted(weights.length, "token")} of ${counted(D, "number")} each. In training, the computer solves them together, as one stack that holds the heads of many texts.`,
        ),
        element(
          "div.folded",
          {},
          Array.from({ length: Math.min(H, 12) }, (_, h) =>
            element(
              `span${h === head ? ".here" : ""}`,
              {},
              `head ${h + 1}: ${weights.length} \u00d7 ${D}${h === head ? " (this one)" : ""}`,
            ),
          ),
        ),
      ],
    ],
    [
      "Scores and their scale",
      [
        text(
          "The query is multiplied by the key of every token, number by number, and the products are added. A large sum means that the key fits the query. Dividing by \u221a",
          String(D),
          " keeps the scores small even if the lists are long. For the token that fits best, ",
          piece(pieceAt(most)),
          ":",
        ),
        text(product(found.headQuery, found.mostKey, products[most - first], D)),
        scoreTable(["token", "query \u00b7 key", `\u00f7 ${number(Math.sqrt(D))}`], order, (s) => [
          number(products[s]),
          number(scaled[s]),
        ]),
      ],
    ],
    [
      "Causal mask",
      [
        text(
          "Later tokens are hidden: their scores become \u2212\u221e. Otherwise the model could see the tokens that it should learn to guess.",
        ),
        maskTable(),
      ],
    ],
    [
      "Softmax",
      [
        text(
          "Each score becomes e",
          element("sup", {}, "score"),
          ", and each result is divided by the sum of all results. This gives shares of 100 %: the attention that you saw above. Hidden tokens get exactly 0.",
        ),
        scoreTable(
          ["token", "score", "weight", ""],
          order,
          (s) => [number(scaled[s]), percent(weights[s])],
          (s) => weights[s],
        ),
        weights.length > ROWS
          ? text(
              `The other ${counted(weights.length - ROWS, "token")} together ${weights.length - ROWS === 1 ? "gets" : "get"} ${percent(1 - order.reduce((sum, s) => sum + weights[s], 0))}.`,
            )
          : null,
      ],
    ],
    [
      "Weighted sum of the values",
      [
        text(
          "Each value is multiplied by its weight, and the products are added. The largest share comes from the value of ",
          piece(pieceAt(most)),
          ".",
        ),
        vector(`value of ${spoken(pieceAt(most))}`, found.mostValue),
        vector(
          `${percent(weights[most - first])} of this value, plus the shares of the others`,
          found.mixed,
        ),
      ],
    ],
    [
      "Concatenation and projection",
      [
        text(
          `The results of the ${counted(H, "head")} are joined into one list, and a last matrix turns this list into ${C} numbers. These are added to the numbers of ${subject}, which now also tell something about the tokens before it.`,
        ),
        vector(`results of all heads`, found.all.flat(), [head * D, (head + 1) * D]),
        vector("what is added to the token", found.projected),
      ],
    ],
  ];
  byId("step-list").replaceChildren(
    ...steps.map(([name, parts], i) =>
      element(
        "li.panel",
        {},
        element("h3", {}, element("span.number", {}, String(i + 1)), name),
        parts,
      ),
    ),
  );

  function scoreTable(headings, rows, cells, share = null) {
    return element(
      "table.numbers",
      {},
      element(
        "thead",
        {},
        element(
          "tr",
          {},
          headings.map((words) => (words ? element("th", { scope: "col" }, words) : element("td"))),
        ),
      ),
      element(
        "tbody",
        {},
        rows.map((s) =>
          element(
            "tr",
            {},
            element("td", {}, piece(pieceAt(first + s)), ` ${first + s + 1}`),
            cells(s).map((cell) => element("td", {}, cell)),
            share ? element("td.chart", {}, fill(share(s))) : null,
          ),
        ),
      ),
    );
  }

  function maskTable() {
    const shown = [];
    for (let place = Math.max(first, at - 2); place <= Math.min(tokens.length - 1, at + 3); place++)
      shown.push(place);
    const rows = shown.map((place) =>
      element(
        `tr${place > at ? ".hidden-row" : ""}`,
        {},
        element("td", {}, piece(pieceAt(place)), ` ${place + 1}`),
        element("td", {}, place > at ? "\u2212\u221e (later)" : number(scaled[place - first])),
      ),
    );
    if (at === tokens.length - 1)
      rows.push(
        element(
          "tr.hidden-row",
          {},
          element("td", {}, "the next token"),
          element("td", {}, "not written yet"),
        ),
      );
    return element(
      "table.numbers",
      {},
      element(
        "thead",
        {},
        element(
          "tr",
          {},
          ["token", "score"].map((words) => element("th", { scope: "col" }, words)),
        ),
      ),
      element("tbody", {}, rows),
    );
  }
}

/** A score as a sum of products: "0.12 x 0.40 + ... = 3.10; 3.10 / 5.66 = 0.55". */
function product(query, key, sum, D) {
  const terms = query
    .slice(0, 2)
    .map((q, i) => `${number(q)} \u00d7 ${number(key[i])}`)
    .join(" + ");
  const root = Math.sqrt(D);
  return element(
    "span.sum",
    {},
    `${terms}${D > 2 ? ` + ... (${D} products)` : ""} = ${number(sum)}; ${number(sum)} \u00f7 ${number(root)} = ${number(sum / root)}`,
  );
}
