"""Imports a model of another program as a run folder that every command can use."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from gptcli import __version__
from gptcli.config import Config, DataConfig, ModelConfig, RunConfig, TokenizerConfig, TrainConfig
from gptcli.errors import GptcliError
from gptcli.files import durable
from gptcli.interop import proof
from gptcli.interop.foreign import ForeignModel, read_model
from gptcli.interop.tokenizers import padded, tokenizer_of_folder
from gptcli.model.gpt import count_parameters
from gptcli.tokenization import Tokenizer
from gptcli.training import checkpoint, run_folder
from gptcli.training.loading import Trained
from gptcli.training.schedule import resolve_rate
from gptcli.training.training_state import Progress, build_model

IMPORTED = "an imported model"
"""The value of data.source in an imported run, whose training text is not known."""

_STEP_TOKENS = 4096
_ALLOWED = ("*.json", "*.safetensors", "merges.txt")


@dataclass(frozen=True)
class Import:
    """What an import wrote, the result of the comparison with the other program, and notes."""

    run: Path
    model_type: str
    trained: Trained
    proof: proof.Proof
    notes: tuple[str, ...]


def read_foreign(
    path: Path, *, tokenizer: Path | None = None, block_size: int | None = None
) -> tuple[Trained, ForeignModel]:
    """A model of another program with its tokenizer, ready to sample. No file is written.

    `path` is a Hugging Face folder or nanoGPT's ckpt.pt. `tokenizer` replaces the tokenizer in
    `path`. It is the path of a tokenizer.json, of a folder with a tokenizer, or of a text whose
    characters are the vocabulary, or it is the word `gpt2` for GPT-2's tokenizer. Raises
    GptcliError if a file is missing or damaged, or if gptcli cannot compute exactly this model."""
    foreign = read_model(path, block_size)
    found = tokenizer_of_folder(tokenizer or path, foreign.vocab_size)
    found, note = padded(found, foreign.vocab_size, path)
    model = build_model(foreign.config, found.vocab_size, weights=foreign.weights).eval()
    kind = cast(Any, found.kind)
    sizes = {"vocab_size": found.vocab_size} if kind == "bpe" else {}
    config = Config(
        data=DataConfig(source=IMPORTED, val_split="tail", documents="file"),
        tokenizer=TokenizerConfig(kind=kind, **sizes),
        model=foreign.config,
        train=_train_config(foreign.config),
        run=RunConfig(),
    )
    notes = [*foreign.notes, *([note] if note else [])]
    return Trained(path, model, found, config, 0, meta_of_import(config, found), notes), foreign


def meta_of_import(config: Config, tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of an imported run's meta.json, without the list of tensors."""
    return {
        "progress": asdict(Progress()),
        "vocab_size": tokenizer.vocab_size,
        "tokenizer": tokenizer.fingerprint(),
        "data": "imported",
        "model": config.model.model_dump(),
        "config": config.model_dump(),
        "own_attention": False,
        "own_parts": [],
        "plans": [],
    }


def _train_config(model: ModelConfig) -> TrainConfig:
    """The training settings for `train --from`: AdamW, and 1 to 16 sequences in a step."""
    train = TrainConfig(
        optimizer="adamw", batch_size=max(1, min(16, _STEP_TOKENS // model.block_size))
    )
    return train.model_copy(update={"learning_rate": resolve_rate(train, model.n_embd)})


def import_model(
    path: Path,
    out: Path,
    *,
    tokenizer: Path | None = None,
    block_size: int | None = None,
    name: str | None = None,
) -> Import:
    """Write a model of another program as the run folder `out`, which must be new or empty.

    If `path` is a folder and transformers is installed, transformers also reads the folder. Then
    the logits of both programs are compared. If `tokenizer` is None, the token ids are compared,
    too. `out` appears only when it is complete.

    Raises GptcliError if `read_foreign` raises it, if `out` is taken or cannot be written, or (exit
    code 1) if transformers computes something else."""
    refuse_taken(out)
    trained, foreign = read_foreign(path, tokenizer=tokenizer, block_size=block_size)
    found = proof.Proof(None, (), "gptcli knows no other program that reads a ckpt.pt")
    if path.is_dir():
        found = proof.hugging_face(trained, path, doing="import", with_texts=tokenizer is None)
    origin = {"from": name or path.resolve().name, "model_type": foreign.model_type}
    write_run(out, trained, origin, {"imported": torch.zeros(1)})
    return Import(out, foreign.model_type, replace(trained, run=out), found, tuple(trained.notes))


def refuse_taken(out: Path) -> None:
    """Raise GptcliError if `out`, the run folder for an import, exists and is not empty.

    A folder counts as empty if it holds at most a lock and a folder `checkpoints` without steps."""
    try:
        run_folder.refuse_existing(out)
    except run_folder.RunExistsError as error:  # the hint of `error` is about training
        raise GptcliError(error.message, "name another folder with --out") from None


def write_run(
    out: Path,
    trained: Trained,
    origin: dict[str, str],
    state: dict[str, Tensor],
    **status: Any,
) -> None:
    """Write an imported model as the run folder `out`. If anything fails, delete the folder.

    `origin` says what was imported. `state` has the tensors of the checkpoint that are not weights.
    `status` has more keys for run.json."""
    status = {
        "imported": origin,
        "stopped": "imported",
        "parameters": count_parameters(trained.model).total,
        "version": __version__,
        **status,
    }
    with durable.path_errors(out.parent):
        made = durable.make_folder(out.parent)
    try:
        run_folder.create(out, trained.config, trained.tokenizer, status)
        weights = {name: p.detach() for name, p in trained.model.named_parameters()}
        checkpoint.save(out, 0, weights, state, trained.meta)
    except BaseException as error:
        with suppress(OSError):
            durable.remove_tree(out)
            durable.remove_made(made)
        if isinstance(error, GptcliError):  # the hint of `error` is about training
            hint = "free some space, or choose a folder on another disk with --out"
            raise GptcliError(error.message, hint, exit_code=error.exit_code) from None
        raise


def from_hub(name: str) -> Path:
    """The local folder with the model `name` of the Hugging Face Hub. Downloads missing files.

    Only JSON, safetensors and merges.txt are downloaded. Raises GptcliError if huggingface_hub is
    not installed, or if the model cannot be downloaded."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise GptcliError(
            f"there is no file or folder {name}",
            "to download a model of the Hugging Face Hub: pip install huggingface_hub",
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=list(_ALLOWED)))
    except Exception as error:  # the packages for the download raise many types of errors
        words = " ".join(str(error).split())[:160] or type(error).__name__
        raise GptcliError(
            f"there is no file or folder {name}, and the Hugging Face Hub cannot send it: {words}",
            "check the name and the internet connection, or name a folder that you downloaded",
            exit_code=1,
        ) from None
