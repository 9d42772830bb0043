"""A queue in which clients take turns: it gives out one thing of each client in each round."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """A queue of things, each of which belongs to a client.

    A client with many things delays only its own things."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[Hashable, deque[T]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        for waiting in self._waiting.values():
            yield from waiting

    def waiting(self, client: Hashable) -> int:
        """How many things of a client are in the queue."""
        return len(self._waiting.get(client, ()))

    def add(self, client: Hashable, thing: T) -> None:
        """Add a thing of a client, behind the client's other things."""
        self._waiting.setdefault(client, deque()).append(thing)
        self._count += 1

    def take(self, may: Callable[[Hashable], bool] = lambda client: True) -> T | None:
        """Remove and return a thing: the first one of the first client for which `may` is true.

        The client then goes behind all other clients. Returns None if `may` is false for every
        client in the queue."""
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
        """Remove all things for which `unwanted` is true, and return them."""
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
