"""Ctrl-C, SIGTERM and a closed terminal before, during and after the steps of a training."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptcli.cli import signals
from gptcli.cli.signals import LeaveAtOnce, leave_on_signals, stop_on_signals
from gptcli.events import Evaluated, SampleDrawn
from gptcli.training import checkpoint, loop, run_folder, setup
from gptcli.training.passes import TorchPasses
from gptcli.training.setup import FinishedRun, Prepared, prepare_resume

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")

SMALL = (
    "model.n_layer=1",
    "model.n_head=2",
    "model.n_embd=32",
    "model.block_size=32",
    "train.batch_size=8",
    "train.max_steps=6",
    "run.threads=1",
    "run.dtype=float32",
    "run.device=cpu",
)
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def send_signal(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0)  # Python runs the handler before its next instruction


@pytest.mark.parametrize("number", HANDLED)
def test_a_signal_before_the_first_step_leaves_no_run_folder(
    number: int, cli: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **more: object) -> None:
        send_signal(number)

    monkeypatch.setattr(setup, "prepare_new", interrupted)
    outcome = cli("train", text_file, *SMALL, "--out", tmp_path / "r")
    assert outcome.code == 130
    assert outcome.err.endswith("interrupted\n")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("number", HANDLED)
def test_a_signal_restores_the_overwritten_run(
    number: int, cli: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("train", text_file, *SMALL, "--out", tmp_path / "r")
    assert cli(*words).code == 0
    before = {p: p.read_bytes() for p in (tmp_path / "r").rglob("*") if p.is_file()}
    resolve = setup._build_setup

    def interrupted(*arguments: Any, **more: Any) -> Any:
        send_signal(number)
        return resolve(*arguments, **more)

    # When `_build_setup` is called, `--overwrite` has already moved the old files to .replaced.
    monkeypatch.setattr(setup, "_build_setup", interrupted)
    assert cli(*words, "--overwrite").code == 130
    assert {p: p.read_bytes() for p in (tmp_path / "r").rglob("*") if p.is_file()} == before


def test_the_first_signal_asks_to_stop_and_the_second_ends_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [100.0]
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    before = [signal.getsignal(number) for number in HANDLED]
    with stop_on_signals() as stop:
        assert not stop.wanted()
        send_signal(signal.SIGINT)
        assert stop.wanted()
        clock[0] += 0.5
        # A second signal within one second does not count, because it can be the same Ctrl-C,
        # passed on by a program that started gptcli.
        send_signal(signal.SIGTERM)
        clock[0] += 1.0
        with pytest.raises(LeaveAtOnce):
            send_signal(signal.SIGINT)
    with leave_on_signals(), pytest.raises(KeyboardInterrupt):
        send_signal(signal.SIGTERM)
    assert [signal.getsignal(number) for number in HANDLED] == before


def test_under_nohup_a_closed_terminal_is_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with leave_on_signals(), stop_on_signals() as stop:
            send_signal(signal.SIGHUP)
            assert not stop.wanted()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_third_ctrl_c_shows_no_traceback(
    cli: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptcli.view.plain import PlainView

    def steps(*arguments: object) -> Any:
        send_signal(signal.SIGINT)
        monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: 1e12))
        send_signal(signal.SIGINT)
        yield

    def leave(*arguments: object) -> None:
        send_signal(signal.SIGINT)

    monkeypatch.setattr(loop, "train", steps)
    monkeypatch.setattr(PlainView, "__exit__", leave)
    outcome = cli("train", text_file, *SMALL, "--out", tmp_path / "r")
    assert outcome.code == 130
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("number", HANDLED)
def test_a_signal_after_the_last_step_does_not_lose_the_result(
    number: int, cli: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_status = run_folder.write_status

    def interrupted(run: Path, values: dict[str, Any]) -> None:
        if "stopped" in values:
            send_signal(number)
        write_status(run, values)

    monkeypatch.setattr(run_folder, "write_status", interrupted)
    outcome = cli("train", text_file, *SMALL, "--out", tmp_path / "r", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["stopped"] == "done"
    assert run_folder.read_status(tmp_path / "r")["stopped"] == "done"


def run_until(of: loop.Setup, stop: Callable[[list[Any]], bool]) -> list[Any]:
    events: list[Any] = []
    for event in loop.train(of, lambda: stop(events)):
        events.append(event)
    return events


def new_run(text_file: Path, run: Path, *more: str) -> loop.Setup:
    from gptcli.config_files import parse_config

    config = parse_config("", [f"data.source={text_file}", *SMALL, *more])
    return setup.prepare_new(config, run).setup


def test_a_stop_does_not_wait_for_a_sample(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptcli.sampling import text

    started = []

    def generate_text(*arguments: Any, **more: Any) -> Any:
        started.append(1)
        return real(*arguments, **more)

    real = text.generate_text
    monkeypatch.setattr(text, "generate_text", generate_text)
    of = new_run(text_file, tmp_path / "r", "train.sample_every=2")
    events = run_until(of, lambda events: len(started) == 2)
    assert events[-1].stopped == "interrupted"
    assert events[-1].step == 4
    assert [event.step for event in events if isinstance(event, SampleDrawn)] == [2]
    assert checkpoint.steps_of(tmp_path / "r")[-1] == 4


def test_an_evaluation_repeated_after_a_resume_is_saved_even_if_it_is_not_the_best(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1.0, 2.0])
    monkeypatch.setattr(TorchPasses, "evaluate", lambda *arguments: next(losses))
    run = tmp_path / "r"
    run_until(
        new_run(text_file, run, "run.engine=torch", "train.eval_every=3"),
        lambda events: any(e.step == 6 for e in events[1:]),
    )
    assert checkpoint.steps_of(run)[-1] == 6
    prepared = prepare_resume(run, None)
    assert isinstance(prepared, Prepared)
    events = run_until(prepared.setup, lambda events: False)
    (made_up,) = (e for e in events if isinstance(e, Evaluated))
    assert (made_up.step, made_up.best) == (6, False)
    # The run counts as finished, because its newest checkpoint records the repeated evaluation.
    assert isinstance(prepare_resume(run, None), FinishedRun)


@pytest.mark.slow
def test_a_batch_of_an_evaluation_takes_no_longer_than_a_step_or_a_second() -> None:
    """gptcli reacts to a signal only between two batches of an evaluation. If an evaluation had
    much larger batches than a step, a large network would take too long for one batch."""
    import numpy as np

    from gptcli.config import ModelConfig
    from gptcli.corpus import TokenStore
    from gptcli.training.evaluate import evaluate
    from gptcli.training.training_state import build_model

    config = ModelConfig(n_layer=1, n_head=2, n_embd=512, block_size=16)
    model = build_model(config, 20)
    parameters = sum(p.numel() for p in model.parameters())
    store = TokenStore([np.zeros(16 * 600 + 1, np.uint16)])
    sizes: list[int] = []
    model.register_forward_hook(lambda module, given, logits: sizes.append(given[0].numel()))
    found = []
    for step_tokens, most in ((16, int(1e10 / parameters)), (1500, 4500), (None, 8192)):
        sizes.clear()
        found.append(evaluate(model, store, 16, step_tokens=step_tokens))
        assert most - 16 < max(sizes) <= most
    assert found[1:] == pytest.approx(found[:1] * 2, rel=1e-5)
