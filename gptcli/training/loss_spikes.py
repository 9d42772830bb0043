"""A loss that is suddenly far above the recent ones: worth a line, and a look at its batch."""

from __future__ import annotations

import statistics
from collections import deque

_WINDOW = 50
_FEWEST = 20
_SPREADS = 8.0
_LEAST = 0.2  # nats


class SpikeDetector:
    """Told each step's loss; says which ones are spikes, at most once in 50 steps.

    Recent are the last 50 losses. Their middle is the median and their spread 1.4826 times the
    median distance from it (the standard deviation, were they normal): neither moves for a few
    odd losses, as mean and standard deviation would. A spike is more than 8 spreads and 0.2 nats
    above the median, and above each of the recent ones. With fewer than 20 losses nothing is a
    spike yet; while a run's losses still fall steeply their spread is large, so only a real jump
    counts. Every loss joins the recent ones, so a jump to a lasting higher level is said once."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_WINDOW)
        self._quiet = 0

    def excess(self, loss: float) -> float | None:
        """Take in the loss of the next step; the median that it is far above, None for most."""
        recent = list(self._recent)
        self._recent.append(loss)
        self._quiet -= 1
        if self._quiet > 0 or len(recent) < _FEWEST or loss <= max(recent):
            return None
        middle = statistics.median(recent)
        spread = 1.4826 * statistics.median(abs(one - middle) for one in recent)
        if loss <= middle + max(_SPREADS * spread, _LEAST):
            return None
        self._quiet = _WINDOW
        return middle
