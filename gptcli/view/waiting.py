"""Shows a line on the terminal while a command computes, and erases it before the result."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def waiting(what: str) -> Iterator[Callable[[str], None]]:
    """Show `what` and an ellipsis on the terminal (stderr) while the block runs.

    The block gets a function that shows another text instead, for example a count.
    Output to the terminal appears above the line. A terminal without cursor control keeps the line.
    A file or a pipe gets nothing."""
    if not sys.stderr.isatty():
        yield _nothing
        return
    from rich.console import Console
    from rich.text import Text

    from gptcli.view.region import Region
    from gptcli.view.safe_text import clean, crop, ellipsis_for

    console = Console(stderr=True, highlight=False)

    def shown(text: str) -> str:
        return clean(text, console.encoding) + " " + ellipsis_for(console.encoding)

    words = shown(what)
    if not console.is_interactive or console.is_dumb_terminal or console.legacy_windows:
        console.print(Text(words))
        yield _nothing
        return

    def lines(width: int, height: int) -> list[Text]:
        return [Text(crop(words, width), style="dim", end="")] if height > 0 else []

    region = Region(console, lines)

    def replace(text: str) -> None:
        nonlocal words
        words = shown(text)
        region.refresh()

    region.open()
    try:
        region.refresh()
        yield replace
    finally:
        region.close()


def _nothing(text: str) -> None:
    """Ignore the text: this output has no line, or its line cannot be replaced."""
