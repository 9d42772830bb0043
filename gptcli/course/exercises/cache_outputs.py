"""Compare the outputs of a learner's cached attention with recomputation, and name the mistake.

Dimensions: B batch, T new tokens, S tokens in all, C channels (n_embd), N tokens of a text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gptcli.course.exercises.cache import Weights, any_weights
from gptcli.course.exercises.cache_learner import CacheExplainer
from gptcli.course.exercises.cache_mistakes import MISTAKES
from gptcli.course.exercises.learner_module import close
from gptcli.course.exercises.tensor_trace import TensorTrace
from gptcli.course.lesson import TOLERANCE, CheckFailed
from gptcli.plurals import counted


@dataclass
class Seen:
    """What forward returned for `count` tokens from position `start` on, or why it failed."""

    start: int
    count: int
    wanted: Tensor
    got: Tensor | None = None
    failed: CheckFailed | None = None
    trace: TensorTrace | None = None

    @property
    def error(self) -> float:
        """The largest difference from recomputation; infinite for NaN, wrong shape or no output."""
        if self.got is None or self.got.shape != self.wanted.shape:
            return float("inf")
        value = float((self.got - self.wanted).abs().max())
        return value if value == value else float("inf")

    @property
    def right(self) -> bool:
        """Whether the output equals that of recomputation."""
        return self.error <= TOLERANCE

    def evidence(self) -> str:
        """The end of a message: how many tokens were read, and how far the output is wrong."""
        by = f"by up to {self.error:.2g}" if self.error < float("inf") else "by NaN or infinity"
        new = f"{self.count} new token{'s' * (self.count > 1)}"
        if self.got is None:
            return f" ({new} after {self.start}: forward stops)"
        return f" ({new} after {self.start}: the output differs from recomputation {by})"


def random(learner: CacheExplainer, call: Callable[[], Tensor | None]) -> CheckFailed | None:
    """The CheckFailed if the output of `call` depends on torch's random numbers; else None.

    Such an output cannot be compared with the output of another call."""
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(call())
    one, same, other = outputs
    if one is None or same is None or other is None or not torch.equal(one, same):
        return None  # forward fails, or the module keeps something between calls
    if one.shape != other.shape or not (difference := float((one - other).abs().max())) > 0:
        return None
    return learner.mistake(
        "dropout-in-evaluation", within=learner.forward_lines(), difference=f"{difference:.3g}"
    )


def named(learner: CacheExplainer, w: Weights, text: Tensor, seen: list[Seen]) -> CheckFailed:
    """The CheckFailed for a known mistake that explains the wrong calls in `seen`.

    If no known mistake explains them, the first wrong call decides. If this call failed, the result
    is its CheckFailed. If it returned an output, the result is "wrong-result" in step 5 or 6."""
    first = next(one for one in seen if not one.right)
    if first.trace is not None:
        learner.ran = first.trace.lines
    tried = [one for one in seen if one.got is not None]
    lines = learner.forward_lines()
    for strict in (True, False):
        for mistake, form in _FORMS:
            if _explains(form, w, text, tried, strict):
                wrong = next((one for one in tried if not one.right), first)
                slug = mistake.slug
                if slug == "cache-not-read" and _has_scores(wrong, wrong.count):
                    # forward has scores for the stored keys, so it reads the cache, but a mask
                    # hides the stored tokens
                    slug = "mask-hides-stored"
                return learner.mistake(slug, wrong.evidence(), within=lines, **_facts(wrong, text))
    for one in seen:
        found = _half_read(learner, one) or _square_mask(learner, one)
        if found is None and not one.right:
            found = _masked_wrongly(learner, w, text, one)
        if found is not None:
            return found
    if first.failed is not None:
        return first.failed
    step = 6 if all(_mask_is_right(one, w, text) for one in seen if not one.right) else 5
    at = r"softmax|@ *v\b|reshape|view\(" if step == 6 else r"tri[ul]|mask|\binf\b|softmax"
    # If the weights are right, the mistake comes after the softmax.
    softmax = learner.source.find("softmax", lines)
    if step == 6 and softmax is not None and any(_weights_right(o, w, text) for o in seen):
        after = {line for line in lines if line > softmax}
        lines = after if learner.source.find(r"@|matmul|einsum|reshape|view", after) else lines
        at = r"@|matmul|einsum|reshape|view\("
    return learner.failed_at(
        step,
        "wrong-result",
        "your attention gives a wrong result"
        + (" without a cache" if first is seen[0] else " with the cache")
        + learner.source.quote(learner.source.find(at, lines))
        + first.evidence(),
        "take one new token after 6 stored ones: which keys does it look at, and with which "
        "weights?",
    )


def _facts(one: Seen, text: Tensor) -> dict[str, Any]:
    """What the messages about a call of forward mention.

    A call that reads the whole text has no cache. All other calls read a piece of the text."""
    when = "" if one.count == text.shape[1] else " with a cache"
    return {"T": one.count, "S": one.start + one.count, "when": when}


def _weights_right(one: Seen, w: Weights, text: Tensor) -> bool:
    """Whether the output is wrong, but the trace has the right attention weights."""
    if one.right or one.trace is None:
        return False
    return one.trace.has(any_weights(w, text, one.start, one.count)[0])


def _mask_is_right(one: Seen, w: Weights, text: Tensor) -> bool:
    """Whether the trace has the right masked scores or the right attention weights."""
    weights, _ = any_weights(w, text, one.start, one.count)
    for operation in one.trace.operations if one.trace is not None else ():
        for tensor in operation.results:
            if tensor.numel() == weights.numel() and tensor.shape[-1] == weights.shape[-1]:
                mine = tensor.reshape(weights.shape)
                if close(mine, weights) or close(mine.softmax(-1), weights):
                    return True
    return False


def _half_read(learner: CacheExplainer, one: Seen) -> CheckFailed | None:
    """The CheckFailed if forward reads only keys, or only values, from the cache; else None."""
    T, S = one.count, one.start + one.count
    failed = one.failed
    if failed is None or failed.mistake != "raises" or failed.step != 6 or T == S:
        return None
    error = failed.message.partition("Error: ")[2]
    numbers = {int(number) for number in re.findall(r"\d+", error)}
    if not numbers >= {T, S}:
        return None
    keys = _has_scores(one, T)
    if not keys and not any(
        t.dim() >= 3 and t.shape[-2:] == (T, T)
        for op in (one.trace.operations if one.trace is not None else ())
        for t in op.results
    ):
        return None
    which = ("keys", "values") if keys else ("values", "keys")
    return learner.mistake(
        "half-read", f" ({error})", within=learner.forward_lines(),
        T=counted(T, "new token"), S=S, one=which[0], other=which[1],
    )  # fmt: skip


def _masked_wrongly(
    learner: CacheExplainer, w: Weights, text: Tensor, one: Seen
) -> CheckFailed | None:
    """The CheckFailed for a mistake of step 5 that the traced attention weights show, or None.

    This also finds the mistake if step 6 is wrong too. Then no single mistake explains the
    outputs."""
    if one.trace is None:
        return None
    right, _ = any_weights(w, text, one.start, one.count)
    if one.trace.has(right):
        return None
    for mistake in MISTAKES:
        for form in mistake.forms if mistake.step == 5 else ():
            assert isinstance(form, partial)
            weights, _ = any_weights(w, text, one.start, one.count, **form.keywords)
            if one.trace.has(weights):
                return learner.mistake(
                    mistake.slug,
                    one.evidence(),
                    within=learner.forward_lines(),
                    **_facts(one, text),
                )
    return None


def half_written(
    learner: CacheExplainer, w: Weights, text: Tensor, seen: list[Seen]
) -> CheckFailed:
    """The CheckFailed for a file whose step 6 is still to be written.

    It names an earlier step if the scores are wrong, else step 6."""
    for one in seen:
        if one.failed is not None and one.failed.mistake != "not-implemented":
            return _square_mask(learner, one) or one.failed
    last = next(one.failed for one in seen if one.failed is not None)
    if all(_shows_weights(one, w, text, {}) for one in seen):
        return last
    for strict in (True, False):
        for mistake, form in _FORMS:
            parts = form.keywords
            if mistake.step < 6 and "merge" not in parts:
                wrong = [one for one in seen if not _shows_weights(one, w, text, {})]
                if all(_shows_weights(one, w, text, parts) for one in (seen if strict else wrong)):
                    one = wrong[0]
                    new = f"{one.count} new token{'s' * (one.count > 1)} after {one.start}"
                    return learner.mistake(
                        mistake.slug,
                        f" ({new})",
                        within=learner.forward_lines(),
                        **_facts(one, text),
                    )
    return learner.failed_at(
        5,
        "not-implemented",
        "step 5, mask, is missing or wrong: its result is not computed before step 6, "
        "which is still to be written",
    )


def _shows_weights(one: Seen, w: Weights, text: Tensor, parts: dict[str, Any]) -> bool:
    """Whether the last scores in the trace, or their softmax, equal any_weights(..., **parts)."""
    try:
        weights, _ = any_weights(w, text, one.start, one.count, **parts)
    except RuntimeError:  # `parts` imitate a mistake that makes shapes clash
        return False
    operations = one.trace.operations if one.trace is not None else ()
    scores = [
        tensor.reshape(weights.shape)
        for operation in operations
        for tensor in operation.results
        if tensor.numel() == weights.numel() and tensor.shape[-2:] == weights.shape[-2:]
    ]
    return bool(scores) and any(
        close(mine, weights) for mine in (scores[-1], scores[-1].softmax(-1))
    )


_FORMS = [
    (m, form) for m in MISTAKES for form in m.forms if m.step != 4 and isinstance(form, partial)
]


def _explains(
    form: Callable[..., Tensor], w: Weights, text: Tensor, tried: list[Seen], strict: bool
) -> bool:
    """Whether `form`, which imitates a known mistake, gives the learner's outputs.

    At least one output must be wrong. `form` must give all outputs, with two exceptions. If the
    first output is right, it is ignored, because it is computed without a cache. Without `strict`,
    all right outputs are ignored, because one branch of the learner's code can be correct."""
    some = False
    for one in tried:
        assert one.got is not None
        try:
            wanted = form(w, text, one.start, one.count)
        except RuntimeError:  # with this mistake, the shapes do not fit
            return False
        if not close(one.got, wanted):
            # The code without a cache can be right although the code with a cache is wrong.
            if one.right and (one is tried[0] or not strict):
                continue
            return False
        some = some or not one.right
    return some


def _square_mask(learner: CacheExplainer, one: Seen) -> CheckFailed | None:
    """The CheckFailed if forward failed because its mask is T x T or S x S; else None."""
    T, S = one.count, one.start + one.count
    if one.failed is None or one.failed.step not in (5, 6) or T == S:
        return None
    text = one.failed.message
    numbers = {int(number) for number in re.findall(r"\((\d+)\)", text.rpartition(": ")[2])}
    clash = numbers and numbers <= {T, S} and re.search(r"mask|tri[ul]|inf", text)
    if not clash and not _has_scores(one, S):
        return None
    line = re.search(r"line (\d+)", text) if clash else None
    return learner.mistake(
        "mask-is-square", f" ({text.rpartition(': ')[2]})", line=int(line[1]) if line else None,
        within=learner.forward_lines(), T=counted(T, "query", "queries"), S=S,
    )  # fmt: skip


def _has_scores(one: Seen, rows: int) -> bool:
    """Whether forward computed scores of `rows` queries and all keys, or a tensor of this shape."""
    operations = one.trace.operations if one.trace is not None else ()
    sizes = (rows, one.start + one.count)
    return any(t.dim() >= 3 and t.shape[-2:] == sizes for op in operations for t in op.results)
