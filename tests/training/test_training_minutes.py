"""`--minutes`: the rules that choose network, batch size, dropout and steps."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from gptcli.config import Config
from gptcli.errors import GptcliError
from gptcli.training import minutes
from gptcli.training.minutes import block_parameters, choose_settings, fit_to_minutes, with_values


def size(values: dict[str, Any]) -> float:
    return block_parameters(values["model.n_layer"], values["model.n_embd"])


def test_more_operations_never_choose_a_smaller_network() -> None:
    sizes = [size(choose_settings(10.0**k, 1e9, 80).values) for k in range(11, 20)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 5


def test_a_short_text_gets_no_larger_network_than_it_can_fill() -> None:
    long, short = choose_settings(1e15, 1e7, 80), choose_settings(1e15, 4e4, 80)
    assert size(short.values) < size(long.values)
    assert "short" in short.reasons[0]
    assert "short" not in long.reasons[0]


def test_the_more_often_the_text_is_repeated_the_higher_the_dropout() -> None:
    texts = (1e8, 2e5, 5e4)
    shares = [choose_settings(1e14, characters, 80).values["model.dropout"] for characters in texts]
    assert shares[0] == 0.0
    assert shares == sorted(shares)
    assert shares[-1] > 0.1


def test_a_text_of_many_different_characters_gets_a_bpe() -> None:
    assert choose_settings(1e14, 1e6, 90).values["tokenizer.kind"] == "char"
    assert choose_settings(1e14, 1e6, 3000).values["tokenizer.kind"] == "bpe"


def test_a_text_that_is_too_long_for_the_time_gets_a_bpe() -> None:
    kinds = [
        choose_settings(1e14, n, 90).values["tokenizer.kind"] for n in (1e5, 1e6, 3e6, 2e7, 1e9)
    ]
    assert kinds == ["char", "char", "char", "bpe", "bpe"]
    assert choose_settings(1e18, 2e7, 90).values["tokenizer.kind"] == "char"


@pytest.mark.parametrize("operations", [1e11, 1e13, 1e15, 1e17])
@pytest.mark.parametrize("characters", [3e3, 5e4, 1e6, 2e7])
@pytest.mark.parametrize("different", [60, 5000])
def test_every_choice_is_a_config(operations: float, characters: float, different: int) -> None:
    tree: dict[str, dict[str, Any]] = {}
    for key, value in choose_settings(operations, characters, different).values.items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = value
    Config.model_validate(tree)


def a_text(tmp_path: Path, characters: int = 20_000) -> Path:
    path = tmp_path / "a.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * (characters // 45))
    return path


def planned(tmp_path: Path, limit: float, asked: dict[str, Any], **rest: Any) -> Any:
    config = Config.model_validate({"data": {"source": str(a_text(tmp_path))}})
    config = with_values(config, asked)
    return fit_to_minutes(
        config,
        set(asked),
        minutes=limit,
        begun=time.perf_counter(),
        **({"keep": False, "user_parts": None} | rest),
    )


def test_the_steps_fill_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minutes, "seconds_per_step", lambda *_: 0.01)
    steps = [planned(tmp_path, minutes, {})[0].train.max_steps for minutes in (1, 2, 10)]
    assert 0.85 * 6000 < steps[0] <= 6000
    assert steps[1] / steps[0] == pytest.approx(2, rel=0.15)
    assert steps[2] / steps[0] == pytest.approx(10, rel=0.15)


def test_keys_that_the_user_sets_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minutes, "seconds_per_step", lambda *_: 0.01)
    asked = {"model.n_layer": 7, "model.dropout": 0.05}
    config, _ = planned(tmp_path, 1, asked)
    assert (config.model.n_layer, config.model.dropout) == (7, 0.05)
    config, reasons = planned(tmp_path, 1, {"model.n_layer": 7}, keep=True)
    assert config.model.n_layer == 7
    assert config.model.n_embd == Config().model.n_embd
    assert len(reasons) == 1 or "small" in reasons[1]


def test_a_note_says_that_a_small_text_is_overfitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minutes, "seconds_per_step", lambda *_: 0.01)
    _, reasons = planned(tmp_path, 5, {})
    assert any("overfit" in reason for reason in reasons)


def test_steps_and_minutes_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(GptcliError, match=r"train\.max_steps"):
        planned(tmp_path, 1, {"train.max_steps": 100})


def test_too_few_minutes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minutes, "seconds_per_step", lambda *_: 10.0)
    with pytest.raises(GptcliError, match="too short") as error:
        planned(tmp_path, 1, {})
    assert error.value.exit_code == 2


def test_minutes_on_the_command_line(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Few steps fill the minute, so that the test is short and start-up never fills it.
    monkeypatch.setattr(minutes, "seconds_per_step", lambda *_: 1.0)
    small = ("model.n_layer=1", "model.n_head=2", "model.n_embd=32", "model.block_size=32")
    done = cli("train", a_text(tmp_path), *small, "--minutes", "1", "--out", "r", "--json")
    assert done.code == 0
    result = json.loads(done.out)
    assert result["stopped"] == "done"
    assert "--minutes 1: " in done.err
    assert f"max_steps: {result['steps']}" in Path("r/config.yaml").read_text()


def test_minutes_with_a_config_choose_only_the_steps(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(minutes, "seconds_per_step", lambda *_: 0.01)
    done = cli("train", "tiny", "--minutes", "1", "--dry-run", "--json")
    assert done.code == 0
    plain = cli("train", "tiny", "--dry-run", "--json")
    assert json.loads(done.out)["parameters"] == json.loads(plain.out)["parameters"]
    assert json.loads(done.out)["total_tokens"] != json.loads(plain.out)["total_tokens"]
