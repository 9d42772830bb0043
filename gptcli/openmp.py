"""Sets, before torch is imported, how long OpenMP's threads spin while they wait for each other."""

from __future__ import annotations

import os


def spin_briefly() -> None:
    """Let a waiting OpenMP thread spin 1,000 times before it sleeps, unless GOMP_SPINCOUNT is set.

    On Linux, OpenMP reads the variable GOMP_SPINCOUNT when torch is imported. The table has the
    milliseconds of a training step on two cores:

    | GOMP_SPINCOUNT | 0 | 1,000 | 10,000 |
    |---|---|---|---|
    | small network, another program keeps one core busy | 90 | 121 | 231 |
    | small network alone | 55 to 58 | 55 to 58 | 55 to 58 |
    | larger network alone | 738 | 580 to 625 | 580 to 625 |
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
