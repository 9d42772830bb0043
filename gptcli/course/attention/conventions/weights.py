"""Lists the matrices of an attention module, their biases, and the roles that their names mean.

Dimensions: C channels (n_embd), H heads, D head_dim. Usually each row of a matrix is an
output, as in nn.Linear. `Matrix.transposed` and `Layout.columns` mark matrices in which each column
is an output. possible_layouts.py finds the projections among the matrices:

| matrices or tensors of the module | layout |
|---|---|
| three or four (C, C) | separate |
| one (3C, C), and one (C, C) | fused |
| one (C, C), one (2C, C), and one (C, C) | separate queries, fused keys and values |
| 3 * H of (D, C), or H of (3D, C) | a list of heads |
| three of (H, C, D), and one (H, D, C) | a matrix for each head in one tensor |
| three of (D, D) | the heads share one matrix |
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

Q, K, V, OUT, QKV, KV, QK = "q", "k", "v", "o", "qkv", "kv", "qk"
PARTS = {Q: "query", K: "key", V: "value", OUT: "output"}

_ROLE: dict[str, str] = {
    Q: "q query queries quer",
    K: "k key keys",
    V: "v value values val vals",
    OUT: (
        "o out output outputs proj projection cproj unify unifyheads final combine merge concat "
        "mix back wo fcout headproj mixing post reproject aggregate head last"
    ),
    QKV: (
        "qkv kqv vqk qvk kvq vkq cattn in queryvaluekey querykeyvalue attn att pack packed "
        "qkvs fused"
    ),
    KV: "kv vk keyvalue",
    QK: "qk kq querykey",
}  # fmt: skip
_ROLE_OF: dict[str, str] = {word: role for role, group in _ROLE.items() for word in group.split()}
_NOISE = {
    "w", "weight", "weights", "to", "linear", "lin", "layer", "layers", "fc", "dense", "net",
    "projection", "proj", "matrix", "mat", "transform", "self", "c", "head", "heads", "per", "all",
    "for", "the", "of", "attn", "attention", "att", "conv", "conv1d", "map", "mapping", "embed",
    "mha", "multi", "multihead", "module", "mlp", "param", "gen", "make", "my", "x", "a", "l", "d",
    "combined", "fused", "packed", "stack", "tensor", "vec", "vector", "vectors", "trainable",
}  # fmt: skip
_WEIGHT_WORDS, _BIAS_WORDS = "weights?|kernel|matrix|mat|w", "biases|bias|b"


@dataclass(frozen=True)
class Matrix:
    """One matrix of a module, or one tensor of 3 or 4 dimensions, with its bias."""

    path: str
    tensor: Tensor
    bias: Tensor | None
    oriented: bool  # whether its rows are surely the outputs, as in nn.Linear
    transposed: bool = False  # whether its columns are the outputs, as in GPT-2's Conv1D

    @property
    def rows(self) -> int:
        """The number of outputs. Assumes that each row is an output, unless `transposed`."""
        return self.tensor.shape[1 if self.transposed else 0]


@dataclass(frozen=True)
class Group:
    """Matrices of one shape whose paths differ only in an index, such as `heads.0.key`."""

    path: str  # with * in place of the index if there are several members
    members: tuple[Matrix, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of each member. Rows are outputs if `oriented`."""
        first = self.members[0]
        shape = tuple(first.tensor.shape)
        return shape[::-1] if first.transposed and len(shape) == 2 else shape

    @property
    def name(self) -> str:
        """The path as messages show it."""
        return self.path.removesuffix(".weight")

    @property
    def oriented(self) -> bool:
        """Whether it is certain for every member which are the outputs: the rows or the columns."""
        return all(member.oriented or member.transposed for member in self.members)


@dataclass(frozen=True)
class Inventory:
    """The weights of a module: groups of matrices, and other weights by name."""

    groups: tuple[Group, ...]
    vectors: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()
    # plain lists, tuples and dicts with modules or parameters in them
    loose: tuple[str, ...] = field(default=())


def take_inventory(module: nn.Module) -> Inventory:
    """The weights of `module` as an Inventory, in the order in which `module` defines them."""
    matrices: list[Matrix] = []
    vectors: list[str] = []
    norms, embeddings = [], []
    for prefix, owner in module.named_modules(remove_duplicate=False):
        own = dict(owner.named_parameters(recurse=False, remove_duplicate=False))
        if not own:
            continue
        if isinstance(owner, nn.Embedding):
            embeddings.append(prefix)
        elif all(p.dim() < 2 for p in own.values()) and _is_norm(owner):
            norms.append(prefix or type(owner).__name__)
        else:
            matrices += _matrices_of(owner, prefix, own, vectors)
    return Inventory(
        tuple(_groups(matrices)),
        tuple(vectors),
        tuple(norms),
        tuple(embeddings),
        tuple(_loose(module)),
    )


def _is_norm(owner: nn.Module) -> bool:
    return "norm" in type(owner).__name__.lower() or type(owner).__name__.lower() in ("ln", "rms")


def _matrices_of(
    owner: nn.Module, prefix: str, own: dict[str, nn.Parameter], vectors: list[str]
) -> Iterator[Matrix]:
    """The matrices of a module itself, not of its submodules. Each comes with its bias.

    Adds to `vectors` the names of biases that belong to no matrix."""
    large = {name: p.detach() for name, p in own.items() if p.dim() >= 2}
    biases = {name: p.detach() for name, p in own.items() if p.dim() == 1}
    if len(large) >= 2 and not isinstance(owner, nn.Linear):
        # biases of several dimensions, such as b_Q of (H, D) beside W_Q of (H, C, D)
        for name in [n for n in large if _is_bias(n, large)]:
            biases[name] = large.pop(name)
    used = set()
    for name, tensor in large.items():
        bias_name = _bias_of(name, large, biases)
        if bias_name is not None:
            used.add(bias_name)
        is_linear = isinstance(owner, nn.Linear) or name == "in_proj_weight"
        conv1d = type(owner).__name__ == "Conv1D" and len(large) == 1
        if tensor.dim() == 3 and tensor.shape[2] == 1 and "conv" in type(owner).__name__.lower():
            tensor, is_linear = tensor[:, :, 0], True
        short = "weight" if name in ("weight", "W", "w", "kernel") and len(large) == 1 else name
        path = ".".join(part for part in (prefix, "" if short == "weight" else name) if part)
        bias = None if bias_name is None else biases[bias_name]
        yield Matrix(path or name, tensor, bias, is_linear, conv1d)
    vectors += [f"{prefix}.{name}".strip(".") for name in biases if name not in used]


def _is_bias(name: str, large: dict[str, Tensor]) -> bool:
    lower = name.lower()
    return (
        lower.startswith(("b_", "bias"))
        or lower.endswith(("bias", "_b"))
        or (lower[:1] == "b" and f"w{lower[1:]}" in {other.lower() for other in large})
    )


def _bias_of(name: str, large: dict[str, Tensor], biases: dict[str, Tensor]) -> str | None:
    """The name of the bias of the matrix `name`: found by names, else by sizes, else None."""
    if not biases:
        return None
    if len(large) == 1 and len(biases) == 1:
        return next(iter(biases))
    by_name = _biases_by_name(large, biases)
    if name in by_name:
        return by_name[name]
    # For example, only one matrix has 3C outputs, and only one bias has 3C numbers. Fused matrices
    # have more outputs than inputs, so the larger size counts as the number of outputs.
    size = max(large[name].shape)
    same = [w for w, matrix in large.items() if matrix.dim() == 2 and max(matrix.shape) == size]
    free = [b for b, bias in biases.items() if b not in by_name.values() and bias.numel() == size]
    return free[0] if same == [name] and len(free) == 1 else None


