"""Trials: save a run on disks that kill the process, fail, lose writes or are full.

The tests in this folder run the trials, and benchmarks/reliability.py counts them. Each generator
yields once for each trial that passed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gptcli.errors import GptcliError
from gptcli.files import durable
from gptcli.training import checkpoint
from tests.training.faulty_disks import (
    Deadly,
    Operation,
    Recording,
    Refusing,
    Short,
    Story,
    Watched,
    check_tensors,
    in_child,
    temporaries,
    write,
)
from tests.training.lost_writes import Model, write_tree

ERRORS = (errno.ENOSPC, errno.EIO, errno.EMFILE, errno.EDQUOT)
FLOATS = 3000  # 12 kB, so that a checkpoint takes several pages of the disk
TIDYING = (
    "a new best checkpoint",
    "old checkpoints are deleted",
    "a resume",
    "shards are gathered",
)
"""The names of the stories that delete or gather files. If the disk refuses to do so, such a
story continues without an error."""


@contextmanager
def on(disk: durable.Disk) -> Iterator[None]:
    """Let gptcli use `disk` for its files inside the `with` block."""
    before, durable.disk = durable.disk, disk
    try:
        yield
    finally:
        durable.disk = before


def begin(story: Story, folder: Path) -> Path:
    """Create the run folder with which a story begins, and return the folder."""
    with on(Watched()):
        return story.begin(folder / "begun")


def copy(begun: Path) -> Path:
    """Copy the run folder `begun` to the folder `run` in the same parent folder. Return the copy.

    If a folder `run` exists already, delete this folder first."""
    run = begun.parent / "run"
    shutil.rmtree(run, ignore_errors=True)
    return Path(shutil.copytree(begun, run))


def record(story: Story, begun: Path) -> list[Operation]:
    """The disk operations of a story, recorded on a disk without faults."""
    disk = Recording()
    with on(disk):
        story.tell(copy(begun))
    return disk.tried


def check(story: Story, run: Path, returned: int) -> None:
    """Assert what a story requires after an interruption, and that the run can be continued."""
    with on(Watched()):
        story.check(run, returned)
        story.go_on(run)


# ---- kills and crashes -----------------------------------------------------------------------


def killed_at_any_operation(story: Story, half: bool, begun: Path) -> Iterator[int]:
    """Kill the process of a story with SIGKILL; yield how many operations each trial completed.

    The first trial kills the process before any operation, the next one after one operation, and
    so on. The last trial kills nothing. With `half`, each trial kills the process in the middle of
    one write."""
    operations = record(story, begun)
    for count in range(len(operations) + 1):
        if half and (count == len(operations) or operations[count][0] != "write"):
            continue
        run = copy(begun)

        def body(run: Path = run, count: int = count) -> None:
            durable.disk = Deadly(count, half)
            story.tell(run)

        status, text = in_child(body)
        died = count < len(operations)
        assert status == (signal.SIGKILL if died else 0), text
        check(story, run, 0 if died else len(story.calls))
        yield count


def crashed_after_any_operation(story: Story, folder: Path, seed: int = 0) -> Iterator[int]:
    """Cut the power after each operation of a story.

    Data that had no fsync is lost, partly or completely. Also assert that a crash loses nothing
    that a completed call has saved. A crash that leaves the same files as an earlier crash is
    counted, but not tried again. Each yielded number counts the crashes since the previous
    yield."""
    crashed = folder / "crashed"
    run = begin(story, folder)
    model = Model(run)
    disk = Recording()
    returned: list[int] = []  # for each call, how many operations had succeeded when it returned
    with on(disk):
        story.tell(run, lambda: returned.append(len(disk.operations)))
    choice = random.Random(seed)
    tried = 0
    checked = set()
    for count in range(len(disk.operations) + 1):
        if count:
            model.apply(disk.operations[count - 1])
        ended = sum(at <= count for at in returned)
        for tree in model.after_a_crash(choice):
            tried += 1
            if (tree, ended) in checked:
                continue
            checked.add((tree, ended))
            shutil.rmtree(crashed, ignore_errors=True)
            write_tree(tree, crashed)
            check(story, crashed, ended)
            yield tried
            tried = 0
    assert len(checked) > len(story.calls)


# ---- operations that fail --------------------------------------------------------------------


def refused(story: Story, begun: Path, disk: Refusing) -> tuple[Path, GptcliError | None]:
    """Run a story on a failing disk.

    Return the run folder, and the error that the story raised (None if it raised none)."""
    run = copy(begun)
    with on(disk):
        try:
            story.tell(run)
        except GptcliError as error:
            return run, error
    return run, None


def failing_at_any_operation(story: Story, begun: Path) -> Iterator[int]:
    """In each trial, one operation of the story fails with one of ERRORS.

    Each operation fails once with each error. Yields the number of the operation."""
    for count, operation in enumerate(record(story, begun)):
        for number in ERRORS:
            disk = Refusing(count, number)
            run, error = refused(story, begun, disk)
            assert disk.refused
            if error is None:  # the operation that failed only had to tidy up
                assert operation[0] in ("unlink", "rmdir") or story.name in TIDYING, operation
            else:
                check_words(error, run, number)
                ours = f".{os.getpid()}.tmp"
                assert [name for name in temporaries(run) if name.endswith(ours)] == []
            check(story, run, 0 if error else len(story.calls))
            yield count


def failing_for_good(story: Story, begun: Path) -> Iterator[int]:
    """In each trial, all operations fail from a certain operation on.

    Yields the number of this operation."""
    for count in range(len(record(story, begun))):
        run, error = refused(story, begun, Refusing(count, errno.EIO, always=True))
        if error is not None:
            check_words(error, run, errno.EIO)
        check(story, run, 0 if error else len(story.calls))
        yield count


def check_words(error: GptcliError, run: Path, number: int) -> None:
    """Assert that an error's message is one line with the path, the reason and the free space."""
    assert error.exit_code == 1
    assert "\n" not in error.message
    assert str(run / "checkpoints") in error.message
    assert f"({os.strerror(number)});" in error.message
    assert "MiB free there" in error.message


