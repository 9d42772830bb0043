"""A queue that takes turns among clients: each gets one place after the other, in a circle."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Things that wait, each of a client. A client with many delays its own, not others'."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[Hashable, deque[T]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        for waiting in self._waiting.values():
            yield from waiting

    def waiting(self, client: Hashable) -> int:
        """How many things of a client wait."""
        return len(self._waiting.get(client, ()))

    def add(self, client: Hashable, thing: T) -> None:
        """Let a thing of a client wait behind the client's other things."""
        self._waiting.setdefault(client, deque()).append(thing)
        self._count += 1

    def take(self, may: Callable[[Hashable], bool] = lambda client: True) -> T | None:
        """The next thing of the next client that `may` have one; None if there is none.

        The client then goes behind all others."""
        for client, waiting in self._waiting.items():
            if may(client):
                thing = waiting.popleft()
                self._count -= 1
                del self._waiting[client]
                if waiting:
                    self._waiting[client] = waiting
                return thing
        return None

    def remove(self, unwanted: Callable[[T], bool]) -> list[T]:
        """Take out all things that are unwanted, and return them."""
        found: list[T] = []
        for client, waiting in list(self._waiting.items()):
            out = [thing for thing in waiting if unwanted(thing)]
            if not out:
                continue
            found += out
            kept = deque(thing for thing in waiting if not unwanted(thing))
            if kept:
                self._waiting[client] = kept
            else:
                del self._waiting[client]
        self._count -= len(found)
        return found
