"""`gptcli inspect-batch`: the text of the batch that a training step read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

SMALL = (
    "model.n_layer=1",
    "model.n_head=2",
    "model.n_embd=32",
    "model.block_size=32",
    "train.batch_size=3",
    "train.grad_accum=2",
    "run.threads=1",
    "run.dtype=float32",
    "run.device=cpu",
)


def rows(cli: Any, run: Path, step: int) -> list[dict[str, Any]]:
    outcome = cli("inspect-batch", run, step, "--json")
    assert outcome.code == 0, outcome.err
    return [json.loads(line) for line in outcome.out.splitlines()]


def logged(run: Path, step: int) -> float:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    (loss,) = [r["loss"] for r in records if (r["kind"], r["step"]) == ("step", step)]
    return float(loss)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A run of five steps with two micro-batches each. It has a checkpoint of step 3."""
    from gptcli.config_files import parse_config
    from gptcli.training.journal import Journal
    from gptcli.training.loop import train
    from gptcli.training.setup import prepare_new
    from gptcli.view.metrics import metrics_record

    path = tmp_path_factory.mktemp("runs") / "r"
    # The test needs a first loss that depends on the batch, so the arch is gpt2. With the arch
    # modern, the head starts at zero, so the first loss is ln V on every batch.
    more = ("model.arch=gpt2", "train.max_steps=5", "train.checkpoint_every=3", "train.log_every=1")
    config = parse_config("", [f"data.source={text_file}", *SMALL, *more])
    setup = prepare_new(config, path).setup
    journal = Journal(path, None, None, None)
    for event in train(setup):
        if (record := metrics_record(event)) is not None:
            journal.record(record)
    journal.close()
    return path


@pytest.mark.parametrize("step", [1, 4])
def test_the_batch_gives_the_logged_loss(step: int, run: Path, cli: Any) -> None:
    """The command shows the sequences that the step read. With the weights before the step,
    these sequences have the loss that the training logged for the step."""
    from gptcli.training import checkpoint
    from gptcli.training.run_folder import read_config, read_tokenizer
    from gptcli.training.training_state import build_model

    config = read_config(run)
    weights = checkpoint.load(run, step - 1).model if step > 1 else None
    model = build_model(
        config.model, read_tokenizer(run).vocab_size, None, weights, seed=config.train.seed
    )
    losses = {}
    for shown in (step, step + 1):
        ids = torch.tensor([row["ids"] for row in rows(cli, run, shown)])
        assert ids.shape == (6, 33)
        with torch.no_grad():
            losses[shown] = float(model.loss(ids[:, :-1], ids[:, 1:]))
    assert losses[step] == pytest.approx(logged(run, step), rel=1e-5)
    assert losses[step + 1] != pytest.approx(logged(run, step), rel=1e-5)


def test_json_objects(run: Path, cli: Any, text_file: Path) -> None:
    found = rows(cli, run, 2)
    text = text_file.read_text("utf-8")
    part = text[: int(len(text) * 0.9)]
    for number, row in enumerate(found, 1):
        assert row["text"] == (part + part)[row["start"] : row["start"] + 33]
        assert (row["step"], row["sequence"]) == (2, number)
        assert row["micro_batch"] == (1 if number <= 3 else 2)
        assert row["loss"] == logged(run, 2)
    assert found == rows(cli, run, 2)


def test_plain_output(run: Path, cli: Any) -> None:
    outcome = cli("inspect-batch", run, 2)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith(
        f"step 2: 6 sequences of 32 tokens, loss {logged(run, 2):.4f}; epoch "
    )
    for row in rows(cli, run, 2):
        heading = (
            f"--- sequence {row['sequence']}, micro-batch {row['micro_batch']}, "
            f"from token {row['start']:,} of "
        )
        assert heading in outcome.out
        assert row["text"] in outcome.out


