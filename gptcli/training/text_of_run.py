"""Finds the text of a run by its content (SHA-256), also after the run or the text has moved.

config.yaml has the text's absolute path. run.json has the path relative to the run folder, and the
text's content key. If the text moves together with the run folder, the relative path still leads to
the text. The user can name a new place by data.source=NEW (or data.val_source=NEW). If the text
there is the same, gptcli writes the new place to config.yaml.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Set
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
from gptcli.files.paths import absolute, shell_word
from gptcli.files.remote import is_url
from gptcli.files.shipped import shipped_texts
from gptcli.training import run_folder

T = TypeVar("T")

TEXT_KEYS = frozenset({"data.source", "data.val_source"})
"""The keys that name a text. Texts can move, so these keys can change."""

_WHAT = {"data.source": "text", "data.val_source": "validation text"}


def absolute_texts(data: DataConfig) -> DataConfig:
    """The section `data` with absolute paths, so that a resume from another folder finds the texts.

    The names of shipped texts, URLs and standard input stay as they are."""
    return _each_text(data, _absolute)


def _absolute(name: str) -> str:
    if name == STDIN or name in shipped_texts() or is_url(name):
        return name
    return shown(absolute(path_of(name)).as_posix())


def texts_exist(names: list[str]) -> bool:
    """Whether each name is standard input, a URL, a shipped text, or an existing file or folder."""
    return _first_missing(names) is None


def named_texts(stored: DataConfig, data: DataConfig) -> frozenset[str]:
    """The keys in TEXT_KEYS that have different values in `stored` and `data`."""
    return frozenset(
        key
        for key in TEXT_KEYS
        if getattr(stored, key.removeprefix("data.")) != getattr(data, key.removeprefix("data."))
    )


def text_record(data: DataConfig, run: Path, content_key: str) -> dict[str, Any]:
    """What run.json records about the texts of a run, under the key `text`."""

    def relative(name: str) -> str | None:
        if name in shipped_texts():
            return name
        if is_url(name):
            return None
        with suppress(ValueError):  # on Windows, no relative path leads to another drive
            return shown(Path(os.path.relpath(path_of(name), absolute(run))).as_posix())
        return None

    record: dict[str, Any] = {"sha256": content_key}
    record["relative_to_run"] = [relative(name) for name in data.sources]
    if data.val_sources:
        record["val_relative_to_run"] = [relative(name) for name in data.val_sources]
    return record


def content_key_of(run: Path, meta: dict[str, Any] | None) -> str | None:
    """The content key of the run's text; None if it is not recorded.

    It is in `meta`, a checkpoint's meta.json. If `meta` is None, it is in run.json."""
    found = meta.get("data") if meta is not None else _recorded(run).get("sha256")
    return found if isinstance(found, str) else None


def with_moved_texts(run: Path, data: DataConfig, named: Set[str] = frozenset()) -> DataConfig:
    """The section `data`, with new paths for missing texts that moved together with the run.

    The paths of the keys in `named` stay as they are."""
    moved = _moved(run, data, named)
    found: dict[str, Any] = {}
    if not texts_exist(data.sources) and texts_exist(moved.sources):
        found["source"] = moved.source
    if not texts_exist(data.val_sources) and texts_exist(moved.val_sources):
        found["val_source"] = moved.val_source
    return data.model_copy(update=found)


