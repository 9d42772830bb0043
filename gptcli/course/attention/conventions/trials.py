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
from gptcli.course.attention.matching import match, transposed_scores, values_of_variables
from gptcli.course.attention.stages import Problem, compute_stages
from gptcli.course.lesson import TOLERANCE

Forward = Callable[[nn.Module, Tensor], Any]
NAMED = {"q": "q", "k": "k", "v": "v"}
"""What the variables whose names begin with q, k and v should hold."""
HIDDEN_SCORE = -1e4  # masks fill hidden scores with this number or a lower one


def best_layout(
    layouts: Sequence[Layout],
    module: nn.Module,
    x: Tensor,
    n_head: int,
    forward: Forward,
    path: Path,
) -> Layout:
    """The one of `layouts` that makes the learner's output correct, or else the likeliest one.

    If no layout makes the output correct, some layouts are compared. First choice: the layouts with
    which the variables q, k and v hold the queries, keys and values. Second choice, if the names
    leave the order free: the layouts whose scores have a row for each query. Third choice: all.

    A layout explains a value of the reference, such as the queries, if the learner's forward
    computes the value that the layout gives. Of the compared layouts, the one that explains the
    most values is returned. But layouts[0] is preferred if it is compared and explains at most one
    value fewer."""
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
    matches = [match(trace, problem)[0] for problem in problems]
    explained = [len(found.completed_at) for found in matches]
    T = x.shape[1]
    named = [values_of_variables(trace, found) == NAMED for found in matches]
    upright = [
        layouts[0].order_is_free and found.has("raw") and transposed_scores(trace, found, T) is None
        for found in matches
    ]
    for fitting in (named, upright):
        if any(fitting):
            most = max(count for count, fits in zip(explained, fitting, strict=True) if fits)
            if fitting[0] and explained[0] >= most - 1:
                return layouts[0]
            return layouts[list(zip(explained, fitting, strict=True)).index((most, True))]
    # A lead of one value is no proof: an inverted mask can look like swapped queries and keys.
    if explained[0] >= max(explained) - 1:
        return layouts[0]
    return layouts[explained.index(max(explained))]


@torch.no_grad()
def best_mask(
    call: Call, module: nn.Module, x: Tensor, right: Callable[[], Tensor] | None, path: Path
) -> Call:
    """`call` with the kind of mask that makes the output correct, or else with the likeliest kind.

    The likeliest kind hides exactly the scores or weights of later tokens, if any kind does. So
    mistakes in other steps do not matter. A forward that requires no mask and hides tokens by
    itself gets no mask, even if it hides the wrong tokens. `right` returns the correct output;
    None: unknown. `path` is the learner's file."""
    if call.mask is None:
        return call
    kinds: list[str | None] = list(MASKS)
    if not call.mask_is_required:
        kinds.insert(0, None)
    future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    runs: list[str | None] = []
    causal: list[str | None] = []
    hiding: list[str | None] = []
    for kind in kinds:
        candidate = call.with_mask(kind)
        hidden = _hidden_cells(candidate, module, x, path)
        if kind is not None and any(torch.equal(cells, future) for cells in hidden):
            hiding.append(kind)
        try:
            y = _first(candidate(module, x.clone()))
            if not isinstance(y, Tensor) or y.shape != x.shape:
                continue
            if right is not None and bool(((y - right()).abs() <= TOLERANCE).all()):
                return candidate
            if kind is None and (hidden or _hides_tokens(candidate, module, x)):
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
    likely = [*hiding, *causal, *(kind for kind in runs if kind is not None), next(iter(MASKS))]
    return call.with_mask(likely[0])


def _hidden_cells(call: Call, module: nn.Module, x: Tensor, path: Path) -> list[Tensor]:
    """For each result in forward that holds scores or weights: its hidden cells, bool (T, T).

    A result is used only if its hidden cells are the same for all sequences and heads. If its other
    cells all hold the same number, the result is a mask, and is not used."""
    T = x.shape[1]
    trace = trace_forward(lambda inner: call(module, inner), x.clone(), path)
    found = []
    for operation in trace.operations:
        for y in operation.outputs:
            if y.shape[-2:] != (T, T) or y.numel() == 0:
                continue
            hidden = y <= HIDDEN_SCORE
            if not bool(hidden.any()) and bool((y >= 0).all()):
                hidden = y == 0
            cells = hidden.reshape(-1, T, T)
            shown = y[~hidden]
            if (
                bool((cells == cells[0]).all())
                and bool(cells[0].any())
                and bool((shown != shown[:1]).any())
            ):
                found.append(cells[0])
    return found


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
