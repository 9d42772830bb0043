"""The loggers by name: their packages, where they write, and the command that shows a log."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

import gptcli
from gptcli.errors import GptcliError
from gptcli.files.paths import shell_word


@dataclass(frozen=True)
class Logger:
    """What the command line knows about a logger without the slow import of its package."""

    name: str
    package: str | None  # the package that must be installed; None: none is needed
    place: str  # the log's path in the run folder
    shown_by: Callable[[Path], str]  # the command for the log at a path; csv: only the path


LOGGERS = {
    logger.name: logger
    for logger in (
        Logger("csv", None, "metrics.csv", shell_word),
        Logger(
            "tensorboard",
            "tensorboard",
            "loggers/tensorboard",
            lambda path: f"tensorboard --logdir {shell_word(path)}",
        ),
        Logger(
            "trackio",
            "trackio",
            "loggers/trackio",
            lambda path: f"TRACKIO_DIR={shell_word(path)} trackio show",
        ),
        Logger(
            "wandb",
            "wandb",
            "loggers",  # wandb itself adds a folder `wandb`
            lambda path: f"wandb sync {shell_word(path)}/wandb/offline-run-*",
        ),
    )
}


def import_path() -> list[str]:
    """The folders from which packages are imported: sys.path without the current folder.

    A file such as `wandb.py` in the current folder is the user's own, and must not run. The current
    folder stays in the list if gptcli itself was imported from it."""
    own = Path(gptcli.__file__).resolve().parent.parent
    here = Path.cwd()
    return [
        place
        for place in sys.path
        if place and (Path(place).resolve() != here.resolve() or here.resolve() == own)
    ]


def refuse_missing_packages(names: Iterable[str], hint: str = "") -> None:
    """Raise GptcliError if the package of a logger is not installed. Imports nothing.

    `hint` is appended to the command that installs the package."""
    path = import_path()
    packages = [LOGGERS[name].package for name in names]
    missing = [name for name in packages if name is not None and not _is_in(path, name)]
    if missing:
        raise GptcliError(
            "the loggers of this run need packages that are not installed: " + ", ".join(missing),
            f"pip install {' '.join(missing)}{hint}",
        )


def _is_in(path: list[str], package: str) -> bool:
    """Whether a package is installed. A folder that has its name but no code is not a package."""
    found = PathFinder.find_spec(package, path)
    return found is not None and found.origin is not None
