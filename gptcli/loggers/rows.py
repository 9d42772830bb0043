"""Reads metrics.jsonl and samples.txt as rows and samples for loggers, also while the run trains.

A row joins the records of metrics.jsonl about one step: its training, evaluation and new plan.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from gptcli.files.bounded import MAX_LINES_BYTES, open_regular, refuse_link_out

COLUMNS = (
    "tokens",
    "seconds",
    "loss",
    "val_loss",
    "learning_rate",
    "grad_norm",
    "tokens_per_second",
    "max_steps",
)
"""The values that a row can have, under the names of metrics.jsonl.

`max_steps` is the number of steps of the newest plan. If the run trains on a mixture, a row also
has `val_loss/NAME` for each text."""

_MAX_LINE = 1 << 20
_MAX_SAMPLE = 1 << 20  # bytes
Values: TypeAlias = "dict[str, int | float]"


@dataclass(frozen=True)
class Row:
    """What the run logged about a step. `values` has only logged numbers, no null."""

    step: int
    values: Values


@dataclass(frozen=True)
class Sample:
    """The text that the model wrote after a step. `number` counts the run's samples from 0."""

    step: int
    number: int
    text: str


@dataclass
class _Tail:
    """Reads the lines that were appended to a file of a run since the last call of `lines`."""

    path: Path
    offset: int = 0

    def lines(self) -> Iterator[bytes]:
        """The new complete lines; none if the file is missing, too large or not a regular file.

        A line of more than 1 MiB comes in parts."""
        with suppress(OSError):
            refuse_link_out(self.path, self.path.parent)
            with os.fdopen(open_regular(self.path), "rb") as file:
                if os.fstat(file.fileno()).st_size > MAX_LINES_BYTES:
                    return
                file.seek(self.offset)
                while line := file.readline(_MAX_LINE):
                    if not line.endswith(b"\n") and len(line) < _MAX_LINE:
                        return
                    self.offset += len(line)
                    yield line


@dataclass
class Rows:
    """The rows and samples of a run, in the order of their steps.

    A row is complete when a later step is logged, because the evaluation of a step is logged after
    the step. Only the sample at the end of the run can have a smaller step than the row before
    it."""

    run: Path
    first: bytes = b""
    """The first record of metrics.jsonl: it identifies the run, also after a resume."""
    _waiting: dict[int, Values] = field(default_factory=dict)
    _samples: list[Sample] = field(default_factory=list)
    _done: int = -1  # the last step that was returned
    _read: int = 0  # how many samples were read completely
    _text: tuple[int, bytes] | None = None  # the sample that is being read

    def __post_init__(self) -> None:
        self._metrics = _Tail(self.run / "metrics.jsonl")
        self._texts = _Tail(self.run / "samples.txt")

    def read(self, *, ended: bool) -> list[Row | Sample]:
        """The rows and samples that became complete since the last call.

        If `ended` is true, returns all rows and samples that were not returned yet."""
        for line in self._metrics.lines():
            self._take(line)
        newest = max(self._waiting, default=self._done)
        # The run writes a sample before it logs the next step, so read the samples after the rows.
        self._take_samples()
        # The sample of the newest step can be half written.
        if self._text is not None and (ended or self._text[0] < newest):
            self._end_sample()
        found: list[Row | Sample] = []
        for step in sorted(self._waiting):
            if ended or step < newest:
                found.append(Row(step, self._waiting.pop(step)))
                self._done = step
        ready = [sample for sample in self._samples if ended or sample.step < newest]
        self._samples = [sample for sample in self._samples if sample not in ready]
        return sorted([*found, *ready], key=lambda item: (item.step, isinstance(item, Sample)))

    def _take(self, line: bytes) -> None:
        """Add a line of metrics.jsonl to its row.

        Drops a line that gptcli did not write, and a line of a row that `read` has returned."""
        try:
            record = json.loads(line)
            step, kind = record["step"], record["kind"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return
        if kind not in ("step", "eval", "plan") or not isinstance(step, int):
            return
        if not self._done < step < 2**63:
            return
        self.first = self.first or line
        values = self._waiting.setdefault(step, {})
        for name in COLUMNS:
            if _is_number(record.get(name)):
                # Take `seconds` from the step's own record. The evaluation's record comes later.
                values.setdefault(name, record[name])

        by_text = record.get("val_losses")  # only a mixture has a loss for each text
        for name, loss in by_text.items() if isinstance(by_text, dict) else ():
            if _is_number(loss):
                values.setdefault(f"val_loss/{name}", loss)

    def _take_samples(self) -> None:
        for line in self._texts.lines():
            heading = re.fullmatch(rb"=== step ([0-9]{1,18}) ===\n", line)
            if heading is not None:
                self._end_sample()
                self._text = int(heading[1]), b""
            elif self._text is not None and len(self._text[1]) < _MAX_SAMPLE:
                self._text = self._text[0], self._text[1] + line

    def _end_sample(self) -> None:
        if self._text is not None:
            step, text = self._text
            words = text.removesuffix(b"\n\n").decode("utf-8", "replace")
            self._samples.append(Sample(step, self._read, words))
            self._read += 1
            self._text = None


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) and abs(value) < 1e300
