"""Mixtures of texts: exact shares, an order that depends only on the shares and the seed, and
windows that never cross from one text into another."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.config import DataConfig
from gptcli.corpus import Batches, Corpus, TokenStore, open_corpus
from gptcli.corpus.mixed_order import CYCLE, MixedOrder, sequences_of_cycle
from gptcli.corpus.mixture import MixedTokens, times_read
from gptcli.errors import GptcliError

quick = settings(max_examples=40, deadline=None)
weights = st.lists(st.one_of(st.just(0.0), st.floats(1e-4, 1.0)), min_size=2, max_size=6).filter(
    lambda drawn: sum(drawn) > 0
)


def mixture(lengths: list[int], shares: list[float], shard: int = 17) -> MixedTokens:
    """A mixture of texts with these lengths and shares.

    If the texts are joined, the token at position i has the id i."""
    ids = np.arange(sum(lengths), dtype=np.uint16)
    store = TokenStore([ids[first : first + shard] for first in range(0, len(ids), shard)])
    texts, start = [], 0
    for number, (length, share) in enumerate(zip(lengths, shares, strict=True)):
        texts.append((f"text {number}", share, store.part(start, start + length)))
        start += length
    return MixedTokens(texts)


@quick
@given(shares=weights)
def test_a_cycle_has_the_share_of_each_text(shares: list[float]) -> None:
    counts = sequences_of_cycle(shares)
    assert counts.sum() == CYCLE
    exact = np.array(shares) / sum(shares) * CYCLE
    assert ((counts > 0) == (exact > 0)).all()
    assert np.abs(counts - exact).max() <= len(shares)


def test_shares_that_are_round_are_exact() -> None:
    assert sequences_of_cycle([0.7, 0.3]).tolist() == [70_000, 30_000]
    assert sequences_of_cycle([1, 1, 1]).tolist() == [33_334, 33_333, 33_333]
    assert sequences_of_cycle([0.0, 2.0]).tolist() == [0, CYCLE]
    assert sequences_of_cycle([1e-6, 1.0]).tolist() == [1, CYCLE - 1]


@pytest.mark.parametrize("shares", [[0.7, 0.3], [0.5, 0.25, 0.25], [0.01, 0.99, 0.0]])
def test_the_shares_hold_at_every_moment(shares: list[float]) -> None:
    texts, _ = MixedOrder(shares, 3).sequences(0, 3 * CYCLE)
    so_far = np.arange(1, len(texts) + 1)
    for text, share in enumerate(shares):
        assert np.abs(np.cumsum(texts == text) - share * so_far).max() <= len(shares)


@quick
@given(shares=weights, seed=st.integers(0, 2**40), first=st.integers(0, 3 * CYCLE))
def test_each_text_is_read_in_its_own_order(shares: list[float], seed: int, first: int) -> None:
    order = MixedOrder(shares, seed)
    texts, numbers = order.sequences(first, 500)
    again = [MixedOrder(shares, seed).sequences(first + n, 1) for n in (0, 499)]
    assert [int(one[0][0]) for one in again] == [texts[0], texts[-1]]
    for text in set(texts.tolist()):
        assert shares[text] > 0
        found = numbers[texts == text]
        assert found.tolist() == list(range(found[0], found[0] + len(found)))


def test_texts_are_not_in_a_regular_pattern() -> None:
    texts, _ = MixedOrder([0.5, 0.5], 1).sequences(0, 1000)
    pairs = Counter(zip(texts[:-1].tolist(), texts[1:].tolist(), strict=True))
    # Each of the two texts is often followed by itself, and often by the other text.
    assert min(pairs.values()) > 100
    other, _ = MixedOrder([0.5, 0.5], 2).sequences(0, 1000)
    assert not np.array_equal(texts, other)


def test_the_order_of_a_mixture_never_changes() -> None:
    """When a later version of gptcli resumes a run, it must read the same batches.

    So this test contains the texts and the starts of a batch."""
    batches = Batches(mixture([50, 30], [0.75, 0.25]), 8, 8, 1337)
    assert batches.texts_of(0) == [0, 0, 1, 0, 1, 0, 0, 0]
    assert batches.starts(0) == [1, 25, 64, 9, 72, 17, 41, 33]


@quick
@given(
    lengths=st.lists(st.integers(9, 60), min_size=2, max_size=4),
    seed=st.integers(0, 2**40),
    first=st.integers(0, 400),
)
def test_a_batch_depends_only_on_its_number_and_stays_in_a_text(
    lengths: list[int], seed: int, first: int
) -> None:
    block, shares = 8, [1 / len(lengths)] * len(lengths)
    tokens = mixture(lengths, shares)
    batches = Batches(tokens, block, 5, seed)
    k = first // 5
    inputs, targets = batches.batch(k)
    places = zip(inputs, targets, batches.texts_of(k), batches.starts(k), strict=True)
    for idx, target, number, start in places:
        text = tokens.texts[number].tokens
        ring = text.start + (torch.arange(block + 1) + start - text.start) % len(text)
        assert torch.equal(idx, ring[:-1])
        assert torch.equal(target, ring[1:])
    batches.batch(k + 10**6)
    fresh = Batches(mixture(lengths, shares, shard=5), block, 5, seed).batch(k)
    for pair in (batches.batch(k), fresh):
        assert torch.equal(pair[0], inputs)
        assert torch.equal(pair[1], targets)
    # With batch_size 1, the sequences are the same as with batch_size 5.
    singly = Batches(tokens, block, 1, seed)
    assert [singly.starts(5 * k + row)[0] for row in range(5)] == batches.starts(k)


def test_an_epoch_of_a_text_predicts_its_tokens_once() -> None:
    tokens = mixture([40, 80], [0.5, 0.5])
    batches = Batches(tokens, 8, 1, 7)
    seen: dict[int, Counter[int]] = {0: Counter(), 1: Counter()}
    left = [5, 10]  # for each text, how many windows of its first epoch are left
    for k in range(60):
        (text,) = batches.texts_of(k)
        if left[text]:
            left[text] -= 1
            seen[text].update(batches.batch(k)[1][0].tolist())
    assert left == [0, 0]
    assert seen[0] == Counter(range(40))
    assert seen[1] == Counter(range(40, 120))


def test_parts_know_their_place() -> None:
    tokens = mixture([20, 30], [0.5, 0.5])
    assert [text.tokens.start for text in tokens.texts] == [0, 20]
    second = tokens.texts[1].tokens
    again = tokens.part(second.start, second.start + len(second))
    assert again.read(0, 30).tolist() == second.read(0, 30).tolist() == list(range(20, 50))


def test_how_often_a_mixture_is_read() -> None:
    assert times_read(mixture([50, 50], [0.5, 0.5]), 300) == pytest.approx(3.0)
    # Of the 300 tokens, 270 are from the text of 10 tokens (read 27 times), and 30 from the text of
    # 90 tokens (a third of it). The result is the mean of 27 and 1/3, weighted by the shares.
    assert times_read(mixture([10, 90], [0.9, 0.1]), 300) == pytest.approx(0.9 * 27 + 0.1 / 3)


# ---- from files ----------------------------------------------------------------------------------


def mixed(sources: list[Path], shares: list[float], kind: str = "byte", **data: Any) -> Corpus:
    block_size = data.pop("block_size", 4)
    config = DataConfig(source=[str(path) for path in sources], weights=shares, **data)
    return open_corpus(config, kind=kind, vocab_size=300, block_size=block_size)


@pytest.fixture
def texts(tmp_path: Path) -> list[Path]:
    """The paths of a text (100 times `a`), and of a folder with ten texts (each ten times `b`)."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "one.txt").write_text("a" * 100)
    for number in range(10):
        (folder / f"{number}.txt").write_text("b" * 10)
    return [tmp_path / "one.txt", folder]


