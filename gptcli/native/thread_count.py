"""How many threads share a step of one stream: as many as there are, or one."""

from __future__ import annotations

from collections import deque

try:
    import resource
except ImportError:  # Windows: a team is never seen to be disturbed
    resource = None  # type: ignore[assignment]

_LEAST_STEPS = 16  # of a run whose time says something
_LAST = 3  # runs that count, the quickest of them
_EVERY = 64  # runs by a disturbed team before one thread is tried again
_BACK_AFTER = (16, 256)  # runs by one thread before the usual team is tried again, ever more
_WORTH = 0.8  # of the usual team's time: what one thread has to be quicker than
# Switches of the processor to others in the team's last runs that are nothing yet, and how many a
# second: 32 in quiet, 150 to 94,000 beside another process (two cores).
_SEEN, _SWITCHES, _PER_SECOND = 16, 8, 100


class ThreadCount:
    """Chooses by what steps took lately. Threads that wait for each other at every layer are far
    slower than one alone where another process holds a core; what is written does not depend on
    their number. In quiet one thread is not tried: for short texts a trial costs too much."""

    def __init__(self, usual: int) -> None:
        self._usual = usual
        self._seconds: dict[int, deque[float]] = {
            threads: deque(maxlen=_LAST) for threads in (1, usual)
        }
        self._seen: deque[tuple[int, float]] = deque(maxlen=_SEEN)  # switches, seconds
        self._since = {1: 0, usual: 0}  # runs of the one since the other was tried
        self._patience = _BACK_AFTER[0]

    def choose(self) -> int:
        """The team of the next run."""
        many, one = self._seconds[self._usual], self._seconds[1]
        if self._usual == 1 or not many:
            return self._usual
        if one and min(one) < _WORTH * min(many):
            return self._usual if self._since[1] >= self._patience else 1
        due = not one or self._since[self._usual] >= _EVERY
        return 1 if due and self._disturbed() else self._usual

    def _disturbed(self) -> bool:
        seconds = sum(seconds for _, seconds in self._seen)
        return sum(count for count, _ in self._seen) > _SWITCHES + _PER_SECOND * seconds

    def took(self, threads: int, steps: int, seconds: float, switches: int) -> None:
        """What a run of so many steps took, and how often the processor was given to others."""
        if threads == self._usual:
            self._seen.append((switches, seconds))
        if steps < _LEAST_STEPS:
            return
        if threads == self._usual and self._since[1] >= self._patience:
            self._patience = min(2 * self._patience, _BACK_AFTER[1])
        elif self._since[self._usual] > _LAST:  # it is back
            self._patience = _BACK_AFTER[0]
        self._seconds[threads].append(seconds / steps)
        for team in self._since:
            self._since[team] = self._since[team] + 1 if team == threads else 0


def switches() -> int:
    """How often the system has taken the processor from a thread of this process, or a thread
    that waited has given it up, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource else 0
