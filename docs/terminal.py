"""Runs commands in a terminal as a person types them. Draws the screens as still or moving SVG.

The commands write to a pseudo-terminal, and pyte computes the screen that a window would show. The
SVG stores equal rows of the screen only once. The SVG loads no other files, and does not move if
the reader has told the system to reduce motion.
"""

from __future__ import annotations

import fcntl
import html
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import pyte

PROMPT = "$ "
KEY_SECONDS = 0.06  # the time between two typed keys
FRAME_SECONDS = 0.25  # the shortest time between two frames while a command works
END_SECONDS = 6.0  # how long the last frame is shown
ROUNDS = 3  # how many times a moving picture plays before it stops
CELL, LINE, SIZE = 8.4, 19.0, 14  # pixels: width of a cell, height of a row, size of the font
EDGE = 12.0
PAPER, INK = "#16181d", "#e8e6e1"
COLOURS = {
    "default": INK, "dim": "#a3a09a", "black": "#101216", "red": "#ff8f80", "green": "#8fce8f",
    "brown": "#e8b44c", "blue": "#82b8ff", "magenta": "#e49be0", "cyan": "#5fcbe0",
    "white": "#ffffff", "brightblack": "#a3a09a",
}  # fmt: skip
"""The colours of a terminal by their names in pyte. Each has a contrast of at least 4.5 on PAPER,
except black, which gptcli uses only on coloured tiles."""


@dataclass(frozen=True)
class Style:
    """The colours of the characters and of their background, and whether they are bold. Colours are
    CSS colours."""

    ink: str
    paper: str
    bold: bool


Row = tuple[tuple[Style, int, str], ...]
"""A row of the screen: spans of (style, first column, text)."""


@dataclass(frozen=True)
class Frame:
    """A screen, and how many seconds a moving picture shows it."""

    rows: tuple[Row, ...]
    seconds: float


class _Screen(pyte.Screen):
    """A pyte screen that also knows the faint style (SGR 2), as the colour `dim`."""

    def select_graphic_rendition(self, *attributes: int) -> None:
        super().select_graphic_rendition(*attributes)
        faint = self.cursor.attrs.fg == "dim"
        if 2 in attributes and self.cursor.attrs.fg == "default":
            self.cursor.attrs = self.cursor.attrs._replace(fg="dim")
        elif 22 in attributes and faint:
            self.cursor.attrs = self.cursor.attrs._replace(fg="default")


