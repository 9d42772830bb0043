"""Test what the append of a learner's cache stores and returns: steps 1 and 2 of the exercise.

Dimensions: B batch, T new tokens, S tokens in all, H heads, D channels per head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gptcli.course.exercises.cache_class import CacheSizes
from gptcli.course.exercises.cache_learner import LearnerCache
from gptcli.course.exercises.explainer import step_named_in
from gptcli.course.exercises.tensor_trace import name_of
from gptcli.course.lesson import CheckFailed
from gptcli.plurals import counted

_DIMENSIONS = {0: "batch", 1: "heads", 3: "channels"}
_MOST_NESTED = 4  # how many levels of lists, dicts and objects are searched


def probe_sizes(block_size: int = 64, dtype: torch.dtype = torch.float64) -> CacheSizes:
    return CacheSizes(2, 3, 5, block_size, dtype, torch.device("cpu"))


def pieces_of(*counts: int) -> list[tuple[Tensor, Tensor]]:
    """(keys, values), each (B, H, T, D), for each T in `counts`.

    The tensors contain no number twice."""
    generator = torch.Generator().manual_seed(sum(counts))

    def draw(count: int) -> Tensor:
        return torch.randn(2, 3, count, 5, generator=generator, dtype=torch.float64)

    return [(draw(count), draw(count)) for count in counts]


def _joined(pieces: list[tuple[Tensor, Tensor]], part: int, dim: int = 2) -> Tensor:
    return torch.cat([piece[part] for piece in pieces], dim=dim)


def _tensors(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """The tensors in an object, also those in its lists, tuples, dicts and attributes."""
    if isinstance(value, Tensor):
        yield value.detach()
    elif depth < _MOST_NESTED:
        parts: Any = ()
        if isinstance(value, dict):
            parts = value.values()
        elif isinstance(value, (list, tuple)) or hasattr(value, "append"):
            parts = list(value) if isinstance(value, (list, tuple)) else ()
        elif hasattr(value, "__dict__") and not isinstance(value, type):
            parts = vars(value).values()
        for part in parts:
            yield from _tensors(part, depth + 1)


def _stored(cache: Any) -> list[Tensor]:
    """The tensors that a cache holds, in its attributes or in those of its class."""
    slots = [getattr(cache, name, None) for name in getattr(type(cache), "__slots__", ())]
    own = {**vars(type(cache)), **getattr(cache, "__dict__", {})}
    return list(_tensors([list(own.values()), slots]))


def _holds(stored: list[Tensor], wanted: Tensor) -> bool:
    """Whether the tensors together contain all numbers of `wanted`."""
    floats = [t.double().flatten() for t in stored if t.is_floating_point()]
    return bool(floats) and bool(torch.isin(wanted, torch.cat(floats)).all())


def same(a: Any, b: Tensor) -> bool:
    return isinstance(a, Tensor) and a.shape == b.shape and bool(torch.equal(a.to(b.dtype), b))


def check_store(learner: LearnerCache) -> None:
    """Raise CheckFailed unless append stores the tokens and returns all of them.

    Also raises CheckFailed if append changes the dtype or device of tokens, or if two caches share
    tokens."""
    cache = learner.new(probe_sizes())
    pieces = pieces_of(2, 2, 3, 1)
    unread: CheckFailed | None = None  # of step 2, if step 2 is not written yet
    for number in range(1, len(pieces) + 1):
        seen = pieces[:number]
        try:
            got = append(learner, cache, seen[-1])
        except CheckFailed as failed:
            if failed.step != 2 or failed.mistake != "not-implemented":
                raise
            unread, got = failed, None
        fault = _compare(learner, cache, seen, got, to_read=unread is not None)
        if fault is not None:
            raise fault
    other = learner.new(probe_sizes())
    first = pieces_of(3)
    try:
        got = append(learner, other, first[0])
    except CheckFailed as failed:
        if unread is None or failed.step != 2:
            raise
    total = sum(piece[0].shape[2] for piece in pieces)
    pair = pair_of(got) if unread is None else None
    found = _stored(other) if pair is None else pair
    if any(
        one.dim() == 4 and one.shape[2] > 3 and _holds([one], earlier)
        for one in found
        for earlier in pieces[0]
    ):
        raise learner.mistake("shared-between-caches", found=total)
    if unread is not None:
        raise unread
    _check_dtype(learner)
    _check_device(learner)


def append(learner: LearnerCache, cache: Any, piece: tuple[Tensor, Tensor]) -> Any:
    """What the learner's append returns. An exception becomes a CheckFailed of step 1 or step 2."""
    own = learner.needs_cache()
    k, v = piece[0].clone(), piece[1].clone()
    learner.say("step 1: append")
    try:
        return own.append(cache, k, v)
    except (Exception, SystemExit) as error:
        named = step_named_in(error) or 1
        stored = named > 1 and _holds(_stored(cache), k) and _holds(_stored(cache), v)
        step = min(named, 2) if stored else 1
        raise learner.stopped(error, f"append of keys {tuple(k.shape)}", step) from error


