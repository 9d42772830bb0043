"""The copy of a run at a URL: only complete checkpoints of the copy are used, and a failing copy
never harms the run."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gptcli.errors import GptcliError
from gptcli.events import CheckpointSaved, Event
from gptcli.files.remote import RemoteFolder
from gptcli.training import checkpoint, run_copy
from gptcli.training.loop import Setup, train
from gptcli.training.run_copy import RunCopy, complete_steps, fetch_run, refuse_used

Drive = Callable[..., list[Event]]
OFTEN = ("train.checkpoint_every=5", "train.eval_every=10")


@pytest.fixture
def url() -> str:
    return f"memory://{uuid.uuid4()}/run"


def never() -> bool:
    return False


def trained(setup: Setup, copy: RunCopy, stop_at: int | None = None) -> None:
    """Train a run and copy it after each checkpoint, as gptcli.api.recording does."""
    steps: list[int] = []
    for event in train(setup, lambda: stop_at is not None and bool(steps) and steps[-1] >= stop_at):
        if type(event).__name__ == "StepDone":
            steps.append(event.step)  # type: ignore[union-attr]
        if isinstance(event, CheckpointSaved):
            copy.saved()
    assert copy.finish(never, 60) == []


def files_of(run: Path) -> dict[str, bytes]:
    return {
        path.relative_to(run).as_posix(): path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def test_a_copy_equals_the_run_and_comes_back(
    new: Callable[..., Setup], url: str, tmp_path: Path
) -> None:
    setup = new("r", *OFTEN)
    trained(setup, RunCopy(setup.run, url))
    assert complete_steps(RemoteFolder(url)) == checkpoint.steps_of(setup.run)
    assert fetch_run(url, tmp_path / "back") == 20
    back = files_of(tmp_path / "back")
    here = files_of(setup.run)
    assert back == {name: here[name] for name in back}
    # The fetched run has only the newest and the best checkpoint.
    assert {name for name in here if name not in back} <= {
        name for name in here if "step-00000015" in name
    }


def test_a_fetched_run_goes_on_to_the_same_bits(
    new: Callable[..., Setup],
    resumed: Callable[[str], Setup],
    drive: Drive,
    url: str,
    tmp_path: Path,
) -> None:
    whole, parts = new("whole", *OFTEN), new("parts", *OFTEN)
    drive(whole)
    trained(parts, RunCopy(parts.run, url), stop_at=10)
    fetch_run(url, tmp_path / "elsewhere")
    setup = resumed("elsewhere")
    copy = RunCopy(setup.run, url)
    copy.refuse_other_run()
    trained(setup, copy)
    for name in ("model.safetensors", "state.safetensors"):
        one, two = (
            checkpoint.folder_of(run, 20) / name for run in (whole.run, tmp_path / "elsewhere")
        )
        assert one.read_bytes() == two.read_bytes()
    assert complete_steps(RemoteFolder(url)) == checkpoint.steps_of(tmp_path / "elsewhere")


def test_a_network_that_hangs_delays_no_step(
    new: Callable[..., Setup], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, setup = threading.Event(), new("r", *OFTEN)
    copy = RunCopy(setup.run, url)
    real = RemoteFolder.upload

    def slow(self: RemoteFolder, *args: str) -> None:
        gate.wait(60)
        real(self, *args)

    monkeypatch.setattr(RemoteFolder, "upload", slow)
    for event in train(setup):
        if isinstance(event, CheckpointSaved):
            copy.saved()
    (warning,) = copy.finish(never, 0.2)
    assert "is not complete" in warning
    (warning,) = copy.finish(lambda: True, 60)  # as if the user pressed Ctrl-C again
    assert "is not complete" in warning
    gate.set()
    assert copy.finish(never, 60) == []
    assert complete_steps(RemoteFolder(url)) == checkpoint.steps_of(setup.run)


def test_a_network_that_fails_ends_no_run(
    new: Callable[..., Setup], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = new("r", *OFTEN)
    copy = RunCopy(setup.run, url)
    monkeypatch.setattr("gptcli.files.remote._PAUSES", ())
    broken = [True]
    real = type(copy._there._fs).put_file

    def put_file(self: Any, *args: Any, **more: Any) -> Any:
        if broken[0]:
            raise ConnectionError("no route")
        return real(self, *args, **more)

    monkeypatch.setattr(type(copy._there._fs), "put_file", put_file)
    for event in train(setup):
        if isinstance(event, CheckpointSaved):
            copy.saved()
    with copy._changed:
        assert copy._changed.wait_for(lambda: copy._done == copy._asked, 60)
    (warning,) = copy.problems()
    assert f"ConnectionError: no route. The run itself is safe in {setup.run}. The" in warning
    assert "The training continues, and copies again" in warning
    (warning,) = copy.finish(never, 60)
    assert "ConnectionError: no route. memory://" in warning
    assert "is not complete" in warning
    broken[0] = False
    assert copy.finish(never, 60) == []
    assert complete_steps(RemoteFolder(url)) == checkpoint.steps_of(setup.run)


def test_a_checkpoint_is_complete_only_with_its_meta(
    new: Callable[..., Setup], drive: Drive, url: str, tmp_path: Path
) -> None:
    """If an upload is killed, the checkpoint at the URL has no meta.json, and `fetch_run` uses an
    earlier checkpoint."""
    setup = new("r", *OFTEN)
    trained(setup, RunCopy(setup.run, url), stop_at=10)
    there = RemoteFolder(url)
    there.write("checkpoints/step-00000012/model.safetensors", b"half")
    assert complete_steps(there) == [5, 10]
    assert fetch_run(url, tmp_path / "a") == 10
    there.write("checkpoints/step-00000010/state.safetensors", b"cut off")
    assert fetch_run(url, tmp_path / "b") == 5
    size = there.size("checkpoints/step-00000005/model.safetensors")
    there.write("checkpoints/step-00000005/model.safetensors", b"\0" * (size or 0))
    with pytest.raises(GptcliError, match="every checkpoint is damaged"):
        fetch_run(url, tmp_path / "c")
    assert not (tmp_path / "c").exists()
    assert not list(tmp_path.glob(".*.tmp"))
    # The run on this machine is intact, so copying it again repairs the files at the URL.
    drive_again = RunCopy(setup.run, url)
    assert drive_again.finish(never, 60) == []
    assert complete_steps(there) == [5, 10]


def test_other_runs_are_left_alone(
    new: Callable[..., Setup], drive: Drive, url: str, tmp_path: Path
) -> None:
    setup = new("r", *OFTEN)
    (setup.run / "metrics.jsonl").write_text(json.dumps({"kind": "step", "id": 1}) + "\n")
    trained(setup, RunCopy(setup.run, url), stop_at=10)
    with pytest.raises(GptcliError, match="holds a run already"):
        refuse_used(url)
    refuse_used(url + "-free")
    other = new("other", *OFTEN)
    with pytest.raises(GptcliError, match="holds step 10, which is newer than"):
        RunCopy(other.run, url).refuse_other_run()
    (other.run / "metrics.jsonl").write_text(json.dumps({"kind": "step", "id": 2}) + "\n")
    with pytest.raises(GptcliError, match="holds another run"):
        RunCopy(other.run, url).refuse_other_run()
    with pytest.raises(GptcliError, match="holds no run"):
        fetch_run(url + "-free", tmp_path / "x")


def test_names_from_elsewhere_are_not_followed(
    new: Callable[..., Setup], url: str, tmp_path: Path
) -> None:
    setup = new("r", *OFTEN)
    trained(setup, RunCopy(setup.run, url), stop_at=5)
    there = RemoteFolder(url)
    there.write("checkpoints/best", b"../../../etc")
    there.write("checkpoints/step-x/meta.json", b"{}")
    there.write("evil.py", b"print()")
    fetch_run(url, tmp_path / "back")
    assert not (tmp_path / "back" / "checkpoints" / "best").exists()
    assert not (tmp_path / "back" / "evil.py").exists()
    assert run_copy.steps_of(tmp_path / "back") == [5]


def copied(setup: Setup, url: str) -> tuple[RunCopy, list[str]]:
    """Train a run that has a copy at `url`.

    Return the copy, and the warnings about it during the training."""
    copy, warnings = RunCopy(setup.run, url), []
    for event in train(setup):
        if isinstance(event, CheckpointSaved):
            copy.saved()
            with copy._changed:
                assert copy._changed.wait_for(lambda: copy._done == copy._asked, 60)
            warnings += copy.problems()
    return copy, warnings


def says_all(warning: str, goal: str, why: str, run: Path) -> bool:
    """Whether a warning names the file at the URL (`goal`), the reason (`why`) and the safe run."""
    safe = f"The run itself is safe in {run}"
    return f" {goal}" in warning and f": {why}. " in warning and safe in warning


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs permissions of Unix")
def test_a_place_that_cannot_be_written_ends_no_run(
    new: Callable[..., Setup], tmp_path: Path
) -> None:
    setup, there = new("r", *OFTEN), tmp_path / "copy"
    there.mkdir()
    if os.geteuid() == 0:  # root may write everywhere, so put a file where the copy needs a folder
        (there / "checkpoints").write_text("not a folder")
        goal, why = f"{there.as_uri()}/checkpoints/step-", "Not a directory"
    else:
        there.chmod(0o555)
        goal, why = f"{there.as_uri()}/config.yaml", "Permission denied"
    copy, warnings = copied(setup, there.as_uri())
    assert warnings
    for warning in (*warnings, *copy.finish(never, 60)):
        assert says_all(warning, goal, why, setup.run), warning
    assert "The training continues" in warnings[0]
    assert checkpoint.steps_of(setup.run)[-1] == 20
    if os.geteuid() == 0:
        (there / "checkpoints").unlink()
    else:
        there.chmod(0o755)
    assert copy.finish(never, 60) == []
    assert complete_steps(RemoteFolder(there.as_uri())) == checkpoint.steps_of(setup.run)


def test_the_end_waits_for_an_upload_that_began_after_it(
    new: Callable[..., Setup], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a run ends, an upload can be in progress that has read older versions of the run's
    files. So gptcli waits for one more upload."""
    setup = new("r", *OFTEN)
    for _ in train(setup):
        pass
    begun, go_on, uploads = threading.Event(), threading.Event(), []
    mirror = RunCopy._mirror

    def slow(self: RunCopy) -> None:
        uploads.append(1)
        if len(uploads) == 1:
            begun.set()
            assert go_on.wait(60)
            raise OSError(errno.EIO, "the first upload fails")
        mirror(self)

    monkeypatch.setattr(RunCopy, "_mirror", slow)
    copy = RunCopy(setup.run, url)
    copy.saved()
    assert begun.wait(60)
    threading.Timer(0.2, go_on.set).start()
    assert copy.finish(never, 60) == []
    assert len(uploads) == 2
    assert complete_steps(RemoteFolder(url)) == checkpoint.steps_of(setup.run)
    assert copy.finish(never, 60) == []  # this call starts a new thread, which copies the run again
    assert len(uploads) == 3


