"""Builds and runs the learner's class, and turns what its code raises into messages.

Dimensions: B batch, T time, C channels (n_embd).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.course.attention.cases import (
    Case,
    config_for,
    fill_parameters,
    generator_for,
    reference,
    sharpen,
)
from gptcli.course.attention.projections import (
    NAMES,
    ProjectionError,
    Projections,
    find_projections,
    is_ambiguous,
)
from gptcli.course.lesson import TOLERANCE, CheckFailed
from gptcli.course.sandbox.learner_file import LearnerFile, in_words, place_of, raised_in
from gptcli.course.sandbox.time_limit import TookTooLong, within
from gptcli.errors import GptcliError

BACKWARD = "the backward pass"
CALL_LIMIT_S = 4.0  # for one call; right code takes milliseconds


@dataclass
class Built:
    """A module of the learner's class with the weights of a case, and its projections."""

    case: Case
    module: nn.Module
    projections: Projections

    def reference(self, x: Tensor) -> Tensor:
        """The right output for x."""
        return reference(self.projections, x, self.case.H)


@dataclass(frozen=True)
class Attempt:
    """One forward pass that was run, with everything needed to repeat it."""

    module: nn.Module
    case: Case
    x: Tensor
    options: dict[str, bool]
    grad: bool  # whether gradients were enabled


@dataclass
class LearnerAttention:
    """The learner's class. `say` gets each action, so that a time limit can report the last one."""

    file: LearnerFile
    cls: type[nn.Module]
    say: Callable[[str], None]
    columns: bool = False  # whether bare matrices are used as x @ W (find_projections)
    takes_use_dropout: bool = False
    attempt: Attempt | None = None  # the latest
    built: Built | None = None  # the latest

    def construct(self, config: Any) -> nn.Module:
        """Class(config). Raises CheckFailed if the learner's code raises."""
        self.say("building the module")
        early = "before Module.__init__() call"  # part of PyTorch's message
        try:
            module: nn.Module = self.call(lambda: self.cls(config), "building the module", 1)
            if "_parameters" in vars(module):
                return module
        except CheckFailed as failed:
            if early not in failed.message:
                raise
        raise CheckFailed(
            "no-super-init",
            f"the constructor of `{self.cls.__name__}` does not begin with super().__init__(), "
            "which turns the object into a torch.nn.Module",
            "begin the constructor with super().__init__()",
            1,
        )

    def build(self, case: Case, dropout: float = 0.0) -> Built:
        """A module in float64 and evaluation mode, with random weights that are not zero."""
        module = self.construct(config_for(case, dropout)).to(torch.float64)
        fill_parameters(module, generator_for(case, weights=True))
        built = Built(case, module.eval(), self.projections(module, case))
        if case.sharp:
            sharpen(built.projections)
        self.built = built
        return built

    def projections(self, module: nn.Module, case: Case) -> Projections:
        """The module's projections.

        Raises GptcliError if their names are unknown, and CheckFailed if one is missing."""
        try:
            return find_projections(module, case.C, columns=self.columns)
        except ProjectionError as error:
            if error.unnamed:
                raise GptcliError(
                    f"{self.file.name}: {error.message}", f"name the projections {NAMES}"
                ) from None
            output = error.missing == "output" or error.message.startswith(("`c_proj`", "`o_proj`"))
            raise CheckFailed(
                error.slug,
                f"with n_embd = {case.C}: {error.message}",
                f"give the module nn.Linear projections named {NAMES}",
                8 if output else 1,
            ) from None

    def run(self, module: nn.Module, x: Tensor, **options: bool) -> Tensor:
        """module(x). Raises CheckFailed unless the result is a tensor of x's shape and dtype."""
        doing = f"forward on x of shape {tuple(x.shape)}"
        self.say(doing)
        if self.built is not None:
            grad = torch.is_grad_enabled()
            self.attempt = Attempt(module, self.built.case, x.detach().clone(), options, grad)
        y = self.call(lambda: module(x, **options), doing, None)
        if y is None:
            raise CheckFailed(
                "returns-nothing",
                f"{doing} returned None",
                "end forward with `return` and the projected output",
            )
        if not isinstance(y, Tensor):
            raise CheckFailed(
                "no-tensor",
                f"{doing} returned a {type(y).__name__}, not a tensor",
                "return only the output, of shape (B, T, C)",
            )
        if y.shape != x.shape:
            raise CheckFailed(
                "output-shape",
                f"output has shape {tuple(y.shape)}, expected {tuple(x.shape)}",
                "the output has the shape of x, (B, T, C), with the heads concatenated",
            )
        if y.dtype != x.dtype:
            raise CheckFailed(
                "output-dtype",
                f"output is {y.dtype}, but x and the weights are {x.dtype}",
                "make new tensors in the dtype of x, for example with "
                "torch.ones(..., dtype=x.dtype, device=x.device)",
            )
        return y

    def call(self, function: Callable[[], Any], doing: str, step: int | None) -> Any:
        """The result of `function`, which runs the learner's code.

        Whatever the code raises becomes CheckFailed, with the line of the learner's file."""
        try:
            with within(CALL_LIMIT_S):
                return function()
        except BaseException as error:  # sys.exit() and KeyboardInterrupt too
            raise self.failure_from(error, doing, step) from error

    def failure_from(
        self, error: BaseException, doing: str, step: int | None = None
    ) -> CheckFailed:
        """The failure for an error of the learner's code, with the line that raised it."""
        place = place_of(error, self.file.path)
        where = ""
        if place is not None:
            where = f" at line {place[0]} of {self.file.path.name}, `{place[1]}`"
        if isinstance(error, TookTooLong):
            return CheckFailed(
                "time-limit",
                f"{doing} is {error}{where}",
                "look there for a loop that never ends, or for far too much work",
                step,
            )
        message = f"{doing} stops{where}: {in_words(error)}"
        if doing == BACKWARD:
            return CheckFailed(
                "backward-stops",
                message,
                "do not change a tensor in place (`+=`, `mul_`, `x[...] = `) after you computed "
                "something from it: the gradient needs the old numbers",
                step,
            )
        if isinstance(error, NotImplementedError) and raised_in(error, self.file.path):
            return CheckFailed(
                "not-implemented",
                f"{doing} stops{where}, which is still to be written",
                "replace that line with your code",
                step,
            )
        return CheckFailed("raises", message, "check the shapes of the tensors on that line", step)

    def settle_columns(self) -> None:
        """Decide from the output whether bare square matrices are used as x @ W.T or as x @ W.

        If neither gives the right output, x @ W.T is assumed, as in nn.Linear."""
        case = Case(B=2, T=3, H=2, D=3, block_size=5)
        module = self.build(case).module
        if not is_ambiguous(module, case.C):
            return
        x = torch.randn(case.B, case.T, case.C, generator=generator_for(case), dtype=torch.float64)
        with torch.no_grad():
            y = self.run(module, x.clone())
            projections = find_projections(module, case.C, columns=True)
            error = (y - reference(projections, x, case.H)).abs().max()
        self.columns = bool(error <= TOLERANCE)


