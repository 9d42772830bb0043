"""Names what each head does by measured scores: previous token, first token, itself, induction.

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
    "first token": "looks at the first token, where heads rest that find nothing",
    "itself": "looks at the token itself",
    "induction": "looks at what came after an earlier copy of the token",
}
"""What a head of each kind does, in words for those who meet heads for the first time."""
_NAMED_FROM = 0.4
_WORTH_SAYING = 0.1
"""A head has the name of a kind if it pays at least this share of its attention there."""
_SHORTEST = 8  # tokens of a prompt on which scores say something
_PROBES = 4
_LONGEST_HALF = 48
_SEED = 1


@dataclass(frozen=True)
class HeadKind:
    """One head, counted from 0, and the share of its attention that fits each kind of KINDS.

    A share is 0 if the head looks there as much as a head that spreads its attention evenly, and 1
    if it looks nowhere else; it can be slightly negative. `kind` is "mixed" if none is large."""

    layer: int
    head: int
    shares: tuple[float, ...]

    @property
    def best(self) -> float:
        """The largest share."""
        return max(self.shares)

    @property
    def kind(self) -> str:
        """The name of the kind with the largest share, or "mixed"."""
        return KINDS[self.shares.index(self.best)] if self.best >= _NAMED_FROM else "mixed"

    @property
    def habit(self) -> str:
        """What the head does, as the end of a sentence: "looks at ... (67 % of its attention)"."""
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
    """All heads whose weights `maps` (H, T, T) has by layer, the one with the largest share first.

    The share of induction is measured on random tokens, each different, that are repeated: how much
    a head looks at the token that came after the earlier copy of its token (Olsson et al. 2022,
    "In-context Learning and Induction Heads"). The other shares are measured on the text itself, or
    on the same random tokens if the text is shorter than 8 tokens. `maps_of` gives the maps of
    other ids."""
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
    """All heads of stored maps, the one with the largest share first; induction is not measured."""
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
    """The shares of the previous token, the first and the token itself: (H, T, T) -> (3, H)."""
    T = weights.shape[1]
    # From token 2 on, the previous token is not the first.
    rows = torch.arange(min(2, T - 1), T)
    chance = 1.0 / (rows + 1)
    first = ((weights[:, rows, 0] - chance) / (1 - chance).clamp(min=0.5)).mean(1)
    return torch.stack((_share(weights, 1, first=2), first, _share(weights, 0, first=1)))


def _share(weights: Tensor, back: int, first: int) -> Tensor:
    """The share of attention on the token `back` places back, from token `first` on: (H,).

    Corrected for chance: even attention has share 0."""
    T = weights.shape[1]
    rows = torch.arange(max(first, back), T)
    if not len(rows):
        return torch.zeros(weights.shape[0])
    chance = 1.0 / (rows + 1)
    return ((weights[:, rows, rows - back] - chance) / (1 - chance).clamp(min=0.5)).mean(1)
