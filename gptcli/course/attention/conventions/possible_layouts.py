"""Finds which matrix of a module can be which projection, by shapes and names.

Dimensions: C channels (n_embd), H heads, D head_dim.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations

from torch import nn

from gptcli.course.attention.conventions.layout import (
    BLOCKS,
    BY_HEAD,
    FUSED,
    FUSED_HEADS,
    FUSED_TENSOR,
    HEADS,
    INTERLEAVED,
    PAIR,
    SHARED,
    SLICES,
    SQUARE,
    STACKED,
    TENSOR,
    Layout,
    Sizes,
    Source,
    shape_error,
)
from gptcli.course.attention.conventions.weights import (
    KV,
    OUT,
    PARTS,
    QK,
    QKV,
    Group,
    Inventory,
    K,
    Q,
    V,
    role_of,
    take_inventory,
)
from gptcli.course.attention.projections import ProjectionError

MOST_LAYOUTS = 64


def possible_layouts(
    module: nn.Module, sizes: Sizes, *, needs_output: bool, any_output: bool = False
) -> list[Layout]:
    """The layouts that the shapes and names of a module allow, the most likely one first.

    A missing output projection is an error if `needs_output` is set, `any_output` is not set, and
    the module has no list of heads. Otherwise the identity replaces it. Raises ProjectionError if
    no layout fits."""
    inventory = take_inventory(module)
    if inventory.loose:
        raise ProjectionError(
            f"`{inventory.loose[0]}` is a plain Python list, tuple or dict of modules or "
            "parameters: PyTorch does not find the parameters in it, so training does not change "
            "them",
            "plain-list",
        )
    sources, unnamed, unknown = _sources(inventory, sizes)
    roles = set(sources)
    inputs = _inputs_of(roles)
    heads = any(s.form in (HEADS, FUSED_HEADS) for r, s in sources.items() if r != OUT)
    _complain(inventory, sources, unnamed, unknown, inputs, sizes)
    layout = Layout(tuple(sources.items()), has_output=OUT in roles)
    _all_different(module, layout)
    if OUT not in roles and not any_output and needs_output and not heads:
        raise _absent(inventory, sources, "c_proj, the output projection", "output")
    found = [layout]
    if unnamed:
        found = [
            replace(layout, sources=tuple(zip(order, sources.values(), strict=True)))
            for order in permutations(sources)
        ]
    if QKV in roles:
        found = [replace(each, order=o, letters=letters) for each in found
                 for o in _orders(sources[QKV])
                 for letters in _letters(sources[QKV].path)]  # fmt: skip
    elif KV in roles or QK in roles:
        role = KV if KV in roles else QK
        letters = sources[role].path.lower()
        swapped = KV in roles and ("vk" in letters or "value_key" in letters)
        found = [replace(each, letters="qvk" if swapped else QKV, order=o)
                 for each in found for o in (STACKED, BY_HEAD)]  # fmt: skip
    if _is_ambiguous(inventory, sources, sizes):
        found = [replace(each, columns=columns) for columns in (False, True) for each in found]
    found = found[:MOST_LAYOUTS]
    free = unnamed or len({each.letters for each in found}) > 1
    return [replace(each, certain=len(found) == 1, order_is_free=free) for each in found]


def _orders(source: Source) -> tuple[str, ...]:
    # `c_attn` is the name in GPT-2, which stacks queries, keys and values in this order.
    is_gpt2 = re.fullmatch(r"c_attn(_w|_weight)?", source.path.rpartition(".")[2]) is not None
    free = source.form == FUSED and not is_gpt2
    return (STACKED, BY_HEAD, INTERLEAVED) if free else (STACKED,)


def _letters(path: str) -> list[str]:
    """The orders of query, key and value that a fused matrix can have, judged by its name."""
    plain = path.lower().rpartition(".")[2] if "." in path else path.lower()
    all_orders = ["".join(order) for order in permutations(QKV)]
    words = {"query": "q", "key": "k", "value": "v"}
    for word, letter in words.items():
        plain = plain.replace(word, letter)
    plain = plain.replace("_", "")
    for order in all_orders:
        if order in plain:
            return [order]
    if "cattn" in plain or "inproj" in plain:
        return [QKV]
    return all_orders


def _inputs_of(roles: set[str]) -> set[str]:
    found = roles & {Q, K, V}
    for fused in (QKV, KV, QK):
        if fused in roles:
            found |= set(fused)
    return found


def _sources(
    inventory: Inventory, sizes: Sizes
) -> tuple[dict[str, Source], bool, list[tuple[Group, int | None]]]:
    """(role -> source, whether the matrices' order decided most roles, matrices without a role)."""
    sources: dict[str, Source] = {}
    unnamed: list[tuple[Group, Source]] = []
    unknown: list[tuple[Group, int | None]] = []
    for group in inventory.groups:
        forms = list(_forms(group, sizes))
        if not forms:
            unknown.append((group, None))
            continue
        for source in forms:
            member = group.path if source.member is None else group.members[source.member].path
            role = role_of(member)
            if source.form in (FUSED, FUSED_HEADS, FUSED_TENSOR, PAIR):
                if role in (Q, K, V):  # such as a `query` that has the shape of a fused matrix
                    unknown.append((group, source.member))
                    continue
                if source.form != PAIR:
                    role = QKV
                elif role not in (KV, QK):
                    role = KV
            elif role in (QKV, KV, QK):
                role = None
            if source.form == SLICES:
                role = OUT
            if role is not None and role not in sources:
                sources[role] = source
            else:
                unnamed.append((group, source))
    missing = [r for r in (Q, K, V, OUT) if r not in _inputs_of(set(sources)) | set(sources)]
    guessed = False
    if unnamed and len(unnamed) <= len(missing):
        guessed = len(unnamed) > 1 or missing != [OUT]
        # If the output is missing, a single matrix without a known name becomes the output.
        # Otherwise it gets the last missing role. Several matrices are in the usual order: query,
        # key, value, output.
        wanted = missing if len(unnamed) > 1 else missing[-1:]
        for role, (_, source) in zip(wanted, unnamed, strict=False):
            sources[role] = source
        unnamed = []
    unknown += [(group, source.member) for group, source in unnamed]
    order = [QKV, Q, QK, K, KV, V, OUT]
    sources = {role: sources[role] for role in order if role in sources}
    return sources, guessed and len(missing) > 2, unknown


def _forms(group: Group, sizes: Sizes) -> Iterator[Source]:
    """Yield a Source for each way in which `group` can hold projections, judged by its shape."""
    C, H, D = sizes.C, sizes.H, sizes.D
    shape, count, path = group.shape, len(group.members), group.path
    turned = shape[::-1] if not group.oriented else shape
    if len(shape) == 2:
        if shape == (C, C):
            if count == 1:
                yield Source(path, SQUARE)
            elif count in (3, 4):
                yield from (Source(path, SQUARE, i) for i in range(count))
            return
        if count == 1:
            for form, wanted in ((FUSED, (3 * C, C)), (PAIR, (2 * C, C))):
                if wanted in (shape, turned):
                    yield Source(path, form)
                    return
            if shape == (D, D) and H > 1:
                yield Source(path, SHARED)
            return
        if count == H:
            is_output = role_of(path) == OUT
            if is_output and (C, D) in (shape, turned):
                yield Source(path, SLICES)
                return
            for form, wanted in ((HEADS, (D, C)), (FUSED_HEADS, (3 * D, C)), (BLOCKS, (D, D))):
                if wanted in (shape, turned):
                    yield Source(path, form)
                    return
    elif count == 1 and len(shape) == 3:
        axes = {H: "H", C: "C", D: "D"}
        names = "".join(axes.get(size, "?") for size in shape)
        if sorted(names) == ["C", "D", "H"]:
            yield Source(path, TENSOR, axes=names)
        elif shape == (3, C, C):
            yield Source(path, FUSED_TENSOR)
    elif count == 1 and len(shape) == 4 and shape[0] == 3:
        axes = {H: "H", C: "C", D: "D"}
        names = "".join(axes.get(size, "?") for size in shape[1:])
        if sorted(names) == ["C", "D", "H"]:
            yield Source(path, FUSED_TENSOR, axes=names)


def _is_ambiguous(inventory: Inventory, sources: dict[str, Source], sizes: Sizes) -> bool:
    """Whether the code can be x @ W.T or x @ W, because a parameter W is square.

    A fused matrix of one head, (3D, C), counts as square: it is square if H is 3."""
    groups = {group.path: group for group in inventory.groups}
    for source in sources.values():
        group = groups[source.path]
        square = source.form in (SQUARE, SHARED, BLOCKS, FUSED_HEADS) or (
            source.form == FUSED_TENSOR and not source.axes
        )
        if square and not group.oriented:
            return True
    return False


def _complain(
    inventory: Inventory,
    sources: dict[str, Source],
    guessed: bool,
    unknown: list[tuple[Group, int | None]],
    inputs: set[str],
    sizes: Sizes,
) -> None:
    """Raise ProjectionError if the weights of the module are not exactly the projections.

    Raises it in three cases: the query, key or value projection is missing, a projection has a
    wrong shape, or the module has weights that belong to no projection. This function ignores a
    missing output projection."""
    C = sizes.C
    for group, _ in unknown:
        role = role_of(group.path)
        taken = role in sources or (role is not None and role in inputs)
        if role is None or taken:
            continue
        first = group.members[0].tensor
        if len(group.members) > 1:
            shapes = " and ".join(str(tuple(m.tensor.shape)) for m in group.members[:3])
            raise ProjectionError(
                f"`{group.name.removesuffix('.*')}` holds {len(group.members)} matrices, {shapes}; "
                "it should be an nn.Linear: one matrix and at most one bias",
                "projection-shape", output=role == OUT,
            )  # fmt: skip
        if first.dim() != 2:
            raise ProjectionError(
                f"`{group.name}` has a parameter of shape {tuple(first.shape)}; it should be an "
                "nn.Linear: one matrix and at most one bias",
                "projection-shape", output=role == OUT,
            )  # fmt: skip
        expected = {QKV: (3 * C, C), KV: (2 * C, C), QK: (2 * C, C)}.get(role, (C, C))
        error = shape_error(group.name, first, expected, FUSED if role == QKV else SQUARE)
        error.output = role == OUT
        raise error
    if len(inputs) < 3:
        absent = [PARTS[role] for role in (Q, K, V) if role not in inputs]
        raise _absent(inventory, sources, _and(absent), "input")
    if unknown:
        names = ", ".join(f"`{group.name}` {group.shape}" for group, _ in unknown)
        raise ProjectionError(
            f"the module also has {names}, besides the projections; causal attention has no such "
            "weights",
            "unknown-weights",
            unnamed=True,
        )


def _absent(
    inventory: Inventory, sources: dict[str, Source], what: str, part: str
) -> ProjectionError:
    """The error for a missing projection. The message names weights that the module has."""
    used = {source.path for source in sources.values()}
    others = [group.name for group in inventory.groups if group.path not in used]
    if others and (part == "output" or not sources):
        return ProjectionError(
            f"no {what} found; the module has weights under other names: "
            + ", ".join(f"`{name}`" for name in sorted(others)),
            "unknown-names",
            unnamed=True,
        )
    have = ", ".join(f"`{group.name}`" for group in inventory.groups) or "no weights"
    return ProjectionError(
        f"the module has no {what}; it has {have}", "missing-projection", missing=part
    )


def _all_different(module: nn.Module, layout: Layout) -> None:
    """Raise ProjectionError if two projections share their weights."""
    names = {
        role: source.path if source.member is None else source.path.replace("*", str(source.member))
        for role, source in layout.sources
    }
    groups = {group.path: group for group in take_inventory(module).groups}
    seen: dict[int, str] = {}
    for role, source in layout.sources:
        member = groups[source.path].members[source.member or 0]
        if (first := seen.setdefault(member.tensor.data_ptr(), names[role])) != names[role]:
            raise ProjectionError(
                f"`{first}` and `{names[role]}` are the same weights; each layer needs weights of "
                "its own",
                "shared-projection",
                output=role == OUT,
            )


def _and(names: list[str]) -> str:
    """The names joined with commas and "and"."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
