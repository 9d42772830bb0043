"""What the live view writes to a terminal: the panel, the lines above it, and the lines that stay
at the end."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from rich.console import Console

from gptcli.events import Evaluated, Finished, Notice
from gptcli.view.plain import PlainView
from gptcli.view.region import rows_on_screen
from gptcli.view.terminal import LiveView, open_view
from tests.view.test_view_plain import a_run_that_memorises
from tests.view.view_screen import Screen, a_run, memory_console, started, step_done

DONE = Finished(3000, 6_144_000, 100.0, "done", 1.43, 1.58, 1.57, 2800)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A list with one number: the time that time.monotonic returns to the view.

    The test can change the number."""
    now = [100.0]
    monkeypatch.setattr("gptcli.view.terminal.time.monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    "size",
    [
        pytest.param((60, 20), marks=pytest.mark.slow),
        (80, 24),
        pytest.param((120, 40), marks=pytest.mark.slow),
        (40, 6),
        (20, 3),
    ],
    ids=str,
)
def test_the_panel_is_on_the_screen_once_and_no_line_wraps(
    size: tuple[int, int], clock: list[float]
) -> None:
    screen = Screen(*size)
    with LiveView(screen.console()) as view:
        for event in a_run(1000, "混ざった幅の広い文字列\x1b[2J\x07\r\t" * 30):
            clock[0] += 0.05
            view.handle(event)
            assert screen.cursor, "the cursor must be visible between any two frames"
        clock[0] += 1
        view.handle(step_done(1001))
        rows = screen.rows()
        assert sum("1,001/3,000" in row for row in rows) == 1
        assert sum("1,000/3,000" in row for row in rows) == 0
        assert len(rows) <= size[1]
        assert screen.wrapped == 0
        view.handle(DONE)
    assert screen.wraps
    assert sum(row.startswith("done at step 3,000") for row in screen.rows()) == 1
    assert not any("tok/s" in row and "speed" in row for row in screen.rows())
    assert not any("/3,000" in row for row in screen.rows())
    assert screen.wrapped == 0
    # The chart, the summary, a blank line, `Next: ...` and the prompt fit into the window.
    assert len(screen.rows()) + 2 <= size[1] or size[1] < 10
    assert screen.x == 0


def test_the_last_lines_replace_the_panel() -> None:
    screen = Screen(80, 24)
    console = screen.console()
    console.print("before")
    with LiveView(console) as view:
        for event in a_run(200):
            view.handle(event)
        view.handle(DONE)
    rows = screen.rows()
    assert rows[:3] == [
        "before",
        " shakespeare → runs/shakespeare",
        " modern, 0.82 M parameters · char, 65 tokens · cpu (2 threads), float32",
    ]
    assert sum("┤" in row for row in rows) >= 2
    assert any("o val loss" in row for row in rows)
    assert rows.index(" sample at step 200") < rows.index("done at step 3,000 of 3,000")
    assert rows[-5:] == [
        "done at step 3,000 of 3,000",
        "6,144,000 tokens in 1:40, 61,440 tok/s",
        "loss 1.4300  val loss 1.5800  best 1.5700 at step 2,800",
        "`sample` uses the best step, 2,800",
        "",
    ]
    assert not any("eta" in row for row in rows)


@pytest.mark.parametrize("size", [(80, 10), (20, 3)], ids=str)
def test_in_a_low_window_only_the_last_lines_stay(size: tuple[int, int]) -> None:
    screen = Screen(*size)
    with LiveView(screen.console()) as view:
        for event in a_run(200):
            view.handle(event)
        view.handle(DONE)
    assert screen.rows()[0].startswith("done at step 3,000")


def test_a_run_without_a_step_leaves_no_picture() -> None:
    screen = Screen(80, 24)
    with LiveView(screen.console()) as view:
        view.handle(started())
        view.handle(Finished(0, 0, 0.0, "interrupted", None, None, None, None))
    assert screen.rows() == ["interrupted at step 0 of 3,000", "0 tokens in 0.0 s", ""]


@pytest.mark.slow
def test_a_large_window_is_used(clock: list[float]) -> None:
    screen = Screen(200, 60)
    with LiveView(screen.console()) as view:
        for event in a_run(1000, "word " * 800):
            clock[0] += 0.01
            view.handle(event)
        clock[0] += 1
        view.handle(step_done(1001))
        rows = screen.rows()
        assert 50 <= len(rows) <= 58
        assert sum(row[6:7] in ("│", "┤") for row in rows) >= 40
        assert max(map(len, rows)) >= 185
        (column,) = (row.index(" sample at step") for row in rows if " sample at step" in row)
        beside = [row[column:].strip() for row in rows if len(row) > column and "word" in row]
        assert len(beside) >= 12
        assert max(map(len, beside)) <= 100, "longer lines of text are hard to read"


