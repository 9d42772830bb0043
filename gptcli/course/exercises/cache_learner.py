"""Find, build and run a learner's key/value cache and attention.

Dimensions: B batch, T new tokens, C channels (n_embd), H heads, D channels per head.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.course.attention.cases import fill_parameters
from gptcli.course.attention.conventions.call import call_named
from gptcli.course.attention.conventions.class_choice import attention_classes
from gptcli.course.attention.conventions.layout import Sizes
from gptcli.course.attention.conventions.possible_layouts import possible_layouts
from gptcli.course.attention.conventions.settings import LearnerConfig
from gptcli.course.attention.projections import ProjectionError
from gptcli.course.exercises.building import build
from gptcli.course.exercises.cache import Weights
from gptcli.course.exercises.cache_class import (
    NAME,
    CacheClass,
    CacheSizes,
    cache_argument,
    cache_class,
    method_of,
)
from gptcli.course.exercises.cache_mistakes import MISTAKES, STEPS
from gptcli.course.exercises.explainer import Explainer, step_named_in
from gptcli.course.exercises.tensor_trace import TensorTrace
from gptcli.course.lesson import CheckFailed, Say
from gptcli.course.sandbox.learner_file import LearnerFile, place_of
from gptcli.course.sandbox.running import error_of, failed_class
from gptcli.errors import GptcliError
from gptcli.plurals import counted

ATTENTION = "CausalSelfAttention"


@dataclass(frozen=True)
class Size:
    """The sizes of one comparison.

    `pieces` has the number of tokens that each call of forward with the cache reads."""

    B: int
    H: int
    D: int
    pieces: tuple[int, ...]
    block_size: int = 16
    bias: bool = True

    @property
    def C(self) -> int:
        return self.H * self.D

    @property
    def N(self) -> int:
        """The number of tokens in the text."""
        return sum(self.pieces)

    def cache_sizes(self, dtype: torch.dtype = torch.float64) -> CacheSizes:
        """The sizes with which the learner's cache is made."""
        device = torch.device("cpu")
        return CacheSizes(self.B, self.H, self.D, self.block_size, dtype, device)


def classes_of(
    file: LearnerFile, module: ModuleType
) -> tuple[type[Any] | None, type[nn.Module] | None]:
    """The cache class and the attention class of a file that was run; None for a missing class."""
    named: Any = getattr(module, file.class_name, None)
    is_module = inspect.isclass(named) and issubclass(named, nn.Module)
    if is_module and file.class_name == NAME:
        is_module = False
    elif is_module and named.forward is nn.Module.forward:
        # A module with `append` or `update`, but without forward, is a cache.
        is_module = method_of(named, "append", ("append", "update")) is None
    cls = cache_class(module, NAME if is_module else file.class_name)
    attention = named if is_module else getattr(module, ATTENTION, None)
    if not (inspect.isclass(attention) and issubclass(attention, nn.Module)):
        attention = next((each for each in attention_classes(module) if each is not cls), None)
    return cls, attention


class CacheExplainer(Explainer):
    """Makes a CheckFailed from a fault of the learner's cached attention, the class `attention`."""

    attention: type[nn.Module] | None
    ran: frozenset[int] = frozenset()  # the lines that ran in the call with the wrong result

    def mistake(
        self,
        slug: str,
        evidence: str = "",
        *,
        step: int = 0,
        line: int | None = None,
        within: Collection[int] | None = None,
        **facts: Any,
    ) -> CheckFailed:
        """The CheckFailed for the mistake `slug`.

        It quotes `line`, or, if `line` is None, the line that `quotable` finds."""
        if line is None:
            known = next(each for each in self.mistakes if each.slug == slug)
            line = self.quotable(known.at, within)
        return super().mistake(slug, evidence, step=step, line=line, within=within, **facts)

    def quotable(self, at: str, within: Collection[int] | None) -> int:
        """The number of the line to quote; 0 if no line matches a pattern in `at`.

        Takes the first pattern that matches a line. If the pattern matches several lines, prefers
        a line that ran in the call with the wrong result."""
        for pattern in at.split(" || "):
            found = self.source.matches(pattern.removeprefix("last:"), within)
            ran = [line for line in found if line in self.ran]
            if found:
                return (ran or found)[-1 if pattern.startswith("last:") else 0]
        return 0

    def forward_lines(self) -> set[int]:
        """The lines of the attention's class, without those of the constructor."""
        if self.attention is None:
            return set()
        return self.source.class_lines(self.attention.__name__, constructor=False)


