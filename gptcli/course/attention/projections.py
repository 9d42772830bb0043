"""Finds the query, key, value and output projections among the parameters of a learner's module.

Dimensions: C channels (n_embd). A projection is y = x W^T + b with W (C, C), as in nn.Linear.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

FUSED = ("c_attn", "qkv")
SEPARATE = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"))
OUTPUT = ("c_proj", "o_proj")
NAMES = (
    "query, key, value (or q_proj, k_proj, v_proj), or one c_attn or qkv; and c_proj or "
    "o_proj for the output"
)


@dataclass(frozen=True)
class Projection:
    """One linear map of a module: weight (C, C), and bias (C,) or None.

    Both are detached views of the module's parameters: writing into them changes the module."""

    weight: Tensor
    bias: Tensor | None

    def as_linear(self, dtype: torch.dtype = torch.float64) -> nn.Linear:
        """A copy as a new nn.Linear."""
        out, into = self.weight.shape
        linear = nn.Linear(into, out, bias=self.bias is not None, dtype=dtype)
        with torch.no_grad():
            linear.weight.copy_(self.weight)
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear


@dataclass(frozen=True)
class Projections:
    """The four projections of an attention module."""

    query: Projection
    key: Projection
    value: Projection
    output: Projection

    def items(self) -> tuple[tuple[str, Projection], ...]:
        """(name, projection) in the order query, key, value, output."""
        return (
            ("query", self.query),
            ("key", self.key),
            ("value", self.value),
            ("output", self.output),
        )


class ProjectionError(Exception):
    """The projections of a module cannot be found.

    `unnamed`: the module has weights, but under unknown names. `missing`: the part that does not
    exist, "input" or "output". `slug`: the mistake.
    """

    def __init__(
        self, message: str, slug: str, *, unnamed: bool = False, missing: str | None = None
    ) -> None:
        super().__init__(message)
        self.message, self.slug = message, slug
        self.unnamed, self.missing = unnamed, missing


def find_projections(
    module: nn.Module, n_embd: int, *, columns: bool = False, output: bool = True
) -> Projections:
    """The projections of `module`, found by name. Raises ProjectionError if one does not fit.

    The attribute NAME is an nn.Linear, another module, or an nn.Parameter with a bias `NAME_bias`.
    Learners use a bare square matrix as x @ W.T or as x @ W, and the shape does not tell which.
    `columns` says that it is x @ W. A fused matrix of shape (C, 3C) can only be x @ W. With
    `output=False` an identity matrix takes the place of a missing output projection.
    """
    owners: list[str] = []

    def take(name: str) -> tuple[Tensor, Tensor | None]:
        owners.append(name)
        return _matrix(module, name, n_embd, columns)

    parts: list[Projection] = []
    separate = next((names for names in SEPARATE if any(_has(module, n) for n in names)), None)
    fused = next((name for name in FUSED if _has(module, name)), None)
    if separate is not None and (fused is None or all(_has(module, n) for n in separate)):
        absent = [name for name in separate if not _has(module, name)]
        if absent:
            raise _absent(module, owners=[*separate, *OUTPUT], what=_and(absent), part="input")
        for name in separate:
            weight, bias = take(name)
            parts.append(Projection(_square(weight, name, n_embd), bias))
    elif fused is not None:
        weight, bias = take(fused)
        if tuple(weight.shape) != (3 * n_embd, n_embd):
            raise ProjectionError(
                f"`{fused}` has a weight of shape {tuple(weight.shape)}; stacked query, key and "
                f"value make {(3 * n_embd, n_embd)}",
                "projection-shape",
            )
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        parts += [Projection(w, b) for w, b in zip(weight.chunk(3), biases, strict=True)]
    else:
        raise _absent(module, owners=list(OUTPUT), what="query, key and value", part="input")
    last = next((name for name in OUTPUT if _has(module, name)), None)
    if last is None and not output:
        unchanged = Projection(torch.eye(n_embd, dtype=parts[0].weight.dtype), None)
        return Projections(parts[0], parts[1], parts[2], unchanged)
    if last is None:
        raise _absent(module, owners=owners, what="c_proj, the output projection", part="output")
    weight, bias = take(last)
    parts.append(Projection(_square(weight, last, n_embd), bias))
    _all_different(parts, owners)
    return Projections(*parts)


