"""The six steps of the exercise modern, and its known mistakes in the rotation (steps 2 and 3).

The functions in `forms` of step 2 take D (head_dim) and n (the length). They return what code
with the mistake computes: the angles, or the tables (cos, sin). The functions in `forms` of step 3
take x (B, H, T, D) and the correct tables c and s, each (T, D/2). They return the wrong rotation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gptcli.course.exercises.explainer import ExerciseMistake
from gptcli.course.exercises.modern import THETA, angles_of, frequencies, rotate
from gptcli.course.lesson import Step

STEPS = (
    Step(
        "RMSNorm",
        "each token is divided by one number: from which of its channels is this number computed, "
        "and how?",
        "the root of (the mean of the squares of the C channels, plus eps); no mean is subtracted",
        "x / torch.sqrt((x ** 2).mean(dim=-1, keepdim=True) + 1e-6), times the gain",
    ),
    Step(
        "rotary angles",
        "what is the angle of position 0, and of position 1 at the first frequency?",
        "position t, from 0 on, times 10000^(-2i/D), for i = 0 .. D/2-1: a table (length, D/2) of "
        "radians",
        "torch.outer(torch.arange(length).float(), 10000 ** (-torch.arange(0, D, 2) / D)), then "
        ".cos() and .sin()",
    ),
    Step(
        "rotate",
        "which two channels make a pair, and what becomes of (1, 0) if you rotate it by 90 "
        "degrees?",
        "channels i and i + D/2 are a pair (a, b), which becomes (a cos - b sin, b cos + a sin)",
        "a, b = x.chunk(2, dim=-1); torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)",
    ),
    Step(
        "rotated heads",
        "which of q, k and v depend on the position, and when are they rotated?",
        "split into heads of D channels first, then rotate q and k, not v, before the scores; the "
        "first token has position start",
        "cos, sin = rotary_angles(D, start + T); q = rotate(q, cos[start:], sin[start:]); the same "
        "for k",
    ),
    Step(
        "grouped queries",
        "with 4 query heads and 2 key/value heads, which query heads use the second key/value "
        "head?",
        "query head h uses key/value head h // (H / K): repeat each key/value head H / K times, "
        "side by side",
        "k = k.repeat_interleave(n_head // n_kv_head, dim=1), and the same for v",
    ),
    Step(
        "attention",
        "which parts of attention are still missing? they are the same as in weeks 1 and 2",
        "scores divided by sqrt(D), causal mask, softmax over the keys, weighted sum of v; then "
        "the heads side by side, and c_proj",
        "F.scaled_dot_product_attention(q, k, v, is_causal=True), then transpose(1, 2), reshape "
        "to (B, T, C) and self.c_proj",
    ),
)  # fmt: skip

Form = Callable[[int, int], Any]
Turned = Callable[[Tensor, Tensor, Tensor], Tensor]


def _positions(n: int) -> Tensor:
    return torch.arange(n, dtype=torch.float64)


def _with(exponent: Callable[[Tensor, int], Tensor], theta: float = THETA) -> Form:
    """A form with the frequencies theta ** exponent(i, D) for i in 0..D/2-1."""

    def form(D: int, n: int) -> Tensor:
        i = torch.arange(D // 2, dtype=torch.float64)
        return torch.outer(_positions(n), theta ** exponent(i, D))

    return form


def _usual(i: Tensor, D: int) -> Tensor:
    return -2 * i / D


def _too_many(step: float) -> Form:
    """A form with D frequencies, not D/2: THETA ** (-step * i / D) for i in 0..D-1."""
    return lambda D, n: torch.outer(
        _positions(n), THETA ** (-step * torch.arange(D, dtype=torch.float64) / D)
    )


def _moved(by: float) -> Form:
    return lambda D, n: torch.outer(_positions(n) + by, frequencies(D))


def _tables(change: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Form:
    """A form in which `change` turns the correct angles into wrong tables."""
    return lambda D, n: change(angles_of(D, n))


def _neighbours(table: Tensor) -> Tensor:
    return table.repeat_interleave(2, -1)


def _paired(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 0::2], x[..., 1::2]


def _interleaved(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
    """The rotation of the pairs (x[2i], x[2i + 1])."""
    a, b = _paired(x)
    return torch.stack((a * c - b * s, b * c + a * s), -1).flatten(-2)


def _mismatched(sign: float) -> Turned:
    """A wrong rotation x * cos + swapped(x) * sin: swaps neighbours, but uses tables for halves."""

    def form(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
        a, b = _paired(x)
        swapped = torch.stack((-b * sign, a * sign), -1).flatten(-2)
        return x * torch.cat((c, c), -1) + swapped * torch.cat((s, s), -1)

    return form


def _halves(change: Callable[..., tuple[Tensor, Tensor]]) -> Turned:
    """A wrong rotation: change(a, b, cos, sin) turns a and b, the two halves of x."""

    def form(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat(change(a, b, c, s), -1)

    return form


def _over(dim: int) -> Turned:
    """A rotation whose angle depends on the index in dimension `dim`, not on the position."""

    def form(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
        angles = angles_of(x.shape[-1], x.shape[dim])
        return rotate(x.transpose(dim, -2), angles.cos(), angles.sin()).transpose(dim, -2)

    return form


def _overwritten(a: Tensor, b: Tensor, c: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    a = a * c - b * s
    return a, b * c + a * s


def _overwritten_second(a: Tensor, b: Tensor, c: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    b = b * c + a * s
    return a * c - b * s, b


_PAIRS = r"::\s*2|unbind|reshape|view|unflatten|stack|complex|rearrange"
_EXPONENT = r"\*\*|pow\(|\bexp\(|arange\(\s*0\s*,|arange"

# fmt: off
MISTAKES = (
    ExerciseMistake("degrees", 2, "torch.deg2rad(angles), angles * math.pi / 180",
            "you convert the angles between degrees and radians: at position 1, your first angle "
            "is {yours:.4g} (up to full turns), not 1",
            "t times the frequency is already an angle in radians",
            "leave out the conversion",
            (lambda D, n: angles_of(D, n) * math.pi / 180, lambda D, n: angles_of(D, n) * 180
             / math.pi), r"deg|rad|180|360|pi\b"),
    ExerciseMistake("turns", 2, "2 * math.pi * positions * frequencies",
            "you multiply or divide the angles by pi or 2 pi: at position 1, your first angle is "
            "{yours:.4g} (up to full turns), not 1",
            "t times the frequency is already an angle in radians",
            "leave pi out",
            (lambda D, n: angles_of(D, n) * 2 * math.pi, lambda D, n: angles_of(D, n) * math.pi,
             lambda D, n: angles_of(D, n) / (2 * math.pi), lambda D, n: angles_of(D, n) / math.pi),
            r"pi\b|tau"),
    ExerciseMistake("too-many-frequencies", 2, "theta ** (-torch.arange(head_dim) / head_dim)",
            "you make {D} frequencies, one for each channel; two channels share an angle, so you "
            "need {half}", "a rotation turns a pair of channels by one angle",
            "use torch.arange(0, head_dim, 2) / head_dim",
            (_too_many(1), _too_many(2)),
            r"arange\((head_dim|d|dim|D)\b|\*\*|pow\(|arange"),
    ExerciseMistake("exponent-not-doubled", 2, "theta ** (-torch.arange(D // 2) / D)",
            "your frequencies are 10000^(-i/D): the last of {half} is {last}, expected "
            "{wanted}", "the exponent goes from 0 to nearly -1: -2i/D for i below D/2",
            "use torch.arange(0, head_dim, 2) / head_dim", (_with(lambda i, D: -i / D),),
            _EXPONENT),
    ExerciseMistake("exponent-doubled-twice", 2, "theta ** (-2 * torch.arange(0, D, 2) / D)",
            "your frequencies are 10000^(-4i/D): the last of {half} is {last}, expected "
            "{wanted}", "torch.arange(0, D, 2) is 2i already",
            "use torch.arange(0, head_dim, 2) / head_dim", (_with(lambda i, D: -4 * i / D),),
            _EXPONENT),
    ExerciseMistake("exponent-positive", 2, "positions * theta ** (arange(0, D, 2) / D)",
            "your {half} frequencies grow from 1 on, but the last should be {wanted}",
            "the first pair turns fastest, so use a negative exponent, or divide by the power",
            "write 10000 ** (-torch.arange(0, head_dim, 2) / head_dim)",
            (_with(lambda i, D: 2 * i / D),),
            _EXPONENT),
    ExerciseMistake("frequencies-reversed", 2, "frequencies.flip(0)",
            "your frequencies are in the reverse order: the last of {half} is {last}, expected "
            "{wanted}", "the first pair turns fastest", "begin with frequency 1",
            (_with(lambda i, D: -2 * (D // 2 - 1 - i) / D),), r"flip|\[::-1\]|-\s*1\)|arange"),
    ExerciseMistake("last-frequency", 2, "torch.linspace(0, 1, D // 2)",
            "your last of {half} frequencies is {last}, expected {wanted}",
            "i goes from 0 to D/2 - 1, so the exponent goes from 0 to -(D - 2)/D",
            "use torch.arange(0, head_dim, 2) / head_dim",
            (_with(lambda i, D: -i / max(D // 2 - 1, 1)), _with(lambda i, D: -(2 * i + 2) / D),
             _with(lambda i, D: -(2 * i + 1) / D)), r"linspace|arange"),
    ExerciseMistake("another-theta", 2, "500000 ** ..., 1000 ** ...",
            "your theta is not 10000: the last of {half} frequencies is {last}, expected "
            "{wanted}",
            "Llama 3 and Qwen3 have a larger theta for longer texts; this exercise uses 10000",
            "use 10000 for theta", tuple(_with(_usual, theta) for theta in (
                10.0, 100.0, 1e3, 1e5, 1e6, 1e7, 5e5, 2e4, 5e4, 2.0, math.e, 10240.0, 1e4 - 1)),
            r"\b(10|100|1000|1e3|100_?000|500_?000|1_?000_?000|1e[567]|5e5|theta|base)\b|\*\*|exp"),
    ExerciseMistake("one-frequency", 2, "torch.arange(0, D, 2) // D",
            "your {half} frequencies are equal, all of them or all but the first: the last is "
            "{last}, expected {wanted}",
            "integer division rounds the exponents, or the exponents do not depend on i",
            "write 10000 ** (-torch.arange(0, head_dim, 2) / head_dim), with / and not //",
            tuple(map(_with, (
                lambda i, D: 0 * i, lambda i, D: 0 * i - 1, lambda i, D: (-2 * i / D).floor(),
                # with integers, 10000 ** -1 is 0
                lambda i, D: torch.where(i > 0, -torch.inf, 0.0)))),
            r"//|\*\*|outer"),
    ExerciseMistake("linear-frequencies", 2, "torch.arange(0, D, 2) / D, or 1 / arange",
            "your frequencies are not powers of 10000: the last of {half} is {last}, expected "
            "{wanted}", "each frequency is a power: 10000 to the power of -2i/D",
            "write 10000 ** (...)", (
                lambda D, n: torch.outer(_positions(n), 1 / torch.arange(
                    1, D // 2 + 1, dtype=torch.float64)),
                lambda D, n: torch.outer(_positions(n), -torch.arange(
                    0, D, 2, dtype=torch.float64) / D),
                lambda D, n: torch.outer(_positions(n), torch.arange(
                    0, D, 2, dtype=torch.float64) / D)),
            r"\*\*|exp|arange"),
    ExerciseMistake("positions-from-one", 2, "torch.arange(1, length + 1)",
            "your first position has the angle {first:.4g}, not 0",
            "positions begin at 0, so the first token is not rotated",
            "use torch.arange(length)", (_moved(1), _moved(-1), _moved(0.5)),
            r"arange\(\s*1|\+\s*1|arange"),
    ExerciseMistake("positions-reversed", 2, "length - torch.arange(length)",
            "your positions count from the end: the first of {n} has the angle {first:.4g} (up to "
            "full turns), not 0",
            "a token's position must not depend on how long the text is",
            "use torch.arange(length)",
            (lambda D, n: angles_of(D, n).flip(0), lambda D, n: torch.outer(
                n - _positions(n), frequencies(D)), lambda D, n: -angles_of(D, n).flip(0)),
            r"flip|-\s*1\b|length\s*-|arange"),
    ExerciseMistake("positions-scaled", 2, "torch.arange(length) / length",
            "you multiply or divide the positions or angles by a number, such as the length {n}",
            "the angle is the position times the frequency, for a text of any length",
            "use torch.arange(length)",
            (lambda D, n: angles_of(D, n) / n, lambda D, n: angles_of(D, n) / max(n - 1, 1),
             lambda D, n: angles_of(D, n) / D, lambda D, n: angles_of(D, n) * 2,
             lambda D, n: angles_of(D, n) / 2, lambda D, n: angles_of(D, n) / math.sqrt(D)),
            r"linspace|/\s*(length|n|T|seq\w*)\b|length|arange"),
    ExerciseMistake("sine-and-cosine-swapped", 2, "return sin, cos",
            "you return the sine first: at position 0 your cosine is {cos0:.4g}, not 1",
            "rotary_angles returns cos, then sin", "write `return cos, sin`",
            (_tables(lambda a: (a.sin(), a.cos())),), r"return"),
    ExerciseMistake("sine-negative", 2, "-torch.sin(angles)",
            "your sine has the wrong sign: at position 1 it is {sin1:.4g}, expected {right1:.4g}",
            "the angles are positive, and rotate does the subtraction",
            "leave the minus out", (_tables(lambda a: (a.cos(), -a.sin())),),
            r"-\s*\w*\.?\w*sin|-"),
    ExerciseMistake("no-cosine", 2, "return angles, angles",
            "the two tables that you return are not the cosine and the sine of the angles",
            "rotate multiplies by the cosine and by the sine", "return angles.cos(), angles.sin()",
            (_tables(lambda a: (a, a)), _tables(lambda a: (a.cos(), a)),
             _tables(lambda a: (a, a.sin())), _tables(lambda a: (a.cos(), a.cos())),
             _tables(lambda a: (a.sin(), a.sin()))), r"return"),
    ExerciseMistake("interleaved-angles", 2, "angles.repeat_interleave(2, dim=-1)",
            "you repeat each of the {half} angles for two neighbours: this is the interleaved "
            "convention, which pairs channel 2i with 2i + 1",
            "RoFormer, GPT-J and Meta's code for Llama use that convention. This exercise pairs "
            "channel i with i + D/2, as the library transformers does for Llama and Qwen3",
            "make tables (length, D/2), or repeat the angles with torch.cat((angles, angles), -1)",
            (_tables(lambda a: (_neighbours(a.cos()), _neighbours(a.sin()))),),
            r"repeat|stack|flatten"),
    ExerciseMistake("without-positions", 2, "cos of the frequencies alone",
            "your tables have the shapes {shape}, but no row for each of the {n} positions",
            "each position has its own angles: position times frequency",
            "take the outer product of torch.arange(length) and the frequencies",
            at=r"outer|arange|return"),
    ExerciseMistake("tables-transposed", 2, "torch.outer(frequencies, positions)",
            "your tables have the shapes {shape}: positions and frequencies are exchanged",
            "row t of the table belongs to position t", "exchange the arguments of torch.outer",
            at=r"outer|@|einsum|\*"),
    ExerciseMistake("another-length", 2, "torch.arange(length + 1)",
            "your tables have {rows} for {n} positions",
            "there is one row for each of the positions 0 .. length-1", "use torch.arange(length)",
            at=r"arange|range"),
    ExerciseMistake("low-precision", 2, "torch.arange(length, dtype=torch.bfloat16)",
            "you compute the angles in {dtype}: position {at} gets the {what} {yours:.4g}, "
            "expected {wanted:.4g}",
            "bfloat16 cannot tell position 256 from 257, and float16 ends at 65504",
            "compute angles in float32; rotate converts the tables to the dtype of x at the end",
            at=r"bfloat16|float16|half|dtype|arange"),
    ExerciseMistake("tables-rounded", 2, "return angles.cos().bfloat16(), angles.sin().bfloat16()",
            "your tables are {dtype}: position {at} gets the {what} {yours:.6g}, expected "
            "{wanted:.6g}",
            "a 16-bit number keeps only two or three digits, even if x is float32",
            "return float32 tables; rotate converts them to the dtype of x at the end",
            at=r"bfloat16|float16|half|dtype|return"),
    ExerciseMistake("result-of-earlier-call", 2, "if head_dim in tables: return tables[head_dim]",
            "your rotary_angles({D}, {n}) returns the tables of an earlier call, "
            "rotary_angles({D0}, {n0})",
            "a stored result is right only for the arguments that it was computed from",
            "store tables by head_dim and length, or compute them in each call",
            at=r"\bif\b.*\b(not )?in\b|global|cache|\[head_dim\]|\bis (not )?None|\bif\b|return"),
    ExerciseMistake("interleaved", 3, "x[..., 0::2] and x[..., 1::2]",
            "your rotation is right in the interleaved convention: you pair channel 2i with "
            "2i + 1, not channel i with i + D/2",
            "RoFormer, GPT-J and Meta's code for Llama pair neighbours. This exercise pairs the "
            "two halves, as the library transformers does for Llama and Qwen3. A model needs the "
            "convention of its training",
            "take the halves: a, b = x.chunk(2, dim=-1), and torch.cat((...), dim=-1)",
            (_interleaved,), _PAIRS),
    ExerciseMistake("interleaved-with-halves", 3, "pairs (0, 1), (2, 3) with tables for halves",
            "you pair channel 2i with 2i + 1, but your tables are for the pairs i and i + D/2, so "
            "the two channels of a pair get different angles",
            "pairs of one convention with tables of the other give a result that is no rotation",
            "take the halves: a, b = x.chunk(2, dim=-1)",
            (_mismatched(1), _mismatched(-1)), _PAIRS),
    ExerciseMistake("halves-with-interleaved", 3, "halves on the way in, stack on the way out",
            "you take the pairs from the two halves of the {D} channels, and return them as "
            "neighbours",
            "channel i of the result belongs to channel i of x",
            "use torch.cat((first, second), dim=-1), not torch.stack",
            (lambda x, c, s: torch.stack(rotate(x, c, s).chunk(2, -1), -1).flatten(-2),),
            r"stack|reshape|flatten|cat"),
    ExerciseMistake("interleaved-with-cat", 3, "x[..., 0::2] and x[..., 1::2], then torch.cat",
            "you take pairs of neighbours, channels 2i and 2i + 1, and return them as two halves",
            "the interleaved convention takes neighbours and also returns neighbours; here channel "
            "i is paired with i + D/2",
            "take the halves: a, b = x.chunk(2, dim=-1)",
            (lambda x, c, s: torch.cat(_paired(_interleaved(x, c, s)), -1),), _PAIRS),
    ExerciseMistake("sine-sign", 3, "a * cos + b * sin, b * cos - a * sin",
            "you rotate backwards: both sines in your result have the wrong sign",
            "(a, b) becomes (a cos - b sin, b cos + a sin): (1, 0) turned by 90 degrees is (0, 1)",
            "exchange the two signs", (lambda x, c, s: rotate(x, c, -s),),
            r"\* *\w*sin|sin\w* *\*|-"),
    ExerciseMistake("no-minus", 3, "a * cos + b * sin, b * cos + a * sin",
            "you do not rotate the {D} channels: both halves have the same sign before the sine",
            "a rotation keeps the length of (a, b); one of the two sines is subtracted",
            "write a * cos - b * sin for the first half, b * cos + a * sin for the second",
            (_halves(lambda a, b, c, s: (a * c + b * s, b * c + a * s)),
             _halves(lambda a, b, c, s: (a * c - b * s, b * c - a * s))),
            r"\* *\w*sin|sin\w* *\*|cat"),
    ExerciseMistake("own-half", 3, "x * cos + x * sin",
            "you compute each of the {D} channels without its partner in the pair",
            "the sine multiplies the other channel of the pair",
            "write a * cos - b * sin for the first half, b * cos + a * sin for the second",
            (_halves(lambda a, b, c, s: (a * c + a * s, b * c + b * s)),
             _halves(lambda a, b, c, s: (a * c - a * s, b * c + b * s)),
             _halves(lambda a, b, c, s: (a * c, b * s)), _halves(lambda a, b, c, s: (a * c, b * c)),
             _halves(lambda a, b, c, s: (a + c, b + s)),
             _halves(lambda a, b, c, s: (a * s, b * c))),
            r"sin|cos"),
    ExerciseMistake("cosine-for-sine", 3, "a * sin - b * cos",
            "you exchange cosine and sine: at position 0 your result is not x",
            "at position 0 the cosine is 1 and the sine 0, and nothing changes",
            "multiply a channel by the cosine, and its partner by the sine",
            (lambda x, c, s: rotate(x, s, c), lambda x, c, s: rotate(x, s, -c)), r"sin|cos"),
    ExerciseMistake("half-overwritten", 3, "a = a * cos - b * sin; b = b * cos + a * sin",
            "your second line reads a half ({half} channels) that your first line has already "
            "overwritten", "both halves of the result need the old a and b",
            "give the new halves other names",
            (_halves(_overwritten), _halves(_overwritten_second)),
            r"=.*\*\s*sin"),
    ExerciseMistake("halves-swapped", 3, "torch.cat((second, first), dim=-1)",
            "you exchange the two halves ({half} channels each)",
            "channel i of the result belongs to channel i of x", "put the first half first",
            (_halves(lambda a, b, c, s: (b * c + a * s, a * c - b * s)),
             _halves(lambda a, b, c, s: (b * c - a * s, a * c + b * s))), r"cat|return"),
    ExerciseMistake("half-rotated", 3, "only one half of the result is rotated",
            "you rotate only one half of the {D} channels",
            "both channels of a pair change", "compute a * cos - b * sin and b * cos + a * sin",
            (_halves(lambda a, b, c, s: (a * c - b * s, b)), _halves(lambda a, b, c, s: (
                a, b * c + a * s))), r"cat|return"),
    ExerciseMistake("not-rotated", 3, "return x",
            "you return x unchanged: your rotation has no effect on the result",
            "an assignment to a or b does not change x",
            "return torch.cat of the two rotated halves", (lambda x, c, s: x,), r"return"),
    ExerciseMistake("rotated-over-heads", 3, "cos[None, :, None, :]",
            "you rotate by the index of the head, not by the position",
            "x is (B, H, T, D): positions are in the second dimension from the end",
            "leave cos (T, D/2) as it is: it broadcasts with the halves of x, (B, H, T, D/2)",
            (_over(1),),
            r"None|unsqueeze|view|reshape|transpose|permute|shape|size"),
    ExerciseMistake("rotated-over-batch", 3, "cos[:, None, None, :]",
            "you rotate by the index of the sequence in the batch, not by the position",
            "x is (B, H, T, D): positions are in the second dimension from the end",
            "leave cos (T, D/2) as it is: it broadcasts with the halves of x, (B, H, T, D/2)",
            (_over(0),),
            r"None|unsqueeze|view|reshape|transpose|permute|shape|size"),
    ExerciseMistake("half-lost", 3, "return a * cos - b * sin",
            "your result has {yours} channels, and x has {D}",
            "both channels of each rotated pair belong to the result",
            "put both halves together with torch.cat((..., ...), dim=-1)", at=r"return"),
    ExerciseMistake("dtype-changed", 3, "x * cos with cos in float32",
            "for x in {given} your rotate returns {returned}",
            "gptcli can train in bfloat16: then q and k would have another dtype than v",
            "begin with cos, sin = cos.to(x), sin.to(x), which gives the tables the dtype and "
            "device of x",
            at=r"return|cos|float|to\("),
    ExerciseMistake("x-changed", 3, "x[..., :half] = ..., x *= cos",
            "your rotate changes its argument x in place, by up to {difference}",
            "autograd needs x unchanged, and the caller can need it, too",
            "make a new tensor with torch.cat",
            at=r"\bx\w*\s*[-+*]?=|\bx\w*\[.*\]\s*[-+*/]?=(?!=)|_\("),
    ExerciseMistake("rotation-without-gradient", 3, "x.detach(), torch.no_grad()",
            "no gradient flows from the result of rotate to x",
            "the projections of q and k learn from this gradient",
            "leave out detach(), .data and no_grad",
            at=r"detach|\.data|no_grad|numpy|item"),
)
# fmt: on
