"""Forward and backward pass of a step, by PyTorch or the C library; chooses the engine.

Without dropout, PyTorch and the C library compute the same numbers up to rounding. TorchPasses and
NativePasses each have the methods of `Passes` in gptcli.training.step.

First reading: skip choose_engine and NativePasses. TorchPasses calls forward_backward in step.py.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

from gptcli.config import Config
from gptcli.corpus import TokenStore
from gptcli.cuda_graphs import GraphRecorder, can_record
from gptcli.errors import GptcliError
from gptcli.model.gpt import GPT
from gptcli.native import library
from gptcli.native.engine import Engine, training_source, unsupported_reason
from gptcli.training.cost import matrix_parameters
from gptcli.training.evaluate import evaluate
from gptcli.training.master_weights import MasterWeights
from gptcli.training.recorded_passes import RecordedPasses
from gptcli.training.step import Batch, forward_backward

EngineName = Literal["native", "torch"]

# torch.compile took 20 to 50 s on an H200. An H200 does 5e16 operations in about two minutes.
_COMPILE_FROM_OPERATIONS = 5e16


def choose_engine(
    config: Config,
    device: torch.device,
    dtype: torch.dtype,
    *,
    compiled: bool,
    has_user_parts: bool,
) -> tuple[EngineName, str | None]:
    """The engine that `run.engine` resolves to on this machine, and a note for the user or None.

    If the user can make the C library usable, the note says why it cannot be used now. Raises
    GptcliError if the config asks for `native` and the C library cannot be used."""
    wanted = config.run.engine
    if wanted == "torch":
        return "torch", None
    reason, user_can_fix = None, False
    source = training_source(dtype) if device.type == "cpu" else None
    if source is None:
        reason = "the C library trains on a CPU only, in bfloat16 or float32"
    elif has_user_parts:
        reason = "the C library cannot run your own parts (--attention ...)"
    elif compiled:
        reason = "`run.compile` is set"
    else:
        reason = unsupported_reason(config.model)
    if source is not None and reason is None:
        found = library.find(source)
        reason, user_can_fix = found.reason, found.user_can_fix
        if found.library is not None:
            return "native", None
    if wanted == "native":
        raise GptcliError(
            f"`run.engine: native` cannot be used: {reason}", "set run.engine to auto or torch"
        )
    if user_can_fix:
        return "torch", f"training with PyTorch only, which is slower: {reason}"
    return "torch", None


def choose_compile(
    config: Config, device: torch.device, vocab_size: int, *, has_user_parts: bool
) -> bool:
    """Whether to compile the model with torch.compile: the value for `run.compile`.

    `auto` compiles on a CUDA GPU with Triton, if the run would last at least about two minutes on
    an H200, and if the network has no user's parts."""
    if config.run.compile != "auto":
        return config.run.compile
    tokens = config.tokens_per_step * config.train.max_steps
    return (
        device.type == "cuda"
        and find_spec("triton") is not None  # torch.compile needs Triton, which Windows lacks
        and not has_user_parts
        and 6 * matrix_parameters(config, vocab_size) * tokens >= _COMPILE_FROM_OPERATIONS
    )


def library_for(engine: EngineName, dtype: torch.dtype) -> ctypes.CDLL | None:
    """The C library for this dtype if the engine is `native`; None if the engine is `torch`."""
    source = training_source(dtype) if engine == "native" else None
    return None if source is None else library.find(source).library


class TorchPasses:
    """PyTorch's passes, compiled or not, for every device, every dtype and user's parts.

    `step_tokens` is the number of tokens in a step. It limits the size of an evaluation's batches.
    On an NVIDIA GPU, CUDA graphs record the passes (gptcli.training.recorded_passes), except in
    float32. Passes with user's parts are not recorded, because a graph cannot hold arbitrary
    Python."""

    def __init__(
        self, model: GPT, weights: MasterWeights, compiled: bool = False, *, step_tokens: int
    ) -> None:
        self._model, self._weights = model, weights
        self._step_tokens = step_tokens
        self.loss_of: Callable[[Tensor, Tensor], Tensor] = model.loss
        if compiled:  # dynamic=False, because all batches of a run have the same shape
            body = torch.compile(model.body, dynamic=False)

            def compiled_loss(idx: Tensor, targets: Tensor) -> Tensor:
                with warnings.catch_warnings():
                    # x is not a parameter, so it has no `grad`. The compiler reads `x.grad`, and
                    # PyTorch warns.
                    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor")
                    x: Tensor = body(model.wte(idx))
                return model.loss_of(x, targets)

            self.loss_of = compiled_loss
        device = model.wte.weight.device
        self._recorded: RecordedPasses | None = None
        if can_record(device) and not weights.same and not model.user_parts.in_network():
            self._recorded = RecordedPasses(self.loss_of, weights, GraphRecorder(device))

    def gradients(self, batches: Iterable[Batch], count: int, seed: int, scale: float) -> Tensor:
        """The mean loss of `count` batches, (). Leaves the mean gradients in the master weights.

        The dropout masks are a function of `seed`. `scale` is the loss scale of float16; it is 1
        for other dtypes."""
        if self._recorded is not None:
            return self._recorded.gradients(batches, count, seed, scale)
        return forward_backward(self.loss_of, self._weights, batches, count, seed, scale)

    def publish(self) -> None:
        """Copy the master weights, rounded, into the model's weights."""
        self._weights.publish()

    def evaluate(
        self, tokens: TokenStore, context: int, should_stop: Callable[[], bool]
    ) -> float | None:
        """The loss over a split: see gptcli.training.evaluate."""
        return evaluate(self._model, tokens, context, should_stop, step_tokens=self._step_tokens)

    def model(self) -> GPT:
        """The model with the current weights."""
        return self._model


class NativePasses:
    """The C library's passes, in bfloat16 or float32 on a CPU."""

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

    def gradients(self, batches: Iterable[Batch], count: int, seed: int, scale: float) -> Tensor:
        """The mean loss of `count` batches, (). Leaves the mean gradients in the master weights.

        `scale` must be 1. Only float16 needs another value, and no C library trains in it."""
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
        return torch.full((), total / tokens, dtype=torch.float64)

    def publish(self) -> None:
        """Pack the master weights for the C library's matrix products."""
        self._engine.pack()
        self._model_is_current = False

    def evaluate(
        self, tokens: TokenStore, context: int, should_stop: Callable[[], bool]
    ) -> float | None:
        """The loss over a split: see gptcli.training.evaluate."""
        native_loss = (self._engine.loss, self._engine.most_tokens)
        return evaluate(self._model, tokens, context, should_stop, native_loss)

    def model(self) -> GPT:
        """The model. If its weights are older than the master weights, updates them first."""
        if not self._model_is_current:
            self._weights.publish()
            self._model_is_current = True
        return self._model
