"""The cache exercise for a forward that takes and returns keys and values, or keeps them itself.

Dimensions: B batch, T new tokens, S tokens in all, C channels (n_embd), H heads, D channels per
head, N tokens of a text.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.course.attention.cases import Case, config_for, fill_parameters, generator_for
from gptcli.course.attention.conventions.call import call_of
from gptcli.course.attention.conventions.other_parts import other_part
from gptcli.course.attention.learner_attention import LearnerAttention
from gptcli.course.exercises import past_layout
from gptcli.course.exercises.cache import Weights, any_attention
from gptcli.course.exercises.cache_class import CacheClass, cache_argument
from gptcli.course.exercises.cache_learner import CacheExplainer, Size, classes_of
from gptcli.course.exercises.cache_outputs import Seen, half_written, named
from gptcli.course.exercises.double_precision import DoublePrecision
from gptcli.course.exercises.explainer import Source, step_named_in
from gptcli.course.exercises.learner_module import close
from gptcli.course.exercises.past_call import PastCall, asks_object, output_and_present, past_call
from gptcli.course.exercises.past_layout import Dims, Place, canonical, leaves
from gptcli.course.exercises.past_mistakes import BANK, STEPS
from gptcli.course.exercises.tensor_trace import TensorTrace
from gptcli.course.lesson import TOLERANCE, CheckFailed, Say
from gptcli.course.report import Check
from gptcli.course.sandbox.learner_file import LearnerFile, in_words, place_of
from gptcli.errors import GptcliError

SIZES = (
    Size(2, 3, 6, (2, 2, 3, 1)),
    Size(1, 2, 6, (1, 1, 1, 1, 1), bias=False),
    Size(3, 1, 6, (4, 4, 2), block_size=10),
    Size(4, 5, 4, (2, 6), block_size=9),
)
"""D is even, for rotary positions, and is no number of tokens."""
_NAMES = {"k": "keys", "v": "values"}


@dataclass
class Called:
    """One call of forward: its tokens, what it got and returned, or how it failed."""

    start: int
    count: int
    trace: TensorTrace
    past: list[Tensor]  # the tensors of the past, as they were before the call
    y: Tensor | None = None
    present: Any = None
    failed: CheckFailed | None = None
    stored: list[Tensor] = None  # type: ignore[assignment]  # the tensors of the present

    @property
    def total(self) -> int:
        """The tokens up to this call's last."""
        return self.start + self.count


@dataclass(frozen=True)
class Text:
    """A module with a text, and what its forward should give for it."""

    size: Size
    module: nn.Module
    weights: Weights | None  # None if the class does more than the attention of week 1
    text: Tensor
    wanted: Tensor  # the outputs of all tokens
    keys: dict[str, Tensor]  # "q", "k" and "v" of all tokens, (B, H, N, D), if they are known
    dims: Dims


