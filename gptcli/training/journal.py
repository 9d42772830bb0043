"""Appends to metrics.jsonl, samples.txt and attention.jsonl; trims them when a run resumes."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from gptcli.errors import GptcliError
from gptcli.files import durable
from gptcli.files.bounded import LinkOutError, read_lines
from gptcli.plurals import counted

_SAMPLE_HEADING = "=== step {step} ===\n"


class Journal:
    """Writes metrics.jsonl (one JSON object per line) and samples.txt (what the model wrote).

    Also writes attention.jsonl, with a line for each evaluation, if the run evaluates.

    After a resume, every line is complete and appears once. If the disk refuses a line, the line
    waits in memory, and the journal writes it before the next line.

    `resumed_from` is the step from which a run resumes; None for a new run. `evaluated_at` and
    `sampled_at` are the steps of the last evaluation and the last sample that the checkpoint
    records. The constructor deletes all later steps, evaluations and samples, because the run
    repeats them.

    Raises GptcliError (exit code 1) if a file is a link, a pipe, a folder or too large."""

    notes: list[str]
    """Notes for the user: what is missing or damaged in metrics.jsonl."""

    def __init__(
        self,
        run: Path,
        resumed_from: int | None,
        evaluated_at: int | None,
        sampled_at: int | None,
    ) -> None:
        metrics, samples = run / "metrics.jsonl", run / "samples.txt"
        self.notes = []
        with _open_errors(metrics):
            if resumed_from is None:
                metrics.unlink(missing_ok=True)
            elif _is_there(metrics):
                keep = _LinesToKeep(resumed_from, -1 if evaluated_at is None else evaluated_at)
                durable.write_atomically(metrics, filter(keep, read_lines(metrics, run)))
                self.notes += keep.notes(metrics)
            elif resumed_from > 0:
                self.notes.append(f"{metrics} is missing; a new file begins at step {resumed_from}")
            self._metrics = durable.LineWriter(metrics)
        try:
            with _open_errors(samples):
                trim_samples(samples, sampled_at or 0)
                self._samples = durable.LineWriter(samples)
        except BaseException:
            self._metrics.close()
            raise
        self._run = run
        self._inside: durable.LineWriter | None = None
        self._keep_inside_to(
            None if resumed_from is None else -1 if evaluated_at is None else evaluated_at
        )
        self._failing: set[durable.LineWriter] = set()

    def record(self, values: dict[str, Any]) -> GptcliError | None:
        """Append an object to metrics.jsonl. Returns the disk's error (see _append)."""
        return self._append(self._metrics, json.dumps(values) + "\n")

    def sample(self, step: int, prompt: str, text: str) -> GptcliError | None:
        """Append a sample to samples.txt. Returns the disk's error (see _append)."""
        heading = _SAMPLE_HEADING.format(step=step)
        return self._append(self._samples, f"{heading}{prompt}{text}\n\n")

    def inside(self, values: dict[str, Any]) -> GptcliError | None:
        """Append an object to attention.jsonl. Returns the disk's error (see _append)."""
        if self._inside is None:
            path = self._run / "attention.jsonl"
            with _open_errors(path):
                self._inside = durable.LineWriter(path)
        return self._append(self._inside, json.dumps(values) + "\n")

    def _keep_inside_to(self, step: int | None) -> None:
        """Delete the lines of attention.jsonl after `step`, or the file if `step` is None."""
        path = self._run / "attention.jsonl"
        if not _is_there(path):
            return
        with _open_errors(path):
            if step is None:
                path.unlink()
                return
            durable.write_atomically(path, filter(_up_to(step), read_lines(path, self._run)))

    def _append(self, lines: durable.LineWriter, text: str) -> GptcliError | None:
        """Append `text`; return the disk's error or None.

        If several calls in a row fail for the same file, only the first returns an error."""
        error = lines.write(text)
        known = lines in self._failing
        (self._failing.discard if error is None else self._failing.add)(lines)
        return None if known else error

    def close(self) -> GptcliError | None:
        """Close the files. Returns the disk's error if lines are lost."""
        files = [self._metrics, self._samples, *([self._inside] if self._inside else [])]
        errors = [file.close() for file in files]
        return next((error for error in errors if error is not None), None)


