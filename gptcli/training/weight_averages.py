"""The averages of the weights over the steps (`train.average`), and their place in a checkpoint.

Training changes the weights and never reads the averages. Evaluations, samples and checkpoints use
the averages. gptcli.training.schedule.average_weight says when and how far an average moves.

A checkpoint's model.safetensors has the averages, so that everything that reads a checkpoint uses
them. Its state.safetensors has the weights themselves, with which a resumed run continues.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

AVERAGE = "average/"
"""The prefix of the averages' names in the optimizers' state."""
_TRAINED = "trained/"
"""In a checkpoint's state: the prefix of the names of the weights without averaging. The averages
are in the checkpoint's model.safetensors."""

Named = dict[str, Tensor]


class WeightAverages:
    """The average of each parameter; none before the first call of `move`.

    `names` has the name of each parameter that the optimizers update."""

    def __init__(self, names: dict[Tensor, str]) -> None:
        self._names = names
        self._tensors: dict[Tensor, Tensor] = {}

    def exist(self) -> bool:
        """Whether there are averages."""
        return bool(self._tensors)

    @torch.no_grad()
    def move(self, share: float) -> None:
        """Move each average towards the parameter, by `share` (0 to 1) of their distance.

        The first averages are copies of the parameters. A share of 0 changes nothing."""
        if share <= 0.0:
            return
        if self._tensors:
            torch._foreach_lerp_(list(self._tensors.values()), list(self._tensors), share)
        else:
            self._tensors = {p: p.detach().clone() for p in self._names}

    @torch.no_grad()
    def exchange(self) -> None:
        """Exchange the parameters' values and their averages. A second call undoes this."""
        for p, average in self._tensors.items():
            before = p.detach().clone()
            p.copy_(average)
            average.copy_(before)

    def state(self) -> Named:
        """A dict of the averages. Each key is "average/" and the name of a parameter."""
        return {AVERAGE + self._names[p]: average for p, average in self._tensors.items()}

    def load_state(self, saved: Named) -> Named:
        """Restore the averages in `saved`, and return the other entries of `saved`.

        Raises KeyError if only some of the parameters have an average, or if a shape differs."""
        rest = dict(saved)
        found = {p: rest.pop(AVERAGE + name, None) for p, name in self._names.items()}
        averages = {p: value for p, value in found.items() if value is not None}
        if averages and (
            len(averages) < len(found) or any(a.shape != p.shape for p, a in averages.items())
        ):
            raise KeyError(AVERAGE)
        self._tensors = {p: value.to(p.device, copy=True) for p, value in averages.items()}
        return rest


def to_checkpoint(weights: Named, state: Named) -> tuple[Named, Named]:
    """The weights and the state as a checkpoint stores them.

    If `state` has averages, a checkpoint stores the averages as weights, and the weights in the
    state."""
    if not any(key.startswith(AVERAGE) for key in state):
        return weights, state
    rest, averages = dict(state), {}
    for name, weight in weights.items():
        averages[name] = rest.pop(AVERAGE + name)
        rest[_TRAINED + name] = weight
    return averages, rest


@torch.no_grad()
def from_checkpoint(masters: Iterable[tuple[str, Tensor]], state: Named) -> Named:
    """Undo `to_checkpoint`, and return the state with the averages.

    `masters` are pairs of a name and a master weight. At first, the master weights have the values
    in the checkpoint's model.safetensors, which are averages. This function replaces the averages
    by the weights without averaging, which are in `state`. Raises KeyError if `state` lacks a
    weight."""
    if not any(key.startswith(_TRAINED) for key in state):
        return state
    rest = dict(state)
    for name, master in masters:
        rest[AVERAGE + name] = master.detach().clone()
        master.copy_(rest.pop(_TRAINED + name))
    return rest