def test_a_full_disk_leaves_the_copy_as_it_was(
    new: Callable[..., Setup], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk of the copy fills up while a file is written.

    The copy then keeps the earlier content of this file."""
    setup, there = new("r", *OFTEN), tmp_path / "copy"
    copy = RunCopy(setup.run, there.as_uri())
    trained(setup, copy, stop_at=10)
    before = files_of(there)
    system = type(copy._there._fs)

    def put_file(self: Any, source: str, goal: str, **more: Any) -> None:
        Path(goal).write_bytes(Path(source).read_bytes()[:5])
        raise OSError(errno.ENOSPC, "No space left on device", goal)

    monkeypatch.setattr(system, "put_file", put_file)
    (setup.run / "run.json").write_text("{}\n")
    (warning,) = copy.finish(never, 60)
    assert says_all(warning, f"{there.as_uri()}/", "No space left on device", setup.run), warning
    assert "is not complete: it holds an earlier state" in warning
    assert files_of(there) == before
    assert fetch_run(there.as_uri(), tmp_path / "back") == 10


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 64 KiB.

    The test is skipped if this user cannot mount file systems."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    try:
        made = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        made = False
    if not made:
        pytest.skip("this user cannot mount a file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full_ends_no_run(
    new: Callable[..., Setup], small_disk: Path
) -> None:
    setup = new("r", *OFTEN)
    url = (small_disk / "copy").as_uri()
    copy, warnings = copied(setup, url)
    for warning in (*warnings, *copy.finish(never, 60)):
        assert says_all(warning, f"{url}/", "No space left on device", setup.run), warning
    assert warnings
    assert checkpoint.steps_of(setup.run)[-1] == 20
    assert not list(small_disk.rglob("*.part"))
    assert complete_steps(RemoteFolder(url)) == []
