"""One file of an exercise, examined from beginning to end. This runs it: in a worker only."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gptcli.course.exercises import (
    block,
    layernorm,
    mlp,
    module_trial,
    tokenizer_trial,
    training_trial,
)
from gptcli.course.exercises.module_trial import LearnerModule
from gptcli.course.lesson import CheckFailed, PartReport
from gptcli.course.report import Check
from gptcli.course.sandbox.learner_file import LearnerFile, load_class

MODULES = {"layernorm": layernorm, "mlp": mlp, "block": block}
TRIALS = {"tokenizer": tokenizer_trial, "training": training_trial}


def examine(file: LearnerFile, say: Callable[[str], None]) -> PartReport:
    """Check `file` against its exercise. Raises GptcliError where it cannot be used at all."""
    say("loading the file")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    names: list[str] = []
    remarks: list[Check] = []
    try:
        if file.exercise in TRIALS:
            trial_of = TRIALS[file.exercise]
            names = [step.name for step in trial_of.STEPS]
            found = trial_of.check(file, say)
        else:
            module = MODULES[file.exercise]
            names = [step.name for step in module.PART.steps]
            learner = LearnerModule(file, load_class(file), module.PART, say)
            module.start(learner)
            error = module_trial.compare(learner)
            module_trial.gradients(learner)
            remarks = [
                Check(name, True, detail, True) for name, detail in module.PART.notes(learner)
            ]
            found = f"the same as the reference, largest error {error:.1g}"
    except CheckFailed as failed:
        return _wrong(file, names, failed)
    finally:
        torch.set_default_dtype(before)
    checks = [Check(f"{i} {name}", True, "") for i, name in enumerate(names, 1)]
    checks.append(Check("whole", True, found))
    return PartReport(file.name, file.exercise, True, found, checks=(*checks, *remarks))


def _wrong(file: LearnerFile, names: list[str], failed: CheckFailed) -> PartReport:
    checks = []
    for i, name in enumerate(names, 1):
        if failed.step is not None and i <= failed.step:
            bad = i == failed.step
            checks.append(Check(f"{i} {name}", not bad, failed.message if bad else ""))
    if failed.step is None:
        checks.append(Check("whole", False, failed.message))
    return PartReport(
        file.name,
        file.exercise,
        False,
        failed.message,
        failed.hints,
        failed.mistake,
        failed.step,
        tuple(checks),
    )