@pytest.mark.slow
def test_the_note_of_a_run_that_memorises_stays_above_the_panel(clock: list[float]) -> None:
    screen = Screen(120, 24)
    with LiveView(screen.console()) as view:
        for event in a_run_that_memorises():
            clock[0] += 0.1
            view.handle(event)
        assert screen.rows()[0].startswith("step 300: the validation loss has risen for two")
        assert sum("has risen" in row for row in screen.rows()) == 1


def test_an_earlier_part_of_the_run_is_in_the_curve(clock: list[float]) -> None:
    screen = Screen(80, 24)
    with LiveView(screen.console()) as view:
        for step in (1, 100, 200):
            view.recall(step_done(step, logged=True, seconds=1000.0))
        view.recall(Evaluated(200, 1, 1.0, 1.7, best=True))
        assert screen.rows() == [""]
        view.handle(started(resumed_from=200))
        for step in (201, 202, 203):
            view.handle(step_done(step))
        clock[0] += 1
        view.handle(step_done(204, seconds=204 / 30))
        text = "\n".join(screen.rows())
        assert "best  1.7000 at 200" in text
        assert re.search(r"\n       1 .* 204$", text, re.MULTILINE)
        # The estimate uses only the speed after the resume: 30 steps a second.
        assert "eta 1:3" in text


def test_notices_and_prints_appear_above_the_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(80, 24)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdout", screen)
    with LiveView(screen.console()) as view:
        view.handle(started())
        view.handle(Notice("[bold]a note\x1b[2J[/]"))
        print("a print")
        sys.stderr.write("a warning\n")
        print("half a line", end="")
        view.handle(step_done(1))
    rows = screen.rows()
    assert rows[0] == "[bold]a note␛[2J[/]"
    assert rows[1:4] == ["a print", "a warning", "half a line"]
    assert rows[4:] == ["stopped at step 1 of 3,000 after 0.0 s, loss 4.2028", ""]
    assert sys.stderr is screen
    assert sys.stdout is screen


