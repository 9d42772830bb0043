"""Test `length`, `fits` and `clear` of a learner's cache: steps 3 and 4 of the exercise."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from gptcli.course.exercises.cache_learner import LearnerCache
from gptcli.course.exercises.cache_mistakes import MISTAKES
from gptcli.course.exercises.cache_storing import (
    append,
    kind_of,
    pair_of,
    pieces_of,
    probe_sizes,
    same,
)
from gptcli.course.lesson import CheckFailed
from gptcli.course.sandbox.learner_file import in_words
from gptcli.plurals import counted


def check_length(learner: LearnerCache) -> None:
    """Raise CheckFailed unless `length` is the number of stored tokens.

    Sets `learner.length_is_right` if `length` is right after each append."""
    cache = learner.new(probe_sizes())
    own = learner.needs_cache()
    within = learner.lines("length")
    pieces = pieces_of(4, 7, 1)
    if not own.has_length(cache):
        names = [name for name in vars(own.cls) if not name.startswith("_")]
        raise learner.missing(3, "method", "length", names)
    empty: Any = None
    problem = ""
    try:
        empty = own.length(cache)
        if empty is None or int(empty) != 0:
            problem = f"is {empty}"
    except NotImplementedError as error:
        raise learner.stopped(error, "length", 3) from error
    except (Exception, SystemExit) as error:
        problem = f"stops: {in_words(error)}"
    got, totals = [], []
    for number, piece in enumerate(pieces, 1):
        append(learner, cache, piece)
        value = learner.method(3, "length", lambda: own.length(cache))
        if not isinstance(value, int) and not (isinstance(value, Tensor) and value.numel() == 1):
            raise learner.failed_at(
                3, "no-number", f"your length is {kind_of(value)}, not a number"
                + learner.source.quote(learner.source.find(r"\breturn\b", within)),
                "what does the last line of length return?",
            )  # fmt: skip
        got.append(int(value))
        totals.append(sum(each[0].shape[2] for each in pieces[:number]))
    if got == totals:
        learner.length_is_right = True
        if problem:
            raise learner.mistake("length-of-nothing", problem=problem, within=within)
        return
    last: dict[str, Any] = {"got": got[-1], "S": totals[-1]}
    counts = [piece[0].shape[2] for piece in pieces]
    for dim, (what, size) in enumerate((("texts", 2), ("heads", 3), ("", 0), ("channels", 5))):
        if got == [size] * 3 and size:
            raise learner.mistake(
                "length-of-another-dimension", what=f"{what}, dim {dim}", within=within, **last
            )
    if got == [0, 0, 0]:
        raise learner.mistake("length-always-zero", S=totals[-1], within=within)
    if got == [1, 2, 3]:
        raise learner.mistake("length-counts-calls", within=learner.cache_lines, **last)
    if got == counts:
        raise learner.mistake("length-of-newest", within=learner.cache_lines, **last)
    if {a - b for a, b in zip(got, totals, strict=True)} in ({1}, {-1}):
        raise learner.mistake("length-off-by-one", within=within, **last)
    raise learner.failed_at(
        3, "wrong-result", f"your length is {got[-1]} after {totals[-1]} tokens"
        + learner.source.quote(learner.source.find(r"\breturn\b", within)),
    )  # fmt: skip


def check_window(learner: LearnerCache) -> None:
    """Raise CheckFailed if `fits` is wrong, or if `clear` is missing or leaves tokens in the cache.

    Without `fits`, append must raise an error for more than block_size tokens."""
    own = learner.needs_cache()
    if own.names["fits"] is None:
        _check_overflow(learner)
    else:
        _check_fits(learner, own.names["fits"])
    if own.names["clear"] is None:
        names = [name for name in vars(own.cls) if not name.startswith("_")]
        raise learner.missing(4, "method", "clear", names)
    cache = learner.new(probe_sizes())
    append(learner, cache, pieces_of(4)[0])
    learner.method(4, "clear", lambda: own.clear(cache))
    within = learner.lines("clear")
    piece = pieces_of(3)[0]
    try:
        got = append(learner, cache, piece)
    except CheckFailed as failed:
        problem = "cannot store the next token: " + failed.message.rpartition(": ")[2]
        raise learner.mistake("clear-incomplete", problem=problem, within=within) from failed
    length = learner.method(3, "length", lambda: own.length(cache))
    pair = pair_of(got)
    for number, name in enumerate(("keys", "values")):
        if pair is not None and not same(pair[number], piece[number]):
            more = pair[number].shape[2] - piece[number].shape[2]
            problem = f"still has {counted(more, name[:-1])} of the old tokens"
            raise learner.mistake("clear-incomplete", problem=problem, within=within)
    if int(length) != 3:
        problem = f"counts {counted(int(length), 'token')} although only 3 new ones are stored"
        raise learner.mistake("clear-incomplete", problem=problem, within=within)


def _check_fits(learner: LearnerCache, name: str) -> None:
    W = 8
    asked, got = [], []
    for stored in (0, 5, 8):
        cache = learner.new(probe_sizes(W))
        if stored:
            append(learner, cache, pieces_of(stored)[0])
        for T in (1, 3, 4, 8, 9):
            value = learner.method(4, f"{name}({T})", partial(getattr(cache, name), T))
            asked.append((stored, T, W))
            got.append(None if value is None else bool(value))
    wanted = [stored + T <= W for stored, T, W in asked]
    if got == wanted:
        return
    i = next(i for i, (a, b) in enumerate(zip(got, wanted, strict=True)) if a != b)
    stored, T, _ = asked[i]
    facts: dict[str, Any] = {"length": stored, "T": T, "W": W, "got": got[i]}
    facts |= {"what": "fits", "count": stored + T}
    for mistake in MISTAKES:
        if mistake.step == 4 and any(
            [form(*one) for one in asked] == got for form in mistake.forms
        ):
            raise learner.mistake(mistake.slug, within=learner.lines("fits"), **facts)
    raise learner.failed_at(
        4, "wrong-result",
        f"with {stored} tokens stored and a block_size of {W}, your fits({T}) is {got[i]}"
        + learner.source.quote(learner.source.find(r"\breturn\b", learner.lines("fits"))),
    )  # fmt: skip


def _check_overflow(learner: LearnerCache) -> None:
    """Raise CheckFailed if append takes more than block_size tokens without an error."""
    W = 8
    own = learner.needs_cache()
    cache = learner.new(probe_sizes(W))
    (first, second) = pieces_of(W, 2)
    append(learner, cache, first)
    try:
        got = pair_of(own.append(cache, *second))
    except (Exception, SystemExit):
        return
    if got is not None and got[0].dim() == 4 and got[0].shape[2] <= W:
        raise learner.mistake(
            "drops-the-oldest", W=W, count=W + 2, found=got[0].shape[2],
            within=learner.lines("append"),
        )  # fmt: skip
    names = [name for name in vars(own.cls) if not name.startswith("_")]
    raise learner.missing(4, "method", "fits", names)
