"""Build and run a learner's RMSNorm or grouped-query attention in float64."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptcli.course.attention.conventions.settings import LearnerConfig
from gptcli.course.exercises import modern
from gptcli.course.exercises.building import build
from gptcli.course.exercises.double_precision import DoublePrecision, single_precision
from gptcli.course.exercises.explainer import Source
from gptcli.course.exercises.learner_module import LearnerModule, ModuleLesson, Size
from gptcli.course.exercises.modern import EPS
from gptcli.course.exercises.modern_qk_norm import QKNorm, find_norm
from gptcli.course.exercises.tensor_trace import TensorTrace
from gptcli.course.lesson import CheckFailed, Say
from gptcli.course.sandbox.learner_file import LearnerFile


@dataclass(frozen=True)
class GroupedSize(Size):
    """The sizes of one comparison, with K key/value heads."""

    K: int = 1

    def config(self) -> LearnerConfig:
        """The config that the learner's constructor gets."""
        return modern_config(super().config(), self.K)

    def __str__(self) -> str:
        return f"B={self.B}, T={self.T}, n_embd={self.C}, n_head={self.H}, n_kv_head={self.K}"


def modern_config(config: Any, n_kv_head: int | None = None) -> LearnerConfig:
    """The config that the learner's classes get: fields of `config`, and also n_kv_head and eps.

    If n_kv_head is None, it becomes half of n_head, or 1 if n_head is odd."""
    fields = ("n_embd", "n_head", "dropout", "bias", "block_size")
    values = {name: getattr(config, name) for name in fields}
    if n_kv_head is None:
        n_kv_head = 1 if config.n_head % 2 else config.n_head // 2
    return LearnerConfig(**values, n_kv_head=n_kv_head, eps=EPS)


def ranked_line(
    source: Source, pattern: str, within: Collection[int] | None, suspect: int | None = None
) -> int | None:
    """The number of the line to quote for a mistake; None if no line matches `pattern`.

    The first alternative of `pattern` that matches a line of `within` decides. If `suspect` is one
    of the lines that this alternative matches, returns `suspect`, else the first of them."""
    for alternative in _alternatives(pattern):
        if lines := source.matches(alternative, within):
            return suspect if suspect in lines else lines[0]
    return None


def _alternatives(pattern: str) -> list[str]:
    """The parts of the regular expression `pattern`, split at each `|` outside brackets."""
    parts, depth = [""], 0
    for before, character in zip(" " + pattern, pattern, strict=False):
        if before != "\\":
            depth += (character in "([") - (character in ")]")
        if character == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


