"""`gptcli runs`: the table and the JSON of the runs in a folder."""

from __future__ import annotations

import json
import shutil
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


def test_a_new_plan_changes_the_number_of_steps(cli: Any, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "planned"
    shutil.copytree(trained, run)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "plan", "step": 20, "max_steps": 60}\n')
    (row,) = objects(cli("runs", run.parent, "--json").out)
    assert row["max_steps"] == 60
