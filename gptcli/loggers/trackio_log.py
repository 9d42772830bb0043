"""Writes a run into trackio's SQLite database, without a server and without the internet."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from gptcli.loggers.log import RunFacts
from gptcli.loggers.rows import Row, Sample

PROJECT = "gptcli"


class TrackioLog:
    """A run in the project `gptcli` of the folder's database, which can hold other runs, too.

    This class writes records as trackio's own importers do, because `trackio.log` has no argument
    for the time of a record. Each record has an id, so that no record is written twice."""

    def __init__(self, folder: Path, facts: RunFacts) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # trackio reads this variable while it is imported.
        os.environ["TRACKIO_DIR"] = str(folder.absolute())
        from trackio import Markdown
        from trackio.sqlite_storage import SQLiteStorage

        self._storage, self._markdown, self._facts = SQLiteStorage, Markdown, facts
        SQLiteStorage.delete_run(PROJECT, facts.name, run_id=facts.identity)
        self._rows: list[tuple[int, float, str, dict[str, Any]]] = []

    def row(self, row: Row, time: float) -> None:
        self._rows.append((row.step, time, f"{row.step}", dict(row.values)))

    def sample(self, sample: Sample, time: float) -> None:
        value = self._markdown(f"```text\n{sample.text}\n```")._to_dict()
        self._rows.append((sample.step, time, f"sample-{sample.number}", {"sample": value}))

    def flush(self) -> None:
        if not self._rows:
            return
        steps, times, names, values = zip(*self._rows, strict=True)
        self._storage.bulk_log(
            project=PROJECT,
            run=self._facts.name,
            run_id=self._facts.identity,
            config=self._facts.config,
            metrics_list=list(values),
            steps=list(steps),
            timestamps=[datetime.fromtimestamp(time, timezone.utc).isoformat() for time in times],
            log_ids=[f"{self._facts.identity}-{name}" for name in names],
        )
        self._rows.clear()

    def close(self) -> None:
        self.flush()
