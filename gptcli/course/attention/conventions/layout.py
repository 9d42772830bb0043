"""Decides which matrix is which projection, and reads the four projections from a module.

A layout is found once, on a module of sizes that tell all shapes apart. It is then applied to
modules of other sizes. Dimensions: C channels (n_embd), H heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import torch
from torch import Tensor, nn

from gptcli.course.attention.conventions.weights import (
    KV,
    PARTS,
    QK,
    QKV,
    Group,
    Inventory,
    K,
    O,
    Q,
    V,
    role_of,
    take_inventory,
)
from gptcli.course.attention.projections import Projection, ProjectionError, Projections

SQUARE, FUSED, PAIR, HEADS, FUSED_HEADS = "square", "fused", "pair", "heads", "fused heads"
TENSOR, FUSED_TENSOR, SHARED, BLOCKS, SLICES = "tensor", "fused tensor", "shared", "blocks", "slices"
STACKED, BY_HEAD, INTERLEAVED = "stacked", "by head", "interleaved"
MOST_LAYOUTS = 64


@dataclass(frozen=True)
class Sizes:
    """The sizes of a module."""

    C: int
    H: int

    @property
    def D(self) -> int:
        return self.C // self.H


@dataclass(frozen=True)
class Source:
    """Where a role's matrix is: the group's path, the index of its member, and its form."""

    path: str
    form: str
    member: int | None = None
    axes: str = ""  # of a TENSOR: H, C and D in the order of its dimensions


@dataclass(frozen=True)
class Layout:
    """Which matrix is which projection. `order` and `letters` tell the rows of a fused matrix."""

    sources: tuple[tuple[str, Source], ...]  # role -> source
    columns: bool = False  # whether bare square matrices are used as x @ W
    order: str = STACKED
    letters: str = QKV
    has_output: bool = True
    certain: bool = True  # whether shapes and names leave no doubt

    @property
    def of(self) -> dict[str, Source]:
        """role -> source."""
        return dict(self.sources)

    def words(self) -> str:
        """One line that says what was taken for what."""
        by_path: dict[str, list[str]] = {}
        for role, source in self.sources:
            letters = {QKV: self.letters, KV: self._pair_letters(KV), QK: self._pair_letters(QK)}
            name = source.path if source.member is None else source.path.replace(
                "*", str(source.member)
            )
            by_path.setdefault(name, []).extend(PARTS[x] for x in letters.get(role, role))
        said = [f"{', '.join(parts)}: `{path}`" for path, parts in by_path.items()]
        if QKV in self.of and self.order != STACKED:
            said[0] += f" ({self.order})"
        if not self.has_output:
            said.append("no output projection")
        return "; ".join(said)

    def _pair_letters(self, role: str) -> str:
        return "".join(letter for letter in self.letters if letter in role)

    def projections(self, module: nn.Module, sizes: Sizes) -> Projections:
        """The four projections of a module with this layout. Raises ProjectionError."""
        groups = {group.path: group for group in take_inventory(module).groups}
        pieces: dict[str, list[Projection]] = {role: [] for role in (Q, K, V, O)}
        for role, source in self.sources:
            group = groups.get(source.path) or _regrouped(groups, source.path)
            if group is None:
                raise ProjectionError(
                    f"there is no `{source.path}` with n_embd = {sizes.C}", "projection-shape"
                )
            for part, projection in self._read(role, source, group, sizes):
                pieces[part].append(projection)
        if not self.has_output:
            first = pieces[Q][0].weight
            eye = torch.eye(sizes.C, dtype=first.dtype)
            pieces[O] = [Projection(eye, None, write=lambda weight: None)]
        q, k, v, o = (pieces[role][0] for role in (Q, K, V, O))
        return Projections(q, k, v, o)

    def _read(
        self, role: str, source: Source, group: Group, sizes: Sizes
    ) -> Iterator[tuple[str, Projection]]:
        """(q, k, v or o, projection) for each projection in a source."""
        members = group.members if source.member is None else (group.members[source.member],)
        tensors, biases = [m.tensor for m in members], [m.bias for m in members]
        turned = [
            t.T if t.dim() == 2 and self._is_turned(source, m.oriented, m.transposed, t) else t
            for t, m in zip(tensors, members, strict=True)
        ]
        C, H, D = sizes.C, sizes.H, sizes.D
        expected = {
            SQUARE: (C, C), FUSED: (3 * C, C), PAIR: (2 * C, C), HEADS: (D, C),
            FUSED_HEADS: (3 * D, C), SHARED: (D, D), BLOCKS: (D, D), SLICES: (C, D),
        }.get(source.form)  # fmt: skip
        for tensor, bias in zip(turned, biases, strict=True):
            name = group.name
            if expected is not None and tuple(tensor.shape) != expected:
                raise _shape_error(name, tensor, expected, source.form)
            outputs = tensor.shape[0] if tensor.dim() == 2 else None
            if bias is not None and outputs is not None and bias.numel() != outputs:
                raise ProjectionError(
                    f"`{name}` has {outputs} outputs and a bias of {bias.numel()}",
                    "projection-shape",
                )
        flat = [None if b is None else b.reshape(-1) for b in biases]
        if source.form == SQUARE:
            yield role, Projection(turned[0], flat[0])
        elif source.form == PAIR:
            letters = self._pair_letters(role)
            for letter, rows in zip(letters, _pair_rows(self.order, sizes), strict=True):
                yield letter, _taken(turned[0], flat[0], rows)
        elif source.form == FUSED:
            for letter, rows in zip(self.letters, _fused_rows(self.order, sizes), strict=True):
                yield letter, _taken(turned[0], flat[0], rows)
        elif source.form == HEADS:
            yield role, _stacked(turned, flat)
        elif source.form == FUSED_HEADS:
            for i, letter in enumerate(self.letters):
                rows = [t[i * D : (i + 1) * D] for t in turned]
                part = [None if b is None else b[i * D : (i + 1) * D] for b in flat]
                yield letter, _stacked(rows, part)
        elif source.form in (SHARED, BLOCKS):
            blocks = turned * H if source.form == SHARED else turned
            parts = flat * H if source.form == SHARED else flat
            known = [b for b in parts if b is not None]
            bias = torch.cat(known) if len(known) == len(parts) else None
            own = tuple(b for b in flat if b is not None)
            yield role, Projection(torch.block_diag(*blocks), bias, (*turned, *own), own)
        elif source.form == SLICES:
            known = [b for b in flat if b is not None]
            bias = torch.stack(known).sum(0) if known else None
            slices = tuple(turned)

            def write(weight: Tensor) -> None:
                for view, part in zip(slices, weight.split(D, dim=1), strict=True):
                    view.copy_(part)

            yield role, Projection(torch.cat(turned, dim=1), bias, slices, tuple(known), write)
        elif source.form == TENSOR:
            yield role, _from_axes(tensors[0], flat[0], source.axes, role)
        elif source.form == FUSED_TENSOR:
            whole = tensors[0]
            for i, letter in enumerate(self.letters):
                part = whole[i]
                own = None if flat[0] is None else flat[0].reshape(3, -1)[i]
                if part.dim() == 2:
                    yield letter, Projection(part.T if self.columns else part, own)
                else:
                    yield letter, _from_axes(part, own, source.axes, letter)

    def _is_turned(self, source: Source, oriented: bool, transposed: bool, tensor: Tensor) -> bool:
        if transposed:
            return True
        if oriented:
            return False
        rows, across = tensor.shape
        if rows == across:
            return self.columns
        wide = {FUSED: across > rows, PAIR: across > rows, SLICES: across > rows}
        if source.form == HEADS:
            return rows > across
        if source.form == FUSED_HEADS:
            return self.columns
        return wide.get(source.form, False)


def _regrouped(groups: dict[str, Group], path: str) -> Group | None:
    """The group of a list that has only one member with these sizes, such as one head."""
    wanted = path.replace("*", "0")
    return groups.get(wanted)


def _taken(weight: Tensor, bias: Tensor | None, rows: Tensor | slice) -> Projection:
    """The projection of some rows of a fused matrix."""
    if isinstance(rows, slice):
        return Projection(weight[rows], None if bias is None else bias[rows])
    views = [weight[i] for i in rows.tolist()]
    more = [] if bias is None else [bias[i : i + 1] for i in rows.tolist()]
    part = None if bias is None else bias[rows]
    return Projection(weight[rows], part, (*views, *more), tuple(more))


def _stacked(weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Projection:
    """The projection of a list of heads: their outputs in a row."""
    known = [b for b in biases if b is not None]
    bias = torch.cat(known) if len(known) == len(biases) else None
    if len(weights) == 1:
        return Projection(weights[0], bias)
    return Projection(torch.cat(list(weights)), bias, (*weights, *known), tuple(known))


def _from_axes(tensor: Tensor, bias: Tensor | None, axes: str, role: str) -> Projection:
    """The projection of a tensor with one matrix for each head; `axes` such as "HCD"."""
    order = "CHD" if role == O else "HDC"
    weight = tensor.permute(*(axes.index(letter) for letter in order))
    split = weight.shape
    rows, across = (split[0], -1) if role == O else (-1, split[2])

    def write(new: Tensor) -> None:
        back = [order.index(letter) for letter in axes]
        tensor.copy_(new.reshape(split).permute(*back))

    biases = () if bias is None else (bias,)
    return Projection(weight.reshape(rows, across), bias, (tensor, *biases), biases, write)


def _fused_rows(order: str, sizes: Sizes) -> list[slice] | list[Tensor]:
    """The rows of the first, second and third part of a fused matrix (3C, C)."""
    C, H, D = sizes.C, sizes.H, sizes.D
    if order == STACKED:
        return [slice(i * C, (i + 1) * C) for i in range(3)]
    at = torch.arange(3 * C)
    parts = at.view(H, 3, D).unbind(1) if order == BY_HEAD else at.view(H, D, 3).unbind(2)
    return [part.reshape(-1) for part in parts]


def _pair_rows(order: str, sizes: Sizes) -> list[slice] | list[Tensor]:
    C, H, D = sizes.C, sizes.H, sizes.D
    if order != BY_HEAD:
        return [slice(0, C), slice(C, 2 * C)]
    return [part.reshape(-1) for part in torch.arange(2 * C).view(H, 2, D).unbind(1)]


def _shape_error(
    name: str, tensor: Tensor, expected: tuple[int, ...], form: str
) -> ProjectionError:
    if form == FUSED:
        words = f"stacked query, key and value make {expected}"
    else:
        words = f"expected {expected}"
    return ProjectionError(
        f"`{name}` has a weight of shape {tuple(tensor.shape)}"
        + ("; " if form == FUSED else ", ")
        + words,
        "projection-shape",
    )


# ---- from an inventory to layouts ----


def possible_layouts(
    module: nn.Module, sizes: Sizes, *, needs_output: bool, any_output: bool = False
) -> list[Layout]:
    """The layouts that the shapes and names of a module allow, the likeliest first.

    `needs_output`: a missing output projection is an error, except for a list of heads.
    `any_output`: an identity takes its place. Raises ProjectionError if nothing fits."""
    inventory = take_inventory(module)
    if inventory.loose:
        raise ProjectionError(
            f"`{inventory.loose[0]}` is a plain Python list of modules: PyTorch does not see their "
            "parameters, so they are not trained",
            "plain-list",
        )
    sources, unnamed, unknown = _sources(inventory, sizes)
    roles = set(sources)
    inputs = _inputs_of(roles)
    heads = any(s.form in (HEADS, FUSED_HEADS) for r, s in sources.items() if r != O)
    _complain(inventory, sources, unnamed, unknown, inputs, sizes)
    layout = Layout(tuple(sources.items()), has_output=O in roles)
    _all_different(module, layout)
    if O not in roles and not any_output and needs_output and not heads:
        raise _absent(inventory, sources, "c_proj, the output projection", "output")
    found = [layout]
    if unnamed:
        found = [
            replace(layout, sources=tuple(zip(order, sources.values(), strict=True)))
            for order in permutations(sources)
        ]
    if QKV in roles:
        found = [replace(each, order=o, letters=letters) for each in found
                 for o in _orders(sources[QKV]) for letters in _letters(sources[QKV].path)]  # fmt: skip
    elif KV in roles or QK in roles:
        role = KV if KV in roles else QK
        letters = sources[role].path.lower()
        swapped = KV in roles and ("vk" in letters or "value_key" in letters)
        found = [replace(each, letters="qvk" if swapped else QKV, order=o)
                 for each in found for o in (STACKED, BY_HEAD)]  # fmt: skip
    if _is_ambiguous(inventory, sources, sizes):
        found = [replace(each, columns=columns) for columns in (False, True) for each in found]
    found = found[:MOST_LAYOUTS]
    return [replace(each, certain=len(found) == 1) for each in found]


def _orders(source: Source) -> tuple[str, ...]:
    return (STACKED, BY_HEAD, INTERLEAVED) if source.form == FUSED else (STACKED,)


def _letters(path: str) -> list[str]:
    """The orders of query, key and value that the name of a fused matrix allows."""
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
    """role -> source, whether the roles were guessed from the order, and what found no role."""
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
                if role in (Q, K, V):  # a query of the wrong shape
                    unknown.append((group, source.member))
                    continue
                if source.form != PAIR:
                    role = QKV
                elif role not in (KV, QK):
                    role = KV
            elif role in (QKV, KV, QK):
                role = None
            if source.form == SLICES:
                role = O
            if role is not None and role not in sources:
                sources[role] = source
            else:
                unnamed.append((group, source))
    missing = [r for r in (Q, K, V, O) if r not in _inputs_of(set(sources)) | set(sources)]
    guessed = False
    if unnamed and len(unnamed) <= len(missing):
        guessed = len(unnamed) > 1 or missing != [O]
        # Alone, an unnamed matrix is the output. Several are in the usual order.
        wanted = missing if len(unnamed) > 1 else missing[-1:]
        for role, (_, source) in zip(wanted, unnamed, strict=False):
            sources[role] = source
        unnamed = []
    unknown += [(group, source.member) for group, source in unnamed]
    order = [QKV, Q, QK, K, KV, V, O]
    sources = {role: sources[role] for role in order if role in sources}
    return sources, guessed and len(missing) > 2, unknown


def _forms(group: Group, sizes: Sizes) -> Iterator[Source]:
    """The source, or sources, that the shape of a group makes possible."""
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
            is_output = role_of(path) == O
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
    """Whether a bare square matrix can be used as x @ W.T or as x @ W."""
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
    """Raise ProjectionError if a projection is missing, has a wrong shape, or one is too many."""
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
                "it should be an nn.Linear, one matrix and at most one bias",
                "projection-shape", output=role == O,
            )  # fmt: skip
        if first.dim() != 2:
            raise ProjectionError(
                f"`{group.name}` has a parameter of shape {tuple(first.shape)}; it should be an "
                "nn.Linear, one matrix and at most one bias",
                "projection-shape", output=role == O,
            )  # fmt: skip
        expected = {QKV: (3 * C, C), KV: (2 * C, C), QK: (2 * C, C)}.get(role, (C, C))
        error = _shape_error(group.name, first, expected, FUSED if role == QKV else SQUARE)
        error.output = role == O
        raise error
    if len(inputs) < 3:
        absent = [PARTS[role] for role in (Q, K, V) if role not in inputs]
        raise _absent(inventory, sources, _and(absent), "input")
    if unknown:
        names = ", ".join(f"`{group.name}` {group.shape}" for group, _ in unknown)
        raise ProjectionError(
            f"besides the projections the module has {names}, which causal attention does not have",
            "unknown-weights",
            unnamed=True,
        )


def _absent(
    inventory: Inventory, sources: dict[str, Source], what: str, part: str
) -> ProjectionError:
    """The error for a missing part. The part can exist under another name."""
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
        f"the module has no {what}: it has {have}", "missing-projection", missing=part
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
                f"`{first}` and `{names[role]}` are the same weights; each needs its own",
                "shared-projection",
                output=role == O,
            )


def _and(names: list[str]) -> str:
    """The names joined with commas and "and"."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


