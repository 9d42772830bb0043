"""How many threads share a step of one stream: as many as there are, or one."""

from __future__ import annotations

from collections import deque

_LEAST_STEPS = 16  # of a run whose time says something
_LAST = 3  # runs that count, the quickest of them
_FIRST_TRIAL, _EVERY = 4, 64  # runs by the usual team before one thread is tried, and again
_BACK_AFTER = (16, 256)  # runs by one thread before the usual team is tried again, ever more
_WORTH = 0.8  # of the usual team's time: what one thread has to be quicker than


class Pace:
    """Chooses by what steps took lately. Threads that wait for each other at every layer are far
    slower than one alone where another process holds a core; what is written does not depend on
    their number."""

    def __init__(self, usual: int) -> None:
        self._usual = usual
        self._seconds: dict[int, deque[float]] = {
            threads: deque(maxlen=_LAST) for threads in (1, usual)
        }
        self._since = {1: 0, usual: 0}  # runs of the one since the other was tried
        self._patience = _BACK_AFTER[0]

    def choose(self) -> int:
        """The team of the next run."""
        if self._usual == 1:
            return 1
        many, one = self._seconds[self._usual], self._seconds[1]
        if not one:
            return 1 if self._since[self._usual] >= _FIRST_TRIAL else self._usual
        if min(one) < _WORTH * min(many):
            return self._usual if self._since[1] >= self._patience else 1
        return 1 if self._since[self._usual] >= _EVERY else self._usual

    def took(self, threads: int, steps: int, seconds: float) -> None:
        """What a run of so many steps took."""
        if steps < _LEAST_STEPS:
            return
        if threads == self._usual and self._since[1] >= self._patience:
            self._patience = min(2 * self._patience, _BACK_AFTER[1])
        elif self._since[self._usual] > _LAST:  # it is back
            self._patience = _BACK_AFTER[0]
        self._seconds[threads].append(seconds / steps)
        for team in self._since:
            self._since[team] = self._since[team] + 1 if team == threads else 0
