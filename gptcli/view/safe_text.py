"""Makes text of a model or a file safe to print: replaces control characters, and cuts it.

A model can write anything that its tokenizer can spell, including escape sequences. Such text must
not move the cursor, ring the bell or reverse the reading direction.
"""

from __future__ import annotations

import unicodedata

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from gptcli.files.paths import escape_undecodable

TAB = "    "
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Unicode categories of characters that a terminal obeys or draws with an unknown width: control,
# format, surrogate, private use, unassigned, line separator, paragraph separator.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_INVISIBLE = dict.fromkeys((*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0), 0x200D, 0x00AD))


def clean(text: str, encoding: str = "utf-8") -> str:
    """The text without characters that control the terminal.

    Newlines stay, carriage returns become newlines, and tabs become blanks. A byte of a file name
    that is not UTF-8 becomes ASCII such as `\\xe9`. An ASCII control character becomes its Unicode
    picture (from U+2400 on). Any other control character, and any character without a fixed width,
    becomes U+FFFD. The zero-width joiner, the soft hyphen and variation selectors are removed, so
    that one character is one glyph. A character that `encoding` does not have becomes "?".
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
    if 0xDC80 <= code <= 0xDCFF:  # PEP 383
        return escape_undecodable(character)
    return REPLACEMENT if unicodedata.category(character) in _UNSAFE else character


def ellipsis_for(encoding: str) -> str:
    """The mark for text that was cut: `…` in a Unicode encoding, else three dots."""
    return "…" if encoding.lower().startswith("utf") else "..."


def crop(text: str, width: int, *, ellipsis: str = "…", keep_end: bool = False) -> str:
    """The text cut to at most `width` cells. An ellipsis marks a cut.

    With `keep_end`, the end is kept instead of the beginning, which suits paths.
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
    """The text as one line of at most `width` cells, with newlines written as `\\n`."""
    shown = clean(text[: 4 * width + 4], encoding).replace("\n", "\\n")
    return crop(shown, width, ellipsis=ellipsis_for(encoding))


def sample_lines(prompt: str, text: str, width: int, height: int, console: Console) -> list[Text]:
    """A prompt (bold) and its continuation, in at most `height` lines of at most `width` cells.

    Long lines are wrapped. Blank lines before the first word are left out. A sample that is cut
    ends with an ellipsis.
    """
    if height < 1 or width < 1:
        return []
    encoding = console.encoding
    most = 4 * width * height  # clean only the text that can be shown
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
        while len(shown) > 1 and not shown[-1].plain:
            shown.pop()
        mark = " " + ellipsis_for(encoding)
        last = shown[-1]
        last.truncate(max(0, width - len(mark)), overflow="crop")
        last.append(mark[:width], style="dim")
    return shown
