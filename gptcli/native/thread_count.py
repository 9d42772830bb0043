"""Chooses how many threads sample one stream: all, or only one if another process disturbs them.

Threads that share a step wait for each other at every layer. If another process occupies a core,
the threads together are far slower than a single thread. The text does not depend on the number of
threads.
"""

from __future__ import annotations

from collections import deque

try:
    import resource
except ImportError:  # Windows does not count switches, so threads never look disturbed
    resource = None  # type: ignore[assignment]

_LEAST_STEPS = 16  # shorter runs are not measured
_LAST_RUNS = 3  # for each number of threads, the fastest of so many runs counts
_TRY_ONE_EVERY = 64  # runs with all threads before one thread is tried again, if disturbed
# Runs with one thread before all threads are tried again: the first number, and the largest.
_TRY_ALL_AFTER = (16, 256)
_MUCH_FASTER = 0.8  # one thread must take less than this share of the time that all threads take
# In a forced context switch, the system takes the processor from a thread. The threads count as
# disturbed if their last _SWITCHED_RUNS runs had more than _SWITCHES switches, plus
# _SWITCHES_PER_SECOND for each second. Measured on two cores: 32 switches a second on an idle
# machine, 150 to 94,000 next to another process.
_SWITCHED_RUNS, _SWITCHES, _SWITCHES_PER_SECOND = 16, 8, 100


class ThreadCount:
    """Chooses between one thread and `usual` threads by how long recent runs took.

    Tries one thread only if the runs with all threads are disturbed. On an idle machine, a trial
    would slow down a short text too much."""

    def __init__(self, usual: int) -> None:
        self._usual = usual
        self._seconds: dict[int, deque[float]] = {
            threads: deque(maxlen=_LAST_RUNS) for threads in (1, usual)
        }
        self._switched: deque[tuple[int, float]] = deque(maxlen=_SWITCHED_RUNS)  # count, seconds
        self._runs_since = {1: 0, usual: 0}  # runs since the other number was tried
        self._try_all_after = _TRY_ALL_AFTER[0]

    def choose(self) -> int:
        """The number of threads for the next run."""
        many, one = self._seconds[self._usual], self._seconds[1]
        if self._usual == 1 or not many:
            return self._usual
        if one and min(one) < _MUCH_FASTER * min(many):
            return self._usual if self._runs_since[1] >= self._try_all_after else 1
        due = not one or self._runs_since[self._usual] >= _TRY_ONE_EVERY
        return 1 if due and self._disturbed() else self._usual

    def _disturbed(self) -> bool:
        seconds = sum(seconds for _, seconds in self._switched)
        count = sum(count for count, _ in self._switched)
        return count > _SWITCHES + _SWITCHES_PER_SECOND * seconds

    def took(self, threads: int, steps: int, seconds: float, switches: int) -> None:
        """Record a run: its threads, steps and duration, and the growth of `context_switches`."""
        if threads == self._usual:
            self._switched.append((switches, seconds))
        if steps < _LEAST_STEPS:
            return
        if threads == self._usual and self._runs_since[1] >= self._try_all_after:
            self._try_all_after = min(2 * self._try_all_after, _TRY_ALL_AFTER[1])
        elif self._runs_since[self._usual] > _LAST_RUNS:  # all threads are in use again
            self._try_all_after = _TRY_ALL_AFTER[0]
        self._seconds[threads].append(seconds / steps)
        for number in self._runs_since:
            self._runs_since[number] = self._runs_since[number] + 1 if number == threads else 0


def context_switches() -> int:
    """How often the system has taken the processor from this process's threads. 0 on Windows."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource else 0
