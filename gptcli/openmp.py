"""How long threads of OpenMP spin while they wait for each other: set before torch is imported."""

from __future__ import annotations

import os


def spin_briefly() -> None:
    """Let OpenMP threads spin 1,000 times, unless the user sets GOMP_SPINCOUNT.

    PyTorch on Linux reads it when torch is imported. If another program keeps one of two cores
    busy, a step of a small network takes 231 ms with 10000, 121 ms with 1000 and 90 ms with 0.
    Alone it takes 55 to 58 ms with each, but a step of a larger network takes 738 ms with 0 and 580
    to 625 ms with the others."""
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
