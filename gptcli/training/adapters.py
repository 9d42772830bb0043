"""Low-rank adapters (LoRA), folded into the weights and trained by the weights' gradients.

    W = W0 + s B A,    s = alpha / rank
    dA = s B^T dW,     dB = s dW A^T

The token embedding and the head have no adapters. By default, training changes these two tables
directly if they are small (see `trained_tables`). In our measurements, a run with directly
changed tables learned more than a run with adapters for them (benchmarks/LOG.md).

The passes compute with the folded weights W, by PyTorch or the C library, with or without CUDA
graphs. They compute the gradient dW, and the chain rule gives dA and dB. W0 never changes. Sampling
and evaluation read W, and are as fast as without adapters. The disadvantage is that a step computes
the gradients of all weights, although only the gradients of the adapted matrices and of the trained
tables are used. benchmarks/LOG.md compares folding with a forward pass that multiplies by A and B.

Sources: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models"; Lin et al. 2024,
"LoRA Dropout as a Sparsity Regularizer", for dropout on the inputs of A, with one mask for all
tokens of a step.

First reading: `fold` and `project`.

Dimensions: R rank, I inputs and O outputs of an adapted matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gptcli.config import Config, LoraConfig
from gptcli.corpus import TokenStore
from gptcli.model.gpt import GPT
from gptcli.model.weights import parameter_shapes
from gptcli.training.master_weights import MasterWeights
from gptcli.training.passes import NativePasses, TorchPasses
from gptcli.training.step import Batch

BASE, VALUE = "base/", "weight/"
"""Prefixes of names in a checkpoint's state: BASE for base weights, VALUE for A and B."""
TABLES = ("wte.weight", "lm_head.weight")
"""The names of the token embedding and the head, which can be trained without adapters."""


