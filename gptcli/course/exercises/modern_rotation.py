"""Steps 2 and 3 of the exercise modern: check a learner's rotary_angles and rotate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gptcli.course.exercises import modern
from gptcli.course.exercises.double_precision import single_precision
from gptcli.course.exercises.explainer import apart
from gptcli.course.exercises.learner_module import close
from gptcli.course.exercises.modern_learner import LearnerModern
from gptcli.course.exercises.modern_mistakes import MISTAKES
from gptcli.course.lesson import TOLERANCE, CheckFailed
from gptcli.plurals import counted

TABLES = ((8, 5), (6, 9), (16, 40), (4, 3), (2, 4))  # head_dim, length
SHAPES = ((2, 3, 5, 8), (3, 2, 9, 6), (1, 4, 3, 4))  # B, H, T, D
LONG = (8, 1000)
Tables = tuple[Tensor, Tensor]


def _doubled(a: Tensor) -> Tensor:
    return torch.cat((a, a), -1)


# The forms of tables that count as right, made from c and s (length, D/2). gptcli/model/rotary.py
# uses the last form.
_KINDS: tuple[Callable[[Tensor, Tensor], Tables], ...] = (
    lambda c, s: (c, s),
    lambda c, s: (_doubled(c), _doubled(s)),
    lambda c, s: (_doubled(c), torch.cat((-s, s), -1)),
)


def _neighbours(c: Tensor, s: Tensor) -> Tables:
    """Tables of the interleaved convention, in which x[2i] and x[2i + 1] are a pair."""
    return c.repeat_interleave(2, -1), s.repeat_interleave(2, -1)


def check_angles(learner: LearnerModern) -> None:
    """Check step 2: compare the tables of rotary_angles with the reference."""
    got = {case: _tables(learner, *case) for case in TABLES}
    if all(_is_right(got[case], *case) for case in TABLES):
        _check_precision(learner)
        _check_later_calls(learner)
        return
    case = next(case for case in TABLES if not _is_right(got[case], *case))
    D, n = case
    cos, sin = got[case]
    for mistake in MISTAKES:
        if mistake.step == 2 and any(_fits(form, got) for form in mistake.forms):
            raise _angle_mistake(learner, mistake.slug, D, n, got[case])
    if cos.numel() == n * D // 2 and close(cos.T, _right(D, n)[0]) and n != D // 2:
        raise learner.mistake("tables-transposed", _wants(D, n), shape=_shapes(cos, sin))
    if cos.dim() < 2 or (n not in cos.shape[-2:] and cos.shape[0] not in (n - 1, n + 1)):
        raise learner.mistake("without-positions", _wants(D, n), shape=_shapes(cos, sin), n=n)
    if cos.shape[0] != n and cos.shape[-1] in (D // 2, D):
        raise learner.mistake(
            "another-length", _wants(D, n), rows=counted(cos.shape[0], "row"), n=n
        )
    if cos.shape[-1] == D and not close(cos[:, : D // 2], cos[:, D // 2 :]):
        raise _angle_mistake(learner, "too-many-frequencies", D, n, got[case])
    raise _wrong(learner, 2, _difference(case, got[case]))


def _tables(learner: LearnerModern, D: int, n: int, *, exactly: bool = True) -> Tables:
    """The learner's tables (cos, sin), without superfluous dimensions of size 1."""
    cos, sin = (_flat(part.detach()) for part in _pair(learner, D, n, exactly=exactly))
    return cos, sin


def _pair(learner: LearnerModern, D: int, n: int, *, exactly: bool = True) -> Tables:
    """The learner's tables (cos, sin), as rotary_angles returns them."""
    value = learner.call(2, D, n, exactly=exactly)
    if isinstance(value, Tensor) and value.is_complex():
        raise learner.failed_at(
            2,
            "complex-numbers",
            f"`rotary_angles` returned complex numbers of shape {tuple(value.shape)}, as Meta's "
            "code for Llama does, not (cos, sin)" + _quote(learner, 2),
            "what are the real and the imaginary part of each of these numbers?",
        )
    pair = isinstance(value, (tuple, list)) and len(value) == 2
    if not (pair and all(isinstance(part, Tensor) for part in value)):
        shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        raise learner.failed_at(
            2,
            "no-pair",
            f"`rotary_angles` returned {type(value).__name__}{shape}, not two tensors (cos, sin)"
            + _quote(learner, 2),
            "which two tensors does the last line return?",
        )
    cos, sin = value
    return cos, sin


