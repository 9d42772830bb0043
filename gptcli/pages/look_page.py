"""The page of `gptcli look --html`: interactive attention maps, and the logit lens as a table."""

from __future__ import annotations

import html

from gptcli.inspection.looking import Look
from gptcli.pages.attention_maps import head_record, labels
from gptcli.pages.inlining import Page, asset, document, json_block
from gptcli.plurals import counted
from gptcli.training.loading import Trained
from gptcli.view.token_labels import token_label


def look_page(trained: Trained, found: Look) -> str:
    """The page as HTML."""
    pieces = [trained.tokenizer.token_bytes(id) for id in found.ids]
    name, model = html.escape(trained.run.name), trained.config.model
    heads = []
    for one in found.heads:
        weights = found.maps[one.layer]
        assert weights is not None
        heads.append(head_record(one, weights[one.head]))
    missing = (
        ""
        if heads
        else "<p>The attention weights cannot be shown, because no tensor of this model's code "
        "holds them.</p>"
    )
    body = f"""<main>
<header>
<h1>What the heads of {name} looked at</h1>
<p>Step {trained.step:,}: {counted(model.n_layer, "layer")} of
{counted(model.n_head, "head")}. The heads with the clearest habits come first. They look at
the previous token, the first token, the token itself, or at what came after an earlier
copy of the token (induction).</p>
</header>
<section><h2>Attention</h2>{missing}<div id="maps"></div></section>
<section><h2>Logit lens</h2>
<p class="prose">Each cell shows which token the model would write next, and with which probability,
if the model ended at that layer.</p>
<div class="scroll" tabindex="0" role="region" aria-label="Logit lens">
{_lens(trained, found, pieces)}
</div></section>
</main>"""
    return document(
        Page(
            title=f"{trained.run.name}: attention",
            description="Attention maps and the logit lens of a small language model.",
            body=body,
            styles=[asset("theme.css"), asset("views.css")],
            scripts=[asset("attention_maps.js") + asset("look.js")],
            data={"look": json_block({"labels": labels(pieces), "heads": heads})},
        )
    )


def _lens(trained: Trained, found: Look, pieces: list[bytes]) -> str:
    names = ["start", *(f"layer {i + 1}" for i in range(len(found.lens) - 1))]
    head = "".join(f'<th scope="col">{name}</th>' for name in ("after", *names))
    rows = []
    for t, piece in enumerate(pieces):
        cells = [f'<th scope="row">{html.escape(token_label(piece))}</th>']
        for row in found.lens:
            guess = row[t][0]
            label = html.escape(token_label(trained.tokenizer.token_bytes(guess.id)))
            cells.append(f"<td>{label} <small>{guess.probability:.0%}</small></td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<table class="lens"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )
