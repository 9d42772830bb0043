"""Decides when the live view of a run redraws, and when plain lines replace it."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, RenderableType
from rich.text import Text

from gptcli.events import Event, Finished, Notice, RunStarted, StepDone
from gptcli.view.glyphs import VAL
from gptcli.view.live_state import LiveState
from gptcli.view.memorising import MemorisingNote
from gptcli.view.panel import panel
from gptcli.view.plain import PlainView
from gptcli.view.region import Region
from gptcli.view.run_end import last_lines, unfinished_line
from gptcli.view.run_status import RunStatus
from gptcli.view.safe_text import clean

REFRESH_SECONDS = 0.25
DRAWING_SHARE = 0.02  # drawing after steps takes at most this share of the time
TALL = 15  # rows; a window this high keeps LINES_ABOVE rows free for the newest notes
LINES_ABOVE = 2


class LiveView:
    """Shows a panel at the bottom of the terminal during training. A few lines stay afterwards.

    Use it as a context manager and pass every event to `handle`, which also draws. Steps redraw the
    panel at most four times a second, in at most 2 % of the time. A key or a notice redraws it at
    once. No thread draws the panel, so it does not change between events, for example during
    an evaluation.
    """

    def __init__(self, console: Console, live: LiveState | None = None) -> None:
        self._console = console
        self._live = live or LiveState()
        self._status = RunStatus()
        self._region = Region(console, self._lines)
        self._memorising = MemorisingNote()
        self._next_draw = 0.0  # by time.monotonic

    def __enter__(self) -> LiveView:
        self._region.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        line = unfinished_line(self._status) if self._status.finished is None else None
        self._close([line] if line is not None else [])

    def handle(self, event: Event) -> None:
        """Take in one event. Redraw if the last drawing is old enough.

        The start of the run and a notice always redraw. The end of the run closes the panel."""
        self._status.absorb(event)
        self._live.absorb(event)
        if isinstance(event, StepDone):
            if time.monotonic() >= self._next_draw:
                self._draw()
        elif isinstance(event, Notice):
            self._console.print(Text(clean(event.message, self._console.encoding)))
        elif isinstance(event, Finished):
            self._close(last_lines(event, self._status, self._console))
        elif isinstance(event, RunStarted) or time.monotonic() >= self._next_draw:
            self._draw()
        note = self._memorising.line(event, self._status)
        if note is not None:
            self._console.print(Text(note, style=VAL))

    def press(self, key: str) -> None:
        """Take in a key that the user has pressed, and redraw at once."""
        self._live.press(key)
        self._draw()

    def recall(self, event: Event) -> None:
        """Take in an event of an earlier part of the run, without drawing."""
        self._status.recall(event)

    def render(self, width: int | None = None, height: int | None = None) -> RenderableType:
        """The current panel, by default in the size of the console. Tests use it."""
        size = self._console.size
        lines = panel(
            self._status,
            self._console,
            width or size.width - 1,
            height or size.height - 1,
            self._live,
        )
        return Text("\n", no_wrap=True).join(lines)

    def _lines(self, width: int, height: int) -> list[Text]:
        if height >= TALL:
            height -= LINES_ABOVE
        return panel(self._status, self._console, width, height, self._live)

    def _draw(self) -> None:
        if not self._region.is_open:
            return
        begin = time.monotonic()
        self._region.refresh()
        end = time.monotonic()
        self._next_draw = max(begin + REFRESH_SECONDS, end + (end - begin) / DRAWING_SHARE)

    def _close(self, lines: list[Text]) -> None:
        with self._console:  # one write: the summary replaces the panel without flicker
            self._region.close()
            for line in lines:
                self._console.print(line)


def is_live(console: Console) -> bool:
    """Whether this console gets the live view: a terminal with cursor control.

    Asks the console's file, because rich's is_terminal is also true for a pipe if FORCE_COLOR is
    set."""
    return console.file.isatty() and console.is_interactive and not console.legacy_windows


def open_view(console: Console, live: LiveState | None = None) -> LiveView | PlainView:
    """The live view if the console is a terminal, else plain lines.

    A terminal without cursor control (TERM=dumb or an old Windows console) gets plain lines. A pipe
    always gets plain lines, even if FORCE_COLOR asks for colours.
    """
    return LiveView(console, live) if is_live(console) else PlainView(console)
