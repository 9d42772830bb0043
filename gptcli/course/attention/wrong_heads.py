"""Explains heads of a wrong size, heads that overlap, and heads that were not transposed (step 2).

Dimensions: B batch, T time, C channels (n_embd), H heads, D head_dim.
"""

from __future__ import annotations

from torch import Tensor

from gptcli.course.attention.compared_forward import ComparedForward
from gptcli.course.attention.first_wrong_operation import FUSED_KERNEL, PRODUCTS
from gptcli.course.attention.matching import value_in, varying_dims
from gptcli.course.attention.memory_layout import positions
from gptcli.course.attention.wrong_factor import factors_of

_WORDS = {"q": "queries", "k": "keys", "v": "values"}


def explain_heads(forward: ComparedForward) -> tuple[str, str] | None:
    """(slug, message) if a product gets queries, keys or values in wrong heads, else None."""
    p = forward.p
    for operation in forward.trace.operations:
        if operation.name not in {*PRODUCTS, FUSED_KERNEL}:
            continue
        for x in factors_of(operation):
            name = value_in(x, forward.found, p.T)
            if name not in _WORDS or x.dim() < 3:
                continue
            places = positions(x, name, forward.found.tables[name])
            if places is None:
                continue
            _, t, h, d = places
            if x.dim() == 4 and p.T > 1 and operation.name != "einsum":
                dims = [varying_dims(index) for index in (t, h, d)]
                if dims in ([{1}, {2}, {3}], [{1}, {3}, {2}]):  # (B, T, H, D) or (B, T, D, H)
                    return "heads-not-transposed", (
                        f"the {_WORDS[name]} come into the product as {tuple(x.shape)}, with time "
                        "before the heads, so the product combines the heads of one token, not "
                        "the tokens of one head"
                    )
            piece = _piece(h * p.D + d)
            if piece is None or piece[1] in (1, p.C):
                continue
            first, size = piece
            if size != p.D:
                return "heads-of-wrong-size", (
                    f"your pieces of the {_WORDS[name]} have {size} channels each; each of the "
                    f"{p.H} heads has head_dim = {p.D}"
                )
            if first is not None:
                return "heads-overlap", (
                    f"a head of the {_WORDS[name]} takes channels {first} to {first + size - 1}, "
                    f"but head h begins at channel h * {p.D}"
                )
    return None


def _piece(channels: Tensor) -> tuple[int | None, int] | None:
    """(first channel of a piece in a wrong place, size of each piece). A piece is used as a head.

    A piece is in a wrong place if its first channel is no multiple of the size. The first item is
    None if there is no such piece. Returns None if there is no dimension along which the channels
    increase by 1."""
    for dim in sorted(varying_dims(channels)):
        if bool((channels.diff(dim=dim) == 1).all()):
            size = channels.shape[dim]
            starts = channels.select(dim, 0).reshape(-1)
            off = starts[starts % size != 0]
            return (int(off[0]) if off.numel() else None), size
    return None
