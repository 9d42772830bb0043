"""Safe cuts: places at which a text can be cut, so that its pieces give the same tokens as the
whole text."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.tokenization import build_tokenizer, safe_cuts
from gptcli.tokenization.safe_cuts import WHITE_SPACE, last_safe_cut

GPT2 = build_tokenizer("gpt2", 0, lambda: iter([]))
AWKWARD = st.text(st.sampled_from("abc12'sl!? \n\t\x1c\x85\xa0\u3000世🙂")) | st.text()


@given(st.lists(AWKWARD), st.integers(1, 20))
@settings(max_examples=150, deadline=None)
def test_pieces_can_be_encoded_independently(pieces: list[str], minimum: int) -> None:
    text = "".join(pieces)
    cut = list(safe_cuts(pieces, minimum))
    assert "".join(cut) == text
    assert [id for piece in cut for id in GPT2.encode(piece)] == GPT2.encode(text)


@given(AWKWARD)
def test_a_cut_is_between_a_character_and_white_space(text: str) -> None:
    cut = last_safe_cut(text)
    if cut:
        assert text[cut - 1] not in WHITE_SPACE
        assert text[cut] in WHITE_SPACE
    else:
        assert not any(
            before not in WHITE_SPACE and after in " \n" for before, after in pairwise(text)
        )


def test_ordinary_text_comes_in_pieces_of_about_the_minimum() -> None:
    draw = random.Random(0)
    words = [draw.choice(["to", "be", "or", "not,", "\n"]) + " " for _ in range(20_000)]
    sizes = [len(piece) for piece in safe_cuts(words, 1000)]
    assert len(sizes) > 30
    assert all(900 <= size <= 2000 for size in sizes[:-1])


@given(st.lists(AWKWARD), st.integers(1, 20), st.integers(0, 40))
@settings(deadline=None)
def test_cuts_do_not_depend_on_the_given_pieces(
    pieces: list[str], minimum: int, longest: int
) -> None:
    whole = ["".join(pieces)]
    assert list(safe_cuts(pieces, minimum, longest)) == list(safe_cuts(whole, minimum, longest))


def test_pieces_without_a_safe_cut_are_bounded() -> None:
    for pieces in (["x" * 100_000], ["x" * 10] * 9999, ["\n" * 7] * 9999, ["a b"] + ["x"] * 9999):
        cut = list(safe_cuts(pieces, 100, longest=1000))
        assert "".join(cut) == "".join(pieces)
        assert max(map(len, cut)) <= 1000 + 2 * 100


def test_many_small_pieces_without_a_safe_cut_take_linear_time() -> None:
    # safe_cuts must not search the held-back text from its start for each new piece. Otherwise it
    # would read 10**11 characters.
    assert sum(map(len, safe_cuts(("x" for _ in range(500_000)), 1000, longest=10**9))) == 500_000
