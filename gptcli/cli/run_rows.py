"""The rows of `gptcli runs`, read from each run's config.yaml, metrics.jsonl and run.json."""

from __future__ import annotations

import glob
import json
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from gptcli.errors import GptcliError, cropped, nearest
from gptcli.files.bounded import read_lines
from gptcli.files.durable import is_locked
from gptcli.files.paths import expanded
from gptcli.training import run_folder
from gptcli.training.checkpoint import steps_of
from gptcli.training.run_times import time_in
from gptcli.view.runs_table import RunRow


def run_rows(folder: Path) -> list[RunRow]:
    """A row for each run under `folder`, oldest first.

    If `folder` is itself a run, returns only its row."""
    return [run_row(run) for run in run_folder.oldest_first(_runs_at(folder))]


def named_runs(words: Sequence[str]) -> list[Path]:
    """The runs that the user named in `words`, oldest first. No words: all under runs/.

    A word is a folder of runs, a run, the name of a run under runs/, or a glob pattern. A pattern
    with a slash matches paths, and any other pattern matches names under runs/. Raises GptcliError
    if a word is neither a folder nor a run, or if no run matches a pattern."""
    found: dict[Path, Path] = {}
    for word in words or ["runs"]:
        for run in _named(word):
            found.setdefault(run.resolve(), run)
    return run_folder.oldest_first(found.values())


def _named(word: str) -> list[Path]:
    folder = expanded(word)
    if os.path.isdir(folder) or folder == Path("runs"):  # noqa: PTH112
        return _runs_at(folder)
    if any(character in word for character in "*?["):
        pattern = str(folder) if "/" in word else str(Path("runs", word))
        runs = [path for path in map(Path, sorted(glob.glob(pattern))) if _is_run(path)]  # noqa: PTH207
        if not runs:
            raise GptcliError(f"no run matches `{cropped(word)}`", "`gptcli runs` lists all runs")
        return runs
    if "/" not in word and _is_run(Path("runs", word)):
        return [Path("runs", word)]
    known = [run.name for run in run_folder.list_runs(Path("runs"))]
    close = nearest(word, known)
    raise GptcliError(
        f"there is no folder {folder}" + (", and no run of this name under runs/" if known else ""),
        f"did you mean `{close}`?"
        if close
        else "name a folder that holds runs; the default is runs/",
    )


def _runs_at(folder: Path) -> list[Path]:
    return [folder] if _is_run(folder) else run_folder.list_runs(folder)


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() and (folder / "tokenizer.json").is_file()


def rows_of(runs: Sequence[Path], known: KnownRows | None = None) -> list[RunRow]:
    """The row of each run.

    If several runs have the same name, their rows show paths instead of names."""
    names = Counter(run.name for run in runs)
    rows = [run_row(run) if known is None else known.row(run) for run in runs]
    return [
        replace(row, name=str(run)) if names[run.name] > 1 else row
        for run, row in zip(runs, rows, strict=True)
    ]


class KnownRows:
    """Remembers the rows of runs, and reads a row again only if files of the run have changed."""

    def __init__(self) -> None:
        self._rows: dict[Path, tuple[Any, RunRow]] = {}

    def row(self, run: Path) -> RunRow:
        """The row of a run, as `run_row` returns it."""
        state = self._state(run)
        before = self._rows.get(run)
        if before is not None and state is not None and before[0] == state:
            return before[1]
        row = run_row(run)
        self._rows[run] = (state, row)
        return row

    @staticmethod
    def _state(run: Path) -> Any:
        """A value that changes whenever the row may have changed; None if .lock is unreadable."""
        state: list[Any] = []
        for name in ("config.yaml", "metrics.jsonl", "run.json", "checkpoints"):
            try:
                about = (run / name).stat()
                state.append((about.st_mtime_ns, about.st_size, about.st_ino))
            except OSError:
                state.append(None)
        try:
            return (*state, is_locked(run))
        except OSError:
            return None


def run_row(run: Path) -> RunRow:
    """The row of one run. Its status is "damaged" if a file of the run is damaged."""
    status = run_folder.read_status(run)
    last: dict[str, dict[str, Any]] = {}
    running = damaged = False
    try:
        last = _last_records(run)
        running = is_locked(run)
    except OSError:  # for example if a file is a pipe; the other rows must still be shown
        damaged = True
    step, evaluation = last.get("step", {}), last.get("eval", {})
    try:
        has_steps = bool(steps_of(run))
    except GptcliError:  # checkpoints/ is a broken link, or cannot be read
        has_steps, damaged = True, True
    if running:
        state = "running"
    else:
        # If run.json does not say how the run ended, the process was killed.
        state = str(status.get("stopped") or ("stopped" if has_steps else "not begun"))
    max_steps = text = None
    try:
        config = run_folder.read_config(run)
        train, text = config.train, config.data.described
        # --extend removes the time limit, so the recorded plan no longer counts.
        plan = last.get("plan", {}) if train.minutes is not None else {}
        max_steps = _integer(plan.get("max_steps")) or train.max_steps
    except GptcliError:
        damaged = True
    if "imported" in status:  # another program trained it
        max_steps = None
    if damaged:
        state = "damaged"
    ended = {} if running else status
    return RunRow(
        name=run.name or run.absolute().name,
        status=state,
        step=_integer(ended.get("steps")) or _integer(step.get("step")),
        max_steps=max_steps,
        train_loss=_number(ended.get("train_loss", step.get("loss"))),
        val_loss=_number(ended.get("val_loss", evaluation.get("val_loss"))),
        best_val_loss=_number(ended.get("best_val_loss", last.get("best", {}).get("val_loss"))),
        seconds=_number(ended.get("seconds")) or _number(step.get("seconds")),
        parameters=_integer(status.get("parameters")) or None,
        when=_local(time_in(ended, "ended_at")) or _last_written(run),
        text=text,
    )


def _number(value: object) -> float | None:
    """The value as a float; None if it is no number (a user can have edited the file)."""
    fits = isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)
    return float(value) if fits else None  # type: ignore[arg-type]


def _integer(value: object) -> int:
    """The value if it is an integer of at most 64 bits, else 0."""
    return value if isinstance(value, int) and abs(value) < 2**63 else 0


def _local(time: datetime | None) -> datetime | None:
    return time.replace(tzinfo=None) if time is not None else None


def _last_written(run: Path) -> datetime | None:
    files = [run / name for name in ("config.yaml", "metrics.jsonl", "run.json")]
    try:
        return datetime.fromtimestamp(max(f.stat().st_mtime for f in files if f.exists()))
    except (
        OverflowError,
        ValueError,
        OSError,
    ):  # the date is impossible, or the file is deleted
        return None


def _last_records(run: Path) -> dict[str, dict[str, Any]]:
    """Kind -> its last record in metrics.jsonl; "best" -> the record of the best evaluation.

    Raises OSError if metrics.jsonl is not a regular file inside the run folder."""
    found: dict[str, dict[str, Any]] = {}
    with suppress(FileNotFoundError, PermissionError):
        for line in read_lines(run / "metrics.jsonl", run):
            _keep_record(line, found)
    return found


def _keep_record(line: bytes, found: dict[str, dict[str, Any]]) -> None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return
    if not isinstance(record, dict):
        return
    kind, loss = record.get("kind"), _number(record.get("val_loss"))
    if kind not in ("step", "eval", "plan"):
        return
    found[kind] = record
    if kind == "eval" and loss is not None:
        best = found.get("best")
        if best is None or loss < best["val_loss"]:
            found["best"] = {**record, "val_loss": loss}
