"""Reads the four projections from a module. The layout says which matrix is which projection.

possible_layouts.py finds the possible layouts once, on a module whose sizes all differ, and
trials.py chooses one of them. The chosen layout is right for modules of all sizes.
Dimensions: C channels (n_embd), H heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gptcli.course.attention.conventions.weights import (
    KV,
    OUT,
    PARTS,
    QK,
    QKV,
    Group,
    K,
    Q,
    V,
    take_inventory,
)
from gptcli.course.attention.projections import Projection, ProjectionError, Projections
from gptcli.plurals import counted

SQUARE, FUSED, PAIR, HEADS, FUSED_HEADS = "square", "fused", "pair", "heads", "fused heads"
TENSOR, FUSED_TENSOR, SHARED, BLOCKS, SLICES = (
    "tensor",
    "fused tensor",
    "shared",
    "blocks",
    "slices",
)
Rows = slice | Tensor
STACKED, BY_HEAD, INTERLEAVED = "stacked", "by head", "interleaved"


@dataclass(frozen=True)
class Sizes:
    """The sizes of a module: n_embd and the number of heads."""

    C: int
    H: int

    @property
    def D(self) -> int:
        return self.C // self.H


@dataclass(frozen=True)
class Source:
    """Where a module keeps one projection, or several fused projections.

    `path` is the path of the Group of matrices. `form` says how the matrices hold the projections:
    it is one of the constants above, such as SQUARE. `member` is the matrix's index in the Group.
    If `member` is None, all members of the Group together are the matrix."""

    path: str
    form: str
    member: int | None = None
    axes: str = ""  # for TENSOR and FUSED_TENSOR: the order of H, C and D


@dataclass(frozen=True)
class Layout:
    """Which matrix holds which projection.

    `order` and `letters` say in which order the rows of a fused matrix are."""

    sources: tuple[tuple[str, Source], ...]  # role -> source
    columns: bool = False  # whether code multiplies square parameters as x @ W
    order: str = STACKED
    letters: str = QKV
    has_output: bool = True
    certain: bool = True  # whether shapes and names allow no other layout
    order_is_free: bool = False  # whether names allow any order of queries, keys and values

    @property
    def of(self) -> dict[str, Source]:
        """`sources` as a dict: role -> source."""
        return dict(self.sources)

    def words(self) -> str:
        """One line that names the matrix of each projection."""
        by_path: dict[str, list[str]] = {}
        for role, source in self.sources:
            letters = {QKV: self.letters, KV: self._pair_letters(KV), QK: self._pair_letters(QK)}
            name = (
                source.path
                if source.member is None
                else source.path.replace("*", str(source.member))
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
        """The four projections of a module. Raises ProjectionError if the layout does not fit.

        The identity replaces a missing output projection."""
        groups = {group.path: group for group in take_inventory(module).groups}
        pieces: dict[str, list[Projection]] = {role: [] for role in (Q, K, V, OUT)}
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
            pieces[OUT] = [Projection(eye, None, write=lambda weight: None)]
        q, k, v, o = (pieces[role][0] for role in (Q, K, V, OUT))
        return Projections(q, k, v, o)

    def _read(
        self, role: str, source: Source, group: Group, sizes: Sizes
    ) -> Iterator[tuple[str, Projection]]:
        """(role, projection) for each projection that a source holds. The role is q, k, v or o."""
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
                raise shape_error(name, tensor, expected, source.form)
            outputs = tensor.shape[0] if tensor.dim() == 2 else None
            if bias is not None and outputs is not None and bias.numel() != outputs:
                raise ProjectionError(
                    f"`{name}` has {counted(outputs, 'output')} and a bias of "
                    f"{counted(bias.numel(), 'number')}",
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
                cut = slice(i * D, (i + 1) * D)
                cuts = [None if b is None else b[cut] for b in flat]
                yield letter, _stacked([t[cut] for t in turned], cuts)
        elif source.form in (SHARED, BLOCKS):
            blocks = turned * H if source.form == SHARED else turned
            parts = flat * H if source.form == SHARED else flat
            known = [b for b in parts if b is not None]
            bias = torch.cat(known) if len(known) == len(parts) else None
            own = tuple(b for b in flat if b is not None)
            yield role, Projection(_block_diagonal(blocks), bias, (*turned, *own), own)
        elif source.form == SLICES:
            known = [b for b in flat if b is not None]
            bias = torch.stack(known).sum(0) if known else None
            slices = tuple(turned)

            def write(weight: Tensor) -> None:
                for at, view in enumerate(slices):
                    view.copy_(weight[:, at * D : (at + 1) * D])

            yield role, Projection(torch.cat(turned, dim=1), bias, slices, tuple(known), write)
        elif source.form == TENSOR:
            yield role, _from_axes(tensors[0], flat[0], source.axes, role)
        elif source.form == FUSED_TENSOR:
            whole = tensors[0]
            for i, letter in enumerate(self.letters):
                part = whole[i]
                third = None if flat[0] is None else flat[0].reshape(3, -1)[i]
                if part.dim() == 2:
                    yield letter, Projection(part.T if self.columns else part, third)
                else:
                    yield letter, _from_axes(part, third, source.axes, letter)

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
    """The Group whose path is `path` with a 0 in place of the *; None if there is no such Group.

    A list with only one head has such a Group."""
    wanted = path.replace("*", "0")
    return groups.get(wanted)


def _taken(weight: Tensor, bias: Tensor | None, rows: Rows) -> Projection:
    """The projection that consists of some rows of a fused matrix."""
    if isinstance(rows, slice):
        return Projection(weight[rows], None if bias is None else bias[rows])
    views = [weight[i] for i in rows.tolist()]
    more = [] if bias is None else [bias[i : i + 1] for i in rows.tolist()]
    part = None if bias is None else bias[rows]
    return Projection(weight[rows], part, (*views, *more), tuple(more))


def _stacked(weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Projection:
    """The Projection that stacks the matrices of all heads into one matrix.

    They are stacked, because the module concatenates the outputs of the heads."""
    known = [b for b in biases if b is not None]
    bias = torch.cat(known) if len(known) == len(biases) else None
    if len(weights) == 1:
        return Projection(weights[0], bias)
    return Projection(torch.cat(list(weights)), bias, (*weights, *known), tuple(known))


def _from_axes(tensor: Tensor, bias: Tensor | None, axes: str, role: str) -> Projection:
    """The Projection for `tensor`, which holds one matrix for each head.

    `axes` is the order of the tensor's dimensions, such as "HCD"."""
    order = "CHD" if role == OUT else "HDC"
    weight = tensor.permute(*(axes.index(letter) for letter in order))
    split = weight.shape
    rows, across = (split[0], -1) if role == OUT else (-1, split[2])

    def write(new: Tensor) -> None:
        back = [order.index(letter) for letter in axes]
        tensor.copy_(new.reshape(split).permute(*back))

    biases = () if bias is None else (bias,)
    return Projection(weight.reshape(rows, across), bias, (tensor, *biases), biases, write)


