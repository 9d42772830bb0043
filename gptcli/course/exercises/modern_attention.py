"""Steps 4 to 6 of the exercise modern, grouped-query attention: comparison with the reference, and
known mistakes.

Dimensions: B batch, T time, C channels (n_embd), H query heads, K key/value heads, D head_dim, G
query heads for each key/value head (H / K). The functions in `forms` and `parts` of MISTAKES take
w and x. w holds the learner's projections w.q, w.k, w.v and w.o, each (weight, bias or None), the
sizes w.H, w.K and w.D, and w.norm, the learner's QKNorm or None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import permutations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.course.exercises import modern
from gptcli.course.exercises.explainer import ExerciseMistake
from gptcli.course.exercises.learner_module import (
    LearnerModule,
    ModuleLesson,
    Run,
    Size,
    general_mistakes,
)
from gptcli.course.exercises.modern import turned
from gptcli.course.exercises.modern_mistakes import STEPS
from gptcli.course.exercises.modern_modules import GroupedSize
from gptcli.course.exercises.modern_projections import WORDS, weights
from gptcli.course.exercises.modern_qk_norm import QKNorm
from gptcli.course.exercises.tensor_trace import TensorTrace
from gptcli.course.lesson import CheckFailed
from gptcli.plurals import counted

Weights = Any
Heads = tuple[Tensor, Tensor, Tensor]


def heads(w: Weights, x: Tensor) -> Heads:
    """Queries (B, H, T, D), keys and values (B, K, T, D), before the rotation.

    If the learner's code normalises queries or keys, w.norm normalises them here, too."""
    D = w.q[0].shape[0] // w.H
    q, k, v = (modern.split(F.linear(x, *layer), D) for layer in (w.q, w.k, w.v))
    norm: QKNorm | None = w.norm
    if norm is not None:
        q = q if norm.q is None else norm.q(q)
        k = k if norm.k is None else norm.k(k)
    return q, k, v


def _turn(q: Tensor, k: Tensor, v: Tensor) -> Heads:
    return turned(q), turned(k), v


def _share(k: Tensor, v: Tensor, group: int) -> tuple[Tensor, Tensor]:
    return k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)


def _merge(w: Weights, mixed: Tensor) -> Tensor:
    return F.linear(modern.merge(mixed), *w.o)


