"""Probe what a forward with a past stores: steps 1 to 4 of the cache exercise.

The past is the keys and values of the tokens before x. Dimensions: B batch, T new tokens, S tokens
in all, C channels (n_embd), H heads, D channels per head, N tokens of a text.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gptcli.course.exercises import past_layout
from gptcli.course.exercises.cache_storing import shape_in_words
from gptcli.course.exercises.learner_module import close
from gptcli.course.exercises.past_layout import Dims, Place, canonical
from gptcli.course.exercises.past_learner import Called, PastLearner, Text
from gptcli.course.exercises.tensor_trace import TensorTrace
from gptcli.course.lesson import TOLERANCE, CheckFailed
from gptcli.plurals import agreeing, counted

_NAMES = {"k": "keys", "v": "values"}


def storing(
    learner: PastLearner, text: Text, whole: Called, calls: list[Called]
) -> CheckFailed | None:
    """Find a mistake in the keys and values that forward stores (steps 1 to 4), or return None."""
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
    k_place, v_place, dims, swapped = found
    keys = {}
    for part, place in (("k", k_place), ("v", v_place)):
        tensor = place.read(whole.stored, dims)
        assert tensor is not None
        keys[part] = tensor[:, :, : text.size.N].double()
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
    """Find a mistake in the keys and values that a module keeps in itself, or return None."""
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
                "keeps-the-first",
                S=one.total,
                line=at,
                within=lines,
                found=counted(one.start, "earlier token"),
            )
        if all_["k"] != all_["v"]:
            slug = "values-not-stored" if all_["k"] else "keys-not-stored"
            wrong = text.keys["v" if all_["k"] else "k"][:, :, : one.total]
            shape = shape_in_words(_holder(one.stored, wrong))
            return learner.mistake(slug, step=1, S=one.total, shape=shape, within=lines)
    return None


def _holder(stored: list[Tensor], part: Tensor) -> Tensor | None:
    """The first stored tensor that holds some of the numbers of `part`, or None."""
    return next((one for one in stored if bool(_found([one], part).any())), None)


def _holds(stored: list[Tensor], wanted: Tensor) -> bool:
    """Whether the tensors together contain all numbers of `wanted`, up to rounding."""
    return bool(_found(stored, wanted).all())


def _found(stored: list[Tensor], wanted: Tensor) -> Tensor:
    """Which numbers of `wanted` the tensors together contain, up to rounding."""
    flat = torch.cat([wanted.new_empty(0), *(t.double().flatten() for t in stored)]).sort().values
    if not len(flat):
        return torch.zeros_like(wanted, dtype=torch.bool)
    goal = wanted.contiguous()
    after = torch.searchsorted(flat, goal).clamp(max=len(flat) - 1)
    nearest = torch.minimum(
        (flat[after] - goal).abs(), (flat[(after - 1).clamp(min=0)] - goal).abs()
    )
    return nearest <= TOLERANCE


def _places(text: Text, whole: Called) -> tuple[Place, Place, Dims, bool] | None:
    """Where forward's result for the whole text has the keys and values; None if it lacks them.

    Returns the place of the keys, the place of the values, the sizes of the keys, and whether the
    values come first. If the right keys are not known, takes the first of two similar places as
    that of the keys."""
    N = text.size.N
    if text.keys:
        k = past_layout.find(whole.stored, text.keys["k"], N)
        v = past_layout.find(whole.stored, text.keys["v"], N)
        if k is None or v is None:
            return None
        return k, v, text.dims, (v.leaf, v.at) < (k.leaf, k.at)
    for heads in range(text.dims.H, 0, -1):
        dims = Dims(text.dims.B, heads, text.dims.D)
        found = list(past_layout.places(whole.stored, dims, N))
        first = next((p for p in found if (p.dim is None) == (len(whole.stored) > 1)), None)
        if first is None:
            continue
        second = next((p for p in found if (p.leaf, p.at) != (first.leaf, first.at)
                       and p.order == first.order and p.dim == first.dim), None)  # fmt: skip
        if second is not None:
            return first, second, dims, False
    return None


def _unknown_present(learner: PastLearner, text: Text, whole: Called) -> CheckFailed | None:
    """The mistake that explains why `whole` did not store all keys and all values, or None."""
    lines = learner.forward_lines()
    N = text.size.N
    if not text.keys:
        return None
    for count in range(N - 1, N // 2, -1):
        if past_layout.find(whole.stored, text.keys["k"][:, :, N - count :], count) is not None:
            return learner.mistake(
                "drops-the-oldest", S=N, W=text.size.block_size, found=count, within=lines
            )
    have = {part: past_layout.find(whole.stored, text.keys[part], N) is not None for part in "qkv"}
    if have["q"]:
        return learner.mistake("queries-stored", within=lines)
    if have["k"] != have["v"]:
        one, other = ("values", "keys") if have["k"] else ("keys", "values")
        if learner.form.changes_past:
            shape = shape_in_words(_holder(whole.stored, text.keys["v" if have["k"] else "k"]))
            line = learner.source.find(r"(cache|past|kv)\w*(\[.*\])? *=(?!=)", lines)
            return learner.mistake(
                f"{one}-not-stored", S=N, shape=shape, within=lines, step=1, line=line
            )
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
    """Find a mistake in how forward joins stored and new tokens, or return None."""
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
                    lost_words = f"{counted(lost, 'token')} {agreeing(lost, 'is', 'are')}"
                    return learner.mistake("tokens-lost", S=one.total, lost=lost_words, **where)
            if right[other] and (one.stored or one.failed is not None):
                if part == "k" and text.weights is None:
                    at = position(learner, text, one)
                    if at is not None:
                        return positions(learner, one, at)
                slug = "values-not-stored" if part == "v" else "keys-not-stored"
                shape = shape_in_words(_holder(one.stored, keys[part][:, :, : one.total]))
                line = next(e.line for e in kinds[other] if e.kind == "right")
                return learner.mistake(
                    slug, S=one.total, shape=shape, line=line, within=lines, step=1
                )
    return None


def _found_joins(
    one: Called, old: dict[str, Tensor], new: dict[str, Tensor]
) -> list[past_layout.Seen]:
    """How a call joined stored and new tokens: a Seen for each join that the trace shows."""
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
    """The line that takes keys and values out of the past, or `line` if none is found."""
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
    """Find a mistake in the keys and values that a call returned, or return None."""
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
        got = got.double()[:, :, : one.total] if learner.form.buffers else got.double()
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
        if learner.form.buffers and not found:
            filled = {name: got[:, :, : forms[name].shape[2]] for name in ("old", "new")}
            found = [name for name, tensor in filled.items() if close(tensor, forms[name])]
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
    # If forward changes its argument, past and result are one object. Then the content
    # of this object counts, not what the call computed.
    if learner.form.changes_past:
        held = {"k": False, "v": False}
        if kind in ("new", "old") and len(wrong) == 1:
            kind = "new"
    what = "keys and values" if len(wrong) == 2 else _NAMES[part]
    if kind == "new":
        if held[part]:
            return learner.mistake(
                "present-new-only",
                S=one.total,
                found=counted(one.count, "token"),
                what=what,
                within=lines,
            )
        if len(wrong) == 2:
            return learner.mistake("overwrites", S=one.total, found=one.count, within=lines)
        slug = "values-not-stored" if part == "v" else "keys-not-stored"
        return learner.mistake(
            slug, S=one.total, shape=shape_in_words(one.stored[places[part == "v"].leaf]),
            within=lines, step=1, line=learner.source.find(r"cat\(", lines),
        )  # fmt: skip
    if kind == "old":
        if held[part]:
            new = counted(one.count, "new one")
            return learner.mistake("present-old", S=one.total, found=new, within=lines)
        earlier = counted(one.start, "earlier token")
        return learner.mistake("keeps-the-first", S=one.total, found=earlier, within=lines)
    if kind == "other":
        other = _NAMES["v" if part == "k" else "k"]
        return learner.mistake(
            "keys-for-values", step=1, one=_NAMES[part], other=other, S=one.total, within=lines
        )
    if kind == "newest" and 2 * found_size < text.size.block_size:
        lost = one.total - found_size
        words = f"{counted(lost, 'token')} {agreeing(lost, 'is', 'are')}"
        return learner.mistake("tokens-lost", step=1, S=one.total, lost=words, within=lines)
    if kind == "newest":
        return learner.mistake(
            "drops-the-oldest", S=one.total, W=text.size.block_size, found=found_size, within=lines
        )
    if kind == "new part" and text.weights is None:
        at = position(learner, text, one)
        if at is not None:
            return positions(learner, one, at)
    shapes = [tuple(tensor.shape) for tensor in one.stored]
    return learner.failed_at(
        1, "wrong-result",
        f"after {counted(one.total, 'token')} your forward returns keys and values of shapes "
        f"{shapes}, but their numbers are not the keys and values of these tokens"
        + learner.source.quote(learner.source.find(r"cat\(|\breturn\b", lines)),
    )  # fmt: skip


def _held(one: Called, keys: dict[str, Tensor]) -> dict[str, bool]:
    """For the keys ("k") and for the values ("v"): whether a call computed those of all tokens."""
    found = {}
    for part in "kv":
        wanted = keys[part][:, :, : one.total]
        heads = range(wanted.shape[1])
        found[part] = _makes(one.trace, wanted) or all(
            _makes(one.trace, wanted[:, head : head + 1]) for head in heads
        )
    return found


def _makes(trace: TensorTrace, wanted: Tensor) -> bool:
    """Whether a traced tensor equals `wanted` (B, H, T, D), except for the order of dimensions."""
    dims = Dims(wanted.shape[0], wanted.shape[1], wanted.shape[3])
    return any(
        form is not None and close(form.double(), wanted)
        for operation in trace.operations
        for tensor in operation.results
        if tensor.numel() == wanted.numel()
        for form in (canonical(tensor, order, dims) for order in past_layout.ORDERS)
    )


def position(learner: PastLearner, text: Text, one: Called) -> int | None:
    """The wrong position from which a call rotates queries or keys.

    None if the position is right, or if no wrong position fits the call's tensors."""
    piece = text.text[:, one.start : one.total]
    rights = _turned(learner, text, text.text[:, : one.start], piece)
    B, T, D = text.dims.B, one.count, text.dims.D
    mine = [
        tensor
        for heads in range(1, text.dims.H + 1)
        for tensor in _canonicals(one.trace, Dims(B, heads, D), T)
    ]
    for at in (0, one.start - 1, one.start + 1, one.total, one.total - 1, *range(1, one.start)):
        if at == one.start or at + T > text.size.block_size:
            continue
        empty = torch.zeros_like(piece[:, :1]).expand(-1, at, -1)
        for tensor in _turned(learner, text, empty, piece):
            in_place = any(close(tensor, right) for right in rights)
            if not in_place and any(close(tensor, each) for each in mine):
                return int(at)
    return None


def _turned(learner: PastLearner, text: Text, before: Tensor, piece: Tensor) -> list[Tensor]:
    """The tensors that can be queries or keys of `piece`, if forward reads `piece` after `before`.

    Forward reads both in one call."""
    whole = learner.whole(text.module, torch.cat((before, piece), dim=1))
    start, T = before.shape[1], piece.shape[1]
    found = []
    for heads in range(1, text.dims.H + 1):
        dims = Dims(text.dims.B, heads, text.dims.D)
        found += [one[:, :, start:] for one in _canonicals(whole.trace, dims, start + T)]
    return found


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


def positions(learner: PastLearner, one: Called, at: int) -> CheckFailed:
    """The CheckFailed for a call that gives its first token the wrong position `at`."""
    lines = learner.forward_lines()
    before = f"{counted(one.start, 'token')} {agreeing(one.start, 'comes', 'come')}"
    return learner.mistake("positions-not-offset", start=before, at=at, within=lines)
