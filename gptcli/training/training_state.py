"""The state of a run between two steps: model, master weights, optimizers, counters.

The order of the batches and the dropout masks are functions of (seed, step). So a checkpoint needs
no state of a random generator. It holds the weights, the state of optimizer and adapters, and the
counters.

First reading: Progress and TrainingState.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gptcli.config import ModelConfig, TrainConfig
from gptcli.errors import GptcliError
from gptcli.model.gpt import GPT, initialise
from gptcli.model.user_parts import UserParts
from gptcli.training import checkpoint
from gptcli.training.adapters import AdaptedPasses, Adapters
from gptcli.training.checkpoint_files import TensorFiles, WholeFiles
from gptcli.training.fitting_weights import refuse_other_shapes, refuse_unfitting
from gptcli.training.master_weights import MasterWeights
from gptcli.training.optimizers import Optimizers
from gptcli.training.passes import EngineName, NativePasses, TorchPasses, library_for
from gptcli.training.step import TrainedWeights, first_loss_scale
from gptcli.training.weight_averages import from_checkpoint, to_checkpoint


@dataclass
class Progress:
    """The counters of a run."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    train_loss: float | None = None
    val_loss: float | None = None
    first_val_loss: float | None = None  # of a fine-tune's base weights
    evaluated_at: int | None = None
    best_val_loss: float | None = None
    best_step: int | None = None
    evaluations_without_best: int = 0
    sampled_at: int | None = None
    loss_scale: float = 1.0


class TrainingState:
    """A model with its master weights, passes, optimizers and counters.

    It starts from a checkpoint's `weights`. If `weights` is None, it draws new weights."""

    def __init__(
        self,
        model: ModelConfig,
        train: TrainConfig,
        vocab_size: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        user_parts: UserParts | None = None,
        weights: dict[str, Tensor] | None = None,
        engine: EngineName = "torch",
        threads: int = 1,
        compiled: bool = False,
    ) -> None:
        self.model = build_model(model, vocab_size, user_parts, weights, seed=train.seed)
        self.model.to(device)
        self.weights = MasterWeights(self.model, dtype)
        # Newton-Schulz needs few digits, so bfloat16 is enough. But bfloat16 is slow on some
        # machines. On these machines, the passes and Newton-Schulz use float32.
        muon_dtype = torch.float32 if dtype == torch.float32 else torch.bfloat16
        native = library_for(engine, dtype)
        passes: TorchPasses | NativePasses
        if native is None:
            step_tokens = train.tokens_per_step(model.block_size)
            passes = TorchPasses(self.model, self.weights, compiled, step_tokens=step_tokens)
        else:
            passes = NativePasses(
                native, self.model, self.weights, batch_size=train.rows, threads=threads
            )
        self.passes: TorchPasses | NativePasses | AdaptedPasses = passes
        self.adapters: Adapters | None = None
        if train.lora is not None:
            targets = train.lora.names(model.traits)
            self.adapters = Adapters(train.lora, targets, self.weights, train.seed)
            self.passes = AdaptedPasses(passes, self.adapters)
        self.optimizers = Optimizers(
            train.optimizer,
            self.weights.masters if self.adapters is None else self.adapters.parameters,
            train.weight_decay,
            muon_dtype,
            None if native is None else (native, threads),
            # Weight decay would pull the trained tables to 0. A fine-tune starts at the base's
            # tables, not at 0.
            undecayed=() if self.adapters is None else self.adapters.tables,
        )
        self.progress = Progress(loss_scale=first_loss_scale(dtype))
        self.has_average = False
        """Whether the model has the averaged weights at the moment: see `averaged`."""

    @property
    def trained(self) -> TrainedWeights:
        """What the optimizers update: the adapters if there are any, else all weights."""
        return self.weights if self.adapters is None else self.adapters

    def to_save(self) -> dict[str, Tensor]:
        """The tensors that a resumed run needs besides the weights."""
        optimizer = self.optimizers.state()
        return optimizer if self.adapters is None else optimizer | self.adapters.state()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the model the averaged weights inside a `with` block, if the run has averages."""
        if not self.optimizers.averages.exist():
            yield
            return
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        self.optimizers.averages.exchange()
        self.weights.publish()
        self.passes.publish()
        self.has_average = not self.has_average

    def files(self) -> TensorFiles:
        """The current state as the tensor files of a checkpoint."""
        return WholeFiles(*to_checkpoint(self.weights.named(), self.to_save()))

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Restore adapters, optimizers and counters; the constructor has restored the weights.

        Raises GptcliError if the checkpoint's state does not belong to this config."""
        scale = self.progress.loss_scale
        try:
            state = from_checkpoint(self.weights.masters, saved.state)
            if self.adapters is not None:
                state = self.adapters.load_state(state)
            self.optimizers.load_state(state)
            if self.optimizers.averages.exist():
                self.passes.publish()
            self.progress = progress_of(saved.meta)
        except (KeyError, TypeError, RuntimeError):
            raise GptcliError(
                f"{saved.path}: its state does not belong to this config",
                "start a new run",
                exit_code=1,
            ) from None
        if scale == 1.0 or self.progress.loss_scale == 1.0:
            self.progress.loss_scale = scale  # float16 was switched on or off at the resume


def progress_of(meta: dict[str, Any]) -> Progress:
    """The counters in a checkpoint's meta.json.

    Raises KeyError if they are missing, and TypeError if there is an unknown counter."""
    return Progress(**meta["progress"])


def build_model(
    config: ModelConfig,
    vocab_size: int,
    user_parts: UserParts | None = None,
    weights: dict[str, Tensor] | None = None,
    seed: int = 0,
) -> GPT:
    """A float32 model on the CPU with the given weights, or with newly drawn weights.

    Raises GptcliError (exit code 1) if names or shapes of the weights do not fit the config. Raises
    GptcliError if a builtin model is larger than this machine's memory. A builtin model is made
    only after these checks. With user's parts in the network, the model is made first, and then
    most shapes are checked."""
    in_network = user_parts is not None and user_parts.in_network()
    given = None if weights is None else {name: tuple(t.shape) for name, t in weights.items()}
    refuse_unfitting(config, vocab_size, given, users=in_network)
    model = GPT(config, vocab_size, user_parts=user_parts)
    if weights is None or given is None:
        initialise(model, torch.Generator().manual_seed(seed))
        return model
    if in_network:
        wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
        refuse_other_shapes(wanted, given)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    return model
