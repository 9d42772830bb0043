"""The random numbers of a torch.Generator on the CPU, without PyTorch: the Mersenne Twister.

PyTorch seeds the twister with one 32-bit number. Python's `random` takes a list of 32-bit numbers
as the seed. So this file computes the twister's state from a seed as PyTorch does, and Python's
generator continues from that state.
Source: Matsumoto and Nishimura 1998, mt19937ar.c (init_genrand).
"""

from __future__ import annotations

import struct
from random import Random

_WORDS = 624
_VERSION = 3  # the version of the states that random.Random takes


class MersenneTwister:
    """The numbers that a torch.Generator draws after manual_seed(seed), for any seed."""

    def __init__(self, seed: int) -> None:
        word = seed & 0xFFFFFFFF  # a torch.Generator also drops the higher bits
        state = [word]
        for i in range(1, _WORDS):
            word = (1812433253 * (word ^ word >> 30) + i) & 0xFFFFFFFF
            state.append(word)
        self._random = Random(0)
        self._random.setstate((_VERSION, (*state, _WORDS), None))

    def uniform(self, count: int) -> list[float]:
        """The next `count` numbers in [0, 1), equal to torch.rand(count, dtype=torch.float64).

        Two 32-bit words give the 53 bits of a number. The first word gives the upper 21 bits."""
        drawn = self._random.getrandbits(64 * count).to_bytes(8 * count, "little")
        words = struct.unpack(f"<{2 * count}I", drawn)
        return [
            ((upper & 0x1FFFFF) << 32 | lower) * 2.0**-53
            for upper, lower in zip(words[::2], words[1::2], strict=True)
        ]
