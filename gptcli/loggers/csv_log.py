"""Writes metrics.csv: a header, and one line for each logged step, for spreadsheets."""

from __future__ import annotations

import csv
import io
from contextlib import suppress
from pathlib import Path

from gptcli.errors import GptcliError
from gptcli.files import durable
from gptcli.loggers.rows import COLUMNS, Row, Sample


class CsvLog:
    """A table of the run. A cell is empty if the run did not log the value. It has no samples.

    A line is never torn. Raises GptcliError if the path holds another file."""

    def __init__(self, path: Path) -> None:
        durable.make_folder(path.parent)
        header = _line(["step", *COLUMNS])
        with suppress(FileNotFoundError):
            with path.open("rb") as file:
                if file.read(len(header)).decode("utf-8", "replace") != header:
                    raise GptcliError(
                        f"{path} exists, and is not a log that gptcli wrote",
                        "name another file with --out",
                    )
            path.unlink()
        self._lines = durable.LineWriter(path)
        self._write(header)

    def row(self, row: Row, time: float) -> None:
        self._write(_line([row.step, *(row.values.get(name, "") for name in COLUMNS)]))

    def sample(self, sample: Sample, time: float) -> None:
        """A table has no place for a text of many lines."""

    def flush(self) -> None:
        """Lines are not buffered."""

    def close(self) -> None:
        problem = self._lines.close()
        if problem is not None:
            raise problem

    def _write(self, line: str) -> None:
        problem = self._lines.write(line)
        if problem is not None:
            raise problem


def _line(cells: list[str | int | float]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()
