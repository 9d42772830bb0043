"""`gptcli runs`: the table and the JSON of the runs in a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def objects(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_runs_lists_them(cli: Any, trained: Path) -> None:
    outcome = cli("runs", trained.parent)
    assert outcome.code == 0
    assert "small" in outcome.out
    assert "done" in outcome.out
    (row,) = objects(cli("runs", trained.parent, "--json").out)
    assert (row["name"], row["status"], row["step"], row["max_steps"]) == ("small", "done", 40, 40)
    assert row["best_val_loss"] > 0
