"""What every logger is: it opens a log for a run, takes rows and samples, and closes the log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from gptcli.loggers.rows import Row, Sample


@dataclass(frozen=True)
class RunFacts:
    """What a log says about its run, besides the rows."""

    name: str  # of the run folder
    identity: str  # of the training: stays the same at a resume
    config: dict[str, Any]  # by dotted key; lists as text
    began: float  # Unix time of step 0


class Log(Protocol):
    """A log that is being written. Opening it replaces an earlier log of the same run.

    `time` is the Unix time. Every method can raise anything: the packages behind them do."""

    def row(self, row: Row, time: float) -> None:
        """Write a row. The steps rise."""

    def sample(self, sample: Sample, time: float) -> None:
        """Write a sample. Its step can be one that has been logged."""

    def flush(self) -> None:
        """Let readers see what was written."""

    def close(self) -> None:
        """Write what is left, and end the log."""
