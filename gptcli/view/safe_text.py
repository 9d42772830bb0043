"""Text that a model or a file wrote, made fit for a terminal: harmless, and cut to the cell.

A young model writes anything its tokenizer can spell, escape sequences included; none of that
may move the cursor, ring the bell or reverse the reading direction.
"""

from __future__ import annotations

import unicodedata

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

TAB = "    "
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Other, control / format / surrogate / private use / unassigned, and the line and paragraph
# separators: what a terminal either obeys or has no agreed width for.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_INVISIBLE = dict.fromkeys((*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0), 0x200D, 0x00AD))


def clean(text: str, encoding: str = "utf-8") -> str:
    """The text without anything that a terminal would obey; newlines stay, tabs become blanks.

    A carriage return counts as a newline, as it does in a text file. Control characters are
    shown by their Unicode pictures (U+2400 on), others of no agreed width as U+FFFD; joiners
    and variation selectors go, so that one character is one glyph. What `encoding` cannot
    spell becomes "?".
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\t", TAB)
    if not (text.isascii() and text.replace("\n", "").isprintable()):
        text = "".join(map(_harmless, text.translate(_INVISIBLE)))
    return text.encode(encoding, "replace").decode(encoding)


def _harmless(character: str) -> str:
    code = ord(character)
    if character == "\n":
        return character
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    return REPLACEMENT if unicodedata.category(character) in _UNSAFE else character


def ellipsis_for(encoding: str) -> str:
    """What marks a cut: one character where the stream can spell it, else dots."""
    return "…" if encoding.lower().startswith("utf") else "..."


def crop(text: str, width: int, *, ellipsis: str = "…", keep_end: bool = False) -> str:
    """The text, at most `width` cells wide, with an ellipsis where something was cut off.

    `keep_end` keeps the end instead of the beginning: of a path, the end says more.
    """
    if cell_len(text) <= width:
        return text
    if width <= len(ellipsis):
        return ellipsis[: max(0, width)]
    room = width - len(ellipsis)
    if keep_end:
        return ellipsis + set_cell_size(text[::-1], room).rstrip()[::-1]
    return set_cell_size(text, room).rstrip() + ellipsis


def one_line(text: str, width: int, *, encoding: str = "utf-8") -> str:
    """The text on one line, newlines as a backslash and an n, at most `width` cells wide."""
    shown = clean(text[: 4 * width + 4], encoding).replace("\n", "\\n")
    return crop(shown, width, ellipsis=ellipsis_for(encoding))


def sample_lines(prompt: str, text: str, width: int, height: int, console: Console) -> list[Text]:
    """A prompt (bold) and its continuation in at most `height` lines of at most `width` cells.

    Long lines are wrapped, blank lines before the first word are left out, and an ellipsis
    ends a sample of which not everything is shown.
    """
    if height < 1 or width < 1:
        return []
    encoding = console.encoding
    most = 4 * width * height  # what is cut off anyway need not be cleaned first
    prompt = clean(prompt[:most], encoding)
    continuation = clean(text[:most], encoding)
    if not prompt.strip():
        prompt, continuation = "", continuation.lstrip("\n")
    whole = Text.assemble((prompt.lstrip("\n"), "bold"), continuation.rstrip())
    lines = list(whole.wrap(console, width, overflow="fold"))
    shown = lines[:height]
    for line in shown:
        line.end = ""
        line.rstrip()
    if shown and (len(lines) > height or len(text) > most):
        mark = " " + ellipsis_for(encoding)
        last = shown[-1]
        last.truncate(max(0, width - len(mark)), overflow="crop")
        last.append(mark[:width], style="dim")
    return shown
