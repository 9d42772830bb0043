"""--escape: replaces `\\n`, `\\t`, `\\r` and `\\\\` in text that the user types, as printf does."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from gptcli.errors import GptcliError

EscapeOption = Annotated[
    bool,
    typer.Option(
        "--escape",
        "-e",
        help="Read \\n as a newline, \\t as a tab, \\r as a return and \\\\ as a backslash in "
        "--prompt, in --stop, in the lines of --prompt-lines and in the lines that you type with "
        "-i.",
    ),
]

_MEANINGS = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def unescape(text: str, where: str) -> str:
    """`text` with its escapes replaced. Error messages say that the text is from `where`.

    Raises GptcliError for a backslash before any other character."""

    def meaning(found: re.Match[str]) -> str:
        if found[1] not in _MEANINGS:
            shown = f"`{found[0]}`" if found[0].isprintable() else "a backslash at a line end"
            raise GptcliError(
                f"{where}: {shown} is not an escape",
                "--escape knows \\n (newline), \\t (tab), \\r (return) and \\\\ (backslash)",
            )
        return _MEANINGS[found[1]]

    return re.sub(r"\\(.?)", meaning, text, flags=re.DOTALL)


def literal_escapes_note(text: str, where: str) -> str | None:
    """A note if a text has `\\n` or `\\t`, which only --escape would replace; else None."""
    found = re.search(r"(?<!\\)(?:\\\\)*\\([nt])", text)
    if found is None:
        return None
    what = "newline" if found[1] == "n" else "tab"
    return f"note: {where}: `\\{found[1]}` stays as two characters; with --escape it is a {what}"
