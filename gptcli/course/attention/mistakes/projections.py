"""Known mistakes of step 1: queries, keys and values.

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


def _taken_from(order: str) -> Mapping[str, Stage]:
    """The stage that takes q, k and v from `order`: "kqv" swaps q and k, "xkv" uses x as q."""

    def wrong(p: Problem) -> Three:
        sources = dict(zip("qkvx", (*project(p), p.x), strict=True))
        return sources[order[0]], sources[order[1]], sources[order[2]]

    return {"project": wrong}


def _changed(which: str, change: Callable[[Problem, Tensor, str], Tensor]) -> Mapping[str, Stage]:
    """The stage that calls `change` for each projection in `which`: "qk" means q and k."""

    def wrong(p: Problem) -> Three:
        results = []
        for letter, right in zip("qkv", project(p), strict=True):
            results.append(change(p, right, letter) if letter in which else right)
        return results[0], results[1], results[2]

    return {"project": wrong}


def _weight_and_bias(p: Problem, letter: str) -> tuple[Tensor, Tensor | None]:
    part = {"q": p.parts.query, "k": p.parts.key, "v": p.parts.value}[letter]
    return part.weight.double(), None if part.bias is None else part.bias.double()


def _without_bias(p: Problem, right: Tensor, letter: str) -> Tensor:
    return p.x @ _weight_and_bias(p, letter)[0].T


def _by_transposed_weight(p: Problem, right: Tensor, letter: str) -> Tensor:
    weight, bias = _weight_and_bias(p, letter)
    y = p.x @ weight
    return y if bias is None else y + bias


def _twice(p: Problem, right: Tensor, letter: str) -> Tensor:
    weight, bias = _weight_and_bias(p, letter)
    return F.linear(right, weight, bias)


def _through_output(p: Problem, right: Tensor, letter: str) -> Tensor:
    return linear(p.parts.output, right)


def _of_first_sequence(p: Problem, right: Tensor, letter: str) -> Tensor:
    return right[:1].expand_as(right)


def _plus_x(p: Problem, right: Tensor, letter: str) -> Tensor:
    return right + p.x


def _with_bias_of(other: str) -> Callable[[Problem, Tensor, str], Tensor]:
    return lambda p, right, letter: F.linear(
        p.x, _weight_and_bias(p, letter)[0], _weight_and_bias(p, other)[1]
    )


def _with_weight_of(other: str) -> Callable[[Problem, Tensor, str], Tensor]:
    return lambda p, right, letter: F.linear(
        p.x, _weight_and_bias(p, other)[0], _weight_and_bias(p, letter)[1]
    )


def _with_swapped_weights(pair: str) -> Mapping[str, Stage]:
    """The stage that swaps two projections' weights, but not their biases: "kv" is k and v."""

    def change(p: Problem, right: Tensor, letter: str) -> Tensor:
        return _with_weight_of(pair.replace(letter, ""))(p, right, letter)

    return _changed(pair, change)


def _of_normalised_x(p: Problem) -> Three:
    x = F.layer_norm(p.x, (p.C,))
    return linear(p.parts.query, x), linear(p.parts.key, x), linear(p.parts.value, x)


def _chained(p: Problem) -> Three:
    q = linear(p.parts.query, p.x)
    k = linear(p.parts.key, q)
    return q, k, linear(p.parts.value, k)


def _fused_by_head(p: Problem) -> Three:
    """Wrong q, k and v: views fused channels (B, T, 3C) as (B, T, H, 3, D), not (B, T, 3, C)."""
    fused = torch.cat(project(p), dim=-1).view(p.B, p.T, p.H, 3, p.D)
    q, k, v = (part.reshape(p.B, p.T, p.C) for part in fused.unbind(3))
    return q, k, v


def _fused_by_channel(p: Problem) -> Three:
    """Wrong q, k and v: views fused channels (B, T, 3C) as (B, T, C, 3), not (B, T, 3, C)."""
    fused = torch.cat(project(p), dim=-1)
    q, k, v = fused.view(p.B, p.T, p.C, 3).unbind(3)
    return q, k, v


ALL = ("qkv", "qk", "q", "k", "v", "qv", "kv")


_NAMES = {"q": "queries", "k": "keys", "v": "values"}


_LAYERS = {"q": "query", "k": "key", "v": "value"}


