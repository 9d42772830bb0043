"""Build and call a learner's forward that takes and returns keys and values, or keeps them.

The past is the keys and values of the tokens before x. The present is the keys and values of all
tokens; forward returns the present. Dimensions: B batch, T new tokens, S tokens in all, C channels
(n_embd), H heads, D channels per head, N tokens of a text.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.course.attention.cases import Case, config_for, fill_parameters, generator_for
from gptcli.course.attention.conventions.call import call_of
from gptcli.course.attention.conventions.other_parts import other_part
from gptcli.course.attention.conventions.settings import LearnerConfig
from gptcli.course.attention.learner_attention import LearnerAttention
from gptcli.course.exercises.cache import Weights, any_attention
from gptcli.course.exercises.cache_class import CacheClass, cache_argument
from gptcli.course.exercises.cache_learner import CacheExplainer, Size, classes_of
from gptcli.course.exercises.double_precision import DoublePrecision
from gptcli.course.exercises.explainer import Source, step_named_in
from gptcli.course.exercises.learner_module import close
from gptcli.course.exercises.past_call import PastCall, asks_object, output_and_present, past_call
from gptcli.course.exercises.past_layout import Dims, leaves
from gptcli.course.exercises.past_mistakes import BANK, STEPS
from gptcli.course.exercises.tensor_trace import TensorTrace
from gptcli.course.lesson import CheckFailed, Say
from gptcli.course.sandbox.learner_file import LearnerFile, place_of
from gptcli.errors import GptcliError
from gptcli.plurals import counted

SIZES = (
    Size(2, 3, 6, (2, 2, 3, 1)),
    Size(1, 2, 6, (1, 1, 1, 1, 1), bias=False),
    Size(3, 1, 6, (4, 4, 2), block_size=10),
    Size(4, 5, 4, (2, 6), block_size=9),
)
"""Rotary positions need an even D. In each size, D differs from every T and every S."""


_ROTATION = re.compile(r"rot|rope", re.IGNORECASE)


@dataclass
class Called:
    """One call of forward: its tokens, its past, and its result or CheckFailed."""

    start: int
    count: int
    trace: TensorTrace
    past: list[Tensor]  # the tensors of the past, as they were before the call
    y: Tensor | None = None
    present: Any = None
    failed: CheckFailed | None = None
    # the tensors of the present, or of the module if it keeps keys and values itself
    stored: list[Tensor] = None  # type: ignore[assignment]

    @property
    def total(self) -> int:
        """The number of tokens after this call: `start` earlier tokens and `count` new ones."""
        return self.start + self.count


@dataclass(frozen=True)
class Text:
    """A module, an input for it, and the outputs that the module should give for this input."""

    size: Size
    module: nn.Module
    weights: Weights | None  # None if the class has a part that the attention of week 1 lacks
    text: Tensor
    wanted: Tensor  # the outputs of all tokens
    keys: dict[str, Tensor]  # "q", "k" and "v" of all tokens, (B, H, N, D), if they are known
    dims: Dims


class PastLearner(CacheExplainer):
    """A learner's attention with a past. Its errors become CheckFailed."""

    def __init__(
        self, file: LearnerFile, module: ModuleType, cls: type[nn.Module], form: PastCall, say: Say
    ) -> None:
        super().__init__(file, STEPS, BANK)
        self.say, self.attention, self.form = say, cls, form
        self.module_of_file = module
        self.builder = LearnerAttention(file, cls, lambda doing: say(f"step 5: {doing}"))
        self.notes: list[tuple[str, str]] = []
        self.size, self.dtype = SIZES[0], torch.float64  # of the newest nn.Module
        self.config = LearnerConfig(n_embd=0)
        self.inner: set[type] = set()  # the classes of the attention's submodules

    def forward_lines(self) -> set[int]:
        """The line numbers of all functions and methods in the file that the attention can use.

        Constructors are left out, and so are modules that are no part of the attention."""
        assert self.attention is not None
        own = {
            name: value
            for name, value in vars(self.module_of_file).items()
            if isinstance(value, type) and issubclass(value, nn.Module)
        }
        lines: set[int] = set()
        for name in self.source.functions():
            lines |= self.source.lines_of(name) or set()
        for name, value in own.items():
            if value is not self.attention and value not in self.inner:
                lines -= self.source.class_lines(name, constructor=False)
        return lines - self.source.lines_of_constructors()

    def quotable(self, at: str, within: Collection[int] | None) -> int:
        """The number of the line to quote in a message; 0 if no line matches a pattern in `at`.

        Chooses as CacheExplainer.quotable does, but quotes a line of a rotation, or a `return`
        outside forward, only if no other line fits."""
        assert self.attention is not None
        rotation = {n for n in (*self.source.functions(), *vars(self.module_of_file))
                    if _ROTATION.search(n)}  # fmt: skip
        others: set[int] = set()
        for name in rotation:
            others |= self.source.lines_of(name) or set()
            others |= self.source.class_lines(name, constructor=False)
        inside = set(within or ()) - others
        if at.removeprefix("last:").startswith(r"\breturn"):
            inside &= self.source.lines_of("forward") or set()
        return super().quotable(at, inside) or super().quotable(at, within)

    # ---- building and calling ----

    def build(self, size: Size) -> tuple[nn.Module, Weights | None]:
        """A float64 module with random weights, and its projections.

        The projections are None if the module has a part that the attention of week 1 lacks, such
        as rotary positions."""
        case = Case(size.B, size.N, size.H, size.D, size.block_size, size.bias, seed=size.B)
        try:
            case = self.builder.case(case)
            self.config = config_for(case)
            module = self.builder.construct(self.config).to(torch.float64).eval()
        except CheckFailed as failed:
            raise at_step(failed, 5) from None
        self.size = size
        self.inner = {type(part) for part in module.modules()}
        fill_parameters(module, generator_for(case, weights=True))
        other = other_part(type(module), module, self.form.call)
        if other is not None:
            if other.mistake == "other-hardware":
                raise GptcliError(f"{self.file.name}: {other.message}", other.hints[0])
            note = other.message.partition(":" if "rotary" in other.mistake else ";")[0]
            note += ": the check compares your cache with your own forward on the whole text"
            if ("more", note) not in self.notes:
                self.notes.append(("more", note))
            return module, None
        try:
            parts = self.builder.projections(module, case)
        except CheckFailed as failed:
            raise at_step(failed, 5) from None
        if self.builder._call.mask_kind != self.form.call.mask_kind:
            self.form = replace(self.form, call=self.builder._call)
        query, key, value, output = (part.as_linear() for _, part in parts.items())
        return module, Weights(query, key, value, output, size.H)

    def call(
        self, module: nn.Module, x: Tensor, past: Any, start: int, *, cached: bool = True
    ) -> Called:
        """Call forward with the tokens x. `past` is the past of `start` earlier tokens.

        If forward raises an exception or returns no output for x, the Called has a CheckFailed."""
        before = [tensor.clone() for tensor in leaves(past)]
        trace = TensorTrace(self.file.path, module, deep=True)
        called = Called(start, x.shape[1], trace, before, stored=[])
        doing = (
            f"forward on {counted(x.shape[1], 'new token')} after {counted(start, 'earlier token')}"
        )
        self.say(f"step 5: {doing}")
        try:
            with self.as_learner(), DoublePrecision(), trace:
                out = self.form(module, x.clone(), past, start, cached=cached)
        except (Exception, SystemExit) as error:
            called.failed = self._stopped(error, doing, trace)
            return called
        y, present = output_and_present(out, x, len(self.form.past) == 2)
        if self.form.changes_past:
            present = past
        called.y, called.present = y, present
        if self.form.keeps_state:
            called.stored = [b.detach().clone() for b in _state(module)]
        else:
            called.stored = [tensor.clone() for tensor in leaves(present)]
        called.failed = self._wrong_kind(y, x, doing)
        if called.failed is not None:
            called.y = None
        return called

    @contextlib.contextmanager
    def as_learner(self) -> Iterator[None]:
        """In this context the file's variables hold the sizes of `config`, and autograd is off."""
        with torch.no_grad(), self.builder.constructor.variables(self.config):
            yield

    def _wrong_kind(self, y: Any, x: Tensor, doing: str) -> CheckFailed | None:
        if not isinstance(y, Tensor):
            kind = "None" if y is None else f"a {type(y).__name__}"
            return self.failed_at(
                6, "returns-nothing" if y is None else "no-tensor",
                f"{doing} returned {kind}, not a tensor",
                "what does the last line of forward return?",
            )  # fmt: skip
        if y.shape == x.shape:
            return None
        lines = self.forward_lines()
        if y.shape[::2] == x.shape[::2] and y.dim() == 3 and y.shape[1] > x.shape[1]:
            return self.mistake(
                "output-of-all-tokens", within=lines, T=counted(x.shape[1], "new token"),
                got=tuple(y.shape), wanted=tuple(x.shape),
            )  # fmt: skip
        return self.failed_at(
            6, "output-shape",
            f"your output has shape {tuple(y.shape)}; it needs the shape of x, {tuple(x.shape)}"
            + self.source.quote(self.source.find(r"reshape|view\(|flatten|return", lines)),
            "which is the first line whose result does not have the shape in its comment?",
        )  # fmt: skip

    def _stopped(self, error: BaseException, doing: str, trace: TensorTrace) -> CheckFailed:
        step = step_named_in(error)
        place = place_of(error, self.file.path)
        if step is None and place is not None:
            step = self.source.step_named_at(place[0])
        if step is None:
            step = 6 if any(op.name == "softmax" for op in trace.operations) else 5
        return self.stopped(error, doing, min(max(step, 1), 6))

    def reset(self, module: nn.Module) -> None:
        """If the module has a method that removes its stored keys and values, call this method."""
        if self.form.reset is not None:
            try:
                getattr(module, self.form.reset)()
            except (Exception, SystemExit) as error:
                raise self.stopped(error, self.form.reset, 4) from error

    def fresh(self) -> Any:
        """An empty past for the newest module."""
        size = self.size
        sizes = {"B": size.B, "H": size.H, "D": size.D, "C": size.C, "W": size.block_size}
        return self.form.fresh(sizes, self.dtype)

    def read(
        self, text: Text, pieces: Iterable[int], module: nn.Module | None = None
    ) -> list[Called]:
        """Read `text` piece by piece, and return the calls of forward.

        `pieces` has the number of tokens of each piece. Each call gets the past that the previous
        call returned. Stops after the first call that fails. Also stops after a call that returns
        no past, unless the module keeps keys and values itself. `module` can be a module that has
        read other texts; by default it has read none."""
        calls: list[Called] = []
        past = self.fresh()
        start = 0
        module = module or self.unused(text.module)
        for count in pieces:
            called = self.call(module, text.text[:, start : start + count], past, start)
            calls.append(called)
            start += count
            if called.failed is not None:
                break
            past = called.present
            if past is None and not self.form.keeps_state:
                break
        return calls

    def text(self, size: Size, seed: int = 7) -> Text:
        """A module and a text of `size`. Raises CheckFailed if the module cannot be compared."""
        module, weights = self.build(size)
        generator = torch.Generator().manual_seed(seed + size.B)
        x = torch.randn(size.B, size.N, size.C, generator=generator, dtype=torch.float64)
        dims = Dims(size.B, size.H, size.D)
        if weights is None:
            wanted = self._own_output(module, x)
            return Text(size, module, None, x, wanted, {}, dims)
        wanted = any_attention(weights, x, 0, size.N)
        parts = {"q": weights.query, "k": weights.key, "v": weights.value}
        known = {
            name: layer(x).detach().view(size.B, size.N, size.H, size.D).transpose(1, 2)
            for name, layer in parts.items()
        }
        return Text(size, module, weights, x, wanted.detach(), known, dims)

    def _own_output(self, module: nn.Module, x: Tensor) -> Tensor:
        """The output of forward if it reads the whole text `x` in one call.

        Raises CheckFailed if forward stops or has no causal mask."""
        whole = self.whole(module, x)
        if whole.failed is not None:
            raise whole.failed
        assert whole.y is not None
        changed = x.clone()
        changed[:, -1] += 1.0
        other = self.whole(module, changed)
        if other.y is None or not close(whole.y[:, :-1], other.y[:, :-1]):
            raise self.mistake(
                "no-mask", " (on the whole text, without a past)", when="",
                within=self.forward_lines(),
            )  # fmt: skip
        return whole.y

    def unused(self, module: nn.Module) -> nn.Module:
        """`module` if calls of forward do not change it; else a copy of `module`."""
        return copy.deepcopy(module) if self.form.keeps_state else module

    def whole(self, module: nn.Module, x: Tensor) -> Called:
        """Call forward with the whole text `x`, on a module that has read no other text."""
        return self.call(self.unused(module), x, self.fresh(), 0)

    def adapt(self) -> None:
        """Find out what forward takes as an empty past. Changes nothing if no try succeeds."""
        if self.form.keeps_state:
            return
        size = SIZES[0]
        module, _ = self.build(size)
        x = torch.randn(size.B, size.N, size.C, generator=torch.Generator().manual_seed(3))
        x = x.double()
        plain = self.call(module, x, None, 0)
        if plain.failed is None and leaves(plain.present):
            return
        tries: list[dict[str, Any]] = [{"container": make} for make in self.form.containers]
        if plain.failed is not None and plain.failed.mistake == "raises":
            for buffers in (False, True):
                tries += [{"empty": o, "buffers": buffers} for o in ("BHTD", "BTHD", "BTC")]
        form = self.form
        for changes in tries:
            self.form = replace(form, **changes)
            past = self.fresh()
            called = self.call(module, x, past, 0)
            stored = leaves(past if self.form.changes_past else called.present)
            if called.failed is None and any(bool(one.any()) for one in stored):
                return
        self.form = form