def _compare(
    learner: LearnerCache,
    cache: Any,
    seen: list[tuple[Tensor, Tensor]],
    got: Any,
    *,
    to_read: bool,
) -> CheckFailed | None:
    """The CheckFailed if `got`, which append returned, is wrong; None if `got` is right.

    `seen` are all pieces that were appended so far. With `to_read`, step 2 is still to be written.
    Then the tensors in the cache are judged, because append returned nothing."""
    wanted = (_joined(seen, 0), _joined(seen, 1))
    S, new = wanted[0].shape[2], seen[-1][0].shape[2]
    stored = _stored(cache)
    holds = all(_holds(stored, one) for one in wanted)
    pair = pair_of(got)
    if pair is None and not to_read and (holds or not stored):
        kind, within = kind_of(got), learner.lines("append")
        if kind.startswith("(None") and len(seen) == 1:
            if not stored:
                return _wrong(learner, 1, f"after append of {S} tokens your cache stores nothing")
            return learner.mistake("returns-old", new=counted(new, "new token"), within=within)
        step = 2 if holds else 1
        return learner.mistake("returns-nothing", step=step, got=kind, S=S, within=within)
    if pair is None:  # judge the stored tensors instead of the result
        pair = _stored_pair(stored, wanted)
        if pair is None:
            if holds:
                return None
            return _wrong(learner, 1, f"after {S} tokens your cache does not hold all of them")
        right = all(_begins(one, other) for one, other in zip(pair, wanted, strict=True))
        fault = None if right else _name(learner, pair, seen, stored, 1)
        if fault is None and not to_read:
            fault = learner.mistake(
                "returns-nothing", got=kind_of(got), S=S, within=learner.lines("append")
            )
        return fault
    fault = _other_dtype(learner, pair, torch.float64, step=2 if holds else 1)
    if fault is not None:
        return fault
    if same(pair[0], wanted[0]) and same(pair[1], wanted[1]):
        return None
    return _name(learner, pair, seen, stored, 2 if holds else 1)


def pair_of(got: Any) -> tuple[Tensor, Tensor] | None:
    """The keys and the values in `got`, the result of append, or None.

    `got` must be two tensors, or one tensor that stacks both: (2, B, H, S, D)."""
    if isinstance(got, Tensor) and got.dim() == 5 and got.shape[0] == 2:
        return got[0], got[1]
    if isinstance(got, (tuple, list)) and len(got) == 2 and all(map(torch.is_tensor, got)):
        return got[0], got[1]
    return None


def kind_of(got: Any) -> str:
    if isinstance(got, tuple):
        return "(" + ", ".join(kind_of(one) for one in got) + ")"
    return "None" if got is None else f"a {type(got).__name__}"


