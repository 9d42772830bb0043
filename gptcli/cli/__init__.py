"""The command line: the list of commands, and the function that runs a command and prints errors.

Only the module of the called command is imported. torch, pydantic and rich are imported only when
this command needs them, so that `--help` stays fast.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from gptcli import __version__
from gptcli.cli.command_line import Command, Group, same_option
from gptcli.cli.debug_option import DEBUG, without_debug
from gptcli.cli.output import (
    STDOUT,
    checked_stdout,
    never_failing,
    note,
    open_closed_streams,
    print_error,
)
from gptcli.errors import GptcliError, is_out_of_memory
from gptcli.files.paths import ESCAPE_UNDECODABLE
from gptcli.openmp import spin_briefly

_CHECKED = ("layernorm", "mlp", "block", "tokenizer", "training", "sampling", "cache", "modern")
_COMMANDS = {
    "train": ("train", "train", "gptcli train my.txt train.max_steps=500 --out runs/mine"),
    "sample": ("sample", "sample", 'gptcli sample mine --prompt "KING" --num-samples 3'),
    "eval": ("evaluate", "evaluate", "gptcli eval mine --split val --json"),
    "score": ("score", "score", "gptcli score mine poem.txt"),
    "serve": ("serve", "serve", "gptcli serve mine --port 8000"),
    "export": ("export", "export", "gptcli export mine --to huggingface --out mine-hf"),
    "page": ("page", "page", "gptcli page mine --out mine.html"),
    "import": ("import_model", "import_model", "gptcli import my-gpt2 --out runs/gpt2"),
    "check-attention": ("check", "check_attention", "gptcli check-attention my_attention.py"),
    **{
        f"check-{name}": ("check", "", f"gptcli check-{name} my/{name}.py --hint 2")
        for name in _CHECKED
    },
    "learn": ("learn", "learn", "gptcli learn my"),
    "exercise": ("exercise", "exercise", "gptcli exercise attention --out my"),
    "grade": ("grade", "grade", "gptcli grade students --csv grades.csv"),
    "bench": ("bench", "bench", "gptcli bench shakespeare --json"),
    "plan": ("plan", "plan", "gptcli plan gpt2-124m --gpus 64"),
    "runs": ("runs", "runs", "gptcli runs"),
    "look": ("look", "look", 'gptcli look mine --prompt "To be or not to be"'),
    "report": ("report", "report", "gptcli report mine --out mine.html"),
    "compare": ("compare", "compare", "gptcli compare mine deeper --seeds 3"),
    "sweep": ("sweep", "sweep", "gptcli sweep tiny train.learning_rate=0.01,0.02 --minutes 10"),
    "scaling": ("scaling", "scaling", "gptcli scaling my.txt --minutes 10 --train"),
    "show": ("show", "show", "gptcli show mine deeper"),
    "log": ("log", "log", "gptcli log mine --to tensorboard"),
    "inspect-batch": ("inspect_batch", "inspect_batch", "gptcli inspect-batch mine 1200"),
    "configs": ("configs", "configs", "gptcli configs tiny > mine.yaml"),
    "schema": ("configs", "schema", "gptcli schema > schema.json"),
    "tokenizer": ("tokenizer", "", ""),
}
"""Command -> (its module in gptcli.cli, its function in that module, the example in its help).

