"""The learning rate as a pure function of the step, and the values that `auto` stands for."""

from __future__ import annotations

import math

from gptcli.config import TrainConfig

# AdamW's rate for what Muon leaves to it, as a share of Muon's.
ADAMW_SHARE = 0.2


def lr_at(
    step: int, *, peak: float, max_steps: int, warmup_steps: int, decay_fraction: float
) -> float:
    """The rate of step `step` (the first is 0): a rise over `warmup_steps`, flat, then straight
    down over the last `decay_fraction` of the steps towards 0, which the step after the last
    would have. Source: the trapezoidal schedule of Hägele et al. 2024."""
    rising = (step + 1) / (warmup_steps + 1)
    decay_steps = decay_fraction * max_steps
    falling = (max_steps - step) / decay_steps if decay_steps > 0 else 1.0
    return peak * max(0.0, min(1.0, rising, falling))


def resolve_rate(train: TrainConfig, n_embd: int) -> float:
    """The peak learning rate, with `auto` worked out."""
    if train.learning_rate != "auto":
        return train.learning_rate
    return 0.02 if train.optimizer == "muon" else min(3e-3, 0.4 / n_embd)


def resolve_warmup(train: TrainConfig) -> int:
    """Warm-up steps, with `auto` worked out."""
    if train.warmup_steps != "auto":
        return train.warmup_steps
    if train.optimizer == "muon":
        return min(50, train.max_steps // 20)
    return min(100, train.max_steps // 10)


def resolve_log_every(train: TrainConfig) -> int:
    """Steps between logged steps, with `auto` worked out."""
    return max(1, train.max_steps // 100) if train.log_every == "auto" else train.log_every


def resolve_eval_every(train: TrainConfig, val_tokens: int, tokens_per_step: int) -> int:
    """Steps between evaluations: `auto` keeps them to 2 % of the time, and to twenty in a run; the
    last step is always evaluated beside these.

    A token costs a third as much in an evaluation as in training (a forward pass, without the
    backward pass of twice its size). Worked out from sizes, not from a clock, so that the
    same config always evaluates at the same steps."""
    if train.eval_every != "auto":
        return train.eval_every
    cost_in_steps = val_tokens / 3 / tokens_per_step
    rare_enough = max(math.ceil(cost_in_steps / 0.02), train.max_steps // 20, 1)
    return min(train.max_steps, rare_enough)