def _biases_by_name(large: dict[str, Tensor], biases: dict[str, Tensor]) -> dict[str, str]:
    """A dict from the name of a matrix to the name of its bias.

    Has only the pairs whose names show that matrix and bias belong together."""

    def same_stem(matrix: str, bias: str) -> bool:
        return bool(_stems(matrix, _WEIGHT_WORDS) & _stems(bias, _BIAS_WORDS))

    def same_role(matrix: str, bias: str) -> bool:
        role = role_of(matrix)
        return role is not None and role in map(role_of, _stems(bias, _BIAS_WORDS))

    found: dict[str, str] = {}
    for same in (same_stem, same_role):
        for name in large:
            free = [b for b in biases if b not in found.values() and same(name, b)]
            if name not in found and len(free) == 1:
                found[name] = free[0]
    return found


def _stems(name: str, kind: str) -> set[str]:
    """The stems of a name: what remains if the word `kind` is removed at its beginning or its end.

    `kind` is a regular expression for words such as "w" or "bias".

    `w_qkv`, `wqkv`, `qkv_w`, `qkv_weight` and `qkvWeight` have the stem `qkv`."""
    plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    if re.fullmatch(kind, plain):
        return {""}
    cut = (re.sub(rf"^({kind})_?", "", plain), re.sub(rf"_?({kind})$", "", plain))
    return {stem.replace("_", "") for stem in cut}


def _groups(matrices: Sequence[Matrix]) -> Iterator[Group]:
    found: dict[tuple[str, tuple[int, ...]], list[Matrix]] = {}
    for matrix in matrices:
        path = re.sub(r"(?<![^.])\d+(?![^.])|(?<=_)\d+(?![^.])", "*", matrix.path)
        found.setdefault((path, tuple(matrix.tensor.shape)), []).append(matrix)
    for (path, _), members in found.items():
        yield Group(path if len(members) > 1 else members[0].path, tuple(members))


def _loose(module: nn.Module) -> Iterator[str]:
    """The attributes that hold modules or parameters in a plain list, tuple or dict.

    PyTorch does not find modules and parameters in such containers."""
    for prefix, owner in module.named_modules():
        for name, value in vars(owner).items():
            if name.startswith("_"):
                continue
            items = value.values() if isinstance(value, dict) else value
            if isinstance(value, list | tuple | dict) and any(
                isinstance(item, nn.Module | nn.Parameter) for item in items
            ):
                yield f"{prefix}.{name}".strip(".")


def role_of(path: str) -> str | None:
    """The role that a path's names mean: q, k, v, o, qkv, kv or qk. None if no name has a role."""
    for part in reversed(path.split(".")):
        if part in ("*", "") or part.isdigit():
            continue
        role = _role_of_name(part)
        if role is not None:
            return role
    return None


def _role_of_name(name: str) -> str | None:
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    tokens = [t for t in re.split(r"[^a-z0-9]+", split.lower()) if t]
    plain = "".join(tokens)
    if plain in _ROLE_OF:
        return _ROLE_OF[plain]
    kept = [t for t in tokens if t not in _NOISE and not t.isdigit()]
    if "".join(kept) in _ROLE_OF:
        return _ROLE_OF["".join(kept)]
    named = [_ROLE_OF[t] for t in kept if t in _ROLE_OF]
    if len(named) == 1:
        return named[0]
    stripped = _without_affixes(plain)
    if stripped in _ROLE_OF:
        return _ROLE_OF[stripped]
    out = [t for t in tokens if t in ("out", "o", "output", "proj", "projection")]
    return OUT if out and not kept else None


def _without_affixes(plain: str) -> str:
    """The part of a name that says the role: "q" for `wq` and `qlinear`."""
    before = ""
    while plain != before and plain not in _ROLE_OF:
        before = plain
        plain = re.sub(r"^(to|w|fc|lin|linear|dense|proj|c|weight|mat|layer)(?=.)", "", plain)
        if plain in _ROLE_OF:
            break
        plain = re.sub(
            r"(?<=.)(w|fc|linear|lin|dense|projection|proj|layer|weights?|matrix|mat|net|s|map"
            r"|transform|embed|head|heads)$",
            "",
            plain,
        )
    return plain
