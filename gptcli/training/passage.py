"""Records token losses and attention maps of one validation passage at each evaluation.

A report shows how the losses of the passage's tokens fall, and how the attention maps change. The
passage is short, so attention.jsonl stays small, and recording takes much less time than an
evaluation.

Dimensions: T time, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.corpus import TokenStore
from gptcli.events import LookedInside
from gptcli.model.attention import CausalSelfAttention
from gptcli.model.gpt import GPT
from gptcli.model.inside import builtin_weights, look_inside, part_with_attention

PASSAGE = 192  # the number of tokens whose losses are recorded
_MAP = 24  # an attention map covers at most this many tokens
_MOST_CELLS = 40 * _MAP * _MAP  # at most this many cells in all maps, unless _FEWEST needs more
_FEWEST = 8  # a map covers at least this many tokens, if the passage has them


class Passage:
    """The first tokens of the validation split, and what the network computes for them.

    `model` returns the network with the current weights."""

    def __init__(self, val: TokenStore | None, block_size: int, model: Callable[[], GPT]) -> None:
        count = min(PASSAGE, block_size) + 1
        self._ids: list[int] = [] if val is None else val.read(0, min(count, len(val))).tolist()
        self._model = model

    def look(self, step: int) -> Iterator[LookedInside]:
        """Yield the losses and the attention maps at `step`; nothing without a validation split.

        Changes no weight and draws no random number."""
        if len(self._ids) < 2:
            return
        model = self._model()
        inside = look_inside(model, self._ids[:-1])
        with torch.no_grad():
            logits = model.lm_head(model.ln_f(inside.stream[-1])).float()
            targets = torch.tensor(self._ids[1:], device=logits.device)
            losses = F.cross_entropy(logits, targets, reduction="none")
        yield LookedInside(
            step,
            tuple(self._ids),
            tuple(round(loss, 3) for loss in losses.tolist()),
            _maps(model, inside.inputs),
        )


def _maps(model: GPT, inputs: list[Tensor]) -> tuple[tuple[bytes, ...], ...]:
    """For each layer and head, the lower triangle of its attention map, one byte for each weight.

    The maps cover only the first tokens of the passage. Later tokens do not change them, because
    the network is causal. Returns () if the user wrote the attention or the block."""
    heads = model.config.n_layer * model.config.n_head
    T = max(_FEWEST, min(_MAP, int((_MOST_CELLS / heads) ** 0.5)))
    maps = []
    for layer, x in enumerate(inputs):
        part = part_with_attention(model, layer)
        if not isinstance(part, CausalSelfAttention):
            return ()
        weights = builtin_weights(part, x[:T])  # (H, T, T)
        rows, columns = torch.tril_indices(len(x[:T]), len(x[:T]))
        triangles = (weights[:, rows, columns] * 255).round().to(torch.uint8).cpu()
        maps.append(tuple(bytes(one) for one in triangles.tolist()))
    return tuple(maps)
