"""FSDP2: each rank holds a part of all weights, gradients and optimizer state (`fully_shard`).

The ranks gather the weights of a block before the block computes, and free them afterwards. They
average and scatter the block's gradients while the backward pass goes on. The shards are the
float32 master weights. If the passes use a shorter dtype, FSDP rounds the weights when it gathers
them, and averages gradients in float32.

A shard is some rows of a parameter. If R rows are on W ranks, each rank has ceil(R / W) rows; the
last ranks can have fewer. The optimizers see the shards as ordinary tensors. AdamW can
update single shards, but Muon needs complete matrices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from gptcli.config import TrainConfig
from gptcli.corpus import TokenStore
from gptcli.corpus.device_batches import DeviceBatches
from gptcli.distributed.passes import RankPasses
from gptcli.distributed.share import Share
from gptcli.distributed.team import Team, peers_needed
from gptcli.model.gpt import GPT
from gptcli.training.master_weights import MasterWeights
from gptcli.training.optimizers import Muon, Optimizers


def shard_model(model: GPT, team: Team, dtype: torch.dtype) -> None:
    """Replace the parameters of a float32 model by this rank's shards. The passes use `dtype`."""
    device = model.wte.weight.device
    mesh = init_device_mesh(device.type, (team.place.size,))
    options: dict[str, Any] = {"mesh": mesh}
    if dtype != torch.float32:
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    with peers_needed():
        for block in model.h:
            fully_shard(block, **options)
        fully_shard(model, **options)
    register_fsdp_forward_method(model, "loss")


