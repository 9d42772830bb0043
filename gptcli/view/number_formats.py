"""Formats numbers for people: counts, losses, durations, tokens per second, the time left."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

UNKNOWN = "-"
_MOST_TEXTS = 8

# (smallest count, unit, letter). Papers write "0.82 M parameters", so M begins at 100,000.
_UNITS = ((1e12, 1e12, "T"), (1e9, 1e9, "B"), (1e5, 1e6, "M"), (1e4, 1e3, "k"))


def human_count(count: int, *, short: bool = False) -> str:
    """A count with commas between thousands. From 10,000 on, `short` gives three digits and a unit.

    >>> human_count(820864), human_count(820864, short=True)
    ('820,864', '0.82 M')
    """
    if not short or abs(count) < 10_000:
        return f"{count:,}"
    for least, unit, name in _UNITS:
        if abs(count) >= least:
            return f"{_three_digits(count / unit)} {name}"
    raise AssertionError("counts under 10,000 are written in full")


def _three_digits(value: float) -> str:
    size = abs(value)
    return f"{value:.2f}" if size < 9.995 else f"{value:.1f}" if size < 99.95 else f"{value:,.0f}"


def losses_text(by_text: Sequence[tuple[str, float]]) -> str:
    """The loss on each text of a mixture: "a.txt 1.2345  b.txt 2.3456"; "" for no texts.

    Names at most eight texts, and says how many more there are."""
    listed = [f"{name} {loss_text(loss)}" for name, loss in by_text[:_MOST_TEXTS]]
    if len(by_text) > _MOST_TEXTS:
        listed.append(f"and {len(by_text) - _MOST_TEXTS} more")
    return "  ".join(listed)


def duration(seconds: float | None) -> str:
    """A duration in seconds as a clock: "0:42", "1:02:03", "2d 03:04:05"; "-" if not known."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    whole = max(0, round(seconds))
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}:{minute:02}:{second:02}"
    if hour:
        return f"{hour}:{minute:02}:{second:02}"
    return f"{minute}:{second:02}"


def time_taken(seconds: float) -> str:
    """How long something took: "0.4 s" if under ten seconds, else as `duration` writes it."""
    return f"{seconds:.1f} s" if 0 <= seconds < 10 else duration(seconds)


def rate(count: float, seconds: float) -> float | None:
    """The count divided by the seconds; None if no time has passed."""
    return count / seconds if seconds > 0 else None


def memory_text(size: int | None) -> str:
    """Bytes of memory as "412 MB" or "1.24 GB" (powers of ten); "-" if unknown.

    >>> memory_text(412_300_000), memory_text(1_240_000_000)
    ('412 MB', '1.24 GB')
    """
    if size is None:
        return UNKNOWN
    return f"{size / 1e6:,.0f} MB" if size < 999.5e6 else f"{_three_digits(size / 1e9)} GB"


def eta_seconds(steps_left: int, steps: int, seconds: float) -> float | None:
    """The seconds that `steps_left` steps will take if `steps` steps took `seconds`.

    None if no step has been timed yet.
    """
    if steps_left <= 0:
        return 0.0
    if steps <= 0 or seconds < 0:
        return None
    return steps_left * seconds / steps


class StepRate:
    """Measures steps per second over about the last minute or longer, evaluations included.

    The first step of this process only starts the clock, and its time is not counted, because it
    can include a compilation. Steps before a resume are not counted, either.
    """

    APART = 1.0  # seconds: `mark` keeps a step only this long after the last step that it kept
    MARKS = 64  # so that these steps span about a minute or more

    def __init__(self) -> None:
        self._marks: deque[tuple[int, float]] = deque(maxlen=self.MARKS)
        self._latest = (0, 0.0)

    def mark(self, step: int, seconds: float) -> None:
        """Record that `step` was done `seconds` after the start of the run."""
        self._latest = (step, seconds)
        if not self._marks or seconds - self._marks[-1][1] >= self.APART:
            self._marks.append(self._latest)

    def eta(self, max_steps: int) -> float | None:
        """Seconds until `max_steps` are done; 0 if they are.

        None before the second call of `mark`."""
        if not self._marks:
            return None
        (first_step, first), (step, now) = self._marks[0], self._latest
        return eta_seconds(max_steps - step, step - first_step, now - first)


def loss_text(loss: float | None) -> str:
    """A loss with four decimals, or in scientific notation from 10,000 on; "-" for None."""
    if loss is None:
        return UNKNOWN
    return f"{loss:.4f}" if not math.isfinite(loss) or abs(loss) < 1e4 else f"{loss:.2e}"


def norm_text(norm: float) -> str:
    """A gradient norm with two decimals, or in scientific notation if it is tiny or huge."""
    return f"{norm:.2f}" if not math.isfinite(norm) or 0.01 <= norm < 1000 else f"{norm:.1e}"


def rate_text(tokens_per_second: float | None, *, short: bool = False) -> str:
    """A speed such as "61,234 tok/s", with `short` "61.2k tok/s"; "- tok/s" if unknown."""
    if tokens_per_second is None or not math.isfinite(tokens_per_second):
        return f"{UNKNOWN} tok/s"
    # "1.23M", not "1.23 M": scripts split lines at spaces.
    return f"{human_count(round(tokens_per_second), short=short).replace(' ', '')} tok/s"
