"""The lesson on the key/value cache: compare a learner's cache and attention with the reference.

Dimensions: B batch, T new tokens, S tokens in all, C channels (n_embd), N tokens of a text.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.course.exercises.cache import Weights, any_attention
from gptcli.course.exercises.cache_learner import LearnerCache, Size
from gptcli.course.exercises.cache_mistakes import MISTAKES, STEPS
from gptcli.course.exercises.cache_outputs import Seen, half_written, named, random
from gptcli.course.exercises.cache_storing import check_store
from gptcli.course.exercises.cache_window import check_length, check_window
from gptcli.course.exercises.past_learner import PastLearner, with_past
from gptcli.course.exercises.past_lesson import check_past
from gptcli.course.lesson import CheckFailed, Lesson, Say
from gptcli.course.report import Check
from gptcli.course.sandbox.learner_file import LearnerFile
from gptcli.course.sandbox.running import run_file

SIZES = (
    Size(2, 3, 4, (6, 1, 3, 1)),
    Size(1, 2, 5, (1, 1, 1, 1, 1), bias=False),
    Size(3, 1, 7, (4, 4, 2), block_size=10),
    Size(4, 4, 2, (2, 5), block_size=8),
)


class CacheLesson(Lesson[LearnerCache | PastLearner]):
    """The lesson on a key/value cache: a class that stores, and an attention that reads.

    If a file has no cache class, its attention can get the earlier keys and values as an argument,
    or keep them itself: see past_call.py."""

    name = "cache"
    steps = STEPS
    mistakes = MISTAKES

    def load(self, file: LearnerFile, say: Say) -> LearnerCache | PastLearner:
        """Run the file and return its classes, ready to be tried."""
        module = run_file(file)
        return with_past(file, module, say) or LearnerCache(file, module, say)

    def check(self, learner: LearnerCache | PastLearner, done: list[Check]) -> str:
        """Check the cache alone, then the attention with the cache.

        For a PastLearner, call check_past instead."""
        if isinstance(learner, PastLearner):
            return check_past(learner, done)
        learner.needs_cache()
        fault: CheckFailed | None = None
        try:
            for probe in (check_store, check_length, check_window):
                probe(learner)
        except CheckFailed as failed:
            fault = failed
            if failed.mistake in ("not-implemented", "missing") and (failed.step or 1) < 3:
                raise
        error = 0.0
        try:
            with torch.no_grad():
                error = _equality(learner)
        except CheckFailed as failed:
            if fault is None or (failed.step or 1) < (fault.step or 1):
                fault = failed
        else:
            # A cache may have another layout than (B, H, T, D), if the attention works with it.
            if fault is not None and fault.step in (1, 2) and fault.mistake in _OF_LAYOUT:
                fault = None
        if fault is not None:
            raise fault
        verdict = f"the same as recomputation, largest error {error:.1g}"
        done += self.all_steps(verdict)
        return verdict


_OF_LAYOUT = {"wrong-dimension", "raises", "wrong-result", "tokens-lost"}


def _equality(learner: LearnerCache) -> float:
    """Check the learner's code in every size of SIZES, and return the largest error of an output.

    An error is the largest difference between an output and the recomputed output. Raises
    CheckFailed if the learner's code has a mistake."""
    largest = 0.0
    for size in SIZES:
        module = learner.module(size)
        weights = learner.weights(module, size)
        generator = torch.Generator().manual_seed(7 + size.B)
        text = torch.randn(size.B, size.N, size.C, generator=generator)
        seen = _read(learner, module, weights, text, size)
        if not all(one.right for one in seen):
            fault = random(learner, partial(_whole, learner, module, text))
            if fault is not None:
                raise fault
        if any(one.failed and one.failed.mistake == "not-implemented" for one in seen):
            raise half_written(learner, weights, text, seen)
        if not all(one.right for one in seen):
            raise named(learner, weights, text, seen)
        largest = max(largest, *(one.error for one in seen))
    _two_texts(learner)
    _refuses(learner)
    return largest


