"""Repaints the live view's lines in place, at the bottom of the terminal.

rich.live is not used, for three reasons. It erases all lines before it draws them, which flickers.
It hides the cursor for the whole run. It draws in the wrong rows after the window has become
narrower.

A Region overwrites its lines, so nothing flickers. If a window becomes narrower and wraps the
lines, the Region still finds their rows. If the process is killed, the terminal stays usable.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import suppress

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.control import Control
from rich.file_proxy import FileProxy
from rich.segment import ControlType, Segment
from rich.text import Text

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
# Automatic wrapping is off while the lines are painted. If the terminal draws a character wider
# than rich expects, the line is cut, and the lines below it stay in their rows.
WRAP_OFF, WRAP_ON = "\x1b[?7l", "\x1b[?7h"
ERASE_REST_OF_LINE, ERASE_BELOW = "\x1b[K", "\x1b[J"


class _Codes:
    """Terminal codes that rich prints without counting them as text."""

    def __init__(self, codes: str) -> None:
        self.segment = Segment(codes, None, [(ControlType.ERASE_IN_LINE, 0)])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.segment


class _Frame:
    """Draws the lines of the region, and erases the rest of the row behind each line.

    Leaves the cursor below the lines."""

    def __init__(self, lines: list[Text]) -> None:
        self.lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        behind, new_line = _Codes(ERASE_REST_OF_LINE).segment, Segment.line()
        for line in self.lines:
            yield from console.render(line, options)
            yield behind
            yield new_line


class Region(RenderHook):
    """Shows, at the bottom of the terminal, the lines that `draw(width, height)` returns.

    `draw` must return at most `height` lines of at most `width` cells. While the region is open,
    output to the console appears above the region. If sys.stdout or sys.stderr is a terminal, its
    output also appears above the region. The last column and the last row stay free. The cursor
    waits at the start of the row below the region. If the terminal echoes ^C in this row, the next
    frame paints over the ^C.
    """

    def __init__(self, console: Console, draw: Callable[[int, int], list[Text]]) -> None:
        self._console = console
        self._draw = draw
        self._painted: list[int] = []  # widths in cells of the lines on the screen
        self._painted_size = console.size
        self._refreshing = False
        self._proxies: dict[str, FileProxy] = {}
        self.is_open = False

    def open(self) -> None:
        """Take over the bottom of the screen. Paints nothing yet."""
        assert not self.is_open
        self.is_open = True
        self._console.push_render_hook(self)
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is not None and stream.isatty() and not isinstance(stream, FileProxy):
                self._proxies[name] = FileProxy(self._console, stream)
                setattr(sys, name, self._proxies[name])

    def refresh(self) -> None:
        """Repaint the region in place."""
        self._refreshing = True
        try:
            self._console.print(Control())
        finally:
            self._refreshing = False

    def close(self) -> None:
        """Erase the region and restore stdout and stderr. The output above the region stays."""
        if not self.is_open:
            return
        for name, proxy in self._proxies.items():
            with suppress(OSError):
                proxy.flush()
            if getattr(sys, name) is proxy:  # if not, other code has replaced the stream
                setattr(sys, name, proxy.rich_proxied_file)
        self._proxies.clear()
        self.is_open = False
        self._console.pop_render_hook()
        self._console.print(_Codes(self._to_top() + ERASE_BELOW))
        self._painted = []

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Add the region below the output that rich is about to print. rich calls this method."""
        size = self._console.size
        lines = self._draw(size.width - 1, size.height - 1)
        # A refresh changes nothing above the region, so it need not erase anything first. If the
        # window's size has changed, the old lines must be erased, because terminals remember which
        # rows they have wrapped.
        overwrite = self._refreshing and size == self._painted_size
        begin = self._to_top() + ("" if overwrite else ERASE_BELOW)
        self._painted_size = size
        self._painted = [line.cell_len for line in lines]
        return [
            _Codes(HIDE_CURSOR + begin),
            *renderables,
            _Codes(WRAP_OFF),
            _Frame(lines),
            _Codes(ERASE_BELOW + WRAP_ON + SHOW_CURSOR),
        ]

    def _to_top(self) -> str:
        up = rows_on_screen(self._painted, self._console.size.width)
        return "\r" + (f"\x1b[{up}A" if up else "")


def rows_on_screen(widths: Iterable[int], width: int) -> int:
    """The number of rows that lines of these widths fill in a window of `width` cells.

    If the window becomes narrower, the terminal wraps a long line, which then fills several rows.
    """
    return sum(max(1, -(-cells // max(1, width))) for cells in widths)