def with_past(file: LearnerFile, module: ModuleType, say: Say) -> PastLearner | None:
    """A PastLearner for `file`, if forward takes or keeps the keys and values of earlier tokens.

    None if the file has a cache class or no attention, if forward uses its argument as a cache
    object, or if forward has neither an argument nor a state for the past."""
    cache, attention = classes_of(file, module)
    argument = None if attention is None else cache_argument(attention)
    if cache is not None and CacheClass(cache).names["append"] is not None:
        # the attention can have a part that is a cache: then forward takes no cache
        is_part = issubclass(cache, nn.Module) and attention is not None and argument is None
        if not is_part:
            return None
    if attention is None or attention.forward is nn.Module.forward:
        return None
    tree = Source(file).tree
    if argument is not None and asks_object(tree, argument):
        return None
    call = call_of(attention, f"{file.name}: {attention.__name__}")
    form = past_call(attention, tree, call)
    return None if form is None else PastLearner(file, module, attention, form, say)


def at_step(failed: CheckFailed, step: int) -> CheckFailed:
    """A copy of `failed` that names `step` as the wrong step."""
    return CheckFailed(failed.mistake, failed.message, failed.hints, step)


def _state(module: nn.Module) -> list[Tensor]:
    """The tensors that a module keeps besides its parameters, such as its cache."""
    found = [b for b in module.buffers() if b.is_floating_point()]
    for part in module.modules():
        for name, value in vars(part).items():
            if not name.startswith("_") or name in ("_cache", "_kv", "_past"):
                found += leaves(value) if not isinstance(value, nn.Module) else []
    return found
