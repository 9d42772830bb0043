"""Options that several commands share (run, checkpoint, device, dtype). Also loads the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.api import loading
from gptcli.api.loading import DEVICES, DTYPES, SamplingModel, refuse_unknown
from gptcli.api.user_files import UserFiles, load_user_parts
from gptcli.cli.output import note
from gptcli.cli.run_argument import named_run
from gptcli.cli.user_files import (
    AttentionOption,
    BlockOption,
    LayerNormOption,
    MlpOption,
    TokenizerOption,
)
from gptcli.errors import GptcliError, cropped

if TYPE_CHECKING:
    from gptcli.config import Config
    from gptcli.training.loading import Trained

RunArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[RUN]", help="A run folder, or its name under runs/. Default: the newest."
    ),
]
CheckpointOption = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        metavar="last|best|STEP",
        help="Which checkpoint to load. Default: best if the run has evaluations, else last.",
    ),
]
DeviceOption = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="auto, cuda, mps or cpu.")
]
DTypeOption = Annotated[
    str, typer.Option("--dtype", metavar="DTYPE", help="auto, bfloat16, float16 or float32.")
]
SamplingDTypeOption = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        help="auto, bfloat16, float16 or float32; on a CPU also int8 (eight-bit weights).",
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        min=1,
        help="CPU threads. Default: $OMP_NUM_THREADS, or one for each physical core.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]


RUN_AND_SOURCE = "[RUN] [data.source=NEW] [data.val_source=NEW]"
"""The arguments in the help of a command that reads the text of a run."""


_ONLY_TEXTS = "only data.source=NEW and data.val_source=NEW are allowed, for a text that has moved"


def run_and_overrides(words: list[str] | None) -> tuple[str | None, list[str]]:
    """The RUN among `words` of the command line, or None, and the overrides among them.

    The overrides data.source=NEW and data.val_source=NEW say where the texts of the run are now.
    Raises GptcliError if the words change another key, or name several runs."""
    runs, overrides = others_and_overrides(words)
    if len(runs) > 1:
        raise GptcliError(
            f"`{cropped(runs[1])}`: give only one run; `{cropped(runs[0])}` is already one",
            "leave one of them out",
        )
    return (runs[0] if runs else None), overrides


def others_and_overrides(words: list[str] | None) -> tuple[list[str], list[str]]:
    """The words of the command line that are no overrides, and the overrides.

    The overrides are those of `run_and_overrides`. Raises GptcliError if one of them changes
    another key."""
    from gptcli.config_files import is_known_override

    overrides = [word for word in words or [] if "=" in word and is_known_override(word)]
    for override in overrides:
        if not override.startswith(("data.source=", "data.val_source=", "data=")):
            raise GptcliError(
                f"`{override}`: a trained run keeps its config",
                _ONLY_TEXTS,
            )
    return [word for word in words or [] if word not in overrides], overrides


def with_overrides(run: Path, config: Config, overrides: list[str]) -> Config:
    """The config of a run after the user's data.source=NEW and data.val_source=NEW are applied.

    Raises GptcliError if the overrides change another key, or if they add or remove
    data.val_source."""
    from gptcli.config_files import differences, dump_config, parse_config

    changed = parse_config(dump_config(config), overrides, name=str(run / "config.yaml"))
    odd = set(differences(config, changed)) - {"data.source", "data.val_source"}
    if (config.data.val_source is None) != (changed.data.val_source is None):
        odd.add("data.val_source")
    if odd:
        raise GptcliError(
            f"a trained run keeps its config: {', '.join(sorted(odd))} cannot change",
            _ONLY_TEXTS,
        )
    return changed


@dataclass(frozen=True)
class ModelOptions:
    """Which checkpoint to load, the device and dtype, and the files of the user's parts."""

    checkpoint: CheckpointOption = None
    device: DeviceOption = "auto"
    dtype: DTypeOption = "auto"
    threads: ThreadsOption = None
    attention: AttentionOption = None
    layernorm: LayerNormOption = None
    mlp: MlpOption = None
    block: BlockOption = None
    tokenizer: TokenizerOption = None

    @property
    def user_files(self) -> UserFiles:
        """The files of the user's parts."""
        return UserFiles(self.attention, self.layernorm, self.mlp, self.block, self.tokenizer)


