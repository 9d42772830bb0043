"""The random numbers that sampling uses equal those of a torch.Generator to the last bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from gptcli.sampling.generate import UniformNumbers
from gptcli.sampling.mersenne_twister import MersenneTwister


@given(st.integers(0, 2**64 - 1), st.lists(st.integers(1, 700), min_size=1, max_size=3))
@example(0, [1, 2, 700])
@example(5489, [64, 64])
@example(2**32 - 1, [15, 16, 17])
@example(2**32, [624])
@example(2**63 - 1, [1])
@example(2**64 - 1, [313, 312])
def test_numbers_are_those_of_torch_rand(seed: int, counts: list[int]) -> None:
    ours, theirs = MersenneTwister(seed), torch.Generator().manual_seed(seed)
    for count in counts:
        wanted = torch.rand(count, generator=theirs, dtype=torch.float64).tolist()
        assert ours.uniform(count) == wanted


@pytest.mark.parametrize("seed", [0, 1, 1337, 2**31 - 1, 2**53 + 1, 2**80 + 5])
@pytest.mark.parametrize("sample", [0, 1, 99_999])
def test_a_seed_gives_the_numbers_that_it_always_gave(seed: int, sample: int) -> None:
    """Earlier versions of gptcli drew these numbers with torch.Generator.

    A seed must give the same numbers in all versions."""
    mixed = seed * 0x9E3779B97F4A7C15 + sample * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB
    generator = torch.Generator().manual_seed(mixed % 2**63)
    wanted = torch.cat(
        [torch.rand(64, generator=generator, dtype=torch.float64) for _ in range(4)]
    ).tolist()
    numbers = UniformNumbers(seed, sample)
    drawn = [number for count in (1, 2, 60, 64, 100) for number in numbers.take(count)]
    assert drawn == wanted[: len(drawn)]
