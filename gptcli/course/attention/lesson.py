"""The lesson on attention: runs its checks on a learner's class, and diagnoses the first failure.

The lesson runs the learner's code in the current process, so use it only in the worker process
(gptcli.course.sandbox.worker).
"""

from __future__ import annotations

import contextlib
import re

import torch
from torch import nn

from gptcli.course.attention import STEP_NAMES
from gptcli.course.attention.cases import USUAL, draw_input, generator_for
from gptcli.course.attention.checks import CHECKS
from gptcli.course.attention.compared_forward import repeat_forward
from gptcli.course.attention.diagnosis import diagnose
from gptcli.course.attention.finding import Finding
from gptcli.course.attention.first_wrong_operation import matched_before
from gptcli.course.attention.first_wrong_step import first_wrong_step
from gptcli.course.attention.forward_trace import ForwardTrace, trace_forward
from gptcli.course.attention.learner_attention import LearnerAttention
from gptcli.course.attention.matching import first_missing_step, match
from gptcli.course.attention.mistakes.attention_mistake import STEP_HINTS
from gptcli.course.attention.mistakes.bank import BANK
from gptcli.course.attention.notes import notes
from gptcli.course.attention.stages import Problem
from gptcli.course.lesson import CheckFailed, Lesson, Say, Step
from gptcli.course.report import Check, FileReport, Picture, StepMark
from gptcli.course.sandbox.learner_class import classes_in
from gptcli.course.sandbox.learner_file import LearnerFile
from gptcli.course.sandbox.running import left_out, run_file
from gptcli.errors import GptcliError

MOST_CLASSES = 8  # how many classes of a file to try if none has the expected name


class AttentionLesson(Lesson[LearnerAttention]):
    """Causal self-attention, in eight steps."""

    name = "attention"
    steps = tuple(Step(name, *STEP_HINTS[number]) for number, name in STEP_NAMES.items())
    mistakes = BANK

    def load(self, file: LearnerFile, say: Say) -> LearnerAttention:
        """Run the file and return its class as a LearnerAttention."""
        module = run_file(file)
        learner = _first_usable(file, classes_in(file, module), say)
        learner.left_out = left_out(file, module)
        return learner

    def check(self, learner: LearnerAttention, done: list[Check]) -> str:
        """Run every check in CHECKS on the class, look for notes, and return the verdict."""
        learner.check_forward()
        try:
            _run_checks(learner, done)
        except CheckFailed as failed:
            if learner.single or not _is_dtype_error(failed):
                raise
            # If code uses float32 on purpose, check it in float32.
            learner.single = True
            before = torch.get_default_dtype()
            torch.set_default_dtype(torch.float32)
            try:
                del done[:]
                _run_checks(learner, done)
            finally:
                torch.set_default_dtype(before)
        done.extend(notes(learner))
        count = sum(check.note for check in done)
        also = {0: "", 1: ", with one note"}.get(count, f", with {count} notes")
        largest = next(check.detail for check in done if check.name == "output")
        return f"the same as the reference, {largest}{also}"

    def explain(
        self,
        file: LearnerFile,
        learner: LearnerAttention,
        failed: CheckFailed,
        done: list[Check],
    ) -> FileReport:
        """The report on a failed check: the first wrong step, the known mistake and the line."""
        name, _ = CHECKS[min(len(done), len(CHECKS) - 1)]  # the check that failed
        try:
            other = None if failed.mistake == "not-implemented" else learner.other_part()
            if other is not None:
                failed = other
                finding = Finding(None, other.mistake, other.message, other.hints)
            else:
                finding = diagnose(learner, name, failed)
        except Exception:  # the diagnosis cannot foresee every kind of file
            finding = _step_alone(learner, failed)
        steps = tuple(StepMark(**step) for step in finding.steps)
        return FileReport(
            file.name,
            self.name,
            self.class_checked(file, learner),
            False,
            finding.message,
            finding.mistake,
            finding.step,
            (*done, Check(name, False, failed.message)),
            finding.hints,
            Picture(steps, finding.learner_weights, finding.right_weights),
        )

    def class_checked(self, file: LearnerFile, learner: LearnerAttention) -> str:
        """The name of the class in the learner's file. The learner can choose any name."""
        return learner.cls.__name__

    def follow(self, file: LearnerFile, say: Say) -> None:
        """Run forward once; call `say("step N")` before the first and after each operation."""
        learner = self.load(file, say)
        with contextlib.suppress(CheckFailed):
            built = learner.build(USUAL)
            x = draw_input(built.case, generator_for(built.case))
            p = Problem(x, built.projections, built.case.H)

            def say_step(trace: ForwardTrace) -> None:
                found = matched_before(match(trace, p)[0], len(trace.operations))
                say(f"step {first_missing_step(found)}")

            say("step 1")
            trace_forward(
                lambda inner: learner.forward(built.module, inner),
                x.clone(),
                file.path,
                on_operation=say_step,
            )


def _first_usable(file: LearnerFile, classes: list[type[nn.Module]], say: Say) -> LearnerAttention:
    """The first class with projections, even with wrong code. If none has any, the first class."""
    if len(classes) > 1:
        for cls in classes[:MOST_CLASSES]:
            try:
                learner = LearnerAttention(file, cls, say)
                learner.layout()
            except GptcliError:
                continue
            except CheckFailed as failed:
                if failed.mistake == "missing-projection":
                    continue
            return learner
    return LearnerAttention(file, classes[0], say)


def _run_checks(learner: LearnerAttention, done: list[Check]) -> None:
    for name, check in CHECKS:
        done.append(Check(name, True, check(learner)))


def _step_alone(learner: LearnerAttention, failed: CheckFailed) -> Finding:
    """The finding if `diagnose` fails: what the failed check says, and the first wrong step."""
    step = failed.step
    if step is None and learner.attempt is not None:
        with contextlib.suppress(Exception):
            forward = repeat_forward(learner)
            path = learner.file.path
            step = first_wrong_step(forward.trace, forward.found, forward.p, path)
    return Finding(step, failed.mistake, failed.message, failed.hints)


def _is_dtype_error(failed: CheckFailed) -> bool:
    """Whether the learner's code stops because it mixes float32 and float64."""
    mixed = re.search(r"dtype|scalar type|Float and Double|Double and Float", failed.message)
    return failed.mistake == "raises" and mixed is not None