def adapted_matrices(targets: Iterable[str], shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """The names of the matrices (O, I) that get an adapter, such as "h.0.attn.query.weight".

    `shapes` has the shape of every parameter by name. `targets` are names such as "attn.query"."""
    wanted = {f"{target}.weight" for target in targets}
    return [name for name in shapes if name.startswith("h.") and name.split(".", 2)[2] in wanted]


def trained_tables(
    config: LoraConfig, targets: Iterable[str], shapes: Mapping[str, Sequence[int]]
) -> list[str]:
    """The names of embedding and head if they are trained (see train.lora.embeddings), else [].

    `auto` trains them if they have no more parameters than the adapters. `targets` and `shapes` are
    as in `adapted_matrices`. If the head is tied, only the embedding has a name."""
    there = [name for name in TABLES if name in shapes]
    if config.embeddings == "auto":
        matrices = adapted_matrices(targets, shapes)
        adapters = config.rank * sum(sum(shapes[name]) for name in matrices)
        return there if sum(math.prod(shapes[name]) for name in there) <= adapters else []
    return there if config.embeddings else []


def resolve_adapters(config: Config, vocab_size: int) -> LoraConfig | None:
    """The section train.lora with `auto` resolved; None if the config has no such section."""
    lora = config.train.lora
    if lora is None:
        return None
    shapes = parameter_shapes(config.model, vocab_size)
    tables = trained_tables(lora, lora.names(config.model.traits), shapes)
    return lora.model_copy(update={"embeddings": bool(tables)})


@dataclass(frozen=True)
class Adapter:
    """The adapter of one matrix. All its tensors are float32."""

    name: str
    """The name of the layer in the model, such as "h.0.attn.query"."""
    weight: Tensor
    """W (O, I), the master weight: the base weight with the adapter folded in."""
    base: Tensor
    """W0 (O, I), the weight before the fine-tune."""
    A: Tensor
    """A (R, I), drawn at random."""
    B: Tensor
    """B (O, R), 0 at first, so the first step starts from exactly the base weights."""


class Adapters:
    """The adapters of a model, and the tables (embedding, head) that are trained with them.

    The step and the optimizer use this object in place of the model's weights.

    `weights` are the model's master weights. `targets` are names such as "attn.query"."""

    def __init__(
        self, config: LoraConfig, targets: Iterable[str], weights: MasterWeights, seed: int
    ) -> None:
        self._weights = weights
        self.scale = config.alpha / config.rank
        self.dropout = config.dropout
        self._keep: list[Tensor] | None = None  # this step's dropout factors, (I,) for each adapter
        names = tuple(targets)
        masters = weights.named()
        shapes = {name: weight.shape for name, weight in masters.items()}
        generator = torch.Generator().manual_seed(seed)
        self.adapters: list[Adapter] = []
        for name in adapted_matrices(names, shapes):
            weight = masters[name]
            base = weight.detach().clone()
            outputs, inputs = base.shape
            # Uniform between -1 / sqrt(I) and 1 / sqrt(I), as in the package peft.
            A = torch.rand(config.rank, inputs, generator=generator).mul_(2).sub_(1)
            A = A.mul_(1 / math.sqrt(inputs)).to(base.device)
            B = torch.zeros(outputs, config.rank, device=base.device)
            self.adapters.append(Adapter(name.removesuffix(".weight"), weight, base, A, B))
        assert self.adapters
        self.tables = trained_tables(config, names, shapes)
        """The names of the embedding and the head if they are trained too, such as "wte.weight"."""
        self._table_bases = {name: masters[name].detach().clone() for name in self.tables}
        self.parameters: list[tuple[str, Tensor]] = [
            (f"{adapter.name}.lora_{letter}", matrix)
            for adapter in self.adapters
            for letter, matrix in (("A", adapter.A), ("B", adapter.B))
        ] + [(name, masters[name]) for name in self.tables]

    @property
    def count(self) -> int:
        """The number of parameters that training changes."""
        return sum(matrix.numel() for _, matrix in self.parameters)

    # ---- the mathematics -------------------------------------------------------------------

    @torch.no_grad()
    def fold(self, seed: int | None = None) -> None:
        """Write W0 + s B A into the master weights. With `seed`, dropout acts on the inputs of A.

        All tokens of a step have the same mask, because the mask becomes a part of the folded
        weights. Inputs that dropout keeps are divided by 1 minus the probability of dropout."""
        self._keep = None
        if seed is not None and self.dropout > 0:
            generator = torch.Generator().manual_seed(seed)
            stays = 1.0 - self.dropout
            self._keep = [
                (torch.rand(a.A.shape[1], generator=generator) < stays).float().div_(stays)
                .to(a.A.device)
                for a in self.adapters
            ]  # fmt: skip
        for adapter, A in zip(self.adapters, self._kept_inputs(), strict=True):
            torch.addmm(adapter.base, adapter.B, A, alpha=self.scale, out=adapter.weight)

    @torch.no_grad()
    def project(self) -> None:
        """Compute the gradients of A and B from the weights' gradients.

        Does not change the gradients of the trained tables."""
        for i, (adapter, A) in enumerate(zip(self.adapters, self._kept_inputs(), strict=True)):
            dW = adapter.weight.grad
            assert dW is not None
            dA = torch.mm(adapter.B.T, dW).mul_(self.scale)
            adapter.A.grad = dA if self._keep is None else dA.mul_(self._keep[i])
            adapter.B.grad = torch.mm(dW, A.T).mul_(self.scale)

    def _kept_inputs(self) -> list[Tensor]:
        if self._keep is None:
            return [adapter.A for adapter in self.adapters]
        return [a.A * keep for a, keep in zip(self.adapters, self._keep, strict=True)]

    # ---- the methods of TrainedWeights -----------------------------------------------------

    def norm(self) -> Tensor:
        """The global norm of the gradients of A, B and the trained tables, float32 ()."""
        norms = torch._foreach_norm(self._gradients())
        norm: Tensor = torch.linalg.norm(torch.stack(norms))
        return norm

    def norms_by_part(self) -> tuple[float, ...]:
        """The norms of the gradients of the embedding, of each block, and of the head.

        The norm is 0 for an embedding or a head that is not trained."""
        squares = torch.stack(torch._foreach_norm(self._gradients())).square().tolist()
        parts: dict[str, float] = {}
        for (name, _), square in zip(self.parameters, squares, strict=True):
            part = name if name in self.tables else name.split(".")[1]
            parts[part] = parts.get(part, 0.0) + square
        first, last = (parts.pop(name, 0.0) for name in TABLES)
        blocks = sorted(parts, key=int)
        return tuple(square**0.5 for square in (first, *(parts[b] for b in blocks), last))

    @torch.no_grad()
    def clip(self, norm: float, longest: float) -> None:
        """Scale the gradients down to norm `longest` if `norm`, their global norm, is larger."""
        if norm > longest:
            torch._foreach_mul_(self._gradients(), longest / (norm + 1e-6))

    def clear_grads(self) -> None:
        """Forget all gradients."""
        for _, matrix in self.parameters:
            matrix.grad = None
        self._weights.clear_grads()

    def _gradients(self) -> list[Tensor]:
        return [matrix.grad for _, matrix in self.parameters if matrix.grad is not None]

    # ---- checkpoints -----------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint needs besides the folded weights: all W0, A and B.

        A checkpoint also needs the base weights of each trained table, for the export of the base
        model."""
        found = {
            f"{VALUE}{name}": matrix for name, matrix in self.parameters if name not in self.tables
        }
        bases = {f"{a.name}.weight": a.base for a in self.adapters} | self._table_bases
        return found | {f"{BASE}{name}": base for name, base in bases.items()}

    @torch.no_grad()
    def load_state(self, saved: dict[str, Tensor]) -> dict[str, Tensor]:
        """Restore what `state` returned, and return the other entries of `saved`.

        Does not change the folded weights, because the model has them from the checkpoint already.
        Raises KeyError if a tensor is missing or has another shape."""
        rest = dict(saved)
        for name, tensor in self.state().items():
            found = rest.pop(name)
            if found.shape != tensor.shape:
                raise KeyError(name)
            tensor.copy_(found)
        return rest


class AdaptedPasses:
    """The passes of a model with adapters. Folds the adapters, computes, projects the gradients.

    This class has the methods of `Passes` in gptcli.training.step."""

    def __init__(self, passes: TorchPasses | NativePasses, adapters: Adapters) -> None:
        self._passes, self._adapters = passes, adapters

    def gradients(self, batches: Iterable[Batch], count: int, seed: int, scale: float) -> Tensor:
        """The mean loss of `count` batches, (). Leaves the gradients in the adapters.

        The dropout masks of the model and of the adapters are functions of `seed`."""
        if self._adapters.dropout > 0:
            self._adapters.fold(seed)
            self._passes.publish()
        loss = self._passes.gradients(batches, count, seed, scale)
        self._adapters.project()
        return loss

    def publish(self) -> None:
        """Fold the adapters into the master weights, and publish these weights to the passes."""
        self._adapters.fold()
        self._passes.publish()

    def evaluate(
        self, tokens: TokenStore, context: int, should_stop: Callable[[], bool]
    ) -> float | None:
        """The mean loss over a split: see gptcli.training.evaluate."""
        return self._passes.evaluate(tokens, context, should_stop)

    def model(self) -> GPT:
        """The model with the current weights."""
        return self._passes.model()
