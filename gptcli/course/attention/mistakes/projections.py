"""Mistakes of step 1: queries, keys and values.

Dimensions: B batch, T time (queries), S time (keys), C channels (n_embd), H heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.course.attention.mistakes.attention_mistake import AttentionMistake
from gptcli.course.attention.stages import Problem, Stage, linear, project

Three = tuple[Tensor, Tensor, Tensor]


def _of(order: str) -> Mapping[str, Stage]:
    """Queries, keys and values taken from these: q, k, v, or x itself."""

    def wrong(p: Problem) -> Three:
        have = dict(zip("qkvx", (*project(p), p.x), strict=True))
        return have[order[0]], have[order[1]], have[order[2]]

    return {"project": wrong}


def _each(which: str, change: Callable[[Problem, Tensor, str], Tensor]) -> Mapping[str, Stage]:
    """`change` done to the projections named in `which`."""

    def wrong(p: Problem) -> Three:
        made = []
        for letter, right in zip("qkv", project(p), strict=True):
            made.append(change(p, right, letter) if letter in which else right)
        return made[0], made[1], made[2]

    return {"project": wrong}


def _part(p: Problem, letter: str) -> tuple[Tensor, Tensor | None]:
    part = {"q": p.parts.query, "k": p.parts.key, "v": p.parts.value}[letter]
    return part.weight.double(), None if part.bias is None else part.bias.double()


def _no_bias(p: Problem, right: Tensor, letter: str) -> Tensor:
    return p.x @ _part(p, letter)[0].T


def _turned(p: Problem, right: Tensor, letter: str) -> Tensor:
    weight, bias = _part(p, letter)
    y = p.x @ weight
    return y if bias is None else y + bias


def _twice(p: Problem, right: Tensor, letter: str) -> Tensor:
    weight, bias = _part(p, letter)
    return F.linear(right, weight, bias)


def _of_first(p: Problem, right: Tensor, letter: str) -> Tensor:
    return right[:1].expand_as(right)


def _added(p: Problem, right: Tensor, letter: str) -> Tensor:
    return right + p.x


def _normed(p: Problem) -> Three:
    x = F.layer_norm(p.x, (p.C,))
    return linear(p.parts.query, x), linear(p.parts.key, x), linear(p.parts.value, x)


def _chained(p: Problem) -> Three:
    q = linear(p.parts.query, p.x)
    k = linear(p.parts.key, q)
    return q, k, linear(p.parts.value, k)


def _fused_by_head(p: Problem) -> Three:
    """(B, T, 3C) read as (B, T, H, 3, D)."""
    fused = torch.cat(project(p), dim=-1).view(p.B, p.T, p.H, 3, p.D)
    q, k, v = (part.reshape(p.B, p.T, p.C) for part in fused.unbind(3))
    return q, k, v


def _fused_by_channel(p: Problem) -> Three:
    fused = torch.cat(project(p), dim=-1)
    q, k, v = fused.view(p.B, p.T, p.C, 3).unbind(3)
    return q, k, v


ALL = ("qkv", "qk", "q", "k", "v", "qv", "kv")


_NAMES = {"q": "queries", "k": "keys", "v": "values"}


_LAYERS = {"q": "query", "k": "key", "v": "value"}


def _same(one: str, other: str) -> AttentionMistake:
    order = "qkv".replace(one, other)
    return AttentionMistake(
        f"{_LAYERS[one]}-is-{_LAYERS[other]}",
        1,
        f"{one} = self.{_LAYERS[other]}(x)",
        f"your {_NAMES[one]} are the {_NAMES[other]}: both come from the same layer, and "
        f"`{_LAYERS[one]}`, ({{C}}, {{C}}), has no say",
        f"which layer makes the {_NAMES[one]}?",
        f"{one} comes from self.{_LAYERS[one]}(x), or from its own {{C}} of the {{C3}} fused "
        "channels",
        (_of(order),),
    )


def _exchanged(slug: str, order: str, what: str) -> AttentionMistake:
    return AttentionMistake(
        slug,
        1,
        f"q, k, v in the order {', '.join(order)}",
        f"{what} of shape ({{B}}, {{T}}, {{C}})",
        "look at which of the three results goes by which name",
        "the order is query, key, value: also of the {C3} channels of a fused layer",
        (_of(order),),
    )


BANK = (
    _same("q", "k"),
    _same("q", "v"),
    _same("k", "q"),
    _same("k", "v"),
    _same("v", "q"),
    _same("v", "k"),
    AttentionMistake(
        "one-projection-for-all",
        1,
        "q = k = v = self.query(x)",
        "queries, keys and values, each ({B}, {T}, {C}), all come from one layer",
        "there are three layers; each is used once",
        "call self.query, self.key and self.value on x, one after the other",
        tuple(_of(letter * 3) for letter in "qkvx"[:3]),
    ),
    _exchanged("query-key-swapped", "kqv", "queries and keys have changed places: both are"),
    _exchanged("key-value-swapped", "qvk", "keys and values have changed places: both are"),
    _exchanged("query-value-swapped", "vkq", "queries and values have changed places: both are"),
    _exchanged("qkv-rotated", "kvq", "queries, keys and values have each taken another's place,"),
    _exchanged("qkv-rotated", "vqk", "queries, keys and values have each taken another's place,"),
    AttentionMistake(
        "not-projected",
        1,
        "q = x",
        "x, ({B}, {T}, {C}), is used as it is where its linear map belongs",
        "x is not yet a query, a key or a value: which layers have not been called?",
        "each of q, k and v is a layer called on x",
        tuple(_of(o) for o in ("xxx", "xkv", "qxv", "qkx", "xxv", "xkx", "qxx")),
    ),
    AttentionMistake(
        "projection-without-bias",
        1,
        "q = x @ self.query.weight.T",
        "the bias, ({C},), is not added after the product with the weight",
        "a linear layer is a product and a bias",
        "call the layer, self.query(x), instead of multiplying by its weight",
        tuple(_each(which, _no_bias) for which in ALL if which != "k"),
    ),
    AttentionMistake(
        "weight-transposed",
        1,
        "q = x @ self.query.weight",
        "the weight, ({C}, {C}), is square, so x @ weight runs, but nn.Linear computes "
        "x @ weight.T",
        "which side of the weight belongs to the input?",
        "call the layer, self.query(x), or turn its weight with .T",
        tuple(_each(which, _turned) for which in ALL),
    ),
    AttentionMistake(
        "projected-twice",
        1,
        "q = self.query(self.query(x))",
        "a layer of shape ({C}, {C}) is applied to its own result",
        "each layer is used once, on x",
        "look for a line that overwrites q, k or v with another call of the same layer",
        tuple(_each(which, _twice) for which in ALL),
    ),
    AttentionMistake(
        "projections-chained",
        1,
        "k = self.key(q)",
        "each layer gets the result of the one before, ({B}, {T}, {C}), instead of x",
        "what goes into self.key and self.value?",
        "all three layers take x; do not overwrite x on the way",
        (
            {"project": _chained},
            _each("k", lambda p, r, c: linear(p.parts.key, linear(p.parts.query, p.x))),
            _each("v", lambda p, r, c: linear(p.parts.value, linear(p.parts.key, p.x))),
            _each("v", lambda p, r, c: linear(p.parts.value, linear(p.parts.query, p.x))),
            _each("kv", lambda p, r, c: _twice(p, linear(p.parts.query, p.x), c)),
        ),
    ),
    AttentionMistake(
        "activation-on-projections",
        1,
        "q = F.relu(self.query(x))",
        "queries, keys or values, ({B}, {T}, {C}), go through a function that is not linear",
        "attention projects linearly; the non-linearity of a block is in its MLP",
        "leave out the activation after the projection",
        tuple(
            _each(which, lambda p, r, c, f=f: f(r))  # type: ignore[misc]
            for which in ("qkv", "qk", "q", "k", "v")
            for f in (torch.relu, F.gelu, torch.tanh)
        ),
    ),
    AttentionMistake(
        "input-normalised",
        1,
        "x = F.layer_norm(x, ...)",
        "x, ({B}, {T}, {C}), is normalised before it is projected; the block does that, not the "
        "attention",
        "where does the LayerNorm of a block stand?",
        "project x as it comes",
        ({"project": _normed},),
    ),
    AttentionMistake(
        "residual-on-projections",
        1,
        "q = x + self.query(x)",
        "x, ({B}, {T}, {C}), is added to a projection",
        "the residual belongs around the whole attention, in the block",
        "leave out `+ x`",
        tuple(_each(which, _added) for which in ALL),
    ),
    AttentionMistake(
        "fused-cut-wrongly",
        1,
        "self.c_attn(x).view(B, T, n_head, 3, head_dim)",
        "the {C3} fused channels are cut so that queries, keys and values mix; the first {C} "
        "are the queries, then {C} keys, then {C} values",
        "how are the rows of the fused layer stacked?",
        "cut the last dimension into 3 pieces of {C} first, and each piece into heads afterwards",
        ({"project": _fused_by_head}, {"project": _fused_by_channel}),
    ),
    AttentionMistake(
        "first-sequence-for-all",
        1,
        "self.key(x[:1])",
        "x of the first sequence stands in for all {B} of them",
        "whose tokens does sequence 1 look at?",
        "call the layers on all of x",
        tuple(_each(which, _of_first) for which in ALL),
    ),
    AttentionMistake(
        "tokens-shifted",
        1,
        "self.value(x.roll(1, dims=1))",
        "a projection gets the {T} tokens of x shifted, turned around or summed up, and not each "
        "token itself",
        "which token does row t of x belong to?",
        "call the layers on x as it comes",
        tuple(
            _each(which, lambda p, r, c, f=f: F.linear(f(p.x), *_part(p, c)))  # type: ignore[misc]
            for which in ("v", "k", "q", "kv", "qkv")
            for f in (
                lambda x: x.roll(1, 1),
                lambda x: x.roll(-1, 1),
                lambda x: F.pad(x, (0, 0, 1, 0))[:, :-1],
                lambda x: x.cumsum(1),
                lambda x: x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None],
            )
        ),
    ),
    AttentionMistake(
        "bias-of-another-projection",
        1,
        "x @ self.query.weight.T + self.key.bias",
        "a projection adds the bias, ({C},), of another one",
        "each layer has a bias of its own",
        "call the layer, self.query(x)",
        tuple(
            _each(which, lambda p, r, c, o=other: F.linear(p.x, _part(p, c)[0], _part(p, o)[1]))  # type: ignore[misc]
            for which in ("q", "k", "v")
            for other in "qkv"
            if which != other and which != "k"
        ),
    ),
)
