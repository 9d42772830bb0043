"""Tokens on a terminal: each token as a tile above its id, the vocabulary in columns, and the
compression (bytes of text per token)."""

from __future__ import annotations

from itertools import pairwise

import pytest
from rich.cells import cell_len

from gptcli.tokenization import build_tokenizer
from gptcli.view.token_pieces import (
    Compression,
    compression_lines,
    token_tiles,
    vocabulary_columns,
    vocabulary_line,
)

TEXT = "What light\nthrough  yonder 窓 window\tbreaks?"


@pytest.mark.parametrize("width", [8, 33, 80, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_each_id_begins_below_its_piece(width: int, encoding: str) -> None:
    tokens = build_tokenizer("gpt2", 0, lambda: iter(())).show(TEXT)
    lines = token_tiles(tokens, width, encoding)
    assert all(line.cell_len <= width for line in lines)
    ids = []
    for pieces, numbers in zip(lines[::2], lines[1::2], strict=True):
        starts = [cell_len(pieces.plain[: span.start]) for span in pieces.spans]
        row = numbers.plain
        assert [row[at : row.find(" ", at) if " " in row[at:] else None] for at in starts] == (
            row.split()
        )
        ids += [int(number) for number in row.split()]
    assert ids == [id for id, _ in tokens]


def test_a_newline_ends_the_row_and_blanks_are_visible() -> None:
    lines = token_tiles([(0, "a"), (1, "\\n"), (2, " b")], 80)
    assert [line.plain for line in lines] == ["a \\n", "0 1", "␣b", "2"]
    assert token_tiles([(2, " b")], 80, "ascii")[0].plain == "_b"
    assert token_tiles([], 80) == []


def test_neighbours_have_different_colours() -> None:
    styles = [span.style for span in token_tiles([(i, "x") for i in range(9)], 80)[0].spans]
    assert all(a != b for a, b in pairwise(styles))


@pytest.mark.parametrize("width", [10, 80, 200])
def test_the_vocabulary_holds_every_token_once(width: int) -> None:
    pieces = [(i, "x" * (i % 40)) for i in range(100)]
    lines = list(vocabulary_columns(pieces, width))
    assert all(line.cell_len <= width for line in lines)
    found = [int(word) for line in lines for word in line.plain.split() if word.isdecimal()]
    assert sorted(found) == list(range(100))


def test_compression_divides_bytes_by_tokens() -> None:
    lines = compression_lines([Compression("mine", 300, 4), Compression("gpt2", 50257, 0)], 10)
    assert lines[1].split() == ["mine", "300", "4", "2.50"]
    assert lines[2].split() == ["gpt2", "50,257", "0", "-"]
    assert len({len(line) for line in lines}) == 1


def test_the_vocabulary_line_counts_each_kind() -> None:
    pieces = [b"a", b"b", b"ab", b"abcd", b"<|endoftext|>"]
    assert vocabulary_line("bpe", pieces, {4}) == (
        "bpe, 5 tokens: 2 of one byte, 2 longer (3.0 bytes on average), 1 special"
    )
    assert vocabulary_line("byte", [b"a"] * 256, ()) == "byte, 256 tokens: 256 of one byte"
