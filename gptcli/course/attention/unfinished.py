"""Checks the last written step in a file whose later steps are still to be written.

When the code stops, variables must hold the values of the last written step, in a layout that the
next step can use.

Dimensions: B batch, T time (queries), S time (keys), C channels (n_embd), H heads, D head_dim.
"""

from __future__ import annotations

from itertools import combinations

from torch import Tensor

from gptcli.course.attention import STEP_NAMES
from gptcli.course.attention.compared_forward import ComparedForward
from gptcli.course.attention.finding import Finding, hints_of_step, step_marks
from gptcli.course.attention.matching import Table
from gptcli.course.attention.mistakes.attention_mistake import message_numbers
from gptcli.course.sandbox.variables import last_line_before, tensors_at

LATER = "later steps are still to be written"
_WORDS = {"q": "queries", "k": "keys", "v": "values"}
# the step that is still to be written -> the values of the step before it
_VALUES = {
    3: ("q", "k", "v"), 4: ("q", "k", "v"), 5: ("scaled",), 6: ("masked",), 7: ("weights",),
    8: ("mixed",),
}  # fmt: skip
_NAMES = {
    "scaled": "the scaled scores", "masked": "the masked scores", "weights": "the weights",
    "mixed": "the weighted values",
}  # fmt: skip


def fault_of_last_step(forward: ComparedForward, unwritten: int) -> Finding | None:
    """The finding if the last written step gives a wrong layout or loses its values, or None.

    `unwritten` is the number of the next step. The numbers of the last written step are correct."""
    error = forward.trace.error
    if error is None:
        return None
    variables = tensors_at(error, forward.learner.file.path)
    for name in _VALUES.get(unwritten, ()):
        found = _layout_fault(forward, unwritten, name, variables)
        if found is None and not _is_kept(forward, name, variables):
            found = _not_kept(forward, unwritten - 1, name)
        if found is not None:
            return found
    return None


def what_is_missing(forward: ComparedForward, step: int) -> str:
    """The part of a message that says what the code of `step` does not compute.

    In the message, this part follows the quoted line."""
    error = forward.trace.error
    assert error is not None
    if step != 1:
        return f"the numbers of step {step}, {STEP_NAMES[step]}, do not appear"
    variables = tensors_at(error, forward.learner.file.path)
    wanted = {name: _layouts(forward, name, 1)[0] for name in "qkv"}
    named = {name: x for name, x in variables if x.shape == wanted["q"].shape}
    lost = [
        _WORDS[name]
        for name, right in wanted.items()
        if not any(_equal(x, right) for x in named.values())
    ]
    what = " or the ".join(lost or ["heads"])
    text = f"step 1, {STEP_NAMES[1]}, is not done: no variable holds the {what}"
    for (one, a), (two, b) in combinations(named.items(), 2):
        if _equal(a, b):
            return f"{text}; `{one}` and `{two}` hold the same numbers"
    return text


def line_of_last_step(forward: ComparedForward) -> int | None:
    """The number of the last line before the code that is still to be written, or None."""
    error = forward.trace.error
    return None if error is None else last_line_before(error, forward.learner.file.path)


def _layouts(forward: ComparedForward, name: str, step: int) -> list[Tensor]:
    """The correct tensor `name` after `step`, once in each allowed layout.

    The first layout is that of the skeleton."""
    p, values = forward.p, forward.values
    if name == "mixed":
        folded = values.mixed.reshape(p.B * p.H, p.T, p.D)
        return [values.mixed, values.mixed.transpose(1, 2), values.merged, folded]
    if step == 1:
        return [getattr(values, name)]
    split: Tensor = getattr(values, f"{name}h")
    folded = split.reshape(p.B * p.H, p.T, p.D)
    return [split, folded] if step == 2 else [folded, split]


def _equal(x: Tensor, right: Tensor) -> bool:
    return x.shape == right.shape and bool(((x.double() - right).abs() <= 1e-6).all())


