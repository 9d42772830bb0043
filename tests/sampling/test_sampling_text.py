"""From generated tokens to text: stop strings that span several tokens, end-of-text, and only whole
characters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.sampling.generate import SampleRequest
from gptcli.sampling.stop_filter import StopFilter
from gptcli.sampling.streams import Uniform
from gptcli.sampling.text import NewText, Sample, generate_text
from gptcli.tokenization import build_tokenizer


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text("ab", max_size=3), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_the_stop_filter_equals_a_search_in_the_whole_text(
    pieces: list[str], stops: list[str]
) -> None:
    filtered = StopFilter(stops)
    shown, whole = "", ""
    for piece in pieces:
        shown += filtered.push(piece)
        whole += piece
        hits = [at for stop in stops if (at := whole.find(stop)) >= 0]
        if hits:
            assert filtered.stopped
            break
    if filtered.stopped:
        assert not any(stop in shown for stop in stops)
        assert shown == whole[: min(hits)]
    else:
        assert shown + filtered.flush() == whole


def test_the_beginning_of_a_stop_string_is_held_back() -> None:
    filtered = StopFilter(["KING:"])
    assert filtered.push("the KI") == "the "
    assert filtered.push("ND ") == "KIND "
    assert filtered.push("KING") == ""
    assert filtered.push(": no") == ""
    assert filtered.stopped
    assert filtered.push("more") == ""


class FakeStreams:
    """Streams that generate given tokens: rows[i][s] is the token of stream s in step i."""

    refills = True

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows, self.at, self.count = rows, 0, len(rows[0])

    def feed(self, texts: Mapping[int, Sequence[int]], *, restart: bool) -> None:
        pass

    def run(self, streams: Sequence[int], uniform: Uniform) -> list[list[int]]:
        steps = len(uniform[0])
        some = self.rows[self.at : self.at + steps]
        self.at += steps
        return [[row[stream] for row in some] for stream in streams]


def written(
    rows: list[list[int]], stops: tuple[str, ...] = ()
) -> tuple[list[Sample], dict[int, str]]:
    tokenizer = build_tokenizer("byte", 0, lambda: iter(()))
    samples, shown = [], dict.fromkeys(range(len(rows[0])), "")
    requests = [SampleRequest([0], i) for i in range(len(rows[0]))]
    for item in generate_text(
        FakeStreams(rows), tokenizer, requests, max_new_tokens=len(rows), seed=0, stops=stops
    ):
        if isinstance(item, NewText):
            shown[item.index] += item.text
        else:
            samples.append(item)
    return samples, shown


def test_half_a_character_is_never_shown() -> None:
    data = "aé€😀b".encode()
    tokenizer = build_tokenizer("byte", 0, lambda: iter(()))
    rows = [[byte] for byte in data]
    pieces = [
        item.text
        for item in generate_text(
            FakeStreams(rows), tokenizer, [SampleRequest([0])], max_new_tokens=len(rows), seed=0
        )
        if isinstance(item, NewText)
    ]
    assert "".join(pieces) == "aé€😀b"
    assert all("\ufffd" not in piece for piece in pieces)
    assert len(pieces) > 2


@pytest.mark.parametrize("stops", [(), ("never in it",)])
def test_end_of_text_in_the_middle_of_a_call_ends_the_text(stops: tuple[str, ...]) -> None:
    rows = [[ord("a")], [ord("b")], [ord("c")], [256], [ord("d")], [ord("e")], [ord("f")]]
    samples, shown = written(rows, stops)
    assert [(s.text, s.tokens, s.stopped) for s in samples] == [("abc", 3, "end")]
    assert shown == {0: "abc"}


def test_each_stream_ends_for_its_reason() -> None:
    eot = 256
    rows = [
        [ord("x"), ord("a"), eot],
        [ord("."), ord("b"), ord("q")],
        [ord("y"), ord("c"), ord("q")],
    ]
    samples, shown = written(rows, stops=(".y", "zzz"))
    by_index = sorted(samples, key=lambda s: s.index)
    assert [(s.text, s.stopped, s.tokens) for s in by_index] == [
        ("x", "stop", 3),
        ("abc", "length", 3),
        ("", "end", 0),
    ]
    assert [shown[i] for i in range(3)] == ["x", "abc", ""]


def test_an_incomplete_character_at_the_end_is_shown_as_a_replacement() -> None:
    samples, _ = written([[ord("a")], [0xE2], [0x82]])
    assert samples[0].text == "a\ufffd"


def test_text_that_was_held_back_is_shown_at_the_end() -> None:
    samples, shown = written([[ord("a")], [ord("K")]], stops=("KING",))
    assert samples[0].text == shown[0] == "aK"
    assert samples[0].stopped == "length"
