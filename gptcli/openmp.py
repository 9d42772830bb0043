"""Sets, before torch is imported, how long OpenMP's threads spin while they wait for each other."""

from __future__ import annotations

import os


def spin_briefly() -> None:
    """Let OpenMP threads spin 1,000 times, unless the user set GOMP_SPINCOUNT.

    PyTorch on Linux reads this variable when torch is imported. Milliseconds per step on two cores:

    | GOMP_SPINCOUNT | 0 | 1,000 | 10,000 |
    |---|---|---|---|
    | small network, another program keeps one core busy | 90 | 121 | 231 |
    | small network alone | 55 to 58 | 55 to 58 | 55 to 58 |
    | larger network alone | 738 | 580 to 625 | 580 to 625 |
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
