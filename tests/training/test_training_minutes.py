"""`train --minutes`: the rules that choose the network, the batch size, the dropout and the number
of steps."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from gptcli.config import Config
from gptcli.errors import GptcliError
from gptcli.training import minutes
from gptcli.training.choice import (
    DEEP_NETWORKS as DEEP,
)
from gptcli.training.choice import (
    ChosenSettings,
    Text,
    average_for,
    block_parameters,
    choose_settings,
    network_of_size,
)
from gptcli.training.estimate import StepTime
from gptcli.training.minutes import (
    CHOSEN_AFTER_STEPS,
    block_of_choice,
    choose_for_text,
    fit_to_minutes,
    text_facts,
    with_values,
)
from gptcli.training.planner import Planner


def text(characters: float, different: int = 80, bytes_each: float = 1.0) -> Text:
    return Text(int(characters), int(characters * bytes_each), different)


def choose(operations: float, about: Text, seconds: float = 60.0, **given: Any) -> ChosenSettings:
    dotted = {key.replace("__", "."): value for key, value in given.items()}
    return choose_settings(operations, about, dotted, seconds)


def size(values: dict[str, Any]) -> float:
    return block_parameters(values["model.n_layer"], values["model.n_embd"])


def test_more_operations_never_choose_a_smaller_network() -> None:
    sizes = [size(choose(10.0**k, text(1e9)).values) for k in range(11, 20)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 5


def test_a_short_text_gets_no_larger_network_than_it_can_fill() -> None:
    long, short = choose(1e15, text(1e7)), choose(1e15, text(4e4))
    assert size(short.values) < size(long.values)
    assert "short" in short.reasons["model"]
    assert "short" not in long.reasons["model"]


def test_the_more_often_the_text_is_repeated_the_higher_the_dropout() -> None:
    shares = [choose(1e14, text(n)).values["model.dropout"] for n in (1e8, 2e5, 5e4)]
    assert shares[0] == 0.0
    assert shares == sorted(shares)
    assert shares[-1] > 0.1


def test_a_text_of_many_different_characters_keeps_them_as_tokens() -> None:
    """In these texts, as in Chinese, most characters take about three bytes.

    So a BPE would need most of its merges only to join the bytes of single characters."""
    assert choose(1e14, text(6e4, 3000, 2.9)).values["tokenizer.kind"] == "char"
    assert choose(1e14, text(2e7, 5000, 2.9)).values["tokenizer.kind"] == "char"
    assert choose(1e14, text(2e7, 50_000, 2.9)).values["tokenizer.kind"] == "byte"


def test_a_text_that_is_too_long_for_the_time_gets_subwords() -> None:
    kinds = [
        choose(1e14, text(n), seconds=600).values["tokenizer.kind"] for n in (1e5, 1e6, 3e6, 2e7)
    ]
    assert kinds == ["char", "char", "char", "bpe"]
    assert choose(1e18, text(2e7), seconds=600).values["tokenizer.kind"] == "char"


def test_a_text_that_takes_too_long_to_encode_is_read_as_characters() -> None:
    chosen = choose(1e14, text(2e8), seconds=60)
    assert chosen.values["tokenizer.kind"] == "char"
    assert "too much of the time" in chosen.reasons["tokenizer"]
    assert choose(1e14, text(2e8), seconds=6000).values["tokenizer.kind"] == "bpe"


def test_the_validation_split_of_a_long_text_is_short() -> None:
    """With a validation split of the usual share, one evaluation would take longer than the
    training."""
    chosen = choose(1e13, text(2e8)).values
    tokens = 1e13 / 6 / size(chosen)
    assert chosen["data.val_fraction"] * 2e8 / 3 < 0.15 * tokens
    assert "data.val_fraction" not in choose(1e13, text(1e6)).values
    assert "data.val_fraction" not in choose(1e13, text(2e8), data__val_fraction=0.1).values
    assert "data.val_fraction" not in choose(1e13, text(2e8), train__max_steps=10).values
    tiny = choose(1e9, text(2e8)).values
    assert tiny["data.val_fraction"] * 2e8 > 16 * tiny["model.block_size"]


@pytest.mark.parametrize(
    "given",
    [
        {"model__n_embd": 256},
        {"model__n_embd": 100},
        {"model__n_embd": 2},
        {"model__n_embd": 6},
        {"model__n_head": 3},
        {"model__n_head": 5},
        {"model__n_head": 7, "model__n_layer": 1},
        {"model__n_layer": 9},
        {"model__block_size": 7},
        {"model__n_head": 4, "model__n_embd": 40},
        {"tokenizer__kind": "bpe"},
    ],
)
@pytest.mark.parametrize("operations", [1e11, 1e13, 1e16])
def test_the_choice_fits_what_the_user_sets(operations: float, given: dict[str, Any]) -> None:
    chosen = choose(operations, text(1e6), **given)
    asked = {key.replace("__", "."): value for key, value in given.items()}
    assert not set(chosen.values) & set(asked)
    config = with_values(Config(), {**chosen.values, **asked})
    assert config.model.n_embd % config.model.n_head == 0


@pytest.mark.parametrize("characters", [20, 200, 5000, 5e5])
@pytest.mark.parametrize("operations", [1e11, 1e14, 1e18])
def test_a_batch_is_not_larger_than_the_text(operations: float, characters: float) -> None:
    chosen = choose(operations, text(characters)).values
    tokens = chosen["train.batch_size"] * chosen["model.block_size"]
    assert tokens <= max(characters / 2, chosen["model.block_size"])


@pytest.mark.parametrize("operations", [1e11, 1e13, 1e15, 1e17])
@pytest.mark.parametrize("characters", [3e3, 5e4, 1e6, 2e7])
@pytest.mark.parametrize("different", [60, 5000])
def test_every_choice_is_a_config(operations: float, characters: float, different: int) -> None:
    with_values(Config(), choose(operations, text(characters, different)).values)


def a_text(tmp_path: Path, characters: int = 20_000) -> Path:
    path = tmp_path / "a.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * (characters // 45))
    return path


def planned(
    tmp_path: Path,
    limit: float,
    asked: dict[str, Any],
    keep: bool = False,
    characters: int = 20_000,
) -> tuple[Config, str]:
    config = Config.model_validate({"data": {"source": str(a_text(tmp_path, characters))}})
    config = with_values(config, asked)
    if not keep:
        config, _ = choose_for_text(config, set(asked), limit)
    free = set() if keep else CHOSEN_AFTER_STEPS - set(asked)
    config, _, why = fit_to_minutes(config, limit, time.perf_counter(), None, free, is_strict=True)
    return config, why


def test_the_steps_fill_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minutes, "measured_step", lambda *_: StepTime(0.01, 0.01))
    steps = [
        planned(tmp_path, minutes, {}, characters=2_000_000)[0].train.max_steps
        for minutes in (1, 2, 10)
    ]
    assert 0.85 * 6000 < steps[0] <= 6000
    assert steps[1] / steps[0] == pytest.approx(2, rel=0.15)
    assert steps[2] / steps[0] == pytest.approx(10, rel=0.15)


def test_the_reason_says_that_compiled_steps_are_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minutes, "measured_step", lambda *_: StepTime(0.01, 0.01))
    for compiled, said in (
        (True, "10 ms a step without torch.compile; "),
        (False, "10 ms a step; "),
    ):
        _, why = planned(tmp_path, 1, {"run.compile": compiled}, keep=True)
        assert why.startswith(said)


def test_a_short_text_is_not_read_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minutes, "measured_step", lambda *_: StepTime(0.01, 0.01))
    config, why = planned(tmp_path, 5, {})
    train = config.train
    epochs = train.max_steps * config.tokens_per_step / (0.9 * 20_000)
    assert (train.max_epochs, train.average) == (80, 0.35)
    assert epochs == pytest.approx(80, rel=0.01)
    assert "; train.max_epochs allows no more epochs" in why
    shown = " ".join(block_of_choice(config, {"train": why}))
    assert "max_epochs: 80" in shown
    assert "average: 0.35" in shown
    longer, _ = planned(tmp_path, 5, {"train.max_epochs": 500})
    assert longer.train.max_steps > 2 * train.max_steps
    often, _ = planned(tmp_path, 1, {}, characters=2_000_000)
    assert (often.train.max_epochs, often.train.average) == (None, 0.0)


def test_a_network_for_a_short_text_is_deep() -> None:
    deep = choose(1e13, text(5e4)).values
    layers, width = network_of_size(size(deep))
    assert deep["model.n_layer"] > layers
    assert deep["model.n_embd"] < width
    assert all(size({"model.n_layer": layers, "model.n_embd": width}) for layers, width in DEEP)
    sizes = [block_parameters(*network) for network in DEEP]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize(("epochs", "share"), [(1, 0.0), (20, 0.0), (40, 0.175), (80, 0.35)])
def test_the_more_often_the_text_is_read_the_longer_is_the_average(
    epochs: float, share: float
) -> None:
    assert average_for(epochs) == share


@pytest.mark.parametrize(("limit", "decay"), [(1, 0.8), (10, 0.6)])
def test_the_rate_decays_over_more_steps_if_the_text_is_read_rarely(
    limit: int, decay: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minutes, "measured_step", lambda *_: StepTime(0.03, 0.03))
    config, why = planned(tmp_path, limit, {}, characters=2_000_000)
    assert config.train.decay_fraction == decay
    assert (config.model.dropout == 0.0) == (decay == 0.8)
    shown = " ".join(block_of_choice(config, {"train": why}))
    assert ("decay_fraction: 0.8" in shown) == (decay == 0.8)
    kept, _ = planned(tmp_path, limit, {"train.decay_fraction": 0.3}, characters=2_000_000)
    assert kept.train.decay_fraction == 0.3


def test_evaluations_that_the_user_wants_often_leave_time_for_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an evaluation after every twenty quick steps, the minute has time for fewer steps, but
    still for more than 1000."""
    monkeypatch.setattr(minutes, "measured_step", lambda *_: StepTime(0.005, 0.005))
    config, _ = planned(tmp_path, 1, {"train.eval_every": 20}, keep=True)
    assert 1000 < config.train.max_steps < 0.9 * 60 / 0.005