def _read(
    learner: LearnerCache, module: nn.Module, weights: Weights, text: Tensor, size: Size
) -> list[Seen]:
    """Run forward on the whole text without a cache, then on pieces of the text with a cache.

    Returns one Seen for each call of forward."""
    seen = [Seen(0, size.N, any_attention(weights, text, 0, size.N))]
    cache = learner.new(size.cache_sizes())
    start = 0
    for count in size.pieces:
        seen.append(Seen(start, count, any_attention(weights, text, start, count)))
        start += count
    for number, one in enumerate(seen):
        piece = text[:, one.start : one.start + one.count].clone()
        try:
            one.got = learner.forward(module, piece, cache if number else None)
        except CheckFailed as failed:
            unwritten = failed.mistake == "not-implemented" and failed.step != 6
            if unwritten or (failed.step or 6) < 5:
                raise
            one.failed = failed
        one.trace = learner.trace
        if number:
            _stored(learner, cache, one)
    return seen


def _whole(learner: LearnerCache, module: nn.Module, text: Tensor) -> Tensor | None:
    """The output for the whole text without a cache, or None if forward fails."""
    try:
        return learner.forward(module, text.clone())
    except CheckFailed:
        return None


def _stored(learner: LearnerCache, cache: Any, one: Seen) -> None:
    """Raise CheckFailed if forward stored no tokens, or if it stored the first piece twice."""
    if one.failed is not None or not learner.length_is_right:
        return
    length = learner.length(cache)
    total = one.start + one.count
    if length == 0 and total:
        raise learner.mistake("not-stored", T=total, found=length, within=learner.forward_lines())
    if length == 2 * total and one.start == 0:
        raise learner.mistake(
            "appended-twice", T=total, found=length, within=learner.forward_lines()
        )


def _two_texts(learner: LearnerCache) -> None:
    """Raise CheckFailed if one text changes another text's output, or if `clear` leaves tokens."""
    size = SIZES[0]
    module = learner.module(size)
    weights = learner.weights(module, size)
    generator = torch.Generator().manual_seed(5)
    texts = [torch.randn(size.B, size.N, size.C, generator=generator) for _ in range(2)]
    caches = [learner.new(size.cache_sizes()) for _ in texts]

    def part(number: int, cache: Any, start: int, count: int, when: str) -> None:
        text = texts[number]
        wanted = any_attention(weights, text, start, count)
        piece = text[:, start : start + count].clone()
        one = Seen(start, count, wanted)
        try:
            one.got = learner.forward(module, piece, cache)
        except CheckFailed as failed:
            if failed.mistake != "raises":
                raise
        if not one.right:
            raise learner.mistake(
                "kept-in-module", one.evidence(), within=learner.forward_lines(), what=when
            )

    part(0, caches[0], 0, 5, "the outputs are wrong for a first text in a new module")
    part(1, caches[1], 0, 4, "the outputs are wrong for a second text with its own cache")
    part(0, caches[0], 5, 1, "the outputs are wrong if the module has read another text in between")
    part(1, None, 0, size.N, "forward(x) without a cache is wrong after a forward with a cache")
    part(1, caches[1], 4, 3, "the outputs are wrong after a forward without a cache")
    assert learner.cache is not None
    if learner.cache.names["clear"] is None:
        return
    own = learner.cache
    learner.method(4, "clear", lambda: own.clear(caches[0]))
    part(1, caches[0], 0, 3, "the outputs are wrong for a text in a cleared cache")


def _refuses(learner: LearnerCache) -> None:
    """Raise CheckFailed if forward takes more than block_size tokens without an exception."""
    size = SIZES[3]
    module = learner.module(size)
    cache = learner.new(size.cache_sizes())
    learner.forward(module, torch.zeros(size.B, size.block_size, size.C), cache)
    more = torch.zeros(size.B, 2, size.C)
    try:
        learner.forward(module, more, cache)
    except CheckFailed as failed:
        if failed.mistake == "raises":
            return
        raise
    raise learner.mistake(
        "never-full", W=size.block_size, what="forward", count=size.block_size + 2,
        within=learner.forward_lines(),
    )  # fmt: skip
