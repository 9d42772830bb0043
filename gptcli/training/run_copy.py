"""Copies a run folder to a URL while it trains (`--copy-to URL`), and fetches it from there.

The copy has the run's files in the same places, without the files of loggers. A checkpoint's
meta.json is uploaded last, so a checkpoint with a meta.json is complete. A thread uploads, so a
slow network does not delay steps, and a network error does not end the run. `fetch_run` does not
trust the URL: it fetches only file names that gptcli knows, and checks the tensor files against the
sizes and SHA-256 in meta.json.

First reading: skip this file."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from gptcli.corpus.standard_input import KEPT_NAMES
from gptcli.errors import GptcliError
from gptcli.files.bounded import MAX_JSON_BYTES, MAX_LINES_BYTES, read_bounded
from gptcli.files.durable import fsync_folder, sha256_file
from gptcli.files.remote import RemoteFolder, joined, reason
from gptcli.training.checkpoint_folders import FOLDER_NAME, folder_of, steps_of
from gptcli.training.meta_file import PARTS, names_of, parse_meta

_FIRST = ("config.yaml", "tokenizer.json")  # a folder without these files is not a run
_JOURNAL = ("metrics.jsonl", "samples.txt", "attention.jsonl", "run.json")
_BEST = "checkpoints/best"
FINISH_S = 600.0
"""The largest number of seconds for which a run waits for its copy when it ends."""
_INCOMPLETE = "not complete: it holds an earlier state of the run"


class RunCopy:
    """Copies a run folder to a URL in a thread, after each checkpoint. Only the leader copies."""

    def __init__(self, run: Path, url: str) -> None:
        """Raise GptcliError if the URL is the run folder or a place inside it."""
        refuse_own_folder(run, url)
        self._run, self._there = run, RemoteFolder(url)
        self._metas: dict[int, bytes] = {}  # step -> its meta.json, as uploaded
        self._changed = threading.Condition()  # guards the fields below
        # The number of calls of `saved`, and the number of the newest call whose upload has ended.
        self._asked = self._done = 0
        self._ended = False
        self._problems: list[str] = []
        self._thread: threading.Thread | None = None

    def refuse_other_run(self) -> None:
        """Raise GptcliError if the URL holds another run, or a newer state of this run."""
        if self._there.size("config.yaml") is None:
            return
        first = (
            _first_line(self._there.read("metrics.jsonl", 0, 1 << 16))
            if (self._there.size("metrics.jsonl"))
            else b""
        )
        here = b""
        with suppress(OSError):
            here = _first_line((self._run / "metrics.jsonl").read_bytes()[: 1 << 16])
        if first and here and first != here:
            raise GptcliError(
                f"{self._there.url} holds another run than {self._run}",
                "name another URL with --copy-to",
            )
        newest = max(complete_steps(self._there), default=-1)
        if newest > max(steps_of(self._run), default=-1) and not self._is_its_journal():
            raise GptcliError(
                f"{self._there.url} holds step {newest:,}, which is newer than {self._run}",
                f"move {self._run} away: --resume then fetches the newer state",
            )

    def _is_its_journal(self) -> bool:
        """Whether the local run was just fetched from the URL.

        A fetch skips damaged checkpoints. So if the run was just fetched, all newer checkpoints at
        the URL are damaged."""
        if not steps_of(self._run):
            return False
        try:
            here = read_bounded(self._run / "run.json", MAX_JSON_BYTES, self._run)
            return here == self._there.read_small("run.json", MAX_JSON_BYTES)
        except (OSError, GptcliError):
            return False

    def saved(self) -> None:
        """Begin to upload a checkpoint that is on the disk, without waiting for the upload."""
        with self._changed:
            self._asked += 1
            self._ended = False
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="run copy", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def problems(self) -> list[str]:
        """One warning if the newest upload failed and no earlier call has returned it, else []."""
        again = f"{self._safe}. The training continues, and copies again after the next checkpoint"
        return [f"WARNING: {why}. {again}" for why in self._new_problems()]

    def finish(self, should_stop: Callable[[], bool], seconds: float) -> list[str]:
        """Upload what is not uploaded yet; return warnings.

        Stops after `seconds`, or when `should_stop()` is true."""
        self._new_problems()
        self.saved()
        goal, limit = self._asked, time.monotonic() + seconds
        while not self._is_met(goal):
            if should_stop() or time.monotonic() > limit:
                return [f"WARNING: {self._there.url} is {_INCOMPLETE}. {self._safe}"]
        return [
            f"WARNING: {why}. {self._there.url} is {_INCOMPLETE}. {self._safe}"
            for why in self._new_problems()
        ]

    def _is_met(self, goal: int) -> bool:
        """Wait at most 0.1 s for the end of an upload that began after `goal` calls of `saved`.

        Returns whether such an upload has ended, perhaps with an error. If so, ends the thread.
        An upload that began before the last of these calls does not count, because it can lack the
        newest changes."""
        with self._changed:
            met = self._changed.wait_for(lambda: self._done >= goal, 0.1)
            if met:
                self._ended = True
                self._changed.notify_all()
        return met

    @property
    def _safe(self) -> str:
        return f"The run itself is safe in {self._run}"

    def _new_problems(self) -> list[str]:
        with self._changed:
            found, self._problems = self._problems, []
        return found

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._asked > self._done)
                if self._asked == self._done:
                    self._thread = None
                    return
                number = self._asked
            why = ""
            try:
                self._mirror()
            except GptcliError as error:
                why = error.message
            except Exception as error:  # from the disk, or from a protocol's package
                why = f"the copy to {self._there.url} failed: {reason(error)}"
            with self._changed:
                self._problems = [why] if why else []
                self._done = number
                self._changed.notify_all()

    def _mirror(self) -> None:
        """Upload what the URL lacks; delete checkpoints at the URL that the run has deleted."""
        there = self._there
        for name in _FIRST:
            there.upload(str(self._run / name), name)
        for name in KEPT_NAMES:  # the text of standard input, which never changes
            size = (self._run / name).stat().st_size if (self._run / name).is_file() else None
            if size is not None and there.size(name) != size:
                there.upload(str(self._run / name), name)
        steps = steps_of(self._run)
        # Upload the newest checkpoint first. Skip a checkpoint that the run deletes meanwhile.
        for step in reversed(steps):
            with suppress(FileNotFoundError):
                self._upload_checkpoint(step)
        if (self._run / _BEST).is_file():
            there.upload(str(self._run / _BEST), _BEST)
        for name in _JOURNAL:
            path = self._run / name
            if path.is_file():
                there.upload(str(path), name)
        kept = {folder_of(self._run, step).name for step in steps_of(self._run)}
        for name in there.names("checkpoints"):
            if FOLDER_NAME.fullmatch(name) and name not in kept:
                there.delete(f"checkpoints/{name}/meta.json")
                there.delete(f"checkpoints/{name}")

    def _upload_checkpoint(self, step: int) -> None:
        folder = folder_of(self._run, step)
        meta = read_bounded(folder / "meta.json", MAX_JSON_BYTES, folder)
        if self._metas.get(step) == meta:
            return
        name = f"checkpoints/{folder.name}"
        try:
            files = parse_meta(meta, step)["files"]
        except ValueError:  # damaged
            return
        before = self._metas.get(step)
        known = json.loads(before)["files"] if before is not None else self._files_there(name)
        if known != files:
            # Unchanged files stay at the URL. For example, if the shards of the weights were
            # gathered into one file, the files of the optimizer's state stay.
            missing = [file for file in _tensor_files(files) if known.get(file) != files[file]]
            self._there.delete(f"{name}/meta.json")
            for file in missing:
                self._there.upload(str(folder / file), f"{name}/{file}")
        self._there.write(f"{name}/meta.json", meta)
        self._metas[step] = meta
        if known != files:  # delete shards that the run has gathered since the previous upload
            for file in set(self._there.names(name)) - files.keys() - {"meta.json"}:
                self._there.delete(f"{name}/{file}")

    def _files_there(self, name: str) -> dict[str, Any]:
        """The checkpoint files that `name`/meta.json at the URL lists; {} if it cannot be read."""
        path = f"{name}/meta.json"
        if self._there.size(path) is None:
            return {}
        with suppress(ValueError, KeyError, TypeError):
            found = json.loads(self._there.read_small(path, MAX_JSON_BYTES))["files"]
            if isinstance(found, dict):
                return found
        return {}


def _tensor_files(files: dict[str, Any]) -> list[str]:
    """The names of the tensor files of a checkpoint, from the index in its meta.json."""
    return [name for part in PARTS for name in names_of(files, part)]


def refuse_own_folder(run: Path, url: str) -> None:
    """Raise GptcliError if a `file:` URL has no path, or names the run folder or a place in it."""
    if not url.lower().startswith("file:"):
        return
    path = url.partition(":")[2].lstrip("/")
    if not path:
        raise GptcliError(f"{url} names no folder", "write file:///path/of/the/copy")
    place, here = Path("/", path).resolve(), run.resolve()
    if place == here or here in place.parents:
        raise GptcliError(f"{url} is in the run folder {run}", "name another place with --copy-to")


def refuse_used(url: str) -> None:
    """Raise GptcliError if a URL holds a run already, so that a new run cannot be copied to it."""
    there = RemoteFolder(url)
    if there.size("config.yaml") is not None:
        raise GptcliError(
            f"{there.url} holds a run already",
            "continue it: gptcli train --resume --out RUN --copy-to URL; or name another URL",
        )


def complete_steps(there: RemoteFolder) -> list[int]:
    """The steps whose checkpoint at a URL has a meta.json, in rising order."""
    found = []
    for name in there.names("checkpoints"):
        match = FOLDER_NAME.fullmatch(name)
        if match and there.size(f"checkpoints/{name}/meta.json") is not None:
            found.append(int(match[1]))
    return sorted(found)


def fetch_run(url: str, run: Path) -> int | None:
    """Fetch the run at a URL into the new folder `run`; return its newest step.

    Fetches the newest valid checkpoint and the best one. Returns None if the run has no checkpoint.
    The folder appears when it is complete. Raises GptcliError if the URL holds no run, or if every
    checkpoint is damaged."""
    there = RemoteFolder(url)
    if there.size("config.yaml") is None:
        raise GptcliError(f"{there.url} holds no run", "check the URL that --copy-to named")
    run.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=".", suffix=".tmp", dir=run.parent))
    try:
        for name in (*_FIRST, *_JOURNAL):
            size = there.size(name)
            if size is not None and size <= MAX_LINES_BYTES:
                there.download(name, str(place / name))
        for name in KEPT_NAMES:
            if there.size(name) is not None:
                there.download(name, str(place / name))
        newest = _fetch_checkpoints(there, place)
        with suppress(OSError):
            run.rmdir()  # if it is an empty folder
        place.rename(run)
        fsync_folder(run.parent)
        return newest
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def _fetch_checkpoints(there: RemoteFolder, place: Path) -> int | None:
    steps = complete_steps(there)
    newest = next((step for step in reversed(steps) if _fetch_checkpoint(there, step, place)), None)
    if newest is None and steps:
        raise GptcliError(
            f"{there.url}: every checkpoint is damaged", "is there another copy of the run?",
            exit_code=1,
        )  # fmt: skip
    if there.size(_BEST) is not None:
        best = there.read(_BEST, 0, 100)
        match = FOLDER_NAME.fullmatch(best.decode("ascii", "replace").strip())
        if match and (
            int(match[1]) == newest
            or (int(match[1]) in steps and _fetch_checkpoint(there, int(match[1]), place))
        ):
            (place / _BEST).write_bytes(best)
    return newest


def _fetch_checkpoint(there: RemoteFolder, step: int, place: Path) -> bool:
    """Fetch a checkpoint into the folder `place`. Returns False if the remote one is damaged."""
    folder = folder_of(place, step)
    name = f"checkpoints/{folder.name}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        content = there.read_small(f"{name}/meta.json", MAX_JSON_BYTES)
        files = parse_meta(content, step)["files"]
        for file in _tensor_files(files):
            if there.size(f"{name}/{file}") != files[file]["size"]:
                raise ValueError(f"{joined(there.url, name)} has another size")
            there.download(f"{name}/{file}", str(folder / file))
            if sha256_file(folder / file) != files[file]["sha256"]:
                raise ValueError(f"{joined(there.url, name)} is damaged")
        (folder / "meta.json").write_bytes(content)
    except ValueError:
        shutil.rmtree(folder, ignore_errors=True)
        return False
    return True


def _first_line(content: bytes) -> bytes:
    return content.partition(b"\n")[0]