def test_keys_that_the_user_sets_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minutes, "measured_step", lambda *_: StepTime(0.01, 0.01))
    asked = {"model.n_layer": 7, "model.dropout": 0.05, "train.patience": 3}
    config, _ = planned(tmp_path, 1, asked)
    assert (config.model.n_layer, config.model.dropout, config.train.patience) == (7, 0.05, 3)
    config, _ = planned(tmp_path, 1, {"model.n_layer": 7}, keep=True)
    assert config.model.n_layer == 7
    assert config.model.n_embd == Config().model.n_embd
    assert (config.train.patience, config.train.sample_every) == (None, 0)


def test_a_config_that_gptcli_fits_to_a_time_says_how_often_the_text_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minutes, "measured_step", lambda *_: StepTime(0.01, 0.01))
    _, why = planned(tmp_path, 5, {}, keep=True)
    assert "overfit" in why
    # This run ends before it overfits, because gptcli has set `train.patience`.
    assert "overfit" not in planned(tmp_path, 5, {})[1]


def test_the_choice_is_shown_as_yaml(tmp_path: Path) -> None:
    config, reasons = choose_for_text(
        Config.model_validate({"data": {"source": str(a_text(tmp_path))}}),
        {"train.max_steps", "model.n_layer", "model.n_embd"},
        1.0,
    )
    shown = block_of_choice(config, reasons)
    assert [line.partition(":")[0] for line in shown] == ["tokenizer", "model"]
    sections = yaml.safe_load("\n".join(shown))
    assert sections["model"]["n_embd"] == config.model.n_embd
    assert all("#" in line for line in shown)


