"""One learner's file, examined from beginning to end. This runs their code: in a worker only."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch

from gptcli.course.attention.cases import USUAL, draw_input, generator_for
from gptcli.course.attention.checks import CHECKS
from gptcli.course.attention.diagnosis import diagnose
from gptcli.course.attention.finding import Finding
from gptcli.course.attention.first_wrong_operation import matched_before
from gptcli.course.attention.forward_trace import ForwardTrace, trace_forward
from gptcli.course.attention.learner_attention import LearnerAttention, check_signatures
from gptcli.course.attention.matching import first_missing_step, match
from gptcli.course.attention.notes import notes
from gptcli.course.attention.stages import Problem
from gptcli.course.lesson import CheckFailed
from gptcli.course.report import Check, FileReport, Picture, StepMark
from gptcli.course.sandbox.learner_file import LearnerFile, load_class


def examine(file: LearnerFile, say: Callable[[str], None]) -> FileReport:
    """Check the class of `file` against the contract; stop at the first check that fails.

    `say` is told what is being done. Raises GptcliError where the file cannot be used at all.
    """
    say("loading the file")
    before = torch.get_default_dtype()
    # New tensors in float64: `torch.sqrt(torch.tensor(8))` must not bring float32 into the sum.
    torch.set_default_dtype(torch.float64)
    done: list[Check] = []
    name = "constructor"
    try:
        cls = load_class(file)
        learner = LearnerAttention(file, cls, say)
        learner.takes_use_dropout = check_signatures(file, cls)
        for name, check in CHECKS:
            done.append(Check(name, True, check(learner)))
        done.extend(notes(learner))
    except CheckFailed as failed:
        return _refused(file, learner, name, failed, done)
    finally:
        torch.set_default_dtype(before)
    remarks = sum(check.note for check in done)
    also = {0: "", 1: ", with one note"}.get(remarks, f", with {remarks} notes")
    largest = next(check.detail for check in done if check.name == "output")
    return FileReport(
        file.name,
        file.class_name,
        True,
        f"the same as the reference, {largest}{also}",
        checks=tuple(done),
    )


def follow(file: LearnerFile, say: Callable[[str], None]) -> None:
    """Run one forward and say the step after each operation: for a file that ends its process."""
    torch.set_default_dtype(torch.float64)
    learner = LearnerAttention(file, load_class(file), say)
    with contextlib.suppress(CheckFailed):
        built = learner.build(USUAL)
        x = draw_input(USUAL, generator_for(USUAL))
        p = Problem(x, built.projections, USUAL.H)

        def each(trace: ForwardTrace) -> None:
            found = matched_before(match(trace, p)[0], len(trace.operations))
            say(f"step {first_missing_step(found)}")

        say("step 1")
        trace_forward(built.module, x.clone(), file.path, on_operation=each)


def _refused(
    file: LearnerFile, learner: LearnerAttention, check: str, failed: CheckFailed, done: list[Check]
) -> FileReport:
    try:
        finding = diagnose(learner, check, failed)
    except Exception:  # a file that is stranger than the diagnosis: the check's own words then
        finding = Finding(failed.step, failed.mistake, failed.message, failed.hints)
    done.append(Check(check, False, failed.message))
    picture = Picture(
        tuple(StepMark(**step) for step in finding.steps), finding.theirs, finding.right
    )
    return FileReport(
        file.name,
        file.class_name,
        False,
        finding.message,
        finding.mistake,
        finding.step,
        tuple(done),
        finding.hints,
        picture,
    )
