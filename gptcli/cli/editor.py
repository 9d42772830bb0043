"""Opens a file at a line in the user's editor: $VISUAL, $EDITOR, or an editor that is installed."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from gptcli.errors import GptcliError

_USUAL = ("nano", "vim", "vi")
# These editors open a file at line 12 if `+12` comes before the file's name.
_TAKE_A_LINE = {"vi", "vim", "nvim", "nano", "emacs", "micro", "kak", "joe"}
_HINT = "set an editor, for example `export EDITOR=nano`, or open {} in any editor and save it"


def editor(environ: Mapping[str, str], path: Path) -> list[str]:
    """The command that starts the user's editor, as a list of words without the file.

    Raises GptcliError if no editor is set or installed, or if the program in $VISUAL or $EDITOR is
    missing. The hint names the file `path`."""
    for variable in ("VISUAL", "EDITOR"):
        value = environ.get(variable, "").strip()
        if not value:
            continue
        try:
            words = shlex.split(value)
        except ValueError:
            words = [value]
        if shutil.which(words[0]) is None:
            raise GptcliError(
                f"there is no program `{words[0]}`, which ${variable} names", _HINT.format(path)
            )
        return words
    for name in _USUAL:
        if shutil.which(name):
            return [name]
    raise GptcliError(
        "no editor is set ($VISUAL, $EDITOR), and nano, vim and vi are not installed",
        _HINT.format(path),
    )


def open_in_editor(words: list[str], path: Path, line: int | None, stderr: int) -> str:
    """Run the editor until it ends. Returns a note for the user if the editor failed, else "".

    The editor needs a terminal. `stderr` is a file descriptor of this terminal."""
    at = [f"+{line}"] if line is not None and Path(words[0]).name in _TAKE_A_LINE else []
    try:
        done = subprocess.run([*words, *at, os.fspath(path)], stderr=stderr, check=False)
    except OSError as error:
        return f"{words[0]} cannot be started: {error.strerror or error}"
    if done.returncode:
        return f"{words[0]} ended with exit code {done.returncode}"
    return ""
