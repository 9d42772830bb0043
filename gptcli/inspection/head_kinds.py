"""Names each head by what it looks at most: previous token, first token, token itself, induction.

Dimensions: T time, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gptcli.model.gpt import GPT

KINDS = ("previous token", "first token", "itself", "induction")
HABITS = {
    "previous token": "looks at the token just before",
    "first token": "looks at the first token, as heads do if they find nothing to look at",
    "itself": "looks at the token itself",
    "induction": "looks at what came after an earlier copy of the token",
}
"""What a head of each kind does, in words for readers who do not know attention heads yet."""
_NAMED_FROM = 0.4
"""A head is of a kind if at least this share of its attention fits the kind."""
_WORTH_SAYING = 0.1
"""`habit` mentions no kind if all shares of the head are below this value."""
_SHORTEST = 8  # tokens; the shares measured on a shorter prompt mean little
_PROBES = 4
_LONGEST_HALF = 48
_SEED = 1


@dataclass(frozen=True)
class HeadKind:
    """One head, and how much of its attention fits each kind.

    `layer` and `head` are counted from 0. `shares` has, for each kind in KINDS, the share of the
    head's attention that fits the kind. A share is 0 if the head looks at the tokens of a kind only
    as much as a head with evenly spread attention. It is 1 if the head looks at no other tokens. It
    can be slightly negative."""

    layer: int
    head: int
    shares: tuple[float, ...]

    @property
    def best(self) -> float:
        """The largest share of the head."""
        return max(self.shares)

    @property
    def kind(self) -> str:
        """The name of the kind with the largest share; "mixed" if this share is too small."""
        return KINDS[self.shares.index(self.best)] if self.best >= _NAMED_FROM else "mixed"

    @property
    def habit(self) -> str:
        """What the head does, as in "looks at the token itself (67 % of its attention)"."""
        if self.best < _WORTH_SAYING:
            return "spreads its attention over many tokens"
        most = HABITS[KINDS[self.shares.index(self.best)]]
        share = f"({100 * self.best:.0f} % of its attention)"
        if self.kind == "mixed":
            return f"has no simple habit; it most often {most} {share}"
        return f"{most} {share}"


def head_kinds(
    model: GPT,
    maps: Sequence[Tensor | None],
    maps_of: Callable[[list[int]], list[Tensor | None]],
) -> list[HeadKind]:
    """The kinds of all heads in `maps`. The heads with the largest shares come first.

    `maps` has (H, T, T) or None for each layer. The share of induction is measured on several
    sequences: random tokens that all differ, followed by the same tokens again. This share says how
    much a head looks at the token that followed the earlier copy of the current token (Olsson et
    al. 2022, "In-context Learning and Induction Heads"). The other shares are measured on the text
    itself, or on these sequences if the text is shorter than 8 tokens. `maps_of` is a function that
    computes the attention maps of a list of token ids."""
    half = min(_LONGEST_HALF, model.config.block_size // 2, model.vocab_size)
    induction: dict[int, Tensor] = {}
    of_probes: dict[int, Tensor] = {}
    if half >= 2 and any(one is not None for one in maps):
        generator = torch.Generator().manual_seed(_SEED)
        for _ in range(_PROBES):
            ids = torch.randperm(model.vocab_size, generator=generator)[:half].tolist() * 2
            for layer, weights in enumerate(maps_of(ids)):
                if weights is not None:
                    found = _share(weights, half - 1, first=half)
                    induction[layer] = induction.get(layer, 0) + found / _PROBES
                    of_probes[layer] = of_probes.get(layer, 0) + _places(weights) / _PROBES
    return _sorted(maps, of_probes, induction)


def kinds_in_maps(maps: Sequence[Tensor | None]) -> list[HeadKind]:
    """A HeadKind for each head in the attention maps `maps`: the head with the largest share first.

    Induction is not measured: its share is 0."""
    return _sorted(maps, {}, {})


def _sorted(
    maps: Sequence[Tensor | None], of_probes: dict[int, Tensor], induction: dict[int, Tensor]
) -> list[HeadKind]:
    heads = []
    for layer, weights in enumerate(maps):
        if weights is None:
            continue
        long_enough = weights.shape[1] >= _SHORTEST or layer not in of_probes
        places = _places(weights) if long_enough else of_probes[layer]  # (3, H)
        repeats = induction.get(layer, torch.zeros(weights.shape[0]))  # (H,)
        for head in range(weights.shape[0]):
            shares = (*places[:, head].tolist(), repeats[head].item())
            heads.append(HeadKind(layer, head, shares))
    return sorted(heads, key=lambda one: (-one.best, one.layer, one.head))


def _places(weights: Tensor) -> Tensor:
    """How much each head attends to the previous token, to the first token and to the token itself.

    (H, T, T) -> (3, H)."""
    T = weights.shape[1]
    # For the second token, the previous token is the first token, so their shares are the same.
    # Therefore these two kinds are measured from the third token on.
    rows = torch.arange(min(2, T - 1), T)
    chance = 1.0 / (rows + 1)
    first = ((weights[:, rows, 0] - chance) / (1 - chance).clamp(min=0.5)).mean(1)
    return torch.stack((_share(weights, 1, first=2), first, _share(weights, 0, first=1)))


def _share(weights: Tensor, back: int, first: int) -> Tensor:
    """How much each head attends to the token `back` positions earlier, as a mean share: (H,).

    The mean is over the tokens from position `first` on. It is corrected for chance: evenly spread
    attention has share 0."""
    T = weights.shape[1]
    rows = torch.arange(max(first, back), T)
    if not len(rows):
        return torch.zeros(weights.shape[0])
    chance = 1.0 / (rows + 1)
    return ((weights[:, rows, rows - back] - chance) / (1 - chance).clamp(min=0.5)).mean(1)