def _flat(table: Tensor) -> Tensor:
    table = table.to(torch.float64) if table.is_floating_point() else table
    while table.dim() > 2 and 1 in table.shape:
        table = table.squeeze(table.shape.index(1))
    return table


def _right(D: int, n: int) -> Tables:
    return modern.rotary_angles(D, n)


def _is_right(tables: Tables, D: int, n: int) -> bool:
    return any(_same(tables, kind(*_right(D, n))) for kind in _KINDS)


def _same(a: Tables, b: Tables) -> bool:
    return all(
        s.dtype == t.dtype and s.shape == t.shape and close(s, t) for s, t in zip(a, b, strict=True)
    )


def _fits(form: Callable[..., Any], got: dict[tuple[int, int], Tables]) -> bool:
    """Whether `form`, which imitates a known mistake, gives the learner's tables `got`.

    The tables can be of each kind in _KINDS, or interleaved."""

    def made(case: tuple[int, int]) -> Tables:
        value = form(*case)
        return (value.cos(), value.sin()) if isinstance(value, Tensor) else value

    return any(
        all(_same(got[case], kind(*made(case))) for case in got) for kind in (*_KINDS, _neighbours)
    )


def _angle_mistake(
    learner: LearnerModern, slug: str, D: int, n: int, tables: Tables
) -> CheckFailed:
    """The CheckFailed for a known mistake. Its message has numbers of the learner's tables."""
    cos, sin = (_once(table, D) for table in tables)
    half = D // 2
    angles = torch.atan2(sin, cos)
    mine = _number(angles[1, half - 1]) if cos.dim() == 2 and len(cos) > 1 else 0.0
    last, wanted = apart(mine, float(modern.frequencies(D)[-1]))
    first = _number(angles.flatten()[0])
    return learner.mistake(
        slug,
        _difference((D, n), tables),
        D=D,
        n=n,
        half=half,
        first=first,
        yours=_number(angles[1, 0]) if cos.dim() == 2 and len(cos) > 1 else first,
        last=last,
        wanted=wanted,
        cos0=_number(cos.flatten()[0]),
        sin1=_number(sin[1, 0]) if sin.dim() == 2 and len(sin) > 1 else 0.0,
        right1=float(_right(D, n)[1][1, 0]),
    )


