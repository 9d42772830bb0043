/* The logit lens: a table of the next tokens that the model would guess after each layer. */

const GUESSES = 4;

/** Fills the table of the logit lens. `rows` is the worker's answer to "lens". */
function showLens({ rows, model, tokens, at }) {
  const next = tokens[at + 1];
  const places = ["before layer 1", ...rows.slice(1).map((_, l) => `after layer ${l + 1}`)];
  byId("lens-subject").replaceChildren(
    "What follows token ",
    String(at + 1),
    " ",
    piece(model.pieces[tokens[at]]),
    "?",
    ...(next === undefined
      ? [" Nothing yet: it is the last token."]
      : [
          " In the text it is ",
          piece(model.pieces[next]),
          ". The table frames it wherever it is among the four likeliest.",
        ]),
  );
  const guess = ([id, chance]) =>
    element(
      "td",
      {},
      element(
        `div.guess${id === next ? ".real" : ""}`,
        {},
        piece(model.pieces[id]),
        element("span.share", {}, percent(chance)),
        fill(chance),
      ),
    );
  byId("lens-table").replaceChildren(
    element(
      "thead",
      {},
      element(
        "tr",
        {},
        element("th", { scope: "col" }, "when asked"),
        element("th", { scope: "col" }, "likeliest"),
        ["second", "third", "fourth"].map((words) => element("th", { scope: "col" }, words)),
      ),
    ),
    element(
      "tbody",
      {},
      rows.map((row, l) =>
        element(
          "tr",
          {},
          element(
            "th",
            { scope: "row" },
            l === rows.length - 1 ? `${places[l]}: the final guess` : places[l],
          ),
          row.map(guess),
        ),
      ),
    ),
  );
}
