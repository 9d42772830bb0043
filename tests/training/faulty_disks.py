"""Disks that take the place of durable.disk and that record operations, kill the process, or fail.
Also defines the stories of the tests: calls that save or delete checkpoints, and what must be true
of the run afterwards."""

from __future__ import annotations

import io
import os
import shutil
import signal
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch

from gptcli.errors import GptcliError
from gptcli.files import durable
from gptcli.training import checkpoint
from gptcli.training.checkpoint_files import WholeFiles, write_tensors
from gptcli.training.gathered_weights import gather_weights
from gptcli.training.meta_file import PARTS, shard_name
from gptcli.training.training_state import Progress

Operation = tuple[Any, ...]
"""One operation of a disk: ("write", path, data), ("rename", source, goal), or, for all other
operations, (name of the operation, path)."""


class Watched(durable.Disk):
    """A disk that hands each operation to its method `watch`.

    This disk skips fsync, so that tests are fast. Even without fsync, written data survives the
    death of the process that wrote it."""

    def watch(self, operation: Operation, do: Callable[[], Any]) -> Any:
        """Do the operation, by calling `do`.

        Subclasses override this method, for example to record or to fail."""
        return do()

    def create(self, path: Path) -> io.FileIO:
        file: io.FileIO = self.watch(("create", path), lambda: super(Watched, self).create(path))
        return file

    def write(self, file: io.FileIO, data: memoryview) -> int:
        operation = ("write", Path(file.name), bytes(data))
        written: int = self.watch(operation, lambda: super(Watched, self).write(file, data))
        return written

    def fsync(self, file: IO[bytes]) -> None:
        self.watch(("fsync", Path(file.name)), lambda: None)

    def fsync_folder(self, path: Path) -> None:
        self.watch(("fsync_folder", path), lambda: None)

    def mkdir(self, path: Path) -> None:
        self.watch(("mkdir", path), lambda: super(Watched, self).mkdir(path))

    def rename(self, source: Path, goal: Path) -> None:
        self.watch(("rename", source, goal), lambda: super(Watched, self).rename(source, goal))

    def unlink(self, path: Path) -> None:
        self.watch(("unlink", path), lambda: super(Watched, self).unlink(path))

    def rmdir(self, path: Path) -> None:
        self.watch(("rmdir", path), lambda: super(Watched, self).rmdir(path))


class Recording(Watched):
    """A disk that records all operations (`tried`) and those that succeeded (`operations`)."""

    def __init__(self) -> None:
        self.tried: list[Operation] = []
        self.operations: list[Operation] = []

    def watch(self, operation: Operation, do: Callable[[], Any]) -> Any:
        self.tried.append(operation)
        result = do()
        self.operations.append(operation)
        return result


