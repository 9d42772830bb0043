"""Batches: in an epoch, shuffled windows predict no token twice, and leave out fewer tokens than a
window has. In an evaluation, each token but the first is predicted once."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.corpus import Batches, TokenStore, windows

quick = settings(max_examples=60, deadline=None)
sizes = st.tuples(st.integers(1, 12), st.integers(1, 9), st.integers(0, 90)).map(
    lambda drawn: (drawn[0], drawn[1], drawn[0] + 1 + drawn[2])
)  # T (block_size), B (batch_size), N (tokens of the text, more than T)


def counting(tokens: int, shard: int = 17) -> TokenStore:
    """A token store of `tokens` tokens, in shards of `shard` tokens.

    The token at position i has the id i."""
    ids = np.arange(tokens, dtype=np.uint16)
    return TokenStore([ids[first : first + shard] for first in range(0, tokens, shard)])


def sequences(batches: Batches, first: int, count: int, batch_size: int) -> list[list[int]]:
    """The inputs of the sequences `first` to `first + count - 1`, read batch by batch."""
    rows: list[list[int]] = []
    for k in range(first // batch_size, (first + count - 1) // batch_size + 1):
        rows += batches.batch(k)[0].tolist()
    skip = first % batch_size
    return rows[skip : skip + count]


@quick
@given(size=sizes, seed=st.integers(0, 2**40), epoch=st.integers(0, 3))
def test_an_epoch_predicts_all_tokens_but_less_than_a_window_once(
    size: tuple[int, int, int], seed: int, epoch: int
) -> None:
    block, batch, length = size
    batches = Batches(counting(length), block, batch, seed)
    n = batches.per_epoch
    assert n == length // block
    seen: Counter[int] = Counter()
    for k in range(epoch * n // batch, ((epoch + 1) * n - 1) // batch + 1):
        targets = batches.batch(k)[1].tolist()
        for row, target in enumerate(targets):
            if epoch * n <= k * batch + row < (epoch + 1) * n:
                seen.update(target)
    assert set(seen.values()) == {1}
    assert length - len(seen) == length % block


@quick
@given(size=sizes, seed=st.integers(0, 2**40), k=st.integers(0, 50))
def test_targets_follow_inputs_around_the_ring(
    size: tuple[int, int, int], seed: int, k: int
) -> None:
    block, batch, length = size
    batches = Batches(counting(length), block, batch, seed)
    inputs, targets = batches.batch(k)
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.shape == targets.shape == (batch, block)
    assert inputs.is_contiguous()
    assert targets.is_contiguous()
    places = torch.tensor(batches.starts(k))[:, None] + torch.arange(block)  # (B, T)
    assert torch.equal(inputs, places % length)
    assert torch.equal(targets, (places + 1) % length)


@quick
@given(size=sizes, seed=st.integers(0, 2**40), other=st.integers(1, 9), first=st.integers(0, 40))
def test_a_batch_depends_only_on_its_number(
    size: tuple[int, int, int], seed: int, other: int, first: int
) -> None:
    block, batch, length = size
    one = Batches(counting(length), block, batch, seed)
    k = first // batch
    reference = one.batch(k)
    # Between the two reads of batch k, read a batch of a much later epoch.
    one.batch(k + 7 * length)
    again = one.batch(k)
    fresh = Batches(counting(length, shard=5), block, batch, seed).batch(k)
    for pair in (again, fresh):
        assert torch.equal(pair[0], reference[0])
        assert torch.equal(pair[1], reference[1])
    # With another batch_size, the sequences are the same, in the same order.
    different = Batches(counting(length), block, other, seed)
    assert sequences(one, first, 20, batch) == sequences(different, first, 20, other)


def test_seeds_and_epochs_differ_in_offset_and_order() -> None:
    batches = Batches(counting(1000), 8, 125, 1)
    epochs = [batches.starts(k) for k in range(12)]
    assert len({tuple(starts) for starts in epochs}) == 12
    # Without random offsets, every sequence would start at a multiple of 8.
    assert len({starts[0] % 8 for starts in epochs}) > 3
    assert all(starts != sorted(starts) for starts in epochs)
    assert Batches(counting(1000), 8, 125, 2).starts(0) != epochs[0]


def test_all_offsets_and_windows_are_equally_likely() -> None:
    first = [Batches(counting(64), 4, 1, seed).starts(0)[0] for seed in range(3200)]
    counts = np.bincount(first, minlength=64)
    chi_squared = float(((counts - 50) ** 2 / 50).sum())
    assert len(counts) == 64
    # In a random order, chi_squared has 63 degrees of freedom. It then exceeds 110 with a
    # probability of 0.02 %.
    assert chi_squared < 110


def test_epoch_of_is_a_fraction_of_the_sequences() -> None:
    batches = Batches(counting(100), 10, 4, 0)
    assert batches.per_epoch == 10
    assert [batches.epoch_of(k) for k in (0, 1, 5, 10)] == [0.0, 0.4, 2.0, 4.0]


def test_the_order_of_batches_never_changes() -> None:
    """When a later version of gptcli resumes a run, it must read the same batches.

    So their order is recorded here."""
    assert Batches(counting(50), 8, 6, 1337).starts(0) == [38, 22, 30, 6, 14, 46]


def test_a_text_without_a_full_window_fails_an_assertion() -> None:
    with pytest.raises(AssertionError):
        Batches(counting(8), 8, 1, 0)
    assert Batches(counting(9), 8, 1, 0).batch(0)[0].shape == (1, 8)


def test_a_batch_is_made_quickly() -> None:
    batches = Batches(TokenStore([np.zeros(10**6, dtype=np.uint16)]), 128, 16, 0)
    batches.batch(0)
    durations = []
    for k in range(1, 300):
        before = time.thread_time()
        batches.batch(k)
        durations.append(time.thread_time() - before)
    # Compare the processor time of the fastest batch, because other processes hardly change this
    # time.
    assert min(durations) < 500e-6


@quick
@given(length=st.integers(0, 90), block=st.integers(1, 12), batch=st.integers(1, 6))
def test_windows_predict_every_token_but_the_first_once(
    length: int, block: int, batch: int
) -> None:
    pairs = list(windows(counting(length), block, batch))
    inputs = [id for pair in pairs for row in pair[0].tolist() for id in row]
    targets = [id for pair in pairs for row in pair[1].tolist() for id in row]
    assert inputs == list(range(max(length - 1, 0)))
    assert targets == list(range(1, length))
    for number, (one, two) in enumerate(pairs):
        assert one.dtype == two.dtype == torch.int64
        assert one.shape == two.shape
        assert one.shape[0] <= batch
        last = number == len(pairs) - 1
        assert one.shape[1] == block or (last and one.shape[0] == 1 and one.shape[1] < block)
    full = [pair[0].shape[0] for pair in pairs if pair[0].shape[1] == block]
    assert all(rows == batch for rows in full[:-1])