class Terminal:
    """A shell that runs in `folder`, in a window of `columns` by `lines`. Use it as a context
    manager."""

    def __init__(
        self, folder: Path, columns: int = 80, lines: int = 24, env: Mapping[str, str] | None = None
    ) -> None:
        self._screen = _Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self.frames: list[Frame] = []
        self._last = 0.0
        bin_folder = str(Path(sys.executable).parent)
        settings = {
            **os.environ, "TERM": "xterm-256color", "PS1": PROMPT, "HISTFILE": "",
            "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", **(env or {}),
        }  # fmt: skip
        for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "COLORTERM"):
            settings.pop(name, None)
        self._process, self._master = pty.fork()
        if self._process == 0:
            os.chdir(folder)
            os.execvpe("bash", ["bash", "--norc", "--noprofile"], settings)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def __enter__(self) -> Terminal:
        self._wait(self._at_prompt, 20)
        self._stream.feed(b"\x1b[2J\x1b[H")
        self.press("\n", 20)  # so that bash writes its prompt again
        self._stream.feed(b"\x1b[2J\x1b[H" + PROMPT.encode())
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self._process, signal.SIGHUP)
        os.close(self._master)
        os.waitpid(self._process, 0)

    def run(self, command: str, timeout: float = 900) -> None:
        """Type a command as a person does, and wait until the prompt is back."""
        for key in command:
            os.write(self._master, key.encode())
            self._wait(lambda: False, KEY_SECONDS)
            self._keep(always=True)
        self._wait(lambda: False, 0.5)
        os.write(self._master, b"\r")
        self._wait(lambda: not self._at_prompt(), 5)
        if not self._wait(self._at_prompt, timeout):
            raise TimeoutError(f"`{command}` did not end:\n" + "\n".join(self._screen.display))
        self._keep(always=True)

    def press(self, keys: str, timeout: float = 1.0) -> None:
        """Press keys, and wait until the prompt is back, at most `timeout` seconds."""
        os.write(self._master, keys.encode())
        self._wait(self._at_prompt, timeout)

    def text(self) -> str:
        """The text that the window shows."""
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip()

    def still(self, *, without_prompt: bool = True) -> Frame:
        """The screen as it is now, without empty rows at its end. By default, a prompt at the end
        is also left out."""
        rows = list(self._rows())
        while rows and (not rows[-1] or (without_prompt and _plain(rows[-1]) == PROMPT.strip())):
            rows.pop()
        return Frame(tuple(rows), END_SECONDS)

    def _at_prompt(self) -> bool:
        row = self._screen.display[self._screen.cursor.y]
        return row.rstrip() == PROMPT.rstrip() and self._screen.cursor.x == len(PROMPT)

    def _wait(self, is_done: Callable[[], bool], seconds: float) -> bool:
        end = time.monotonic() + seconds
        while True:
            left = end - time.monotonic()
            ready, _, _ = select.select([self._master], [], [], max(0.0, min(left, 0.05)))
            if ready:
                self._stream.feed(os.read(self._master, 65536))
                self._keep()
            elif is_done():
                return True
            elif left <= 0:
                return False

    def _keep(self, *, always: bool = False) -> None:
        """Add the screen to the frames if it has changed. Unless `always` is true, the last frame
        must also be older than FRAME_SECONDS."""
        now = time.monotonic()
        if not always and now - self._last < FRAME_SECONDS:
            return
        rows = tuple(self._rows())
        if self.frames and self.frames[-1].rows == rows:
            return
        if self.frames:
            self.frames[-1] = replace(self.frames[-1], seconds=now - self._last)
        self.frames.append(Frame(rows, END_SECONDS))
        self._last = now

    def _rows(self) -> list[Row]:
        found = []
        for y in range(self._screen.lines):
            line = self._screen.buffer[y]
            cells = [(x, line[x]) for x in range(self._screen.columns) if line[x].data]
            spans: list[tuple[Style, int, str]] = []
            for style, group in groupby(cells, lambda cell: _style(cell[1])):
                part = list(group)
                spans.append((style, part[0][0], "".join(cell.data for _, cell in part)))
            while spans and spans[-1][0].paper == PAPER and not spans[-1][2].strip():
                spans.pop()
            found.append(tuple(spans))
        return found


def _style(cell: pyte.screens.Char) -> Style:
    ink, paper = _colour(cell.fg, INK), _colour(cell.bg, PAPER)
    if cell.reverse:
        ink, paper = paper, ink
    return Style(ink if cell.data != " " or paper != PAPER else INK, paper, cell.bold)


def _colour(name: str, default: str) -> str:
    if name == "default":
        return default
    return COLOURS.get(name.removeprefix("bright"), f"#{name}") if name != "dim" else COLOURS["dim"]


def _plain(row: Row) -> str:
    return "".join(text for _, _, text in row).strip()


# ---- SVG -----------------------------------------------------------------------------------------


def paced(frames: Sequence[Frame], faster: float, least: float, most: float) -> list[Frame]:
    """The frames for a moving picture, with new durations. While a command works, the picture runs
    `faster` times as fast as the recording. While the user types, it runs as fast as the
    recording. A frame in which a command works is shown for `least` to `most` seconds. If several
    such frames come within `least` seconds, only the last of them is kept."""
    kept: list[Frame] = []
    waited = 0.0
    for number, one in enumerate(frames):
        is_typing = one.seconds <= 4 * KEY_SECONDS
        waited += 0.0 if is_typing else one.seconds / faster
        following = frames[number + 1] if number + 1 < len(frames) else None
        if is_typing:
            kept.append(one)
        elif waited >= least or following is None or following.seconds <= 4 * KEY_SECONDS:
            kept.append(replace(one, seconds=min(most, max(least, waited))))
            waited = 0.0
    return [*kept[:-1], replace(kept[-1], seconds=END_SECONDS)]


