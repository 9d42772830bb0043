"""Builds and runs the learner's class, and turns errors in its code into messages.

Dimensions: B batch, T time, C channels (n_embd).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gptcli.course.attention.cases import (
    CASES,
    SHAPES,
    USUAL,
    Case,
    config_for,
    draw_input,
    fill_parameters,
    generator_for,
    reference,
    sharpen,
)
from gptcli.course.attention.conventions.call import Call, call_named, call_of
from gptcli.course.attention.conventions.constructor import Constructor
from gptcli.course.attention.conventions.layout import Layout, Sizes
from gptcli.course.attention.conventions.other_parts import other_part
from gptcli.course.attention.conventions.possible_layouts import possible_layouts
from gptcli.course.attention.conventions.settings import LearnerConfig, UnknownSetting
from gptcli.course.attention.conventions.trials import best_layout, best_mask
from gptcli.course.attention.projections import NAMES, ProjectionError, Projections
from gptcli.course.lesson import TOLERANCE, CheckFailed
from gptcli.course.sandbox.learner_file import LearnerFile, in_words, place_of, raised_in
from gptcli.course.sandbox.running import import_error
from gptcli.course.sandbox.time_limit import TookTooLong, within
from gptcli.errors import GptcliError

BACKWARD = "the backward pass"
SINGLE_TOLERANCE = 1e-4
CALL_LIMIT_S = 4.0  # for one call of the learner's code; correct code takes milliseconds


@dataclass
class Built:
    """A module of the learner's class with random weights for `case`, and the Projections in it."""

    case: Case
    module: nn.Module
    projections: Projections

    def reference(self, x: Tensor) -> Tensor:
        """The correct output for x with the module's weights."""
        return reference(self.projections, x, self.case.H)


@dataclass(frozen=True)
class Attempt:
    """A forward pass that has run, with everything that is needed to repeat it."""

    module: nn.Module
    case: Case
    x: Tensor
    options: dict[str, bool]
    grad: bool  # whether gradients were enabled


