"""Tries the possible layouts and masks, and chooses those that fit the output of forward.

Dimensions: B batch, T time, C channels (n_embd), H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.course.attention.conventions.call import MASKS, Call
from gptcli.course.attention.conventions.layout import Layout, Sizes
from gptcli.course.attention.forward_trace import trace_forward
from gptcli.course.attention.matching import match
from gptcli.course.attention.stages import Problem, compute_stages
from gptcli.course.lesson import TOLERANCE

Forward = Callable[[nn.Module, Tensor], Any]


def best_layout(
    layouts: Sequence[Layout],
    module: nn.Module,
    x: Tensor,
    n_head: int,
    forward: Forward,
    path: Path,
) -> Layout:
    """The layout with which the learner's output is correct, else the one that explains most.

    A layout explains a value of the reference, such as the queries, if the learner's forward
    computes the value that the layout gives. If no layout makes the output correct, the first
    layout is chosen, unless another layout explains at least two values more than the first."""
    if len(layouts) == 1:
        return layouts[0]
    sizes = Sizes(x.shape[2], n_head)
    trace = trace_forward(lambda inner: forward(module, inner), x.clone(), path)
    y = trace.result
    problems = [Problem(x, layout.projections(module, sizes), n_head) for layout in layouts]
    if isinstance(y, Tensor) and y.shape == x.shape:
        for layout, problem in zip(layouts, problems, strict=True):
            out = compute_stages(problem).out
            if bool(((y.double() - out).abs() <= TOLERANCE).all()):
                return layout
    explained = [len(match(trace, problem)[0].completed_at) for problem in problems]
    # One more value is no proof: an inverted mask can look as if queries and keys were swapped.
    if explained[0] >= max(explained) - 1:
        return layouts[0]
    return layouts[explained.index(max(explained))]


@torch.no_grad()
def best_mask(call: Call, module: nn.Module, x: Tensor, right: Callable[[], Tensor] | None) -> Call:
    """`call` with the kind of mask that gives the correct output, or else the likeliest kind.

    The call passes no mask if forward does not require one and hides tokens by itself, even if it
    hides the wrong tokens. `right` returns the correct output; None: unknown."""
    if call.mask is None:
        return call
    kinds: list[str | None] = list(MASKS)
    if not call.mask_is_required:
        kinds.insert(0, None)
    runs: list[str | None] = []
    causal: list[str | None] = []
    for kind in kinds:
        candidate = call.with_mask(kind)
        try:
            y = _first(candidate(module, x.clone()))
            if not isinstance(y, Tensor) or y.shape != x.shape:
                continue
            if right is not None and bool(((y - right()).abs() <= TOLERANCE).all()):
                return candidate
            if kind is None and _hides_tokens(candidate, module, x):
                return candidate
            runs.append(kind)
            changed = x.clone()
            changed[:, -1] += 1.0
            same = torch.equal(_first(candidate(module, changed))[:, :-1], y[:, :-1])
            if same and bool(y.isfinite().all()):
                causal.append(kind)
        except Exception:
            continue
    # A forward that relies on a mask would look wrong without one, so pass a mask.
    likely = [*causal, *(kind for kind in runs if kind is not None), next(iter(MASKS))]
    return call.with_mask(likely[0])


def _hides_tokens(call: Call, module: nn.Module, x: Tensor) -> bool:
    """Whether forward hides tokens: some token's output does not depend on some other token."""
    y = _first(call(module, x.clone()))
    for token in range(x.shape[1]):
        changed = x.clone()
        changed[:, token] += 1.0
        same = (_first(call(module, changed)) == y).all(dim=-1).any(dim=0)  # (T,)
        same[token] = False
        if bool(same.any()):
            return True
    return False


def _first(result: Any) -> Any:
    """The first item of a tuple or list; anything else as it is."""
    return result[0] if isinstance(result, tuple | list) and result else result