class ShardedWeights(MasterWeights):
    """The master weights of a rank: complete until `shard` is called, then this rank's shards."""

    def __init__(self, model: GPT) -> None:
        super().__init__(model, torch.float32)
        self._model = model
        self._sharded: dict[str, DTensor] = {}
        self._squares: dict[str, float] = {}

    @property
    def parts(self) -> list[str]:
        """The names of the parameters, in the order of the model."""
        return [name for name, _ in self.masters]

    def shard(self) -> None:
        """Use this rank's shards as the master weights. `shard_model` must have made the shards."""
        for name, p in self._model.named_parameters():
            assert isinstance(p, DTensor)
            self._sharded[name] = p
        with torch.no_grad():
            self._tensors = [p.to_local() for p in self._sharded.values()]
        self._working = list(self._model.parameters())
        self.masters = list(zip(self._sharded, self._tensors, strict=True))

    def collect(self, scale: float) -> None:
        """Give the shards of the gradients, times `scale`, to the master weights."""
        for (_, master), p in zip(self.masters, self._sharded.values(), strict=True):
            gradient = p.grad
            if gradient is not None:
                assert isinstance(gradient, DTensor)
                master.grad = gradient.to_local()
                if scale != 1.0:
                    master.grad.mul_(scale)

    def squares(self) -> list[float]:
        """For each parameter: the sum of the squares of its gradient in this rank's shard."""
        zero = torch.zeros((), dtype=torch.float64, device=self._tensors[0].device)
        found = [zero if p.grad is None else p.grad.double().square().sum() for p in self._tensors]
        return [float(each) for each in torch.stack(found).tolist()]

    def know_squares(self, sums: list[float]) -> None:
        """Keep the sums of `squares` over all ranks; `norm` and `norms_by_part` use them."""
        self._squares = dict(zip(self.parts, sums, strict=True))

    def norm(self) -> Tensor:
        """The norm of the gradients of all parameters, float64 ()."""
        return torch.tensor(sum(self._squares.values()), dtype=torch.float64).sqrt()

    def norms_by_part(self) -> tuple[float, ...]:
        """The norms of the gradients of the embeddings, of each block, and of the other weights."""
        parts: dict[int, float] = {}
        for name, square in self._squares.items():
            first, rest, *_ = name.split(".")
            part = int(rest) if first == "h" else -1 if first in ("wte", "wpe") else 1 << 30
            parts[part] = parts.get(part, 0.0) + square
        return tuple(parts[part] ** 0.5 for part in sorted(parts))

    def publish(self) -> None:
        """Free the gathered weights. The next pass gathers the updated weights.

        Without this call, the next step would compute with some weights that FSDP gathered for an
        evaluation. FSDP rounds the weights itself."""
        for module in self._model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def gather(self) -> dict[str, Tensor]:
        """All complete weights by name, on the CPU. All ranks must call this."""
        with peers_needed(), torch.no_grad():
            return {name: p.full_tensor().cpu() for name, p in self._sharded.items()}

    def gather_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The complete state of an optimizer, from the shards. All ranks must call this."""
        whole = {}
        with peers_needed(), torch.no_grad():
            for key in sorted(state):
                slot, _, name = key.partition("/")
                like = self._sharded[name]
                whole[key] = state[key].clone() if slot == "step" else _whole(state[key], like)
        return whole

    def local(self, key: str, whole: Tensor) -> Tensor:
        """This rank's shard of a complete tensor of optimizer state."""
        slot, _, name = key.partition("/")
        if slot == "step":
            return whole
        like = self._sharded[name]
        rows = -(-like.shape[0] // like.device_mesh.size())
        rank = like.device_mesh.get_local_rank()
        return whole[rank * rows : (rank + 1) * rows].clone()


def _whole(shard: Tensor, like: DTensor) -> Tensor:
    """The complete tensor, on the CPU. `shard` is this rank's shard of it."""
    made = DTensor.from_local(
        shard,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )
    return made.full_tensor().cpu()


def sharded_optimizers(
    train: TrainConfig, weights: ShardedWeights, before: Optimizers, dtype: torch.dtype
) -> Optimizers:
    """Optimizers for this rank's shards. They start with the rank's part of `before`'s state.

    `dtype` is the dtype of the passes."""
    whole_state = Optimizers.state(before)
    muon_dtype = torch.float32 if dtype == torch.float32 else torch.bfloat16
    optimizers = Optimizers(train.optimizer, weights.masters, train.weight_decay, muon_dtype)
    shapes = {master: weights._sharded[name].shape for name, master in weights.masters}
    optimizers.updates = [
        (
            group,
            _ShardedMuon(update, [tuple(shapes[p]) for p in update.params], muon_dtype)
            if isinstance(update, Muon)
            else update,
        )
        for group, update in optimizers.updates
    ]
    optimizers.load_state({key: weights.local(key, whole) for key, whole in whole_state.items()})
    return optimizers


class _ShardedMuon(Muon):
    """Muon on shards: the ranks gather the updates, and each orthogonalises some of the matrices.

    `shapes` are the shapes of the complete matrices."""

    def __init__(self, alone: Muon, shapes: list[tuple[int, ...]], dtype: torch.dtype) -> None:
        super().__init__(alone.params, weight_decay=alone.weight_decay, dtype=dtype)
        groups: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for p, shape in zip(alone.params, shapes, strict=True):
            groups[shape].append(p)
        self._groups = dict(groups)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update the shard of every matrix that has a gradient."""
        beta = self._momentum
        ranks, rank = dist.get_world_size(), dist.get_rank()
        for (rows, columns), group in self._groups.items():
            params = [p for p in group if p.grad is not None]
            if not params:
                continue
            grads = [p.grad for p in params if p.grad is not None]
            buffers = self._momenta(params)
            torch._foreach_mul_(buffers, beta)
            torch._foreach_add_(buffers, grads)
            ahead = torch._foreach_add(grads, buffers, alpha=beta)
            each = -(-rows // ranks)
            mine = params[0].new_zeros((len(params), each, columns))
            for place, u in zip(mine, ahead, strict=True):
                place[: len(u)] = u
            gathered = mine.new_empty((ranks, *mine.shape))
            with peers_needed():
                dist.all_gather(list(gathered), mine)
            stack = gathered.transpose(0, 1).reshape(len(params), ranks * each, columns)[:, :rows]
            wide = stack if rows <= columns else stack.transpose(1, 2)
            update = self.orthogonalise(wide).to(params[0].dtype)
            update = update if rows <= columns else update.transpose(1, 2)
            begin = rank * each
            torch._foreach_mul_(params, 1 - rate * self.weight_decay)
            torch._foreach_add_(
                params,
                [u[begin : begin + len(p)] for p, u in zip(params, update, strict=True)],
                alpha=-rate * max(1.0, rows / columns) ** 0.5,
            )


class FsdpPasses(RankPasses):
    """Passes by FSDP. Its constructor turns the model's parameters and the master weights into this
    rank's shards."""

    _all_must_compute = True

    def __init__(
        self,
        team: Team,
        share: Share,
        batches: DeviceBatches,
        model: GPT,
        step_tokens: int,
        weights: ShardedWeights,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(team, share, batches, model, step_tokens)
        self._weights, self._scale = weights, 1.0
        with torch.no_grad():
            self._draws.record(lambda: model.loss(*batches.batch(0)))
        shard_model(model, team, dtype)
        weights.shard()

    def _begin(self, scale: float) -> None:
        self._weights.clear_grads()
        self._scale = scale

    def _pass(
        self, idx: Tensor, targets: Tensor, part: AbstractContextManager[object], *, last: bool
    ) -> Tensor:
        cast(FSDPModule, self._model).set_requires_gradient_sync(last)
        with peers_needed():
            with part:
                loss = self._model.loss(idx, targets)
            self._team.watch.tick()
            (loss * (self._scale / self._share.count)).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _finish(self) -> list[float]:
        self._weights.collect(1.0 / self._scale)
        return self._weights.squares()

    def _learn(self, sums: list[float]) -> None:
        self._weights.know_squares(sums)

    def evaluate(
        self, tokens: TokenStore, context: int, give_up: Callable[[], bool]
    ) -> float | None:
        """The loss over a split: see RankPasses.

        At the end, every rank drops its complete weights. All ranks must gather them at the same
        time, so no rank may still have them when another rank gathers. Without this drop, a mixture
        of texts would break this rule. FSDP also drops the complete weights at each switch to the
        averaged weights. The leader switches once; the other ranks switch once for each text."""
        try:
            return super().evaluate(tokens, context, give_up)
        finally:
            self._weights.publish()

    def publish(self) -> None:
        """Do nothing: FSDP rounds the weights itself when it gathers them."""
