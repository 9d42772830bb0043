"""Whether a run is finished depends on its checkpoints, not on run.json alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gptcli.training import checkpoint

BASE = (
    "model.n_layer=1", "model.n_head=2", "model.n_embd=32", "model.block_size=16",
    "train.batch_size=4", "train.max_steps=20", "run.threads=1", "run.device=cpu",
    "run.dtype=float32",
)  # fmt: skip


def damage(run: Path, step: int) -> None:
    path = checkpoint.folder_of(run, step) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("why", ["target", "patience"])
def test_a_run_whose_last_checkpoint_is_damaged_is_not_finished(
    why: str, cli: Any, text_file: Path, tmp_path: Path
) -> None:
    """A rule of the config ended the run.

    After the damage, the run resumes from the checkpoint before the damaged one."""
    run = tmp_path / "r"
    small = [word for word in BASE if not word.startswith("train.max_steps")]
    rule = {"target": "train.stop_at_val_loss=100", "patience": "train.patience=1"}[why]
    more = (rule, "train.eval_every=10", "train.checkpoint_every=5", "train.max_steps=40",
            "train.learning_rate=1e-9" if why == "patience" else "train.seed=1")  # fmt: skip
    first = cli("train", text_file, *small, *more, "--out", run, "--json")
    ended = json.loads(first.out)
    assert ended["stopped"] == why
    weights = (checkpoint.folder_of(run, ended["steps"]) / "model.safetensors").read_bytes()
    damage(run, ended["steps"])
    again = cli("train", "--resume", "--out", run, "--json")
    assert again.code == 0
    assert f"step-{ended['steps']:08d}" in again.err.split("it was skipped")[0]
    result = json.loads(again.out)
    assert (result["stopped"], result["steps"]) == (why, ended["steps"])
    assert result["resumed_from"] == ended["steps"] - 5
    path = checkpoint.folder_of(run, ended["steps"]) / "model.safetensors"
    assert path.read_bytes() == weights


def test_a_finished_run_reports_damaged_checkpoints(
    cli: Any, text_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "r"
    more = ("train.checkpoint_every=5", "train.eval_every=5")
    assert cli("train", text_file, *BASE, *more, "--out", run).code == 0
    best = checkpoint.folder_of(run, 20)
    (best.with_name("step-00000021")).mkdir()
    again = cli("train", "--resume", "--out", run)
    assert again.code == 0
    assert "it was skipped" in again.err
    assert "is finished" in again.err


@pytest.mark.slow
def test_a_parameter_without_a_gradient_does_not_prevent_a_resume(
    cli: Any, tmp_path: Path, text_file: Path
) -> None:
    user_parts = tmp_path / "own.py"
    user_parts.write_text(
        "import torch\n"
        "from torch import nn\n"
        "class MLP(nn.Module):\n"
        "    def __init__(self, config):\n"
        "        super().__init__()\n"
        "        C = config.n_embd\n"
        "        self.c_fc, self.c_proj = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)\n"
        "        self.unused = nn.Parameter(torch.ones(3))\n"
        "    def forward(self, x):\n"
        "        return self.c_proj(nn.functional.gelu(self.c_fc(x), approximate='tanh'))\n",
        encoding="utf-8",
    )
    run, whole = tmp_path / "r", tmp_path / "whole"
    words = (*BASE, "model.arch=gpt2", "train.eval_every=50", "--mlp", user_parts, "--force")
    assert cli("train", text_file, *words, "--out", whole).code == 0
    first = cli("train", text_file, *words, "--out", run, "train.checkpoint_every=7")
    assert first.code == 0
    damage(run, 20)
    again = cli("train", "--resume", "--out", run, "--mlp", user_parts, "--force")
    assert again.code == 0, again.err
    name = "checkpoints/step-00000020/model.safetensors"
    assert (run / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("stop", [6, 9, 12, 20])
def test_the_sample_of_the_step_of_a_stop_is_drawn_at_the_resume(
    stop: int, cli: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run is stopped after a step or after a sample, and resumed.

    Even if the stop came after the checkpoint and before the sample of a step, the sample is drawn
    exactly once."""
    from gptcli.events import SampleDrawn, StepDone
    from gptcli.training import final_sample, loop

    monkeypatch.setattr(final_sample, "_SECONDS", 60.0)

    words = (*BASE, "train.sample_every=3", "train.max_steps=21", "train.eval_every=10",
             "train.checkpoint_every=4")  # fmt: skip
    assert cli("train", text_file, *words, "--out", tmp_path / "whole").code == 0
    whole = (tmp_path / "whole" / "samples.txt").read_bytes()
    train, run = loop.train, tmp_path / "r"
    for kind in (StepDone, SampleDrawn):
        run = tmp_path / kind.__name__

        def stopped(setup: Any, should_stop: Any, kind: Any = kind) -> Any:
            asked: list[int] = []
            for event in train(setup, lambda: bool(asked)):
                yield event
                if isinstance(event, kind) and event.step >= stop:
                    asked.append(event.step)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "train", stopped)
            assert cli("train", text_file, *words, "--out", run).code in (0, 130)
        assert cli("train", "--resume", "--out", run).code == 0
        assert (run / "samples.txt").read_bytes() == whole
    assert whole.count(b"=== step ") == 7


