"""Known mistakes of steps 2 and 3: splitting into heads, folding batch and heads.

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


def _split_by(wrong_heads: Callable[[Problem, Tensor], Tensor], which: str) -> Mapping[str, Stage]:
    """A stage that splits q, k and v into heads. Those in `which` ("qk") go to `wrong_heads`."""

    def wrong(p: Problem, q: Tensor, k: Tensor, v: Tensor) -> Three:
        results = [
            wrong_heads(p, y) if letter in which else heads(p, y)
            for letter, y in zip("qkv", (q, k, v), strict=True)
        ]
        return results[0], results[1], results[2]

    return {"split": wrong}


def _viewed_with_heads_before_time(p: Problem, y: Tensor) -> Tensor:
    return y.reshape(p.B, p.H, p.T, p.D)


def _viewed_and_transposed(p: Problem, y: Tensor) -> Tensor:
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


def _heads_and_channels_swapped(p: Problem, q: Tensor, k: Tensor, v: Tensor) -> Three:
    """q, k and v split into D heads of H channels each."""
    results = [y.reshape(p.B, p.T, p.D, p.H).transpose(1, 2) for y in (q, k, v)]
    return results[0], results[1], results[2]


def _one_head(p: Problem, q: Tensor, k: Tensor, v: Tensor) -> Three:
    return q[:, None], k[:, None], v[:, None]


def _scaled_by_last(p: Problem, q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])


def _folded_heads_first(p: Problem, y: Tensor) -> Tensor:
    """The heads of y in code that folds them as (H * B, T, D), but uses them as (B * H, T, D)."""
    return heads(p, y).transpose(0, 1).reshape(p.B, p.H, p.T, p.D)


def _folded_with_channels_before_time(p: Problem, y: Tensor) -> Tensor:
    """The heads of y in code that views (B, H, T, D) as (B, H, D, T) and then transposes."""
    return heads(p, y).reshape(p.B, p.H, p.D, p.T).transpose(-1, -2)


def _folded_time_first(p: Problem, y: Tensor) -> Tensor:
    """The heads of y in code that views (T, B, H, D) as (B, H, T, D)."""
    return heads(p, y).permute(2, 0, 1, 3).reshape(p.B, p.H, p.T, p.D)


def _folded_time_before_batch(p: Problem, y: Tensor) -> Tensor:
    return heads(p, y).transpose(1, 2).transpose(0, 1).reshape(p.B, p.H, p.T, p.D)


# Code can cut time instead of channels: in the split (step 2), or in the fold (step 3).
_TIME_CUT = tuple(
    {**_split_by(wrong_heads, which), **rest}
    for which in ALL
    for wrong_heads in (_viewed_with_heads_before_time, _viewed_and_transposed)
    for rest in ({}, {"merge": _merge_view})
)

BANK = (
    AttentionMistake(
        "split-without-transpose",
        2,
        "q.view(B, n_head, T, head_dim)",
        "you view ({B}, {T}, {C}) with the {H} heads before time, which cuts time instead of "
        "channels: `head 1` then holds all channels of a few tokens",
        "`view` keeps the order of memory, where time comes before the heads",
        "cut the channels with view(B, T, {H}, {D}), then swap dimensions 1 and 2",
        _TIME_CUT,
    ),
    AttentionMistake(
        "fold-mixes-time-and-heads",
        3,
        "q.transpose(1, 2).reshape(B * n_head, T, head_dim), heads split already",
        "you merge batch and heads, ({B}, {H}), while time comes before the heads: each of the "
        "{B} * {H} matrices then holds all heads of a few tokens",
        "which two dimensions must be neighbours before you merge them?",
        "merge batch and heads of ({B}, {H}, {T}, {D}) directly, without another transpose",
        _TIME_CUT,
    ),
    AttentionMistake(
        "heads-interleaved",
        2,
        "q.view(B, T, head_dim, n_head)",
        "you cut the {C} channels as ({D}, {H}): head 0 gets channels 0, {H}, {H2}, ... "
        "instead of the block 0 to {lastD}",
        "each head takes a contiguous block of channels: which size comes last?",
        "cut as ({H}, {D}), so that neighbouring channels stay together",
        tuple(
            {**_split_by(_interleaved, which), **rest}
            for which in ALL
            for rest in ({}, {"merge": _merge_interleaved})
        ),
    ),
    AttentionMistake(
        "heads-and-channels-swapped",
        2,
        "q.view(B, T, head_dim, n_head).transpose(1, 2)",
        "you make {D} heads of {H} channels each, but n_head is {H} and head_dim is {D}",
        "how many heads are there, and how long is each query?",
        "n_head comes before head_dim in the view",
        (
            {"split": _heads_and_channels_swapped},
            {"split": _heads_and_channels_swapped, "score": _scaled_by_last},
        ),
    ),
    AttentionMistake(
        "heads-missing",
        2,
        "scores = q @ k.transpose(1, 2)",
        "you compare q and k over all {C} channels at once, as one head, instead of "
        "comparing them in {H} heads of {D} channels",
        "nothing splits the {C} channels into {H} heads",
        "reshape q, k and v to ({B}, {T}, {H}, {D}), then move heads in front of time",
        tuple(
            {"split": _one_head, "merge": _merge_view, **rest}
            for rest in ({}, {"score": _scaled_by_last})
        ),
    ),
    AttentionMistake(
        "first-head-only",
        2,
        "q[:, :, :head_dim]",
        "every head takes channels 0 to {lastD} of your queries, keys or values; head h should "
        "take the block that begins at h * {D}",
        "where does the slice of head 1 begin?",
        "slice from h * head_dim to (h + 1) * head_dim",
        tuple(_split_by(_first_head, which) for which in ALL),
    ),
    AttentionMistake(
        "heads-backward",
        2,
        "q.flip(1)",
        "the {H} heads of your queries, keys or values are in reverse order",
        "head 0 takes the first block of channels",
        "number the heads in the order of their channels",
        tuple(_split_by(_backward, which) for which in ALL),
    ),
    AttentionMistake(
        "batch-and-time-mixed",
        2,
        "q.view(T, B, n_head, head_dim)",
        "you view ({B}, {T}, {C}) as ({T}, {B}, {H}, {D}): tokens of different sequences mix",
        "batch is the first dimension of x",
        "view as (B, T, {H}, {D})",
        tuple(_split_by(_batch_mixed, which) for which in ALL),
    ),
    AttentionMistake(
        "folded-in-two-orders",
        3,
        "q as (B * n_head, ...), k as (n_head * B, ...)",
        "you fold the {B} * {H} matrices of q, k and v in different orders, so a head uses "
        "the keys or values of another head",
        "fold q, k and v in the same order, batch first",
        "bring each of them to ({B}, {H}, {T}, {D}) before reshape(B * {H}, T, {D})",
        tuple(_split_by(_folded_heads_first, which) for which in ALL if which != "qkv"),
    ),
    AttentionMistake(
        "folded-heads-first",
        3,
        "q, k and v as (n_head * B, ...), then view(B, n_head, ...)",
        "you fold q, k and v heads first, but unfold the {B} * {H} results batch first: a result "
        "goes to another head or sequence",
        "fold batch and heads in the order in which you unfold them, batch first",
        "bring each of them to ({B}, {H}, {T}, {D}) before reshape(B * {H}, T, {D})",
        (_split_by(_folded_heads_first, "qkv"),),
    ),
    AttentionMistake(
        "folded-across-time",
        3,
        "q.reshape(B * n_head, head_dim, T).transpose(1, 2)",
        "you fold into {B} * {H} matrices with a reshape that moves numbers between tokens",
        "folding merges two neighbouring dimensions and does not touch the other two",
        "the last two dimensions stay ({T}, {D}), in this order",
        tuple(
            _split_by(wrong_heads, which)
            for which in ALL
            for wrong_heads in (
                _folded_with_channels_before_time,
                _folded_time_first,
                _folded_time_before_batch,
            )
        ),
    ),
    AttentionMistake(
        "heads-rolled",
        2,
        "q.roll(1, dims=1)",
        "the {H} heads of your queries, keys or values are in another order: head 0 does not get "
        "channels 0 to {lastD}",
        "head h has the channels that begin at h * {D}",
        "keep the heads in the order of the split",
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
        "within each head of your queries, keys or values, the {D} channels are in reverse order",
        "a head keeps its channels in the order in which the projection gives them",
        "remove the flip",
        tuple(_split_by(lambda p, y: heads(p, y).flip(-1), which) for which in ALL),
    ),
)
