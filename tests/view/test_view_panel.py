"""The lines of the live view: which facts they show, and that they fit into any window."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from gptcli.events import Evaluated, Event, Finished, Replanned, SampleDrawn
from gptcli.view.panel import panel
from gptcli.view.run_status import RunStatus
from tests.view.view_screen import a_run, memory_console, started, step_done

SAMPLES = {
    "verse": "KING:\nWhat say'st thou?\n" * 9,
    "escapes": "\x1b[2J\x1b[31mred\x07\r\ttab\x9b1m\n",
    "wide": "混ざった幅の広い文字列が日本語テキスト" * 20 + "👩\u200d👩\u200d👧",
    "long": "x" * 4000,
    "empty": "",
}


def status_of(*events: Event) -> RunStatus:
    status = RunStatus()
    for event in events:
        status.absorb(event)
    return status


def drawn(status: RunStatus, width: int, height: int, encoding: str = "utf-8") -> list[str]:
    console = memory_console(width + 1, height + 1, encoding=encoding)
    return [line.plain for line in panel(status, console, width, height)]


def test_the_panel_shows_every_promised_fact() -> None:
    text = "\n".join(drawn(status_of(*a_run(1000)), 119, 39))
    for fact in (
        "shakespeare → runs", "0.82 M parameters", "char, 65 tokens", "cpu (2 threads), float32",
        "1,000/3,000", "33%", "eta 1:07", "0:33 elapsed", "val loss   1.6006",
        "best  1.6006 at 1,000", "2.00e-02", "0.71", "61,234 tok/s", "sample at step 1,000",
        "What say'st thou?", "o val loss",
    ):  # fmt: skip
        assert fact in text, fact
    assert "⠤" in text


def test_the_second_line_names_model_tokenizer_and_device() -> None:
    assert drawn(status_of(started()), 119, 30)[1] == (
        " modern, 0.82 M parameters · char, 65 tokens · cpu (2 threads), float32"
    )


def test_a_resumed_run_shows_its_first_step() -> None:
    status = status_of(started(resumed_from=600, compiled=True))
    assert "from step 600" in "\n".join(drawn(status, 119, 30))
    assert "compiled" in "\n".join(drawn(status, 119, 30))
    assert "600/3,000   20%" in "\n".join(drawn(status, 79, 23))


@pytest.mark.parametrize("size", [(59, 19), (79, 23), (119, 39), (199, 59)], ids=str)
@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_no_line_is_wider_than_the_window(
    size: tuple[int, int], sample: str, encoding: str
) -> None:
    lines = drawn(status_of(*a_run(1000, SAMPLES[sample])), *size, encoding)
    assert 5 < len(lines) <= size[1]
    for line in lines:
        assert cell_len(line) <= size[0]
        assert line.isprintable()
        line.encode(encoding)
    assert "\n".join(lines).isascii() or encoding != "ascii"
    assert any("1,000/3,000" in line for line in lines)


@given(st.integers(1, 140), st.integers(1, 50), st.sampled_from(sorted(SAMPLES)), st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_panel_fits_into_any_window(
    width: int, height: int, sample: str, ascii_only: bool
) -> None:
    status = status_of(*a_run(200, SAMPLES[sample]))
    lines = drawn(status, width, height, "ascii" if ascii_only else "utf-8")
    assert 1 <= len(lines) <= height
    assert all(cell_len(line) <= width for line in lines)


@pytest.mark.parametrize("width", [59, 79, 119])
def test_extreme_numbers_and_names_fit_into_the_width(width: int) -> None:
    status = status_of(
        started(run=Path("/very" * 30 + "/run-42"), source="日本" * 60 + "/b.txt", max_steps=10**8,
                vocab_size=50_257, device="cuda (NVIDIA H200 with a long name)"),
        step_done(99_999_999, loss=math.nan, grad_norm=math.inf, seconds=1e7,
                  tokens_per_second=123_456_789.0),
        Evaluated(99_999_999, 1, 1.0, 1e30, best=True),
    )  # fmt: skip
    lines = drawn(status, width, 30)
    assert all(cell_len(line) <= width for line in lines)
    assert "b.txt" in lines[0]
    assert "run-42" in lines[0]
    assert any(" 99%" in line for line in lines)  # the view shows 100 % only after the last step


@pytest.mark.parametrize(
    ("height", "holds", "lacks"),
    [
        (1, ["1,000/3,000"], ["loss"]),
        (3, ["1,000/3,000", "val loss", "norm"], ["shakespeare"]),
        (5, ["shakespeare", "parameters"], ["sample"]),
        (9, ["┤", "o val loss"], ["sample"]),
        (17, ["┤", "sample at"], []),
    ],
)
def test_a_low_window_keeps_the_most_important_lines(
    height: int, holds: list[str], lacks: list[str]
) -> None:
    text = "\n".join(drawn(status_of(*a_run(1000)), 79, height))
    assert all(fact in text for fact in holds)
    assert not any(fact in text for fact in lacks)


def test_in_a_low_window_the_progress_bar_follows_the_headline() -> None:
    lines = drawn(status_of(*a_run(200)), 79, 4)
    assert "shakespeare" in lines[0]
    assert "200/3,000" in lines[1]


def test_the_panel_before_the_first_step_and_after_the_last() -> None:
    assert drawn(status_of(), 79, 23) == []
    assert "eta -" in "\n".join(drawn(status_of(started()), 79, 23))
    ended = status_of(*a_run(200), Finished(200, 1, 1.0, "interrupted", 1.5, None, None, None))
    assert "interrupted" in "\n".join(drawn(ended, 79, 23))


def test_the_bar_fills_with_the_steps() -> None:
    def filled(step: int) -> int:
        (line,) = (ln for ln in drawn(status_of(started(), step_done(step)), 79, 23) if "eta" in ln)
        return line.count("━")

    lengths = [filled(step) for step in (1, 750, 1500, 2250, 3000)]
    assert lengths[0] == 0
    assert lengths == sorted(set(lengths))
    assert lengths[2] * 2 == pytest.approx(lengths[4], abs=1)


def test_an_evaluation_before_the_first_step_is_drawn() -> None:
    events = [started(), Evaluated(0, 0, 0.1, 4.17, best=True), step_done(1), step_done(2)]
    text = "\n".join(drawn(status_of(*events), 79, 23))
    assert "best  4.1700 at 0" in text


def test_a_new_sample_replaces_the_old_one() -> None:
    status = status_of(*a_run(200), SampleDrawn(300, "ROMEO:", " hello"))
    text = "\n".join(drawn(status, 79, 23))
    assert "ROMEO: hello" in text
    assert "KING" not in text


def test_a_new_plan_changes_the_total_and_the_time_left() -> None:
    planned = status_of(*a_run(1000), Replanned(1000, 2000, "slower"))
    text = "\n".join(drawn(planned, 79, 23))
    assert "1,000/2,000" in text
    assert "50%" in text
    assert "eta 0:33" in text
    assert "3,000" not in text