def _from_layer_of(one: str, other: str) -> AttentionMistake:
    order = "qkv".replace(one, other)
    return AttentionMistake(
        f"{_LAYERS[one]}-is-{_LAYERS[other]}",
        1,
        f"{one} = self.{_LAYERS[other]}(x)",
        f"your {_NAMES[one]} equal your {_NAMES[other]}: both come from the same weights, and the "
        f"weights of the {_NAMES[one]}, ({{C}}, {{C}}), are never used",
        f"which layer makes the {_NAMES[one]}?",
        f"compute {one} as self.{_LAYERS[one]}(x); a fused layer gives {{C3}} channels, of which "
        f"{{C}} are the {_NAMES[one]}",
        (_taken_from(order),),
    )


def _permuted(slug: str, order: str, what: str) -> AttentionMistake:
    return AttentionMistake(
        slug,
        1,
        f"q, k, v in the order {', '.join(order)}",
        f"{what} have shape ({{B}}, {{T}}, {{C}}), so the code still runs",
        "which name does each of the three results have?",
        "queries come first, then keys, then values, also in the {C3} channels of a fused layer, "
        "unless its name says another order, such as kqv",
        (_taken_from(order),),
    )


BANK = (
    _from_layer_of("q", "k"),
    _from_layer_of("q", "v"),
    _from_layer_of("k", "q"),
    _from_layer_of("k", "v"),
    _from_layer_of("v", "q"),
    _from_layer_of("v", "k"),
    AttentionMistake(
        "one-projection-for-all",
        1,
        "q = k = v = self.query(x)",
        "your queries, keys and values, each ({B}, {T}, {C}), all come from one layer",
        "there are three layers; use each of them once",
        "call each of self.query, self.key and self.value once, on x",
        tuple(_taken_from(letter * 3) for letter in "qkvx"[:3]),
    ),
    _permuted("query-key-swapped", "kqv", "your queries and keys are swapped: both"),
    _permuted("key-value-swapped", "qvk", "your keys and values are swapped: both"),
    _permuted("query-value-swapped", "vkq", "your queries and values are swapped: both"),
    _permuted("qkv-rotated", "kvq", "your queries, keys and values are swapped around: all three"),
    _permuted("qkv-rotated", "vqk", "your queries, keys and values are swapped around: all three"),
    AttentionMistake(
        "not-projected",
        1,
        "q = x",
        "you use x itself, ({B}, {T}, {C}), instead of a projection of x",
        "x is not yet a query, a key or a value: which layers have you not called?",
        "each of q, k and v is the output of a layer called on x",
        tuple(_taken_from(o) for o in ("xxx", "xkv", "qxv", "qkx", "xxv", "xkx", "qxx")),
    ),
    AttentionMistake(
        "projection-without-bias",
        1,
        "q = x @ self.query.weight.T",
        "you do not add the bias of shape ({C},) after the product with the weight",
        "a linear layer is a product plus a bias",
        "call the layer, self.query(x), instead of multiplying by its weight",
        tuple(_changed(which, _without_bias) for which in ALL if which != "k"),
    ),
    AttentionMistake(
        "weight-transposed",
        1,
        "q = x @ self.query.weight",
        "you compute x @ weight, but nn.Linear computes x @ weight.T; both run, because the "
        "weight is square, ({C}, {C})",
        "which dimension of the weight belongs to the input?",
        "call the layer, self.query(x), or transpose its weight with .T",
        tuple(_changed(which, _by_transposed_weight) for which in ALL),
    ),
    AttentionMistake(
        "projected-twice",
        1,
        "q = self.query(self.query(x))",
        "you apply a layer of shape ({C}, {C}) to its own result",
        "use each layer once, on x",
        "look for a line that overwrites q, k or v with another call of the same layer",
        tuple(_changed(which, _twice) for which in ALL),
    ),
    AttentionMistake(
        "projections-chained",
        1,
        "k = self.key(q)",
        "a layer takes the output of another layer, ({B}, {T}, {C}), instead of x",
        "what do self.key and self.value take as input?",
        "all three layers take x; do not overwrite x in between",
        (
            {"project": _chained},
            _changed("k", lambda p, r, c: linear(p.parts.key, linear(p.parts.query, p.x))),
            _changed("v", lambda p, r, c: linear(p.parts.value, linear(p.parts.key, p.x))),
            _changed("v", lambda p, r, c: linear(p.parts.value, linear(p.parts.query, p.x))),
            _changed("kv", lambda p, r, c: _twice(p, linear(p.parts.query, p.x), c)),
        ),
    ),
    AttentionMistake(
        "output-projection-on-values",
        1,
        "v = self.c_proj(self.value(x))",
        "you apply the output projection, ({C}, {C}), to the values, before the weighted sum; the "
        "output projection must get the merged heads",
        "which layer comes after the heads are side by side again?",
        "v is self.value(x); call c_proj once, at the end",
        (
            {**_changed("v", _through_output), "output": lambda p, m: m},
            _changed("v", _through_output),
        ),
    ),
    AttentionMistake(
        "activation-on-projections",
        1,
        "q = F.relu(self.query(x))",
        "your queries, keys or values, ({B}, {T}, {C}), go through a non-linear function",
        "attention projects linearly; the MLP of a block has the non-linearity",
        "remove the activation after the projection",
        tuple(
            _changed(which, lambda p, r, c, f=f: f(r))  # type: ignore[misc]
            for which in ("qkv", "qk", "q", "k", "v")
            for f in (torch.relu, F.gelu, torch.tanh)
        ),
    ),
    AttentionMistake(
        "input-normalised",
        1,
        "x = F.layer_norm(x, ...)",
        "you normalise x, ({B}, {T}, {C}), before you project it; the block around the attention "
        "normalises x already",
        "where is the LayerNorm of a block?",
        "project x itself",
        ({"project": _of_normalised_x},),
    ),
    AttentionMistake(
        "residual-on-projections",
        1,
        "q = x + self.query(x)",
        "you add x, ({B}, {T}, {C}), to a projection",
        "the residual goes around the whole attention, in the block",
        "remove `+ x`",
        tuple(_changed(which, _plus_x) for which in ALL),
    ),
    AttentionMistake(
        "fused-cut-wrongly",
        1,
        "self.c_attn(x).view(B, T, n_head, 3, head_dim)",
        "you cut the {C3} fused channels so that queries, keys and values mix; the first {C} "
        "are the queries, the next {C} the keys, the last {C} the values",
        "in which order does the fused layer stack its rows?",
        "cut the last dimension into 3 pieces of {C} first, then cut each piece into heads; if "
        "you intend another order of rows, do not use GPT-2's name c_attn for the layer, but a "
        "name such as qkv_proj",
        ({"project": _fused_by_head}, {"project": _fused_by_channel}),
    ),
    AttentionMistake(
        "first-sequence-for-all",
        1,
        "self.key(x[:1])",
        "you use x of the first sequence for all {B} sequences",
        "whose tokens does sequence 1 look at?",
        "call the layers on the whole x",
        tuple(_changed(which, _of_first_sequence) for which in ALL),
    ),
    AttentionMistake(
        "tokens-shifted",
        1,
        "self.value(x.roll(1, dims=1))",
        "you shift, reverse, sum up or average the {T} tokens of x before a projection, so row t "
        "is not token t",
        "which token must be in row t of the input?",
        "call the layers on x itself",
        tuple(
            _changed(which, lambda p, r, c, f=f: F.linear(f(p.x), *_weight_and_bias(p, c)))  # type: ignore[misc]
            for which in ("v", "k", "q", "kv", "qkv")
            for f in (
                lambda x: x.roll(1, 1),
                lambda x: x.roll(-1, 1),
                lambda x: F.pad(x, (0, 0, 1, 0))[:, :-1],
                lambda x: x.flip(1),
                lambda x: x.mean(1, keepdim=True).expand_as(x),
                lambda x: x.cumsum(1),
                lambda x: x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None],
            )
        ),
    ),
    AttentionMistake(
        "weights-swapped",
        1,
        "q, v, k = self.c_attn.weight.chunk(3), but q, k, v for the biases",
        "the weights, ({C}, {C}), of two projections are swapped, but their biases are not",
        "which rows of the weight belong to the queries, which to the keys?",
        "cut the weight and the bias in the same order: queries, keys, values",
        tuple(_with_swapped_weights(pair) for pair in ("kv", "qk", "qv")),
    ),
    AttentionMistake(
        "bias-of-another-projection",
        1,
        "x @ self.query.weight.T + self.key.bias",
        "a projection adds the bias of another projection, of shape ({C},)",
        "each layer has its own bias",
        "call the layer: self.query(x)",
        tuple(
            _changed(which, _with_bias_of(other))
            for which in ("q", "k", "v")
            for other in "qkv"
            if which != other and which != "k"
        ),
    ),
)
