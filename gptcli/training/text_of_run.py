"""Finds the text of a run by its content (SHA-256), also after the run or the text has moved.

config.yaml names the text by its absolute path. run.json also has its path relative to the run
folder, and its content key. After a project has moved as a whole, the relative path still leads to
the text. The user can name a new place as data.source=NEW. It is remembered if the text is the
same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gptcli.config import Config
from gptcli.corpus import OtherTextError
from gptcli.errors import GptcliError
from gptcli.files.durable import folder_lock
from gptcli.files.paths import absolute, expanded
from gptcli.files.shipped import shipped_texts
from gptcli.training import run_folder

Sources = Any  # data.source: a text, or a list of texts
T = TypeVar("T")


def absolute_source(source: Sources) -> Sources:
    """`data.source` as an absolute path, so that a resume from another folder finds the text.

    The name of a shipped text stays as it is."""
    return _each(
        source, lambda name: name if name in shipped_texts() else absolute(name).as_posix()
    )


def relative_source(source: Sources, run: Path) -> Sources:
    """An absolute `data.source` relative to the run folder; a shipped text's name stays.

    None stands for a text on another drive."""

    def relative(name: str) -> str | None:
        if name in shipped_texts():
            return name
        with suppress(ValueError):  # Windows: no relative path leads to another drive
            return Path(os.path.relpath(name, absolute(run))).as_posix()
        return None

    return _each(source, relative)


def text_record(source: Sources, run: Path, content_key: str) -> dict[str, Any]:
    """What run.json records about the text of a run, under the key `text`."""
    return {"sha256": content_key, "relative_to_run": relative_source(source, run)}


def content_key_of(run: Path, meta: dict[str, Any] | None) -> str | None:
    """The content key of the run's text: from a checkpoint's meta.json, else from run.json."""
    found = meta.get("data") if meta is not None else _recorded(run).get("sha256")
    return found if isinstance(found, str) else None


def source_after_move(run: Path, config: Config) -> Config:
    """The config with a `data.source` that exists, if the run moved together with its text.

    Returns the config unchanged if its text is where it was, or is nowhere to be found."""
    for candidate in _candidates(run, config.data.source):
        if exists(candidate):
            return with_source(config, candidate)
    return config


@dataclass(frozen=True)
class WantedText:
    """The text that a command needs: the run, its text's content key, and the user's words."""

    run: Path
    content_key: str | None  # None: the run has no checkpoint that records it
    named: bool  # the user gave data.source=NEW on the command line
    command: str  # such as `gptcli eval RUN`: the hint adds data.source=PATH
    other_text: str  # what to do with another text

    def open(
        self, config: Config, open_text: Callable[[Config, str | None], T]
    ) -> tuple[T, Config]:
        """What `open_text` returns for the first place that has the text, and the config with it.

        `open_text(config, content_key)` raises OtherTextError if the text there is another one.
        Raises GptcliError if no place has the text."""
        places, shipped = [config.data.source], []
        if not self.named:
            places += _candidates(self.run, config.data.source)
            if self.content_key is not None and isinstance(config.data.source, str):
                shipped = [name for name in shipped_texts() if name not in places]
        problem: GptcliError | None = None
        for place in [*places, *shipped]:
            if not exists(place):
                continue
            found = with_source(config, place)
            try:
                return open_text(found, self.content_key), found
            except GptcliError as error:
                if place not in shipped:
                    problem = problem or error
        if isinstance(problem, OtherTextError):
            raise self._other_text(config)
        raise problem or self._missing(config)

    def _other_text(self, config: Config) -> GptcliError:
        name = _shown(config.data.source)
        if self.named:
            return GptcliError(
                f"{name} is not the text that {self.run} was trained on", self.other_text
            )
        return GptcliError(
            f"the text of {name} has changed since the run {self.run}",
            "if the old text is still somewhere, name it: "
            f"{self.command} data.source=PATH; {self.other_text}",
        )

    def _missing(self, config: Config) -> GptcliError:
        name = _shown(_first_missing(config.data.source))
        if self.named:
            return GptcliError(
                f"no shipped text, file or folder is named `{name}`",
                "give the path of the text that the run was trained on",
            )
        return GptcliError(
            f"the text of {self.run} is missing: there is no file or folder {name}",
            f"name its new place: {self.command} data.source=PATH; {self.other_text}",
        )


def remember_source(
    run: Path, stored: Config, source: Sources, *, is_locked: bool = False
) -> str | None:
    """Write the new place of a run's text to its config.yaml. Returns a note for the user.

    `is_locked` says that this process holds the lock of the run folder already. The run stays as
    new or old as it was, because other commands use the newest run by default."""
    place = absolute_source(source)
    if place == stored.data.source:
        return None
    path = run / "config.yaml"
    try:
        with nullcontext() if is_locked else folder_lock(run):
            times = path.stat()
            run_folder.write_config(run, with_source(stored, place))
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            status = run_folder.read_status(run)
            if isinstance(key := _recorded(run).get("sha256"), str):
                text = text_record(place, run, key)
                run_folder.write_status(run, {**status, "text": text})
    except (OSError, GptcliError):
        return f"the new place of the text cannot be written to {path}; name it again next time"
    return f"{path} now names the text {_shown(place)}"


def with_source(config: Config, source: Sources) -> Config:
    """The config with another `data.source`."""
    return config.model_copy(update={"data": config.data.model_copy(update={"source": source})})


def exists(source: Sources) -> bool:
    """Whether there is a shipped text, a file or a folder of each name."""
    return _first_missing(source) is None


def _first_missing(source: Sources) -> str | None:
    for name in source if isinstance(source, list) else [source]:
        try:
            if name not in shipped_texts():
                expanded(name).lstat()
        except (FileNotFoundError, NotADirectoryError, ValueError, GptcliError):
            return str(name)
        except OSError:  # it may exist; opening it says what is wrong
            pass
    return None


def _candidates(run: Path, source: Sources) -> Iterator[Sources]:
    """Other places where the run's text can be: relative to where the run folder is now."""
    recorded = _recorded(run).get("relative_to_run")
    relative = recorded if isinstance(recorded, list) else [recorded]
    names = source if isinstance(source, list) else [source]
    if len(relative) != len(names):
        return
    places: list[str] = []
    for name, path in zip(names, relative, strict=True):
        if name in shipped_texts() or not isinstance(path, str):
            places.append(name)
        else:
            places.append(Path(os.path.normpath(absolute(run) / path)).as_posix())
    if places != names:
        yield places if isinstance(source, list) else places[0]


def _recorded(run: Path) -> dict[str, Any]:
    found = run_folder.read_status(run).get("text")
    return found if isinstance(found, dict) else {}


def _each(source: Sources, change: Callable[[str], str | None]) -> Sources:
    return [change(name) for name in source] if isinstance(source, list) else change(source)


def _shown(source: Sources) -> str:
    return ", ".join(source) if isinstance(source, list) else str(source)