def short_writes(size: int, folder: Path) -> Iterator[int]:
    """Save a checkpoint on a disk that writes at most `size` bytes at a time.

    If `size` is 0, the disk writes nothing."""
    run, refused = folder / "short", None
    run.mkdir()
    try:
        with on(Short(size)):
            write(run, 10)
    except GptcliError as error:
        refused = error
    if size:
        assert refused is None
        check_tensors(run, 10)
    else:
        assert refused is not None
        assert os.strerror(errno.ENOSPC) in refused.message
        assert temporaries(run) == []
    yield size


# ---- disks that are really full --------------------------------------------------------------


def refuses(run: Path, step: int) -> str | None:
    """Save the checkpoint of a step.

    Return the error message, or None if the disk took the checkpoint. Assert that a refused save
    leaves the run unchanged."""
    error = None
    try:
        write(run, step, size=FLOATS)
    except GptcliError as raised:
        error = raised
    if error is None:
        check_tensors(run, step)
        return None
    assert error.exit_code == 1
    assert "\n" not in error.message
    assert "MiB free there" in error.message
    assert temporaries(run) == []
    assert step not in checkpoint.steps_of(run)
    return error.message


def check_old(run: Path, step: int) -> None:
    """Assert that the newest checkpoint is that of `step`, and that it is valid."""
    saved, notes = checkpoint.newest_valid(run)
    assert saved is not None
    assert (saved.step, notes) == (step, [])
    check_tensors(run, step)


