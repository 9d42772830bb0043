"""Every parser accepts an input or raises GptcliError. `make fuzz` (run.py) tries many more
inputs."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptcli.errors import GptcliError
from tests.fuzz import targets
from tests.fuzz.interesting import INTERESTING


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[targets.Target]:
    return targets.targets(tmp_path_factory.mktemp("fuzz"))


NAMES = (
    "config text", "overrides", "tokenizer.json", "tokenizer of a learner", "meta.json",
    "safetensors header", "checkpoints/best", "jsonl", "text", "prompts", "a learner's source",
    "run.json", "metrics.jsonl", "samples.txt", "token cache", "names",
)  # fmt: skip


def test_every_target_is_run_and_has_right_names(found: list[targets.Target]) -> None:
    assert sorted(NAMES) == sorted(target.name for target in found)
    assert INTERESTING.keys() <= set(NAMES)


@pytest.mark.long_series
@pytest.mark.parametrize("name", NAMES)
def test_any_input_is_accepted_or_refused_in_words(name: str, found: list[targets.Target]) -> None:
    (target,) = [target for target in found if target.name == name]
    for value in INTERESTING.get(name, []):
        target.accepts(value)
    accepted = []

    @settings(
        max_examples=60,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(target.strategy)
    def feed(value: object) -> None:
        accepted.append(target.accepts(value))

    feed()
    assert len(accepted) >= 50


def test_a_traceback_and_a_hang_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(value: object) -> None:
        raise GptcliError("no", "hint")

    def fail(value: object) -> None:
        raise KeyError(value)

    def hang(value: object) -> None:
        while True:
            pass

    nothing = st.none()
    assert targets.Target("a", nothing, lambda value: None).accepts(None) is True
    assert targets.Target("a", nothing, refuse).accepts(None) is False
    with pytest.raises(KeyError):
        targets.Target("a", nothing, fail).accepts(None)
    monkeypatch.setattr(targets, "SECONDS", 0.05)
    with pytest.raises(targets.HangError):
        targets.Target("a", nothing, hang).accepts(None)