def is_ambiguous(module: nn.Module, n_embd: int) -> bool:
    """Whether some bare square matrix can be used as x @ W.T or as x @ W."""
    for name in (*SEPARATE[0], *SEPARATE[1], *FUSED, *OUTPUT):
        part = getattr(module, name, None)
        bare = isinstance(part, nn.Parameter) or (
            isinstance(part, nn.Module) and not isinstance(part, nn.Linear)
        )
        if bare and any(
            p.dim() == 2 and p.shape[0] == p.shape[1] == n_embd for p in _parameters(part)
        ):
            return True
    return False


def _has(module: nn.Module, name: str) -> bool:
    return isinstance(getattr(module, name, None), nn.Module | nn.Parameter)


def _parameters(part: object) -> list[nn.Parameter]:
    """The parameters of a module, or the parameter itself."""
    if isinstance(part, nn.Parameter):
        return [part]
    return list(part.parameters()) if isinstance(part, nn.Module) else []


def _matrix(
    module: nn.Module, name: str, n_embd: int, columns: bool
) -> tuple[Tensor, Tensor | None]:
    """The weight of `name` with outputs as rows, and its bias."""
    part = getattr(module, name)
    tensors = [p.detach() for p in _parameters(part)]
    extra = getattr(module, f"{name}_bias", None)
    if isinstance(part, nn.Parameter) and isinstance(extra, nn.Parameter):
        tensors.append(extra.detach())
    matrices = [t for t in tensors if t.dim() == 2]
    biases = [t for t in tensors if t.dim() == 1]
    if len(matrices) != 1 or len(biases) > 1 or len(matrices) + len(biases) != len(tensors):
        kind = type(part).__name__
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors) or "none"
        raise ProjectionError(
            f"`{name}` is a {kind} with parameters of shape {shapes}; it should be an nn.Linear, "
            "one matrix and at most one bias",
            "projection-shape",
        )
    weight = matrices[0]
    if not isinstance(part, nn.Linear):
        rows, across = weight.shape
        if (rows, across) == (n_embd, 3 * n_embd) or (rows == across and columns):
            weight = weight.T
    bias = biases[0] if biases else None
    if bias is not None and bias.shape[0] != weight.shape[0]:
        raise ProjectionError(
            f"`{name}` has {weight.shape[0]} outputs and a bias of {bias.shape[0]}",
            "projection-shape",
        )
    return weight, bias


def _square(weight: Tensor, name: str, n_embd: int) -> Tensor:
    """`weight` itself. Raises ProjectionError unless it is (n_embd, n_embd)."""
    if tuple(weight.shape) != (n_embd, n_embd):
        raise ProjectionError(
            f"`{name}` has a weight of shape {tuple(weight.shape)}, expected {(n_embd, n_embd)}",
            "projection-shape",
        )
    return weight


def _all_different(parts: list[Projection], owners: list[str]) -> None:
    """Raise ProjectionError if two projections share their weights."""
    names = owners if len(owners) == len(parts) else ["query", "key", "value", owners[-1]]
    seen: dict[int, str] = {}
    for name, part in zip(names, parts, strict=True):
        if (first := seen.setdefault(part.weight.data_ptr(), name)) != name:
            raise ProjectionError(
                f"`{first}` and `{name}` are the same weights; each needs its own",
                "shared-projection",
            )


def _absent(module: nn.Module, owners: list[str], what: str, part: str) -> ProjectionError:
    """The error for a missing part. The part can exist under another name."""
    other = sorted(
        {
            name.removesuffix(".weight")
            for name, p in module.named_parameters()
            if p.dim() >= 2 and name.split(".")[0] not in owners
        }
    )
    if other:
        return ProjectionError(
            f"no {what} found; the module has weights under other names: "
            + ", ".join(f"`{name}`" for name in other),
            "unknown-names",
            unnamed=True,
        )
    have = ", ".join(f"`{n}`" for n in dict(module.named_children())) or "no submodule"
    return ProjectionError(
        f"the module has no {what}: it has {have}", "missing-projection", missing=part
    )


def _and(names: list[str]) -> str:
    """The names joined with commas and "and"."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
