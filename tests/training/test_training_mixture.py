"""Trainings on a mixture of texts: exact resuming with the C library and with PyTorch, and a
validation loss for each text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gptcli.config_files import parse_config
from gptcli.errors import GptcliError
from gptcli.events import Evaluated, Event
from gptcli.native import library
from gptcli.training.loop import Setup
from gptcli.training.setup import prepare_new, prepare_resume
from tests.training.conftest import BASE

Drive = Callable[..., list[Event]]
ENGINES = [
    "torch",
    pytest.param(
        "native",
        marks=pytest.mark.skipif(
            library.find(library.TRAINING_FLOAT32).library is None, reason="no C library here"
        ),
    ),
]


@pytest.fixture
def texts(tmp_path: Path) -> list[Path]:
    """The paths of a long text of vowels and a short text of consonants.

    The losses on these texts differ clearly."""
    places = [tmp_path / "vowels.txt", tmp_path / "consonants.txt"]
    places[0].write_text("aeiou" * 400)
    places[1].write_text("bcdfghjklmnpqrst" * 50)
    return places


@pytest.fixture
def mixed(texts: list[Path], tmp_path: Path) -> Callable[..., Setup]:
    """mixed("name", "train.seed=3") returns the Setup of a new run on both texts."""

    def build(name: str, *overrides: str) -> Setup:
        source = json.dumps([str(path) for path in texts])
        words = (f"data.source={source}", "data.weights=0.25,0.75", "train.eval_every=10")
        config = parse_config("", [*words, *BASE, *overrides])
        return prepare_new(config, tmp_path / name).setup

    return build


def files_of(run: Path) -> list[bytes]:
    return [
        (run / "checkpoints" / "step-00000020" / name).read_bytes()
        for name in ("model.safetensors", "state.safetensors")
    ]


@pytest.mark.parametrize("engine", ENGINES)
def test_ten_steps_and_ten_resumed_ones_equal_twenty(
    engine: str, mixed: Callable[..., Setup], resumed: Callable[[str], Setup], drive: Drive
) -> None:
    whole, parts = (mixed(name, f"run.engine={engine}") for name in ("whole", "parts"))
    assert whole.engine == engine
    drive(whole)
    drive(parts, stop_at=10)
    drive(resumed("parts"))
    assert files_of(whole.run) == files_of(parts.run)


def test_an_evaluation_measures_each_text(mixed: Callable[..., Setup], drive: Drive) -> None:
    """The validation loss is the mean of the texts' losses, weighted by their shares in training,
    not by their lengths."""
    found = [event for event in drive(mixed("r")) if isinstance(event, Evaluated)]
    assert len(found) == 2
    for event in found:
        by_name = dict(event.by_text)
        assert list(by_name) == ["vowels.txt", "consonants.txt"]
        mean = 0.25 * by_name["vowels.txt"] + 0.75 * by_name["consonants.txt"]
        assert event.val_loss == pytest.approx(mean, abs=1e-12)


def test_a_text_with_weight_0_is_measured_only(mixed: Callable[..., Setup], drive: Drive) -> None:
    setup = mixed("r", "data.weights=0,1")
    last = [event for event in drive(setup) if isinstance(event, Evaluated)][-1]
    by_name = dict(last.by_text)
    assert last.val_loss == by_name["consonants.txt"]
    assert by_name["vowels.txt"] > by_name["consonants.txt"]


def test_other_weights_are_refused_at_a_resume(mixed: Callable[..., Setup], drive: Drive) -> None:
    setup = mixed("r")
    drive(setup, stop_at=5)
    wanted = setup.config.model_copy(
        update={"data": setup.config.data.model_copy(update={"weights": [1.0, 1.0]})}
    )
    with pytest.raises(GptcliError, match=r"data\.weights: 0\.25, 0\.75 -> 1\.0, 1\.0"):
        prepare_resume(setup.run, wanted)