class Deadly(Watched):
    """A disk that kills its process with SIGKILL after `count` operations.

    With `half`, if the next operation is a write, the disk first writes half of the data."""

    def __init__(self, count: int, half: bool) -> None:
        self.left = count
        self.half = half

    def watch(self, operation: Operation, do: Callable[[], Any]) -> Any:
        if self.left == 0:
            if self.half and operation[0] == "write":
                _, path, data = operation
                with path.open("ab") as file:
                    file.write(data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
        return do()


class Refusing(Watched):
    """A disk that does the first `count` operations. The next one fails with errno `number`.

    If `always` is true, all later operations fail, too. A failing write still writes half of its
    data."""

    def __init__(self, count: int, number: int, always: bool = False) -> None:
        self.left = count
        self.number = number
        self.always = always
        self.refused = False

    def watch(self, operation: Operation, do: Callable[[], Any]) -> Any:
        self.left -= 1
        if self.left == -1 or (self.always and self.left < 0):
            self.refused = True
            if operation[0] == "write":
                with operation[1].open("ab") as file:
                    file.write(operation[2][: len(operation[2]) // 2])
            raise OSError(self.number, os.strerror(self.number), str(operation[1]))
        return do()


class Short(durable.Disk):
    """A disk that writes at most `size` bytes at a time."""

    def __init__(self, size: int) -> None:
        self.size = size

    def write(self, file: io.FileIO, data: memoryview) -> int:
        return super().write(file, data[: self.size])


def in_child(body: Callable[[], None]) -> tuple[int, str]:
    """Run `body` in a fork of this process.

    Return the fork's wait status (0: success), and its traceback or ""."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            body()
            status = 0
        except BaseException:
            os.write(writing, traceback.format_exc().encode()[-60_000:])
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, "rb") as file:  # noqa: PTH123  # a descriptor
        text = file.read().decode()
    return os.waitpid(child, 0)[1], text


# ---- stories: calls on a run, and what must be true after them --------------------------------


def write(run: Path, step: int, more: int = 0, size: int = 5, best: int | None = None) -> None:
    """Save a checkpoint with `size` weights, which all equal `step`.

    All numbers of its state equal -step."""
    model, state = {"w": torch.full((size,), float(step))}, {"m": torch.full((3,), -float(step))}
    meta = {"progress": asdict(Progress(step=step, best_step=best)), "more": more}
    checkpoint.save(run, step, model, state, meta)


class TwoShards(WholeFiles):
    """The files of a checkpoint as two ranks write them.

    There are two shards for the weights and two for the state. Only the first shard of each holds
    the tensors without dimensions."""

    def write(self, folder: Path) -> dict[str, Any]:
        """Write half of each tensor's rows to one shard, and the other half to another shard."""
        index = {}
        for part, tensors in zip(PARTS, self._parts, strict=True):
            for number in (1, 2):
                rows = {
                    name: tensor.chunk(2)[number - 1] if tensor.dim() else tensor
                    for name, tensor in tensors.items()
                    if number == 1 or tensor.dim()
                }
                name = shard_name(part, number, 2)
                index[name] = write_tensors(folder / name, rows)
        return index


def write_shards(run: Path, step: int) -> None:
    """Save the same checkpoint as `write` does, but in shards.

    If the step has a checkpoint already, replace it."""
    shutil.rmtree(checkpoint.folder_of(run, step), ignore_errors=True)
    model, state = {"w": torch.full((5,), float(step))}, {"m": torch.full((3,), -float(step))}
    meta = {"progress": asdict(Progress(step=step)), "more": 0}
    checkpoint.save_files(run, step, TwoShards(model, state), meta)


def gather(run: Path) -> None:
    """Gather the shards of the weights into one file, as a training does at its end.

    If this fails, gptcli only prints a warning."""
    gather_weights(run)


def leave_behind(run: Path) -> None:
    """Create temporary files as killed processes leave them, beside and inside checkpoints."""
    folder = run / "checkpoints"
    (folder / ".best.77.tmp").write_bytes(b"half")
    for name in (".step-00000030.77.tmp", ".step-00000005.77.old"):
        (folder / name).mkdir()
    (folder / ".step-00000030.77.tmp" / "model.safetensors").write_bytes(b"half")
    (checkpoint.folder_of(run, 20) / ".meta.json.77.tmp").write_bytes(b"half")


def damage(run: Path, step: int, name: str) -> None:
    """Cut off the last byte of the file `name` in the checkpoint of `step`."""
    path = checkpoint.folder_of(run, step) / name
    path.write_bytes(path.read_bytes()[:-1])


@dataclass(frozen=True)
class Story:
    """What a test does to a run, and what must be true of the run afterwards.

    The run begins with checkpoints of the steps `before`. The first of these is the best one. The
    functions `calls` are then called on the run, one after the other. The other fields say what
    must be true of the run even if a call is interrupted at any point."""

    name: str
    before: tuple[int, ...]
    calls: tuple[Callable[[Path], None], ...]
    new: int | None
    """The step of the newest valid checkpoint after the first call has returned."""
    old: int | None
    """The step of the newest valid checkpoint before the calls."""
    kept: frozenset[int]
    """The steps whose checkpoints must stay valid all the time."""
    best: int | None
    """The step of the best checkpoint after all calls have returned."""
    prepare: Callable[[Path], None] = lambda run: None
    torn: int | None = None
    """The step of a checkpoint that is damaged before the calls, and may stay damaged. None: no
    checkpoint is damaged."""

    def begin(self, run: Path) -> Path:
        """Create the run folder with the checkpoints `before`, and change it with `prepare`."""
        run.mkdir()
        for step in self.before:
            write(run, step)
        if self.before:
            checkpoint.mark_best(run, self.before[0])
        self.prepare(run)
        return run

    def tell(self, run: Path, returned: Callable[[], None] = lambda: None) -> None:
        """Call the story's functions one after the other. Call `returned` after each of them."""
        for call in self.calls:
            call(run)
            returned()

    def check(self, run: Path, returned: int) -> None:
        """Assert what must be true of `run` if exactly the first `returned` calls completed."""
        saved, notes = checkpoint.newest_valid(run)
        step = saved.step if saved else None
        assert step in ((self.new,) if returned else (self.old, self.new)), (step, notes)
        whole = set()
        for step in checkpoint.steps_of(run):
            if step == self.torn:
                with suppress(GptcliError):
                    check_tensors(run, step)
            else:
                check_tensors(run, step)
                whole.add(step)
        assert self.kept <= whole
        assert len(whole) >= min(2, len({*self.before} - {self.torn}))
        old_best = self.before[0] if self.before else None
        ended = returned == len(self.calls)
        assert checkpoint.best_step(run) in ((self.best,) if ended else (self.best, old_best))
        if self.name == "the same step":
            more = checkpoint.read_meta(run, 20)["more"]
            assert more in ((1,) if ended else (0, 1))

    def go_on(self, run: Path) -> None:
        """Assert that the run can save more checkpoints, and that no temporary files are left."""
        saved, _ = checkpoint.newest_valid(run)
        checkpoint.delete_leftovers(run, saved.step if saved else -1)
        assert temporaries(run) == []
        write(run, 60)
        checkpoint.mark_best(run, 60)
        checkpoint.prune(run, 2)
        after, notes = checkpoint.newest_valid(run)
        assert after is not None
        assert (after.step, notes, temporaries(run)) == (60, [], [])
        assert checkpoint.choose_step(run, "best") == 60
        if saved:
            assert saved.step in checkpoint.steps_of(run)


def check_tensors(run: Path, step: int) -> None:
    """Assert that the checkpoint can be loaded, with only `step` in "w" and only -`step` in "m"."""
    loaded = checkpoint.load(run, step, with_state=True)
    assert set(loaded.model["w"].tolist()) == {float(step)}
    assert set(loaded.state["m"].tolist()) == {-float(step)}


def temporaries(run: Path) -> list[str]:
    """The names in a run folder that begin with a dot: temporary files, and .lock if it exists."""
    return sorted(p.name for p in run.rglob(".*"))


STORIES = (
    Story("the first save", (), (lambda run: write(run, 10),), 10, None, frozenset(), None),
    Story("a save", (10, 20), (lambda run: write(run, 30),), 30, 20, frozenset({10, 20}), 10),
    Story(
        "a save after a killed one",
        (10, 20),
        (lambda run: write(run, 30),),
        30,
        20,
        frozenset({10, 20}),
        10,
        leave_behind,
    ),
    Story(
        "a new best checkpoint",
        (10, 20),
        (
            lambda run: write(run, 30),
            lambda run: checkpoint.mark_best(run, 30),
            lambda run: checkpoint.prune(run, 2),
        ),
        30,
        20,
        frozenset({20}),
        30,
    ),
    Story(
        "the same step",
        (10, 20),
        (lambda run: write(run, 20, more=1),),
        20,
        20,
        frozenset({10, 20}),
        10,
    ),
    Story(
        "a damaged step again",
        (5, 10, 20),
        (lambda run: write(run, 20),),
        20,
        10,
        frozenset({5, 10}),
        5,
        lambda run: damage(run, 20, "meta.json"),
        torn=20,
    ),
    Story(
        "a mark",
        (10, 20),
        (lambda run: checkpoint.mark_best(run, 20),),
        20,
        20,
        frozenset({10, 20}),
        20,
    ),
    Story(
        "old checkpoints are deleted",
        (10, 20, 30, 40, 50),
        (lambda run: checkpoint.prune(run, 2),),
        50,
        50,
        frozenset({10, 40, 50}),
        10,
    ),
    Story(
        "a resume",
        (10, 20, 30),
        (lambda run: checkpoint.delete_leftovers(run, 20),),
        20,
        20,
        frozenset({10, 20}),
        10,
        lambda run: (leave_behind(run), damage(run, 30, "state.safetensors"))[0],
        torn=30,
    ),
    Story(
        "a save of shards",
        (10, 20),
        (lambda run: write_shards(run, 30),),
        30,
        20,
        frozenset({10, 20}),
        10,
        lambda run: write_shards(run, 20),
    ),
    Story(
        "shards are gathered",
        (10, 20),
        (gather,),
        30,
        30,
        frozenset({10, 20, 30}),
        10,
        lambda run: write_shards(run, 30),
    ),
)


def names(stories: Iterable[Story]) -> list[str]:
    """The ids of the stories, for pytest.mark.parametrize."""
    return [story.name.replace(" ", "-") for story in stories]
