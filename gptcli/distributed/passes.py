"""The passes of a step, shared by the ranks: each computes a share, then they average gradients.

The subclasses of RankPasses combine the gradients: DdpPasses here, FsdpPasses in fsdp.py. PyTorch's
DistributedDataParallel (DDP) averages gradients while the backward pass still runs. It does this
once in a step, in the last micro-batch; earlier micro-batches only add their gradients. If the
passes use a shorter dtype than float32, the sums of the gradients are kept in float32, as the
gradients of the master weights. In the last micro-batch, a hook of DDP averages these sums.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel

from gptcli.corpus import Batches, TokenStore, windows
from gptcli.corpus.device_batches import DeviceBatches
from gptcli.distributed.dropout import Draws
from gptcli.distributed.share import Share
from gptcli.distributed.team import Team, peers_needed
from gptcli.model.gpt import GPT
from gptcli.training.evaluate import loss_sum, tokens_at_once
from gptcli.training.master_weights import MasterWeights
from gptcli.training.step import mean_loss, seed_dropout


class RankBatches(Batches):
    """The batches that one rank reads. With W ranks, batch k of rank r is part number k * W + r of
    the global order (see share.py)."""

    def __init__(
        self, tokens: TokenStore, block_size: int, seed: int, share: Share, rank: int
    ) -> None:
        super().__init__(tokens, block_size, share.rows, seed)
        self._ranks, self._rank = share.ranks, rank

    def batch(self, k: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of batch k >= 0 of this rank: two int64 tensors (rows, T)."""
        return super().batch(k * self._ranks + self._rank)


