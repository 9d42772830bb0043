"""Two parts of the page of `gptcli report`: a passage coloured by loss, and attention maps."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gptcli.errors import GptcliError
from gptcli.inspection.head_kinds import kinds_in_maps
from gptcli.pages.attention_maps import head_record
from gptcli.plurals import counted
from gptcli.tokenization import Tokenizer
from gptcli.view.safe_text import clean
from gptcli.view.token_labels import token_label

_HABITS = 4  # the page describes at most this many heads in words


def passage_record(
    inside: list[dict[str, Any]], tokenizer: Tokenizer, used: int | None
) -> dict[str, Any] | None:
    """What report.js shows of the passage: its tokens, and their losses at each evaluation.

    Returns None if the tokenizer does not know an id. The page opens with the evaluation nearest to
    `used`, the step of the checkpoint that `sample` uses. If `used` is None, the page opens with
    the last evaluation."""
    ids = inside[-1]["ids"]
    try:
        pieces = [tokenizer.token_bytes(id) for id in ids]
    except GptcliError:
        return None
    moments = [
        {"step": one["step"], "losses": one["losses"]} for one in inside if one["ids"] == ids
    ]
    return {
        "labels": [_in_text(piece) for piece in pieces],
        "breaks": [b"\n" in piece for piece in pieces],
        "moments": moments,
        "opensAt": _nearest([one["step"] for one in moments], used),
    }


def _nearest(steps: Sequence[int], used: int | None) -> int:
    """The index of the number in `steps` nearest to `used`. The last index if `used` is None."""
    if used is None:
        return len(steps) - 1
    return min(range(len(steps)), key=lambda i: (abs(steps[i] - used), -i))


def _in_text(piece: bytes) -> str:
    """A token as the passage shows it: blanks stay blanks, a newline becomes "⏎"."""
    text = clean(piece.decode("utf-8", "replace"))
    return text.replace("\n", "⏎")


def maps_record(
    inside: list[dict[str, Any]], tokenizer: Tokenizer, most_heads: int, used: int | None
) -> dict[str, Any] | None:
    """The attention maps that report.js shows for each evaluation; None if there are no maps.

    Chooses the heads whose habits are clearest at the evaluation nearest to step `used`."""
    moments = []
    for one in inside:
        tensors = _unpacked(one["maps"])
        if tensors:
            moments.append((one["step"], tensors))
    if not moments:
        return None
    T = moments[-1][1][0].shape[1]
    opens_at = _nearest([step for step, _ in moments], used)
    clearest = kinds_in_maps(moments[opens_at][1])[:most_heads]
    heads = [(one.layer, one.head) for one in clearest]
    shown = []
    for step, tensors in moments:
        kinds = {(one.layer, one.head): one for one in kinds_in_maps(tensors)}
        shown.append(
            {
                "step": step,
                "heads": [
                    head_record(kinds[layer, head], tensors[layer][head])
                    for layer, head in heads
                    if (layer, head) in kinds
                ],
            }
        )
    labels = [token_label(tokenizer.token_bytes(id)) for id in inside[-1]["ids"][:T]]
    return {"labels": labels, "moments": shown, "opensAt": opens_at}


def _unpacked(layers: Any) -> list[Tensor]:
    """Decode the attention maps of each layer, (H, T, T), from lower triangles in base64.

    Returns [] if they are damaged."""
    found = []
    try:
        for heads in layers:
            triangles = [
                torch.frombuffer(bytearray(base64.b64decode(one)), dtype=torch.uint8) / 255
                for one in heads
            ]
            T = int((2 * len(triangles[0]) + 0.25) ** 0.5)
            weights = torch.zeros(len(triangles), T, T)
            rows, columns = torch.tril_indices(T, T)
            weights[:, rows, columns] = torch.stack(triangles)
            found.append(weights)
    except (ValueError, TypeError, IndexError, RuntimeError):
        return []
    return found


def passage_section(passage: dict[str, Any] | None) -> str:
    if passage is None:
        return ""
    return f"""<section><h2>A passage that it never trained on</h2>
<p class="prose">This is the beginning of the validation text. The marks show which probability the
network gave to each token when it had read only the tokens before.
{_move(passage["moments"], "the network learn")}</p>
<p class="legend"><span class="expected">expected (over 1/2)</span>
<span>likely (1/10 to 1/2)</span>
<span class="unlikely">unlikely (1/100 to 1/10)</span>
<span class="surprising">surprising (under 1/100)</span></p>
<div class="range"{_hidden(passage["moments"])}><label for="passage-step">Evaluation</label>
<input type="range" id="passage-step" min="0" max="{len(passage["moments"]) - 1}" step="1"
value="0">
</div>
<p id="passage-words" aria-live="polite" class="quiet"></p>
<div id="passage" class="panel passage" tabindex="0" role="group"
aria-label="Passage: the arrow keys move from token to token"></div>
<p id="passage-token" class="quiet" aria-live="polite"></p></section>"""


def maps_section(maps: dict[str, Any] | None) -> str:
    if maps is None:
        return ""
    return f"""<section><h2>What its heads looked at</h2>
<p class="prose">With attention, a network fetches what it needs from earlier tokens. At every
token, each head shares out 100 % of its attention among this token and the tokens before it. A head
cannot see later tokens. The maps show the first {counted(len(maps["labels"]), "token")} of the
passage above. A diagonal line in a map means that the head looks at the token just before. A column
means that the head always looks at the same token.</p>
{_habits(maps["moments"][maps["opensAt"]])}
<p class="prose">{_move(maps["moments"], "how the heads changed")}</p>
<div class="range"{_hidden(maps["moments"])}><label for="maps-step">Evaluation</label>
<input type="range" id="maps-step" min="0" max="{len(maps["moments"]) - 1}" step="1"
value="0">
<output id="maps-words" for="maps-step"></output></div>
<div id="maps"></div></section>"""


def _move(moments: Sequence[Any], what: str) -> str:
    """A sentence that tells the reader to move the slider. "" if there is only one evaluation."""
    return f" Move the slider to see {what}." if len(moments) > 1 else ""


def _hidden(moments: Sequence[Any]) -> str:
    """The attribute that hides a slider with only one evaluation; "" for more evaluations."""
    return "" if len(moments) > 1 else " hidden"


def _habits(moment: dict[str, Any]) -> str:
    """HTML that says in words what the clearest heads do at the evaluation `moment`."""
    heads = moment["heads"]
    clear = sum(one["kind"] != "mixed" for one in heads)
    shown = heads[: min(_HABITS, max(2, clear))]
    items = "".join(
        f"<li>Layer {one['layer']}, head {one['head']} {html.escape(one['habit'])}.</li>"
        for one in shown
    )
    at = f"At step {moment['step']:,}"
    lead = f"{at}, the clearest heads:" if clear else f"{at}, no head has a simple habit:"
    return f'<p class="prose">{lead}</p><ul class="prose">{items}</ul>'
