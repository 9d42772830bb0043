"""Sharded checkpoints of FSDP: each rank writes its rows to the disk, and rank 0 the index.

    leader                                              every other rank
    ------                                              ----------------
    order "save", copy own rows, go on         ----->   copy own rows, go on
    in a thread: make a temporary folder, name it --->  in a thread: hear its name
    write own shard                                     write own shard
    gather sizes and SHA-256                   <-----   report them, or why the disk refused
    write meta.json with all of them, rename the folder

The checkpoint exists only after the last line. If a rank dies before that, the previous checkpoint
is still complete, and the next save or resume deletes the temporary folder. The leader gives the
order between two steps, so all rows belong to the same step. Each save uses a new name for the
folder, so a late rank cannot write into the folder of another save. Nothing is pickled: the ranks
send each other JSON.

gptcli.training.checkpoint_files says what a shard holds. gptcli.training.meta_file says how a shard
is named.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from gptcli.distributed.place import Place
from gptcli.distributed.team import LONGEST, LostError, peers_needed
from gptcli.errors import GptcliError
from gptcli.files import durable
from gptcli.training.checkpoint_files import bytes_of, copies_of, write_tensors
from gptcli.training.meta_file import PARTS, shard_name
from gptcli.training.weight_averages import to_checkpoint

if TYPE_CHECKING:
    from gptcli.training.master_weights import MasterWeights

_MESSAGE_BYTES = 8192
_LONGEST_REASON = 500  # characters of an error; in JSON, each character can take twelve bytes

Rows = tuple[dict[str, Tensor], dict[str, Tensor]]
"""This rank's rows of the weights, and of the optimizer's state."""


class ShardGroup:
    """The messages between the ranks during a save, on separate connections.

    A thread can use the object while the main thread trains. When the leader calls `announce`, all
    other ranks must call `hear`. All ranks must call `report`. The methods raise LostError if
    another rank is gone."""

    def __init__(self, place: Place) -> None:
        with peers_needed():
            self._group = dist.new_group(backend="gloo", timeout=LONGEST)
        self._place = place

    def announce(self, name: str) -> None:
        """Tell all other ranks to write to the folder `name`. "" means that they write nothing."""
        with peers_needed():
            dist.broadcast(_packed(name), 0, group=self._group)

    def hear(self) -> str:
        """Wait until the leader announces the folder's name, and return the name."""
        message = torch.zeros(_MESSAGE_BYTES, dtype=torch.uint8)
        with peers_needed():
            dist.broadcast(message, 0, group=self._group)
        return str(_unpacked(message))

    def report(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        """Send a record to the leader. The leader gets all records, the other ranks get []."""
        message = _packed(record)
        leads = self._place.leads
        found = [torch.zeros_like(message) for _ in range(self._place.size)] if leads else None
        with peers_needed():
            dist.gather(message, found, dst=0, group=self._group)
        return [_unpacked(each) for each in found or []]


def _packed(value: object) -> Tensor:
    """A JSON value as a message of fixed length."""
    text = json.dumps(value).encode("ascii")
    assert len(text) <= _MESSAGE_BYTES
    return torch.frombuffer(bytearray(text.ljust(_MESSAGE_BYTES)), dtype=torch.uint8)


def _unpacked(message: Tensor) -> Any:
    return json.loads(bytes(message.tolist()))


class ShardWriter:
    """Finds this rank's rows of all tensors, and writes them as shards.

    `checkpoints` is the folder of the run's checkpoints."""

    def __init__(
        self,
        place: Place,
        checkpoints: Path,
        weights: MasterWeights,
        state: Callable[[], dict[str, Tensor]],
    ) -> None:
        self._place, self._checkpoints = place, checkpoints
        self._weights, self._state = weights, state
        self.group = ShardGroup(place)
        self._thread: threading.Thread | None = None

    def rows(self) -> Rows:
        """This rank's rows. They are not copies: the next step changes them."""
        state = self._state()
        if not self._place.leads:  # a single number has no rows, so the leader saves it
            state = {name: tensor for name, tensor in state.items() if tensor.dim()}
        return to_checkpoint(dict(self._weights.masters), state)

    def write(self, folder: Path, rows: Rows) -> dict[str, Any]:
        """Write this rank's shards, and return their part of the index.

        If a write fails, return the reason as `error`, and the free space as `free`."""
        try:
            files = {}
            for part, tensors in zip(PARTS, rows, strict=True):
                name = shard_name(part, self._place.rank + 1, self._place.size)
                files[name] = write_tensors(folder / name, tensors)
            return {"files": files}
        except Exception as error:  # tell the leader, which would wait otherwise
            reason = (error.strerror if isinstance(error, OSError) else None) or repr(error)
            return {"error": reason[:_LONGEST_REASON], "free": durable.free_space(folder)}

    # ---- the other ranks ---------------------------------------------------------------------

    def follow(self, *, background: bool) -> None:
        """Take part in a save that the leader has ordered. If `background`, write in a thread."""
        if self._thread is not None:
            self._thread.join()  # the leader, too, has waited for the thread of its previous save
            self._thread = None
        rows = self.rows()
        if background:
            try:
                copies = copies_of(rows[0]), copies_of(rows[1])
                thread = threading.Thread(target=self._in_thread, args=(copies,), daemon=True)
                thread.start()
                self._thread = thread
                return
            except (MemoryError, RuntimeError):  # no memory for the copy, or no thread can start
                pass
        self._take_part(rows)

    def _in_thread(self, rows: Rows) -> None:
        with suppress(LostError):  # the main thread also notices this error, and ends the process
            self._take_part(rows)

    def _take_part(self, rows: Rows) -> None:
        name = self.group.hear()
        if name:
            self.group.report(self.write(self._checkpoints / name, rows))


class LeaderShards:
    """The leader's TensorFiles, with which all ranks together write a sharded checkpoint.

    The function `order` tells the other ranks to take part. It is called once, in the main thread,
    with True if the other ranks are to write in a thread."""

    def __init__(self, writer: ShardWriter, order: Callable[[bool], None]) -> None:
        self._writer, self._order = writer, order
        self._rows = writer.rows()
        self._ordered = self._announced = False

    @property
    def size(self) -> int:
        """How many bytes the leader's own rows have."""
        return sum(bytes_of(part) for part in self._rows)

    def copied(self) -> LeaderShards:
        """Order the save, and copy the leader's rows, so that a thread can call `write`.

        Returns this object."""
        self._order_once(background=True)
        self._rows = copies_of(self._rows[0]), copies_of(self._rows[1])
        return self

    def temporary(self, goal: Path) -> Path:
        """A random name for the temporary folder, so that no two saves use the same name."""
        return goal.with_name(f".{goal.name}.{secrets.randbelow(10**15)}.tmp")

    def write(self, folder: Path) -> dict[str, Any]:
        """Let all ranks write their shards, and return the index of all shards.

        After all ranks have finished, raises GptcliError if a rank could not write, or if rank 0
        does not find a shard."""
        self._order_once(background=False)
        self._announced = True
        self._writer.group.announce(folder.name)
        records = self._writer.group.report(self._writer.write(folder, self._rows))
        index: dict[str, Any] = {}
        for rank, record in enumerate(records):
            if "error" in record:
                raise _refused(
                    f"{folder.parent}: rank {rank} could not write its shard ({record['error']}); "
                    f"{record['free']} free there"
                )
            index |= record["files"]
        for name, file in index.items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != file["size"]:
                raise _refused(f"{path} was written, but rank 0 does not find it")
        return index

    def close(self) -> None:
        """If a save was ordered but `write` was never called, let the other ranks stop waiting."""
        if self._ordered and not self._announced:
            self._announced = True
            self._writer.group.announce("")

    def _order_once(self, *, background: bool) -> None:
        if not self._ordered:
            self._ordered = True
            self._order(background)


def _refused(message: str) -> GptcliError:
    return GptcliError(
        message,
        "free some space, or check the disk, which all machines of the run must share; earlier "
        "checkpoints are intact and --resume continues from them",
        exit_code=1,
    )