class LearnerAttention:
    """Builds modules of the learner's class, runs them, and finds their weights.

    The class can follow any of many conventions. Calls `say` with each action, so that the report
    on a file that hangs can name the last action. Raises GptcliError if the class has no
    constructor, or if the constructor or forward needs an argument whose meaning is unknown."""

    def __init__(self, file: LearnerFile, cls: type[nn.Module], say: Callable[[str], None]) -> None:
        self.file, self.cls, self.say = file, cls, say
        self.attempt: Attempt | None = None  # the most recent forward pass
        self.built: Built | None = None  # the most recent module
        self.left_out: str | None = None  # a note on code of the file that did not run
        self.returns_tuple = False  # whether forward returns more than the output
        self.single = False  # whether the code works only in float32; then the checks use float32
        self.rounded: Attempt | None = None  # the first forward pass that rounds to float32
        self.refused: list[Case] = []  # cases whose sizes the constructor refuses
        self._layout: Layout | None = None
        self._configs: WeakKeyDictionary[nn.Module, LearnerConfig] = WeakKeyDictionary()
        if cls.__init__ is nn.Module.__init__:
            raise GptcliError(
                f"{file.name}: {cls.__name__} has no constructor",
                "write `def __init__(self, config):`; config has n_embd, n_head, dropout, bias and "
                "block_size",
            )
        self.constructor = Constructor(cls, file.name)
        self._call = call_of(cls, f"{file.name}: {cls.__name__}")

    @property
    def tolerance(self) -> float:
        """The largest error that a correct output can have."""
        return SINGLE_TOLERANCE if self.single else TOLERANCE

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the module's weights and of x."""
        return torch.float32 if self.single else torch.float64

    def check_forward(self) -> None:
        """Raise CheckFailed if the class has no method `forward`."""
        if "_forward_unimplemented" in getattr(self.cls.forward, "__name__", ""):
            raise CheckFailed(
                "no-forward",
                f"`{self.cls.__name__}` has no method `forward`",
                "write `def forward(self, x):`",
                1,
            )

    @property
    def takes_use_dropout(self) -> bool:
        """Whether forward has the argument `use_dropout`, as in the course."""
        return self._call.takes_use_dropout

    @property
    def is_called_with_x(self) -> bool:
        """Whether forward needs only x, takes no mask and returns one tensor, as in the course."""
        return self._call == Call(takes_use_dropout=self._call.takes_use_dropout) and not (
            self.returns_tuple
        )

    @property
    def cases(self) -> list[Case]:
        """The cases that the checks use: those of CASES that the constructor accepts."""
        return [case for case in CASES if case not in self.refused]

    def case(self, case: Case) -> Case:
        """`case`, or the same case with one head if the class does not get the number of heads."""
        if self.constructor.names_heads or case.H == 1:
            return case
        return replace(case, H=1, D=case.C)

    def construct(self, config: LearnerConfig) -> nn.Module:
        """A new module of the class.

        Raises CheckFailed if the learner's code raises an error, if the constructor does not call
        super().__init__() first, or if forward does not call a lazy layer of the module."""
        self.say("building the module")
        early = "before Module.__init__() call"  # part of PyTorch's message
        try:
            module: nn.Module = self.call(
                lambda: self.constructor.build(config), "building the module", 1
            )
            if "_parameters" in vars(module):
                self._configs[module] = config
                self._give_sizes(module, config["n_embd"])
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

    def _give_sizes(self, module: nn.Module, n_embd: int) -> None:
        """Run forward once if the module has lazy layers: the first call sets their sizes."""
        if any(is_lazy(parameter) for parameter in module.parameters()):
            x = torch.zeros(1, 2, n_embd)
            self.call(lambda: self.forward(module, x), "forward on zeros", 1)
        unused = [name for name, parameter in module.named_parameters() if is_lazy(parameter)]
        if unused:
            name = unused[0].removesuffix(".weight").removesuffix(".bias")
            raise CheckFailed(
                "projections-unused",
                f"forward does not call `{name}`: the layer never gets its size",
                f"call `{name}` in forward, or remove this layer",
                1,
            )

    def filled(self, case: Case, dropout: float = 0.0) -> tuple[nn.Module, Projections]:
        """A new module with random weights in `dtype` (evaluation mode), and its Projections."""
        case = self.case(case)
        module = self._filled(case, dropout)
        return module, self.projections(module, case)

    def _filled(self, case: Case, dropout: float = 0.0) -> nn.Module:
        module = self.construct(config_for(case, dropout)).to(self.dtype)
        fill_parameters(module, generator_for(case, weights=True))
        return module.eval()

    def build(self, case: Case, dropout: float = 0.0) -> Built:
        """A new module with the random weights of `filled`. A sharp case makes the scores large."""
        module, projections = self.filled(case, dropout)
        case = self.case(case)
        if case.sharp:
            sharpen(projections)
            projections = self.projections(module, case)
        self.built = Built(case, module, projections)
        return self.built

    def layout(self) -> Layout:
        """The layout of the class: where each projection is. Raises as `recognise` does."""
        if self._layout is None:
            self.recognise()
        assert self._layout is not None
        return self._layout

    def paths_of_inputs(self) -> set[str]:
        """The paths of the query, key and value matrices in a module."""
        return {source.path for role, source in self.layout().sources if role != "o"}

    def projections(self, module: nn.Module, case: Case) -> Projections:
        """The module's projections.

        Raises GptcliError if they cannot be recognised, and CheckFailed if one is missing or has a
        wrong shape."""
        layout = self.layout()
        try:
            return layout.projections(module, Sizes(case.C, case.H))
        except ProjectionError as error:
            raise self._failure_of(error, case) from None

    def recognise(self, *, any_output: bool = False) -> None:
        """Find the projections and the kind of mask: by shapes, by names, and by trying.

        With `any_output`, an identity replaces a missing output projection. Raises GptcliError if
        the module has unknown weights, and CheckFailed if a projection is missing or has a wrong
        shape."""
        layouts = self._possible_layouts(any_output)
        self._layout = layouts[0]
        if len(layouts) == 1 and self._call.mask is None:
            return
        case = self.case(USUAL)
        module = self._filled(case)
        x = draw_input(case, generator_for(case))
        try:
            with within(CALL_LIMIT_S), torch.no_grad():
                self._call = best_mask(self._call, _Within(self, module), x, None, self.file.path)
                self._layout = best_layout(layouts, module, x, case.H, self.forward, self.file.path)
                problem = self.projections(module, case)
                self._call = best_mask(
                    self._call,
                    _Within(self, module),
                    x,
                    lambda: reference(problem, x, case.H),
                    self.file.path,
                )
        except TookTooLong:
            return  # the checks will report the line that takes too long

    def _possible_layouts(self, any_output: bool) -> list[Layout]:
        single = not self.constructor.names_heads
        needs_output = not single
        case = self.case(SHAPES)
        for attempt in (case, self.case(USUAL)):
            module = self.construct(config_for(attempt))
            try:
                return possible_layouts(
                    module,
                    Sizes(attempt.C, attempt.H),
                    needs_output=needs_output,
                    any_output=any_output,
                )
            except ProjectionError as error:
                if attempt is not case:
                    raise self._failure_of(error, attempt) from None
        raise AssertionError

    def _failure_of(self, error: ProjectionError, case: Case) -> GptcliError | CheckFailed:
        if error.unnamed:
            return GptcliError(
                f"{self.file.name}: {error.message}", f"name the projections {NAMES}"
            )
        if error.missing == "input" and self._call.times == 3:
            return GptcliError(
                f"{self.file.name}: `{self.cls.__name__}` gets queries, keys and values and makes "
                "none, so it is only a part of an attention",
                "name the class that has the projections: FILE:CLASS",
            )
        hint = f"give the module nn.Linear projections named {NAMES}"
        if error.slug == "plain-list":
            hint = "use nn.ModuleList, nn.ModuleDict or nn.ParameterList in its place"
        return CheckFailed(
            error.slug,
            f"with n_embd = {case.C}: {error.message}",
            hint,
            8 if error.output else 1,
        )

    def forward(self, module: nn.Module, x: Tensor, **options: Any) -> Any:
        """The output for x. During the call, the file's variables have the sizes of `module`."""
        given = x.to(torch.float32) if self.single and x.dtype == torch.float64 else x
        config = self._configs.get(module)
        variables = (
            contextlib.nullcontext() if config is None else self.constructor.variables(config)
        )
        with variables:
            y = self._call(module, given, **options)
        if isinstance(y, tuple | list) and y and isinstance(y[0], Tensor):
            self.returns_tuple, y = True, y[0]
        if given is x:
            return y
        if not torch.equal(given, x.to(torch.float32)):
            x.copy_(given)  # the code has changed its input, so change the caller's x too
        return y.double() if isinstance(y, Tensor) and y.dtype == torch.float32 else y

    def forward_of(self, attempt: Attempt) -> Callable[[Tensor], Any]:
        """A function that repeats the forward pass of `attempt`, but with the x that it gets."""
        return lambda x: self.forward(attempt.module, x, **attempt.options)

    def other_part(self) -> CheckFailed | None:
        """The CheckFailed if the class has a part that is none of the eight steps, or None."""
        module = None if self.attempt is None else self.attempt.module
        return other_part(self.cls, module, self._call)

    def convention(self) -> str:
        """One line that names the matrix of each projection."""
        return self.layout().words()

    def call_notes(self) -> list[str]:
        """Sentences about what is unusual in the call of forward."""
        more = ["forward returns several things; the check uses the first as the output"]
        return self._call.notes() + (more if self.returns_tuple else [])

    def run(self, module: nn.Module, x: Tensor, **options: bool) -> Tensor:
        """module(x). Raises CheckFailed unless the result is a tensor of x's shape and dtype."""
        doing = f"forward on x of shape {tuple(x.shape)}"
        self.say(doing)
        if self.built is not None:
            grad = torch.is_grad_enabled()
            self.attempt = Attempt(module, self.built.case, x.detach().clone(), options, grad)
        y = self.call(lambda: self.forward(module, x, **options), doing, None)
        if y is None:
            raise CheckFailed(
                "returns-nothing",
                f"{doing} returned None",
                "end forward with `return` and the result of the output projection",
            )
        if not isinstance(y, Tensor):
            raise CheckFailed(
                "no-tensor",
                f"{doing} returned a {type(y).__name__}, not a tensor",
                "return only the output, a tensor of shape (B, T, C)",
            )
        if y.shape != x.shape:
            raise CheckFailed(
                "output-shape",
                f"output has shape {tuple(y.shape)}, expected {tuple(x.shape)}",
                "concatenate the heads, so that the output has the shape of x, (B, T, C)",
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

        For every error of this code, raises what `failure_from` returns."""
        try:
            with within(CALL_LIMIT_S):
                return function()
        except BaseException as error:  # also sys.exit() and KeyboardInterrupt
            raise self.failure_from(error, doing, step) from error

    def failure_from(
        self, error: BaseException, doing: str, step: int | None = None
    ) -> CheckFailed | GptcliError:
        """The CheckFailed for an error in the learner's code. Its message names the error's line.

        Returns a GptcliError if an import fails, or if the code reads an unknown setting and no
        known setting has a similar name."""
        if isinstance(error, ImportError):
            return import_error(self.file, error)
        if isinstance(error, UnknownSetting) and "did you mean" not in str(error):
            return GptcliError(
                f"{self.file.name}: `{self.cls.__name__}` reads `config.{error.name}`, and the "
                "checker does not know its meaning",
                f'read it with a default: `getattr(config, "{error.name}", ...)`; config has '
                "n_embd, n_head, dropout, bias and block_size",
            )
        place = place_of(error, self.file.path)
        where = ""
        if place is not None:
            where = f" at {self.file.where(place[0])} of {Path(self.file.name).name}, `{place[1]}`"
        if isinstance(error, TookTooLong):
            return CheckFailed(
                "time-limit",
                f"{doing} is {error}{where}",
                "look there for a loop that never ends, or for a very slow computation",
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
        return CheckFailed("raises", message, _hint_of(error), step)


def _hint_of(error: BaseException) -> str:
    """The hint for an error in the learner's code: what to look at."""
    text = str(error)
    if re.search(r"dtype|scalar type|Double|Half|BFloat16", text):
        return "make new tensors in the dtype of x, for example with dtype=x.dtype"
    if re.search(r"(?i)cuda|mps|device|gpu", text):
        return "make new tensors on the device of x, with device=x.device, and do not call .cuda()"
    if isinstance(error, AttributeError | NameError | KeyError):
        return "check the names on that line: constructor and forward must use the same names"
    if isinstance(error, EOFError | OSError):
        return "do not call input() or read files in the class: the checker has no input for it"
    if isinstance(error, TypeError):
        return "check what that line calls, and with which arguments"
    return "check the shapes of the tensors on that line"


class _Within(nn.Module):
    """A learner's module. While forward runs, the file's variables have the sizes of the module."""

    def __init__(self, learner: LearnerAttention, module: nn.Module) -> None:
        super().__init__()
        self.config = learner._configs[module]
        self.inner, self.constructor = module, learner.constructor

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """The result of the learner's module."""
        with self.constructor.variables(self.config):
            return call_named(self.inner, arguments, named)
