"""If the run of `train --overwrite` fails early, the old run is restored unchanged, despite late
saves, signals and kills. A training that does not hold the folder's lock changes nothing in the
folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gptcli.cli.signals import LeaveAtOnce
from gptcli.errors import GptcliError
from gptcli.files import durable
from gptcli.training import checkpoint, run_folder, saving
from gptcli.training.checkpoint_files import WholeFiles
from gptcli.training.loop import _Loop
from gptcli.training.saving import Saver
from tests.training.faulty_disks import Deadly, Operation, Recording, Watched, in_child
from tests.training.test_training_background_saving import LEAVE, WORDS

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and POSIX signals"),
]


@pytest.fixture(autouse=True)
def _all_in_background(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "BACKGROUND_BYTES", 0)
    monkeypatch.setattr(durable, "disk", Watched())


def content(run: Path) -> dict[str, bytes]:
    """The files of a run folder except its lock: path -> content."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture
def old(cli: Any, text_file: Path, tmp_path: Path) -> Path:
    """A finished run in the folder runs/old."""
    run = tmp_path / "runs" / "old"
    assert cli("train", text_file, *WORDS, "--out", run).code == 0
    return run


class Late(Watched):
    """A disk on which the background thread cannot create a file until the test sets `let_go`."""

    def __init__(self) -> None:
        self.at_work, self.let_go = threading.Event(), threading.Event()
        self.threads: set[threading.Thread] = set()

    def watch(self, operation: Operation, do: Callable[[], Any]) -> Any:
        if threading.current_thread() is not threading.main_thread():
            self.threads.add(threading.current_thread())
            if operation[0] == "create":
                self.at_work.set()
                assert self.let_go.wait(60)
        return do()


