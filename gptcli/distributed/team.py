"""The ranks of a run as one team: process groups, collectives, what to do if another rank ends.

`Team.connect` connects this process with the others. NCCL combines gradients on NVIDIA GPUs, Gloo
on CPUs. Orders and single numbers always go through Gloo, so they never wait for a GPU.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from gptcli.distributed.place import LAUNCH_FOLDER, LOST, Place
from gptcli.distributed.watch import Watch

_CONNECT = timedelta(minutes=5)
LONGEST = timedelta(hours=2)
"""The time limit of a collective. Usually the limit of watch.py, `run.rank_timeout`, is shorter."""
_PEER_GONE = re.compile(
    r"connection (was )?(closed|reset|refused)|closed by peer|broken pipe|socket (closed|error)|"
    r"timed out|time ?out|remote process exited|communicator was aborted|failed to recv|"
    r"got 0 bytes|recvvalue|sendbytes",
    re.IGNORECASE,
)


class LostError(SystemExit):
    """Another rank has ended, so this rank ends, too.

    This rank prints nothing: either the rank that failed first prints its error, or the launcher
    reports it."""

    def __init__(self) -> None:
        super().__init__(LOST if LAUNCH_FOLDER in os.environ else 1)


@contextmanager
def peers_needed() -> Iterator[None]:
    """Turn errors of collectives into LostError if another rank is gone."""
    try:
        yield
    except RuntimeError as error:
        if _PEER_GONE.search(str(error)) is None:
            raise
        if "--debug" in sys.argv:
            traceback.print_exception(error)
        raise LostError from error


class Team:
    """The connected ranks. Every rank must call the same collectives in the same order."""

    def __init__(self, place: Place) -> None:
        self.place = place
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        with peers_needed():
            store, _, _ = next(rendezvous("env://", timeout=_CONNECT))
            store.set_timeout(_CONNECT)
        self._store = PrefixStore(f"gptcli/{attempt}", store)
        self._groups = PrefixStore(f"groups/{attempt}", store)
        self.watch = Watch(place)
        self.wants_stop: Callable[[], bool] = lambda: False
        """Whether this process was asked to stop (Ctrl-C, SIGTERM)."""
        self.stop_seen = False
        """Whether a call of `agree` has found that any rank was asked to stop."""

    def connect(self, device_type: str) -> None:
        """Connect with the other ranks. All ranks must call this."""
        both = "cpu:gloo,cuda:nccl"
        with peers_needed():
            dist.init_process_group(
                both if device_type == "cuda" else "gloo",
                store=self._groups,
                rank=self.place.rank,
                world_size=self.place.size,
                timeout=LONGEST,
            )

    # ---- before the first step ---------------------------------------------------------------

    def announce(self, words: dict[str, Any]) -> None:
        """Send the leader's first message to the other ranks.

        It says all that they need to take part, or only the exit code with which they must end."""
        with peers_needed():
            self._store.set("begin", json.dumps(words))

    def await_announcement(self) -> dict[str, Any]:
        """Wait for the leader's first message, and return it.

        The leader sends the message after it has prepared the text, or when it ends. Raises
        SystemExit(130) if this process is asked to stop during the wait."""
        while True:
            with peers_needed():
                if self._store.check(["begin"]):
                    words: dict[str, Any] = json.loads(self._store.get("begin"))
                    return words
            if self.wants_stop():
                raise SystemExit(130)
            time.sleep(0.05)

    def share(self, tensors: list[Tensor]) -> None:
        """Overwrite the tensors of all ranks with those of the leader."""
        with peers_needed():
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    # ---- collectives -------------------------------------------------------------------------

    def tell(self, order: Tensor) -> Tensor:
        """Send or receive the leader's order, float64 on the CPU, and return it.

        On the other ranks, the leader's order overwrites the tensor `order`."""
        self.watch.tick()
        with peers_needed():
            dist.broadcast(order, 0)
        self.watch.tick()
        return order

    def agree(self, *values: float) -> list[float]:
        """The sums of the values over all ranks. Sets `stop_seen` if a rank was asked to stop."""
        numbers = torch.tensor([*values, float(self.wants_stop())], dtype=torch.float64)
        self.watch.tick()
        with peers_needed():
            dist.all_reduce(numbers)
        self.watch.tick()
        *sums, asked = numbers.tolist()
        self.stop_seen = self.stop_seen or asked > 0
        return sums

    def leave(self) -> None:
        """Disconnect without waiting for the other ranks."""
        self.watch.end()
        if dist.is_initialized():
            dist.destroy_process_group()
