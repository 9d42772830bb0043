"""One optimizer step: forward, backward, clip, update; dropout's seed, loss scale, divergence.

gptcli.training.loop calls take_step for every step. nanoGPT's train.py does the same step in 25
lines. This table shows where gptcli does the work of each line, and why some lines need more code.

| nanoGPT | here | why |
|---|---|---|
| get_lr | lr_at (schedule.py) | the same |
| param_group['lr'] = lr | optimizers.step(rate) | the rate is an argument, not a state |
| get_batch | `micro_batches` | a batch depends only on its number, also in a resumed run |
| - | dropout_seed | dropout depends only on (seed, step), also in a resumed run |
| with ctx (autocast) | MasterWeights | a bfloat16 model, with separate float32 master weights |
| model(X, Y), backward | passes.gradients | the C library can compute both instead of PyTorch |
| scaler (GradScaler) | `loss_scale` | the scale of float16 losses; checkpoints save it |
| clip_grad_norm_ | weights.norm, weights.clip | the view and the test for Diverged need the norm |
| - | Diverged | if a number is not finite, no update; the diagnosis names the place |
| scaler.step | optimizers.step, passes.publish | round the new weights for the next forward pass |
| zero_grad | weights.clear_grads | the same |

First reading: `take_step`. Skip the branches for float16 and Diverged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gptcli.config import TrainConfig
from gptcli.model.gpt import GPT
from gptcli.training.master_weights import MasterWeights
from gptcli.training.not_finite import first_not_finite
from gptcli.training.optimizers import Optimizers
from gptcli.training.schedule import Plan, average_weight, lr_at

Batch = tuple[Tensor, Tensor]
"""Inputs and targets, int64 (B, T) each."""
_FIRST_LOSS_SCALE = 2.0**15
_DOUBLE_SCALE_EVERY = 1000  # steps


class Passes(Protocol):
    """Forward and backward pass, by PyTorch or the C library: see gptcli.training.passes."""

    def gradients(self, batches: Iterable[Batch], count: int, seed: int, scale: float) -> Tensor:
        """The mean loss of `count` batches, (). Stores the mean gradients in TrainedWeights."""

    def publish(self) -> None:
        """Let the passes compute with the current master weights."""

    def model(self) -> GPT:
        """The model with the current weights."""


class TrainedWeights(Protocol):
    """What a step trains: all weights (MasterWeights), or low-rank adapters (adapters.py)."""

    def norm(self) -> Tensor:
        """The global norm of the gradients, float32 ()."""

    def norms_by_part(self) -> tuple[float, ...]:
        """The norms of the gradients of the embeddings, of each block, and of the other weights."""

    def clip(self, norm: float, longest: float) -> None:
        """Scale the gradients down to norm `longest` if `norm`, their global norm, is larger."""

    def clear_grads(self) -> None:
        """Forget all gradients."""


@dataclass(frozen=True)
class Updated:
    """What a step did: mean loss in nats per token, learning rate, gradient norm before clipping.

    `loss_scale` is the loss scale of the following step. `part_norms` are the gradient norms of the
    parts of the network, or () if the caller did not ask for them."""

    loss: float
    rate: float
    norm: float
    loss_scale: float
    part_norms: tuple[float, ...] = ()


@dataclass(frozen=True)
class Diverged:
    """Why a run cannot continue after a number that is not finite, and what the user can do."""

    diagnosis: str
    hint: str


def take_step(
    step: int,
    micro_batches: Callable[[], Iterable[Batch]],
    passes: Passes,
    weights: TrainedWeights,
    optimizers: Optimizers,
    config: TrainConfig,
    dtype: torch.dtype,
    loss_scale: float,
    plans: Sequence[Plan] = (),
    part_norms: bool = False,
) -> Updated | Diverged:
    """Do step `step`, counted from 0, or return why the weights did not change.

    Each call of `micro_batches` returns the config.grad_accum batches of this step. The model must
    be in training mode. `dtype` is the dtype of the passes. `plans` are the changes of max_steps
    during the run, which change the learning rate. If `part_norms` is true, also compute the
    gradient norms of the parts."""
    rate = lr_at(
        step,
        peak=float(config.learning_rate),
        max_steps=config.max_steps,
        warmup_steps=int(config.warmup_steps),
        decay_fraction=config.decay_fraction,
        plans=plans,
    )
    seed = dropout_seed(config.seed, step)
    while True:
        mean = passes.gradients(micro_batches(), config.grad_accum, seed, loss_scale)
        # Compute both numbers before reading them, because float() waits for the device.
        loss, norm = map(float, (mean, weights.norm()))
        if math.isfinite(norm) or loss_scale <= 1.0 or not math.isfinite(loss):
            break
        loss_scale /= 2.0  # float16: the scaled gradients overflowed; compute them again
    if not (math.isfinite(loss) and math.isfinite(norm)):
        seed_dropout(seed, passes.model().wte.weight.device)
        where = first_not_finite(passes.model(), micro_batches())
        return Diverged(
            f"step {step}: the loss is {loss:g} and the gradient norm {norm:g} at learning rate "
            f"{rate:g}; first place with NaN or infinity: {where}; nothing was updated",
            f"try a lower rate, train.learning_rate={rate / 4:.1g}, a longer warm-up, "
            f"train.warmup_steps={max(100, 2 * int(config.warmup_steps))}"
            + ("" if dtype == torch.float32 else ", or run.dtype=float32"),
        )
    parts = weights.norms_by_part() if part_norms else ()
    if config.grad_clip > 0:
        weights.clip(norm, config.grad_clip)
    average = average_weight(
        step + 1, share=config.average, max_steps=config.max_steps, plans=plans
    )
    optimizers.step(rate, average)
    passes.publish()
    weights.clear_grads()
    if dtype == torch.float16 and (step + 1) % _DOUBLE_SCALE_EVERY == 0:
        loss_scale *= 2.0
    return Updated(loss, rate, norm, loss_scale, parts)


def diverged_in_evaluation(
    step: int, loss: float, model: GPT, batches: Iterable[Batch], config: TrainConfig
) -> Diverged:
    """The Diverged for a step whose validation loss, `loss`, is not finite.

    Runs the model on `batches` to find the first place with NaN or infinity."""
    where = first_not_finite(model, batches)
    return Diverged(
        f"step {step}: the validation loss is {loss:g}; first place with NaN or infinity: {where}",
        f"try a lower rate, train.learning_rate={float(config.learning_rate) / 4:.1g}",
    )


def forward_backward(
    loss_of: Callable[[Tensor, Tensor], Tensor],
    weights: MasterWeights,
    batches: Iterable[Batch],
    count: int,
    seed: int,
    scale: float,
) -> Tensor:
    """The mean loss of `count` batches, computed by PyTorch. Its gradients go into `weights`.

    `loss_of` computes the model's loss; it can be compiled. Multiplies the loss by `scale`, so that
    float16 gradients do not round to 0. Divides the gradients of the master weights by `scale`."""
    weights.clear_grads()
    total: Tensor | None = None
    for idx, targets in batches:
        if total is None:
            seed_dropout(seed, idx.device)
        loss = loss_of(idx, targets)
        (loss * (scale / count)).backward()  # type: ignore[no-untyped-call]
        weights.collect(1.0 / scale)
        total = loss.detach() if total is None else total + loss.detach()
    assert total is not None
    return mean_loss(total, count)


def mean_loss(total: Tensor, count: int) -> Tensor:
    """The mean of `count` losses whose sum is `total`, as a scalar: float64 unless on MPS."""
    return (total if total.device.type == "mps" else total.double()) / count


def dropout_seed(seed: int, step: int) -> int:
    """The seed of the dropout masks in a step, so that a resumed run draws the same masks.

    NativePasses derives a seed for each micro-batch from this seed."""
    return (seed * 1_000_003 + step) % 2**63


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed the random generator of `device`, from which dropout draws its masks.

    torch.manual_seed would seed the generators of all devices. Without a GPU, torch.manual_seed
    also formats three stack traces, which is slow. So only MPS uses torch.manual_seed."""
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def first_loss_scale(dtype: torch.dtype) -> float:
    """The loss scale of step 0: 2**15 for float16, 1 for dtypes with float32's range."""
    return _FIRST_LOSS_SCALE if dtype == torch.float16 else 1.0
