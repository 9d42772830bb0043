"""A learner's layer norm, MLP or block: build it, run it, compare it with the reference.

Dimensions: B batch, T time, C channels (n_embd), H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gptcli.course.attention.cases import fill_parameters
from gptcli.course.attention.conventions.settings import LearnerConfig
from gptcli.course.exercises.building import build
from gptcli.course.exercises.explainer import ExerciseMistake, Explainer
from gptcli.course.lesson import TOLERANCE, CheckFailed, Lesson, Say, Step
from gptcli.course.report import Check
from gptcli.course.sandbox.learner_class import load_class
from gptcli.course.sandbox.learner_file import LearnerFile
from gptcli.errors import GptcliError

MOST_TENSORS = 4000  # the most that a trace keeps
MOST_NUMBERS = 1 << 20  # in one tensor of a trace


@dataclass(frozen=True)
class Size:
    """The sizes of one comparison. All dimensions differ."""

    B: int
    T: int
    C: int
    H: int = 1
    bias: bool = True
    dropout: float = 0.0
    seed: int = 0

    def config(self) -> LearnerConfig:
        """The config that the constructor gets."""
        return LearnerConfig(
            n_embd=self.C,
            n_head=self.H,
            dropout=self.dropout,
            bias=self.bias,
            block_size=self.T + 3,
        )

    def __str__(self) -> str:
        return f"B={self.B}, T={self.T}, n_embd={self.C}"


@dataclass(frozen=True)
class ModuleLesson(Lesson["LearnerModule"]):
    """A lesson whose file defines one torch module, (B, T, C) -> (B, T, C).

    `weights` returns what `landmarks` and the mistakes' forms compute with, taken from a learner's
    module, and raises CheckFailed if something is missing. `start` checks what the constructor
    makes. `landmarks` returns a list of tensors for each step. If the trace contains one of them,
    the step was done. The first tensor of the last step is the output. `draw` draws the input x."""

    name: str
    steps: tuple[Step, ...]
    sizes: tuple[Size, ...]
    mistakes: tuple[ExerciseMistake, ...]
    weights: Callable[[LearnerModule, nn.Module, Size], Any]
    start: Callable[[LearnerModule], None]
    landmarks: Callable[[Any, Tensor], list[list[Tensor]]]
    draw: Callable[[Size, torch.Generator], Tensor]
    notes: Callable[[LearnerModule], Iterator[tuple[str, str]]]

    def load(self, file: LearnerFile, say: Say) -> LearnerModule:
        """Run the file and return its class, ready to be tried."""
        return LearnerModule(file, load_class(file), self, say)

    def check(self, learner: LearnerModule, done: list[Check]) -> str:
        """Compare construction, output and gradients with the reference."""
        self.start(learner)
        verdict = f"the same as the reference, largest error {compare_output(learner):.1g}"
        compare_gradients(learner)
        done += self.all_steps(verdict)
        done += [Check(name, True, detail, note=True) for name, detail in self.notes(learner)]
        return verdict


class LearnerModule(Explainer):
    """A learner's class: builds modules of it and runs them. Failures become CheckFailed."""

    def __init__(
        self, file: LearnerFile, cls: type[nn.Module], lesson: ModuleLesson, say: Say
    ) -> None:
        super().__init__(file, lesson.steps, lesson.mistakes)
        self.cls, self.lesson, self.say = cls, lesson, say

    def construct(self, size: Size) -> nn.Module:
        """A new module of that size, in float64 and evaluation mode, with its initial weights."""
        self.say("step 1: building the module")
        try:
            module = build(self.cls, size.config())
        except GptcliError as error:
            raise GptcliError(f"{self.file.name}: {error.message}", error.hint) from None
        except (Exception, SystemExit) as error:
            raise self.stopped(error, f"building `{self.cls.__name__}`", 1) from error
        return module.to(torch.float64).eval()

    def run(self, module: nn.Module, x: Tensor) -> Tensor:
        """module(x), of the shape and dtype of x.

        Raises CheckFailed at the first step that the learner's code did not complete."""
        self.say(f"step 1: forward on x of shape {tuple(x.shape)}")
        doing = f"forward on x of shape {tuple(x.shape)}"
        trace = TensorTrace()
        before = x.clone()
        try:
            with trace:
                y = module(x)
        except (Exception, SystemExit) as error:
            raise self.stopped(error, doing, self.step_after(trace, module, before)) from error
        if not isinstance(y, Tensor):
            kind = "None" if y is None else f"a {type(y).__name__}"
            raise self.failed_at(
                self.step_after(trace, module, before),
                "returns-nothing" if y is None else "no-tensor",
                f"{doing} returned {kind}, not a tensor",
                "end forward with `return` and only the output",
            )
        if y.shape != x.shape:
            raise self.failed_at(
                self.step_after(trace, module, before),
                "output-shape",
                f"your output has shape {tuple(y.shape)}; it needs the shape of x, "
                f"{tuple(x.shape)}",
                "print the shape after each step and find the first that differs from the comment "
                "in the skeleton",
            )
        if y.dtype != x.dtype:
            raise self.failed_at(
                1,
                "output-dtype",
                f"your output is {y.dtype}, but x and the weights are {x.dtype}",
                "leave out .float() and dtype=...; compute in the dtype of x",
            )
        return y

    def step_after(self, trace: TensorTrace, module: nn.Module, x: Tensor) -> int:
        """The step after the last one whose result is in the trace (the last step at most)."""
        size = Size(*x.shape)
        with torch.no_grad():
            marks = self.lesson.landmarks(self.lesson.weights(self, module, size), x)
        done = [i for i, wanted in enumerate(marks, 1) if any(trace.has(one) for one in wanted)]
        return min(max(done, default=0) + 1, len(marks))


