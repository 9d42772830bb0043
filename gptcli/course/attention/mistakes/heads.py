"""Mistakes of steps 2 and 3: splitting into heads, folding batch and heads.

Dimensions: B batch, T time (queries), S time (keys), C channels (n_embd), H heads, D head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from gptcli.course.attention.mistakes.attention_mistake import AttentionMistake
from gptcli.course.attention.stages import Problem, Stage, heads

Three = tuple[Tensor, Tensor, Tensor]


ALL = ("qkv", "qk", "q", "k", "v", "qv", "kv")


def _split_by(way: Callable[[Problem, Tensor], Tensor], which: str) -> Mapping[str, Stage]:
    def wrong(p: Problem, q: Tensor, k: Tensor, v: Tensor) -> Three:
        made = [
            way(p, y) if letter in which else heads(p, y)
            for letter, y in zip("qkv", (q, k, v), strict=True)
        ]
        return made[0], made[1], made[2]

    return {"split": wrong}


def _viewed(p: Problem, y: Tensor) -> Tensor:
    return y.reshape(p.B, p.H, p.T, p.D)


def _viewed_turned(p: Problem, y: Tensor) -> Tensor:
    return y.reshape(p.B, p.H, p.D, p.T).transpose(-1, -2)


def _interleaved(p: Problem, y: Tensor) -> Tensor:
    return y.reshape(p.B, p.T, p.D, p.H).permute(0, 3, 1, 2)


def _first_head(p: Problem, y: Tensor) -> Tensor:
    return y[:, None, :, : p.D].expand(p.B, p.H, p.T, p.D)


def _backward(p: Problem, y: Tensor) -> Tensor:
    return heads(p, y).flip(1)


def _batch_mixed(p: Problem, y: Tensor) -> Tensor:
    return y.reshape(p.T, p.B, p.H, p.D).permute(1, 2, 0, 3)


def _merge_view(p: Problem, mixed: Tensor) -> Tensor:
    return mixed.reshape(p.B, p.T, p.C)


def _merge_interleaved(p: Problem, mixed: Tensor) -> Tensor:
    return mixed.permute(0, 2, 3, 1).reshape(p.B, p.T, p.C)


def _swapped(p: Problem, q: Tensor, k: Tensor, v: Tensor) -> Three:
    """D heads of H channels each."""
    made = [y.reshape(p.B, p.T, p.D, p.H).transpose(1, 2) for y in (q, k, v)]
    return made[0], made[1], made[2]


def _one_head(p: Problem, q: Tensor, k: Tensor, v: Tensor) -> Three:
    return q[:, None], k[:, None], v[:, None]


def _scaled_by_last(p: Problem, q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])


def _swap_folds(p: Problem, y: Tensor) -> Tensor:
    """Folded as (H * B), used as (B * H)."""
    return heads(p, y).transpose(0, 1).reshape(p.B, p.H, p.T, p.D)


def _scrambled_folds(p: Problem, y: Tensor) -> Tensor:
    """(B, H, T, D) in memory order, read as matrices (D, T) turned around."""
    return heads(p, y).reshape(p.B, p.H, p.D, p.T).transpose(-1, -2)


def _folded_turned(p: Problem, y: Tensor) -> Tensor:
    """Time before heads in memory: (T, B * H) read as (B * H, T)."""
    return heads(p, y).permute(2, 0, 1, 3).reshape(p.B, p.H, p.T, p.D)


def _folded_behind(p: Problem, y: Tensor) -> Tensor:
    return heads(p, y).transpose(1, 2).transpose(0, 1).reshape(p.B, p.H, p.T, p.D)


# Time is cut in place of the channels: where the heads are split, or where they are folded.
_TIME_CUT = tuple(
    {**_split_by(way, which), **more}
    for which in ALL
    for way in (_viewed, _viewed_turned)
    for more in ({}, {"merge": _merge_view})
)

BANK = (
    AttentionMistake(
        "split-without-transpose",
        2,
        "q.view(B, n_head, T, head_dim)",
        "({B}, {T}, {C}) is viewed as ({B}, {H}, {T}, {D}), which cuts time instead of channels: "
        "`head 1` is then made of other tokens",
        "view reads memory in order; time stands before the heads there",
        "cut the channels, view(B, T, {H}, {D}), and then swap dimensions 1 and 2",
        _TIME_CUT,
    ),
    AttentionMistake(
        "fold-mixes-time-and-heads",
        3,
        "q.transpose(1, 2).reshape(B * n_head, T, head_dim), heads split already",
        "time stands before the heads where ({B}, {H}) is folded: the {B} * {H} matrices are then "
        "made of other tokens",
        "which two dimensions stand next to each other when they are merged?",
        "merge batch and heads of ({B}, {H}, {T}, {D}) as it is, without another transpose",
        _TIME_CUT,
    ),
    AttentionMistake(
        "heads-interleaved",
        2,
        "q.view(B, T, head_dim, n_head)",
        "the {C} channels are cut as ({D}, {H}): head 0 gets channels 0, {H}, 2 * {H}, ... "
        "instead of the block 0 to {D} - 1",
        "each head takes a contiguous block of channels: which size comes last?",
        "cut as ({H}, {D}), so that neighbouring channels stay together",
        tuple(
            {**_split_by(_interleaved, which), **more}
            for which in ALL
            for more in ({}, {"merge": _merge_interleaved})
        ),
    ),
    AttentionMistake(
        "heads-and-channels-swapped",
        2,
        "q.view(B, T, head_dim, n_head).transpose(1, 2)",
        "this makes {D} heads of {H} channels each; n_head = {H} and head_dim = {D}",
        "how many heads are there, and how long is each query?",
        "n_head comes before head_dim in the view",
        (
            {"split": _swapped},
            {"split": _swapped, "score": _scaled_by_last},
        ),
    ),
    AttentionMistake(
        "heads-missing",
        2,
        "scores = q @ k.transpose(1, 2)",
        "q and k are compared over all {C} channels at once, as one head; there are {H} heads of "
        "{D} channels",
        "nothing splits the {C} channels into {H} heads",
        "reshape q, k and v to ({B}, {T}, {H}, {D}) and bring the heads in front of time",
        tuple(
            {"split": _one_head, "merge": _merge_view, **more}
            for more in ({}, {"score": _scaled_by_last})
        ),
    ),
    AttentionMistake(
        "first-head-only",
        2,
        "q[:, :, :head_dim]",
        "every head takes channels 0 to {D} - 1; head h has the block from h * {D}",
        "where does the slice of head 1 begin?",
        "slice from h * head_dim to (h + 1) * head_dim",
        tuple(_split_by(_first_head, which) for which in ALL),
    ),
    AttentionMistake(
        "heads-backward",
        2,
        "q.flip(1)",
        "the {H} heads stand in reverse order",
        "head 0 takes the first block of channels",
        "count the heads upward",
        tuple(_split_by(_backward, which) for which in ALL),
    ),
    AttentionMistake(
        "batch-and-time-mixed",
        2,
        "q.view(T, B, n_head, head_dim)",
        "({B}, {T}, {C}) is viewed as ({T}, {B}, {H}, {D}): tokens of different sequences mix",
        "batch is the first dimension of x",
        "view as (B, T, {H}, {D})",
        tuple(_split_by(_batch_mixed, which) for which in ALL),
    ),
    AttentionMistake(
        "folded-in-two-orders",
        3,
        "q as (B * n_head, ...), k as (n_head * B, ...)",
        "the {B} * {H} matrices stand in one order in one factor and in another in the other, so "
        "a head meets the keys or values of another",
        "fold q, k and v in the same order, batch first",
        "bring each of them to ({B}, {H}, {T}, {D}) before reshape(B * {H}, T, {D})",
        tuple(_split_by(_swap_folds, which) for which in ALL),
    ),
    AttentionMistake(
        "folded-across-time",
        3,
        "q.reshape(B * n_head, head_dim, T).transpose(1, 2)",
        "({B}, {H}, {T}, {D}) is folded by a reshape that moves numbers between tokens",
        "folding merges two neighbouring dimensions and leaves the other two alone",
        "the last two dimensions stay ({T}, {D}), in this order",
        tuple(
            _split_by(way, which)
            for which in ALL
            for way in (_scrambled_folds, _folded_turned, _folded_behind)
        ),
    ),
    AttentionMistake(
        "heads-rolled",
        2,
        "q.roll(1, dims=1)",
        "the {H} heads stand in another order: a head meets the keys or values of its neighbour",
        "head h has the channels from h * {D}",
        "leave the heads in the order of the split",
        tuple(
            _split_by(lambda p, y, n=n: heads(p, y).roll(n, 1), which)  # type: ignore[misc]
            for which in ALL
            for n in (1, -1)
        ),
    ),
    AttentionMistake(
        "channels-of-heads-backward",
        2,
        "q.flip(-1)",
        "the {D} channels within each head stand in reverse order",
        "channel 0 of a query meets channel 0 of a key",
        "leave out the flip",
        tuple(_split_by(lambda p, y: heads(p, y).flip(-1), which) for which in ALL),
    ),
)
