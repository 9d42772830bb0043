"""The learning rate schedule: warm-up, constant, decay to 0. Also resolves `auto` for four keys.

First reading: lr_at. Skip the body of `decay_at`: its details matter only if the number of steps
changed during the run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from gptcli.config import Config, TrainConfig
from gptcli.corpus import TokenStore
from gptcli.corpus.mixture import times_read

_AVERAGED_IN_CONSTANT = 32

Plan = tuple[int, int]
"""(step, max_steps): after `step` steps, the number of steps of the run became `max_steps`."""


def lr_at(
    step: int,
    *,
    peak: float,
    max_steps: int,
    warmup_steps: int,
    decay_fraction: float,
    plans: Sequence[Plan] = (),
) -> float:
    """The learning rate of step `step`, counted from 0.

    It rises over `warmup_steps`, stays at `peak`, and decays in a straight line over the last
    `decay_fraction` of the steps. It would reach 0 one step after the last step. `plans` are the
    changes of the number of steps during the run, earliest first.
    Source: the trapezoidal schedule of Hägele et al. 2024."""
    rising = (step + 1) / (warmup_steps + 1)
    falling = decay_at(step, [(0, max_steps), *plans], decay_fraction)
    return peak * max(0.0, min(1.0, rising, falling))


def decay_at(step: int, plans: Sequence[Plan], decay_fraction: float) -> float:
    """The share of the peak that the decay leaves at `step`: 1 before the decay, 0 at its end.

    Each plan starts from the share at its step, and reaches 0 at its max_steps. The share never
    rises. If a plan adds steps during the decay, the share falls more slowly from then on, or
    it stays constant until the line of the new plan has fallen to it."""
    share = 1.0
    for i, (start, end) in enumerate(plans):
        if start > step:
            break
        until = min(step, plans[i + 1][0]) if i + 1 < len(plans) else step
        decay_steps = decay_fraction * end
        if share <= 0.0 or end <= start:
            share = 0.0
        elif decay_steps > 0:
            share = min(share, (end - until) / min(decay_steps, (end - start) / share))
    return share


def average_weight(step: int, *, share: float, max_steps: int, plans: Sequence[Plan] = ()) -> float:
    """How far the average moves towards the weights after `step` steps: 0 (not at all) to 1.

    The exponential moving average has a time constant of `share` * max_steps steps. Until that many
    steps are done, the time constant is the number of steps so far. So the first update replaces
    the initial weights. The average is updated about 32 times in a time constant. After all other
    steps, the result is 0. `plans` are the changes of max_steps during the run, as in `lr_at`."""
    steps = next((end for start, end in reversed(plans) if start < step), max_steps)
    constant = share * steps
    every = max(1, int(constant / _AVERAGED_IN_CONSTANT))
    if share == 0.0 or step % every:
        return 0.0
    return min(1.0, every / max(1.0, min(constant, step)))


def most_steps(config: Config, tokens: TokenStore) -> int | None:
    """The number of steps that read `tokens`, the training text, train.max_epochs times.

    None if the config sets no such limit."""
    if config.train.max_epochs is None:
        return None
    epochs_per_step = times_read(tokens, config.tokens_per_step)
    return max(1, int(config.train.max_epochs / epochs_per_step))


def resolve_rate(train: TrainConfig, n_embd: int) -> float:
    """The peak learning rate. `auto` means the optimizer's default."""
    if train.learning_rate != "auto":
        return train.learning_rate
    from gptcli.training.optimizers import RECIPES  # imports PyTorch

    recipe = RECIPES[train.optimizer]
    return recipe.default_rate(n_embd) if train.lora is None else recipe.adapter_rate


def resolve_warmup(train: TrainConfig) -> int:
    """The number of warm-up steps. `auto` means the optimizer's default."""
    if train.warmup_steps != "auto":
        return train.warmup_steps
    from gptcli.training.optimizers import RECIPES

    return RECIPES[train.optimizer].default_warmup(train.max_steps)


def resolve_log_every(train: TrainConfig) -> int:
    """The number of steps from one logged step to the next. `auto`: a hundredth of max_steps."""
    return max(1, train.max_steps // 100) if train.log_every == "auto" else train.log_every


def resolve_eval_every(train: TrainConfig, val_tokens: int, tokens_per_step: int) -> int:
    """The number of steps from one evaluation to the next.

    With `auto`, evaluations take at most about 2 % of the time, except for the evaluation after the
    last step. A run of 400 steps or more has at most 21 evaluations (a fine-tune has one more, at
    step 0).

    A token costs a third as much in evaluation as in training, because a backward pass takes twice
    as long as a forward pass. The result does not depend on measured times, so the same
    config always evaluates at the same steps."""
    if train.eval_every != "auto":
        return train.eval_every
    cost_in_steps = val_tokens / 3 / tokens_per_step
    rare_enough = max(math.ceil(cost_in_steps / 0.02), train.max_steps // 20, 1)
    return min(train.max_steps, rare_enough)
