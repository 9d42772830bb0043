"""Writes metrics.csv: a header, and one line for each logged step, for spreadsheets."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from gptcli.files import durable
from gptcli.loggers.rows import COLUMNS, Row, Sample


class CsvLog:
    """A table of the run. A cell is empty if the run did not log the value. It has no samples.

    A line is never torn. If the disk refuses a line, the line waits for the next one."""

    def __init__(self, path: Path) -> None:
        durable.make_folder(path.parent)
        path.unlink(missing_ok=True)
        self._lines = durable.LineWriter(path)
        self._write(["step", *COLUMNS])

    def row(self, row: Row, time: float) -> None:
        self._write([row.step, *(row.values.get(name, "") for name in COLUMNS)])

    def sample(self, sample: Sample, time: float) -> None:
        """A table has no place for a text of many lines."""

    def flush(self) -> None:
        """Lines are not buffered."""

    def close(self) -> None:
        problem = self._lines.close()
        if problem is not None:
            raise problem

    def _write(self, cells: list[str | int | float]) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(cells)
        problem = self._lines.write(line.getvalue())
        if problem is not None:
            raise problem
