"""The front door: the commands, and the one place that catches what goes wrong.

Nothing here imports torch, pydantic or rich before a command needs it: `--help` stays instant.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from typer.exceptions import TyperException

from gptcli import __version__
from gptcli.cli import (
    bench,
    check,
    configs,
    evaluate,
    exercise,
    inspect_batch,
    runs,
    sample,
    score,
    tokenizer,
    train,
)
from gptcli.cli.output import STDOUT, named, note, open_closed_streams, patient, print_error
from gptcli.errors import GptcliError, is_out_of_memory

app = typer.Typer(
    name="gptcli",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"gptcli {__version__}\n")
        raise typer.Exit()


@app.callback(epilog="Start with `gptcli train`, then `gptcli sample`.")
def _gptcli(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show the traceback of an error (works after any command)."),
    ] = False,
) -> None:
    """Train, sample and check tiny GPTs."""


def _add(name: str, function: object, example: str) -> None:
    app.command(name, epilog=f"Example: {example}")(function)  # type: ignore[type-var]


_add("train", train.train, "gptcli train my.txt train.max_steps=500 --out runs/mine")
_add("sample", sample.sample, 'gptcli sample mine --prompt "KING" --num-samples 3')
_add("eval", evaluate.evaluate, "gptcli eval mine --split val --json")
_add("score", score.score, "gptcli score mine poem.txt")
_add("check-attention", check.check_attention, "gptcli check-attention my_attention.py")
for _exercise, _what, _interface in check.COMMANDS:
    _add(
        f"check-{_exercise}",
        check.check_command(_exercise, _what, _interface),
        f"gptcli check-{_exercise} my/{_exercise}.py --hint 2",
    )
_add("exercise", exercise.exercise, "gptcli exercise attention --out my")
_add("bench", bench.bench, "gptcli bench shakespeare --json")
_add("runs", runs.runs, "gptcli runs")
_add("inspect-batch", inspect_batch.inspect_batch, "gptcli inspect-batch mine 1200")
_add("configs", configs.configs, "gptcli configs tiny > mine.yaml")
_add("schema", configs.schema, "gptcli schema > schema.json")
app.add_typer(tokenizer.app, name="tokenizer")


def main() -> None:
    """Run the command line; every way out has its exit code, and no mistake of the user's shows
    a traceback unless `--debug` asks for it."""
    # How long OpenMP's threads wait busily for each other (PyTorch on Linux, read when torch is
    # imported). At the default, two trainings on two cores stopped one another: over 1.5 s a step
    # in place of 0.07 s; at this value 0.25 s each, and alone as quick as before.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    open_closed_streams()
    sys.stdout, sys.stderr = named(sys.stdout), patient(sys.stderr)
    arguments = sys.argv[1:]
    debug = "--debug" in _before_dashes(arguments)
    arguments = [a for a in _before_dashes(arguments) if a != "--debug"] + _from_dashes(arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure") and (stream.encoding or "").lower() != "utf-8":
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        code = app(arguments, prog_name="gptcli", standalone_mode=False)
        sys.stdout.flush()
        if code == 130:  # typer makes an exit code of a Ctrl-C
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
    except BrokenPipeError:  # the reader has left (`gptcli sample | head`)
        code = 1
    except Exception as error:
        if debug or (problem := _of_the_machine(error)) is None:
            raise
        print_error(problem)
        code = problem.exit_code
    sys.exit(code if isinstance(code, int) else 0)


def _of_the_machine(error: Exception) -> GptcliError | None:
    """What the machine refused (a disk, its memory) as an error for people; None: a bug of ours."""
    if isinstance(error, OSError) and error.strerror:
        name = f"{error.filename}: " if error.filename else ""
        if error.filename == STDOUT:
            hint = "what was written there is not whole: make room, or send it elsewhere (`>`, `|`)"
            return GptcliError(f"{name}{error.strerror}", hint, exit_code=1)
        return GptcliError(
            f"{name}{error.strerror}",
            "is the disk full, or the folder gone or read-only? Checkpoints that were saved are "
            "whole; `gptcli train --resume` goes on from the newest",
            exit_code=1,
        )
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return GptcliError(
            f"torch.compile failed: {str(error).strip().splitlines()[0]}",
            "run.compile=false does without; on a CPU it needs a C++ compiler (g++)",
            exit_code=1,
        )
    if is_out_of_memory(error):  # of a training, gptcli.training.out_of_memory says more
        return GptcliError(
            "out of memory",
            "lower train.batch_size (and raise train.grad_accum by as much), model.block_size, or "
            "the number of samples; `gptcli train --dry-run` estimates what a run needs",
            exit_code=1,
        )
    return None


def _usage_error(error: TyperException) -> int:
    message = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        note(error.format_message())
        return error.exit_code
    path = context.command_path if context is not None else "gptcli"
    print_error(GptcliError(message[:1].lower() + message[1:], f"see {path} --help"))
    return error.exit_code


def _before_dashes(arguments: list[str]) -> list[str]:
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


def _from_dashes(arguments: list[str]) -> list[str]:
    return arguments[arguments.index("--") :] if "--" in arguments else []
