"""The lesson on the key/value cache: compare a learner's cache and attention with the reference.

Dimensions: B batch, T new tokens, S tokens in all, C channels (n_embd), H heads, D channels per
head, N tokens of a text.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.course.attention.cases import fill_parameters
from gptcli.course.attention.conventions.class_choice import attention_classes
from gptcli.course.attention.conventions.layout import Sizes
from gptcli.course.attention.conventions.possible_layouts import possible_layouts
from gptcli.course.attention.conventions.settings import LearnerConfig
from gptcli.course.attention.projections import ProjectionError
from gptcli.course.exercises.building import build
from gptcli.course.exercises.cache import Weights, any_attention, any_weights
from gptcli.course.exercises.cache_class import (
    NAME,
    CacheClass,
    CacheSizes,
    cache_argument,
    cache_class,
)
from gptcli.course.exercises.cache_mistakes import MISTAKES, STEPS
from gptcli.course.exercises.cache_probes import check_length, check_store, check_window
from gptcli.course.exercises.explainer import Explainer, step_named_in
from gptcli.course.exercises.tensor_trace import TensorTrace
from gptcli.course.lesson import TOLERANCE, CheckFailed, Lesson, Say
from gptcli.course.report import Check
from gptcli.course.sandbox.learner_file import LearnerFile, place_of
from gptcli.course.sandbox.running import error_of, failed_class, run_file
from gptcli.errors import GptcliError

ATTENTION = "CausalSelfAttention"


@dataclass(frozen=True)
class Size:
    """The sizes of one comparison. `pieces` are the numbers of tokens that are read at once."""

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
        """The tokens of the text."""
        return sum(self.pieces)

    def cache_sizes(self, dtype: torch.dtype = torch.float64) -> CacheSizes:
        """What the learner's cache is made for."""
        device = torch.device("cpu")
        return CacheSizes(self.B, self.H, self.D, self.block_size, dtype, device)


SIZES = (
    Size(2, 3, 4, (6, 1, 3, 1)),
    Size(1, 2, 5, (1, 1, 1, 1, 1), bias=False),
    Size(3, 1, 7, (4, 4, 2), block_size=10),
    Size(4, 4, 2, (2, 5), block_size=8),
)


@dataclass
class Seen:
    """What a forward returned for `count` tokens after `start` others, or how it failed."""

    start: int
    count: int
    wanted: Tensor
    got: Tensor | None = None
    failed: CheckFailed | None = None
    trace: TensorTrace | None = None

    @property
    def error(self) -> float:
        """The largest difference from recomputation; infinite without an output."""
        if self.got is None or self.got.shape != self.wanted.shape:
            return float("inf")
        value = float((self.got - self.wanted).abs().max())
        return value if value == value else float("inf")

    @property
    def right(self) -> bool:
        """Whether the output is that of recomputation."""
        return self.error <= TOLERANCE

    def evidence(self) -> str:
        """The numbers that show it, for the end of a message."""
        by = f"by up to {self.error:.2g}" if self.error < float("inf") else "by NaN or infinity"
        new = f"{self.count} new token{'s' * (self.count > 1)}"
        if self.got is None:
            return f" ({new} after {self.start}: forward stops)"
        return f" ({new} after {self.start}: the output differs from recomputation {by})"


