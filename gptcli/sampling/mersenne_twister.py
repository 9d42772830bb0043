"""The random numbers of a torch.Generator on the CPU, without PyTorch: the Mersenne Twister.

PyTorch seeds the twister with one number of 32 bits, Python's `random` with a list of them. So this
file makes the state, and Python's generator continues from it.
Source: Matsumoto and Nishimura 1998, mt19937ar.c (init_genrand).
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

_WORDS = 624
_VERSION = 3  # of the states that random.Random takes


class MersenneTwister:
    """The numbers that a torch.Generator draws after manual_seed(seed), for any seed."""

    def __init__(self, seed: int) -> None:
        word = seed % 2**32  # a torch.Generator, too, forgets the higher bits
        state = [word]
        for i in range(1, _WORDS):
            word = (1812433253 * (word ^ word >> 30) + i) % 2**32
            state.append(word)
        self._random = Random(0)
        self._random.setstate((_VERSION, (*state, _WORDS), None))

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """The next numbers in [0, 1): what torch.rand(count, dtype=torch.float64) gives.

        Each takes 53 of the 64 bits of two words, the first of which is the upper one."""
        drawn = self._random.getrandbits(64 * count).to_bytes(8 * count, "little")
        words = np.frombuffer(drawn, dtype="<u4").astype(np.uint64)
        bits = (words[::2] << np.uint64(32) | words[1::2]) & np.uint64(2**53 - 1)
        return bits * 2.0**-53
