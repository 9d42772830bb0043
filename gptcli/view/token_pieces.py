"""Draws tokens in a terminal: as coloured tiles above their ids, and the vocabulary in columns.

There are gaps between tiles, and each blank in a token has a mark. So nothing is shown by colour
alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

from gptcli.plurals import counted
from gptcli.view.glyphs import LABEL
from gptcli.view.number_formats import UNKNOWN, human_count
from gptcli.view.safe_text import clean, crop, ellipsis_for

TILES = ("black on #a6cee3", "black on #fdbf6f", "black on #b2df8a", "black on #cab2d6")
"""The background colours of tiles with black text: four light colours of ColorBrewer's "Paired"."""
WIDEST_PIECE = 24  # cells in a column of the vocabulary; longer pieces are cut
BLANK, ASCII_BLANK = "\N{OPEN BOX}", "_"

Piece = tuple[int, str]
"""The id of a token, and its readable text as `Tokenizer.show` gives it."""


def token_tiles(tokens: Sequence[Piece], width: int, encoding: str = "utf-8") -> list[Text]:
    """The tokens as rows of tiles with the ids below each row. No line is wider than `width` cells.

    A token that ends in a newline ends its row. A piece wider than `width` is cut."""
    lines: list[Text] = []
    pieces, ids = Text(), Text()
    for number, (id, piece) in enumerate(tokens):
        shown = crop(_visible(piece, encoding), width, ellipsis=ellipsis_for(encoding))
        name = str(id)
        room = max(cell_len(shown), len(name))
        if ids.plain and cell_len(ids.plain) + room > width:
            lines += _row(pieces, ids)
            pieces, ids = Text(), Text()
        pieces.append(shown, TILES[number % len(TILES)])
        pieces.append(" " * (room - cell_len(shown) + 1))
        ids.append(f"{name:<{room}} ", LABEL)
        if piece.endswith("\\n"):
            lines += _row(pieces, ids)
            pieces, ids = Text(), Text()
    return [*lines, *_row(pieces, ids)] if ids.plain else lines


def _row(pieces: Text, ids: Text) -> list[Text]:
    for line in (pieces, ids):
        line.rstrip()
        line.no_wrap = True
    return [pieces, ids]


def _visible(piece: str, encoding: str) -> str:
    """The piece with a mark for each blank, safe for a terminal of this encoding."""
    blank = BLANK if encoding.lower().startswith("utf") else ASCII_BLANK
    return clean(piece, encoding).replace(" ", blank)


@dataclass(frozen=True)
class Compression:
    """How much a tokenizer compresses a text."""

    name: str
    vocab_size: int
    tokens: int


def compression_lines(found: Sequence[Compression], text_bytes: int) -> list[str]:
    """A table with a row for each tokenizer: its bytes per token of the same text."""
    titles = ("tokenizer", "vocabulary", "tokens", "bytes per token")
    rows = [
        (
            crop(clean(one.name).replace("\n", " "), 30),
            human_count(one.vocab_size),
            human_count(one.tokens),
            f"{text_bytes / one.tokens:.2f}" if one.tokens else UNKNOWN,
        )
        for one in found
    ]
    widths = [max(cell_len(row[i]) for row in (titles, *rows)) for i in range(len(titles))]
    lines = []
    for first, *others in (titles, *rows):
        cells = [first + " " * (widths[0] - cell_len(first))]
        cells += [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(cells))
    return lines


def vocabulary_columns(
    pieces: Sequence[Piece], width: int, encoding: str = "utf-8"
) -> Iterator[Text]:
    """The vocabulary in as many columns as fit into `width` cells. The ids go down each column."""
    cut = ellipsis_for(encoding)
    number = max((len(str(id)) for id, _ in pieces), default=1)
    room = max(1, min(WIDEST_PIECE, width - number - 2))
    shown = [(id, crop(_visible(piece, encoding), room, ellipsis=cut)) for id, piece in pieces]
    widest = max((cell_len(piece) for _, piece in shown), default=1)
    columns = max(1, (width + 3) // (number + 2 + widest + 3))
    rows = -(-len(shown) // columns)
    for row in range(rows):
        line = Text(no_wrap=True)
        for at in range(row, len(shown), rows):
            id, piece = shown[at]
            line.append(f"{id:>{number}}  ", LABEL)
            line.append(piece)
            line.append(" " * (widest - cell_len(piece) + 3))
        line.rstrip()
        yield line


def vocabulary_line(kind: str, pieces: Sequence[bytes], special_ids: Collection[int]) -> str:
    """A line that counts the tokens of a vocabulary by kind, such as:

    `bpe, 512 tokens: 256 of one byte, 255 longer (2.9 bytes on average), 1 special`."""
    lengths = [len(piece) for id, piece in enumerate(pieces) if id not in special_ids]
    longer = [length for length in lengths if length > 1]
    words = []
    if len(lengths) > len(longer):
        words.append(f"{human_count(len(lengths) - len(longer))} of one byte")
    if longer:
        mean = sum(longer) / len(longer)
        words.append(f"{human_count(len(longer))} longer ({mean:.1f} bytes on average)")
    if special_ids:
        words.append(f"{human_count(len(special_ids))} special")
    return f"{kind}, {counted(len(pieces), 'token')}: {', '.join(words)}"
