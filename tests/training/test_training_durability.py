"""A kill or an error at any operation of a save leaves a checkpoint from which the run resumes."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from gptcli.errors import GptcliError
from gptcli.files import durable
from gptcli.training import checkpoint
from tests.training import disk_fault_trials
from tests.training.disk_fault_trials import record, refused
from tests.training.faulty_disks import (
    STORIES,
    Recording,
    Refusing,
    Story,
    Watched,
    damage,
    in_child,
    leave_behind,
    names,
    write,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
all_stories = pytest.mark.parametrize("story", STORIES, ids=names(STORIES))

Patch = pytest.MonkeyPatch


@pytest.fixture
def begun(story: Story, tmp_path: Path) -> Path:
    """The run folder with which the story begins."""
    return disk_fault_trials.begin(story, tmp_path)


@pytest.mark.long_series
@needs_fork
@pytest.mark.parametrize(
    "half",
    [
        pytest.param(False, id="between"),
        pytest.param(True, id="within-a-write", marks=pytest.mark.slow),
    ],
)
@all_stories
def test_a_kill_at_any_operation(story: Story, half: bool, begun: Path) -> None:
    writes = sum(name == "write" for name, *_ in record(story, begun))
    tried = list(disk_fault_trials.killed_at_any_operation(story, half, begun))
    assert len(tried) == (writes if half else len(record(story, begun)) + 1)


@pytest.mark.long_series
@all_stories
def test_any_operation_that_fails(story: Story, begun: Path) -> None:
    tried = list(disk_fault_trials.failing_at_any_operation(story, begun))
    assert len(tried) == 4 * len(record(story, begun)) > 0


def test_a_file_that_cannot_be_deleted_stops_no_other_deletion(tmp_path: Path) -> None:
    story = next(story for story in STORIES if story.name == "old checkpoints are deleted")
    begun = disk_fault_trials.begin(story, tmp_path)
    for count, (name, *_) in enumerate(record(story, begun)):
        run, error = refused(story, begun, Refusing(count, errno.EIO))
        assert error is None
        left = [path for path in run.rglob(".step-*/*") if path.is_file()]
        assert len(left) == {"fsync_folder": 3, "unlink": 1}.get(name, 0)
        assert len(checkpoint.steps_of(run)) == (4 if name == "rename" else 3)


def test_a_save_first_deletes_what_a_killed_save_left(tmp_path: Path, monkeypatch: Patch) -> None:
    """A save first deletes the temporary files of a killed save, then writes.

    If it wrote first, a full disk would stay full."""
    for step in (10, 20):
        write(tmp_path, step)
    leave_behind(tmp_path)
    disk = Recording()
    monkeypatch.setattr(durable, "disk", disk)
    write(tmp_path, 30)
    told = [name for name, *_ in disk.tried]
    assert told.count("rmdir") == 2
    assert max(i for i, name in enumerate(told) if name == "rmdir") < told.index("create")
    assert [path.name for path in (tmp_path / "checkpoints").glob(".*")] == []


@pytest.mark.long_series
@all_stories
def test_a_disk_that_fails_permanently(story: Story, begun: Path) -> None:
    tried = list(disk_fault_trials.failing_for_good(story, begun))
    assert tried == list(range(len(record(story, begun))))


@pytest.mark.parametrize("size", [0, 1, 7, 100])
def test_a_disk_that_writes_a_few_bytes_at_a_time_or_none(size: int, tmp_path: Path) -> None:
    assert list(disk_fault_trials.short_writes(size, tmp_path)) == [size]


def test_a_folder_whose_fsync_failed_is_fsynced_at_the_next_save_of_the_step(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    disk = Recording()
    monkeypatch.setattr(durable, "disk", disk)
    write(tmp_path, 10)
    last = disk.operations[-1]
    assert last == ("fsync_folder", tmp_path / "checkpoints")
    count = len(disk.tried)
    write(tmp_path, 20)
    assert disk.tried[-1] == last
    shutil.rmtree(checkpoint.folder_of(tmp_path, 20))
    with monkeypatch.context() as patch:
        patch.setattr(durable, "disk", Refusing(len(disk.tried) - count - 1, errno.EIO))
        with pytest.raises(GptcliError):
            write(tmp_path, 20)
    # The checkpoint of step 20 has its final name, but a power cut could still undo the renaming.
    assert checkpoint.steps_of(tmp_path) == [10, 20]
    write(tmp_path, 20)
    assert disk.operations[-1] == last


def test_the_best_checkpoint_is_kept_if_checkpoints_best_is_unreadable(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write(tmp_path, step)
    best = tmp_path / "checkpoints" / "best"
    best.write_text("step-000000\n", "utf-8")
    checkpoint.prune(tmp_path, 2)
    assert checkpoint.steps_of(tmp_path) == [10, 20, 30]
    checkpoint.mark_best(tmp_path, 20)
    checkpoint.prune(tmp_path, 2)
    assert checkpoint.steps_of(tmp_path) == [20, 30]


@pytest.mark.parametrize("mark", [None, "step-000000\n", "step-00000030\n", "step-00000099\n"])
def test_the_best_checkpoint_is_kept_if_checkpoints_best_is_wrong(
    tmp_path: Path, mark: str | None
) -> None:
    """The best step is in `checkpoints/best` and in meta.json.

    If they name different steps, gptcli keeps the checkpoints of both steps."""
    for step in (10, 20, 30, 40, 50):
        write(tmp_path, step, best=20)
    if mark is not None:
        (tmp_path / "checkpoints" / "best").write_text(mark, "utf-8")
    damage(tmp_path, 50, "meta.json")
    checkpoint.prune(tmp_path, 2)
    named = {30} if mark == "step-00000030\n" else set()
    assert set(checkpoint.steps_of(tmp_path)) == {20, 40, 50} | named
    assert checkpoint.choose_step(tmp_path, "best") == 20


def test_nothing_is_deleted_if_the_best_step_is_unknown(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write(tmp_path, step)
        damage(tmp_path, step, "meta.json")
    checkpoint.prune(tmp_path, 2)
    assert checkpoint.steps_of(tmp_path) == [10, 20, 30]


@pytest.mark.skipif(os.name != "posix", reason="no fsync of folders on this system")
def test_a_save_fsyncs_its_files_and_folders(tmp_path: Path, monkeypatch: Patch) -> None:
    synced: set[int] = set()
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    run = tmp_path / "runs" / "run"
    durable.make_folder(run)
    write(run, 10)
    there = {path.stat().st_ino for path in (tmp_path, run.parent, run, *run.rglob("*"))}
    assert synced == there
    checkpoint.mark_best(run, 10)
    assert (run / "checkpoints" / "best").stat().st_ino in synced


@pytest.mark.skipif(os.name != "posix", reason="no fsync of folders on this system")
def test_a_file_system_without_fsync_of_folders_is_no_error(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    number = errno.EINVAL
    durable.fsync_folder(tmp_path)
    number = errno.EIO
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        durable.fsync_folder(tmp_path)


def test_the_watched_disk_overrides_every_operation() -> None:
    def public(owner: type) -> set[str]:
        return {name for name in vars(owner) if not name.startswith("_")}

    assert public(Watched) == public(durable.Disk) | {"watch"}


AUDITED = {"os.mkdir": "mkdir", "os.rename": "rename", "os.remove": "unlink", "os.rmdir": "rmdir"}


@needs_fork
@all_stories
def test_every_write_goes_through_durable_disk(story: Story, begun: Path) -> None:
    """durable.disk must do every file operation that Python's audit hook reports."""
    run = disk_fault_trials.copy(begun)

    def body() -> None:
        seen: list[str] = []

        def hear(event: str, arguments: tuple[Any, ...]) -> None:
            if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                # When gptcli creates a file, Python reports two events: one for the file (with a
                # mode), and one for os.open. Do not count that of os.open.
                if arguments[1] is not None or not arguments[2] & os.O_NOFOLLOW:
                    seen.append("create")
            elif event in AUDITED:
                seen.append(AUDITED[event])

        disk = Recording()
        durable.disk = disk
        sys.addaudithook(hear)  # an audit hook cannot be removed, but the child process ends soon
        story.tell(run)
        told = [name for name, *_ in disk.tried]
        assert seen == [name for name in told if name in {"create", *AUDITED.values()}]
        assert seen

    assert in_child(body) == (0, "")


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX links")
def test_a_link_in_place_of_a_temporary_file_is_not_followed(tmp_path: Path) -> None:
    victim, goal = tmp_path / "victim", tmp_path / "run" / "meta.json"
    victim.write_bytes(b"old")
    goal.parent.mkdir()
    durable.temporary_path(goal).symlink_to(victim)
    with pytest.raises(OSError, match="A link to "):
        durable.write_atomically(goal, b"new")
    assert victim.read_bytes() == b"old"
