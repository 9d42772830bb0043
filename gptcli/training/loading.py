"""Loads a trained model from a run folder, for `sample`, `eval`, `score` and other commands.

Reads the weights without PyTorch. Imports PyTorch only if the caller uses `Trained.model`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.config import Config
from gptcli.errors import GptcliError
from gptcli.model.user_parts import UserParts, parts_of, refuse_other_parts
from gptcli.model.weights import Weights
from gptcli.tokenization import Tokenizer
from gptcli.training import checkpoint, run_folder
from gptcli.training.consistency import same_config, same_tokenizer
from gptcli.training.fitting_weights import refuse_unfitting
from gptcli.training.tensor_file import is_finite

if TYPE_CHECKING:
    import torch

    from gptcli.model.gpt import GPT


@dataclass(frozen=True)
class Trained:
    """A model in evaluation mode with its tokenizer and config, and notes for the user.

    `source` is the model, or a function that makes it. `arrays` are the weights of the checkpoint,
    if they come from a run folder and the network is builtin. `user_parts` are the parts that the
    user wrote."""

    run: Path
    source: GPT | Callable[[], GPT]
    tokenizer: Tokenizer
    config: Config
    step: int
    meta: dict[str, Any]
    notes: list[str]
    arrays: dict[str, memoryview[float]] | None = None
    user_parts: UserParts | None = None

    @cached_property
    def model(self) -> GPT:
        """The PyTorch module, made on first use."""
        from gptcli.model.gpt import GPT

        return self.source if isinstance(self.source, GPT) else self.source()

    @property
    def weights(self) -> Weights:
        """The weights for the C libraries. The network must not have a part that the user wrote.

        If the module exists, these are the module's weights, because the caller may have changed
        them."""
        if self.arrays is None or "model" in vars(self):
            return Weights.of(self.model)
        return Weights(self.config.model, self.tokenizer.vocab_size, self.arrays)


def load_trained(
    run: Path,
    which: str | None,
    *,
    device: torch.device,
    dtype: torch.dtype,
    user_parts: UserParts | None = None,
) -> Trained:
    """The model of a run's checkpoint `which` ("best", "last" or a step), with its PyTorch module.

    If `which` is None, loads the best checkpoint, or the newest if no step is the best. If that
    checkpoint is damaged, loads the newest valid one.

    Raises GptcliError if a file is damaged or does not belong to the checkpoint. Also raises
    GptcliError if the user's parts are missing or not needed."""
    trained = read_trained(run, which, user_parts, lambda model: model.to(device, dtype))
    assert trained.model is not None
    return trained


def read_trained(
    run: Path,
    which: str | None,
    user_parts: UserParts | None = None,
    place: Callable[[GPT], GPT] = lambda model: model,
    *,
    config: Config | None = None,
) -> Trained:
    """What load_trained returns, but without importing PyTorch.

    The PyTorch module is made on first use. `place` gets the new module, and can move it to a
    device or change its dtype. `config` is the run's config if the caller has read it. Raises
    the errors of load_trained, with one difference: if the weights do not fit a network with user's
    parts, the error comes when the module is made."""
    config = config or run_folder.read_config(run)
    if which is None:
        loaded, notes = checkpoint.best_valid(run, as_arrays=True)
    else:
        loaded = checkpoint.load(run, checkpoint.choose_step(run, which), as_arrays=True)
        notes = checkpoint.find_best_step(run)[1] if which == "best" else []
    refuse_other_parts(run, parts_of(loaded.meta), user_parts)
    notes += same_config(run, loaded.meta, config)
    tokenizer = run_folder.read_tokenizer(
        run, user_parts.tokenizer if user_parts is not None else None
    )
    same_tokenizer(run, tokenizer, loaded.meta)
    _refuse_not_finite(loaded)
    in_network = user_parts is not None and user_parts.in_network()
    shapes = {name: tuple(array.shape) for name, array in loaded.model.items()}
    refuse_unfitting(config.model, tokenizer.vocab_size, shapes, users=in_network)

    def make() -> GPT:
        import torch

        from gptcli.training.training_state import build_model

        tensors = {
            name: torch.frombuffer(array.cast("B"), dtype=torch.float32).reshape(array.shape or ())
            for name, array in loaded.model.items()
        }
        model = build_model(config.model, tokenizer.vocab_size, user_parts, tensors)
        return place(model).eval()

    return Trained(
        run,
        make,
        tokenizer,
        config,
        loaded.step,
        loaded.meta,
        notes,
        None if in_network else loaded.model,
        user_parts,
    )


def _refuse_not_finite(loaded: checkpoint.Checkpoint) -> None:
    """Raise GptcliError if a weight is NaN or infinite: the model's output would be meaningless."""
    for name, array in loaded.model.items():
        if not is_finite(array):
            raise GptcliError(
                f"{loaded.path}: its weights are not finite, first in `{name}`",
                "choose another with --checkpoint; training never saves such weights",
                exit_code=1,
            )
