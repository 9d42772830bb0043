"""The lesson on what makes a GPT modern: RMSNorm, rotary positions, grouped-query attention."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gptcli.course.attention.conventions.call import call_named
from gptcli.course.exercises import modern_attention, modern_norm
from gptcli.course.exercises.double_precision import DoublePrecision
from gptcli.course.exercises.learner_module import close, compare_gradients, compare_output
from gptcli.course.exercises.modern import turned
from gptcli.course.exercises.modern_learner import ATTENTION, NORM, LearnerModern
from gptcli.course.exercises.modern_mistakes import MISTAKES, STEPS
from gptcli.course.exercises.modern_modules import GroupedSize, ModernModule, ranked_line
from gptcli.course.exercises.modern_qk_norm import WITHOUT
from gptcli.course.exercises.modern_rotation import check_angles, check_rotation
from gptcli.course.exercises.tensor_trace import TensorTrace
from gptcli.course.exercises.watch import lines_run
from gptcli.course.lesson import CheckFailed, Lesson, Say
from gptcli.course.report import Check
from gptcli.course.sandbox.learner_file import LearnerFile, in_words

_LATER = 3  # the position of the first token in the test of step 4


class ModernLesson(Lesson[LearnerModern]):
    """The lesson on RMSNorm, rotary positions and grouped-query attention."""

    name = "modern"
    steps = STEPS
    mistakes = (*modern_norm.MISTAKES, *MISTAKES, *modern_attention.MISTAKES)

    def load(self, file: LearnerFile, say: Say) -> LearnerModern:
        """Run the file and return its parts, ready to be tried."""
        return LearnerModern(file, say)

    def check(self, learner: LearnerModern, done: list[Check]) -> str:
        """Compare each part with the reference."""
        notes = _norm(learner)
        check_angles(learner)
        check_rotation(learner)
        notes.append(("QK norm", _attention(learner)))
        verdict = "the same as the reference in all six steps"
        done += self.all_steps(verdict)
        done += [Check(name, True, detail, note=True) for name, detail in notes]
        return verdict


def _norm(learner: LearnerModern) -> list[tuple[str, str]]:
    """Check step 1 (RMSNorm). Return the notes for the report."""
    norm = learner.class_of(1, NORM, modern_norm.LESSON)
    done: list[Check] = []
    norm.lesson.check(norm, done)
    got = norm.in_dtype(modern_norm.SIZES[0], torch.bfloat16)
    does = f"stops: {in_words(got)}" if isinstance(got, BaseException) else f"returns {got.dtype}"
    if does != f"returns {torch.bfloat16}":
        raise norm.failed_at(
            1,
            "dtype-changed",
            f"with weights and x in torch.bfloat16 your RMSNorm {does}"
            + norm.source.quote(norm.source.find(r"return", norm.methods)),
            "which line changes the dtype of x, and which line should change it back?",
        )
    return [(check.name, check.detail) for check in done if check.note]


def _attention(learner: LearnerModern) -> str:
    """Check steps 4 to 6, and return the note on the norm of queries and keys."""
    whole = learner.class_of(4, ATTENTION, modern_attention.LESSON)
    lesson = whole.lesson
    whole.needs_forward()
    faults = list(modern_attention.start(whole))
    if faults:  # if K = H, forward may still work, and show a mistake of step 4
        alone = replace(lesson, sizes=tuple(s for s in lesson.sizes if _each_by_itself(s)))
        try:
            compare_output(learner.class_of(4, ATTENTION, alone))
        except CheckFailed as failed:
            if failed.step == 4:
                raise
        raise faults[0]
    failure = None
    try:
        compare_output(whole)
    except CheckFailed as failed:
        failure = _with_equal_sizes(learner, failed) or _shown(whole, failed) or failed
    if failure is None or (failure.step or 0) > 4:
        unwritten = failure is not None and failure.mistake == "not-implemented"
        _start(whole, stops=failure is None, unwritten=unwritten)
    if failure is not None:
        cut = compare_gradients(whole, right=failure.mistake == "input-changed")
        raise min([failure, *cut], key=lambda failed: failed.step or 1)
    if cut := compare_gradients(whole, right=True):
        raise cut[0]
    _bfloat16(whole)
    return WITHOUT if whole.norm is None else whole.norm.words()


def _with_equal_sizes(learner: LearnerModern, failed: CheckFailed) -> CheckFailed | None:
    """Find the mistake of step 4 that made shapes clash, or return None.

    With H = T, shapes do not clash, so the output shows the mistake."""
    if failed.mistake != "raises" or failed.step != 4:
        return None
    size = GroupedSize(2, 4, 32, 4, seed=1, K=4)
    lesson = replace(
        modern_attention.LESSON,
        sizes=(size,),
        mistakes=tuple(m for m in modern_attention.MISTAKES if m.step == 4 or not m.forms),
    )
    try:
        compare_output(learner.class_of(4, ATTENTION, lesson))
    except CheckFailed as same:
        if same.step == 4 and same.mistake in {m.slug for m in lesson.mistakes}:
            return CheckFailed(same.mistake, f"{same} ({failed})", same.hints, 4)
    return None


def _shown(whole: ModernModule, failed: CheckFailed) -> CheckFailed | None:
    """The CheckFailed for a known mistake that the trace shows, or None.

    None if `failed` already names a known mistake. The mistake must be of the same step as
    `failed`, except if forward stops and the trace shows that the values are not repeated."""
    if failed.mistake not in ("wrong-output", "not-finite", "not-implemented", "raises"):
        return None
    for size in whole.lesson.sizes:
        module, w, x = whole.filled(size)
        trace = TensorTrace(whole.file.path, module)
        with contextlib.suppress(CheckFailed), torch.no_grad():
            whole.run(module, w, x, trace)
        slug = modern_attention.shown(trace, w, x)
        if slug is not None:
            found = whole.mistake_in_forward(slug, **whole.facts(x))
            earlier = slug == "values-not-repeated" and failed.mistake == "raises"
            return found if earlier or found.step == failed.step else None
    return None


def _each_by_itself(size: Any) -> bool:
    return isinstance(size, GroupedSize) and size.K == size.H


def _start(whole: ModernModule, *, stops: bool, unwritten: bool = False) -> None:
    """Check step 4, the argument `start`. q and k depend on `start`, but the output does not.

    With `stops`, every exception of forward is a fault of step 4. With `unwritten`, every exception
    except NotImplementedError is a fault of step 4. With neither of the two arguments, exceptions
    are ignored, because a later step can raise them."""
    size = modern_attention.SIZES[0]
    module, w, x = whole.filled(size)
    forward = inspect.signature(type(module).forward)
    takes = [p for p in forward.parameters.values() if p.name != "self"]
    if len(takes) < 2:
        raise whole.mistake("no-start", within=whole.methods, signature=str(forward))
    second = takes[1]
    named = "start" in forward.parameters and second.name != "start"
    by_name = named or second.kind in (second.KEYWORD_ONLY, second.VAR_KEYWORD)
    name = "start" if named or second.kind == second.VAR_KEYWORD else second.name

    def later() -> Any:
        with torch.no_grad(), DoublePrecision():
            return call_named(module, (x,), {name: _LATER}) if by_name else module(x, _LATER)

    def fault(problem: str, line: int | None) -> CheckFailed:
        return whole.mistake(
            "start-stops", line=line, within=whole.methods, start=_LATER, T=size.T, problem=problem
        )

    trace = TensorTrace(whole.file.path, module)
    try:
        with torch.no_grad(), DoublePrecision():
            before = module(x) if stops else None
        with trace:
            after = later()
    except Exception as error:  # if a later step stopped, q and k are in the trace nevertheless
        before = after = None
        if stops or (unwritten and not isinstance(error, NotImplementedError)):
            raise fault(f"stops: {in_words(error)}", _stopping_line(whole, error)) from error
    q, k, _ = modern_attention.heads(w, x)
    seen = [_first_position(trace, part, size.T) for part in (q, k)]
    line = ranked_line(whole.source, r"cos\w*\[|\[.*:|rotary_angles\(", whole.methods)
    if None not in seen and seen[0] == seen[1] != _LATER:
        raise whole.mistake("start-ignored", line=line, start=_LATER, seen=seen[0])
    if before is not None and not isinstance(after, Tensor):
        returned = "None" if after is None else f"a {type(after).__name__}"
        raise fault(f"returns {returned}, not a tensor", _returning_line(whole, later))
    if before is not None and before.shape != after.shape:
        returned = f"returns shape {tuple(after.shape)}, not {tuple(before.shape)}"
        raise fault(returned, _returning_line(whole, later))
    if before is not None and not close(before, after):
        difference = f"{float((before - after).abs().max()):.3g}"
        raise whole.mistake("start-of-one", line=line, start=_LATER, difference=difference)
    if None not in seen and seen[0] != seen[1]:
        difference = "an amount that depends on later steps"
        raise whole.mistake("start-of-one", line=line, start=_LATER, difference=difference)


def _stopping_line(whole: ModernModule, error: BaseException) -> int | None:
    """The line of forward that stopped with `error`.

    None if this line rotates: then the tables, which an earlier line makes, are too short."""
    line, trace = None, error.__traceback__
    lines = _lines_of_forward(whole)
    while trace is not None:
        in_file = trace.tb_frame.f_code.co_filename == str(whole.file.path)
        if in_file and trace.tb_lineno in lines:
            line = trace.tb_lineno
        trace = trace.tb_next
    rotates = next(m.at for m in modern_attention.MISTAKES if m.slug == "start-stops")
    return None if line in whole.source.matches(rotates, lines) else line


def _returning_line(whole: ModernModule, call: Callable[[], Any]) -> int | None:
    """The last line of forward that runs in `call`: the line that returns, if there is one."""
    lines = _lines_of_forward(whole)
    ran = [line for line in lines_run(whole.file.path, call) if line in lines]
    return ran[-1] if ran else None


def _lines_of_forward(whole: ModernModule) -> set[int]:
    return whole.methods & (whole.source.lines_of("forward") or set())


def _first_position(trace: TensorTrace, part: Tensor, T: int) -> int | None:
    """The position by which forward rotates the first token of `part`, q or k.

    None if the trace has no such rotation."""
    likely = (_LATER, *range(-1, 2 * _LATER + T))
    return next((at for at in likely if trace.has(turned(part, at))), None)


def _bfloat16(whole: ModernModule) -> None:
    """Check that forward runs in bfloat16, in which gptcli can train (step 6)."""
    got = whole.in_dtype(modern_attention.SIZES[1], torch.bfloat16)
    if isinstance(got, BaseException):
        stops = f"stops ({in_words(got)})"
    elif got.dtype != torch.bfloat16:
        stops = f"returns {got.dtype}"
    else:
        return
    raise whole.mistake(
        "stops-in-bfloat16", within=whole.methods, dtype=torch.bfloat16, stops=stops
    )
