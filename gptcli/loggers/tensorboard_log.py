"""Writes an event file for TensorBoard: scalars, samples as text, the config as hyperparameters."""

from __future__ import annotations

from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from gptcli.errors import GptcliError
from gptcli.loggers.log import RunFacts
from gptcli.loggers.rows import Row, Sample


class TensorboardLog:
    """An event file of the run. TensorBoard keeps numbers in float32.

    Raises GptcliError if the folder holds event files of another run."""

    def __init__(self, folder: Path, facts: RunFacts) -> None:
        ending = f".gptcli-{facts.identity}"
        there = list(folder.glob("events.out.tfevents.*"))
        for path in there:
            if not path.name.endswith(ending):
                raise GptcliError(
                    f"{folder} holds the event file of another run: {path.name}",
                    "name another folder with --out",
                )
        for path in there:
            path.unlink()
        self._file = EventFileWriter(str(folder), filename_suffix=ending)
        self._add(hparams_pb(facts.config, facts.name, facts.began), 0, facts.began)

    def row(self, row: Row, time: float) -> None:
        for name, value in row.values.items():
            self._add(scalar_pb(name, value), row.step, time)

    def sample(self, sample: Sample, time: float) -> None:
        # TensorBoard shows Markdown, which does not change lines that begin with four spaces.
        text = "\n".join(f"    {line}" for line in sample.text.split("\n"))
        self._add(text_pb("sample", text), sample.step, time)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _add(self, summary: Summary, step: int, time: float) -> None:
        self._file.add_event(Event(wall_time=time, step=step, summary=summary))