def _up_to(step: int) -> Callable[[bytes], bool]:
    """A filter for attention.jsonl: keeps complete lines of steps up to `step`."""

    def keep(line: bytes) -> bool:
        try:
            return line.endswith(b"\n") and int(json.loads(line)["step"]) <= step
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
            return False

    return keep


class _LinesToKeep:
    """Decides for each line of metrics.jsonl whether a resumed run keeps it.

    Afterwards, `notes` says how many unreadable lines were removed, and which steps are missing at
    the start or at the end. `notes` assumes that a run logs step 1 and then steps at equal
    distances."""

    def __init__(self, resumed_from: int, evaluated_at: int) -> None:
        self._resumed_from, self._evaluated_at = resumed_from, evaluated_at
        self._unreadable = 0
        self._steps: list[int] = []

    def __call__(self, line: bytes) -> bool:
        if not line.endswith(b"\n"):  # cut short by a kill
            return False
        try:
            record = json.loads(line)
            kind, step = record["kind"], float(record["step"])
            # A plan has the number of the step after which it was made. The checkpoint of this step
            # has the plan, too.
            kept = step <= (self._evaluated_at if kind == "eval" else self._resumed_from)
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
            self._unreadable += 1
            return False
        if kept and kind == "step":
            self._steps.append(int(step))
        return kept

    def notes(self, path: Path) -> list[str]:
        """Notes for the user: what is damaged or missing in the file.

        Call this method after the last line."""
        found, steps = [], self._steps
        if self._unreadable:
            lines = counted(self._unreadable, "unreadable line")
            found.append(f"{path} was damaged: {lines} removed")
        apart = max((b - a for a, b in pairwise(steps)), default=None)
        if not steps and self._resumed_from > 0:
            found.append(f"{path} lacks the steps up to {self._resumed_from}")
        elif steps and steps[0] > 1:
            found.append(f"{path} lacks the steps before {steps[0]}")
        elif apart is not None and self._resumed_from - steps[-1] > 2 * apart:
            found.append(f"{path} lacks the steps from {steps[-1] + 1} to {self._resumed_from}")
        return found


@contextmanager
def _open_errors(path: Path) -> Iterator[None]:
    """Turn an OSError about a link, pipe, folder or huge file into a GptcliError with `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EINVAL, errno.EISDIR, errno.EFBIG):
            raise
        raise cannot_open_error(path, error) from None


def cannot_open_error(path: Path, error: OSError) -> GptcliError:
    """The error (exit code 1) if a file of the journal is a link, a pipe, a folder or too large."""
    return GptcliError(
        f"{path} cannot be opened ({error.strerror})",
        "gptcli did not write this file: move it away; the checkpoints do not need it"
        + (f"; or {error.HINT}" if isinstance(error, LinkOutError) else ""),
        exit_code=1,
    )


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def trim_samples(path: Path, sampled_at: int) -> None:
    """Delete the samples after step `sampled_at` from samples.txt."""
    if not _is_there(path):
        return
    kept_bytes, begins = 0, True  # `begins`: whether the next piece begins a line
    for line in read_lines(path, path.parent):
        heading = re.fullmatch(rb"=== step ([0-9]{1,18}) ===\n?", line) if begins else None
        if heading is not None and int(heading[1]) > sampled_at:
            break
        kept_bytes, begins = kept_bytes + len(line), line.endswith(b"\n")
    else:
        return
    durable.write_atomically(path, _first_bytes(path, kept_bytes))


def _first_bytes(path: Path, count: int) -> Iterator[bytes]:
    """Yield the first `count` bytes of a file. The last byte must end a line."""
    for line in read_lines(path, path.parent):
        if count == 0:
            return
        count -= len(line)
        yield line