def _once(table: Tensor, D: int) -> Tensor:
    """The D/2 columns that a table of D columns has twice. A table of other width stays unchanged.

    If neighbouring columns differ, returns the second half: the first half of a table in `_KINDS`
    can be negative."""
    if table.dim() != 2 or table.shape[1] != D:
        return table
    return table[:, ::2] if close(table[:, ::2], table[:, 1::2]) else table[:, D // 2 :]


def _number(value: Tensor) -> float:
    """`value` as a float; 0.0 for the tiny numbers that rounding makes of 0."""
    return float(value) if abs(float(value)) > TOLERANCE else 0.0


def _difference(case: tuple[int, int], tables: Tables) -> str:
    """Where the tables are wrong: ` (rotary_angles(8, 5): cos[1, 1] is 0.9, expected 0.1)`."""
    D, n = case
    for part, (name, got) in enumerate(zip(("cos", "sin"), tables, strict=True)):
        wanted = _nearest(got, part, D, n)
        if wanted is None:
            return f" (rotary_angles{case}: {name} has shape {tuple(got.shape)}{_wants(D, n)})"
        mine = got.double()
        if not close(mine, wanted):
            at = int((mine - wanted).abs().nan_to_num(nan=9.0).argmax())
            t, i = divmod(at, mine.shape[1])
            yours, right = apart(_number(mine[t, i]), float(wanted[t, i]))
            return f" (rotary_angles{case}: {name}[{t}, {i}] is {yours}, expected {right})"
    return f" (rotary_angles{case} returns {_shapes(*tables)}{_wants(D, n)})"


def _nearest(table: Tensor, part: int, D: int, n: int) -> Tensor | None:
    """The right table from which the fewest numbers of `table` differ.

    `part` is 0 for the cosine, and 1 for the sine. None if no right table has the shape of
    `table`."""
    right = (kind(*_right(D, n))[part] for kind in _KINDS)
    fitting = (one for one in right if one.shape == table.shape)
    return min(
        fitting, key=lambda one: int((~torch.isclose(table.double(), one)).sum()), default=None
    )


def _wants(D: int, n: int) -> str:
    return f"; expected shape ({n}, {D // 2}) for head_dim {D} and length {n}"


def _shapes(*tables: Tensor) -> str:
    return " and ".join(str(tuple(table.shape)) for table in tables)


def _check_precision(learner: LearnerModern) -> None:
    """Check step 2 again, with the precision that the learner's code asks for."""
    D, n = LONG
    with single_precision():
        pair = _pair(learner, D, n, exactly=False)
    tables = _flat(pair[0].detach()), _flat(pair[1].detach())
    for part, (name, table) in enumerate(zip(("cosine", "sine"), tables, strict=True)):
        wanted = _nearest(table, part, D, n)
        if wanted is None:
            raise _later_mistake(learner, LONG, tables)
        mine = table.double()
        errors = (mine - wanted).abs()
        wrong = (errors > 2e-2).nonzero()
        dtype = pair[part].dtype
        short = dtype in (torch.bfloat16, torch.float16)
        if not len(wrong) and not short:
            continue
        at, i = wrong[0].tolist() if len(wrong) else divmod(int(errors.argmax()), mine.shape[1])
        raise learner.mistake(
            "low-precision" if len(wrong) else "tables-rounded",
            dtype=dtype if short else "low precision",
            at=at,
            what=name,
            yours=float(mine[at, i]),
            wanted=float(wanted[at, i]),
        )


def _check_later_calls(learner: LearnerModern) -> None:
    """Check step 2 again: no call may return the tables of an earlier call with other arguments."""
    if all(_is_right(_tables(learner, *case), *case) for case in TABLES):
        return
    learner.start_again()  # a right file may have stored the float32 tables of _check_precision
    for case in (*TABLES, LONG, *TABLES):
        tables = _tables(learner, *case)
        if not _is_right(tables, *case):
            raise _later_mistake(learner, case, tables)


def _later_mistake(learner: LearnerModern, case: tuple[int, int], tables: Tables) -> CheckFailed:
    """The CheckFailed for `tables`, the wrong tables that the call with `case` returned."""
    D, n = case
    for earlier in (*TABLES, LONG):
        if earlier != case and any(
            all(s.shape == t.shape and torch.allclose(s.double(), t, 0.0, 2e-2)
                for s, t in zip(tables, kind(*_right(*earlier)), strict=True))
            for kind in _KINDS
        ):  # fmt: skip
            return learner.mistake(
                "result-of-earlier-call", _wants(D, n), D=D, n=n, D0=earlier[0], n0=earlier[1]
            )
    cos = tables[0]
    if cos.dim() == 2 and cos.shape[0] != n and cos.shape[1] in (D // 2, D):
        return learner.mistake(
            "another-length", _wants(D, n), rows=counted(cos.shape[0], "row"), n=n
        )
    return _wrong(learner, 2, _difference(case, tables))


def check_rotation(learner: LearnerModern) -> None:
    """Check step 3: compare the results of rotate with the reference.

    Then check that a gradient flows from the result to x, and that the result has the dtype of x.
    rotate gets the learner's own tables."""
    tried = []
    for number, shape in enumerate(SHAPES):
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        tried.append((x, _rotated(learner, x)))
    bad = [(x, y) for x, y in tried if not _rotates_right(x, y)]
    if bad:
        raise _rotation_mistake(learner, tried, *bad[0])
    x = torch.randn(SHAPES[0], dtype=torch.float64, requires_grad=True)
    y = _turned(learner, x, _pair(learner, *_case(x)))
    if not y.requires_grad:
        raise learner.mistake("rotation-without-gradient")
    for dtype in (torch.float32, torch.bfloat16):
        given = x.detach().to(dtype)
        with single_precision():
            tables = _pair(learner, *_case(x), exactly=False)
            returned = _turned(learner, given, tables, exactly=False).dtype
        if returned != dtype:
            raise learner.mistake("dtype-changed", given=dtype, returned=returned)


def _case(x: Tensor) -> tuple[int, int]:
    return x.shape[-1], x.shape[-2]


def _rotated(learner: LearnerModern, x: Tensor) -> Tensor:
    """The learner's rotation of x. Raises CheckFailed if its shape is wrong or rotate changes x."""
    given = x.clone()
    tables = _pair(learner, *_case(x))
    try:
        y = _turned(learner, given, tables)
    except CheckFailed as failed:
        raise _square_mistake(learner, failed) or failed from None
    if y.shape != x.shape:
        if y.shape == (*x.shape[:-1], x.shape[-1] // 2):
            raise learner.mistake("half-lost", yours=y.shape[-1], D=x.shape[-1])
        raise _square_mistake(learner) or learner.failed_at(
            3,
            "rotated-shape",
            f"`rotate` returned shape {tuple(y.shape)} for x of {tuple(x.shape)}"
            + _quote(learner, 3),
            "rotate must keep the shape of x: which line changes it?",
        )
    if not torch.equal(given, x):
        difference = f"{float((given - x).abs().max()):.3g}"
        raise learner.mistake("x-changed", difference=difference)
    return y.detach()


def _turned(learner: LearnerModern, x: Tensor, tables: Tables, *, exactly: bool = True) -> Tensor:
    """What the learner's rotate returns. Raises CheckFailed if this is not a tensor."""
    y = learner.call(3, x, *tables, exactly=exactly)
    if not isinstance(y, Tensor):
        raise learner.failed_at(
            3,
            "no-tensor",
            f"`rotate` returned {type(y).__name__}, not a tensor of shape {tuple(x.shape)}"
            + _quote(learner, 3),
            "what does the last line of rotate return?",
        )
    return y


def _square_mistake(
    learner: LearnerModern, failed: CheckFailed | None = None
) -> CheckFailed | None:
    """The CheckFailed if the angles depend on the head or sequence, not on the position; else None.

    Tries an x with B = H = T. With other sizes, a rotate with this mistake raises an error or
    returns another shape."""
    if failed is not None and failed.mistake != "raises":
        return None
    x = torch.randn(4, 4, 4, 8, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    try:
        y = _turned(learner, x.clone(), _pair(learner, *_case(x)))
    except CheckFailed:
        return None
    more = "" if failed is None else f" ({failed.message})"
    for slug in ("rotated-over-heads", "rotated-over-batch"):
        mistake = next(m for m in MISTAKES if m.slug == slug)
        if any(close(y, form(x, *_right(*_case(x)))) for form in mistake.forms):
            return learner.mistake(slug, more)
    return None


def _rotates_right(x: Tensor, y: Tensor) -> bool:
    return close(y, modern.rotate(x, *_right(*_case(x))))


def _rotation_mistake(
    learner: LearnerModern, tried: list[tuple[Tensor, Tensor]], x: Tensor, y: Tensor
) -> CheckFailed:
    D = x.shape[-1]
    wanted = modern.rotate(x, *_right(*_case(x)))
    at = torch.tensor([0, 0, 1])  # position 1
    most = int((y - wanted)[tuple(at)].abs().nan_to_num(nan=9.0).argmax())
    mine, right = apart(float(y[0, 0, 1, most]), float(wanted[0, 0, 1, most]))
    evidence = f" (at position 1, channel {most} of {D} is {mine}, expected {right})"
    for mistake in MISTAKES:
        if mistake.step == 3 and any(
            all(_gives(form, before, after) for before, after in tried) for form in mistake.forms
        ):
            return learner.mistake(mistake.slug, evidence, D=D, half=D // 2)
    lengths = torch.allclose(y.norm(dim=-1), x.norm(dim=-1))
    seen = "" if lengths else "; a rotation keeps the lengths of vectors, but your rotate does not"
    return _wrong(learner, 3, f"{evidence}{seen}")


def _gives(form: Callable[..., Tensor], x: Tensor, y: Tensor) -> bool:
    try:
        return close(y, form(x, *_right(*_case(x))))
    except RuntimeError:  # with this mistake, the shapes do not fit
        return False


def _wrong(learner: LearnerModern, step: int, evidence: str) -> CheckFailed:
    name = {2: "rotary_angles", 3: "rotate"}[step]
    return learner.failed_at(
        step, "wrong-result", f"`{name}` gives a wrong result{_quote(learner, step)}{evidence}"
    )


def _quote(learner: LearnerModern, step: int) -> str:
    """Quotes the last `return` in the function of `step`, or the `def` if there is no `return`."""
    name = {2: "rotary_angles", 3: "rotate"}[step]
    lines = learner.source.lines_of(name)
    found = learner.source.matches(r"\breturn\b", lines)
    return learner.source.quote(found[-1] if found else learner.source.find("def ", lines))
