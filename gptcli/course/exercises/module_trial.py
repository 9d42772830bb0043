"""A learner's layer norm, MLP or block: build it, run it on several sizes, compare it with the
reference and with known mistakes.

Dimensions: B batch, T time, C channels (n_embd), H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.course.attention.cases import LearnerConfig, fill_parameters
from gptcli.course.exercises.building import build
from gptcli.course.exercises.explaining import ExerciseMistake, Explainer
from gptcli.course.exercises.tensor_trace import TensorTrace
from gptcli.course.lesson import TOLERANCE, CheckFailed, Step
from gptcli.course.sandbox.learner_file import LearnerFile
from gptcli.errors import GptcliError


@dataclass(frozen=True)
class Size:
    """Sizes of one learner; all dimensions differ."""

    B: int
    T: int
    C: int
    H: int = 1
    bias: bool = True
    dropout: float = 0.0
    seed: int = 0

    def config(self) -> LearnerConfig:
        """What the constructor is given."""
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
class Part:
    """What is to be known of an exercise that is a module.

    `weights` maps a module of theirs to what `reference` and the mistakes' forms compute with;
    it raises CheckFailed where something is missing. `landmarks` are, step by step, tensors of
    which one shows that the step was done; the last one is the output."""

    steps: tuple[Step, ...]
    sizes: tuple[Size, ...]
    mistakes: tuple[ExerciseMistake, ...]
    weights: Callable[[LearnerModule, nn.Module, Size], Any]
    landmarks: Callable[[Any, Tensor], list[list[Tensor]]]
    draw: Callable[[Size, torch.Generator], Tensor]
    notes: Callable[[LearnerModule], Iterator[tuple[str, str]]]


class LearnerModule(Explainer):
    """One class of one file; `say` is told what is being done, for where it never ends."""

    def __init__(
        self, file: LearnerFile, cls: type[nn.Module], part: Part, say: Callable[[str], None]
    ) -> None:
        super().__init__(file, part.steps, part.mistakes)
        self.cls, self.part, self.say = cls, part, say

    def construct(self, size: Size) -> nn.Module:
        """A module of that size, in float64 and evaluation mode, as its constructor leaves it."""
        self.say("step 1: building the module")
        try:
            module = build(self.cls, size.config())
        except GptcliError as error:
            raise GptcliError(f"{self.file.name}: {error.message}", error.hint) from None
        except (Exception, SystemExit) as error:
            raise self.stopped(error, f"building `{self.cls.__name__}`", 1) from error
        return module.to(torch.float64).eval()

    def run(self, module: nn.Module, x: Tensor) -> Tensor:
        """module(x), of x's shape. Raises CheckFailed at the first step that is not completed."""
        self.say(f"step 1: forward on x of shape {tuple(x.shape)}")
        doing = f"forward on x of shape {tuple(x.shape)}"
        trace = TensorTrace()
        before = x.clone()
        try:
            with trace:
                y = module(x)
        except (Exception, SystemExit) as error:
            raise self.stopped(error, doing, self.reached(trace, module, before)) from error
        if not isinstance(y, Tensor):
            kind = "None" if y is None else f"a {type(y).__name__}"
            step = min(self.reached(trace, module, before), len(self.part.steps))
            raise self.wrong_at(
                step,
                "returns-nothing" if y is None else "no-tensor",
                f"{doing} returned {kind}, not a tensor",
                "end forward with `return` and the output alone",
            )
        if y.shape != x.shape:
            step = min(self.reached(trace, module, before), len(self.part.steps))
            raise self.wrong_at(
                step,
                "output-shape",
                f"the output has shape {tuple(y.shape)}, expected {tuple(x.shape)}, that of x",
                "print the shape after each step and find the first that is not as the comment "
                "in the skeleton says",
            )
        if y.dtype != x.dtype:
            raise self.wrong_at(
                1,
                "output-dtype",
                f"the output is {y.dtype} where x and the weights are {x.dtype}",
                "leave out .float() and dtype=...; compute in the dtype of x",
            )
        return y

    def reached(self, trace: TensorTrace, module: nn.Module, x: Tensor) -> int:
        """The step after the last one whose result is among what they computed."""
        size = Size(*x.shape)
        with torch.no_grad():
            marks = self.part.landmarks(self.part.weights(self, module, size), x)
        done = [i for i, wanted in enumerate(marks, 1) if any(trace.has(one) for one in wanted)]
        return min(max(done, default=0) + 1, len(marks))


