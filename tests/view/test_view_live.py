"""The parts of the live view other than the curve: how the machine is used, notes, earlier samples,
keys."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from gptcli.events import (
    CheckpointSaved,
    Evaluated,
    Event,
    ExtraEvaluation,
    Notice,
    Replanned,
    SampleDrawn,
)
from gptcli.view.live_state import KEYS, LiveState, key_line
from gptcli.view.panel import panel
from gptcli.view.run_status import MOST_SAMPLES, RunStatus
from gptcli.view.terminal import LiveView
from tests.view.view_screen import Screen, a_run, memory_console, started, step_done


def status_of(*events: Event) -> RunStatus:
    status = RunStatus()
    for event in events:
        status.absorb(event)
    return status


def evaluated(*losses: float) -> list[Event]:
    best, found = 1e9, []
    for i, loss in enumerate(losses, start=1):
        found.append(Evaluated(100 * i, 0, 0.0, loss, best=loss < best))
        best = min(best, loss)
    return found


def drawn(
    status: RunStatus, width: int, height: int, live: LiveState, encoding: str = "utf-8"
) -> list[str]:
    console = memory_console(width, height, encoding=encoding)
    return [line.plain for line in panel(status, console, width, height, live)]


def live(**changes: object) -> LiveState:
    values = {"has_keys": True, "peak_flops": 1e11, "memory_held": lambda: 412_300_000, **changes}
    return LiveState(**values)  # type: ignore[arg-type]


@given(st.integers(1, 240), st.integers(1, 70), st.booleans(), st.booleans(), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_everything_fits_into_any_window(
    width: int, height: int, ascii_only: bool, shows_help: bool, samples: int
) -> None:
    status = status_of(
        *a_run(200),
        *evaluated(1.0, 2.0, 3.0, 4.0),
        *(SampleDrawn(i, "", "日本語 word\n" * 30) for i in range(samples)),
        Notice("long", short="loss spike " * 20),
        CheckpointSaved(400, Path("x")),
    )
    encoding = "ascii" if ascii_only else "utf-8"
    lines = drawn(status, width, height, live(shows_help=shows_help), encoding)
    assert 1 <= len(lines) <= height
    assert all(cell_len(line) <= width for line in lines)
    assert "\n".join(lines).isascii() or not ascii_only


@pytest.mark.parametrize("size", [(79, 21), (119, 39), (199, 57)], ids=str)
def test_every_promised_fact_is_shown(size: tuple[int, int]) -> None:
    status = status_of(
        dataclasses.replace(started(), flops_per_token=6e5),
        step_done(500, tokens_per_second=50_000.0),
        *evaluated(2.0, 2.1, 2.2, 2.3),
        CheckpointSaved(400, Path("x")),
        SampleDrawn(400, "", "KING:\nSpeak.\n"),
    )
    text = "\n".join(drawn(status, *size, live()))
    for fact in (
        "mem    412 MB",
        # 50,000 tokens a second, each with 6e5 operations, are 30 % of 1e11 operations a second.
        "of peak       30%",
        "saved at 400",
        "validation loss rising for 3 evaluations: overfitting; best at step 100",
        "new best at step 100: 2.0000",
        "sample at step 400",
        "s sample   e evaluate   c checkpoint   q save and quit   ? help",
    ):
        assert fact in text, fact


def test_without_figures_of_the_machine_and_without_keys_nothing_is_shown() -> None:
    text = "\n".join(drawn(status_of(*a_run(200)), 79, 23, LiveState()))
    assert "of peak" not in text
    assert "save and quit" not in text


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ((2.0, 2.1, 2.2), None),
        ((2.0, 2.1, 2.2, 2.3), "validation loss rising for 3 evaluations: overfitting"),
        ((2.0, 2.1, 2.2, 2.3, 2.4), "validation loss rising for 4 evaluations: overfitting"),
        ((2.0, 2.1, 2.2, 2.3, 1.9), None),
    ],
)
def test_overfitting_is_said_as_long_as_it_lasts(
    losses: tuple[float, ...], says: str | None
) -> None:
    status = status_of(started(), step_done(1), *evaluated(*losses))
    text = "\n".join(drawn(status, 100, 30, live()))
    assert says in text if says else "overfitting" not in text


def test_a_loss_that_only_wavers_above_the_best_is_overfitting_too() -> None:
    status = status_of(started(), step_done(1, loss=2.0), *evaluated(2.0))
    for step, loss in enumerate((2.3, 2.2, 2.3), start=2):
        status.absorb(step_done(step, loss=0.5))
        status.absorb(Evaluated(100 * step, 0, 0.0, loss, best=False))
    text = "\n".join(drawn(status, 100, 30, live()))
    assert "validation loss not better for 3 evaluations: overfitting; best at step 100" in text


def test_there_is_one_note_of_each_kind_the_newest() -> None:
    status = status_of(started(), step_done(1), *evaluated(3.0, 2.0))
    for step in (100, 200):
        status.absorb(CheckpointSaved(step, Path("x")))
    status.absorb(ExtraEvaluation(250, 1.75))
    status.absorb(Replanned(250, 900, "the machine is slower"))
    status.absorb(Notice("step 250: ...", short="loss spike at step 250: 9, before it 2"))
    status.absorb(Notice("anything else"))
    notes = [line for line in drawn(status, 199, 57, live()) if "•" in line]
    assert [line[line.index("•") + 2 :] for line in notes] == [
        "loss spike at step 250: 9, before it 2",
        "new best at step 200: 2.0000",
        "evaluated at step 250: 1.7500",
        "checkpoint saved at step 200",
        "planned again: 900 steps; the machine is slower",
    ]
    # `evaluated` leaves out an evaluation that the user asked for.
    assert status.evaluated == evaluated(3.0, 2.0)[-1]


def test_a_wide_window_shows_how_the_samples_improved() -> None:
    status = status_of(*a_run(200))
    for step in range(10, 1000, 10):
        status.absorb(SampleDrawn(step, "", f"text of {step}\n"))
    assert len(status.samples) <= MOST_SAMPLES + 1
    text = "\n".join(drawn(status, 199, 57, live()))
    assert "sample at step 990" in text
    assert "at step 200" in text  # the run's first sample, from the function a_run
    assert text.index("text of 990") < text.index("at step 200")


def test_a_key_is_marked_until_its_work_is_done() -> None:
    state = live()
    for key in "secq":
        state.press(key)
    line = key_line(state, 100).plain
    assert line == " s sampling   e evaluating   c saving   q quitting   ? help"
    for event, word in (
        (SampleDrawn(1, "", "x"), "s sample"),
        (ExtraEvaluation(1, 2.0), "e evaluate"),
        (CheckpointSaved(1, Path("x")), "c checkpoint"),
    ):
        assert word + "   " not in key_line(state, 100).plain
        state.absorb(event)
        assert word + "   " in key_line(state, 100).plain
    # If no SampleDrawn follows the key, the line says "s sample" again after some steps.
    state.press("s")
    for step in range(4):
        state.absorb(step_done(step))
    assert "s sample   " in key_line(state, 100).plain
    assert "q quitting" in key_line(state, 100).plain


def test_help_explains_every_key_and_closes_again() -> None:
    screen = Screen(80, 24)
    with LiveView(screen.console(), live()) as view:
        view.handle(started())
        view.press("?")
        text = "\n".join(screen.rows())
        assert all(what in text for *_, what in KEYS.values())
        assert "close help" in text
        view.press("?")
        assert "close help" not in "\n".join(screen.rows())
