"""The interface of every logger: opens a log for a run, takes rows and samples, closes the log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from gptcli.loggers.rows import Row, Sample


@dataclass(frozen=True)
class RunFacts:
    """What a log says about its run, besides rows and samples."""

    name: str  # the name of the run folder
    identity: str  # identifies the training; a resume keeps it
    config: dict[str, Any]  # values by dotted key; lists and null are text
    began: float  # Unix time of step 0


class Log(Protocol):
    """A log that is being written.

    Opening it replaces an earlier log of the same run. wandb is an exception: if it is online, it
    continues the earlier log.

    The argument `time` is the Unix time of the row or sample. Every method can raise any exception,
    because the loggers' packages do."""

    def row(self, row: Row, time: float) -> None:
        """Write a row. Each row has a larger step than the row before."""

    def sample(self, sample: Sample, time: float) -> None:
        """Write a sample. Its step can be one that has no row.

        Only the sample at the end of a run can have a smaller step than the last row."""

    def flush(self) -> None:
        """Make everything that was written visible to readers."""

    def close(self) -> None:
        """Write everything that is not written yet, and end the log."""