The function is "" for the commands that check.check_command makes, and for the group tokenizer."""
_SHORT = {"chat": "sample"}  # `gptcli chat` is short for `gptcli sample --interactive`


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"gptcli {__version__}\n")
        raise typer.Exit()


def _gptcli(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", help="Show the traceback of an error (also allowed after a command)."
        ),
    ] = False,
) -> None:
    """Train, sample and check tiny GPTs."""


def app_of(words: Sequence[str]) -> typer.Typer:
    """The Typer app with only the command that `words` name, or with all if they name no command.

    The other commands are left out, because importing the modules of all commands takes longer than
    sampling a short text. If a shell asks for completions, the app has all commands."""
    app = typer.Typer(
        name="gptcli",
        cls=Group,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={
            "help_option_names": ["--help", "-h"],
            "token_normalize_func": same_option,  # so that `--max_new_tokens` works
        },
    )
    app.callback(
        epilog="Start with `gptcli train`, then `gptcli sample`. Learn with `gptcli learn`."
    )(_gptcli)
    first = next((same_option(word) for word in words if word != DEBUG), "")
    name = _SHORT.get(first, first)
    completing = any(variable.startswith("_GPTCLI") for variable in os.environ)
    for command in [name] if name in _COMMANDS and not completing else _COMMANDS:
        _add(app, command)
    return app


def _add(app: typer.Typer, command: str) -> None:
    """Import the module of a command, and add the command to the Typer app."""
    module, function, example = _COMMANDS[command]
    home = import_module(f"gptcli.cli.{module}")
    if command == "tokenizer":
        app.add_typer(home.app, name=command)
        return
    exercise = command.removeprefix("check-")
    found = getattr(home, function) if function else home.check_command(exercise)
    app.command(command, cls=Command, epilog=f"Example: {example}")(found)


def main() -> None:
    """Run the command line, and exit with 0, 1, 2 or 130 (see docs/scripts.md).

    After a user's mistake, prints an error and a hint. Only `--debug` adds the traceback."""
    spin_briefly()
    open_closed_streams()
    sys.stdout, sys.stderr = checked_stdout(sys.stdout), never_failing(sys.stderr)
    app = app_of(sys.argv[1:])
    arguments, debug = without_debug(sys.argv[1:], app)
    if hasattr(sys.stdin, "reconfigure"):  # utf-8-sig skips a byte-order mark
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="surrogateescape")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors=ESCAPE_UNDECODABLE)
    try:
        if not {"--help", "-h", "--version"} & set(arguments):
            _refuse_deleted_folder()
        code = app(arguments, prog_name="gptcli", standalone_mode=False)
        sys.stdout.flush()
        if code == 130:  # Typer returns this code after Ctrl-C
            note("\ninterrupted")
    except GptcliError as error:
        if debug:
            raise
        print_error(error)
        code = error.exit_code
    except TyperException as error:
        if debug:
            raise
        code = _usage_error(error)
    except (KeyboardInterrupt, typer.Abort):
        note("\ninterrupted")
        code = 130
    except BrokenPipeError:  # the reader of the pipe ended (`gptcli sample | head`)
        code = 1
    except Exception as error:
        if debug or (problem := _machine_error(error)) is None:
            raise
        print_error(problem)
        code = problem.exit_code
    sys.exit(code if isinstance(code, int) else 0)


def _refuse_deleted_folder() -> None:
    """Raise GptcliError if the current folder was deleted.

    In such a folder, importing PyTorch would crash."""
    try:
        Path.cwd()
    except OSError as error:
        raise GptcliError(
            f"the current folder cannot be used ({error.strerror}): was it deleted or moved?",
            "go to a folder that exists, for example with `cd`, and run the command again",
            exit_code=1,
        ) from None


def _machine_error(error: Exception) -> GptcliError | None:
    """The GptcliError to print if the disk, the memory or the compiler failed; else None."""
    if isinstance(error, OSError) and error.strerror:
        name = f"{error.filename}: " if error.filename else ""
        if error.filename == STDOUT:
            hint = "the output is incomplete: make room, or send it elsewhere (`>`, `|`)"
            return GptcliError(f"{name}{error.strerror}", hint, exit_code=1)
        return GptcliError(
            f"{name}{error.strerror}",
            "is the disk full, or the folder deleted or read-only? Saved checkpoints are complete; "
            "`gptcli train --resume --out RUN` continues from the newest one",
            exit_code=1,
        )
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return GptcliError(
            f"torch.compile failed: {str(error).strip().splitlines()[0]}",
            "turn it off with run.compile=false; on a CPU it needs a C++ compiler (g++)",
            exit_code=1,
        )
    if is_out_of_memory(error):  # a training gets its hint from gptcli.training.out_of_memory
        return GptcliError(
            "out of memory",
            "lower train.batch_size (and raise train.grad_accum by the same factor), "
            "model.block_size, or the number of samples; add --dry-run to a training command to "
            "see an estimate of its memory",
            exit_code=1,
        )
    return None


def _usage_error(error: TyperException) -> int:
    """Print an error of Typer as gptcli prints its own errors. Returns the exit code.

    If a group is called without a command, prints the group's help instead."""
    message = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        note(error.format_message())
        return error.exit_code
    path = context.command_path if context is not None else "gptcli"
    print_error(GptcliError(message[:1].lower() + message[1:], f"see {path} --help"))
    return error.exit_code
