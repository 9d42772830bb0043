"""What a run writes as it goes, beside its checkpoints: metrics.jsonl and samples.txt."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from gptcli.errors import GptcliError
from gptcli.files import durable
from gptcli.files.bounded import read_lines

_SAMPLE_HEADING = "=== step {step} ===\n"


class Journal:
    """metrics.jsonl, one object a line, and samples.txt, what the model wrote as it learned: never
    torn, never repeated after a resume.

    `evaluated_at` and `sampled_at` are the last evaluation and sample that the checkpoint knows of:
    a later one at the very step that a run goes on from will be made again. What the disk refuses
    is kept and written before what comes later; the error is given once, and again where it was
    better in between.

    Raises GptcliError (exit code 1) where one of the files is nothing that gptcli wrote."""

    notes: list[str]
    """What was found missing or damaged, and cannot be made good."""

    def __init__(
        self,
        run: Path,
        resumed_from: int | None,
        evaluated_at: int | None,
        sampled_at: int | None,
    ) -> None:
        metrics, samples = run / "metrics.jsonl", run / "samples.txt"
        self.notes = []
        with _opening(metrics):
            if resumed_from is None:
                metrics.unlink(missing_ok=True)
            elif _is_there(metrics):
                kept = _Kept(resumed_from, evaluated_at or 0)
                durable.write_atomically(metrics, filter(kept, read_lines(metrics, run)))
                self.notes += kept.notes(metrics)
            elif resumed_from > 0:
                self.notes.append(f"{metrics} is missing; it begins again with step {resumed_from}")
            self._metrics = durable.LineWriter(metrics)
        try:
            with _opening(samples):
                trim_samples(samples, sampled_at or 0)
                self._samples = durable.LineWriter(samples)
        except BaseException:
            self._metrics.close()
            raise
        self._refused: set[durable.LineWriter] = set()

    def record(self, values: dict[str, Any]) -> GptcliError | None:
        """Append an object to metrics.jsonl."""
        return self._news(self._metrics, json.dumps(values) + "\n")

    def sample(self, step: int, prompt: str, text: str) -> GptcliError | None:
        """Append what the model wrote at a step to samples.txt."""
        heading = _SAMPLE_HEADING.format(step=step)
        return self._news(self._samples, f"{heading}{prompt}{text}\n\n")

    def _news(self, lines: durable.LineWriter, text: str) -> GptcliError | None:
        error = lines.write(text)
        known = lines in self._refused
        (self._refused.discard if error is None else self._refused.add)(lines)
        return None if known else error

    def close(self) -> GptcliError | None:
        """Close both files; what the disk says, where something is lost."""
        errors = [self._metrics.close(), self._samples.close()]
        return next((error for error in errors if error is not None), None)


class _Kept:
    """Says of one line of metrics.jsonl after another whether a run that goes on keeps it, and at
    the end what is not as it was written. Steps are logged at 1 and then at equal distances."""

    def __init__(self, resumed_from: int, evaluated_at: int) -> None:
        self._resumed_from, self._evaluated_at = resumed_from, evaluated_at
        self._unread = 0
        self._steps: list[int] = []

    def __call__(self, line: bytes) -> bool:
        if not line.endswith(b"\n"):  # cut short by a kill
            return False
        try:
            record = json.loads(line)
            is_step, step = record["kind"] == "step", float(record["step"])
            kept = step <= (self._resumed_from if is_step else self._evaluated_at)
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
            self._unread += 1
            return False
        if kept and is_step:
            self._steps.append(int(step))
        return kept

    def notes(self, path: Path) -> list[str]:
        """What there is to say of the file, for people."""
        found, steps = [], self._steps
        if self._unread:
            lines = "1 line" if self._unread == 1 else f"{self._unread:,} lines"
            found.append(f"{path} was damaged: {lines} that cannot be read are left out")
        apart = max((b - a for a, b in pairwise(steps)), default=None)
        if not steps and self._resumed_from > 0:
            found.append(f"{path} has nothing of the steps up to {self._resumed_from}")
        elif steps and steps[0] > 1:
            found.append(f"{path} has nothing of the steps before {steps[0]}")
        elif apart is not None and self._resumed_from - steps[-1] > 2 * apart:
            found.append(
                f"{path} has nothing of the steps from {steps[-1] + 1} to {self._resumed_from}"
            )
        return found


@contextmanager
def _opening(path: Path) -> Iterator[None]:
    """Around the opening of a file of lines: where what stands in its place is no such file, that
    is said, with its name."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EINVAL, errno.EISDIR, errno.EFBIG):
            raise
        raise cannot_open_error(path, error) from None


def cannot_open_error(path: Path, error: OSError) -> GptcliError:
    """What the system or gptcli.files.bounded said to a file of lines, for people (exit code 1)."""
    return GptcliError(
        f"{path} cannot be opened ({error.strerror})",
        "gptcli has not made it so: move it away; the checkpoints are whole without it",
        exit_code=1,
    )


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def trim_samples(path: Path, sampled_at: int) -> None:
    """Drop the samples of later steps than the last one that a checkpoint knows, from
    samples.txt."""
    if not _is_there(path):
        return
    whole, begins = 0, True  # bytes of the lines so far; whether the next part begins a line
    for line in read_lines(path, path.parent):
        heading = re.fullmatch(rb"=== step ([0-9]{1,18}) ===\n?", line) if begins else None
        if heading is not None and int(heading[1]) > sampled_at:
            break
        whole, begins = whole + len(line), line.endswith(b"\n")
    else:
        return
    durable.write_atomically(path, _first(path, whole))


def _first(path: Path, count: int) -> Iterator[bytes]:
    """The first bytes of a file of lines, which end with a line."""
    for line in read_lines(path, path.parent):
        if count == 0:
            return
        count -= len(line)
        yield line