@pytest.mark.parametrize("error", [LeaveAtOnce(), GptcliError("a bad step", "", exit_code=1)])
def test_a_late_save_does_not_touch_the_old_run(
    error: BaseException, old: Path, cli: Any, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(old)
    disk = Late()
    one_step = _Loop.one_step

    def step(self: _Loop) -> Any:
        # The first evaluation is at step 3. Its loss is the best so far, so the background thread
        # now saves the run's first checkpoint.
        if self.progress.step == 3:
            assert disk.at_work.wait(60)
            raise error
        return one_step(self)

    monkeypatch.setattr(durable, "disk", disk)
    monkeypatch.setattr(_Loop, "one_step", step)
    words = [word for word in WORDS if "checkpoint_every" not in word]
    outcome = cli("train", text_file, *words, "train.seed=9", "--out", old, "--overwrite")
    assert outcome.code in (1, 130)
    disk.let_go.set()
    for thread in disk.threads:
        thread.join(60)
    assert content(old) == before
    if outcome.code == 130:
        # The message must not advise --resume, which would resume the old run.
        assert "--resume" not in outcome.err
        assert f"the earlier run in {old} is restored" in outcome.err


class Slow(Watched):
    """A disk that waits before it renames a checkpoint, until the test sets `go_on`."""

    def __init__(self) -> None:
        self.begun, self.go_on, self.ended = threading.Event(), threading.Event(), False

    def watch(self, operation: Operation, do: Callable[[], Any]) -> Any:
        if operation[0] == "rename" and operation[2].name.startswith("step-"):
            self.begun.set()
            assert self.go_on.wait(60)
            self.ended = True
        return do()


@pytest.mark.parametrize("waited_for", [True, False])
def test_abandoning_waits_for_a_rename_but_not_long(
    waited_for: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from gptcli.training.training_state import Progress

    class State:
        progress = Progress(step=2, best_step=2)

        files = staticmethod(lambda: WholeFiles({"w": torch.zeros(3)}, {"m": torch.zeros(3)}))

    disk = Slow()
    monkeypatch.setattr(durable, "disk", disk)
    saver = Saver(tmp_path, 2, 2, None)
    list(saver.save(State(), {}))  # type: ignore[arg-type]
    assert disk.begun.wait(60)
    if waited_for:  # with a limit of 60 s, the disk answers in time even on a busy machine
        monkeypatch.setattr(saving, "_ABANDON_SECONDS", 60.0)
        threading.Timer(0.1, disk.go_on.set).start()
    saver.abandon()
    assert disk.ended == waited_for
    disk.go_on.set()
    if waited_for:  # the thread has also marked the checkpoint as the best
        assert checkpoint.best_step(tmp_path) == 2
    list(saver.collect(wait=True))


@pytest.mark.slow
def test_a_second_ctrl_c_restores_the_old_run_while_a_save_hangs(
    old: Path, text_file: Path
) -> None:
    before = content(old)
    words = [*WORDS, "train.seed=9", "--out", str(old), "--overwrite"]
    done = subprocess.run(
        [sys.executable, "-c", LEAVE, "train", str(text_file), *words],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert "is restored" in done.stderr
    assert "--resume" not in done.stderr
    assert content(old) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_more_signal_during_the_restore(
    number: int, old: Path, cli: Any, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(old)
    restore_replaced = run_folder.restore_replaced
    came = []

    class Interrupting(Watched):
        def watch(self, operation: Operation, do: Callable[[], Any]) -> Any:
            result = do()
            came.append(operation)
            os.kill(os.getpid(), number)
            return result

    def interrupted(run: Path) -> bool:
        with monkeypatch.context() as patch:
            patch.setattr(durable, "disk", Interrupting())
            return restore_replaced(run)

    def leave(self: _Loop) -> Any:
        raise LeaveAtOnce

    monkeypatch.setattr(run_folder, "restore_replaced", interrupted)
    monkeypatch.setattr(_Loop, "one_step", leave)
    outcome = cli("train", text_file, *WORDS, "train.seed=9", "--out", old, "--overwrite")
    assert came
    assert outcome.code == 130, outcome.err
    assert content(old) == before


def test_no_file_of_the_new_run_stays(
    old: Path, cli: Any, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old run was killed so early that it has no run.json.

    If the new run left its own run.json, the restored old run would have a wrong one."""
    (old / "run.json").unlink()
    before = content(old)

    def leave(self: _Loop) -> Any:
        raise LeaveAtOnce

    monkeypatch.setattr(_Loop, "one_step", leave)
    assert cli("train", text_file, *WORDS, "--out", old, "--overwrite").code == 130
    assert content(old) == before


def killed_during_restore(old: Path) -> Iterator[Path]:
    """Kill restore_replaced at each of its operations.

    Yield the run folder after each kill, if the folder then has no config.yaml."""
    config = run_folder.read_config(old)
    tokenizer = run_folder.read_tokenizer(old)
    begun = shutil.copytree(old, old.parent.parent / "begun")
    config = config.model_copy(update={"train": config.train.model_copy(update={"seed": 9})})
    run_folder.create(begun, config, tokenizer)
    durable.disk = disk = Recording()
    run_folder.restore_replaced(shutil.copytree(begun, old.parent.parent / "whole"))
    durable.disk = Watched()
    for count in range(len(disk.tried)):
        shutil.rmtree(old)
        run = shutil.copytree(begun, old)

        def body(run: Path = run, count: int = count) -> None:
            durable.disk = Deadly(count, half=False)
            run_folder.restore_replaced(run)

        status, text = in_child(body)
        assert status == signal.SIGKILL, text
        if not (run / "config.yaml").exists():
            yield run


@pytest.mark.slow
def test_any_command_completes_a_restore_that_a_kill_interrupted(
    old: Path, cli: Any, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(old)
    monkeypatch.chdir(old.parent.parent)
    looks: list[Callable[[], object]] = [
        lambda: run_folder.find_run("old"),
        lambda: run_folder.find_run(str(old)),
        lambda: run_folder.list_runs(old.parent),
    ]
    commands: list[tuple[tuple[object, ...], str]] = [
        (("train", "--resume", "--out", old), "is finished"),
        (("train", text_file, *WORDS, "--out", old), "exists already"),
    ]
    states = 0
    for states, run in enumerate(killed_during_restore(old), 1):
        left = shutil.copytree(run, old.parent.parent / "left")
        for look in looks if states > 1 else [*looks, *commands]:
            shutil.rmtree(run)
            shutil.copytree(left, run)
            if isinstance(look, tuple):
                assert look[1] in cli(*look[0]).err
            else:
                assert look() in (run, Path("runs/old"), [run])
            assert content(run) == before
            assert not (run / ".replaced").exists()
        shutil.rmtree(left)
    assert states > 5


def test_a_locked_folder_is_not_repaired(old: Path) -> None:
    run = next(killed_during_restore(old))
    before = content(run)
    with durable.folder_lock(run):
        assert run_folder.list_runs(run.parent) == []
    assert content(run) == before


# ---- the folder's lock -----------------------------------------------------------------------


def test_a_training_without_the_lock_leaves_the_folder_alone(
    cli: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "r"
    make_folder = durable.make_folder
    winner: list[Any] = []

    def make(path: Path) -> list[Path]:
        """Make the folder as usual.

        At the first call for the run folder, also lock the folder, as if another training had been
        quicker."""
        made = make_folder(path)
        if path == run and not winner:
            winner.append(durable.folder_lock(run))
            winner[0].__enter__()
        return made

    monkeypatch.setattr(durable, "make_folder", make)
    outcome = cli("train", text_file, *WORDS, "--out", run)
    assert outcome.code == 1, outcome.err
    assert "is being written by another gptcli train" in outcome.err
    assert [path.name for path in run.iterdir()] == [".lock"]
    winner[0].__exit__(None, None, None)


def test_a_run_that_finished_meanwhile_is_not_replaced(
    cli: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "r"
    folder_lock = durable.folder_lock

    @contextmanager
    def late(folder: Path) -> Iterator[None]:
        monkeypatch.setattr(durable, "folder_lock", folder_lock)
        (run / "config.yaml").write_text("the other's", encoding="utf-8")
        with folder_lock(folder):
            yield

    monkeypatch.setattr(durable, "folder_lock", late)
    outcome = cli("train", text_file, *WORDS, "--out", run)
    assert (outcome.code, "exists already" in outcome.err) == (2, True), outcome.err
    assert content(run) == {"config.yaml": b"the other's"}


def test_a_failed_start_keeps_files_of_others_in_the_folder(
    cli: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptcli.training import setup

    run = tmp_path / "r"

    def refused(*arguments: object, **more: object) -> None:
        (run / "notes.txt").write_text("mine", encoding="utf-8")
        raise GptcliError("no", "")

    monkeypatch.setattr(setup, "prepare_new", refused)
    assert cli("train", text_file, *WORDS, "--out", run).code == 2
    assert content(run) == {"notes.txt": b"mine"}


def test_asking_whether_a_folder_is_locked_keeps_no_training_out(tmp_path: Path) -> None:
    looking = durable.folder_lock(tmp_path)
    looking.__enter__()
    timer = threading.Timer(0.06, looking.__exit__, (None, None, None))
    timer.start()
    with durable.folder_lock(tmp_path):
        assert durable.is_locked(tmp_path)
    timer.join()
    assert not durable.is_locked(tmp_path)


def test_a_deleted_lock_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = durable._lock
    deleted = []

    def deleting(file: Any) -> bool:
        # The process that held the lock deletes the lock file before this process can lock it.
        if not deleted:
            deleted.append((tmp_path / ".lock").unlink())
        return lock(file)

    monkeypatch.setattr(durable, "_lock", deleting)
    with durable.folder_lock(tmp_path):
        assert durable.is_locked(tmp_path)
