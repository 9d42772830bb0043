"""A line on the terminal while a command computes, erased when the result is there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show `what` and three dots on the terminal (stderr) until the block ends.

    Output to the terminal appears above the line. A terminal without cursor control keeps the line.
    A file or a pipe gets nothing."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.text import Text

    from gptcli.view.region import Region
    from gptcli.view.safe_text import clean, crop, ellipsis_for

    console = Console(stderr=True, highlight=False)
    words = clean(what, console.encoding) + " " + ellipsis_for(console.encoding)
    if not console.is_interactive or console.is_dumb_terminal or console.legacy_windows:
        console.print(Text(words))
        yield
        return

    def lines(width: int, height: int) -> list[Text]:
        return [Text(crop(words, width), style="dim", end="")] if height > 0 else []

    region = Region(console, lines)
    region.open()
    try:
        region.refresh()
        yield
    finally:
        region.close()
