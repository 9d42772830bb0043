"""Computes the eight steps of attention, with shapes and numbers, for one head and one token.

The steps are the same as in gptcli.model.attention and in the course.

Dimensions: T time, C channels, H heads, K heads of keys and values, D head_dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gptcli.course.attention import STEP_NAMES
from gptcli.errors import GptcliError
from gptcli.inspection.learner import LearnerFile, learner_steps
from gptcli.model.attention import CausalSelfAttention
from gptcli.model.gpt import GPT
from gptcli.model.inside import Inside, part_with_attention
from gptcli.model.rotary import RotaryCausalSelfAttention
from gptcli.plurals import agreeing, counted

Numbers = list[float]


@dataclass(frozen=True)
class ShownStep:
    """One step: its number and name, its computation with the shapes, and its values by name.

    `line` is the number and the text of the line in the learner's file that completes the step.
    `line` is None for the builtin attention, or if the trace does not show this line."""

    step: int
    name: str
    shapes: str
    numbers: dict[str, Numbers]
    line: tuple[int, str] | None = None


@dataclass(frozen=True)
class EightSteps:
    """The eight steps of attention in one head, for one token.

    `layer`, `head` and `position` are numbered from 0."""

    layer: int
    head: int
    position: int
    steps: list[ShownStep]


@dataclass(frozen=True)
class _Computed:
    """The values of the steps.

    q and placed_q are (T, H, D); k, v and placed_k are (T, K, D). placed_q and placed_k are q and k
    after QK-norm and rotation, if the network has these. The other values are those of one token:
    scores and weights (T,) and mixed (D,) of one head, and out (C,)."""

    q: Tensor
    k: Tensor
    v: Tensor
    placed_q: Tensor
    placed_k: Tensor
    scores: Tensor
    weights: Tensor
    mixed: Tensor
    out: Tensor


@torch.no_grad()
def eight_steps(
    model: GPT,
    inside: Inside,
    layer: int,
    head: int,
    position: int,
    learner: LearnerFile | None = None,
) -> EightSteps:
    """The eight steps for one head and one token.

    `layer`, `head` and `position` are numbered from 0.

    Raises GptcliError if the run has a user's block, or a user's attention in which the course's
    eight steps are not recognised."""
    part, x = part_with_attention(model, layer), inside.inputs[layer]
    H, lines = model.config.n_head, {}
    if isinstance(part, CausalSelfAttention):
        found, K = _builtin(part, x, head, position), part.n_kv_head
    else:
        theirs = learner_steps(part, x, H, learner) if learner is not None else None
        if theirs is None:
            raise GptcliError(
                "--steps cannot follow this attention: it is not recognised as the course's eight "
                "steps",
                "leave out --steps; the logit lens works with any attention",
            )
        lines, v, K = theirs.lines, theirs.values, H
        found = _Computed(
            v.qh[0].transpose(0, 1),
            v.kh[0].transpose(0, 1),
            v.vh[0].transpose(0, 1),
            v.qh[0].transpose(0, 1),
            v.kh[0].transpose(0, 1),
            v.scaled[0, head, position],
            v.weights[0, head, position],
            v.mixed[0, head, position],
            v.out[0, position],
        )
    rotary = isinstance(part, RotaryCausalSelfAttention)
    normed = rotary and getattr(part, "q_norm", None) is not None
    steps = _shown(found, x, H, K, head, position, rotary=rotary, normed=normed)
    return EightSteps(
        layer,
        head,
        position,
        [
            ShownStep(number, STEP_NAMES[number], shapes, numbers, lines.get(number))
            for number, shapes, numbers in steps
        ],
    )


def _builtin(part: CausalSelfAttention, x: Tensor, head: int, at: int) -> _Computed:
    T, H, K = x.shape[0], part.n_head, part.n_kv_head
    qkv = part.project(x[None])  # (1, T, H + 2 K, D)
    q, k, v = qkv[0, :, :H], qkv[0, :, H : H + K], qkv[0, :, H + K :]
    placed_q, placed_k, _ = (one[0].transpose(0, 1) for one in part.heads(qkv, start=0))
    G, D = H // K, q.shape[-1]
    all_scores = torch.einsum(
        "qhd,shd->hqs", placed_q, placed_k.repeat_interleave(G, dim=1)
    ) / math.sqrt(D)
    future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(diagonal=1)
    weights = all_scores.masked_fill(future, float("-inf")).softmax(-1)
    mixed = torch.einsum("hqs,shd->qhd", weights, v.repeat_interleave(G, dim=1))  # (T, H, D)
    out = part.c_proj(mixed[at].flatten())
    return _Computed(
        q, k, v, placed_q, placed_k,
        all_scores[head, at], weights[head, at], mixed[at, head], out,
    )  # fmt: skip


def _shown(
    found: _Computed,
    x: Tensor,
    H: int,
    K: int,
    head: int,
    at: int,
    *,
    rotary: bool,
    normed: bool,
) -> list[tuple[int, str, dict[str, Numbers]]]:
    """For each of the eight steps: (number, shapes, values by name)."""
    T, C = x.shape
    D, group = found.q.shape[-1], head // (H // K)
    qkv = f"q ({T}, {H * D}), k and v ({T}, {K * D})" if K < H else f"q, k, v ({T}, {H * D}) each"
    split = f"q ({H}, {T}, {D}), k and v ({K}, {T}, {D})" if K < H else f"({H}, {T}, {D}) each"
    if K < H:
        split += f"; {H // K} heads of q share one head of k and v"
    future = T * (T - 1) // 2
    before = {"q": found.q[at, head].tolist(), "k": found.k[at, group].tolist()}
    steps: list[tuple[int, str, dict[str, Numbers]]] = [
        (1, f"x ({T}, {C}) -> {qkv}", {"x": x[at].tolist()}),
        (2, f"-> {split}", {**before, "v": found.v[at, group].tolist()}),
        (
            3,
            f"-> ({H}, {T}, {D}): one text, so {counted(H, 'pair')} of matrices"
            + ("" if not rotary else "; " + "normalised, then " * normed + "rotated by position"),
            {}
            if not rotary
            else {"q": found.placed_q[at, head].tolist(), "k": found.placed_k[at, group].tolist()},
        ),
        (4, f"q k^T / sqrt({D}) -> ({H}, {T}, {T})", {"scores": found.scores[: at + 1].tolist()}),
        (
            5,
            f"{future} of {counted(T * T, 'score')} of each head {agreeing(future, 'is', 'are')} "
            f"in the future: -inf; this token sees {at + 1} of {counted(T, 'token')}",
            {},
        ),
        (
            6,
            f"-> ({H}, {T}, {T}), each row sums to 1",
            {"weights": found.weights[: at + 1].tolist()},
        ),
        (7, f"weights v -> ({H}, {T}, {D})", {"mixed": found.mixed.tolist()}),
        (
            8,
            f"({T}, {H * D}) -> ({T}, {C}), added to the residual stream",
            {"out": found.out.tolist()},
        ),
    ]
    return steps