def check_signatures(file: LearnerFile, cls: type[nn.Module]) -> bool:
    """Whether forward takes `use_dropout`.

    Raises GptcliError if the class does not accept Class(config) and forward(x), and CheckFailed
    if it has no forward."""
    name = f"{file.name}: {file.class_name}"
    if cls.__init__ is nn.Module.__init__ or not _accepts(cls.__init__, 2):
        taken = "" if cls.__init__ is nn.Module.__init__ else str(inspect.signature(cls))
        raise GptcliError(
            f"{name} has no constructor that takes only a config"
            + (f"; it takes {taken}" if taken else ""),
            "write `def __init__(self, config):`; config has n_embd, n_head, dropout, bias and "
            "block_size",
        )
    if "_forward_unimplemented" in getattr(cls.forward, "__name__", ""):
        raise CheckFailed(
            "no-forward",
            f"`{file.class_name}` has no method `forward`",
            "write `def forward(self, x):`",
            1,
        )
    if not _accepts(cls.forward, 2):
        raise GptcliError(
            f"{name}.forward cannot be called with only x; it takes "
            f"{inspect.signature(cls.forward)}",
            "write `def forward(self, x):` and make the causal mask inside",
        )
    return "use_dropout" in inspect.signature(cls.forward).parameters


def _accepts(function: Callable[..., Any], arguments: int) -> bool:
    """Whether `function` can be called with `arguments` positional arguments."""
    try:
        inspect.signature(function).bind(*range(arguments))
    except (TypeError, ValueError):
        return False
    return True