def _layout_fault(
    forward: ComparedForward, unwritten: int, name: str, variables: list[tuple[str, Tensor]]
) -> Finding | None:
    """A finding if a variable has all numbers of the tensor `name` in a wrong layout; else None."""
    p, step = forward.p, unwritten - 1
    if name not in ("q", "k", "v", "mixed"):
        return None
    table = forward.found.tables[name]
    held = [
        (variable, x)
        for variable, x in variables
        if x.numel() == p.B * p.T * p.C and bool((table.locate(x.double()) >= 0).all())
    ]
    layouts = _layouts(forward, name, step)
    if not held or any(_equal(x, right) for _, x in held for right in layouts):
        return None
    variable, x = held[-1]
    shape = tuple(layouts[0].shape)
    dims = {2: "(B, H, T, D)", 3: "(B*H, T, D)", 7: "(B, H, T, D)"}[step]
    if tuple(x.shape) != shape:
        why = (
            f"`{variable}` has shape {tuple(x.shape)}; after step {step} it should be "
            f"{dims} = {shape}"
        )
    else:
        off = ((x.double() - layouts[0]).abs() > 1e-6).any(dim=-1).nonzero()[0].tolist()
        b, h, t = off if len(off) == 3 else (off[0] // p.H, off[0] % p.H, off[1])
        why = (
            f"`{variable}` has the right shape, {shape}, but its numbers are in other places: "
            f"{variable}{off} must be head {h} of token {t} in sequence {b}"
        )
    line = _line_of(forward, variable)
    hints = hints_of_step(step, message_numbers(p))
    marks = step_marks(step, forward, line)
    message = f"{forward.quote(line)}{why}; {LATER}"
    return Finding(step, f"step-{step}", message, hints, marks)


def _is_kept(forward: ComparedForward, name: str, variables: list[tuple[str, Tensor]]) -> bool:
    """Whether the variables together have all numbers of the value `name`.

    Of scores and weights, only the visible ones count."""
    p = forward.p
    right: Tensor = getattr(forward.values, "scaled" if name == "masked" else name)
    needed = p.past.expand(right.shape) if name == "masked" else None
    if name in ("scaled", "weights"):
        needed = p.past.expand(right.shape)
    table = Table(right, 1e-6, needed)
    if name == "weights":
        return any(table.mark_equal_seen(x.double()) for _, x in variables if x.numel())
    for _, x in variables:
        if not x.numel():
            continue
        places = table.locate(x.double())
        places = places[places >= 0]
        if name == "masked" and not bool(p.past.expand(right.shape).reshape(-1)[places].all()):
            continue  # the mask does not hide the future in these scores
        if table.mark_seen(places):
            return True
    return False


def _not_kept(forward: ComparedForward, step: int, name: str) -> Finding | None:
    at = forward.found.completed_at.get(name)
    line = None if at is None else forward.trace.operations[at].line
    if line is None:
        return None
    what = _NAMES.get(name) or f"the {_WORDS[name]}"
    why = (
        f"this line computes {what}, but no variable keeps them: torch makes a new tensor, and the "
        f"old one stays as it was; {LATER}"
    )
    numbers = message_numbers(forward.p)
    hints = (
        "what happens to the result of that line?",
        hints_of_step(step, numbers)[1],
        f"write `name = ...` in front of `{forward.code(line)}`",
    )
    marks = step_marks(step, forward, line)
    return Finding(step, "result-not-kept", f"{forward.quote(line)}{why}", hints, marks)


def _line_of(forward: ComparedForward, variable: str) -> int | None:
    """The number of the line that computed the variable's value.

    If the trace does not show that line, returns `line_of_last_step`."""
    made = [at for (at, _), name in forward.trace.variable_names.items() if name == variable]
    line = forward.trace.operations[max(made)].line if made else None
    return line if line is not None else line_of_last_step(forward)
