"""Chooses how many threads sample one stream: all, or one if another process disturbs them.

Threads that share a step wait for each other at every layer. If another process occupies a core,
the threads together are far slower than a single thread. The text does not depend on the number of
threads.
"""

from __future__ import annotations

from collections import deque

try:
    import resource
except ImportError:  # Windows does not count context switches, so threads never count as disturbed
    resource = None  # type: ignore[assignment]

# The time of runs with fewer steps is ignored.
_LEAST_STEPS = 16
# Each number of threads is judged by the fastest of its last _LAST_RUNS runs.
_LAST_RUNS = 3
# While the threads are disturbed, a single thread is tried again after _TRY_ONE_EVERY runs with all
# threads.
_TRY_ONE_EVERY = 64
# All threads are tried again after some runs with a single thread: at first after 16 runs. The
# number of these runs doubles with each try in vain, up to 256.
_TRY_ALL_AFTER = (16, 256)
# A single thread is used if it takes less than this share of the time that all threads take.
_MUCH_FASTER = 0.8
# In a forced context switch, the system takes the processor from a thread. The threads count as
# disturbed if the last _SWITCHED_RUNS runs with all threads had too many switches: more than
# _SWITCHES, plus _SWITCHES_PER_SECOND for each second of these runs. Measured on two cores: 32
# switches a second on an idle machine, 150 to 94,000 next to another process.
_SWITCHED_RUNS, _SWITCHES, _SWITCHES_PER_SECOND = 16, 8, 100


class ThreadCount:
    """Chooses between one thread and `usual` threads, by the time that recent runs took.

    A run is one call that generates some tokens. Tries one thread only if the runs with all threads
    are disturbed. On an idle machine, a trial of one thread would slow down a short text too
    much."""

    def __init__(self, usual: int) -> None:
        self._usual = usual
        self._seconds: dict[int, deque[float]] = {
            threads: deque(maxlen=_LAST_RUNS) for threads in (1, usual)
        }
        self._switched: deque[tuple[int, float]] = deque(maxlen=_SWITCHED_RUNS)  # switches, seconds
        # For each number of threads: how many measured runs have used it in a row, up to now. This
        # is 0 for the number that the last run did not use.
        self._runs_since = {1: 0, usual: 0}
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
        """Record a run: its threads, steps and seconds, and how much `context_switches` grew."""
        if threads == self._usual:
            self._switched.append((switches, seconds))
        if steps < _LEAST_STEPS:
            return
        if threads == self._usual and self._runs_since[1] >= self._try_all_after:
            self._try_all_after = min(2 * self._try_all_after, _TRY_ALL_AFTER[1])
        elif self._runs_since[self._usual] > _LAST_RUNS:
            # More than _LAST_RUNS measured runs in a row have used all threads.
            self._try_all_after = _TRY_ALL_AFTER[0]
        self._seconds[threads].append(seconds / steps)
        for number in self._runs_since:
            self._runs_since[number] = self._runs_since[number] + 1 if number == threads else 0


def context_switches() -> int:
    """How often the system has taken the processor from this process's threads. 0 on Windows."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource else 0