@dataclass(frozen=True)
class WantedText:
    """Describes the text that a command needs: its run, its content key, and words for messages."""

    run: Path
    content_key: str | None  # None: the run does not record it
    named: Set[str]  # the keys of TEXT_KEYS that the command line sets
    command: str  # such as `gptcli eval RUN`; the hint adds data.source=PATH
    other_text: str  # the hint about how to use another text

    def open(
        self, config: Config, open_text: Callable[[Config, str | None], T]
    ) -> tuple[T, Config]:
        """Open the text at the first place that has it; return `open_text`'s result and the config.

        `open_text(config, content_key)` must raise OtherTextError if the text has another content
        key. Raises GptcliError if no place has the text."""
        data = with_moved_texts(self.run, config.data, self.named)
        moved = _moved(self.run, config.data, self.named)
        places, shipped = [data, *([moved] if moved != data else [])], []
        is_named = "data.source" in self.named
        if not is_named and self.content_key is not None and isinstance(data.source, str):
            shipped = [
                data.model_copy(update={"source": name})
                for name in shipped_texts()
                if name not in (data.source, moved.source)
            ]
        problem: GptcliError | None = None
        for place in [*places, *shipped]:
            if not texts_exist([*place.sources, *place.val_sources]):
                continue
            found = config.model_copy(update={"data": place})
            try:
                return open_text(found, self.content_key), found
            except GptcliError as error:
                if place not in shipped:
                    problem = problem or error
        if isinstance(problem, OtherTextError):
            raise self._other_text(config, problem)
        raise problem or self._missing(data)

    def _other_text(self, config: Config, problem: OtherTextError) -> GptcliError:
        name = "standard input" if config.data.source == STDIN else config.data.name
        val = ", ".join(config.data.val_sources)
        if problem.line_ends is not None:
            what, hint = problem.line_ends
            changed = f"the text of {name} has changed since the run {self.run} began, but {what}"
            return GptcliError(changed, hint)
        if "data.source" in self.named:
            what = f"{name} is not the text that {self.run} was trained on"
            if val:
                what += f", or {val} is not its validation text"
            return GptcliError(what, self.other_text)
        if self.named:
            return GptcliError(
                f"{val} is not the validation text of {self.run}, or {name} has changed",
                self.other_text,
            )
        return GptcliError(
            f"the text of {name}{f' or of {val}' if val else ''} has changed since the run "
            f"{self.run} began",
            "if you still have the old text, name its place: "
            f"{self.command} {_places('data.source', config.data.sources, all_of_them=True)}"
            f"{' data.val_source=PATH' if val else ''}; {self.other_text}",
        )

    def _missing(self, data: DataConfig) -> GptcliError:
        if "imported" in run_folder.read_status(self.run):
            return GptcliError(
                f"{self.run} is an imported model, and the text that it was trained on is not here",
                self.other_text,
            )
        texts = {"data.source": data.sources, "data.val_source": data.val_sources}
        lost = {key: name for key in texts if (name := _first_missing(texts[key])) is not None}
        for key, name in lost.items():
            if key in self.named:
                return GptcliError(
                    f"no shipped text, file or folder is named `{name}`",
                    f"give the path of the {_WHAT[key]} that the run was trained with",
                )
        key, name = next(iter(lost.items()))
        places = " ".join(
            _places(key, texts[key])
            if key in lost
            else shell_word(f"{key}={json.dumps(texts[key])}")
            for key in texts
            if key in lost or key in self.named
        )
        return GptcliError(
            f"the {_WHAT[key]} of {self.run} is missing: there is no file or folder {name}",
            f"name its new place: {self.command} {places}; {self.other_text}",
        )


def _places(key: str, names: list[str], *, all_of_them: bool = False) -> str:
    """The argument `key`=PATH, with which the user can tell gptcli where the texts are now.

    For several texts it is a list, with PATH for each missing text. If `all_of_them` is true, it
    has PATH for every text."""
    if len(names) == 1:
        return f"{key}=PATH"
    here = [
        "PATH" if all_of_them or _first_missing([name]) is not None else json.dumps(name)
        for name in names
    ]
    return shell_word(f"{key}=[{', '.join(here)}]")


def remember_source(
    run: Path, stored: Config, data: DataConfig, *, is_locked: bool = False
) -> str | None:
    """Write the new place of a run's text to config.yaml; return a note for the user, or None.

    `is_locked` is true if this process already holds the lock of the run folder. Does not change
    the time of config.yaml, because this time can decide which run is the newest."""
    if STDIN in (*data.sources, *data.val_sources):  # standard input cannot be read again
        return None
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
        return f"cannot write the new place of the text to {path}; name the text again next time"
    names = [places.name] if places.source != stored.data.source else []
    if places.val_source != stored.data.val_source:
        names += places.val_sources
    return f"{path} now names the text {', '.join(names)}"


def _first_missing(names: list[str]) -> str | None:
    for name in names:
        try:
            if name != STDIN and name not in shipped_texts() and not is_url(name):
                path_of(name).lstat()
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return name
        except (OSError, GptcliError):  # the file may exist; opening it reports the error
            pass
    return None


def _moved(run: Path, data: DataConfig, named: Set[str]) -> DataConfig:
    """The section `data` with new paths, as if the texts had moved together with the run folder.

    The paths of the keys in `named` stay as they are."""
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
    places = {"source": source, "val_source": val_source}
    return data.model_copy(
        update={key: place for key, place in places.items() if f"data.{key}" not in named}
    )


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
