"""Options that several commands share, and what they turn into."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.cli.output import note
from gptcli.cli.user_files import UserFiles, load_user_parts
from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from gptcli.sampling.backend import Backend
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
        help="Default: best where evaluations were made, else last.",
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cuda, mps or cpu.")]
DTypeOption = Annotated[str, typer.Option("--dtype", help="auto, bfloat16, float16 or float32.")]
WriterDTypeOption = Annotated[
    str,
    typer.Option(
        "--dtype",
        help="auto, bfloat16, float16 or float32; on a CPU also int8, weights of eight bits.",
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="CPU threads. Default: as many as there are cores."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]


@dataclass(frozen=True)
class Machine:
    """--device, --dtype and --threads as given."""

    device: str
    dtype: str
    threads: int | None


def load(
    run: str | None,
    checkpoint: str | None,
    machine: Machine,
    files: UserFiles,
    *,
    dtype_of_run: bool,
) -> tuple[Path, Trained]:
    """The run and its model. With `dtype_of_run`, `--dtype auto` is what the run was trained in
    where this machine has it, so that figures repeat; else float32."""
    from gptcli.devices import choose_device, choose_dtype, choose_threads
    from gptcli.training.loading import load_trained
    from gptcli.training.run_folder import find_run, read_config

    _check(machine)
    path = find_run(run)
    device = choose_device(machine.device)
    choose_threads(machine.threads or "auto")
    wanted = machine.dtype
    if wanted == "auto":
        wanted = read_config(path).run.dtype if dtype_of_run else "float32"
        if wanted == "float16" and device.type == "cpu":
            wanted = "float32"
    trained = load_trained(
        path,
        checkpoint,
        device=device,
        dtype=choose_dtype(wanted, device),
        user_parts=load_user_parts(files),
    )
    _say(trained)
    return path, trained


def _one_of(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise GptcliError(f"{option} `{value}` is not known", f"one of {', '.join(choices)}")


@dataclass(frozen=True)
class Writer:
    """A model that is to write, and how."""

    path: Path
    trained: Trained
    backend: Backend
    threads: int


def load_writer(
    run: str | None, checkpoint: str | None, machine: Machine, files: UserFiles
) -> Writer:
    """The run and its model for sampling; `--dtype auto` is what is quick on this machine."""
    from gptcli.native import library

    if machine.device in ("auto", "cpu"):
        library.start_building(library.SAMPLING)  # while PyTorch is imported
    import torch

    from gptcli.devices import choose_device, choose_threads
    from gptcli.sampling.backend import choose_backend
    from gptcli.training.loading import load_trained
    from gptcli.training.run_folder import find_run

    _check(machine, "int8")
    path = find_run(run)
    device = choose_device(machine.device)
    threads = choose_threads(machine.threads or "auto")
    user_parts = load_user_parts(files)
    backend = choose_backend(
        machine.dtype, device, has_user_parts=user_parts is not None and user_parts.in_network()
    )
    trained = load_trained(
        path, checkpoint, device=device, dtype=torch.float32, user_parts=user_parts
    )
    if not backend.native and backend.dtype != torch.float32:
        trained.model.branches_in(backend.dtype)
    _say(trained)
    return Writer(path, trained, backend, threads)


def _say(trained: Trained) -> None:
    for message in trained.notes:
        note(f"note: {message}")


def _check(machine: Machine, *more_dtypes: str) -> None:
    _one_of("--device", machine.device, ("auto", "cuda", "mps", "cpu"))
    if machine.dtype == "int8" and not more_dtypes:
        raise GptcliError(
            "--dtype `int8` is for `sample` and `score`",
            "float32 or bfloat16 here, or leave it out",
        )
    _one_of("--dtype", machine.dtype, ("auto", "bfloat16", "float16", "float32", *more_dtypes))