def svg(frames: Sequence[Frame], title: str, description: str) -> str:
    """An SVG picture of the frames. If there are several frames, it is animated: the frames are
    below each other in a strip, and the animation moves this strip by one frame at a time. Readers
    who prefer less motion, and programs without animation, see the last frame."""
    columns = max((_end(row) for frame in frames for row in frame.rows), default=1)
    columns = max(columns, 40)
    lines = max(len(frame.rows) for frame in frames)
    width, height = columns * CELL, lines * LINE
    styles = _Styles()
    names: dict[Row, str] = {}
    strip = []
    for number, frame in enumerate(frames):
        for y, row in enumerate(frame.rows):
            if row:
                name = names.setdefault(row, f"r{len(names)}")
                top = (number * lines + y) * LINE
                strip.append(f'<use href="#{name}" y="{top:g}"/>')
    defs = "".join(f'<g id="{name}">{_drawn(row, styles)}</g>' for row, name in names.items())
    motion = _motion(frames, height) if len(frames) > 1 else ""
    last = -(len(frames) - 1) * height
    whole_width, whole_height = width + 2 * EDGE, height + 2 * EDGE
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole_width:g} {whole_height:g}" '
        f'width="{whole_width:g}" role="img" aria-labelledby="title about" xml:space="preserve">\n'
        f'<title id="title">{html.escape(title)}</title>'
        f'<desc id="about">{html.escape(description)}</desc>\n'
        f"<style>text{{font:{SIZE}px ui-monospace,'SF Mono','Cascadia Mono',Menlo,Consolas,"
        f"'DejaVu Sans Mono',monospace;fill:{INK};white-space:pre}}{styles.css()}{motion}</style>\n"
        f"<defs>{defs}</defs>\n"
        f'<rect width="{whole_width:g}" height="{whole_height:g}" rx="8" fill="{PAPER}"/>\n'
        f'<svg x="{EDGE:g}" y="{EDGE:g}" width="{width:g}" height="{height:g}" overflow="hidden">'
        f'<g class="strip" transform="translate(0 {last:g})">{"".join(strip)}</g></svg>\n'
        "</svg>\n"
    )


def _end(row: Row) -> int:
    return row[-1][1] + len(row[-1][2]) if row else 0


class _Styles:
    """The CSS classes of the styles in a picture."""

    def __init__(self) -> None:
        self._names: dict[Style, str] = {}

    def name(self, style: Style) -> str:
        return self._names.setdefault(style, f"s{len(self._names)}")

    def css(self) -> str:
        return "".join(
            f".{name}{{fill:{style.ink}{';font-weight:700' if style.bold else ''}}}"
            for style, name in self._names.items()
        )


def _drawn(row: Row, styles: _Styles) -> str:
    """The SVG elements of a row of the screen, drawn at y = 0. The text of each span is
    exactly as wide as its cells, in every font."""
    parts = []
    for style, first, text in row:
        x, wide = first * CELL, len(text) * CELL
        if style.paper != PAPER:
            parts.append(
                f'<rect x="{x:g}" width="{wide:g}" height="{LINE:g}" fill="{style.paper}"/>'
            )
        if not text.strip():
            continue
        blanks = len(text) - len(text.lstrip())
        shown = text.strip()
        x, wide = x + blanks * CELL, len(shown) * CELL
        plain = style.ink == INK and not style.bold
        name = "" if plain else f' class="{styles.name(style)}"'
        parts.append(
            f'<text x="{x:.5g}" y="{0.75 * LINE:g}" textLength="{wide:.5g}"{name}>'
            f"{html.escape(shown, quote=False)}</text>"
        )
    return "".join(parts)


def _motion(frames: Sequence[Frame], height: float) -> str:
    """The CSS that moves the strip of frames, except for readers who prefer less motion."""
    total = sum(frame.seconds for frame in frames)
    at, stops = 0.0, []
    for number, frame in enumerate(frames):
        stops.append(f"{100 * at / total:.3f}%{{transform:translateY({-number * height:g}px)}}")
        at += frame.seconds
    stops.append(f"to{{transform:translateY({-(len(frames) - 1) * height:g}px)}}")
    return (
        f"@keyframes play{{{''.join(stops)}}}@media(prefers-reduced-motion:no-preference){{"
        f".strip{{animation:play {total:.2f}s step-end {ROUNDS} forwards}}}}"
    )