@dataclass(frozen=True)
class SamplingModelOptions(ModelOptions):
    """The options of ModelOptions for a command that samples: --dtype can also be int8."""

    dtype: SamplingDTypeOption = "auto"


def load_model(
    run: str | None, options: ModelOptions, command: str, *, dtype_of_run: bool
) -> Trained:
    """The model of a run. Error messages name `command`.

    If `dtype_of_run` is true, `--dtype auto` means the dtype of the training, so that results are
    as in the training. (On a CPU, it means float32 instead of float16.) If `dtype_of_run` is
    false, `--dtype auto` means float32."""
    from gptcli.devices import choose_device, choose_dtype, choose_threads
    from gptcli.training.loading import load_trained
    from gptcli.training.run_folder import read_config

    _check(options)
    path = named_run(run, command)
    device = choose_device(options.device)
    choose_threads(options.threads or "auto")
    wanted = options.dtype
    if wanted == "auto":
        wanted = read_config(path).run.dtype if dtype_of_run else "float32"
        if wanted == "float16" and device.type == "cpu":
            wanted = "float32"
    trained = load_trained(
        path,
        options.checkpoint,
        device=device,
        dtype=choose_dtype(wanted, device),
        user_parts=load_user_parts(options.user_files),
    )
    _print_notes(trained)
    return trained


def load_for_evaluation(
    run: str | None, options: ModelOptions, command: str
) -> tuple[Trained, int | None]:
    """The model of a run, and the number of threads for the C library, or None for PyTorch.

    The C library evaluates only in float32, on a CPU, and without the user's parts. If it
    evaluates, PyTorch is not imported. `--dtype auto` means the dtype of the training. (On a CPU,
    it means float32 instead of float16.)"""
    from gptcli.devices import is_surely_cpu, threads_without_torch
    from gptcli.training.loading import read_trained
    from gptcli.training.native_evaluate import can_evaluate
    from gptcli.training.run_folder import read_config

    _check(options)
    path = named_run(run, command)
    if is_surely_cpu(options.device) and not options.user_files.given():
        threads, config = threads_without_torch(options.threads or "auto"), read_config(path)
        wanted = config.run.dtype if options.dtype == "auto" else options.dtype
        if wanted == "float32" or (options.dtype == "auto" and wanted == "float16"):
            trained = read_trained(path, options.checkpoint, config=config)
            if can_evaluate(trained.weights):
                _print_notes(trained)
                return trained, threads
    return load_model(run, options, command, dtype_of_run=True), None


def load_for_sampling(run: str | None, options: ModelOptions, command: str) -> SamplingModel:
    """The model of a run, loaded for sampling. Error messages name `command`.

    `--dtype auto` means bfloat16 if the C library generates and the processor multiplies bfloat16,
    else float32."""
    _check(options, "int8")
    model = loading.load_for_sampling(
        named_run(run, command),
        options.checkpoint,
        device=options.device,
        dtype=options.dtype,
        threads=options.threads,
        files=options.user_files,
    )
    _print_notes(model.trained)
    return model


def _print_notes(trained: Trained) -> None:
    for message in trained.notes:
        note(f"note: {message}")


def _check(options: ModelOptions, *more_dtypes: str) -> None:
    refuse_unknown("--device", options.device, DEVICES)
    if options.dtype == "int8" and not more_dtypes:
        raise GptcliError(
            "--dtype `int8` works only with `sample`, `score` and `serve`",
            "use float32 or bfloat16 here, or leave --dtype out",
        )
    refuse_unknown("--dtype", options.dtype, (*DTYPES, *more_dtypes))