def _stored_pair(
    stored: list[Tensor], wanted: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor] | None:
    """The stored tensor that holds the most keys, and the one that holds the most values.

    Returns None if no tensor holds keys, if no tensor holds values, or if the cache stores a list
    of pieces."""
    found = []
    for one in wanted:
        counts = [
            int(torch.isin(one, t.double()).sum()) if t.is_floating_point() else 0 for t in stored
        ]
        if not counts or max(counts) == 0:
            return None
        found.append(stored[counts.index(max(counts))])
    total = found[0].numel() + found[1].numel()
    whole = wanted[0].numel() + wanted[1].numel()
    if total < whole and _holds(stored, wanted[0]) and _holds(stored, wanted[1]):
        return None  # the cache stores a list of pieces
    return found[0], found[1]


def _begins(one: Tensor, wanted: Tensor) -> bool:
    """Whether `one` equals `wanted`, or is a longer buffer that begins with `wanted`."""
    if one.dim() != 4 or one.shape[2] < wanted.shape[2]:
        return False
    return same(one[:, :, : wanted.shape[2]], wanted)


def _name(
    learner: LearnerCache,
    pair: tuple[Tensor, Tensor],
    seen: list[tuple[Tensor, Tensor]],
    stored: list[Tensor],
    step: int,
) -> CheckFailed:
    """The CheckFailed for `pair`, the wrong keys and values that the cache stored or returned.

    `step` is 2 if the cache stores all tokens, else 1. If no known mistake gives `pair`, the
    CheckFailed is "wrong-result"."""
    wanted = (_joined(seen, 0), _joined(seen, 1))
    S, new = wanted[0].shape[2], seen[-1][0].shape[2]
    within = learner.lines("append")

    def forms(part: int) -> dict[str, Tensor]:
        found = {
            "right": wanted[part],
            "other": wanted[1 - part],
            "reversed": _joined(seen[::-1], part),
            "new": seen[-1][part],
            "first": seen[0][part],
        }
        if len(seen) > 1:
            found["old"] = _joined(seen[:-1], part)
        if len({piece[0].shape for piece in seen}) == 1:
            found |= {f"dim {d}": _joined(seen, part, d) for d in _DIMENSIONS}
            found |= {f"reversed dim {d}": _joined(seen[::-1], part, d) for d in _DIMENSIONS}
        return found

    kinds = []
    for part in (0, 1):
        names = [name for name, form in forms(part).items() if same(pair[part], form)]
        if not names and _begins(pair[part], wanted[part]):
            names = ["buffer"]
        kinds.append(names[0] if names else "?")
    keys, values = kinds
    held = step == 2
    shape = tuple(pair[0].shape)
    if keys == values == "new":
        if held:
            return learner.mistake("returns-new-only", S=S, found=new, within=within)
        return learner.mistake("overwrites", S=S, found=new, within=within)
    if (keys == values == "first" and len(seen) == 2 and held) or keys == values == "old":
        if held:
            return learner.mistake("returns-old", new=counted(new, "new token"), within=within)
        return learner.mistake("keeps-the-first", S=S, found=S - new, within=within)
    if keys == values == "first":
        return learner.mistake("keeps-the-first", S=S, found=seen[0][0].shape[2], within=within)
    at_step = 2 if held and _in_order(stored, wanted[0]) else 1
    for part, name in enumerate(("keys", "values")):
        if "dim" in kinds[part]:
            dim = int(kinds[part][-1])
            return learner.mistake(
                "wrong-dimension", step=at_step, dim=dim, what=_DIMENSIONS[dim], S=S, part=name,
                shape=tuple(pair[part].shape), wanted=tuple(wanted[part].shape), within=within,
            )  # fmt: skip
    if keys == values == "buffer":
        return learner.mistake("whole-buffer", found=pair[0].shape[2], S=S, within=within)
    if keys == values == "other":
        return learner.mistake("swapped", S=S, within=within)
    if keys == "right" and values == "other":
        return learner.mistake(
            "keys-for-values", step=at_step, one="values", other="keys", S=S, within=within
        )
    if keys == "other" and values == "right":
        return learner.mistake(
            "keys-for-values", step=at_step, one="keys", other="values", S=S, within=within
        )
    if "right" in (keys, values) and pair[0].shape == pair[1].shape == wanted[0].shape:
        return _misplaced(learner, pair, wanted, 1 if keys == "right" else 0, step)
    if keys == "right":
        return learner.mistake(
            "values-not-stored", S=S, shape=shape_in_words(pair[1]), within=within, step=step
        )
    if values == "right":
        return learner.mistake(
            "keys-not-stored", S=S, shape=shape_in_words(pair[0]), within=within, step=step
        )
    order = _tokens_in(pair, wanted)
    if order is not None and sorted(order) == list(range(S)):
        return learner.mistake("new-before-old", step=at_step, order=order, within=within)
    if order is not None and held and order == list(range(S))[-len(order) :]:
        return learner.mistake("returns-new-only", S=S, found=len(order), within=within)
    if order is not None:
        missing = sorted(set(range(S)) - set(order))
        lost = f"token {missing[0]} is" if len(missing) == 1 else f"tokens {missing} are"
        return learner.mistake("tokens-lost", step=step, S=S, lost=lost, within=within)
    # if a stored tensor equals the wrong keys that append returned, the mistake is in step 1
    if any(same(one, pair[0]) for one in stored):
        step, held = 1, False
    what = "returns" if held else "stores"
    return _wrong(
        learner, step,
        f"after {S} tokens your append {what} keys of shape {shape} and values of shape "
        f"{tuple(pair[1].shape)}, which are not those that were appended; both need "
        f"shape {tuple(wanted[0].shape)}",
    )  # fmt: skip