def test_stdout_that_is_not_a_terminal_is_not_redirected(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, data = Screen(80, 24), io.StringIO()
    monkeypatch.setattr(sys, "stdout", data)
    with LiveView(screen.console()) as view:
        view.handle(started())
        assert sys.stdout is data
        print('{"json": 1}')
    assert data.getvalue() == '{"json": 1}\n'
    assert not any("json" in row for row in screen.rows())


def test_an_exception_leaves_a_clean_screen(clock: list[float]) -> None:
    screen = Screen(80, 24)
    with suppress(KeyboardInterrupt), LiveView(screen.console()) as view:
        for event in a_run(60):
            clock[0] += 0.05
            view.handle(event)
        screen.write("^C")  # a terminal writes this when the user presses Ctrl-C
        raise KeyboardInterrupt
    assert screen.rows() == ["stopped at step 60 of 3,000 after 2.0 s, loss 3.1285", ""]
    assert screen.cursor
    assert screen.wraps


def test_an_echoed_ctrl_c_is_painted_over(clock: list[float]) -> None:
    screen = Screen(80, 24)
    with LiveView(screen.console()) as view:
        view.handle(started())
        view.handle(step_done(1))
        screen.write("^C")
        clock[0] += 1
        view.handle(step_done(2))
        assert not any("^C" in row for row in screen.rows())
        assert sum("2/3,000" in row for row in screen.rows()) == 1


@pytest.mark.slow
def test_a_narrower_window_is_repainted(clock: list[float]) -> None:
    screen = Screen(100, 60)
    console = screen.console()
    with LiveView(console) as view:
        for event in a_run(600):
            clock[0] += 0.05
            view.handle(event)
        screen.narrow(60)
        console.size = (60, 60)  # type: ignore[assignment]
        clock[0] += 1
        view.handle(step_done(601))
        # When the window became narrower, some rows scrolled off its top. Programs cannot erase
        # these rows, so look only at the rows below.
        text = "\n".join(screen.rows()[screen.top :])
        assert text.count("shakespeare →") == 1
        assert text.count("/3,000") == 1
        assert text.count("sample at") == 1
        assert max(len(row) for row in screen.rows()[screen.top :]) < 60


def test_rows_on_screen_counts_wrapped_rows() -> None:
    assert rows_on_screen([], 80) == 0
    assert rows_on_screen([0, 79, 80, 81, 161], 80) == 1 + 1 + 1 + 2 + 3


def test_the_view_draws_four_times_a_second(clock: list[float]) -> None:
    frames = 0

    class Counting(Screen):
        def write(self, text: str) -> int:
            nonlocal frames
            frames += "\x1b[?25h" in text
            return super().write(text)

    with LiveView(Counting(80, 24).console()) as view:
        view.handle(started())
        for step in range(1, 1001):
            clock[0] += 0.01
            view.handle(step_done(step))
        # The view draws about four frames a second, and this run takes ten seconds.
        assert 35 <= frames <= 45


def test_a_step_that_is_not_drawn_takes_almost_no_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gptcli.view.terminal.REFRESH_SECONDS", 1e9)
    events = [step_done(step) for step in range(1, 5001)]
    with LiveView(Screen(80, 24).console()) as view:
        view.handle(started())
        best = float("inf")
        for _ in range(3):
            # Processor time excludes other processes, and wall time does not.
            begin = time.thread_time()
            for event in events:
                view.handle(event)
            best = min(best, (time.thread_time() - begin) / len(events))
    assert best < 200e-6


def test_slow_drawing_takes_at_most_2_percent_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now, draws = [0.0], []

    class Slow(Screen):
        def write(self, text: str) -> int:
            if "\x1b[?25h" in text:
                draws.append(now[0])
                now[0] += 0.1  # on this slow connection, it takes 0.1 s to write a frame
            return super().write(text)

    monkeypatch.setattr("gptcli.view.terminal.time.monotonic", lambda: now[0])
    with LiveView(Slow(80, 24).console()) as view:
        view.handle(started())
        while now[0] < 20:
            now[0] += 0.01
            view.handle(step_done(1 + int(now[0] * 100)))
    # Drawing may take 2 % of 20 s: enough for four frames of 0.1 s, in addition to the first frame.
    assert 2 <= len(draws) <= 6


@pytest.mark.parametrize("no_color", [False, True])
def test_no_color_is_honoured(
    no_color: bool, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    stream = io.StringIO()
    console = Console(
        file=stream, force_terminal=True, color_system="standard", width=80, height=24
    )
    with LiveView(console) as view:
        for event in a_run(220):
            clock[0] += 0.1
            view.handle(event)
    assert "sample at step 200" in stream.getvalue()
    for colour in (36, 33, 32):  # cyan, yellow, green
        assert (f"{colour}m" in stream.getvalue()) is not no_color


def test_render_returns_the_panel() -> None:
    console = Console(record=True, file=io.StringIO(), width=80, height=30)
    view = LiveView(console)
    for event in a_run(1000):
        view.handle(event)
    console.print(view.render())
    lines = console.export_text(clear=False).splitlines()
    assert any("1,000/3,000" in line for line in lines)
    assert all(len(line) < 80 for line in lines)
    assert len(lines) < 30
    assert "What" in console.export_svg(title="gptcli train")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_only_a_terminal_with_cursor_control_gets_the_live_view(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    assert isinstance(open_view(Console(file=Terminal(), legacy_windows=False)), LiveView)
    assert isinstance(open_view(Console(file=Terminal(), legacy_windows=True)), PlainView)
    assert isinstance(open_view(Console(file=io.StringIO())), PlainView)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert isinstance(open_view(Console(file=io.StringIO())), PlainView)
    monkeypatch.delenv("FORCE_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(open_view(Console(file=Terminal(), legacy_windows=False)), PlainView)


def test_an_ascii_stream_gets_an_ascii_panel() -> None:
    console = memory_console(80, 24, encoding="ascii")
    with LiveView(console) as view:
        for event in a_run(400, "日本語 naïve"):
            view.handle(event)
        view.handle(Notice("naïve"))
    console.file.seek(0)
    text = console.file.read()
    assert "->" in text
    assert "na?ve" in text


def test_the_view_does_not_import_torch() -> None:
    folder = Path(__file__).parents[2] / "gptcli" / "view"
    modules = [f"gptcli.view.{path.stem}" for path in folder.glob("[a-z]*.py")]
    assert len(modules) > 8
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
