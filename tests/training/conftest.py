"""Fixtures for trainings without the command line: create a run, resume it, train it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gptcli.config_files import parse_config
from gptcli.events import Event
from gptcli.training.loop import Setup, train
from gptcli.training.setup import Prepared, prepare_new, prepare_resume

BASE = (
    "model.n_layer=1",
    "model.n_head=2",
    "model.n_embd=32",
    "model.block_size=16",
    "train.batch_size=4",
    "train.max_steps=20",
    "run.threads=1",
    "run.device=cpu",
    "run.dtype=float32",
)

New = Callable[..., Setup]
Resumed = Callable[..., Setup]


@pytest.fixture
def new(tmp_path: Path, text_file: Path) -> New:
    """new("name", "train.seed=3") returns the Setup of a new run tmp_path/name."""

    def build(name: str, *overrides: str) -> Setup:
        config = parse_config("", [f"data.source={text_file}", *BASE, *overrides])
        return prepare_new(config, tmp_path / name).setup

    return build


@pytest.fixture
def resumed(tmp_path: Path) -> Resumed:
    """resumed("name") returns the Setup that resumes the run tmp_path/name."""

    def build(name: str) -> Setup:
        prepared = prepare_resume(tmp_path / name, None)
        assert isinstance(prepared, Prepared), "finished already"
        return prepared.setup

    return build


def run(setup: Setup, stop_at: int | None = None) -> list[Event]:
    """Train a run, and return all events.

    The step `stop_at` is the last one, as if the user interrupted the training during this step."""
    events: list[Event] = []

    def should_stop() -> bool:
        steps = [e.step for e in events if type(e).__name__ == "StepDone"]
        return stop_at is not None and bool(steps) and steps[-1] >= stop_at

    for event in train(setup, should_stop):
        events.append(event)
    return events


@pytest.fixture
def drive() -> Callable[..., list[Event]]:
    return run
