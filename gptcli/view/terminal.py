"""The live view of a training run, and the choice between it and plain lines."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, RenderableType
from rich.text import Text

from gptcli.events import Event, Finished, Notice, RunStarted, StepDone
from gptcli.view.panel import panel
from gptcli.view.plain import PlainView
from gptcli.view.region import Region
from gptcli.view.run_end import summary_lines, unfinished_line
from gptcli.view.run_status import RunState
from gptcli.view.safe_text import clean

REFRESH_SECONDS = 0.25
MOST_OF_THE_TIME = 0.02  # the share of the time that may go into drawing
TALL = 15  # rows; from here on some are left to what was printed before, the newest notes
LINES_ABOVE = 3


class LiveView:
    """A panel at the bottom of the terminal while a run trains; a summary when it has ended.

    A context manager; hand every event to `handle`. It draws from there, at most four times a
    second and for at most a fiftieth of the time, so there is no thread; while no events
    come, as during an evaluation, the picture stands still.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._state = RunState()
        self._region = Region(console, self._lines)
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
        line = unfinished_line(self._state) if self._state.finished is None else None
        self._close([line] if line is not None else [])

    def handle(self, event: Event) -> None:
        """Take in one event; draw if it is time to."""
        self._state.absorb(event)
        if isinstance(event, StepDone):
            if time.monotonic() >= self._next_draw:
                self._draw()
        elif isinstance(event, Notice):
            self._console.print(Text(clean(event.message, self._console.encoding)))
        elif isinstance(event, Finished):
            started = self._state.started
            max_steps = started.max_steps if started is not None else None
            self._close(summary_lines(event, max_steps, encoding=self._console.encoding))
        elif isinstance(event, RunStarted) or time.monotonic() >= self._next_draw:
            self._draw()

    def render(self, width: int | None = None, height: int | None = None) -> RenderableType:
        """The panel as it stands, by default for the console's size; for captures and tests."""
        size = self._console.size
        lines = panel(
            self._state, self._console, width or size.width - 1, height or size.height - 1
        )
        return Text("\n", no_wrap=True).join(lines)

    def _lines(self, width: int, height: int) -> list[Text]:
        if height >= TALL:
            height -= LINES_ABOVE
        return panel(self._state, self._console, width, height)

    def _draw(self) -> None:
        if not self._region.is_open:
            return
        begin = time.monotonic()
        self._region.refresh()
        end = time.monotonic()
        self._next_draw = max(begin + REFRESH_SECONDS, end + (end - begin) / MOST_OF_THE_TIME)

    def _close(self, lines: list[Text]) -> None:
        with self._console:  # one write: the panel is seen to become the summary
            self._region.close()
            for line in lines:
                self._console.print(line)


def open_view(console: Console) -> LiveView | PlainView:
    """The view that suits the console (one on stderr): live on a terminal, else plain lines.

    A terminal that only prints (TERM=dumb, an old Windows console) gets plain lines, and so
    does a pipe, even where FORCE_COLOR asks for colours in it.
    """
    # rich's own is_terminal is also true where FORCE_COLOR is set.
    on_terminal = console.file.isatty() and console.is_interactive
    return LiveView(console) if on_terminal and not console.legacy_windows else PlainView(console)