def compare(learner: LearnerModule) -> float:
    """Their output beside the reference's on every size. Raises CheckFailed, with a name where the
    output is that of a known mistake on all sizes; returns the largest error."""
    part = learner.part
    tried: list[tuple[Size, Any, Tensor, Tensor, Tensor, TensorTrace, nn.Module]] = []
    for size in part.sizes:
        module = learner.construct(size)
        generator = torch.Generator().manual_seed(1000 + size.seed)
        fill_parameters(module, generator)
        weights = part.weights(learner, module, size)
        x = part.draw(size, generator)
        with torch.no_grad():
            wanted = part.landmarks(weights, x)[-1][0]
            given = x.clone()
            torch.manual_seed(1)
            y = learner.run(module, given)
            again_x = x.clone()
            torch.manual_seed(2)
            again = learner.run(module, again_x)
            trace = TensorTrace()
            with trace:
                module(x.clone())
        if not torch.equal(y, again) and y.isfinite().all() and torch.equal(given, x):
            raise learner.mistake(
                "dropout-in-evaluation",
                dropout=size.dropout,
                difference=f"{float((y - again).abs().max()):.3g}",
            )
        tried.append((size, weights, x, y, wanted, trace, module))
        if not torch.equal(given, x) and close(y, wanted):
            raise learner.mistake(
                "input-changed", difference=f"{float((given - x).abs().max()):.3g}"
            )
    bad = [entry for entry in tried if not close(entry[3], entry[4])]
    if not bad:
        return max(float((y - wanted).abs().max()) for _, _, _, y, wanted, _, _ in tried)
    size, weights, x, y, wanted, trace, module = bad[0]
    most = (y - wanted).abs().nan_to_num(nan=float("inf")).argmax()
    token = tuple(int(i) for i in torch.unravel_index(most, y.shape))
    yours, right = float(y[token]), float(wanted[token])
    evidence = f" (output[{', '.join(map(str, token))}] is {yours:.4g}, expected {right:.4g})"
    facts = {"C": size.C, "C1": size.C - 1, "B": size.B, "T": size.T, "C4": 4 * size.C}
    with torch.no_grad():
        for mistake in part.mistakes:
            for form in mistake.forms:
                if all(close(y_, form(w_, x_)) for _, w_, x_, y_, _, _, _ in tried):
                    raise learner.mistake(mistake.slug, evidence, **facts)
        step = max(learner.reached(entry[5], entry[6], entry[2]) for entry in bad)
    name = part.steps[step - 1].name
    known = part.steps[step - 1]
    if float((y - wanted).abs().max()) < 1e-5 and not bool(y.isnan().any()):
        marks = part.landmarks(weights, x)
        lost = (i for i, m in enumerate(marks, 1) if not any(trace.has(one) for one in m))
        raise CheckFailed(
            "precision",
            f"the output differs by up to {float((y - wanted).abs().max()):.1e}, as float32 "
            f"rounding does, where x is float64{evidence}",
            ("is every tensor of x's dtype?", "leave out .float() and dtype=...", known.show),
            next(lost, step),
        )
    slug = "wrong-output" if bool(y.isfinite().all()) else "not-finite"
    before = f"as far as step {step - 1} all is right; " if step > 1 else ""
    raise CheckFailed(
        slug,
        f"{before}the result of step {step}, {name}, is not among what your forward computes "
        f"({size}){evidence}",
        (known.ask, known.tell, known.show),
        step,
    )


def gradients(learner: LearnerModule) -> None:
    """Every parameter and the input get a gradient. Raises CheckFailed."""
    size = learner.part.sizes[0]
    module = learner.construct(size)
    generator = torch.Generator().manual_seed(7)
    fill_parameters(module, generator)
    x = learner.part.draw(size, generator).requires_grad_()
    try:
        y = module(x)
        if y.requires_grad:
            (y * torch.randn(y.shape, generator=generator, dtype=y.dtype)).sum().backward()
    except (Exception, SystemExit) as error:
        raise learner.stopped(error, "forward with gradients", len(learner.part.steps)) from error
    for name, tensor in (("x", x), *module.named_parameters()):
        if tensor.grad is None or not bool(tensor.grad.any()):
            raise learner.mistake("no-gradient", name=name)
    weights = learner.part.weights(learner, module, size)
    x2 = x.detach().clone().requires_grad_()
    right = learner.part.landmarks(weights, x2)[-1][0]
    noise = torch.randn(
        right.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64
    )
    (wanted,) = torch.autograd.grad((right * noise).sum(), x2)
    x3 = x.detach().clone().requires_grad_()
    (got,) = torch.autograd.grad((module(x3) * noise).sum(), x3)
    if not close(got, wanted):
        raise learner.mistake("no-gradient", name="x (in part)")


def close(a: Tensor, b: Tensor) -> bool:
    """Equal within the tolerance, NaN to NaN."""
    return a.shape == b.shape and bool(close_each(a, b).all())


def close_each(a: Tensor, b: Tensor) -> Tensor:
    """Where they are equal."""
    return torch.isclose(a, b, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)


GENERAL = (
    (
        "input-changed",
        "x -= mean, x += ..., x.add_(...)",
        "forward changed its input x in place, by up to {difference}",
        "the residual stream around this module still needs x as it was",
        "make a new tensor (`y = x - ...`) in place of writing into x",
        r"\bx\s*[-+*/]=|\bx(\.data)?\.\w+_\(|\bx\[.*\]\s*[-+*/]?=(?!=)",
    ),
    (
        "no-gradient",
        "x.detach(), .data, torch.no_grad()",
        "no gradient, or a wrong one, flows back to {name}",
        "something cuts the graph: detach(), .data, item() or no_grad()",
        "keep every step on tensors that remember where they came from",
        r"detach\(|\.data\b|no_grad|\.item\(|inference_mode|\.numpy\(",
    ),
)


def general_mistakes(step: int, *, dropout_step: int | None = None) -> tuple[ExerciseMistake, ...]:
    """Mistakes that any module can have, placed at its step `step`."""
    found = [
        ExerciseMistake(slug, step, writes, says, why, hint, at=at)
        for slug, writes, says, why, hint, at in GENERAL
    ]
    found.append(
        ExerciseMistake(
            "dropout-in-evaluation",
            dropout_step or step,
            "F.dropout(y, p)",
            "with config.dropout = {dropout} and in evaluation mode, two calls with the same x "
            "differ by up to {difference}",
            "dropout acts in training alone; F.dropout does not know the mode of your module",
            "use nn.Dropout made in the constructor, or pass training=self.training",
            at=r"[dD]ropout\((?!config)|rand",
        )
    )
    return tuple(found)
