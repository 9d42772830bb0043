"""Decides whether one config is better than another: mean difference of losses, and its interval.

Source: Student 1908, "The probable error of a mean"; for unpaired runs, Welch 1947.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""The 97.5 % quantiles of Student's t distribution with 1, 2, ... 30 degrees of freedom."""


def t_975(degrees: float) -> float:
    """The 97.5 % quantile of Student's t distribution.

    Rounds the degrees of freedom down. Uses 30 degrees if there are more than 30, and 1 if there is
    less than 1."""
    return _T_975[max(1, min(len(_T_975), math.floor(degrees))) - 1]


@dataclass(frozen=True)
class Difference:
    """The mean loss of b minus the mean loss of a.

    `interval` is the 95 % interval, or None if a or b has only one run. `seeds` is the number of
    runs of a, or of b if b has fewer."""

    difference: float
    interval: tuple[float, float] | None
    seeds: int
    paired: bool

    @property
    def is_more_than_noise(self) -> bool | None:
        """Whether the interval excludes 0; None without an interval."""
        if self.interval is None:
            return None
        return self.interval[0] > 0 or self.interval[1] < 0


def difference_of(a: dict[int, float], b: dict[int, float]) -> Difference:
    """The mean difference `b` - `a` with its interval. Each dict has the loss of each seed.

    If both dicts have the same seeds, `paired` is true, and the result is the mean of the seeds'
    differences. Two runs with the same seed read the same batches, so chance that affects both runs
    cancels out."""
    if set(a) == set(b):
        pairs = [b[seed] - a[seed] for seed in sorted(a)]
        mean, interval = mean_and_interval(pairs)
        return Difference(mean, interval, len(pairs), paired=True)
    mean = statistics.fmean(b.values()) - statistics.fmean(a.values())
    if min(len(a), len(b)) < 2:
        return Difference(mean, None, min(len(a), len(b)), paired=False)
    parts = [statistics.variance(one.values()) / len(one) for one in (a, b)]
    total = sum(parts)
    degrees = (
        total**2 / sum(part**2 / (len(one) - 1) for part, one in zip(parts, (a, b), strict=True))
        if total > 0
        else 30
    )
    half = t_975(degrees) * math.sqrt(total)
    return Difference(mean, (mean - half, mean + half), min(len(a), len(b)), paired=False)


def mean_and_interval(values: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """The mean and its 95 % interval. The interval is None for a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    half = t_975(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, (mean - half, mean + half)


def verdict(a: str, b: str, found: Difference) -> str:
    """A sentence that says which config is better, and whether this is more than noise."""
    better, worse = (b, a) if found.difference < 0 else (a, b)
    size = abs(found.difference)
    if found.interval is None:
        return (
            f"the loss of {better} is {size:.4f} lower than that of {worse}, but a single run "
            "cannot tell whether this is more than noise: `gptcli compare A B --seeds 3` can tell"
        )
    low, high = sorted(abs(end) for end in found.interval)
    runs = f"{found.seeds} seeds, {'paired' if found.paired else 'not paired'}"
    if found.is_more_than_noise:
        return (
            f"{better} is better than {worse} by {size:.4f} (95 % interval {low:.4f} to "
            f"{high:.4f}; {runs}): more than noise"
        )
    return (
        f"no difference beyond noise: the loss of {better} is {size:.4f} lower, but the 95 % "
        f"interval of {b} minus {a} is {found.interval[0]:+.4f} to {found.interval[1]:+.4f} "
        f"({runs})"
    )