def limited_file_sizes(run: Path) -> Iterator[int]:
    """Save checkpoints with RLIMIT_FSIZE, a limit on the size of a file.

    It works like a quota: one write is cut off at the limit, and the next write fails. Yields each
    limit."""
    import resource

    write(run, 10, size=FLOATS)
    sizes = [path.stat().st_size for path in checkpoint.folder_of(run, 10).iterdir()]
    for limit in (0, 1, min(sizes) - 1, 5000, max(sizes) - 1, max(sizes)):

        def body(limit: int = limit) -> None:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            line = refuses(run, 20)
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            if limit < max(sizes):
                assert line is not None
                assert os.strerror(errno.EFBIG) in line
                check_old(run, 10)
            assert refuses(run, 30) is None

        assert in_child(body) == (0, "")
        check_old(run, 30)
        checkpoint.delete_leftovers(run, 10)
        assert checkpoint.steps_of(run) == [10]
        yield limit


def no_more_open_files(run: Path) -> Iterator[int]:
    """Save a checkpoint with RLIMIT_NOFILE so low that the process cannot open another file."""
    import resource

    write(run, 10, size=FLOATS)

    def body() -> None:
        free = os.dup(0)
        os.close(free)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        error = None
        try:
            write(run, 20, size=FLOATS)
        except GptcliError as raised:
            error = raised
        finally:
            checkpoint.prune(run, 2)  # prune cannot delete anything now, and must raise no error
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert error is not None
        assert os.strerror(errno.EMFILE) in error.message
        assert temporaries(run) == []
        check_old(run, 10)
        assert refuses(run, 20) is None

    assert in_child(body) == (0, "")
    check_old(run, 20)
    yield 1


NOT_ALLOWED = 77


class NotAllowedError(Exception):
    """This system does not allow the tests to mount a file system."""


def mount_tmpfs(folder: Path, options: str) -> None:
    """Mount a small file system in memory, visible only to this process and its children.

    Exit with NOT_ALLOWED if the system refuses this."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    new_user, new_mount = 0x10000000, 0x00020000
    if libc.unshare(new_user | new_mount) != 0:
        os._exit(NOT_ALLOWED)
    try:
        Path("/proc/self/setgroups").write_text("deny", "utf-8")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1", "utf-8")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1", "utf-8")
    except OSError:
        os._exit(NOT_ALLOWED)
    if libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, options.encode()) != 0:
        os._exit(NOT_ALLOWED)


def full_file_system(what: str, folder: Path) -> Iterator[int]:
    """Save checkpoints on a full tmpfs. Yields the number of each refused save.

    The tmpfs has no free space if `what` is "room", and no free inodes if `what` is "inodes". It is
    filled completely, then freed bit by bit, so that each save fails at a later operation. Raises
    NotAllowedError if the tmpfs cannot be mounted."""
    pages, inodes = 24, 40
    one = b"full" * 1024 if what == "room" else b""
    counts = folder.with_name(f"{folder.name}-{what}")

    def body() -> None:
        with counts.open("wb") as count:
            mount_tmpfs(folder, f"size={4096 * pages},nr_inodes={inodes}")
            run = folder / "run"
            run.mkdir()
            write(run, 10, size=FLOATS)
            fillers = [folder / f"filler-{number}" for number in range(pages + inodes)]
            with suppress(OSError):
                for filler in fillers:
                    filler.write_bytes(one)
            fillers = [filler for filler in fillers if filler.exists()]
            lines = []
            while (line := refuses(run, 20)) is not None:
                lines.append(line)
                check_old(run, 10)
                fillers.pop().unlink()
            assert all(os.strerror(errno.ENOSPC) in line for line in lines)
            # At least one save failed when it made the checkpoint's folder, and at least one at
            # each of the three files in this folder.
            assert len(lines) >= 4
            check_old(run, 20)
            count.write(b"." * len(lines))

    status, text = in_child(body)
    if os.waitstatus_to_exitcode(status) == NOT_ALLOWED:
        raise NotAllowedError
    assert (status, text) == (0, "")
    yield from range(1, counts.stat().st_size + 1)
