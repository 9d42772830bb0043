"""`gptcli train --from` with and without train.lora: defaults, YAML, resuming, refused settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptcli.config import LoraConfig
from gptcli.config_files import load_config, parse_config
from gptcli.training.fine_tuning import with_few_steps

LORA = "train.lora.rank=2"


def config_of(run: Path) -> Any:
    return load_config(str(run / "config.yaml")).train


def test_a_config_of_two_lines_tunes_a_run(
    cli: Any, trained: Path, text_file: Path, tmp_path: Path
) -> None:
    """The config has no `model` section, so the fine-tune gets the network of the run it starts
    from."""
    lora, run = tmp_path / "lora.yaml", tmp_path / "tuned"
    lora.write_text(
        f"data: {{source: {text_file}}}\n"
        "train: {max_steps: 4, lora: {rank: 2, targets: attention}}\n",
        encoding="utf-8",
    )
    outcome = cli("train", lora, "--from", trained, "--out", run)
    assert outcome.code == 0, outcome.err
    assert "parameters are trained by LoRA (" in outcome.err
    assert "note: train.lora.rank is" not in outcome.err
    assert "before tuning " in outcome.err
    found = config_of(run)
    assert (found.lora.rank, found.lora.targets) == (2, ["attention"])
    assert (
        load_config(str(run / "config.yaml")).model
        == load_config(str(trained / "config.yaml")).model
    )
    assert cli("sample", run, "--max-new-tokens", "4").code == 0
    assert json.loads(cli("eval", run, "--json").out)["checkpoint"] in range(5)


def test_a_config_with_another_network_is_refused(
    cli: Any, trained: Path, text_file: Path, tmp_path: Path
) -> None:
    lora = tmp_path / "lora.yaml"
    lora.write_text("model: {n_layer: 3}\ntrain: {lora: {rank: 2}}\n", encoding="utf-8")
    outcome = cli("train", lora, "--from", trained, "--out", tmp_path / "no")
    assert outcome.code == 2
    assert "model.n_layer 3 (checkpoint: 1)" in outcome.err


def test_resuming_keeps_the_adapters(
    cli: Any, trained: Path, text_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "tuned"
    words = ("train", text_file, "--from", trained, LORA, "train.max_steps=4", "--out", run)
    assert cli(*words).code == 0
    other = cli("train", "--resume", "train.lora.rank=4", "train.max_steps=8", "--out", run)
    assert other.code == 2
    assert "these keys change the weights" in other.err
    assert "train.lora" in other.err
    # This resume needs no --from: the run holds the weights from which the fine-tune started.
    more = cli("train", "--resume", "--extend", "train.max_steps=6", "--out", run, "--json")
    assert more.code == 0, more.err
    assert json.loads(more.out)["steps"] == 6
    config = run / "config.yaml"
    config.write_text(config.read_text("utf-8").replace("rank: 2", "rank: 3"), encoding="utf-8")
    edited = cli("train", "--resume", "--extend", "train.max_steps=8", "--out", run)
    assert edited.code == 1
    assert "is not the config of this checkpoint: train.lora" in edited.err


def test_what_adapters_need_is_said_before_anything_is_read(
    cli: Any, trained: Path, text_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "no"
    cases: tuple[tuple[tuple[Any, ...], str], ...] = (
        (("train", text_file, LORA), "add --from RUN"),
        (("train", "tiny", LORA), "add --from RUN"),
        (("train", text_file, LORA, "--from", trained, "--devices", "2"), "in one process"),
        (
            ("train", text_file, LORA, "--from", trained, "--attention", "my.py"),
            "only built-in layers",
        ),
        (("train", text_file, "train.lora.rank=0", "--from", trained), "at least 1"),
    )
    for words, said in cases:
        outcome = cli(*words, "--out", run)
        assert outcome.code == 2, (words, outcome.err)
        assert said in outcome.err
        assert not run.exists()


def test_the_learning_rate_of_a_fine_tune(
    cli: Any, trained: Path, text_file: Path, tmp_path: Path
) -> None:
    rates = {}
    for name, base, words in (
        ("all", trained, ()),
        ("again", tmp_path / "all", ()),
        ("lora", trained, (LORA,)),
        ("after-lora", tmp_path / "lora", ()),
        ("asked", trained, (LORA, "train.learning_rate=0.004")),
        ("defaults", trained, ("train.lora={}",)),
    ):
        run = tmp_path / name
        outcome = cli("train", text_file, "--from", base, *words, "train.max_steps=2", "--out", run)
        assert outcome.code == 0, outcome.err
        rates[name] = config_of(run).learning_rate
    first = config_of(trained).learning_rate
    assert rates["all"] == rates["again"] == pytest.approx(first / 4)
    assert rates["lora"] == 0.01
    assert rates["after-lora"] == pytest.approx(0.00075)  # a quarter of AdamW's default rate
    assert rates["asked"] == 0.004
    # The vocabulary is small, so the embeddings are trained as well.
    assert config_of(tmp_path / "defaults").lora == LoraConfig(embeddings=True)
    assert config_of(tmp_path / "lora").optimizer == "adamw"
    assert config_of(tmp_path / "after-lora").lora is None


def test_a_fine_tune_takes_few_steps(
    cli: Any, trained: Path, text_file: Path, tmp_path: Path
) -> None:
    # One step of this config reads 1,600 tokens.
    config = parse_config("", ["train.max_steps=1000", "model.block_size=100"])
    steps = [with_few_steps(config, tokens).train.max_steps for tokens in (10, 160_000, 10**9)]
    assert steps == [100, 300, 1000]
    adapters = parse_config("", ["train.max_steps=1000", "model.block_size=100", LORA])
    assert with_few_steps(adapters, 160_000).train.max_steps == 600
    run = tmp_path / "tuned"
    dry = cli("train", text_file, "--from", trained, LORA, "--dry-run", "--json")
    assert dry.code == 0, dry.err
    plan = json.loads(dry.out)
    outcome = cli("train", text_file, "--from", trained, LORA, "--out", run, "--json")
    assert outcome.code == 0, outcome.err
    done = json.loads(outcome.out)
    assert done["tokens"] == plan["total_tokens"]
    assert plan["epochs"] == pytest.approx(plan["total_tokens"] / plan["train_tokens"], rel=0.02)
    assert done["steps"] == min(100, config_of(trained).max_steps)
    assert 0 < plan["adapter_parameters"] < plan["parameters"]
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    evaluations = [r["step"] for r in map(json.loads, lines) if r["kind"] == "eval"]
    assert evaluations[0] == 0
    assert len(evaluations) >= 4


def test_a_rank_that_is_too_high_gets_a_note(
    cli: Any, trained: Path, text_file: Path, tmp_path: Path
) -> None:
    words = ("train", text_file, "--from", trained, "train.lora.rank=64", "train.max_steps=2")
    outcome = cli(*words, "--out", tmp_path / "r")
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("train.lora.rank is 64, and a change of attn.query (") == 1
