"""Writes metrics.csv, for spreadsheets: a header, and one line for each logged step."""

from __future__ import annotations

import csv
import io
from contextlib import suppress
from pathlib import Path

from gptcli.errors import GptcliError
from gptcli.files import durable
from gptcli.loggers.rows import COLUMNS, Row, Sample


class CsvLog:
    """The table of a run, without samples, and without the losses of a mixture's single texts.

    A cell is empty if the run did not log the value. A killed process leaves no incomplete line.
    Raises GptcliError if the path holds a file that gptcli did not write."""

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
        """Ignore a sample: a text of many lines does not fit into a table."""

    def flush(self) -> None:
        """Do nothing, because lines are not buffered."""

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
