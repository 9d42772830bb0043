"""Tokens -> text: stop strings across tokens, end of text, and no half characters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.sampling import text as sampling_text
from gptcli.sampling.choose import Choice
from gptcli.sampling.text import Piece, Sample, StopFilter, write
from gptcli.tokenization import build_tokenizer


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text("ab", max_size=3), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_stopping_equals_a_search_in_the_whole_text(pieces: list[str], stops: list[str]) -> None:
    filtered = StopFilter(stops)
    shown, whole = "", ""
    for piece in pieces:
        shown += filtered.push(piece)
        whole += piece
        hits = [at for stop in stops if (at := whole.find(stop)) >= 0]
        if hits:
            assert filtered.stopped
            # the first stop string to be complete ends the text
            break
    if filtered.stopped:
        assert not any(stop in shown for stop in stops)
        assert shown == whole[: min(hits)]
    else:
        assert shown + filtered.flush() == whole


def test_what_may_become_a_stop_string_is_held_back() -> None:
    filtered = StopFilter(["KING:"])
    assert filtered.push("the KI") == "the "
    assert filtered.push("ND ") == "KIND "
    assert filtered.push("KING") == ""
    assert filtered.push(": no") == ""
    assert filtered.stopped
    assert filtered.push("more") == ""


class FakeModel:
    pass


def tokens(monkeypatch: pytest.MonkeyPatch, rows: list[list[int]]) -> None:
    def steps(*_: Any, **__: Any) -> Iterator[list[int]]:
        yield from rows

    monkeypatch.setattr(sampling_text, "generate", steps)


def written(
    monkeypatch: pytest.MonkeyPatch, rows: list[list[int]], stops: tuple[str, ...] = ()
) -> tuple[list[Sample], dict[int, str]]:
    tokens(monkeypatch, rows)
    tokenizer = build_tokenizer("byte", 0, lambda: iter(()))
    samples, shown = [], dict.fromkeys(range(len(rows[0])), "")
    for item in write(
        FakeModel(),
        tokenizer,
        [0],
        streams=len(rows[0]),
        max_new_tokens=len(rows),  # type: ignore[arg-type]
        how=Choice(),
        seed=0,
        stops=stops,
    ):
        if isinstance(item, Piece):
            shown[item.index] += item.text
        else:
            samples.append(item)
    return samples, shown


def test_half_a_character_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    data = "aé€😀b".encode()
    tokens(monkeypatch, [[byte] for byte in data])
    tokenizer = build_tokenizer("byte", 0, lambda: iter(()))
    pieces = [
        item.text
        for item in write(
            FakeModel(),
            tokenizer,
            [0],
            streams=1,  # type: ignore[arg-type]
            max_new_tokens=99,
            how=Choice(),
            seed=0,
        )
        if isinstance(item, Piece)
    ]
    assert pieces == ["a", "é", "€", "😀", "b"]


def test_streams_end_each_for_its_own_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    eot = 256
    rows = [
        [ord("x"), ord("a"), eot],
        [ord("."), ord("b"), ord("q")],
        [ord("y"), ord("c"), ord("q")],
    ]
    samples, shown = written(monkeypatch, rows, stops=(".y", "zzz"))
    by_index = sorted(samples, key=lambda s: s.index)
    assert [(s.text, s.stopped, s.tokens) for s in by_index] == [
        ("x", "stop", 3),
        ("abc", "length", 3),
        ("", "end", 0),
    ]
    assert [shown[i] for i in range(3)] == ["x", "abc", ""]


def test_a_cut_character_at_the_end_is_shown_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, _ = written(monkeypatch, [[ord("a")], [0xE2], [0x82]])
    assert samples[0].text == "a\ufffd"


def test_a_held_back_end_comes_out_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, shown = written(monkeypatch, [[ord("a")], [ord("K")]], stops=("KING",))
    assert samples[0].text == shown[0] == "aK"
    assert samples[0].stopped == "length"
