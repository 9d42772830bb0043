"""The forward and backward passes of a step, by PyTorch or by the C library: one face, and the
same numbers but for rounding.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor

from gptcli.config import Config
from gptcli.corpus import TokenStore
from gptcli.errors import GptcliError
from gptcli.model.gpt import GPT
from gptcli.native import library
from gptcli.native.engine import Engine, unsupported_reason
from gptcli.training.evaluate import evaluate
from gptcli.training.master_weights import MasterWeights

EngineName = Literal["native", "torch"]
Batch = tuple[Tensor, Tensor]


def choose_engine(
    config: Config,
    device: torch.device,
    dtype: torch.dtype,
    *,
    compiled: bool,
    has_user_parts: bool,
) -> tuple[EngineName, str | None]:
    """What `run.engine` stands for here, and what the user should know of it.

    Raises GptcliError where `native` was asked for and cannot be had."""
    wanted = config.run.engine
    if wanted == "torch":
        return "torch", None
    reason, user_can_fix = None, False
    if device.type != "cpu" or dtype != torch.bfloat16:
        reason = "it computes in bfloat16 on a CPU"
    elif has_user_parts:
        reason = "it has no part of your own"
    elif compiled:
        reason = "`run.compile` is set"
    else:
        reason = unsupported_reason(config.model)
    if reason is None:
        found = library.find()
        reason, user_can_fix = found.reason, found.user_can_fix
        if found.library is not None:
            return "native", None
    if wanted == "native":
        raise GptcliError(f"`run.engine` native is not possible: {reason}", "`auto` does without")
    if user_can_fix:
        return "torch", f"training with PyTorch alone, which is slower: {reason}"
    return "torch", None


def library_for(engine: EngineName) -> ctypes.CDLL | None:
    """The C library that the engine's name stands for."""
    return library.find().library if engine == "native" else None


class TorchPasses:
    """By PyTorch: any device, dtype and part of the user's, compiled or not."""

    def __init__(
        self, model: GPT, weights: MasterWeights, compiled: bool = False, *, step_tokens: int
    ) -> None:
        self._model, self._weights = model, weights
        self._step_tokens = step_tokens
        self._loss: Callable[[Tensor, Tensor], Tensor] = model.loss
        if compiled:
            self._loss = torch.compile(model.loss)

    def gradients(self, batches: Iterable[Batch], count: int, seed: int, scale: float) -> float:
        """The mean loss of `count` batches; the mean of their gradients into the masters'.

        Dropout is a function of `seed`; `scale` is float16's, 1 for other dtypes."""
        torch.manual_seed(seed)
        self._weights.clear_grads()
        total: Tensor | None = None
        for idx, targets in batches:
            loss = self._loss(idx, targets)
            (loss * (scale / count)).backward()  # type: ignore[no-untyped-call]
            self._weights.collect(1.0 / scale)
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        return float(total) / count

    def publish(self) -> None:
        """Let the passes see the masters as they are now."""
        self._weights.publish()

    def evaluate(
        self, tokens: TokenStore, context: int, should_stop: Callable[[], bool]
    ) -> float | None:
        """gptcli.training.evaluate.evaluate, by these passes."""
        return evaluate(self._model, tokens, context, should_stop, step_tokens=self._step_tokens)

    def model(self) -> GPT:
        """The model with its weights as they are now."""
        return self._model


class NativePasses:
    """By the C library: bfloat16 on a CPU."""

    def __init__(
        self,
        found: ctypes.CDLL,
        model: GPT,
        weights: MasterWeights,
        *,
        batch_size: int,
        threads: int,
    ) -> None:
        self._model, self._weights = model, weights
        flat, gradients, offsets = weights.flat()
        self._engine = Engine(
            found,
            model.config,
            model.vocab_size,
            flat,
            gradients,
            offsets,
            most_tokens=batch_size * model.config.block_size,
            threads=threads,
        )
        self.publish()

    def gradients(self, batches: Iterable[Batch], count: int, seed: int, scale: float) -> float:
        """As TorchPasses.gradients."""
        assert scale == 1.0
        self._weights.use_gradients()
        total, tokens = 0.0, 0
        for part, (idx, targets) in enumerate(batches):
            tokens += idx.numel()
            total += self._engine.gradients(
                idx,
                targets,
                seed=(seed * 1_000_003 + part) % 2**64,
                scale=1.0 / (idx.numel() * count),
                add=part > 0,
            )
        return total / tokens

    def publish(self) -> None:
        """As TorchPasses.publish."""
        self._engine.pack()
        self._model_is_new = False

    def evaluate(
        self, tokens: TokenStore, context: int, should_stop: Callable[[], bool]
    ) -> float | None:
        """As TorchPasses.evaluate."""
        return evaluate(
            self._model, tokens, context, should_stop, (self._engine.loss, self._engine.most_tokens)
        )

    def model(self) -> GPT:
        """As TorchPasses.model."""
        if not self._model_is_new:
            self._weights.publish()
            self._model_is_new = True
        return self._model


Passes = TorchPasses | NativePasses