def _block_diagonal(blocks: Sequence[Tensor]) -> Tensor:
    """A square matrix with `blocks` on its diagonal and zeros elsewhere."""
    whole: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return whole


def _fused_rows(order: str, sizes: Sizes) -> Sequence[Rows]:
    """The row indices of the first, second and third part of a fused matrix (3C, C)."""
    C, H, D = sizes.C, sizes.H, sizes.D
    if order == STACKED:
        return [slice(i * C, (i + 1) * C) for i in range(3)]
    at = torch.arange(3 * C)
    parts = at.view(H, 3, D).unbind(1) if order == BY_HEAD else at.view(H, D, 3).unbind(2)
    return [part.reshape(-1) for part in parts]


def _pair_rows(order: str, sizes: Sizes) -> Sequence[Rows]:
    C, H, D = sizes.C, sizes.H, sizes.D
    if order != BY_HEAD:
        return [slice(0, C), slice(C, 2 * C)]
    return [part.reshape(-1) for part in torch.arange(2 * C).view(H, 2, D).unbind(1)]


def shape_error(name: str, tensor: Tensor, expected: tuple[int, ...], form: str) -> ProjectionError:
    if form == FUSED:
        words = f"stacked query, key and value matrices have shape {expected}"
    else:
        words = f"expected {expected}"
    return ProjectionError(
        f"`{name}` has a weight of shape {tuple(tensor.shape)}"
        + ("; " if form == FUSED else ", ")
        + words,
        "projection-shape",
    )
