"""Ends the run if a rank hangs, and says which rank it is.

Each rank counts the parts of its work that it has done, and a thread writes the count to the store
of torch.distributed once a second. If a rank has waited longer than the limit (`run.rank_timeout`),
its thread reads the counts of all ranks. A rank that no longer writes its count hangs. If all ranks
still write their counts, the ranks with the smallest count hang, because all other ranks wait for
them.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from gptcli.distributed.place import LAUNCH_FOLDER, LOST, Place, leave_word
from gptcli.plurals import agreeing

_BEAT = 1.0  # seconds


class Watch:
    """The progress of this rank, and a thread that compares it with that of the other ranks.

    The thread has its own connection to the store, because the main thread can be waiting in a
    call."""

    def __init__(self, place: Place) -> None:
        self._place, self._limit = place, float("inf")
        self._count, self._since = 0, time.monotonic()
        self._ended = threading.Event()
        self._begun = False

    def begin(self, limit: float) -> None:
        """Start to watch. The run ends if a rank lets the others wait for more than `limit` s."""
        self._limit = limit
        self.tick()
        if not self._begun:
            self._begun = True
            threading.Thread(target=self._run, name="watch of the ranks", daemon=True).start()

    def tick(self) -> None:
        """Count one more part of the work as done."""
        self._count += 1
        self._since = time.monotonic()

    def end(self) -> None:
        """Stop watching."""
        self._ended.set()

    def _run(self) -> None:
        with suppress(Exception):  # if the store is gone, torch's time limit remains
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store: Store = PrefixStore(
                f"watch/{attempt}",
                TCPStore(
                    os.environ["MASTER_ADDR"],
                    int(os.environ["MASTER_PORT"]),
                    is_master=False,
                    timeout=timedelta(seconds=20),
                ),
            )
            beat = 0
            while not self._ended.wait(_BEAT):
                beat += 1
                store.set(str(self._place.rank), f"{self._count} {beat}")
                if time.monotonic() - self._since > self._limit and not self._ended.is_set():
                    self._report(store)

    def _report(self, store: Store) -> None:
        """Print which ranks hang, unless another rank has printed this. Then end this process.

        Does nothing if this rank has gone on, or if every rank still writes its count and all
        counts are equal."""
        first = _read(store, self._place.size)
        time.sleep(3 * _BEAT)
        second = _read(store, self._place.size)
        if time.monotonic() - self._since <= self._limit or self._ended.is_set():
            return  # the rank went on in the meantime
        frozen = [r for r in first if first[r] == second[r] and r != self._place.rank]
        least = min(count for count, _ in second.values())
        behind = [r for r, (count, _) in second.items() if count == least]
        if (found := frozen or behind) and len(found) < self._place.size:
            if store.add("reported", 1) == 1:
                names = " and ".join(f"rank {r}" for r in found)
                verb = agreeing(len(found), "does", "do")
                sys.stderr.write(
                    f"error: {names} of {self._place.size} {verb} not answer: the other ranks have "
                    f"waited for {self._limit:g} s\n\nhint: if a step, a sample or a save can take "
                    "longer, raise run.rank_timeout; else look at what that process does\n"
                )
                sys.stderr.flush()
                leave_word("said", "hung")
            os._exit(LOST if LAUNCH_FOLDER in os.environ else 1)


def _read(store: Store, size: int) -> dict[int, tuple[int, int]]:
    """The count of each rank, and its beat: how often the rank has written its count.

    Both numbers are 0 if the rank has not written its count yet."""
    found = {}
    for rank in range(size):
        if store.check([str(rank)]):
            count, beat = store.get(str(rank)).decode().split()
            found[rank] = int(count), int(beat)
        else:
            found[rank] = 0, 0
    return found
