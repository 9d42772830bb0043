"""gptcli chooses the values that the user did not set, so that they fit those that the user set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.api.wanted_config import config_for, defaults_with_overrides
from gptcli.config import Config, ModelConfig, heads_that_fit
from gptcli.config_files import parse_config
from gptcli.config_problems import flatten
from gptcli.fitting_values import fitting_values
from gptcli.training.estimate import StepTime

DEFAULTS = {".".join(key): value for key, value in flatten(Config().model_dump()).items()}


@given(st.sampled_from(["modern", "gpt2"]), st.integers(1, 600), st.integers(1, 40), st.booleans())
def test_one_value_of_the_user_always_finds_the_other(
    arch: str, n_embd: int, n_head: int, heads_asked: bool
) -> None:
    asked = {"model.n_head"} if heads_asked else {"model.n_embd"}
    values = DEFAULTS | {"model.arch": arch, "model.n_embd": n_embd, "model.n_head": n_head}
    found = values | fitting_values(values, asked)
    assert all(found[key] == values[key] for key in asked)
    if heads_asked or heads_that_fit(arch, n_embd):  # type: ignore[arg-type]
        model = {k.partition(".")[2]: v for k, v in found.items() if k.startswith("model.")}
        ModelConfig.model_validate(model)


@pytest.mark.parametrize(
    ("overrides", "width", "heads"),
    [
        (["model.n_embd=256"], 256, 4),
        (["model.n_head=3"], 96, 3),
        (["model={n_head: 3}"], 96, 3),
        (["model.n_embd=100"], 100, 5),
        (["model.n_embd=99", "model.arch=gpt2"], 99, 3),
    ],
)
def test_train_without_a_config_fits_the_rest(overrides: list[str], width: int, heads: int) -> None:
    notes: list[str] = []
    config, _ = config_for(None, [*overrides, "run.device=cpu"], None, notes)
    assert (config.model.n_embd, config.model.n_head) == (width, heads)
    assert bool(notes) == (width != 256)
    model = defaults_with_overrides(None, overrides).model
    assert (model.n_embd, model.n_head) == (width, heads)


def test_a_vocabulary_size_means_bpe() -> None:
    assert defaults_with_overrides(None, ["tokenizer.vocab_size=300"]).tokenizer.kind == "bpe"
    typed = ["tokenizer.vocab_size=300", "tokenizer.kind=char"]
    assert defaults_with_overrides(None, typed).tokenizer.kind == "char"


def test_values_that_nothing_fits_are_blamed_on_the_user(cli: Any, text_file: Path) -> None:
    for words in ([], ["--dry-run"], ["--minutes", "5"]):
        outcome = cli("train", text_file, "model.n_embd=99", *words)
        assert outcome.code == 2
        assert outcome.err == (
            "error: model.n_embd=99: n_embd 99 is odd: rotary positions turn pairs of channels\n\n"
            "hint: n_embd could be 96 or 104\n"
        )
    assert cli("bench", "model.n_embd=99").err == outcome.err


@pytest.mark.parametrize("words", [[], ["--minutes", "1"]])
def test_dry_run_with_a_width_of_the_user(
    words: list[str], cli: Any, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptcli.training.minutes.measured_step", lambda *_: StepTime(0.01, 0.01))
    monkeypatch.setattr("gptcli.training.dry_run.seconds_per_step", lambda *_: 0.01)
    outcome = cli("train", text_file, "model.n_head=3", "--dry-run", "--json", *words)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["parameters"] > 0
    assert cli("train", text_file, "model.n_embd=256", "--dry-run", *words).code == 0


def test_a_named_config_is_used_exactly(cli: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("model:\n  n_embd: 66\n", encoding="utf-8")
    outcome = cli("train", path)
    assert outcome.code == 2
    assert outcome.err.startswith(
        f"error: {path}:2: n_embd 66 is not divisible by n_head 4 (the default)\n"
    )
    assert parse_config("model: {n_embd: 66, n_head: 3}").model.head_dim == 22


@pytest.mark.parametrize(
    ("override", "rate"),
    [
        ("train={learning_rate: 0.01}", 0.01),
        ("train={seed: 3}", None),
        ("train.learning_rate=0.01", 0.01),
        ("train=", "auto"),
    ],
)
def test_a_fine_tune_keeps_the_rate_that_the_user_set(
    override: str, rate: float | str | None, trained: Path
) -> None:
    before = float(config_for(str(trained / "config.yaml"), [], None)[0].train.learning_rate)
    config, _ = config_for(None, [override], str(trained))
    assert config.train.learning_rate == (before / 4 if rate is None else rate)


def test_minutes_keeps_the_values_of_a_section_that_the_user_set(
    cli: Any, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptcli.training.minutes.measured_step", lambda *_: StepTime(0.01, 0.01))
    monkeypatch.setattr("gptcli.training.dry_run.seconds_per_step", lambda *_: 0.01)
    words = ("--dry-run", "--json", "--minutes", "1", "tokenizer.kind=byte")
    one = cli("train", text_file, "model={n_layer: 7, n_embd: 32, n_head: 2}", *words)
    other = cli("train", text_file, "model.n_layer=7", "model.n_embd=32", "model.n_head=2", *words)
    assert json.loads(one.out)["parameters"] == json.loads(other.out)["parameters"]
    outcome = cli("train", text_file, "train={max_steps: 5}", *words)
    assert outcome.code == 2
    assert "train.max_steps" in outcome.err