class ModernModule(LearnerModule):
    """A learner's RMSNorm or attention. `first` is the first step that the learner's class solves.

    Except in `in_dtype`, `.float()`, float32 and the like in the learner's code give float64, so
    that results can be compared exactly."""

    def __init__(
        self, file: LearnerFile, cls: type[nn.Module], lesson: ModuleLesson, say: Say, first: int
    ) -> None:
        super().__init__(
            file, cls, lesson, lambda doing: say(doing.replace("step 1:", f"step {first}:"))
        )
        self.first = first
        self.norm: QKNorm | None = None  # the norm of queries and keys
        self._running: tuple[TensorTrace, Any, Tensor] | None = None

    def construct(self, size: Size) -> nn.Module:
        """A new module of `size`, in float64 and evaluation mode, with its initial weights."""
        self._running = None
        with DoublePrecision():
            return super().construct(size)

    def filled(self, size: Size) -> tuple[nn.Module, Any, Tensor]:
        """Three things: a module with random weights, what `lesson.weights` finds in it, an input.

        For an attention, finds the norm of queries and keys, and stores it as `norm`. Raises
        CheckFailed if this norm applies a gain after the rotation."""
        module, weights, x = super().filled(size)
        if hasattr(weights, "norm") and self._may_normalise():
            self._running = None
            trace = TensorTrace(self.file.path, module)
            with contextlib.suppress(Exception), torch.no_grad(), trace:
                self.forward(module, x.clone())
            with torch.no_grad():
                heads = {
                    part: modern.split(F.linear(x, *getattr(weights, part)), weights.D)
                    for part in "qk"
                }
                self.norm = weights.norm = find_norm(module, trace, heads, modern.turned)
            if self.norm is not None and self.norm.after_rotation:
                raise self.mistake_in_forward("gain-after-rotation", D=weights.D)
        return module, weights, x

    def _may_normalise(self) -> bool:
        """Whether the class, or a function of the file, mentions a norm."""
        functions = [self.source.lines_of(name) or set() for name in self.source.functions()]
        lines = self.constructor.union(self.methods, *functions)
        return bool(self.source.matches(r"(?i)norm|rsqrt", lines))

    def run(self, module: nn.Module, weights: Any, x: Tensor, trace: TensorTrace) -> Tensor:
        """Return module(x), with the shape and dtype of x. Record its operations in `trace`."""
        self._running = trace, weights, x.detach().clone()
        return super().run(module, weights, x, trace)

    def forward(self, module: nn.Module, x: Tensor) -> Any:
        """What the learner's forward returns, computed in float64."""
        with DoublePrecision():
            return module(x)

    def stopped(self, error: BaseException, doing: str, step: int) -> CheckFailed:
        """The CheckFailed for `error`. It names `step`, or an earlier missing step.

        A step is missing if its result is not in the trace. No step before `first` is named."""
        if self._running is not None and step > self.first:
            step = min(step, self.step_after(*self._running))
        return super().stopped(error, doing, max(step, self.first))

    def step_after(
        self, trace: TensorTrace, weights: Any, x: Tensor, error: BaseException | None = None
    ) -> int:
        """The first step whose result is not in the trace; the last step if all results are."""
        with torch.no_grad():
            return self.lesson.unseen(trace, weights, x) or super().step_after(
                trace, weights, x, error
            )

    def missing(self, step: int, kind: str, name: str, others: Any) -> CheckFailed:
        """The CheckFailed for a method that the class does not have."""
        return super().missing(max(step, self.first), kind, name, others)

    def mistake(self, slug: str, evidence: str = "", *, step: int = 0, **more: Any) -> CheckFailed:
        """The CheckFailed for the known mistake `slug`.

        It names `step`, or `first` if `step` is earlier. If `step` is 0, it names the mistake's
        own step."""
        return super().mistake(slug, evidence, step=max(step, self.first) if step else 0, **more)

    def facts(self, x: Tensor) -> dict[str, Any]:
        """The sizes that messages mention."""
        size = next(s for s in self.lesson.sizes if tuple(x.shape) == (s.B, s.T, s.C))
        assert isinstance(size, GroupedSize)
        more = {"H": size.H, "K": size.K, "D": size.C // size.H, "G": size.H // size.K}
        return {**super().facts(x), **more}

    def mistake_in_forward(
        self, slug: str, evidence: str = "", suspect: int | None = None, **facts: Any
    ) -> CheckFailed:
        """The CheckFailed for the mistake `slug`. It quotes the line that `ranked_line` finds.

        If the methods have no such line, or only a `return`, the constructor is searched."""
        pattern = next(m for m in self.mistakes if m.slug == slug).at
        line = ranked_line(self.source, pattern, self.methods, suspect)
        if line is None or self._is_return(line):
            of_constructor = ranked_line(self.source, pattern, self.constructor)
            line = of_constructor or line or suspect
        return self.mistake(slug, evidence, line=line, within=self.methods, **facts)

    def in_dtype(self, size: Size, dtype: torch.dtype) -> BaseException | Tensor:
        """What forward returns in `dtype`, without DoublePrecision.

        If the constructor or forward raises an exception, returns this exception."""
        x = torch.randn(size.B, size.T, size.C, generator=torch.Generator().manual_seed(5))
        try:
            with torch.no_grad(), single_precision():
                module = build(self.cls, size.config()).eval().to(dtype)
                out: Tensor = module(x.to(dtype))
        except Exception as error:
            return error
        return out