class PastLearner(CacheExplainer):
    """A learner's attention with a past. Failures become CheckFailed."""

    def __init__(
        self, file: LearnerFile, module: ModuleType, cls: type[nn.Module], form: PastCall, say: Say
    ) -> None:
        super().__init__(file, STEPS, BANK)
        self.say, self.attention, self.form = say, cls, form
        self.module_of_file = module
        self.builder = LearnerAttention(file, cls, lambda doing: say(f"step 5: {doing}"))
        self.notes: list[tuple[str, str]] = []

    def forward_lines(self) -> set[int]:
        """The lines of the attention's methods, of the classes inside it and of the functions."""
        assert self.attention is not None
        own = {name for name, value in vars(self.module_of_file).items() if isinstance(value, type)}
        models = {name for name in own if name != self.attention.__name__}
        lines = self.source.class_lines(self.attention.__name__, constructor=False)
        for name in self.source.functions():
            lines |= self.source.lines_of(name) or set()
        for name in models:
            lines -= self.source.class_lines(name, constructor=False)
        return lines - self.source.lines_of_constructors()

    # ---- building and calling ----

    def build(self, size: Size) -> tuple[nn.Module, Weights | None]:
        """A module in float64 with random weights, and its projections if they can be compared."""
        case = Case(size.B, size.N, size.H, size.D, size.block_size, size.bias, seed=size.B)
        try:
            case = self.builder.case(case)
            module = self.builder.construct(config_for(case)).to(torch.float64).eval()
        except CheckFailed as failed:
            raise replace_step(failed, 5) from None
        fill_parameters(module, generator_for(case, weights=True))
        other = other_part(type(module), module, self.form.call)
        if other is not None:
            if other.mistake == "other-hardware":
                raise GptcliError(f"{self.file.name}: {other.message}", other.hints[0])
            note = other.message.partition(":" if "rotary" in other.mistake else ";")[0]
            note += ": the cache is compared with your own forward on the whole text"
            if ("more", note) not in self.notes:
                self.notes.append(("more", note))
            return module, None
        try:
            parts = self.builder.projections(module, case)
        except CheckFailed as failed:
            raise replace_step(failed, 5) from None
        if self.builder._call.mask_kind != self.form.call.mask_kind:
            self.form = replace(self.form, call=self.builder._call)
        query, key, value, output = (part.as_linear() for _, part in parts.items())
        return module, Weights(query, key, value, output, size.H)

    def call(
        self, module: nn.Module, x: Tensor, past: Any, start: int, *, cached: bool = True
    ) -> Called:
        """Call forward with the tokens x after `start` others, whose keys and values are `past`."""
        before = [tensor.clone() for tensor in leaves(past)]
        trace = TensorTrace(self.file.path, module)
        called = Called(start, x.shape[1], trace, before, stored=[])
        doing = f"forward on {x.shape[1]} new tokens after {start}"
        self.say(f"step 5: {doing}")
        try:
            with torch.no_grad(), DoublePrecision(), trace:
                out = self.form(module, x.clone(), past, start, cached=cached)
        except (Exception, SystemExit) as error:
            called.failed = self._stopped(error, doing, trace)
            return called
        y, present = output_and_present(out, x, len(self.form.past) == 2)
        if self.form.container is not None:
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
                "output-of-all-tokens", within=lines, T=x.shape[1], got=tuple(y.shape),
                wanted=tuple(x.shape),
            )  # fmt: skip
        return self.failed_at(
            6, "output-shape",
            f"your output has shape {tuple(y.shape)}; it needs the shape of x, {tuple(x.shape)}"
            + self.source.quote(self.source.find(r"reshape|view\(|flatten|return", lines)),
            "which is the first line whose shape is not in the comment?",
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
        """Let a module that keeps the tokens forget them."""
        if self.form.reset is not None:
            try:
                getattr(module, self.form.reset)()
            except (Exception, SystemExit) as error:
                raise self.stopped(error, self.form.reset, 4) from error

    def fresh(self) -> Any:
        """An empty past."""
        return None if self.form.container is None else self.form.container()

    def read(
        self, text: Text, pieces: Iterable[int], module: nn.Module | None = None
    ) -> list[Called]:
        """Read a text in pieces, each with what the one before returned; stop at the first that
        fails. `module` is a module that read other texts before."""
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
        """A module and a text of that size. Raises CheckFailed if forward on the whole is wrong."""
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
        """What forward gives for the whole text without a past."""
        whole = self.whole(module, x)
        if whole.failed is not None:
            raise whole.failed
        assert whole.y is not None
        changed = x.clone()
        changed[:, -1] += 1.0
        other = self.whole(module, changed)
        if other.y is None or not close(whole.y[:, :-1], other.y[:, :-1]):
            raise self.mistake(
                "no-mask", " (on the whole text, without a past)", within=self.forward_lines()
            )
        return whole.y

    def unused(self, module: nn.Module) -> nn.Module:
        """The module, or a copy of it if calls change what it keeps."""
        return copy.deepcopy(module) if self.form.keeps_state else module

    def whole(self, module: nn.Module, x: Tensor) -> Called:
        """One call for a whole text, of a module that read nothing else."""
        return self.call(self.unused(module), x, self.fresh(), 0)

    def adapt(self) -> None:
        """Find out what an empty past is. Raises CheckFailed if forward never returns one."""
        if self.form.keeps_state:
            return
        size = SIZES[0]
        module, _ = self.build(size)
        x = torch.randn(size.B, size.N, size.C, generator=torch.Generator().manual_seed(3))
        x = x.double()
        plain = self.call(module, x, None, 0)
        if plain.failed is None and leaves(plain.present):
            return
        for make in self.form.containers:
            form = self.form
            self.form = replace(form, container=make)
            past = make()
            called = self.call(module, x, past, 0)
            if called.failed is None and leaves(past):
                return
            self.form = form
        if plain.failed is not None and plain.failed.mistake == "raises":
            shapes = [(size.B, size.H, 0, size.D), (size.B, 0, size.H, size.D), (size.B, 0, size.C)]
            for shape in shapes:
                form = self.form
                self.form = replace(form, empty=shape)
                called = self.call(module, x, None, 0)
                if called.failed is None and leaves(called.present):
                    return
                self.form = form


def with_past(file: LearnerFile, module: ModuleType, say: Say) -> PastLearner | None:
    """The learner of a file whose forward takes and returns the past, or keeps it.

    None if it has a cache class, or if its forward has neither an argument nor a state for it."""
    cache, attention = classes_of(file, module)
    if cache is not None and CacheClass(cache).names["append"] is not None:
        return None
    if attention is None or attention.forward is nn.Module.forward:
        return None
    tree = Source(file).tree
    argument = cache_argument(attention)
    if argument is not None and asks_object(tree, argument):
        return None
    call = call_of(attention, f"{file.name}: {attention.__name__}")
    form = past_call(attention, tree, call)
    return None if form is None else PastLearner(file, module, attention, form, say)


def replace_step(failed: CheckFailed, step: int) -> CheckFailed:
    """The same failure at another step."""
    return CheckFailed(failed.mistake, failed.message, failed.hints, step)


def _state(module: nn.Module) -> list[Tensor]:
    """The tensors that a module keeps besides its parameters."""
    found = [b for b in module.buffers() if b.is_floating_point()]
    for part in module.modules():
        for name, value in vars(part).items():
            if not name.startswith("_") or name in ("_cache", "_kv", "_past"):
                found += leaves(value) if not isinstance(value, nn.Module) else []
    return found


# ---- the checks ----


def check_past(learner: PastLearner, done: list[Check]) -> str:
    """The verdict on a forward with a past. Raises CheckFailed for the first mistake."""
    learner.adapt()
    error = 0.0
    for size in SIZES:
        text = learner.text(size)
        error = max(error, _check_text(learner, text))
    _two_continuations(learner)
    _two_texts(learner)
    _dtype(learner)
    done += [Check(f"{n} {step.name}", True, "") for n, step in enumerate(STEPS, 1)]
    verdict = f"the same as recomputation, largest error {error:.1g}"
    done.append(Check("whole", True, verdict))
    done.append(Check("form", True, learner.form.words(), note=True))
    done += [Check(name, True, detail, note=True) for name, detail in learner.notes]
    return verdict


def _check_text(learner: PastLearner, text: Text) -> float:
    """The largest error of a text in pieces. Raises CheckFailed for the mistake."""
    size = text.size
    whole = learner.whole(text.module, text.text)
    calls = learner.read(text, size.pieces)
    seen = [_seen(text, whole), *(_seen(text, one) for one in calls)]
    unwritten = [one.failed for one in seen if one.failed is not None
                 and one.failed.mistake == "not-implemented"]  # fmt: skip
    right = all(one.right for one in seen)
    if whole.failed is None and not unwritten:
        fault = _storing(learner, text, whole, calls)
        harmless = right and fault is not None and fault.mistake in _HARMLESS
        if fault is not None and not harmless:
            raise fault
    if right and len(calls) == len(size.pieces):
        return max(one.error for one in seen)
    if text.weights is None:
        raise _own_reference(learner, text, whole, calls)
    fault = _half_read(learner, calls[-1])
    if fault is not None:
        raise fault
    if unwritten:
        raise half_written(learner, text.weights, text.text, seen)
    raise named(learner, text.weights, text.text, seen)


_HARMLESS = {"wrong-result", "drops-the-oldest"}  # if all outputs are right


def _seen(text: Text, one: Called) -> Seen:
    wanted = text.wanted[:, one.start : one.total]
    return Seen(one.start, one.count, wanted, one.y, one.failed, one.trace)


def _storing(
    learner: PastLearner, text: Text, whole: Called, calls: list[Called]
) -> CheckFailed | None:
    """The mistake in what the calls store, steps 1 to 4; None if all of it is right."""
    form = learner.form
    lines = learner.forward_lines()
    if form.keeps_state:
        return _in_state(learner, text, calls) if text.keys else None
    if not whole.stored:
        got = "the output alone" if whole.present is None else "something without tensors"
        return learner.mistake("present-not-returned", got=got, within=lines)
    found = _places(text, whole)
    if found is None:
        return _unknown_present(learner, text, whole)
    k_place, v_place, swapped = found
    keys = {}
    for part, place in (("k", k_place), ("v", v_place)):
        tensor = place.read(whole.stored, _dims(text, whole, place))
        assert tensor is not None
        keys[part] = tensor.double()
    joins = _joins(learner, text, keys, calls, swapped=swapped)
    if joins is not None:
        return joins
    for one in calls:
        if one.failed is not None or one.y is None:
            return None
        if not one.stored:
            return learner.mistake(
                "present-not-returned", " (with a past)", got="the output alone", within=lines
            )
        fault = _present(learner, text, one, keys, (k_place, v_place))
        if fault is not None:
            return fault
    return None


def _in_state(learner: PastLearner, text: Text, calls: list[Called]) -> CheckFailed | None:
    """The mistake in what a module keeps; None if it keeps all keys and values."""
    fault = _joins(learner, text, text.keys, calls)
    if fault is not None:
        return fault
    lines = learner.forward_lines()
    at = learner.source.find(r"self\.\w*(cache|past|kv|key|value|_k\b|_v\b)\w*\s*=(?!=)", lines)
    for one in calls:
        if one.start == 0 or one.failed is not None:
            continue
        all_, new, old = (
            {part: _holds(one.stored, text.keys[part][:, :, part_of]) for part in "kv"}
            for part_of in (
                slice(0, one.total), slice(one.start, one.total), slice(0, one.start)
            )
        )  # fmt: skip
        if all(all_.values()):
            continue
        if not any(all_.values()) and all(new.values()):
            return learner.mistake(
                "overwrites", S=one.total, found=one.count, line=at, within=lines
            )
        if not any(all_.values()) and all(old.values()):
            return learner.mistake(
                "keeps-the-first", S=one.total, found=one.start, line=at, within=lines
            )
        if all_["k"] != all_["v"]:
            slug = "values-not-stored" if all_["k"] else "keys-not-stored"
            shape = next((tuple(t.shape) for t in one.stored), ())
            return learner.mistake(slug, step=1, S=one.total, shape=shape, within=lines)
    return None


def _holds(stored: list[Tensor], wanted: Tensor) -> bool:
    """Whether the tensors together contain all numbers of `wanted`."""
    if not stored:
        return False
    flat = torch.cat([tensor.double().flatten() for tensor in stored]).sort().values
    goal = wanted.contiguous()
    after = torch.searchsorted(flat, goal).clamp(max=len(flat) - 1)
    nearest = torch.minimum(
        (flat[after] - goal).abs(), (flat[(after - 1).clamp(min=0)] - goal).abs()
    )
    return bool((nearest <= TOLERANCE).all())


def _dims(text: Text, whole: Called, place: Place) -> Dims:
    """The sizes of what is stored: with grouped queries there are fewer heads."""
    part = place.part(whole.stored)
    heads = 0 if part is None else part.numel() // (text.dims.B * text.size.N * text.dims.D)
    return Dims(text.dims.B, heads or text.dims.H, text.dims.D)


def _places(text: Text, whole: Called) -> tuple[Place, Place, bool] | None:
    """Where keys and values are in what forward returns for the whole text, and whether values
    come first; None if they are not there."""
    N = text.size.N
    if text.keys:
        k = past_layout.find(whole.stored, text.keys["k"], N)
        v = past_layout.find(whole.stored, text.keys["v"], N)
        if k is None or v is None:
            return None
        return k, v, (v.leaf, v.at) < (k.leaf, k.at)
    for heads in range(text.dims.H, 0, -1):
        dims = Dims(text.dims.B, heads, text.dims.D)
        found = list(past_layout.places(whole.stored, dims, N))
        first = next((p for p in found if (p.dim is None) == (len(whole.stored) > 1)), None)
        if first is None:
            continue
        second = next((p for p in found if (p.leaf, p.at) != (first.leaf, first.at)
                       and p.order == first.order and p.dim == first.dim), None)  # fmt: skip
        if second is not None:
            return first, second, False
    return None


def _unknown_present(learner: PastLearner, text: Text, whole: Called) -> CheckFailed | None:
    """The mistake of a first call whose result does not hold the keys and values."""
    lines = learner.forward_lines()
    N = text.size.N
    if not text.keys:
        return None
    for count in range(N - 1, 0, -1):
        if past_layout.find(whole.stored, text.keys["k"][:, :, N - count :], count) is not None:
            return learner.mistake(
                "drops-the-oldest", S=N, W=text.size.block_size, found=count, within=lines
            )
    have = {part: past_layout.find(whole.stored, text.keys[part], N) is not None for part in "qkv"}
    if have["q"]:
        return learner.mistake("queries-stored", within=lines)
    if have["k"] != have["v"]:
        one, other = ("values", "keys") if have["k"] else ("keys", "values")
        return learner.mistake("keys-for-values", one=one, other=other, S=N, within=lines, step=1)
    return None


def _joins(
    learner: PastLearner,
    text: Text,
    keys: dict[str, Tensor],
    calls: list[Called],
    *,
    swapped: bool = False,
) -> CheckFailed | None:
    """The mistake that shows where a forward joins stored and new tokens."""
    lines = learner.forward_lines()
    for one in calls:
        if one.start == 0:
            continue
        old = {part: keys[part][:, :, : one.start] for part in "kv"}
        new = {part: keys[part][:, :, one.start : one.total] for part in "kv"}
        found = _found_joins(one, old, new)
        kinds = {part: [each for each in found if each.part == part] for part in "kv"}
        right = {part: any(each.kind == "right" for each in kinds[part]) for part in "kv"}
        mixed = {part: [e for e in kinds[part] if e.kind == "of other"] for part in "kv"}
        if mixed["k"] and mixed["v"]:
            slug = "present-swapped" if swapped else "swapped-in-forward"
            line = None if swapped else _unpacking(learner, mixed["k"][0].line)
            return learner.mistake(slug, line=line, within=lines)
        for part, other in (("k", "v"), ("v", "k")):
            if right[part]:
                continue
            for each in kinds[part]:
                where: dict[str, Any] = {"line": each.line, "within": lines}
                if each.kind == "dim":
                    return learner.mistake(
                        "wrong-dimension", dim=each.dim, what=each.what, S=one.total,
                        part=_NAMES[part], shape=each.shape, wanted=each.wanted, **where,
                    )  # fmt: skip
                if each.kind in ("reversed", "backwards"):
                    tokens = list(range(one.start)), list(range(one.start, one.total))
                    order = (
                        tokens[1] + tokens[0]
                        if each.kind == "reversed" else tokens[0] + tokens[1][::-1]
                    )  # fmt: skip
                    return learner.mistake("new-before-old", order=order, **where)
                if each.kind in ("twice", "stored twice"):
                    return learner.mistake("appended-twice", **where)
                if each.kind == "of other" and right[other]:
                    return learner.mistake(
                        "keys-for-values", step=1, one=_NAMES[part], other=_NAMES[other],
                        S=one.total, **where,
                    )  # fmt: skip
                if each.kind in ("last", "first") and one.count > 1:
                    lost = one.count - 1
                    lost_words = "1 token is" if lost == 1 else f"{lost} tokens are"
                    return learner.mistake("tokens-lost", S=one.total, lost=lost_words, **where)
            if right[other] and (one.stored or one.failed is not None):
                if part == "k" and text.weights is None and _restarts(learner, text, one):
                    return _positions(learner, one)
                slug = "values-not-stored" if part == "v" else "keys-not-stored"
                shape = next((tuple(t.shape) for t in one.stored), ())
                line = next(e.line for e in kinds[other] if e.kind == "right")
                return learner.mistake(
                    slug, S=one.total, shape=shape, line=line, within=lines, step=1
                )
    return None


def _found_joins(
    one: Called, old: dict[str, Tensor], new: dict[str, Tensor]
) -> list[past_layout.Seen]:
    """The ways in which a call joined stored and new tokens, with their lines."""
    forms: dict[tuple[int, ...], list[tuple[past_layout.Seen, Tensor]]] = {}
    for seen, tensor in past_layout.joined(old, new):
        forms.setdefault(tuple(tensor.shape), []).append((seen, tensor))
    found = []
    for operation in one.trace.operations:
        for tensor in operation.results:
            for seen, form in forms.get(tuple(tensor.shape), ()):
                if close(tensor.double(), form):
                    found.append(replace(seen, line=operation.line))
                    if seen.kind == "right":
                        break
    return found


def _unpacking(learner: PastLearner, line: int | None) -> int | None:
    """The line that takes keys and values out of the past, if there is one."""
    names = "|".join(learner.form.past) or "past"
    pattern = rf"^\s*\w+\s*,\s*\w+\s*=\s*.*\b({names})\b"
    return learner.source.find(pattern, learner.forward_lines()) or line


def _present(
    learner: PastLearner,
    text: Text,
    one: Called,
    keys: dict[str, Tensor],
    places: tuple[Place, Place],
) -> CheckFailed | None:
    """The mistake in the keys and values that a call returned; None if they are right."""
    lines = learner.forward_lines()
    wrong: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for part, place in zip("kv", places, strict=True):
        right = keys[part]
        dims = Dims(right.shape[0], right.shape[1], right.shape[3])
        got = place.read(one.stored, dims)
        wanted = right[:, :, : one.total]
        if got is None:
            wrong[part] = "shape"
            continue
        got = got.double()
        sizes[part] = got.shape[2]
        if got.shape[2] >= one.total and close(got[:, :, : one.total], wanted):
            continue
        forms = {
            "new": right[:, :, one.start : one.total],
            "old": right[:, :, : one.start],
            "other": keys["v" if part == "k" else "k"][:, :, : one.total],
        }
        if text.keys:
            forms["queries"] = text.keys["q"][:, :, : one.total]
        found = [name for name, form in forms.items() if close(got, form)]
        if (
            not found
            and 0 < got.shape[2] < one.total
            and close(got, wanted[:, :, one.total - got.shape[2] :])
        ):
            found = ["newest"]
        if (
            not found
            and got.shape[2] == one.total
            and close(got[:, :, : one.start], wanted[:, :, : one.start])
        ):
            found = ["new part"]
        wrong[part] = found[0] if found else "?"
    if not wrong:
        return None
    part = next(iter(wrong))
    kind, found_size = wrong[part], sizes.get(part, 0)
    if set(wrong.values()) == {"other"} and len(wrong) == 2:
        return learner.mistake("present-swapped", within=lines)
    if kind == "queries":
        return learner.mistake("queries-stored", within=lines)
    if one.start == 0:
        return None
    held = _held(one, keys)
    if learner.form.container is not None:  # what is stored is what counts
        held = {"k": False, "v": False}
        if kind in ("new", "old") and len(wrong) == 1:
            kind = "new"
    what = "keys and values" if len(wrong) == 2 else _NAMES[part]
    if kind == "new":
        if held[part]:
            return learner.mistake(
                "present-new-only", S=one.total, found=one.count, what=what, within=lines
            )
        if len(wrong) == 2:
            return learner.mistake("overwrites", S=one.total, found=one.count, within=lines)
        slug = "values-not-stored" if part == "v" else "keys-not-stored"
        return learner.mistake(
            slug, S=one.total, shape=tuple(one.stored[places[part == "v"].leaf].shape),
            within=lines, step=1, line=learner.source.find(r"cat\(", lines),
        )  # fmt: skip
    if kind == "old":
        if held[part]:
            return learner.mistake("present-old", S=one.total, found=one.count, within=lines)
        return learner.mistake("keeps-the-first", S=one.total, found=one.start, within=lines)
    if kind == "other":
        other = _NAMES["v" if part == "k" else "k"]
        return learner.mistake(
            "keys-for-values", step=1, one=_NAMES[part], other=other, S=one.total, within=lines
        )
    if kind == "newest":
        return learner.mistake(
            "drops-the-oldest", S=one.total, W=text.size.block_size, found=found_size, within=lines
        )
    if kind == "new part" and text.weights is None and _restarts(learner, text, one):
        return _positions(learner, one)
    shapes = [tuple(tensor.shape) for tensor in one.stored]
    return learner.failed_at(
        1, "wrong-result",
        f"after {one.total} tokens your forward returns keys and values of shapes {shapes} with "
        "other numbers than those of the tokens"
        + learner.source.quote(learner.source.find(r"cat\(|\breturn\b", lines)),
    )  # fmt: skip


def _held(one: Called, keys: dict[str, Tensor]) -> dict[str, bool]:
    """Whether a call computed the keys, and the values, of all tokens."""
    found = {}
    for part in "kv":
        wanted = keys[part][:, :, : one.total]
        dims = Dims(wanted.shape[0], wanted.shape[1], wanted.shape[3])
        found[part] = any(
            form is not None and close(form.double(), wanted)
            for operation in one.trace.operations
            for tensor in operation.results
            if tensor.numel() == wanted.numel()
            for form in (canonical(tensor, order, dims) for order in past_layout.ORDERS)
        )
    return found


def _restarts(learner: PastLearner, text: Text, one: Called) -> bool:
    """Whether a call computes what the same tokens give at the beginning of a text, but not what
    they give in their place: it turns them by the positions from 0 on."""
    piece = text.text[:, one.start : one.total]
    alone = learner.whole(text.module, piece)
    whole = learner.whole(text.module, text.text)
    B, T, D = text.dims.B, one.count, text.dims.D
    rights: list[Tensor] = []
    for heads in range(1, text.dims.H + 1):
        dims = Dims(B, heads, D)
        for tensor in _canonicals(whole.trace, dims, text.size.N):
            rights.append(tensor[:, :, one.start : one.total])
        mine = _canonicals(one.trace, dims, T)
        for tensor in _canonicals(alone.trace, dims, T):
            in_place = any(close(tensor, right) for right in rights)
            if not in_place and any(close(tensor, each) for each in mine):
                return True
    return False


def _canonicals(trace: TensorTrace, dims: Dims, T: int) -> list[Tensor]:
    """The tensors of a trace that can be queries or keys of T tokens."""
    found = []
    for operation in trace.operations:
        for tensor in operation.results:
            if tensor.numel() == dims.of("BHD") * T:
                form = canonical(tensor, ("B", "H", "T", "D"), dims)
                form = canonical(tensor, ("B", "T", "H", "D"), dims) if form is None else form
                if form is not None and form.shape[2] == T:
                    found.append(form.double())
    return found


def _positions(learner: PastLearner, one: Called) -> CheckFailed:
    lines = learner.forward_lines()
    return learner.mistake("positions-not-offset", start=one.start, within=lines)


def _own_reference(
    learner: PastLearner, text: Text, whole: Called, calls: list[Called]
) -> CheckFailed:
    """The mistake of a forward that does more than week 1's attention, and does not repeat with a
    past what it gives for the whole text."""
    if whole.failed is not None:
        return whole.failed
    one = next((c for c in calls if c.failed is not None or not _seen(text, c).right), calls[-1])
    if one.failed is not None and one.failed.mistake != "raises":
        return one.failed
    if one.failed is None and one.start and _restarts(learner, text, one):
        return _positions(learner, one)
    if one.failed is not None:
        numbers = one.failed.message
        if str(one.total) in numbers and "mask" in numbers:
            return learner.mistake(
                "mask-is-square", f" ({in_words_of(numbers)})", T=one.count, S=one.total,
                within=learner.forward_lines(),
            )  # fmt: skip
        return one.failed
    lines = learner.forward_lines()
    evidence = _seen(text, one).evidence()
    slug = _mask_of(text, one)
    if slug is not None:
        return learner.mistake(slug, evidence, within=lines, T=one.count, S=one.total)
    at = r"tri[ul]|mask|\binf\b|is_causal|softmax"
    return learner.failed_at(
        5, "wrong-result",
        "your attention gives another result with the past than on the whole text"
        + learner.source.quote(learner.source.find(at, lines)) + evidence,
        "for one new token after 6, which keys does it look at, and with which weights?",
    )  # fmt: skip


def _half_read(learner: PastLearner, one: Called) -> CheckFailed | None:
    """The mistake of a call that stops because it gives scaled_dot_product_attention the keys of
    all tokens and the values of the new ones, or the other way round."""
    refused = one.trace.refused
    if one.failed is None or refused is None or refused[0] != "scaled_dot_product_attention":
        return None
    counts = [tensor.shape[-2] for tensor in refused[1][1:3] if tensor.dim() > 2]
    names = ["keys", "values"]
    if sorted(counts) != sorted((one.count, one.total)) or one.count == one.total:
        return None
    if counts[0] < counts[1]:
        names.reverse()
    return learner.mistake(
        "half-read", f" ({in_words_of(one.failed.message)})", within=learner.forward_lines(),
        one=names[0], other=names[1], T=one.count, S=one.total,
    )  # fmt: skip


def in_words_of(message: str) -> str:
    """The exception at the end of a message."""
    return message.rpartition(": ")[2]


def _mask_of(text: Text, one: Called) -> str | None:
    """The mistake that the attention weights of a call show, or None."""
    T, S = one.count, one.total
    for operation in one.trace.operations:
        for tensor in operation.results:
            if tensor.dim() < 3 or tensor.shape[-2:] != (T, S) or S == T:
                continue
            if not close(tensor.double().sum(-1), torch.ones_like(tensor[..., 0].double())):
                continue
            open_ = (tensor > 0).reshape(-1, T, S).any(0)
            at = torch.arange(S)[None] - torch.arange(T)[:, None]
            for slug, shift in (("mask-from-the-corner", 0), ("mask-one-too-far", S - T + 1),
                                ("mask-hides-itself", S - T - 1)):  # fmt: skip
                if torch.equal(open_, at <= shift):
                    return slug
            if bool(open_.all()) and T > 1:
                return "no-mask-after-stored"
    return None


def _two_continuations(learner: PastLearner) -> None:
    """Raise CheckFailed if a past cannot be continued twice."""
    if learner.form.keeps_state or learner.form.container is not None:
        return
    size = replace(SIZES[0], pieces=(5, 3))
    text = learner.text(size)
    first = learner.read(text, (5,))[0]
    other = text.text.flip(0)[:, :3] * 0.5
    learner.call(text.module, other, first.present, 5)
    again = learner.call(text.module, text.text[:, 5:], first.present, 5)
    if again.failed is not None or again.y is None or not close(again.y, text.wanted[:, 5:]):
        now = leaves(first.present)
        same = len(now) == len(first.stored) and all(map(torch.equal, now, first.stored))
        if not same:
            raise learner.mistake("past-changed", within=learner.forward_lines())
        raise learner.mistake(
            "kept-in-module", within=learner.forward_lines(),
            what="a past is continued wrongly after another text continued it",
        )  # fmt: skip


def _two_texts(learner: PastLearner) -> None:
    """Raise CheckFailed if a text is wrong after another one."""
    size = replace(SIZES[0], pieces=(5, 3))
    text = learner.text(size)
    lines = learner.forward_lines()
    other = replace_text(text)
    if learner.form.keeps_state:
        if learner.form.reset is None and not learner.form.starts:
            raise learner.mistake("reset-missing", within=lines)
        module = learner.unused(text.module)
        learner.read(other, (4, 2), module)
        learner.reset(module)
        calls = learner.read(text, size.pieces, module)
        if not all(_seen(text, one).right for one in calls):
            first = calls[0]
            why = (
                f"stops: {in_words_of(first.failed.message)}" if first.failed is not None
                else "still computes with tokens of the text before"
            )  # fmt: skip
            within = learner.source.lines_of(learner.form.reset or "") or lines
            raise learner.mistake("clear-incomplete", problem=why, within=within)
        return
    a = learner.read(text, (5,))[0]
    learner.read(other, (4, 2))
    late = learner.call(text.module, text.text[:, 5:], a.present, 5)
    if late.y is None or not close(late.y, text.wanted[:, 5:]):
        raise learner.mistake(
            "kept-in-module", within=lines,
            what="a text is wrong after another one was read in between",
        )  # fmt: skip


def replace_text(text: Text) -> Text:
    """The same module with another text."""
    return replace(text, text=text.text.roll(1, 1) + 0.3)


def _dtype(learner: PastLearner) -> None:
    """Raise CheckFailed unless keys of bfloat16 stay in bfloat16."""
    if learner.form.keeps_state or learner.form.empty is not None:
        return
    size = SIZES[0]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        module, _ = learner.build(size)
        module = copy.deepcopy(module).to(torch.bfloat16)
        x = torch.randn(size.B, 3, size.C).to(torch.bfloat16)
        past = learner.fresh()
        with torch.no_grad():
            out = learner.form(module, x, past, 0, cached=True)
    except Exception as error:
        learner.notes.append(("dtype", f"forward does not run in bfloat16: {in_words(error)}"))
        return
    finally:
        torch.set_default_dtype(before)
    present = past if learner.form.container is not None else output_and_present(
        out, x, len(learner.form.past) == 2)[1]  # fmt: skip
    got = {tensor.dtype for tensor in leaves(present)} - {torch.bfloat16}
    if got:
        names = (str(one).removeprefix("torch.") for one in (torch.bfloat16, got.pop()))
        raise learner.mistake(
            "other-dtype", given=next(names), got=next(names), within=learner.forward_lines()
        )
