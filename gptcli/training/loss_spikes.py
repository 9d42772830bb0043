"""Detects loss spikes: losses far above the recent losses, usually because of an unusual batch."""

from __future__ import annotations

import statistics
from collections import deque
from pathlib import Path

from gptcli.events import Notice
from gptcli.files.paths import shell_word

_WINDOW = 50
_MIN_LOSSES = 20
_MIN_DEVIATIONS = 8.0
_MIN_EXCESS = 0.2  # nats


class SpikeDetector:
    """Takes the loss of each step and reports spikes, at most one in 50 steps.

    A spike is above each of the last 50 losses. It is above their median by more than 8 deviations,
    and by more than 0.2 nats. The deviation is 1.4826 times the median distance from the median.
    For normally distributed losses it equals the standard deviation, but a few unusual losses
    hardly change it. The first 20 losses are never spikes. While the loss falls steeply, the
    deviation is large, so only a real jump is a spike. A loss that jumps and stays high is one
    spike."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_WINDOW)
        self._quiet = 0

    def excess(self, loss: float) -> float | None:
        """The median of the recent losses if `loss` is a spike, or None. Call it once a step."""
        recent = list(self._recent)
        self._recent.append(loss)
        self._quiet -= 1
        if self._quiet > 0 or len(recent) < _MIN_LOSSES or loss <= max(recent):
            return None
        median = statistics.median(recent)
        deviation = 1.4826 * statistics.median(abs(other - median) for other in recent)
        if loss <= median + max(_MIN_DEVIATIONS * deviation, _MIN_EXCESS):
            return None
        self._quiet = _WINDOW
        return median


def spike_notice(run: Path, step: int, loss: float, usual: float) -> Notice:
    """The notice about a loss spike, with the command that shows the step's batch."""
    return Notice(
        f"step {step}: loss {loss:.4g}, far above the recent {usual:.4g}; "
        f"its batch: gptcli inspect-batch {shell_word(run)} {step}",
        short=f"loss spike at step {step}: {loss:.4g}, before it {usual:.4g}",
    )
