"""The lesson on attention: run its checks on a learner's class, and diagnose the first failure.

This runs the learner's code. Use it only in the worker process (gptcli.course.sandbox.worker).
"""

from __future__ import annotations

import contextlib

from gptcli.course.attention import STEP_NAMES
from gptcli.course.attention.cases import USUAL, draw_input, generator_for
from gptcli.course.attention.checks import CHECKS
from gptcli.course.attention.diagnosis import diagnose
from gptcli.course.attention.finding import Finding
from gptcli.course.attention.first_wrong_operation import matched_before
from gptcli.course.attention.forward_trace import ForwardTrace, trace_forward
from gptcli.course.attention.learner_attention import LearnerAttention, check_signatures
from gptcli.course.attention.matching import first_missing_step, match
from gptcli.course.attention.mistakes.attention_mistake import STEP_HINTS
from gptcli.course.attention.mistakes.bank import BANK
from gptcli.course.attention.notes import notes
from gptcli.course.attention.stages import Problem
from gptcli.course.lesson import CheckFailed, Lesson, Say, Step
from gptcli.course.report import Check, FileReport, Picture, StepMark
from gptcli.course.sandbox.learner_file import LearnerFile, load_class


class AttentionLesson(Lesson[LearnerAttention]):
    """Causal self-attention, in eight steps."""

    name = "attention"
    steps = tuple(Step(name, *STEP_HINTS[number]) for number, name in STEP_NAMES.items())
    mistakes = BANK

    def load(self, file: LearnerFile, say: Say) -> LearnerAttention:
        """Run the file and return its class, ready to be tried."""
        return LearnerAttention(file, load_class(file), say)

    def check(self, learner: LearnerAttention, done: list[Check]) -> str:
        """Run every check in CHECKS on the class, then look for what deserves a note."""
        learner.takes_use_dropout = check_signatures(learner.file, learner.cls)
        for name, check in CHECKS:
            done.append(Check(name, True, check(learner)))
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
        """The report of a failed check: the first wrong step, the known mistake and the line."""
        name, _ = CHECKS[min(len(done), len(CHECKS) - 1)]  # the one that failed
        try:
            finding = diagnose(learner, name, failed)
        except Exception:  # the file is stranger than the diagnosis expects
            finding = Finding(failed.step, failed.mistake, failed.message, failed.hints)
        steps = tuple(StepMark(**step) for step in finding.steps)
        return FileReport(
            file.name,
            self.name,
            file.class_name,
            False,
            finding.message,
            finding.mistake,
            finding.step,
            (*done, Check(name, False, failed.message)),
            finding.hints,
            Picture(steps, finding.learner_weights, finding.right_weights),
        )

    def follow(self, file: LearnerFile, say: Say) -> None:
        """Run one forward and say `step N` after each operation."""
        learner = self.load(file, say)
        with contextlib.suppress(CheckFailed):
            built = learner.build(USUAL)
            x = draw_input(USUAL, generator_for(USUAL))
            p = Problem(x, built.projections, USUAL.H)

            def say_step(trace: ForwardTrace) -> None:
                found = matched_before(match(trace, p)[0], len(trace.operations))
                say(f"step {first_missing_step(found)}")

            say("step 1")
            trace_forward(built.module, x.clone(), file.path, on_operation=say_step)