def test_control_characters_do_not_reach_the_terminal(cli: Any, tmp_path: Path) -> None:
    text, run = tmp_path / "t.txt", tmp_path / "r"
    text.write_text("one \x1b[31mtwo\x07 \u202ethree " * 200, encoding="utf-8")
    trained = cli("train", text, *SMALL, "train.max_steps=2", "--out", run)
    assert trained.code == 0, trained.err
    shown = cli("inspect-batch", run, 1).out
    assert "two" in shown
    assert not set("\x1b\x07\u202e") & set(shown)
    assert any("\x1b[31mtwo" in row["text"] for row in rows(cli, run, 1))


@pytest.mark.parametrize("step", ["0", "6", "1" + "0" * 40])
def test_a_step_out_of_range_is_refused(step: str, run: Path, cli: Any) -> None:
    outcome = cli("inspect-batch", run, step)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"error: step {step} is not one of the steps 1 to 5 of {run}\n\n")


def test_an_unknown_run_is_refused(cli: Any) -> None:
    outcome = cli("inspect-batch", "no-such-run", 1)
    assert outcome.code == 2
    assert outcome.err.startswith("error: no run named `no-such-run`\n\nhint: ")


def test_a_text_that_changed_is_refused_by_a_run_with_checkpoints(
    cli: Any, tmp_path: Path, text_file: Path
) -> None:
    text, run = tmp_path / "t.txt", tmp_path / "r"
    shutil.copy(text_file, text)
    assert cli("train", text, *SMALL, "train.max_steps=2", "--out", run).code == 0
    before = rows(cli, run, 1)
    text.write_text(text_file.read_text("utf-8").replace("h", "t"), encoding="utf-8")
    outcome = cli("inspect-batch", run, 1)
    assert (outcome.code, outcome.out) == (2, "")
    assert f"the text of {text.as_posix()} has changed since the run" in outcome.err
    shutil.rmtree(run / "checkpoints")
    assert cli("inspect-batch", run, 1).code == 2  # run.json also has the hash of the text
    (run / "run.json").unlink()
    outcome = cli("inspect-batch", run, 1, "--json")
    assert outcome.code == 0
    assert "no checkpoint that records its text" in outcome.err
    assert [json.loads(line)["ids"] for line in outcome.out.splitlines()] != [
        row["ids"] for row in before
    ]
    text.unlink()
    assert cli("inspect-batch", run, 1).code == 2


def test_a_damaged_checkpoint_does_not_hide_the_others(cli: Any, tmp_path: Path, run: Path) -> None:
    copy = tmp_path / "r"
    shutil.copytree(run, copy)
    (copy / "checkpoints" / "step-00000005" / "meta.json").write_text("{", encoding="utf-8")
    outcome = cli("inspect-batch", copy, 1, "--json")
    assert outcome.code == 0
    assert "skipped" in outcome.err
    assert [json.loads(line) for line in outcome.out.splitlines()] == rows(cli, run, 1)


def test_the_users_tokenizer_is_needed_but_their_attention_is_not(
    cli: Any, tmp_path: Path, text_file: Path, run: Path
) -> None:
    tokenizer, attention, own = tmp_path / "t.py", tmp_path / "a.py", tmp_path / "own"
    tokenizer.write_text(
        "from gptcli.course.exercises.tokenizer import Tokenizer\n", encoding="utf-8"
    )
    attention.write_text(
        "from gptcli.model.attention import CausalSelfAttention\n", encoding="utf-8"
    )
    words = (
        "tokenizer.vocab_size=270",
        "train.max_steps=2",
        "model.arch=gpt2",
        "--out",
        own,
    )
    files = ("--tokenizer", tokenizer, "--attention", attention)
    assert cli("train", text_file, *SMALL, *words, *files).code == 0
    asked = cli("inspect-batch", own, 1)
    assert asked.code == 2
    assert "--tokenizer FILE" in asked.err
    assert "--attention" not in asked.err
    given = cli("inspect-batch", own, 1, "--tokenizer", tokenizer, "--json")
    assert given.code == 0, given.err
    assert json.loads(given.out.splitlines()[0])["text"] in text_file.read_text("utf-8") * 2
    extra = cli("inspect-batch", run, 1, "--tokenizer", tokenizer)
    assert extra.code == 2
    assert "was trained with the built-in tokenizer" in extra.err
