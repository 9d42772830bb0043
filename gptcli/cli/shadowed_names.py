"""Notes about names with two meanings, such as the shipped config `tiny` and a folder `tiny`.

If a shipped config and a file have the same name, gptcli uses the config. If a tokenizer and a run
have the same name, gptcli uses the tokenizer. If the runs NAME and runs/NAME both exist, gptcli
uses NAME. A note tells the user which of the two gptcli uses, and how to name the other one.
"""

from __future__ import annotations

import os
from pathlib import Path

from gptcli.cli.output import note


def note_config_and_text(target: str | None) -> None:
    """Print a note if `target` is the name of a shipped config, and also of a file or folder."""
    from gptcli.files.shipped import shipped_configs

    if target in shipped_configs() and os.path.lexists(target):
        note(
            f"note: `{target}` is the shipped config; write {_here(target)} for the file or folder "
            "with that name"
        )


def note_tokenizer_and_run(name: str) -> None:
    """Print a note if `name` names a run, and also a built-in tokenizer or a file."""
    runs = [path for path in (Path(name), Path("runs") / name) if _is_run(path)]
    if not runs:
        return
    if name in ("gpt2", "byte"):
        what = "the built-in tokenizer"
    elif os.path.isfile(name):  # noqa: PTH113 (False for a name that no file can have)
        what = "the file"
    else:
        return
    other = _here(name) if runs[0] == Path(name) else str(runs[0])
    note(f"note: `{name}` is {what}; write {other} for the run with that name")


def note_two_runs(name: str | None) -> None:
    """Print a note if the folder `name` is a run, and the folder runs/`name` is another run."""
    if name is None:
        return
    one, other = Path(name), Path("runs") / name
    if one != other and _is_run(one) and _is_run(other) and not one.samefile(other):
        note(f"note: `{name}` is the run {_here(name)}; write {other} for the other run")


def _here(name: str) -> str:
    return f".{os.sep}{name}"


def _is_run(path: Path) -> bool:
    return os.path.isfile(path / "config.yaml")  # noqa: PTH113