def test_the_facts_of_a_text_are_those_of_all_of_it(tmp_path: Path) -> None:
    for name, content in (("a.txt", "ab" * 9), ("b.txt", "日本")):
        (tmp_path / name).write_text(content, encoding="utf-8")
    facts = text_facts(Config.model_validate({"data": {"source": str(tmp_path)}}))
    assert (facts.characters, facts.bytes, facts.different) == (20, 24, 4)


def test_too_few_minutes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minutes, "measured_step", lambda *_: StepTime(10.0, 10.0))
    for limit, words in ((1, "^1 minute is too short"), (1.5, r"^1\.5 minutes are too short")):
        with pytest.raises(GptcliError, match=words) as error:
            planned(tmp_path, limit, {})
        assert error.value.exit_code == 2


def test_minutes_on_the_command_line(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Let the plan assume that a step takes a second. A few steps then fill the minute, so the test
    # is short, and the time for imports cannot fill the minute.
    monkeypatch.setattr(minutes, "measured_step", lambda *_: StepTime(1.0, 1.0))
    # Do not change the plan during the run, because the real steps are much quicker.
    monkeypatch.setattr(Planner, "max_steps", lambda *_: None)
    small = (
        "model.n_layer=1",
        "model.n_head=2",
        "model.n_embd=32",
        "model.block_size=32",
        "train.patience=null",
    )
    done = cli("train", a_text(tmp_path), *small, "--minutes", "1", "--out", "r", "--json")
    assert done.code == 0
    result = json.loads(done.out)
    assert result["stopped"] == "done"
    assert "\ntrain: {" in done.err
    stored = yaml.safe_load(Path("r/config.yaml").read_text())
    assert stored["train"]["minutes"] == 1
    assert stored["train"]["max_steps"] > 40


@pytest.mark.slow
def test_minutes_with_a_config_choose_only_the_steps(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(minutes, "measured_step", lambda *_: StepTime(0.01, 0.01))
    done = cli("train", "tiny", "--minutes", "1", "--dry-run", "--json")
    assert done.code == 0
    plain = cli("train", "tiny", "--dry-run", "--json")
    assert json.loads(done.out)["parameters"] == json.loads(plain.out)["parameters"]
    assert json.loads(done.out)["total_tokens"] != json.loads(plain.out)["total_tokens"]