class LearnerCache(CacheExplainer):
    """A learner's cache and attention. Their errors become CheckFailed."""

    def __init__(self, file: LearnerFile, module: ModuleType, say: Say) -> None:
        super().__init__(file, STEPS, MISTAKES)
        self.say = say
        self.trace: TensorTrace | None = None  # of the latest forward
        self.length_is_right = False  # whether `length` was right after each append
        self.classes = [
            name
            for name, value in vars(module).items()
            if inspect.isclass(value) and value.__module__ == module.__name__
        ]
        cls, self.attention = classes_of(file, module)
        if (cls is None and self.attention is None) or failed_class(module, NAME) is not None:
            if (error := error_of(file, module, NAME)) is not None:
                raise error
            have = ", ".join(f"`{name}`" for name in self.classes)
            raise GptcliError(
                f"{file.name}: there is no class `{NAME}`"
                + (f"; the file has {have}" * bool(have)),
                f"the exercise has two classes: {NAME} and {ATTENTION}",
            )
        self.cache = None if cls is None else CacheClass(cls)
        self.cache_lines = set() if cls is None else self._lines_of_class(cls)

    def _lines_of_class(self, cls: type[Any]) -> set[int]:
        both = (self.source.class_lines(cls.__name__, constructor=c) for c in (True, False))
        return set().union(*both)

    def needs_cache(self) -> CacheClass:
        """The cache class. Raises CheckFailed if the class or its `append` is missing."""
        if self.cache is None:
            raise self.missing_class(1, NAME)
        if self.cache.names["append"] is None:
            own = [n for n, value in vars(self.cache.cls).items() if inspect.isfunction(value)]
            raise self.missing(1, "method", "append", [n for n in own if n != "__init__"])
        return self.cache

    def missing_class(self, step: int, name: str) -> CheckFailed:
        """The CheckFailed that says that the learner's file lacks the class `name`."""
        if name in self.classes:
            return self.failed_at(
                step,
                "no-module",
                f"`{name}` is not a torch.nn.Module",
                f"what does `class {name}(nn.Module):` give the class?",
            )
        failed = self.missing(step, "class", name, self.classes)
        tell = (
            f"the check looks for `{name}`, the name in the skeleton; {self.steps[step - 1].tell}"
        )
        show = (
            f"write `class {name}`; gptcli exercise cache --out DIR writes a file with this class"
        )
        return CheckFailed(failed.mistake, failed.message, (failed.hints[0], tell, show), step)

    def new(self, sizes: CacheSizes) -> Any:
        """A new cache of the learner's class."""
        cache = self.needs_cache()
        self.say("step 1: building the cache")
        try:
            return cache.make(sizes)
        except (Exception, SystemExit) as error:
            raise self.stopped(error, f"building `{cache.cls.__name__}`", 1) from error

    def method(self, step: int, what: str, call: Callable[[], Any]) -> Any:
        """The result of `call`, which runs a method of the cache. Exceptions become CheckFailed."""
        self.say(f"step {step}: {what}")
        try:
            return call()
        except CheckFailed:
            raise
        except (Exception, SystemExit) as error:
            raise self.stopped(error, what, max(step, step_named_in(error) or 0)) from error

    def lines(self, what: str) -> set[int] | None:
        """The lines of a method of the learner's cache; None if the cache lacks this method.

        `what` is the method's key in METHODS."""
        name = None if self.cache is None else self.cache.names[what]
        found = self.source.lines_of(name) if name else None
        return None if found is None else found & self.cache_lines

    def length(self, cache: Any) -> int:
        """The length that `cache`, an object of the learner's cache class, reports."""
        assert self.cache is not None
        own = self.cache
        return int(self.method(3, "length", lambda: own.length(cache)))

    # ---- the attention ----

    def module(self, size: Size) -> nn.Module:
        """A new module of the learner's attention class, in float64 and evaluation mode.

        Its weights are random."""
        cls = self.attention
        if cls is None:
            raise self.missing_class(5, ATTENTION)
        if cls.forward is nn.Module.forward:
            raise self.missing(5, "method", "forward", [])
        if cache_argument(cls) is None:
            raise self.failed_at(
                5,
                "no-cache-argument",
                f"the forward of your `{cls.__name__}` has no argument `cache`: it takes "
                f"{inspect.signature(cls.forward)}"
                + self.source.quote(self.source.find(r"def forward")),
                "from which argument can forward read the keys of earlier tokens?",
            )
        config = LearnerConfig(
            n_embd=size.C, n_head=size.H, dropout=0.0, bias=size.bias, block_size=size.block_size
        )
        self.say("step 5: building the attention")
        try:
            module = build(cls, config)
        except GptcliError as error:
            raise GptcliError(f"{self.file.name}: {error.message}", error.hint) from None
        except (Exception, SystemExit) as error:
            raise self.stopped(error, f"building `{cls.__name__}`", 5) from error
        module = module.to(torch.float64).eval()
        fill_parameters(module, torch.Generator().manual_seed(size.B))
        return module

    def weights(self, module: nn.Module, size: Size) -> Weights:
        """The query, key, value and output projections of a module."""
        sizes = Sizes(size.C, size.H)
        try:
            layout = possible_layouts(module, sizes, needs_output=True, any_output=False)[0]
            parts = layout.projections(module, sizes)
        except ProjectionError as error:
            raise self.failed_at(
                5, "projections", f"with n_embd = {size.C}: {error.message}"
            ) from None
        query, key, value, output = (part.as_linear() for _, part in parts.items())
        return Weights(query, key, value, output, size.H)

    def forward(self, module: nn.Module, x: Tensor, cache: Any = None) -> Tensor:
        """The output of the learner's attention for x. It has the shape and dtype of x.

        Raises CheckFailed if forward raises an exception, or does not return such a tensor."""
        T = x.shape[1]
        doing = f"forward on x of shape {tuple(x.shape)}"
        self.say(f"step 5: {doing}")
        self.trace = trace = TensorTrace(self.file.path, module)
        name = cache_argument(type(module))
        assert name is not None
        try:
            with trace:
                y = module(x) if cache is None else call_named(module, (x,), {name: cache})
        except (Exception, SystemExit) as error:
            raise self._stopped_in_forward(error, doing, trace) from error
        if isinstance(y, (tuple, list)) and y and isinstance(y[0], Tensor):
            raise self.mistake(
                "returns-more",
                within=self.forward_lines(),
                got=f"a {type(y).__name__} of {len(y)} values",
            )
        if not isinstance(y, Tensor):
            kind = "None" if y is None else f"a {type(y).__name__}"
            raise self.failed_at(
                6, "returns-nothing" if y is None else "no-tensor",
                f"{doing} returned {kind}, not a tensor",
                "what does the last line of forward return?",
            )  # fmt: skip
        if y.shape != x.shape:
            if y.shape[::2] == x.shape[::2] and y.shape[1] > T:
                raise self.mistake(
                    "output-of-all-tokens",
                    within=self.forward_lines(),
                    T=counted(T, "new token"),
                    got=tuple(y.shape),
                    wanted=tuple(x.shape),
                )
            raise self.failed_at(
                6, "output-shape",
                f"your output has shape {tuple(y.shape)}; it needs the shape of x, "
                f"{tuple(x.shape)}",
                "which is the first line whose result does not have the shape in its comment?",
            )  # fmt: skip
        if y.dtype != x.dtype:
            raise self.failed_at(
                6, "output-dtype", f"your output is {y.dtype}, but x is {x.dtype}",
                "which line changes the dtype? look for .float() and dtype=...",
            )  # fmt: skip
        return y

    def _stopped_in_forward(
        self, error: BaseException, doing: str, trace: TensorTrace
    ) -> CheckFailed:
        step = step_named_in(error)
        place = place_of(error, self.file.path)
        if step is None and place is not None:
            if place[0] in self.cache_lines:
                names = ("append", "length", "fits", "clear")
                inside = (i for i, what in zip((1, 3, 4, 4), names, strict=True)
                          if place[0] in (self.lines(what) or ()))  # fmt: skip
                step = next(inside, 1)
            else:
                step = self.source.step_named_at(place[0])
        if step is None:
            # The softmax comes after step 5 (the mask). If the trace has one, step 5 did not stop.
            step = 6 if any(op.name == "softmax" for op in trace.operations) else 5
        return self.stopped(error, doing, min(max(step, 1), 6))
