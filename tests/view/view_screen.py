"""A small terminal emulator and the events of a run, for the tests of the view."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console

from gptcli.events import Evaluated, Event, RunStarted, SampleDrawn, StepDone

_TOKEN = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


class Screen(io.StringIO):
    """A terminal of `width` x `height` cells.

    It keeps the rows that a real terminal shows after the same output.

    The screen obeys the terminal codes that the view may use. All other codes raise an error. A
    wide character takes two cells, of which the second is empty."""

    encoding = "utf-8"  # type: ignore[assignment]

    def __init__(self, width: int, height: int) -> None:
        super().__init__()
        self.width, self.height = width, height
        self.cells: list[list[str]] = [[]]  # all rows, also those that have scrolled off the top
        self.top = 0
        self.x = self.y = 0  # y is counted from the first row of `cells`
        self.cursor, self.wraps = True, True
        self.wrapped = 0  # how often text was too long for its row

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        position = 0
        for match in _TOKEN.finditer(text):
            assert match.start() == position, f"unknown code at {text[position:][:20]!r}"
            position = match.end()
            private, number, code, control, words = match.groups()
            if code:
                self._obey(private + number + code)
            elif control == "\r":
                self.x = 0
            elif control == "\n":
                self._down()
            else:
                self._put(words)
        assert position == len(text), f"unknown code at {text[position:][:20]!r}"
        return len(text)

    def _obey(self, code: str) -> None:
        if code in ("?25h", "?25l"):
            self.cursor = code.endswith("h")
        elif code in ("?7h", "?7l"):
            self.wraps = code.endswith("h")
        elif code.endswith("A"):
            self.y = max(self.top, self.y - int(code[:-1] or 1))
        elif code == "J":
            del self.cells[self.y + 1 :]
            del self.cells[self.y][self.x :]
        elif code == "K":
            del self.cells[self.y][self.x :]
        else:
            assert code.endswith("m"), f"unexpected code {code!r}"

    def _down(self) -> None:
        self.x, self.y = 0, self.y + 1
        if self.y == len(self.cells):
            self.cells.append([])
        self.top = max(self.top, self.y - self.height + 1)

    def _put(self, words: str) -> None:
        for character in words:
            assert character.isprintable(), f"control character {character!r} reached the screen"
            wide = cell_len(character)
            if self.x + wide > self.width:
                if not self.wraps:
                    continue
                self.wrapped += 1
                self._down()
            row = self.cells[self.y]
            row.extend(" " * (self.x + wide - len(row)))
            row[self.x : self.x + wide] = [character, *[""] * (wide - 1)]
            self.x += wide

    def rows(self) -> list[str]:
        """All rows as text, also those that have scrolled off the top."""
        return ["".join(row).rstrip() for row in self.cells]

    def narrow(self, width: int) -> None:
        """Make the window `width` cells wide, and wrap rows that are too long, as terminals do."""
        rows, new_y = [], 0
        for y, row in enumerate(self.cells):
            if y == self.y:
                new_y = len(rows)
            rows += [row[at : at + width] for at in range(0, max(1, len(row)), width)]
        self.cells, self.y, self.width = rows, new_y, width
        self.top = max(0, len(rows) - self.height)

    def console(self) -> Console:
        return Console(
            file=self,
            force_terminal=True,
            color_system="truecolor",
            width=self.width,
            height=self.height,
            legacy_windows=False,
        )


def memory_console(width: int, height: int, *, encoding: str = "utf-8") -> Console:
    """A rich console of this size that writes to memory, but behaves as on a terminal."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    return Console(
        file=stream,
        force_terminal=True,
        color_system="truecolor",
        width=width,
        height=height,
        legacy_windows=False,
    )


def started(**changes: object) -> RunStarted:
    values: dict[str, object] = {
        "run": Path("runs/shakespeare"),
        "source": "shakespeare",
        "tokenizer": "char",
        "vocab_size": 65,
        "arch": "modern",
        "parameters": 820_864,
        "parameters_without_embeddings": 812_544,
        "train_tokens": 1_003_854,
        "val_tokens": 111_540,
        "max_steps": 3000,
        "tokens_per_step": 2048,
        "device": "cpu (2 threads)",
        "dtype": "float32",
        "compiled": False,
        "resumed_from": None,
    }
    values.update(changes)
    return RunStarted(**values)  # type: ignore[arg-type]


def step_done(
    step: int, *, loss: float | None = None, logged: bool = False, **changes: float
) -> StepDone:
    values = {
        "tokens": step * 2048,
        "seconds": step / 30,
        "learning_rate": 0.02,
        "grad_norm": 0.7123,
        "tokens_per_second": 61_234.4,
    }
    values.update(changes)
    if loss is None:
        loss = 1.5 + 2.7 * math.exp(-step / 120) + 0.03 * math.sin(step)
    return StepDone(step=step, loss=loss, logged=logged, **values)  # type: ignore[arg-type]


def a_run(steps: int = 1000, sample: str = "KING:\nWhat say'st thou?\n" * 9) -> Iterator[Event]:
    """The events of the first `steps` steps of a run of 3000 steps."""
    yield started()
    for step in range(1, steps + 1):
        yield step_done(step, logged=step % 100 == 0)
        if step % 200 == 0:
            val_loss = 1.6 + 2.7 * math.exp(-step / 120)
            yield Evaluated(step, step * 2048, step / 30, val_loss, best=True)
            yield SampleDrawn(step, "\n", sample)
