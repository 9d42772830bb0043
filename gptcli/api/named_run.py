"""Finds the run that a user names; gives an error for the name of a text, checkpoint or file."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from gptcli.errors import GptcliError, cropped
from gptcli.other_spellings import FORM_OF, normalised
from gptcli.plurals import counted


def named_run(name: str | None, command: str) -> Path:
    """The run folder that `name` means: a path, a name under runs/, or None for the newest run.

    `command` is the command that got `name` as its argument. Raises GptcliError if `name` means no
    run. If it means something else, the hint says what to write instead."""
    from gptcli.training.run_folder import find_run

    try:
        return find_run(name)
    except GptcliError as error:
        other = _instead_of_run(name, command) if name else None
        raise (other or error) from None


def _instead_of_run(name: str, command: str) -> GptcliError | None:
    """The error that says what `name` is and what to write.

    None if this function does not recognise `name`. In this case, `name` is probably misspelt."""
    start = f"gptcli {command}"
    if (run := run_around(name)) is not None:
        shown = shlex.quote(str(run))
        step = re.search(r"step-(\d+)", name.removeprefix(str(run)))
        if step:
            shown += f" --checkpoint {int(step[1])}"
        elif Path(name).name == "best":
            shown += " --checkpoint best"
        return GptcliError(f"{name} is inside the run {run}", f"write {start} {shown}")
    quoted = shlex.quote(name)
    if os.path.isfile(name):  # noqa: PTH113 (False for a name that no file can have)
        if name.lower().endswith((".yaml", ".yml")):
            return GptcliError(f"{name} is a config, not a run", f"train it: gptcli train {quoted}")
        if name.lower().endswith((".gguf", ".onnx")):
            return GptcliError(
                f"{name} is a model of another program, and gptcli cannot read its format",
                "name the run that it was exported from",
            )
        use = {
            "sample": f"to continue the text in it: gptcli sample --prompt-file {quoted}",
            "eval": f"to measure the loss of the newest run on it: gptcli eval --file {quoted}",
            "score": "give a run, then the file: gptcli score RUN FILE",
        }.get(command)
        hints = [*([use] if use else []), f"to train on it: gptcli train {quoted}"]
        return GptcliError(f"{name} is a file, not a run", "; ".join(hints))
    if os.path.isdir(name):  # noqa: PTH112
        return _folder(name, start)
    option, equals, value = name.partition("=")
    usual = f"--{option.replace('_', '-').lower()} VALUE"
    form = FORM_OF.get(command, {}).get(normalised(option), usual)
    if equals and re.fullmatch(r"[A-Za-z_-]+", option) and form.startswith("--"):
        shown = form.replace("VALUE", shlex.quote(value))
        return GptcliError(
            f"no run named `{cropped(name)}`", f"write an option with two dashes: {shown}"
        )
    if command == "sample" and (re.search(r"\s|[^\w./~-]", name) or len(name) > 60):
        return GptcliError(
            f"no run named `{cropped(name)}`",
            f"to continue a text: {start} --prompt {prompt_word(name)}",
        )
    return None


def prompt_word(text: str) -> str:
    """A text as one word for a shell; `"$TEXT"` if it is too long or has several lines."""
    return shlex.quote(text) if cropped(text) == text and len(text) <= 60 else '"$TEXT"'


def _folder(name: str, start: str) -> GptcliError | None:
    """The error which says that `name` is a folder of runs, not a run.

    None if the folder has no runs or cannot be listed."""
    from gptcli.training.run_folder import list_runs

    try:
        runs = list_runs(Path(name))
    except OSError:
        return None
    if not runs:
        return None
    newest = max(runs, key=lambda run: (run / "config.yaml").stat().st_mtime)
    return GptcliError(
        f"{name} is a folder of {counted(len(runs), 'run')}, not a run",
        f"name one of them, for example the newest: {start} {shlex.quote(str(newest))}",
    )


def run_around(name: str) -> Path | None:
    """The run folder that contains a path; None if the path is not inside a run."""
    for path in (Path(name), Path("runs") / name):
        for folder in path.parents:
            if is_run(str(folder)):
                return folder
    return None


def is_run(folder: str) -> bool:
    """Whether a folder is a run."""
    files = (os.path.join(folder, name) for name in ("config.yaml", "tokenizer.json"))  # noqa: PTH118
    return all(map(os.path.isfile, files))
