"""Disks that are really full: limits and a small file system that the system itself enforces."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from bad_disks import check_tensors, in_child, temporaries, write

from gptcli.errors import GptcliError
from gptcli.training import checkpoint

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.skipif(sys.platform == "win32", reason="needs fork and limits"),
]

FLOATS = 3000  # 12 kB: a checkpoint of some pages


def refuses(run: Path, step: int) -> str | None:
    """Save a step: None, or the error's line, the disk having been left as it was."""
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
    """Assert that the newest checkpoint is this one, and whole."""
    saved, notes = checkpoint.newest_valid(run)
    assert saved is not None
    assert (saved.step, notes) == (step, [])
    check_tensors(run, step)


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    """RLIMIT_FSIZE, which is how a quota shows itself: a write is short, the next one fails."""
    import resource

    write(tmp_path, 10, size=FLOATS)
    sizes = [path.stat().st_size for path in checkpoint.folder_of(tmp_path, 10).iterdir()]
    for limit in (0, 1, min(sizes) - 1, 5000, max(sizes) - 1, max(sizes)):

        def body(limit: int = limit) -> None:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            line = refuses(tmp_path, 20)
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            if limit < max(sizes):
                assert line is not None
                assert os.strerror(errno.EFBIG) in line
                check_old(tmp_path, 10)
            assert refuses(tmp_path, 30) is None

        assert in_child(body) == (0, "")
        check_old(tmp_path, 30)
        checkpoint.tidy(tmp_path, 10)
        assert checkpoint.steps_of(tmp_path) == [10]


def test_no_more_open_files(tmp_path: Path) -> None:
    import resource

    write(tmp_path, 10, size=FLOATS)

    def body() -> None:
        free = os.dup(0)
        os.close(free)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            with pytest.raises(GptcliError) as raised:
                write(tmp_path, 20, size=FLOATS)
            checkpoint.prune(tmp_path, 2)  # does nothing, says nothing
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert os.strerror(errno.EMFILE) in raised.value.message
        assert temporaries(tmp_path) == []
        check_old(tmp_path, 10)
        assert refuses(tmp_path, 20) is None

    assert in_child(body) == (0, "")
    check_old(tmp_path, 20)


NOT_ALLOWED = 77


def mount_tmpfs(folder: Path, options: str) -> None:
    """Mount a small file system in memory, which this process and its children alone see and
    which goes with them. Ends the process with NOT_ALLOWED where the system refuses."""
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


@pytest.mark.skipif(sys.platform != "linux", reason="needs tmpfs")
@pytest.mark.parametrize("what", ["room", "inodes"])
def test_a_full_file_system(what: str, tmp_path: Path) -> None:
    """One page, or one inode, more is free each time, so that it is full at every operation."""
    pages, inodes = 24, 40
    one = b"full" * 1024 if what == "room" else b""

    def body() -> None:
        mount_tmpfs(tmp_path, f"size={4096 * pages},nr_inodes={inodes}")
        run = tmp_path / "run"
        run.mkdir()
        write(run, 10, size=FLOATS)
        fillers = [tmp_path / f"filler-{number}" for number in range(pages + inodes)]
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
        assert len(lines) >= 4  # the folder and the files of a checkpoint
        check_old(run, 20)

    status, text = in_child(body)
    if os.waitstatus_to_exitcode(status) == NOT_ALLOWED:
        pytest.skip("this system lets nobody mount a file system")
    assert (status, text) == (0, "")