def attention(
    w: Weights,
    x: Tensor,
    *,
    make: Callable[[Weights, Tensor], Heads] = heads,
    turn: Callable[[Tensor, Tensor, Tensor], Heads] = _turn,
    share: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]] = _share,
    weigh: Callable[[Tensor, Tensor, Tensor], Tensor] = modern.attend,
    merge: Callable[[Weights, Tensor], Tensor] = _merge,
) -> Tensor:
    """The output (B, T, C) of grouped-query attention.

    Each keyword argument replaces a part of the computation, to imitate known mistakes."""
    q, k, v = turn(*make(w, x))
    k, v = share(k, v, w.H // w.K)
    return merge(w, weigh(q, k, v))


def steps(w: Weights, x: Tensor) -> Iterator[list[Tensor]]:
    """Yield one list of tensors per step. If the trace has one of them, the step is done."""
    yield from ([], [], [])  # steps 1 to 3 are checked before the attention
    q, k, v = _turn(*heads(w, x))
    yield [k]
    k, v = _share(k, v, w.H // w.K)
    mixed = modern.attend(q, k, v)
    yield _seen_after_groups(q, k, mixed)
    yield [_merge(w, mixed)]


def _seen_after_groups(q: Tensor, k: Tensor, mixed: Tensor) -> list[Tensor]:
    """The tensors of step 6 that need a correct step 5: scores, weights and head outputs."""
    scores = q @ k.transpose(2, 3)
    scaled = scores / math.sqrt(q.shape[-1])
    masked = scaled + modern.future(scaled)
    return [scores, scaled, masked, F.softmax(masked, -1), mixed]


def unseen(trace: TensorTrace, w: Weights, x: Tensor) -> int | None:
    """The first of steps 4 and 5 whose result is not in the trace; 6 if both results are there.

    Returns 4 also if the code rotates the values, or if its heads have wrong sizes."""
    q, k, v = heads(w, x)
    try:
        q, k, v = _turn(q, k, v)
        wide = _share(k, v, w.H // w.K)
        after = _seen_after_groups(q, wide[0], modern.attend(q, *wide))
    except RuntimeError:  # the constructor makes heads of another size
        return 4
    if any(trace.has(one) for one in after) and not trace.has(turned(v)):
        # right scores show nothing about the values
        return 6 if trace.has(after[-1]) or not _shared_wrongly(trace, v, wide[1]) else 5
    if not (trace.has(q) and trace.has(k)) or trace.has(turned(v)):
        return 4
    grouped = w.H == w.K or all(_holds(trace, one) for one in wide)
    return 6 if grouped else 5


def shown(trace: TensorTrace, w: Weights, x: Tensor) -> str | None:
    """The slug of one of three mistakes of steps 4 and 5, if the trace shows the mistake, or None.

    The trace shows these three mistakes even if a later step is wrong, too."""
    _, k, v = _turn(*heads(w, x))
    if trace.has(turned(v)):
        return "values-rotated"
    group = w.H // w.K
    in_turn = [_in_turn(part, group) for part in (k, v)]
    if group > 1 and w.K > 1 and all(_holds(trace, part) for part in in_turn):
        return "repeated-in-turn"
    if group > 1 and _lacks_values(trace, *_turn(*heads(w, x)), group):
        return "values-not-repeated"
    return None


def _lacks_values(trace: TensorTrace, q: Tensor, k: Tensor, v: Tensor, group: int) -> bool:
    """Whether forward computes the attention weights of all query heads, but repeats no values."""
    wide_k, wide_v = _share(k, v, group)
    mixed = modern.attend(q, wide_k, wide_v)
    *_, weights, _ = _seen_after_groups(q, wide_k, mixed)
    return (
        trace.has(weights)
        and not trace.has(mixed)
        and _holds(trace, wide_k)
        and not _holds(trace, wide_v)
        and not _shared_wrongly(trace, v, wide_v)
    )


def _shared_wrongly(trace: TensorTrace, part: Tensor, wide: Tensor) -> bool:
    """Whether forward repeats the heads of `part`, but not in the order of `wide`.

    `part` is (B, K, T, D). `wide` is (B, H, T, D), the correct repetition. False if K is 1 or H."""
    if part.shape[1] in (1, wide.shape[1]) or _holds(trace, wide):
        return False
    return any(
        result.shape == wide.shape
        and all(
            any(torch.allclose(head, one) for one in part.unbind(1)) for head in result.unbind(1)
        )
        for operation in trace.operations
        for result in operation.results
    )


def seen(trace: TensorTrace, w: Weights, x: Tensor, step: int) -> bool:
    """Whether the trace has all results of `step`.

    The caller has found in the trace a tensor that `steps` yields for `step`. After that, only
    step 5 can lack a result: code that repeats k can forget to repeat v."""
    if step != 5:
        return True
    q, k, v = _turn(*heads(w, x))
    wide_k, wide_v = _share(k, v, w.H // w.K)
    return trace.has(modern.attend(q, wide_k, wide_v)) or _holds(trace, wide_v)


def _holds(trace: TensorTrace, wanted: Tensor) -> bool:
    """Whether a traced tensor equals `wanted`, in any shape and any order of dimensions."""
    layouts = [wanted.permute(order).flatten() for order in permutations(range(wanted.dim()))]
    return any(
        torch.allclose(result.flatten(), layout)
        for operation in trace.operations
        for result in operation.results
        if result.numel() == wanted.numel() and result.dtype == wanted.dtype
        for layout in layouts
    )


def first_wrong(run: Run) -> int | None:
    """The first wrong step of a forward that returned a wrong output."""
    return unseen(run.trace, run.weights, run.x)


def _turning(*changes: Callable[[Tensor, Tensor, Tensor], Heads]) -> tuple[Any, ...]:
    return tuple(partial(attention, turn=change) for change in changes)


def _sharing(*changes: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]) -> tuple[Any, ...]:
    return tuple(partial(attention, share=change) for change in changes)


def _weighing(*changes: Callable[[Tensor, Tensor, Tensor], Tensor]) -> tuple[Any, ...]:
    return tuple(partial(attention, weigh=change) for change in changes)


def _merging(*changes: Callable[[Weights, Tensor], Tensor]) -> tuple[Any, ...]:
    return tuple(partial(attention, merge=change) for change in changes)


def _scaled(factor: Callable[[int, int, int], float]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Attention whose scores are multiplied by factor(D, H, T) instead of 1 / sqrt(D)."""

    def weigh(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        _, H, T, D = q.shape
        return modern.attend(q * (factor(D, H, T) * math.sqrt(D)), k, v)

    return weigh


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])


def _softmax_over(dim: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def weigh(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = _scores(q, k)
        return F.softmax(scores + modern.future(scores), dim) @ v

    return weigh


def _over(dim: int) -> Callable[[Tensor], Tensor]:
    """A rotation whose angle depends on the index in dimension `dim`, not on the position."""
    return lambda x: turned(x.transpose(dim, 2)).transpose(dim, 2)


def _before_split(w: Weights, x: Tensor) -> Heads:
    D = w.q[0].shape[0] // w.H
    q, k, v = (F.linear(x, *layer) for layer in (w.q, w.k, w.v))
    return modern.split(turned(q), D), modern.split(turned(k), D), modern.split(v, D)


def _angles_of_width(w: Weights, x: Tensor) -> Heads:
    """The heads, rotated wrongly: the angles are the first D/2 of those for C channels."""
    q, k, v = heads(w, x)
    D = q.shape[-1]
    angles = modern.angles_of(w.H * D, x.shape[1])[:, : D // 2]
    q, k = (modern.rotate(part, angles.cos(), angles.sin()) for part in (q, k))
    return q, k, v


def _in_turn(x: Tensor, group: int) -> Tensor:
    return x.repeat(1, group, 1, 1)


def _wide(x: Tensor, group: int) -> Tensor:
    return x.repeat_interleave(group, 1)


def _same(x: Tensor) -> Tensor:
    return x


def _viewed(w: Weights, x: Tensor) -> Heads:
    """Heads made by one view of (B, T, width), without a transpose."""
    B, T, _ = x.shape
    D = w.q[0].shape[0] // w.H
    q, k, v = (F.linear(x, *layer).view(B, -1, T, D) for layer in (w.q, w.k, w.v))
    return q, k, v


_ONE_HEAD: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda t: t[:, :1],
    lambda t: t[:, -1:],
    lambda t: t.mean(1, keepdim=True),
)
_ROTATION = r"rotate\(|rotat|rope|cos"
_REPEAT = r"repeat_interleave|repeat|expand|%|//.*\bh\b|torch\.cat|stack|einsum|view|reshape"
_SCALE = r"sqrt|\*\*|scale"
_MASK = r"tril|triu|mask|causal|inf"

# fmt: off
MISTAKES = (
    ExerciseMistake("missing-projection", 4, "a constructor without query, key, value or c_proj",
            "your attention has no {what} projection with a weight of shape {shape}, or none with "
            "a known name; it has {have}",
            "the names are query, key, value and c_proj, as in weeks 1 and 2",
            "make four nn.Linear: query, key, value and c_proj", at=r"Linear|Parameter"),
    ExerciseMistake("no-start", 4, "forward(self, x)",
            "your forward does not take the position of the first token: forward{signature}",
            "a model that generates text with a cache reads only the new token, whose position is "
            "not 0",
            "write `def forward(self, x, start=0):`", at=r"def forward"),
    ExerciseMistake("start-ignored", 4, "cos[:T] with every start",
            "with start = {start} you rotate as if the first token had position {seen}",
            "the output is right here, because only distances count; with older keys from a cache "
            "the output would be wrong", "take the rows cos[start : start + T]", at=_ROTATION),
    ExerciseMistake("start-of-one", 4, "rows from start for q, but from 0 for k",
            "with start = {start} your output changes by {difference}: queries and keys do not "
            "begin at the same position", "only distances count, so the output must stay the same",
            "take the rows cos[start : start + T] for q and for k", at=_ROTATION),
    ExerciseMistake("start-stops", 4, "tables of T rows for every start",
            "with start = {start} and {T} tokens your forward {problem}",
            "the last token has position start + T - 1", "make tables for start + T positions",
            at=_ROTATION),
    ExerciseMistake("values-rotated", 4, "v = rotate(v, cos, sin)",
            "you rotate the values too: the output depends on absolute positions",
            "positions decide which tokens a query looks at; values must not depend on positions",
            "rotate only q and k",
            _turning(lambda q, k, v: (turned(q), turned(k), turned(v))),
            r"\bv\w*\s*=.*rotate\(|rotate\(\s*v|rot",
            (lambda w, x: turned(heads(w, x)[2]),)),
    ExerciseMistake("queries-only", 4, "k is not rotated",
            "you rotate the queries, but not the {K} key heads",
            "the score must depend on the distance: if q and k both turn, only the difference of "
            "their angles counts",
            "rotate k as well", _turning(lambda q, k, v: (turned(q), k, v)), _ROTATION),
    ExerciseMistake("keys-only", 4, "q is not rotated",
            "you rotate the keys, but not the {H} query heads",
            "the score must depend on the distance: if q and k both turn, only the difference of "
            "their angles counts",
            "rotate q as well", _turning(lambda q, k, v: (q, turned(k), v)), _ROTATION),
    ExerciseMistake("never-rotated", 4, "no rotation, or its result is not kept",
            "neither queries nor keys are rotated by their position: your attention of {H} heads "
            "knows no positions",
            "rotate returns a new tensor, and does not change its argument",
            "write q = rotate(q, cos, sin), and the same for k",
            _turning(lambda q, k, v: (q, k, v)), _ROTATION),
    ExerciseMistake("values-for-keys-rotated", 4, "q and v are rotated, or only v",
            "you rotate the values, but not the keys", "a score is computed from q and k",
            "rotate q and k", _turning(lambda q, k, v: (turned(q), k, turned(v)),
                                       lambda q, k, v: (q, k, turned(v))), _ROTATION,),
    ExerciseMistake("rotated-by-head", 4, "rotate before transpose(1, 2)",
            "you rotate by the index of the head, not by the position",
            "rotate expects (B, heads, T, D): positions in the second dimension from the end",
            "transpose(1, 2) first, then rotate",
            _turning(lambda q, k, v: (_over(1)(q), _over(1)(k), v)), _ROTATION,
            (lambda w, x: _over(1)(heads(w, x)[0]),)),
    ExerciseMistake("rotated-before-split", 4, "rotate(self.query(x), ...), then view",
            "you rotate all {C} channels at once, before you split them into heads of {D}",
            "a pair has one channel from each half of a head, and all heads have the same angles",
            "split into heads first, then rotate", (partial(attention, make=_before_split,
                                                            turn=lambda q, k, v: (q, k, v)),),
            _ROTATION, (lambda w, x: turned(F.linear(x, *w.q)),)),
    ExerciseMistake("angles-of-n-embd", 4, "rotary_angles(n_embd, T)",
            "your angles are for {C} channels, but a head has {D} channels",
            "the frequencies depend on the number of channels that are rotated: head_dim",
            "call rotary_angles(self.head_dim, ...)", (partial(
                attention, make=_angles_of_width, turn=lambda q, k, v: (q, k, v)),),
            r"rotary|angles"),
    ExerciseMistake("rotated-twice", 4, "rotate(rotate(q))",
            "you rotate twice: the queries, the keys, or both",
            "the angle must be the position times the frequency; a second rotation doubles it",
            "rotate q and k once each", _turning(
                lambda q, k, v: (turned(turned(q)), turned(turned(k)), v),
                lambda q, k, v: (turned(turned(q)), turned(k), v),
                lambda q, k, v: (turned(q), turned(turned(k)), v)), _ROTATION),
    ExerciseMistake("different-positions", 4, "other rows of the table for k than for q",
            "you rotate the query and the key of a token by different positions, so the scores "
            "depend on wrong distances", "q and k of one token have the same position",
            "use the same cos and sin for q and k", _turning(
                *(lambda q, k, v, by=by: (turned(q), turned(k, by), v) for by in (1, -1, 2, -2)),
                lambda q, k, v: (turned(q), turned(k.flip(2)).flip(2), v)), _ROTATION),
    ExerciseMistake("rotated-apart", 4, "sin for q, -sin for k",
            "queries and keys turn in opposite directions: the score depends on the sum of the "
            "positions",
            "q and k must turn in the same direction, so that only the distance counts",
            "use the same cos and sin for q and k", _turning(
                lambda q, k, v: (turned(q), _back(k), v), lambda q, k, v: (_back(q), turned(k), v)),
            _ROTATION),
    ExerciseMistake("rotated-after", 4, "rotate(weights @ v, cos, sin)",
            "you rotate the results of the {H} heads, so the rotation comes after the scores",
            "the rotation must change the scores, and nothing else",
            "rotate only q and k, before q @ k.transpose",
            (*_weighing(lambda q, k, v: turned(modern.attend(q, k, v))),
             *(partial(attention, turn=lambda q, k, v: (q, k, v),
                       weigh=lambda q, k, v: turned(modern.attend(q, k, v))),)), _ROTATION),
    ExerciseMistake("gain-after-rotation", 4, "q = self.q_norm(rotate(q, cos, sin)), with a gain",
            "you normalise queries or keys after the rotation, with a gain on heads of {D} "
            "channels: the output depends on absolute positions",
            "the gain scales the two channels of a pair differently, so the scores no longer "
            "depend only on distances",
            "normalise first, as Qwen3 does, then rotate; the order does not matter for an RMSNorm "
            "without a gain",
            at=r"norm"),
    ExerciseMistake("heads-without-transpose", 4, "view(B, H, T, D)",
            "you make the {H} heads with one view, without transpose(1, 2): a head gets the "
            "channels of several tokens", "view does not move any numbers",
            "view(B, T, heads, D) first, then transpose(1, 2)", (partial(attention, make=_viewed),
            partial(attention, make=_viewed, merge=lambda w, y: F.linear(
                y.reshape(y.shape[0], y.shape[2], -1), *w.o))), r"view|reshape"),
    ExerciseMistake("kv-width", 5, "nn.Linear(n_embd, n_embd) for the keys",
            "your {what} projection makes {have}; {K} key/value heads of {D} channels "
            "need {wanted}",
            "fewer key/value heads make the cache smaller",
            "make it nn.Linear(n_embd, n_kv_head * head_dim)",
            at=r"Linear"),
    ExerciseMistake("repeated-in-turn", 5, "k.repeat(1, group, 1, 1)",
            "you repeat the {K} key/value heads in turn (0 1 0 1), not side by side (0 0 1 1)",
            "neighbouring query heads form a group: query head h uses key/value head h // (H / K)",
            "use repeat_interleave(group, dim=1)",
            _sharing(lambda k, v, g: (_in_turn(k, g), _in_turn(v, g))), _REPEAT),
    ExerciseMistake("values-not-repeated", 5, "only k = k.repeat_interleave(group, dim=1)",
            "you repeat the {K} heads of the keys, but not those of the values: the attention "
            "weights have {H} heads, and your values still have {K}",
            "each query head needs the values of its key/value head as well as the keys",
            "repeat v as you repeat k", at=_REPEAT),
    ExerciseMistake("values-in-turn", 5, "repeat_interleave for k, repeat for v",
            "you repeat the keys side by side (0 0 1 1), and the values in turn (0 1 0 1)",
            "a head's keys and values belong together", "use repeat_interleave for both",
            _sharing(lambda k, v, g: (_wide(k, g), _in_turn(v, g))), _REPEAT),
    ExerciseMistake("keys-in-turn", 5, "repeat for k, repeat_interleave for v",
            "you repeat the keys in turn (0 1 0 1), and the values side by side (0 0 1 1)",
            "a head's keys and values belong together", "use repeat_interleave for both",
            _sharing(lambda k, v, g: (_in_turn(k, g), _wide(v, g))), _REPEAT),
    ExerciseMistake("one-head-for-all", 5, "k[:, :1].expand(...), or the mean of the heads",
            "all {H} query heads use the same keys and values, though there are {K} key/value "
            "heads",
            "each group of query heads has its own key/value head",
            "use repeat_interleave(group, dim=1)",
            _sharing(*(lambda k, v, g, of=of: (of(k).expand(-1, k.shape[1] * g, -1, -1),
                                               of(v).expand(-1, k.shape[1] * g, -1, -1))
                       for of in _ONE_HEAD)), _REPEAT),
    ExerciseMistake("values-of-one-head", 5, "v[:, :1].expand(...), but k.repeat_interleave",
            "all {H} query heads use the same values, though there are {K} key/value heads",
            "a head's keys and values belong together",
            "repeat v as you repeat k",
            _sharing(*(lambda k, v, g, of=of: (_wide(k, g), of(v).expand_as(_wide(v, g)))
                       for of in _ONE_HEAD)), r"\bv\w*\s*=.*(\[|repeat|expand|mean)|" + _REPEAT),
    ExerciseMistake("keys-of-one-head", 5, "k[:, :1].expand(...), but v.repeat_interleave",
            "all {H} query heads use the same keys, though there are {K} key/value heads",
            "a head's keys and values belong together",
            "repeat k as you repeat v",
            _sharing(*(lambda k, v, g, of=of: (of(k).expand_as(_wide(k, g)), _wide(v, g))
                       for of in _ONE_HEAD)), r"\bk\w*\s*=.*(\[|repeat|expand|mean)|" + _REPEAT),
    ExerciseMistake("scale-of-n-embd", 6, "/ math.sqrt(C)",
            "you divide the scores by sqrt({C}), the root of n_embd; a head has {D} channels",
            "a score is a sum over the channels of one head", "divide by sqrt(head_dim)",
            _weighing(_scaled(lambda D, H, T: (H * D) ** -0.5)), _SCALE),
    ExerciseMistake("no-scale", 6, "q @ k.transpose(-2, -1)",
            "you do not divide the scores by sqrt({D})",
            "the variance of a score grows with the number of channels of a head",
            "divide by sqrt(head_dim)",
            _weighing(_scaled(lambda D, H, T: 1)), r"@|matmul|einsum|bmm|scaled_dot"),
    ExerciseMistake("another-scale", 6, "/ D, * sqrt(D), / sqrt(T)",
            "you scale the scores, but not by 1 / sqrt({D})", "the scale is 1 / sqrt(head_dim)",
            "divide by math.sqrt(head_dim)",
            _weighing(*(map(_scaled, (lambda D, H, T: 1 / D, lambda D, H, T: D**0.5,
                       lambda D, H, T: T**-0.5, lambda D, H, T: H**-0.5, lambda D, H, T: D**-0.25,
                       lambda D, H, T: 1 / (H * D), lambda D, H, T: (D // 2) ** -0.5)))), _SCALE),
    ExerciseMistake("no-mask", 6, "no is_causal=True",
            "your tokens look at later tokens: there is no causal mask",
            "a query looks at itself and at earlier tokens", "mask the scores with -inf, or pass "
            "is_causal=True", _weighing(lambda q, k, v: F.softmax(_scores(q, k), -1) @ v),
            r"softmax|scaled_dot"),
    ExerciseMistake("mask-reversed", 6, "tril for triu",
            "your mask is reversed: tokens look at later tokens, not at earlier ones",
            "a query looks at itself and at earlier tokens", "exchange triu and tril",
            _weighing(lambda q, k, v: F.softmax(
                _scores(q, k) + modern.future(_scores(q, k)).T, -1) @ v), _MASK),
    ExerciseMistake("mask-of-zeros", 6, "scores * mask, masked_fill(mask, 0)",
            "you set the scores of later tokens to 0, but softmax gives a score of 0 some weight",
            "only a score of -inf gets weight 0", "fill with float('-inf') before the softmax",
            _weighing(lambda q, k, v: F.softmax(_scores(q, k).tril(), -1) @ v), _MASK),
    ExerciseMistake("mask-hides-itself", 6, "triu(0) for triu(1)",
            "your mask hides a token from itself: token 0 of {T} sees nothing, and softmax gives "
            "nan",
            "a query looks at itself and at earlier tokens",
            "use triu(1), which begins above the diagonal",
            _weighing(lambda q, k, v: F.softmax(_scores(q, k).masked_fill(
                torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(), -math.inf), -1) @ v),
            _MASK),
    ExerciseMistake("mask-after-softmax", 6, "weights.masked_fill(future, 0)",
            "you mask after the softmax: the weights of a query no longer sum to 1",
            "the weights of the tokens that a query can see must sum to 1",
            "mask the scores before the softmax",
            _weighing(lambda q, k, v: F.softmax(_scores(q, k), -1).tril() @ v), _MASK),
    ExerciseMistake("softmax-over-queries", 6, "softmax(dim=-2), softmax(dim=1)",
            "your softmax does not go over the keys", "the weights of one query sum to 1",
            "use dim=-1", _weighing(_softmax_over(-2), _softmax_over(1), _softmax_over(0)),
            r"softmax"),
    ExerciseMistake("keys-for-values", 6, "weights @ k",
            "you sum the keys instead of the values",
            "a query gets values; keys only decide how much of each",
            "multiply the weights with v", _weighing(lambda q, k, v: modern.attend(q, k, k)),
            r"@|matmul|einsum|bmm|scaled_dot"),
    ExerciseMistake("merged-without-transpose", 6, "reshape(B, T, C) of (B, H, T, D)",
            "you put the {H} heads together without transpose(1, 2)",
            "the channels of one token must stand side by side", "transpose(1, 2), then reshape",
            _merging(lambda w, y: F.linear(y.reshape(y.shape[0], y.shape[2], -1), *w.o)),
            r"reshape|flatten|view"),
    ExerciseMistake("no-output-projection", 6, "return mixed",
            "you do not use c_proj", "the last projection mixes the results of the heads",
            "return self.c_proj(...)", _merging(lambda w, y: modern.merge(y)), r"return"),
    ExerciseMistake("residual-inside", 6, "return x + self.c_proj(...)",
            "you add x to the output", "the block around the attention adds x",
            "return only self.c_proj(...)", (lambda w, x: x + attention(w, x),), r"return"),
    ExerciseMistake("stops-in-bfloat16", 6, "tables or masks in float32",
            "with weights and x in {dtype} your forward {stops}",
            "gptcli can train in bfloat16: q, k, v and what is added to the scores must have one "
            "dtype", "let rotate return the dtype of x, and convert masks with .to(x)",
            at=r"softmax|@|scaled_dot|return"),
    *general_mistakes(6),
)
# fmt: on


def _back(x: Tensor) -> Tensor:
    angles = modern.angles_of(x.shape[-1], x.shape[-2])
    return modern.rotate(x, angles.cos(), -angles.sin())


def start(learner: LearnerModule) -> Iterator[CheckFailed]:
    """Yield the fault of a constructor that gives a key or value projection a wrong width."""
    for size in SIZES:
        w = weights(learner, learner.construct(size), size)
        wanted = size.K * w.D
        for part in "kv":
            have = getattr(w, part)[0].shape[0]
            if have != wanted:
                named = rf"self\.(w?_?{part}|{WORDS[part]})\w*\s*=|self\.\w*kv\w*\s*="
                yield learner.mistake(
                    "kv-width", within=learner.constructor, what=WORDS[part],
                    have=counted(have, "channel"), wanted=wanted, K=size.K, D=w.D,
                    line=learner.source.find(named, learner.constructor),
                )  # fmt: skip
                return


def draw(size: Size, generator: torch.Generator) -> Tensor:
    """A random input with a standard deviation of 1.5."""
    shape = (size.B, size.T, size.C)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * 1.5


def train(learner: LearnerModule) -> Iterator[CheckFailed | tuple[str, str]]:
    """Yield nothing, because the exercise has no dropout."""
    return iter(())


SIZES = (
    GroupedSize(2, 5, 24, 6, K=2),  # D 4, groups of 3
    GroupedSize(3, 4, 32, 4, seed=1, K=2),  # D 8, groups of 2
    GroupedSize(2, 7, 18, 3, bias=False, seed=2, K=3),  # D 6, a key/value head for each query head
    GroupedSize(1, 6, 16, 4, seed=3, K=1),  # D 4, one key/value head for all
)
LESSON = ModuleLesson(
    "modern", STEPS, SIZES, MISTAKES, weights, start, steps, draw, train, first_wrong, unseen,
    seen=seen,
)  # fmt: skip
