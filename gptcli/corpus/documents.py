"""Splits texts into documents, either at `<|endoftext|>` or at the end of each line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from gptcli.corpus.reading import CHUNK, Piece

END_OF_TEXT = "<|endoftext|>"


def split_at_end_of_text(
    pieces: Iterable[Piece], ended: Callable[[int], object]
) -> Iterator[Piece]:
    """Split the documents of `pieces` at every `<|endoftext|>`.

    Yields the pieces of the new documents. Each call of `ended` gets the number of `<|endoftext|>`
    that were found after the previous call. A document that has only blank characters, at most
    CHUNK of them, is left out."""
    document = _Document()
    held = ""  # the end of the previous piece, if `<|endoftext|>` can begin in it
    for piece in pieces:
        if piece.starts:
            yield from document.add(held)
            document, held = _Document(), ""
        first, *rest = (held + piece.text).split(END_OF_TEXT)
        for part in rest:
            yield from document.add(first)
            document, first = _Document(), part
        if rest:
            ended(len(rest))
        held = _beginning_of_mark(first)
        yield from document.add(first[: len(first) - len(held)])
    yield from document.add(held)


def split_lines(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Split the documents of `pieces` at every line end.

    A line end is LF or CRLF. Each line becomes a document. Yields the pieces of the lines without
    the line ends. Blank lines of at most CHUNK characters are left out."""
    document = _Document()
    held = ""  # a carriage return at the end of a piece: perhaps a newline follows
    for piece in pieces:
        if piece.starts:
            yield from document.add(held)
            document, held = _Document(), ""
        first, *rest = (held + piece.text).split("\n")
        for part in rest:
            yield from document.add(first.removesuffix("\r"))
            document, first = _Document(), part
        held = "\r" if first.endswith("\r") else ""
        yield from document.add(first.removesuffix("\r"))
    yield from document.add(held)


class _Document:
    """A document that arrives in parts.

    Up to CHUNK blank characters at its beginning are held back until other text follows. If none
    follows, they are dropped."""

    def __init__(self) -> None:
        self._started = False
        self._blank = ""

    def add(self, text: str) -> Iterator[Piece]:
        if not text:
            return
        if self._started:
            yield Piece(text, False)
            return
        self._blank += text
        if not self._blank.isspace() or len(self._blank) > CHUNK:
            text, self._blank, self._started = self._blank, "", True
            yield Piece(text, True)


def _beginning_of_mark(text: str) -> str:
    """The longest suffix of `text` that is a proper prefix of `<|endoftext|>`, or ""."""
    for length in range(min(len(text), len(END_OF_TEXT) - 1), 0, -1):
        if text.endswith(END_OF_TEXT[:length]):
            return text[-length:]
    return ""
