"""Counts with their nouns: the singular for 1, the plural for every other number."""

from __future__ import annotations

import pytest

from gptcli.plurals import agreeing, counted, times


@pytest.mark.parametrize(
    ("count", "forms", "words"),
    [
        (1, ("token",), "1 token"),
        (0, ("token",), "0 tokens"),
        (2, ("more line",), "2 more lines"),
        (1_234_567, ("token",), "1,234,567 tokens"),
        (1, ("match", "matches"), "1 match"),
        (3, ("match", "matches"), "3 matches"),
    ],
)
def test_a_count_and_its_noun(count: int, forms: tuple[str, ...], words: str) -> None:
    assert counted(count, *forms) == words


def test_a_verb_agrees_with_a_count() -> None:
    assert [agreeing(n, "was", "were") for n in (0, 1, 1.0, 1.5, 2)] == [
        "were", "was", "was", "were", "were",
    ]  # fmt: skip


def test_how_often() -> None:
    assert [times(number) for number in ("0.5", "1", "1.0", "2,000")] == [
        "0.5 times", "once", "1.0 times", "2,000 times",
    ]  # fmt: skip
