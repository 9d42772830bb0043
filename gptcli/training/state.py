"""Everything that a run is made of between two steps, and how it is saved and put back.

The order of the text and the dropout masks are functions of (seed, step), so no generator has a
state of its own: weights, optimizer, counters and the loss scale are all there is.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptcli.config import ModelConfig, TrainConfig
from gptcli.errors import GptcliError
from gptcli.model.gpt import GPT, initialise
from gptcli.model.own_parts import OwnParts
from gptcli.training import checkpoint
from gptcli.training.optimizers import Optimizers
from gptcli.training.passes import EngineName, NativePasses, Passes, TorchPasses, library_of
from gptcli.training.precision import Weights


@dataclass
class Progress:
    """The counters of a run."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    train_loss: float | None = None
    val_loss: float | None = None
    evaluated_at: int | None = None
    best_val_loss: float | None = None
    best_step: int | None = None
    evaluations_without_best: int = 0
    loss_scale: float = 1.0


class TrainingState:
    """A model, its masters, its passes, its optimizers and its counters.

    `weights` are a checkpoint's (or another run's) to start from; None draws new ones."""

    def __init__(
        self,
        model: ModelConfig,
        train: TrainConfig,
        vocab_size: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        own: OwnParts | None = None,
        weights: dict[str, Tensor] | None = None,
        engine: EngineName = "torch",
        threads: int = 1,
        compiled: bool = False,
    ) -> None:
        self.model = build_model(model, vocab_size, own, weights, seed=train.seed)
        self.model.to(device)
        self.weights = Weights(self.model, dtype)
        # Newton-Schulz needs few digits; bfloat16 only where it is also quick.
        muon_dtype = torch.float32 if dtype == torch.float32 else torch.bfloat16
        native = library_of(engine)
        self.optimizers = Optimizers(
            train.optimizer,
            self.weights.masters,
            train.weight_decay,
            muon_dtype,
            None if native is None else (native, threads),
        )
        self.passes: Passes
        if native is None:
            step_tokens = train.batch_size * train.grad_accum * model.block_size
            self.passes = TorchPasses(self.model, self.weights, compiled, step_tokens=step_tokens)
        else:
            self.passes = NativePasses(
                native, self.model, self.weights, batch_size=train.batch_size, threads=threads
            )
        self.progress = Progress(loss_scale=2.0**15 if dtype == torch.float16 else 1.0)

    def save(self, run: Path, extra: dict[str, Any]) -> Path:
        """Write a durable checkpoint of this moment; `extra` goes into its meta.json."""
        return checkpoint.save(
            run,
            self.progress.step,
            self.weights.named(),
            self.optimizers.state(),
            {"progress": asdict(self.progress), **extra},
        )

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Put back optimizer and counters; the weights were given at construction."""
        scale = self.progress.loss_scale
        try:
            self.optimizers.load_state(saved.state)
            self.progress = progress_of(saved.meta)
        except (KeyError, TypeError, RuntimeError):
            raise GptcliError(
                f"{saved.path}: its state does not belong to this config",
                "start a new run",
                exit_code=1,
            ) from None
        if scale == 1.0 or self.progress.loss_scale == 1.0:
            self.progress.loss_scale = scale  # float16 now or then, but not both


def progress_of(meta: dict[str, Any]) -> Progress:
    """The counters in a checkpoint's meta.json. Raises KeyError or TypeError without them."""
    return Progress(**meta["progress"])


def build_model(
    config: ModelConfig,
    vocab_size: int,
    own: OwnParts | None = None,
    weights: dict[str, Tensor] | None = None,
    seed: int = 0,
) -> GPT:
    """A float32 model on the CPU with given or newly drawn weights.

    Raises GptcliError (exit code 1) where the weights have other names or shapes."""
    model = GPT(config, vocab_size, own=own)
    if weights is None:
        initialise(model, torch.Generator().manual_seed(seed))
        return model
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    given = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if wanted != given:
        odd = sorted(
            name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name)
        )
        raise GptcliError(
            f"the checkpoint's weights are not this model's: `{odd[0]}` is "
            f"{given.get(odd[0], 'missing')}, the config wants {wanted.get(odd[0], 'none')}",
            "was the run trained with another file of your own, or was config.yaml edited?",
            exit_code=1,
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    return model
