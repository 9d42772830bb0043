"""If the gradient is exactly 0 for several steps, the network has stopped learning, and gptcli says
so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptcli.training.zero_gradients import ZeroGradients


def test_five_zeros_in_a_row_are_reported_once() -> None:
    zeros = ZeroGradients()
    norms = [1.0, 0.0, 0.0, 0.0, 0.0, 1e-30, *[0.0] * 12]
    assert [step for step, norm in enumerate(norms) if zeros.begin(norm)] == [10]


def test_a_learning_rate_of_100(cli: Any, text_file: Path, tmp_path: Path) -> None:
    """Without the note, the user would see no problem: the run ends as `done`, with a finite
    loss."""
    tiny = (
        "model.n_layer=1", "model.n_head=1", "model.n_embd=16", "model.block_size=16",
        "train.batch_size=2", "train.max_steps=16", "run.threads=1", "run.dtype=float32",
        "run.engine=torch", "train.warmup_steps=0",
    )  # fmt: skip
    outcome = cli("train", text_file, *tiny, "train.learning_rate=100", "--out", tmp_path / "r")
    assert outcome.code == 0
    assert outcome.err.count("the network no longer learns") == 1
    assert "its highest value is 100" in outcome.err
    usual = cli("train", text_file, *tiny, "--out", tmp_path / "usual")
    assert "no longer learns" not in usual.err
