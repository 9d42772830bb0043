"""The reference of the training exercise: batches, loss, learning rate, clipping, step, evaluation.

Dimensions: B batch, T time (block_size), V vocabulary. `batches` is a list of (x, y).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]


def get_batch(
    data: Tensor, block_size: int, batch_size: int, generator: torch.Generator | None = None
) -> Batch:
    """Step 1: random windows x of `data` (N,), and y, which is x one token later. Both (B, T)."""
    starts = torch.randint(len(data) - block_size, (batch_size,), generator=generator)
    x = torch.stack([data[i : i + block_size] for i in starts.tolist()])
    y = torch.stack([data[i + 1 : i + 1 + block_size] for i in starts.tolist()])
    return x, y


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Step 2: the mean cross-entropy in nats. (B, T, V), (B, T) -> ()."""
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))


def learning_rate(
    step: int, max_lr: float, min_lr: float, warmup_steps: int, max_steps: int
) -> float:
    """Step 3: linear warm-up to max_lr, cosine decay to min_lr, then min_lr."""
    if step < warmup_steps:
        return max_lr * (step + 1) / warmup_steps
    if step >= max_steps:
        return min_lr
    done = (step - warmup_steps) / (max_steps - warmup_steps)
    return min_lr + (max_lr - min_lr) * 0.5 * (1 + math.cos(math.pi * done))


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Step 4: if the common norm of all gradients exceeds max_norm, scale them down in place.

    After scaling, the common norm is max_norm. Returns the norm before scaling."""
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = math.sqrt(sum(float((g**2).sum()) for g in grads))
    if norm > max_norm:
        for g in grads:
            g.mul_(max_norm / norm)
    return norm


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: list[Batch],
    lr: float,
    max_norm: float,
) -> float:
    """Step 5: one update from the clipped mean gradient of all batches. Returns the mean loss."""
    return any_step(model, optimizer, batches, lr, max_norm)


def any_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: list[Batch],
    lr: float,
    max_norm: float,
    *,
    zero: str = "start",
    share: float | None = None,
    clip: str = "once",
    step: str = "once",
    rate: str = "all",
    returns: str = "mean",
) -> float:
    """Do step 5, one update of the weights. Returns a loss. Keyword arguments imitate mistakes."""
    groups = {"all": optimizer.param_groups, "first": optimizer.param_groups[:1], "never": []}[rate]
    for group in groups:
        group["lr"] = lr
    parameters = list(model.parameters())
    if zero == "start":
        optimizer.zero_grad()
    losses = []
    for x, y in batches:
        if zero == "each":
            optimizer.zero_grad()
        loss = loss_of(model(x), y)
        (loss / (share or len(batches))).backward()  # type: ignore[no-untyped-call]
        losses.append(float(loss.detach()))
        if clip == "each":
            clip_gradients(parameters, max_norm)
        if step == "each":
            optimizer.step()
    if zero == "after":
        optimizer.zero_grad()
    if clip == "once":
        clip_gradients(parameters, max_norm)
    if step == "once":
        optimizer.step()
    if clip == "after":
        clip_gradients(parameters, max_norm)
    total = sum(losses)
    return {"mean": total / len(losses), "last": losses[-1], "sum": total}[returns]


@torch.no_grad()
def evaluate(model: nn.Module, batches: list[Batch]) -> float:
    """Step 6: the mean loss in evaluation mode, without gradients.

    Leaves the model in training mode."""
    model.eval()
    losses = [float(loss_of(model(x), y)) for x, y in batches]
    model.train()
    return sum(losses) / len(losses)
