"""`gptcli runs --watch`: shows the table of the runs, updated every second. Keys sort it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack

from rich.text import Text

from gptcli.cli.keys import Keys, has_keys
from gptcli.cli.output import stdout_console
from gptcli.cli.run_rows import KnownRows, named_runs, rows_of
from gptcli.view.region import Region
from gptcli.view.runs_table import Order, RunRow, runs_table, sorted_rows
from gptcli.view.runs_watch import Watched, next_order, watch_lines

RENEW_SECONDS = 1.0


def watch_runs(words: Sequence[str], order: Order | None, reverse: bool) -> None:
    """Show the table of the runs that `words` name, until the user presses q, Esc or Ctrl-C.

    After q and Esc, the table stays on the terminal."""
    known = KnownRows()
    console = stdout_console()
    has = has_keys()

    def current() -> list[RunRow]:
        rows = rows_of(named_runs(words), known)
        return sorted_rows(rows, order) if order else rows[::-1] if reverse else rows

    def lines(width: int, height: int) -> list[Text]:
        return watch_lines(watched, width, height, console, has_keys=has)

    watched = Watched(current(), order, time.strftime("%H:%M:%S"))
    region = Region(console, lines)
    with ExitStack() as stack:
        keys = stack.enter_context(Keys()) if has else None
        stack.callback(region.close)
        region.open()
        while True:
            region.refresh()
            pressed = _wait(keys)
            if {"q", "esc"} & set(pressed):
                break
            if "stop" in pressed and keys is not None:
                region.close()
                keys.stop()
                region.open()
            for key in pressed:
                if key == "r" and order is None:
                    reverse = not reverse
                order = next_order(order, key)
            watched = Watched(current(), order, time.strftime("%H:%M:%S"))
    console.print(runs_table(watched.rows, console.width, console.encoding, order))


def _wait(keys: Keys | None) -> list[str]:
    """Wait until the table must be updated, or until a key is pressed. Returns the pressed keys."""
    if keys is not None:
        return keys.read(RENEW_SECONDS)
    time.sleep(RENEW_SECONDS)
    return []