def test_weights_with_nan_are_refused(cli: Any, text_file: Path, tmp_path: Path) -> None:
    from dataclasses import asdict

    from gptcli.training.training_state import progress_of

    run = tmp_path / "r"
    assert cli("train", text_file, *BASE, "--out", run).code == 0
    saved = checkpoint.load(run, 20, with_state=True)
    saved.model["ln_f.weight"][3] = float("nan")
    meta = {key: value for key, value in saved.meta.items() if key not in ("files", "step")}
    shutil.rmtree(saved.path)
    checkpoint.save(
        run, 20, saved.model, saved.state, {**meta, "progress": asdict(progress_of(meta))}
    )
    for words in (("sample",), ("eval",), ("score", text_file)):
        outcome = cli(words[0], run, *words[1:])
        assert outcome.code == 1
        assert "its weights are not finite, first in `ln_f.weight`" in outcome.err


def test_a_finished_run_refuses_another_text(cli: Any, text_file: Path, tmp_path: Path) -> None:
    run, other = tmp_path / "r", tmp_path / "other.txt"
    other.write_text("something else\n" * 300, encoding="utf-8")
    moved = tmp_path / "moved.txt"
    moved.write_bytes(text_file.read_bytes())
    assert cli("train", text_file, *BASE, "--out", run).code == 0
    refused = cli("train", "--resume", "--out", run, f"data.source={other}")
    assert refused.code == 2
    assert f"{other} is not the text that {run} was trained on" in refused.err
    assert "is finished" in cli("train", "--resume", "--out", run, f"data.source={moved}").err


@pytest.mark.parametrize("counts", [True, False])
def test_a_notice_says_that_a_changed_buffer_is_not_saved(
    counts: bool, cli: Any, text_file: Path, tmp_path: Path
) -> None:
    user_parts = tmp_path / "own.py"
    user_parts.write_text(
        "import torch\n"
        "from torch import nn\n"
        "class MLP(nn.Module):\n"
        "    def __init__(self, config):\n"
        "        super().__init__()\n"
        "        C, bias = config.n_embd, config.bias\n"
        "        self.c_fc = nn.Linear(C, 4 * C, bias=bias)\n"
        "        self.c_proj = nn.Linear(4 * C, C, bias=bias)\n"
        "        self.register_buffer('calls', torch.zeros(()))\n"
        "    def forward(self, x):\n"
        f"        self.calls += {int(counts)}\n"
        "        return self.c_proj(nn.functional.gelu(self.c_fc(x), approximate='tanh'))\n",
        encoding="utf-8",
    )
    words = (*BASE, "model.arch=gpt2", "--mlp", user_parts, "--force")
    outcome = cli("train", text_file, *words, "--out", tmp_path / "r")
    assert outcome.code == 0
    assert ("your module changed its buffer `h.0.mlp.calls`; " in outcome.err) is counts