class TensorTrace(TorchFunctionMode):
    """Records every tensor that a forward computes. Use it in a `with` around the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if (
                isinstance(value, Tensor)
                and value.is_floating_point()
                and value.numel() <= MOST_NUMBERS
                and len(self.seen) < MOST_TENSORS
            ):
                self.seen.append(value.detach().clone())
        return out

    def has(self, wanted: Tensor) -> bool:
        """Whether one recorded tensor holds the numbers of `wanted`, in any layout."""
        goal = wanted.double().flatten().sort().values
        return any(
            tensor.numel() == goal.numel()
            and torch.allclose(tensor.double().flatten().sort().values, goal, 0.0, 1e-9)
            for tensor in self.seen
        )


@dataclass(frozen=True)
class _Run:
    """One forward of a learner's module, with the reference's output."""

    size: Size
    module: nn.Module
    weights: Any  # what the lesson's `weights` returns
    x: Tensor
    y: Tensor
    wanted: Tensor
    trace: TensorTrace


def compare_output(learner: LearnerModule) -> float:
    """The largest difference from the reference over all sizes.

    Raises CheckFailed if an output differs. The failure names a known mistake if this mistake gives
    the learner's outputs for all sizes, and otherwise the first wrong step."""
    runs = [_run(learner, size) for size in learner.lesson.sizes]
    bad = [run for run in runs if not close(run.y, run.wanted)]
    if bad:
        raise _explained(learner, runs, bad)
    return max(float((run.y - run.wanted).abs().max()) for run in runs)


def _run(learner: LearnerModule, size: Size) -> _Run:
    """Run one size. Raises CheckFailed if dropout acts or x is changed."""
    lesson = learner.lesson
    module = learner.construct(size)
    generator = torch.Generator().manual_seed(1000 + size.seed)
    fill_parameters(module, generator)
    weights = lesson.weights(learner, module, size)
    x = lesson.draw(size, generator)
    with torch.no_grad():
        wanted = lesson.landmarks(weights, x)[-1][0]
        given = x.clone()
        torch.manual_seed(1)
        y = learner.run(module, given)
        torch.manual_seed(2)
        again = learner.run(module, x.clone())
        trace = TensorTrace()
        with trace:
            module(x.clone())
    if not torch.equal(y, again) and y.isfinite().all() and torch.equal(given, x):
        raise learner.mistake(
            "dropout-in-evaluation",
            dropout=size.dropout,
            difference=f"{float((y - again).abs().max()):.3g}",
        )
    if not torch.equal(given, x) and close(y, wanted):
        difference = f"{float((given - x).abs().max()):.3g}"
        raise learner.mistake("input-changed", difference=difference)
    return _Run(size, module, weights, x, y, wanted, trace)