def shape_in_words(tensor: Tensor | None) -> str:
    """How a message names the shape of a tensor, at the end of a sentence; "" for None."""
    return "" if tensor is None else f" (shape {tuple(tensor.shape)})"


def _misplaced(
    learner: LearnerCache,
    pair: tuple[Tensor, Tensor],
    wanted: tuple[Tensor, Tensor],
    part: int,
    step: int,
) -> CheckFailed:
    """The CheckFailed for tokens at wrong positions in the keys (`part` 0) or the values (1)."""
    S = wanted[0].shape[2]
    bad = [t for t in range(S) if not same(pair[part][:, :, t], wanted[part][:, :, t])]
    names = ("keys", "values")
    letter = names[part][0]
    within = learner.lines("append")
    return learner.mistake(
        "misplaced", step=step, within=within, S=S, one=names[part], other=names[1 - part],
        lost=f"token {bad[0]} are" if len(bad) == 1 else f"tokens {bad} are",
        line=learner.source.find(rf"\b{letter}\w*\[.*\]\s*=(?!=)", within),
    )  # fmt: skip


def _tokens_in(pair: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> list[int] | None:
    """The indices of those tokens of `wanted` that are also in `pair`, in the order of `pair`.

    A token counts only if its key and its value are at the same position in `pair`. Returns None if
    there is no such token."""
    if any(one.dim() != 4 or one.shape[:2] != wanted[0].shape[:2] for one in pair):
        return None
    found = []
    for at in range(min(one.shape[2] for one in pair)):
        for token in range(wanted[0].shape[2]):
            if all(same(one[:, :, at], whole[:, :, token])
                   for one, whole in zip(pair, wanted, strict=True)):  # fmt: skip
                found.append(token)
    return found or None


def _in_order(stored: list[Tensor], keys: Tensor) -> bool:
    """Whether two or more tensors in `stored` begin with the key of a token.

    The order of these tokens must be that of the text."""
    places = []
    for tensor in stored:
        flat = tensor.double().flatten()
        if not flat.numel():
            continue
        at = (keys[0, 0, :, 0] == flat[0]).nonzero()
        if len(at):
            places.append(int(at[0]))
    return len(places) > 1 and places == sorted(places)


def _wrong(learner: LearnerCache, step: int, message: str) -> CheckFailed:
    line = learner.source.find(r"\breturn\b" if step == 2 else r"=(?!=)", learner.lines("append"))
    return learner.failed_at(step, "wrong-result", message + learner.source.quote(line))


def _check_dtype(learner: LearnerCache) -> None:
    """Raise CheckFailed if append takes bfloat16 keys and returns keys of another dtype."""
    cache = learner.new(probe_sizes(dtype=torch.bfloat16))
    for k, v in pieces_of(2, 1):
        got = pair_of(append(learner, cache, (k.bfloat16(), v.bfloat16())))
        fault = None if got is None else _other_dtype(learner, got, torch.bfloat16, step=1)
        if fault is not None:
            raise fault


def _other_dtype(
    learner: LearnerCache, pair: tuple[Tensor, Tensor], given: torch.dtype, step: int
) -> CheckFailed | None:
    """The CheckFailed if the keys or the values in `pair` have another dtype than `given`."""
    for what, tensor in zip(("keys", "values"), pair, strict=True):
        if tensor.dtype != given:
            names = (str(one).removeprefix("torch.") for one in (given, tensor.dtype))
            return learner.mistake(
                "other-dtype", step=step, within=learner.cache_lines, what=what,
                given=next(names), got=next(names),
            )  # fmt: skip
    return None


class _Devices(TorchFunctionMode):
    """Find code that makes tensors on the CPU, or moves them there, although keys can be on a GPU.

    For example, `torch.zeros` without a device makes a tensor on the CPU, and `.cpu()` moves one
    there. The test itself needs no GPU, because it watches which functions the code calls."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Tensor] = []
        self.moved: list[Tensor] = []
        self.why = ""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name, kwargs = name_of(func), kwargs or {}
        out = func(*args, **kwargs)
        if name in _FACTORIES and kwargs.get("device") is None and isinstance(out, Tensor):
            self.made.append(out)
        elif name in ("to", "type_as", "cuda"):
            self.moved.append(args[0])
        elif name in ("cpu", "numpy", "tolist") and not self.why:
            self.why = f"the result of `{name}()` is on the CPU"
        elif name in ("cat", "concat", "concatenate") and args and self._stays(args[0]):
            self.why = "append concatenates a tensor that was made on the CPU"
        return out

    def _stays(self, tensors: Any) -> bool:
        """Whether the list or tuple `tensors` has a tensor made on the CPU and never moved."""
        if not isinstance(tensors, (tuple, list)):
            return False
        return any(
            one is made and not any(one is moved for moved in self.moved)
            for one in tensors
            for made in self.made
        )

    def holds(self, tensor: Tensor) -> bool:
        """Whether `tensor` uses the memory of a tensor that was made on the CPU and never moved."""
        at = tensor.untyped_storage().data_ptr()
        return any(at == made.untyped_storage().data_ptr() for made in self.made) and not any(
            at == moved.untyped_storage().data_ptr() for moved in self.moved
        )


_FACTORIES = {"zeros", "ones", "empty", "full", "tensor", "rand", "randn", "as_tensor"}


def _check_device(learner: LearnerCache) -> None:
    """Raise CheckFailed if append would use tensors on the CPU although the keys are on a GPU."""
    watch = _Devices()
    with watch:
        cache = learner.new(probe_sizes())
        for piece in pieces_of(2, 1):
            got = pair_of(append(learner, cache, piece))
    if got is not None and not watch.why and any(map(watch.holds, got)):
        watch.why = "a tensor that append returns was made on the CPU"
    if watch.why:
        raise learner.mistake("other-device", within=learner.cache_lines, why=watch.why)
