"""Checks one learner's file with the lesson of its exercise. Runs only in the worker process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gptcli.course.attention.lesson import AttentionLesson
from gptcli.course.exercises import block, layernorm, mlp
from gptcli.course.exercises.cache_lesson import CacheLesson
from gptcli.course.exercises.modern_lesson import ModernLesson
from gptcli.course.exercises.sampling_lesson import SamplingLesson
from gptcli.course.exercises.tokenizer_lesson import TokenizerLesson
from gptcli.course.exercises.training_lesson import TrainingLesson
from gptcli.course.lesson import CheckFailed, Lesson, Say
from gptcli.course.report import Check, FileReport
from gptcli.course.sandbox.learner_file import LearnerFile, in_words
from gptcli.errors import GptcliError

LESSONS: dict[str, Lesson[Any]] = {
    lesson.name: lesson
    for lesson in (
        AttentionLesson(),
        layernorm.LESSON,
        mlp.LESSON,
        block.LESSON,
        TokenizerLesson(),
        TrainingLesson(),
        SamplingLesson(),
        CacheLesson(),
        ModernLesson(),
    )
}


def examine(file: LearnerFile, say: Say) -> FileReport:
    """The report on `file`, which is checked up to its first mistake.

    Calls `say` with the name of each stage when the stage begins, such as "loading the file".
    Raises GptcliError if the file cannot be used at all."""
    say("loading the file")
    lesson = LESSONS[file.exercise]
    done: list[Check] = []
    with _float64():
        learner = lesson.load(file, say)
        try:
            verdict = lesson.check(learner, done)
        except CheckFailed as failed:
            return lesson.explain(file, learner, failed, done)
        except (GptcliError, MemoryError):
            raise
        except Exception as error:
            raise _our_failure(file, error) from error
    checked = lesson.class_checked(file, learner)
    return FileReport(file.name, lesson.name, checked, True, verdict, checks=tuple(done))


def _our_failure(file: LearnerFile, error: Exception) -> GptcliError:
    """The error for an unexpected exception in a check. It says that gptcli failed."""
    return GptcliError(
        f"{file.name}: the check itself failed ({in_words(error)}); your file can still be right",
        "this is a fault of gptcli: please report it together with your file",
    )


def follow(file: LearnerFile, say: Say) -> None:
    """Run the file once more. Call `say("step N")` at each step that the file reaches."""
    with _float64():
        LESSONS[file.exercise].follow(file, say)


@contextmanager
def _float64() -> Iterator[None]:
    """Make float64 the default dtype, so that `torch.sqrt(torch.tensor(8))` is not float32."""
    before, followed = torch.get_default_dtype(), torch.is_grad_enabled()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
        torch.set_grad_enabled(followed)  # the learner's file can switch autograd off
