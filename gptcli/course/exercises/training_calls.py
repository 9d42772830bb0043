"""Compare two calls of a learner's module in training: they must not drop the same numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from gptcli.course.exercises.explainer import ExerciseMistake
from gptcli.course.exercises.tensor_trace import TensorTrace
from gptcli.course.lesson import CheckFailed

RATE = 0.5  # at this rate, two random masks of n numbers are equal with probability 2^-n


def compare_calls(learner: Any, size: Any) -> CheckFailed | None:
    """A CheckFailed if two calls in training drop the same numbers, or set a seed; else None.

    `learner` is a LearnerModule, and `size` a Size. The seed is that of torch's global generator,
    which only the caller of forward may set. Raises CheckFailed if forward raises an error."""
    module, weights, x = learner.filled(replace(size, B=4, T=8, dropout=RATE))
    outputs, states = [], []
    with torch.no_grad():
        plain = learner.run(module, weights, x.clone(), TensorTrace(learner.file.path, module))
        module.train()
        for seed in (1, 2):
            torch.manual_seed(seed)
            trace = TensorTrace(learner.file.path, module)
            outputs.append(learner.run(module, weights, x.clone(), trace))
            states.append(torch.get_rng_state())
    if torch.equal(*states):
        reset: CheckFailed = learner.mistake_in_forward("generator-reset", rate=RATE)
        return reset
    same = torch.equal(*outputs)
    if same and not torch.allclose(outputs[0], plain, rtol=1e-9, atol=1e-9):
        repeated: CheckFailed = learner.mistake_in_forward("dropout-repeated", rate=RATE)
        return repeated
    return None


def mistakes_of_calls(step: int) -> tuple[ExerciseMistake, ...]:
    """The mistakes that compare_calls can find. They belong to step number `step` of the lesson."""
    return (
        ExerciseMistake(
            "generator-reset",
            step,
            "torch.manual_seed(0) in forward",
            "in training, with config.dropout = {rate}, your forward sets the seed of torch's "
            "random numbers: each call drops the same numbers, and the caller's random numbers "
            "start again",
            "the seed belongs to the program that trains, which sets it once",
            "leave out the seed",
            at=r"manual_seed|set_rng_state|\bseed\(",
        ),
        ExerciseMistake(
            "dropout-repeated",
            step,
            "a mask that is drawn once and kept",
            "in training, with config.dropout = {rate}, two calls with the same x give the same "
            "output: each call drops the same numbers",
            "dropout must drop different numbers in each call, else some numbers are never used",
            "draw a new mask in each call of forward, or use nn.Dropout",
            at=r"manual_seed|rand|bernoulli|[dD]rop\w*\((?!config)",
        ),
    )