def _explained(learner: LearnerModule, runs: list[_Run], bad: list[_Run]) -> CheckFailed:
    """What is wrong with the runs in `bad`: a known mistake, rounding, or the first wrong step."""
    lesson, run = learner.lesson, bad[0]
    size, y, wanted = run.size, run.y, run.wanted
    most = (y - wanted).abs().nan_to_num(nan=float("inf")).argmax()
    token = tuple(int(i) for i in torch.unravel_index(most, y.shape))
    yours, right = float(y[token]), float(wanted[token])
    evidence = f" (output[{', '.join(map(str, token))}] is {yours:.4g}, expected {right:.4g})"
    facts = {"C": size.C, "C1": size.C - 1, "B": size.B, "T": size.T, "C4": 4 * size.C}
    with torch.no_grad():
        for mistake in lesson.mistakes:
            for form in mistake.forms:
                if all(close(each.y, form(each.weights, each.x)) for each in runs):
                    return learner.mistake(mistake.slug, evidence, **facts)
        step = max(learner.step_after(each.trace, each.module, each.x) for each in bad)
    known = lesson.steps[step - 1]
    difference = float((y - wanted).abs().max())
    if difference < 1e-5 and not bool(y.isnan().any()):
        marks = lesson.landmarks(run.weights, run.x)
        lost = (i for i, m in enumerate(marks, 1) if not any(run.trace.has(one) for one in m))
        return CheckFailed(
            "precision",
            f"your output differs by up to {difference:.1e}: that looks like float32 rounding, "
            f"but x is float64{evidence}",
            ("is every tensor of x's dtype?", "leave out .float() and dtype=...", known.show),
            next(lost, step),
        )
    before = f"up to step {step - 1} all is right; " if step > 1 else ""
    return CheckFailed(
        "wrong-output" if bool(y.isfinite().all()) else "not-finite",
        f"{before}your forward never computes the result of step {step}, {known.name} "
        f"({size}){evidence}",
        (known.ask, known.tell, known.show),
        step,
    )


def compare_gradients(learner: LearnerModule) -> None:
    """Raises CheckFailed if x or a parameter gets no gradient, or if the gradient of x is wrong."""
    lesson = learner.lesson
    size = lesson.sizes[0]
    module = learner.construct(size)
    generator = torch.Generator().manual_seed(7)
    fill_parameters(module, generator)
    x = lesson.draw(size, generator).requires_grad_()
    try:
        y = module(x)
        if y.requires_grad:
            (y * torch.randn(y.shape, generator=generator, dtype=y.dtype)).sum().backward()
    except (Exception, SystemExit) as error:
        raise learner.stopped(error, "forward with gradients", len(lesson.steps)) from error
    for name, tensor in (("x", x), *module.named_parameters()):
        if tensor.grad is None or not bool(tensor.grad.any()):
            raise learner.mistake("no-gradient", name=name)
    weights = lesson.weights(learner, module, size)
    x2 = x.detach().clone().requires_grad_()
    right = lesson.landmarks(weights, x2)[-1][0]
    noise = torch.randn(
        right.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64
    )
    (wanted,) = torch.autograd.grad((right * noise).sum(), x2)
    x3 = x.detach().clone().requires_grad_()
    (got,) = torch.autograd.grad((module(x3) * noise).sum(), x3)
    if not close(got, wanted):
        raise learner.mistake("no-gradient", name="x (in part)")


def close(a: Tensor, b: Tensor) -> bool:
    """Whether shapes agree and all numbers are equal within the tolerance. NaN equals NaN."""
    if a.shape != b.shape:
        return False
    return bool(torch.isclose(a, b, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True).all())


def general_mistakes(step: int, *, dropout_step: int | None = None) -> tuple[ExerciseMistake, ...]:
    """Mistakes that any module can have, counted as mistakes of `step`."""
    return (
        ExerciseMistake(
            "input-changed",
            step,
            "x -= mean, x += ..., x.add_(...)",
            "your forward changed its input x in place, by up to {difference}",
            "the residual stream around this module still needs x unchanged",
            "make a new tensor (`y = x - ...`) instead of writing into x",
            at=r"\bx\s*[-+*/]=|\bx(\.data)?\.\w+_\(|\bx\[.*\]\s*[-+*/]?=(?!=)",
        ),
        ExerciseMistake(
            "no-gradient",
            step,
            "x.detach(), .data, torch.no_grad()",
            "no gradient, or a wrong one, flows back to {name}",
            "something cuts the graph: detach(), .data, item() or no_grad()",
            "compute every step on tensors that autograd can follow",
            at=r"detach\(|\.data\b|no_grad|\.item\(|inference_mode|\.numpy\(",
        ),
        ExerciseMistake(
            "dropout-in-evaluation",
            dropout_step or step,
            "F.dropout(y, p)",
            "with config.dropout = {dropout} and in evaluation mode, two calls with the same x "
            "differ by up to {difference}",
            "dropout acts only in training; F.dropout does not know the mode of your module",
            "use an nn.Dropout made in the constructor, or pass training=self.training",
            at=r"[dD]ropout\((?!config)|rand",
        ),
    )
