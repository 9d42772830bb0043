"""A run with a time limit: the number of steps is planned by the clock, and a resumed run repeats
the same plans."""

from __future__ import annotations

import json
import random
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gptcli.config import Config
from gptcli.training import planner
from gptcli.training.estimate import StepTime
from gptcli.training.planner import Planner, TimeLimit, recorded_plans
from gptcli.training.schedule import decay_at, lr_at
from tests.conftest import TEXT

RATES = {"peak": 1.0, "warmup_steps": 4, "decay_fraction": 0.6}


class Clock:
    """A clock that shows the time `now`. Only the test changes `now`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now


def simulate(
    monkeypatch: pytest.MonkeyPatch, seconds_at: Any, planned: int, budget: float = 60.0
) -> tuple[float, int, int]:
    """Simulate a run.

    A step that begins at second t takes seconds_at(t) seconds. Return (the run's seconds, its
    steps, how often its plan changed)."""
    clock = Clock()
    monkeypatch.setattr(planner, "time", clock)
    config = Config.model_validate({"train": {"eval_every": 50, "max_steps": planned}})
    plan = Planner(TimeLimit(clock.now + budget, budget), config, val_tokens=3 * 2048)
    start, step, plans, max_steps = clock.now, 0, 0, planned
    while step < max_steps:
        took = seconds_at(clock.now - start)
        clock.now += took
        step += 1
        plan.stepped(took)
        new = plan.max_steps(step, max_steps, clock.now)
        if new is not None:
            assert new >= step
            max_steps, plans = new, plans + 1
        if step % 50 == 0 or step == max_steps:
            clock.now += took  # an evaluation
            plan.evaluated(took)
    return clock.now - start, step, plans


@pytest.mark.parametrize("planned", [100, 600, 3000])
@pytest.mark.parametrize(
    "speed",
    [
        lambda t: 0.1,
        lambda t: 0.1 if t < 20 else 0.25,
        lambda t: 0.25 if t < 30 else 0.08,
        lambda t: 0.1 if t < 57 else 0.2,
        lambda t: 0.1 if int(t / 4) % 2 else 0.2,
        lambda t: 0.1 * random.Random(t).uniform(0.5, 2.0),
        lambda t: 0.004,
    ],
    ids=["even", "slower", "faster", "slower at the end", "waves", "noise", "quick steps"],
)
def test_a_run_ends_at_its_time(monkeypatch: pytest.MonkeyPatch, planned: int, speed: Any) -> None:
    seconds, steps, plans = simulate(monkeypatch, speed, planned)
    assert 57.0 <= seconds <= 61.0
    assert plans <= 70
    assert steps > 100


def test_a_plan_keeps_to_the_limit_of_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(planner, "time", clock)
    config = Config.model_validate({"train": {"eval_every": 1000}})
    plan = Planner(TimeLimit(clock.now + 60, 60), config, 0, most_steps=70)
    for _ in range(20):
        clock.now += 0.1
        plan.stepped(0.1)
    assert plan.max_steps(20, 50, clock.now) == 70
    assert plan.max_steps(20, 70, clock.now) is None


def test_a_right_plan_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = simulate(monkeypatch, lambda t: 0.1, 600)[1]
    assert simulate(monkeypatch, lambda t: 0.1, steps)[1:] == (steps, 0)


def test_a_run_that_is_over_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(planner, "time", clock)
    plan = Planner(
        TimeLimit(clock.now + 1, 1), Config.model_validate({"train": {"eval_every": 5}}), 0
    )
    assert plan.max_steps(7, 100, clock.now + 2) == 7
    assert plan.max_steps(7, 7, clock.now + 2) is None


def test_one_plan_gives_the_usual_schedule() -> None:
    for step in range(100):
        usual = lr_at(step, max_steps=100, **RATES)
        assert lr_at(step, max_steps=100, plans=[(0, 100)], **RATES) == usual
        assert lr_at(step, max_steps=50, plans=[(0, 100)], **RATES) == pytest.approx(usual)


def test_the_rate_never_rises_in_the_decay_and_ends_at_zero() -> None:
    draw = random.Random(1)
    for _ in range(300):
        plans, step, end = [(0, draw.randint(20, 200))], 0, 0
        for _ in range(draw.randint(0, 6)):
            step += draw.randint(1, 30)
            if step >= plans[-1][1]:
                break
            plans.append((step, draw.randint(step + 1, 300)))
        end = plans[-1][1]
        shares = [decay_at(s, plans, 0.6) for s in range(end + 1)]
        assert all(a >= b for a, b in pairwise(shares))
        assert shares[-1] == 0.0
        assert shares[-2] > 0.0
        jumps = [a - b for a, b in pairwise(shares)]
        left = end - plans[-1][0]
        assert max(jumps[plans[-1][0] :]) <= 1.0 / min(left, 0.6 * end) + 1e-9


SMALL = (
    "model.n_layer=1",
    "model.n_head=2",
    "model.n_embd=16",
    "model.block_size=16",
    "train.batch_size=4",
    "train.checkpoint_every=3",
    "train.eval_every=5",
    "train.log_every=1",
    "train.sample_every=4",
    "train.keep_checkpoints=9",
    "run.threads=1",
    "run.device=cpu",
)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Let every Planner change the plan at fixed steps. Return a dict: step -> new max_steps."""
    plans = {4: 14, 7: 21, 11: 16}

    def max_steps(self: Planner, step: int, planned: int, now: float) -> int | None:
        return plans.get(step)

    monkeypatch.setattr(Planner, "max_steps", max_steps)
    monkeypatch.setattr("gptcli.training.minutes.measured_step", lambda *_: StepTime(1.0, 1.0))
    return plans


