"""A run that is killed or interrupted seven times ends with the same weights and metrics as an
uninterrupted run.

The test stops real processes. `make reliability` stops many more, at random moments.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BASE = (
    "model.n_layer=1",
    "model.n_head=2",
    "model.n_embd=32",
    "model.block_size=16",
    "model.dropout=0.1",
    "train.batch_size=4",
    "train.grad_accum=2",
    "train.max_steps=20",
    "train.checkpoint_every=5",
    "train.eval_every=10",
    "train.log_every=1",
    "data.val_fraction=0.8",
    "run.threads=1",
    "run.device=cpu",
)


def records(run: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_bytes().splitlines()]
    for record in found:
        record.pop("seconds")
        record.pop("tokens_per_second", None)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
@pytest.mark.parametrize(
    "more",
    [
        pytest.param(
            ("run.dtype=float32", "train.optimizer=adamw", "tokenizer.kind=char"),
            marks=pytest.mark.slow,
        ),
        ("run.dtype=bfloat16", "train.optimizer=muon", "tokenizer.kind=bpe",
         "tokenizer.vocab_size=280"),
    ],
)  # fmt: skip
def test_a_run_stopped_seven_times_ends_with_the_same_bytes(
    more: tuple[str, ...], tmp_path: Path, text_file: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(text_file.read_text("utf-8") * 12, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("forked_stops.py")), str(tmp_path),
         str(text), *BASE, *more],
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    whole, *parts = told
    assert whole["code"] == 0, whole
    assert [part["code"] for part in parts] == [-9, -9, -9, 130, 130, 130, -9, 0], told
    assert [part["from"] for part in parts] == [None, 5, 5, 10, 13, 14, 20, 20], told
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    name = Path("checkpoints/step-00000020/model.safetensors")
    weights = [(tmp_path / run / name).read_bytes() for run in ("whole", "parts")]
    assert weights[0] == weights[1]
    # The last checkpoint records that step 20 was evaluated, so the run counts as finished.
    assert json.loads((tmp_path / "parts" / name.with_name("meta.json")).read_text("utf-8"))[
        "progress"]["evaluated_at"] == 20  # fmt: skip