@pytest.mark.parametrize("kind", ["byte", "char"])
def test_every_text_is_split_alone(kind: str, texts: list[Path]) -> None:
    corpus = mixed(texts, [3, 1], kind)
    assert isinstance(corpus.train, MixedTokens)
    assert isinstance(corpus.val, MixedTokens)
    assert corpus.val_split == "documents"
    assert [text.share for text in corpus.train.texts] == [0.75, 0.25]
    assert [text.name for text in corpus.train.texts] == ["one.txt", "folder"]
    for split in (corpus.train, corpus.val):
        for text, letter in zip(split.texts, "ab", strict=True):
            written = corpus.tokenizer.decode(text.tokens.read(0, len(text.tokens)).tolist())
            assert set(written) - set("\n") - set("<|endoftext|>") <= {letter}
            assert letter in written
    assert len(corpus.train) + len(corpus.val) == sum(
        len(text.tokens) for split in (corpus.train, corpus.val) for text in split.texts
    )


def test_weights_change_neither_the_tokens_nor_the_split(texts: list[Path]) -> None:
    plain, other = mixed(texts, [3, 1]), mixed(texts, [1, 9])
    assert plain.content_key == other.content_key
    for one, two in ((plain.train, other.train), (plain.val, other.val)):
        assert one is not None
        assert two is not None
        assert one.read(0, len(one)).tolist() == two.read(0, len(two)).tolist()


def test_a_mixture_and_one_text_of_the_same_files_have_different_entries(
    texts: list[Path],
) -> None:
    config = DataConfig(source=[str(path) for path in texts])
    one = open_corpus(config, kind="byte", vocab_size=300, block_size=4)
    assert not isinstance(one.train, MixedTokens)
    assert isinstance(mixed(texts, [1, 1]).train, MixedTokens)
    assert not isinstance(
        open_corpus(config, kind="byte", vocab_size=300, block_size=4).train, MixedTokens
    )


def test_the_users_own_validation_text_is_for_the_whole_mixture(
    texts: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "val.txt").write_text("v" * 50)
    corpus = mixed(texts, [1, 1], val_source=str(tmp_path / "val.txt"))
    assert isinstance(corpus.train, MixedTokens)
    assert corpus.val is not None
    assert not isinstance(corpus.val, MixedTokens)
    assert set(corpus.tokenizer.decode(corpus.val.read(1, 50).tolist())) == {"v"}
    assert [len(text.tokens) for text in corpus.train.texts] == [101, 110]


def test_a_text_that_is_too_short_is_named(texts: list[Path], tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("a few")
    with pytest.raises(GptcliError, match=r"^short\.txt is too short: .* block_size = 32 needs 33"):
        mixed([texts[0], tmp_path / "short.txt"], [1, 1], block_size=32)
    (tmp_path / "blank.txt").write_text("  \n")
    with pytest.raises(GptcliError, match=r"^blank\.txt is too short"):
        mixed([texts[0], tmp_path / "blank.txt"], [1, 1])


def test_a_text_without_a_file_of_its_own_is_refused(texts: list[Path]) -> None:
    with pytest.raises(GptcliError, match=r"nothing is left of .*5\.txt in the mixture"):
        mixed([texts[1], texts[1] / "5.txt"], [1, 1])