class LearnerCache(Explainer):
    """A learner's cache and attention. Failures become CheckFailed."""

    def __init__(self, file: LearnerFile, say: Say) -> None:
        super().__init__(file, STEPS, MISTAKES)
        self.say = say
        self.trace: TensorTrace | None = None  # of the latest forward
        self.length_is_right = False  # what the probes of step 3 found
        module = run_file(file)
        self.classes = [
            name
            for name, value in vars(module).items()
            if inspect.isclass(value) and value.__module__ == module.__name__
        ]
        named = getattr(module, file.class_name, None)
        is_module = inspect.isclass(named) and issubclass(named, nn.Module)
        cls = cache_class(module, NAME if is_module else file.class_name)
        attentions = attention_classes(module)
        self.attention = named if is_module else getattr(module, ATTENTION, None)
        if not (inspect.isclass(self.attention) and issubclass(self.attention, nn.Module)):
            self.attention = next((each for each in attentions), None)
        if (cls is None and self.attention is None) or failed_class(module, NAME) is not None:
            if (error := error_of(file, module, NAME)) is not None:
                raise error
            have = ", ".join(f"`{name}`" for name in self.classes)
            raise GptcliError(
                f"{file.name}: there is no class `{NAME}`" + (f"; it has {have}" * bool(have)),
                f"the exercise has two classes: {NAME} and {ATTENTION}",
            )
        self.cache = None if cls is None else CacheClass(cls)
        self.cache_lines = set() if cls is None else self._lines_of_class(cls)

    def _lines_of_class(self, cls: type[Any]) -> set[int]:
        both = (self.source.class_lines(cls.__name__, constructor=c) for c in (True, False))
        return set().union(*both)

    def needs_cache(self) -> CacheClass:
        """The cache class. Raises CheckFailed if the file has none, or it has no `append`."""
        if self.cache is None:
            raise self.missing(1, "class", NAME, self.classes)
        if self.cache.names["append"] is None:
            own = [n for n, value in vars(self.cache.cls).items() if inspect.isfunction(value)]
            raise self.missing(1, "method", "append", [n for n in own if n != "__init__"])
        return self.cache

    def new(self, sizes: CacheSizes) -> Any:
        """A new cache of the learner's class."""
        cache = self.needs_cache()
        self.say("step 1: building the cache")
        try:
            return cache.make(sizes)
        except (Exception, SystemExit) as error:
            raise self.stopped(error, f"building `{cache.cls.__name__}`", 1) from error

    def method(self, step: int, what: str, call: Callable[[], Any]) -> Any:
        """The result of a method of the cache. What it raises becomes CheckFailed."""
        self.say(f"step {step}: {what}")
        try:
            return call()
        except CheckFailed:
            raise
        except (Exception, SystemExit) as error:
            raise self.stopped(error, what, max(step, step_named_in(error) or 0)) from error

    def lines(self, what: str) -> set[int] | None:
        """The lines of the cache's method for `what`."""
        name = None if self.cache is None else self.cache.names[what]
        found = self.source.lines_of(name) if name else None
        return None if found is None else found & self.cache_lines

    def length(self, cache: Any) -> int:
        """The learner's length of a cache."""
        assert self.cache is not None
        own = self.cache
        return int(self.method(3, "length", lambda: own.length(cache)))

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
        """The known mistake of that name. Its `at` has several patterns, the best one first."""
        if line is None:
            known = next(each for each in MISTAKES if each.slug == slug)
            line = next(
                (
                    found[-1 if pattern.startswith("last:") else 0]
                    for pattern in known.at.split(" || ")
                    if (found := self.source.matches(pattern.removeprefix("last:"), within))
                ),
                0,
            )
        return super().mistake(slug, evidence, step=step, line=line, within=within, **facts)

    # ---- the attention ----

    def module(self, size: Size) -> nn.Module:
        """A new attention in float64 and evaluation mode, with random weights."""
        cls = self.attention
        if cls is None:
            raise self.missing(5, "class", ATTENTION, self.classes)
        if cls.forward is nn.Module.forward:
            raise self.missing(5, "method", "forward", [])
        if cache_argument(cls) is None:
            raise self.failed_at(
                5,
                "no-cache-argument",
                f"the forward of your `{cls.__name__}` has no argument `cache`: it takes "
                f"{inspect.signature(cls.forward)}"
                + self.source.quote(self.source.find(r"def forward")),
                "what does forward need besides x, to know the earlier tokens?",
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
        """The projections of a module."""
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
        """The output for x, of x's shape and dtype. Raises CheckFailed."""
        T = x.shape[1]
        doing = f"forward on x of shape {tuple(x.shape)}"
        self.say(f"step 5: {doing}")
        self.trace = trace = TensorTrace(self.file.path, module)
        name = cache_argument(type(module))
        assert name is not None
        try:
            with trace:
                y = module(x) if cache is None else module(x, **{name: cache})
        except (Exception, SystemExit) as error:
            raise self._stopped_in_forward(error, doing, trace) from error
        if isinstance(y, (tuple, list)) and y and isinstance(y[0], Tensor):
            raise self.mistake(
                "returns-more",
                within=_forward_lines(self),
                got=f"a {type(y).__name__} of {len(y)} things",
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
                    within=_forward_lines(self),
                    T=T,
                    got=tuple(y.shape),
                    wanted=tuple(x.shape),
                )
            raise self.failed_at(
                6, "output-shape",
                f"your output has shape {tuple(y.shape)}; it needs the shape of x, "
                f"{tuple(x.shape)}", "which is the first line whose shape is not in the comment?",
            )  # fmt: skip
        if y.dtype != x.dtype:
            raise self.failed_at(
                6, "output-dtype", f"your output is {y.dtype}, but x is {x.dtype}",
                "which line leaves the dtype of x? look for .float() and dtype=...",
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
            # What softmax makes sums to 1, so a tensor of weights shows that the mask was done.
            step = 6 if any(op.name == "softmax" for op in trace.operations) else 5
        return self.stopped(error, doing, min(max(step, 1), 6))


class CacheLesson(Lesson[LearnerCache]):
    """The key/value cache: a class that stores, and an attention that reads."""

    name = "cache"
    steps = STEPS
    mistakes = MISTAKES

    def load(self, file: LearnerFile, say: Say) -> LearnerCache:
        """Run the file and return its classes, ready to be tried."""
        return LearnerCache(file, say)

    def check(self, learner: LearnerCache, done: list[Check]) -> str:
        """Check the cache alone, then the attention with the cache."""
        learner.needs_cache()
        fault: CheckFailed | None = None
        try:
            for probe in (check_store, check_length, check_window):
                probe(learner)
        except CheckFailed as failed:
            fault = failed
            if failed.mistake in ("not-implemented", "missing") and (failed.step or 1) < 3:
                raise
        error = 0.0
        try:
            with torch.no_grad():
                error = _equality(learner)
        except CheckFailed as failed:
            if fault is None or (failed.step or 1) < (fault.step or 1):
                fault = failed
        else:
            # Another layout than (B, H, T, D) is right if the attention knows it.
            if fault is not None and fault.step in (1, 2) and fault.mistake in _OF_LAYOUT:
                fault = None
        if fault is not None:
            raise fault
        verdict = f"the same as recomputation, largest error {error:.1g}"
        done += self.all_steps(verdict)
        return verdict


_OF_LAYOUT = {"wrong-dimension", "raises", "wrong-result", "tokens-lost"}


def _equality(learner: LearnerCache) -> float:
    """The largest error over all sizes. Raises CheckFailed for the first mistake."""
    largest = 0.0
    for size in SIZES:
        module = learner.module(size)
        weights = learner.weights(module, size)
        generator = torch.Generator().manual_seed(7 + size.B)
        text = torch.randn(size.B, size.N, size.C, generator=generator)
        seen = _read(learner, module, weights, text, size)
        if not all(one.right for one in seen):
            raise _named(learner, weights, text, seen, size)
        largest = max(largest, *(one.error for one in seen))
    _two_texts(learner)
    _refuses(learner)
    return largest


def _read(
    learner: LearnerCache, module: nn.Module, weights: Weights, text: Tensor, size: Size
) -> list[Seen]:
    """The text without a cache, and then in pieces with one."""
    seen = [Seen(0, size.N, any_attention(weights, text, 0, size.N))]
    cache = learner.new(size.cache_sizes())
    start = 0
    for count in size.pieces:
        seen.append(Seen(start, count, any_attention(weights, text, start, count)))
        start += count
    for number, one in enumerate(seen):
        piece = text[:, one.start : one.start + one.count].clone()
        try:
            one.got = learner.forward(module, piece, cache if number else None)
        except CheckFailed as failed:
            if failed.mistake == "not-implemented" or (failed.step or 6) < 5:
                raise
            one.failed = failed
        one.trace = learner.trace
        if number:
            _stored(learner, cache, one)
    return seen


def _stored(learner: LearnerCache, cache: Any, one: Seen) -> None:
    """Raise CheckFailed unless forward stored the new tokens once."""
    if one.failed is not None or not learner.length_is_right:
        return
    length = learner.length(cache)
    total = one.start + one.count
    if length == 0 and total:
        raise learner.mistake("not-stored", T=total, found=length, within=_forward_lines(learner))
    if length == 2 * total and one.start == 0:
        raise learner.mistake(
            "appended-twice", T=total, found=length, within=_forward_lines(learner)
        )


def _forward_lines(learner: LearnerCache) -> set[int]:
    assert learner.attention is not None
    return learner.source.class_lines(learner.attention.__name__, constructor=False)


def _named(
    learner: LearnerCache, w: Weights, text: Tensor, seen: list[Seen], size: Size
) -> CheckFailed:
    """The known mistake that gives these outputs, or the step at which the numbers part."""
    first = next(one for one in seen if not one.right)
    tried = [one for one in seen if one.got is not None]
    lines = _forward_lines(learner)
    for strict in (True, False):
        for mistake, form in _FORMS:
            if _explains(form, w, text, tried, strict):
                wrong = next((one for one in tried if not one.right), first)
                slug = mistake.slug
                if slug == "cache-not-read" and _has_scores(wrong, wrong.count):
                    slug = "mask-hides-stored"  # it gives the same numbers
                return learner.mistake(
                    slug, wrong.evidence(), within=lines,
                    T=wrong.count, S=wrong.start + wrong.count,
                )  # fmt: skip
    if (square := _square_mask(learner, first)) is not None:
        return square
    if (masked := _masked_wrongly(learner, w, text, first)) is not None:
        return masked
    if first.failed is not None:
        return first.failed
    weights, _ = any_weights(w, text, first.start, first.count)
    return learner.failed_at(
        6 if first.trace is not None and first.trace.has(weights) else 5,
        "wrong-result",
        "your attention gives another result"
        + (" without a cache" if first is seen[0] else " with the cache")
        + first.evidence(),
        "for one new token after 6, which keys does it look at, and with which weights?",
    )


def _masked_wrongly(
    learner: LearnerCache, w: Weights, text: Tensor, one: Seen
) -> CheckFailed | None:
    """The known mistake of step 5 whose weights a forward shows, if a later step is wrong too."""
    if one.trace is None:
        return None
    right, _ = any_weights(w, text, one.start, one.count)
    if one.trace.has(right):
        return None
    for mistake in MISTAKES:
        for form in mistake.forms if mistake.step == 5 else ():
            assert isinstance(form, partial)
            weights, _ = any_weights(w, text, one.start, one.count, **form.keywords)
            if one.trace.has(weights):
                return learner.mistake(
                    mistake.slug, one.evidence(), within=_forward_lines(learner),
                    T=one.count, S=one.start + one.count,
                )  # fmt: skip
    return None


_FORMS = [(m, form) for m in MISTAKES if m.step != 4 for form in m.forms]


def _explains(
    form: Callable[..., Tensor], w: Weights, text: Tensor, tried: list[Seen], strict: bool
) -> bool:
    """Whether a mistake's form gives all outputs of the learner, and at least one wrong one.

    If not `strict`, it has to give only the wrong ones: a file can have branches."""
    some = False
    for one in tried:
        assert one.got is not None
        try:
            wanted = form(w, text, one.start, one.count)
        except RuntimeError:  # a form that these sizes do not have
            return False
        same = torch.isclose(one.got, wanted, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
        if not bool(same.all()):
            # Mistakes with a cache can leave the forward without one right.
            if one.right and (one is tried[0] or not strict):
                continue
            return False
        some = some or not one.right
    return some


def _square_mask(learner: LearnerCache, one: Seen) -> CheckFailed | None:
    """The mistake of a mask of T x T or S x S, if an exception about shapes shows it."""
    T, S = one.count, one.start + one.count
    if one.failed is None or one.failed.step not in (5, 6) or T == S:
        return None
    text = one.failed.message
    numbers = {int(number) for number in re.findall(r"\((\d+)\)", text.rpartition(": ")[2])}
    clash = numbers and numbers <= {T, S} and re.search(r"mask|tri[ul]|inf", text)
    if not clash and not _has_scores(one, S):
        return None
    line = re.search(r"line (\d+)", text) if clash else None
    return learner.mistake(
        "mask-is-square", f" ({text.rpartition(': ')[2]})", line=int(line[1]) if line else None,
        within=_forward_lines(learner), T=T, S=S,
    )  # fmt: skip


def _has_scores(one: Seen, rows: int) -> bool:
    """Whether a forward computed scores of that many queries with all keys."""
    operations = one.trace.operations if one.trace is not None else ()
    sizes = (rows, one.start + one.count)
    return any(t.dim() >= 3 and t.shape[-2:] == sizes for op in operations for t in op.results)


def _two_texts(learner: LearnerCache) -> None:
    """Raise CheckFailed if two texts in turn disturb each other, or a cleared cache its next."""
    size = SIZES[0]
    module = learner.module(size)
    weights = learner.weights(module, size)
    generator = torch.Generator().manual_seed(5)
    texts = [torch.randn(size.B, size.N, size.C, generator=generator) for _ in range(2)]
    caches = [learner.new(size.cache_sizes()) for _ in texts]

    def part(number: int, cache: Any, start: int, count: int, when: str) -> None:
        text = texts[number]
        wanted = any_attention(weights, text, start, count)
        piece = text[:, start : start + count].clone()
        one = Seen(start, count, wanted)
        try:
            one.got = learner.forward(module, piece, cache)
        except CheckFailed as failed:
            if failed.mistake != "raises":
                raise
        if not one.right:
            raise learner.mistake(
                "kept-in-module", one.evidence(), within=_forward_lines(learner), what=when
            )

    part(0, caches[0], 0, 5, "the first text is wrong in a new module")
    part(1, caches[1], 0, 4, "a second text, with another cache, is wrong after the first began")
    part(0, caches[0], 5, 1, "the first text is wrong after another one was read in between")
    part(1, None, 0, size.N, "forward(x) without a cache is wrong after one with a cache")
    part(1, caches[1], 4, 3, "a text is wrong after a forward without a cache")
    assert learner.cache is not None
    if learner.cache.names["clear"] is None:
        return
    own = learner.cache
    learner.method(4, "clear", lambda: own.clear(caches[0]))
    part(1, caches[0], 0, 3, "a text in a cleared cache is wrong")


def _refuses(learner: LearnerCache) -> None:
    """Raise CheckFailed if forward reads more tokens than block_size into a cache."""
    size = SIZES[3]
    module = learner.module(size)
    cache = learner.new(size.cache_sizes())
    learner.forward(module, torch.zeros(size.B, size.block_size, size.C), cache)
    more = torch.zeros(size.B, 2, size.C)
    try:
        learner.forward(module, more, cache)
    except CheckFailed as failed:
        if failed.mistake == "raises":
            return
        raise
    raise learner.mistake(
        "never-full", W=size.block_size, what="forward", count=size.block_size + 2,
        within=_forward_lines(learner),
    )  # fmt: skip