def lines(run: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [{k: r[k] for k in r if k not in ("seconds", "tokens_per_second")} for r in found]


@pytest.mark.parametrize(
    "keep", [6, *(pytest.param(step, marks=pytest.mark.slow) for step in (3, 9, 12, 15))]
)
def test_a_resumed_run_replays_its_plans(
    keep: int, cli: Any, text_file: Path, tmp_path: Path, scripted: dict[int, int]
) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    done = cli("train", text_file, *SMALL, "--minutes", "1", "--out", whole, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["steps"] == 16
    assert recorded_plans(whole) == ([(4, 14), (7, 21), (11, 16)], 16)
    shutil.copytree(whole, part)
    for path in (part / "checkpoints").iterdir():
        if path.name == "best":
            path.unlink()
        elif int(path.name.removeprefix("step-")) > keep:
            shutil.rmtree(path)
    # From now on, only the plans that the run has recorded can change the number of steps.
    scripted.clear()
    done = cli("train", "--resume", "--out", part)
    assert done.code == 0, done.err
    name = "checkpoints/step-00000016/model.safetensors"
    assert (part / name).read_bytes() == (whole / name).read_bytes()
    assert lines(part) == lines(whole)
    again = cli("train", "--resume", "--out", part)
    assert "is finished (step 16" in again.err


@pytest.mark.slow
def test_a_time_limit_for_many_documents(
    cli: Any, tmp_path: Path, scripted: dict[int, int]
) -> None:
    """With many documents, the documents for validation lie between those for training.

    Early in the run, gptcli evaluates a part of the validation tokens to measure how long an
    evaluation takes."""
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(20):
        (texts / f"{number}.txt").write_text(f"{TEXT[number * 9 :][:100]}\n", encoding="utf-8")
    more = ("data.val_fraction=0.3", "--minutes", "3", "--json")
    done = cli("train", texts, *SMALL, *more, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert json.loads(done.out)["steps"] == 16
    assert json.loads(done.out)["val_loss"] > 0


@pytest.mark.slow
def test_a_finished_run_with_a_time_limit_is_extended(
    cli: Any, text_file: Path, tmp_path: Path, scripted: dict[int, int]
) -> None:
    run = tmp_path / "r"
    assert cli("train", text_file, *SMALL, "--minutes", "1", "--out", run).code == 0
    done = cli("train", "train.max_steps=15", "--resume", "--extend", "--out", run)
    assert done.code == 2
    assert "more steps than the 16 of this run" in done.err
    done = cli("train", "train.max_steps=20", "--resume", "--extend", "--out", run, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["steps"] == 20
    assert "minutes: null" in (run / "config.yaml").read_text()


@pytest.mark.slow
def test_the_config_of_a_run_with_a_time_limit_repeats_the_choice(
    cli: Any, text_file: Path, tmp_path: Path, scripted: dict[int, int]
) -> None:
    run = tmp_path / "r"
    assert cli("train", text_file, *SMALL, "--minutes", "1", "--out", run).code == 0
    done = cli("train", run / "config.yaml", "--out", tmp_path / "again", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["steps"] == 16