class RankPasses:
    """A rank's share of the passes. All ranks call the same methods in the same order.

    A subclass computes a micro-batch, and averages the gradients over the ranks."""

    _all_must_compute = False
    """True if a forward pass of one rank needs all other ranks."""

    def __init__(
        self, team: Team, share: Share, batches: DeviceBatches, model: GPT, step_tokens: int
    ) -> None:
        self._team, self._share, self._batches = team, share, batches
        self._model, self._step_tokens = model, step_tokens
        self._device = model.wte.weight.device
        self._draws = Draws(self._device)
        model.train()

    def gradients(self, step: int, seed: int, scale: float) -> Tensor:
        """Compute the gradients of a step; return its mean loss, (), the same on every rank.

        The master weights get the mean of the gradients of all ranks."""
        share, rank = self._share, self._team.place.rank
        self._begin(scale)
        total = torch.zeros((), device=self._device)
        seed_dropout(seed, self._device)
        for i in range(share.count):
            idx, targets = self._batches.batch(step * share.count + i)
            if not share.splits:
                self._draws.skip(rank if i == 0 else share.ranks - 1)
            part = self._draws.part(rank, share.ranks) if share.splits else nullcontext()
            total += self._pass(idx, targets, part, last=i == share.count - 1)
            self._team.watch.tick()
        mean = float(mean_loss(total, share.count))
        sums = self._team.agree(mean, *self._finish())
        self._learn(sums[1:])
        return torch.tensor(sums[0] / share.ranks, dtype=torch.float64)

    def _begin(self, scale: float) -> None:
        """Clear the gradients before a step. `_pass` multiplies the losses of the step by
        `scale`."""
        raise NotImplementedError

    def _pass(
        self, idx: Tensor, targets: Tensor, part: AbstractContextManager[object], *, last: bool
    ) -> Tensor:
        """The loss of a micro-batch. Adds its gradients to those of the step.

        In the `last` micro-batch of the step, the gradients are averaged over the ranks. The
        forward pass draws its random numbers in the context `part`."""
        raise NotImplementedError

    def _finish(self) -> list[float]:
        """Put the averaged gradients in place; return numbers to be summed over the ranks."""
        return []

    def _learn(self, sums: list[float]) -> None:
        """Use the numbers that `_finish` returned, each summed over all ranks."""

    def publish(self) -> None:
        """Let the passes compute with the current master weights."""
        raise NotImplementedError

    # ---- evaluation --------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(
        self, tokens: TokenStore, context: int, give_up: Callable[[], bool]
    ) -> float | None:
        """The loss over a split, as gptcli.training.evaluate computes it.

        In each round, every rank gets one batch; in the last round, some ranks may get none. Before
        each round in which every rank has a batch, the ranks ask each other whether one of them
        gives up. If so, returns None."""
        team, model = self._team, self._model
        place = team.place
        was_training = model.training
        model.eval()
        rows = max(1, tokens_at_once(model, self._step_tokens) // context)
        total, count = 0.0, 0
        try:
            turn: list[tuple[Tensor, Tensor]] = []
            for window in windows(tokens, context, rows):
                turn.append(window)
                if len(turn) == place.size:
                    if team.agree(float(give_up()))[0] > 0:
                        return None
                    total += loss_sum(model, *turn[place.rank])
                    count += sum(targets.numel() for _, targets in turn)
                    turn = []
            if turn:
                if place.rank < len(turn):
                    total += loss_sum(model, *turn[place.rank])
                elif self._all_must_compute:
                    loss_sum(model, *turn[0])
                count += sum(targets.numel() for _, targets in turn)
            (total,) = team.agree(total)
        finally:
            model.train(was_training)
        return total / count


class DdpPasses(RankPasses):
    """Passes by DDP: each rank has all weights.

    `loss_of` is the model's loss, compiled or not."""

    def __init__(
        self,
        team: Team,
        share: Share,
        batches: DeviceBatches,
        model: GPT,
        step_tokens: int,
        loss_of: Callable[[Tensor, Tensor], Tensor],
        weights: MasterWeights,
    ) -> None:
        super().__init__(team, share, batches, model, step_tokens)
        self._weights = weights
        self._masters = dict(
            zip(model.parameters(), (master for _, master in weights.masters), strict=True)
        )
        self._scale = 1.0
        self._adds = False  # True if the master weights have gradients already
        self._ddp = self._wrapped(loss_of)

    def _wrapped(self, loss_of: Callable[[Tensor, Tensor], Tensor]) -> DistributedDataParallel:
        module = _Loss(self._model, loss_of)
        model, weights = self._model, self._weights
        losses: list[Tensor] = []
        self._draws.record(lambda: losses.append(model.loss(*self._batches.batch(0))))
        losses[0].backward()  # type: ignore[no-untyped-call]
        # A user's part can have unused parameters, and DDP would wait for their gradients.
        unused = [name for name, p in module.named_parameters() if p.grad is None]
        cast(Any, DistributedDataParallel)._set_params_and_buffers_to_ignore_for_model(
            module, [*unused, *(name for name, _ in module.named_buffers())]
        )
        weights.clear_grads()
        with peers_needed():
            ddp = DistributedDataParallel(module)
            if not weights.same:
                # DDP refuses a hook whose annotations are strings. A lambda has no annotations.
                ddp.register_comm_hook(None, lambda _, bucket: self._average_in_float32(bucket))
                weights.use_gradients()
            # After the first backward pass, DDP reorders its buckets, which changes the rounding of
            # sums. So do one backward pass before the first step. Then a resumed run rounds like a
            # run without a pause.
            ddp(*self._batches.batch(0)).backward()
        weights.clear_grads()
        return ddp

    def _begin(self, scale: float) -> None:
        self._weights.clear_grads()
        self._scale, self._adds = scale, False

    def _pass(
        self, idx: Tensor, targets: Tensor, part: AbstractContextManager[object], *, last: bool
    ) -> Tensor:
        with nullcontext() if last else self._ddp.no_sync():
            with part:
                loss: Tensor = self._ddp(idx, targets)
            if last and not self._weights.same:
                self._weights.use_gradients()
            self._team.watch.tick()
            with peers_needed():
                (loss * (self._scale / self._share.count)).backward()  # type: ignore[no-untyped-call]
        if not last:
            self._weights.collect(1.0 / self._scale)
            self._adds = True
        return loss.detach()

    def _finish(self) -> list[float]:
        if not self._weights.same:  # the hook has moved the gradients to the master weights
            for p, master in self._masters.items():
                if p.grad is None:  # unused
                    master.grad = None
                p.grad = None
        return []

    def _average_in_float32(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """DDP's hook: averages the gradients in `bucket` over the ranks, in float32.

        Stores the averages as the gradients of the master weights."""
        masters = [self._masters[cast(nn.Parameter, p)] for p in bucket.parameters()]
        places = [cast(Tensor, master.grad) for master in masters]
        found = [gradient.float() for gradient in bucket.gradients()]
        if self._scale != 1.0:
            torch._foreach_mul_(found, 1.0 / self._scale)
        if self._adds:
            torch._foreach_add_(found, places)
        flat = torch.cat([each.reshape(-1) for each in found]).div_(self._share.ranks)
        done = dist.all_reduce(flat, async_op=True).get_future()

        def finish(reduced: torch.futures.Future[list[Tensor]]) -> Tensor:
            sizes = [each.numel() for each in found]
            parts = torch.split_with_sizes(reduced.value()[0], sizes)
            for place, part in zip(places, parts, strict=True):
                place.copy_(part.view(place.shape))
            buffer: Tensor = bucket.buffer()
            return buffer

        return cast("torch.futures.Future[Tensor]", done.then(finish))

    def publish(self) -> None:
        """Round the master weights into the model's weights."""
        self._weights.publish()


class _Loss(nn.Module):
    """The model's loss as a module, because DDP wraps modules."""

    def __init__(self, model: GPT, loss_of: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self._loss_of = model, loss_of

    def forward(self, idx: Tensor, targets: Tensor) -> Tensor:
        return self._loss_of(idx, targets)
