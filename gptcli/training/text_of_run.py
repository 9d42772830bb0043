"""Finds the text of a run by its content (SHA-256), also after the run or the text has moved.

config.yaml names the text by its absolute path. run.json also has its path relative to the run
folder, and its content key. After a project has moved as a whole, the relative path still leads to
the text. The user can name a new place as data.source=NEW. It is remembered if the text is the
same.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gptcli.config import Config, DataConfig
from gptcli.corpus import OtherTextError
from gptcli.corpus.standard_input import STDIN
from gptcli.errors import GptcliError
from gptcli.files.durable import folder_lock
from gptcli.files.names import path_of, shown
from gptcli.files.paths import absolute
from gptcli.files.shipped import shipped_texts
from gptcli.training import run_folder

T = TypeVar("T")


def absolute_texts(data: DataConfig) -> DataConfig:
    """The section with absolute paths, so that a resume from another folder finds the texts.

    The names of shipped texts and of standard input stay as they are."""
    return _each_text(data, _absolute)


def _absolute(name: str) -> str:
    if name == STDIN or name in shipped_texts():
        return name
    return shown(absolute(path_of(name)).as_posix())


def text_record(data: DataConfig, run: Path, content_key: str) -> dict[str, Any]:
    """What run.json records about the texts of a run, under the key `text`."""

    def relative(name: str) -> str | None:
        if name in shipped_texts():
            return name
        with suppress(ValueError):  # Windows: no relative path leads to another drive
            return shown(Path(os.path.relpath(path_of(name), absolute(run))).as_posix())
        return None

    record: dict[str, Any] = {"sha256": content_key}
    record["relative_to_run"] = [relative(name) for name in data.sources]
    if data.val_sources:
        record["val_relative_to_run"] = [relative(name) for name in data.val_sources]
    return record


def content_key_of(run: Path, meta: dict[str, Any] | None) -> str | None:
    """The content key of the run's text: from a checkpoint's meta.json, else from run.json."""
    found = meta.get("data") if meta is not None else _recorded(run).get("sha256")
    return found if isinstance(found, str) else None


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
        data = config.data
        moved = _moved(self.run, data)
        if not _exists(data.val_sources):
            data = data.model_copy(update={"val_source": moved.val_source})
        places, shipped = [data], []
        if not self.named:
            places += [moved] if moved != data else []
            if self.content_key is not None and isinstance(data.source, str):
                shipped = [
                    data.model_copy(update={"source": name})
                    for name in shipped_texts()
                    if name not in (data.source, moved.source)
                ]
        problem: GptcliError | None = None
        for place in [*places, *shipped]:
            if not _exists([*place.sources, *place.val_sources]):
                continue
            found = config.model_copy(update={"data": place})
            try:
                return open_text(found, self.content_key), found
            except GptcliError as error:
                if place not in shipped:
                    problem = problem or error
        if isinstance(problem, OtherTextError):
            raise self._other_text(config, problem)
        raise problem or self._missing(config)

    def _other_text(self, config: Config, problem: OtherTextError) -> GptcliError:
        name = config.data.name
        if problem.line_ends is not None:
            what, hint = problem.line_ends
            changed = f"the text of {name} has changed since the run {self.run} began, but {what}"
            return GptcliError(changed, hint)
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
        name = _first_missing([*config.data.sources, *config.data.val_sources])
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
    run: Path, stored: Config, data: DataConfig, *, is_locked: bool = False
) -> str | None:
    """Write the new place of a run's text to its config.yaml. Returns a note for the user.

    `is_locked` says that this process holds the lock of the run folder already. The run stays as
    new or old as it was, because other commands use the newest run by default."""
    places = absolute_texts(data)
    changed = {"source": places.source, "val_source": places.val_source}
    config = stored.model_copy(update={"data": stored.data.model_copy(update=changed)})
    if config == stored:
        return None
    path = run / "config.yaml"
    try:
        with nullcontext() if is_locked else folder_lock(run):
            times = path.stat()
            run_folder.write_config(run, config)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            status = run_folder.read_status(run)
            if isinstance(key := _recorded(run).get("sha256"), str):
                text = text_record(places, run, key)
                run_folder.write_status(run, {**status, "text": text})
    except (OSError, GptcliError):
        return f"the new place of the text cannot be written to {path}; name it again next time"
    return f"{path} now names the text {places.name}"


def _exists(names: list[str]) -> bool:
    """Whether there is a shipped text, a file or a folder of each name."""
    return _first_missing(names) is None


def _first_missing(names: list[str]) -> str | None:
    for name in names:
        try:
            if name not in shipped_texts():
                path_of(name).lstat()
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return name
        except (OSError, GptcliError):  # it may exist; opening it says what is wrong
            pass
    return None


def _moved(run: Path, data: DataConfig) -> DataConfig:
    """The section with each text where it is if it moved together with the run folder."""
    record = _recorded(run)

    def moved(names: list[str], key: str) -> list[str]:
        relative = record.get(key)
        relative = relative if isinstance(relative, list) else [relative]
        if len(relative) != len(names):
            return names
        return [
            name
            if name in shipped_texts() or not isinstance(path, str)
            else shown(os.path.normpath(absolute(run) / path_of(path)))
            for name, path in zip(names, relative, strict=True)
        ]

    sources = moved(data.sources, "relative_to_run")
    val_sources = moved(data.val_sources, "val_relative_to_run")
    source = sources if isinstance(data.source, list) else sources[0]
    val_source = val_sources if isinstance(data.val_source, list) else next(iter(val_sources), None)
    return data.model_copy(update={"source": source, "val_source": val_source})


def _recorded(run: Path) -> dict[str, Any]:
    found = run_folder.read_status(run).get("text")
    return found if isinstance(found, dict) else {}


def _each_text(data: DataConfig, change: Callable[[str], str]) -> DataConfig:
    def changed(source: str | list[str] | None) -> str | list[str] | None:
        if isinstance(source, list):
            return [change(name) for name in source]
        return None if source is None else change(source)

    update = {"source": changed(data.source), "val_source": changed(data.val_source)}
    return data.model_copy(update=update)
