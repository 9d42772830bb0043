"""Kills, signals and failing disks while a background thread writes a checkpoint."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gptcli.config_files import parse_config
from gptcli.errors import GptcliError
from gptcli.events import CheckpointSaved, Event, Notice
from gptcli.files import durable
from gptcli.training import checkpoint, saving
from gptcli.training.loop import Setup, train
from gptcli.training.setup import Prepared, prepare_new, prepare_resume
from tests.conftest import some
from tests.training.faulty_disks import (
    Deadly,
    Operation,
    Recording,
    Refusing,
    Watched,
    in_child,
    temporaries,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]

WORDS = (
    "model.n_layer=1", "model.n_head=2", "model.n_embd=32", "model.block_size=16",
    "train.batch_size=4", "train.max_steps=7", "train.checkpoint_every=2", "train.eval_every=3",
    "run.threads=1", "run.device=cpu", "run.dtype=float32",
)  # fmt: skip
SAVED = (2, 3, 4, 6, 7)
"""The steps after which the run saves a checkpoint. It writes all but the last of them in the
background."""


@pytest.fixture(autouse=True)
def _all_in_background(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "BACKGROUND_BYTES", 0)
    monkeypatch.setattr(durable, "disk", Watched())


@pytest.fixture
def begin(tmp_path: Path, text_file: Path) -> Callable[[str], Setup]:
    """begin("name") returns the Setup of a new run tmp_path/name."""

    def new(name: str) -> Setup:
        config = parse_config("", [f"data.source={text_file}", *WORDS])
        return prepare_new(config, tmp_path / name).setup

    return new


def final_weights(run: Path) -> bytes:
    """The bytes of a run's final weights."""
    return (checkpoint.folder_of(run, 7) / "model.safetensors").read_bytes()


def resume(run: Path) -> list[Event]:
    """Resume a run to its end and return the events. Assert that no temporary files are left."""
    prepared = prepare_resume(run, None)
    events = list(train(prepared.setup)) if isinstance(prepared, Prepared) else []
    assert temporaries(run) == []
    return events


def record(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> list[Operation]:
    """The disk operations of a training that nothing interrupts."""
    disk = Recording()
    writers: set[str] = set()
    save = checkpoint.save_files

    def saved(*arguments: Any) -> Path:
        writers.add(threading.current_thread().name)
        return save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(durable, "disk", disk)
        patch.setattr(checkpoint, "save_files", saved)
        events = list(train(setup))
    assert {e.step for e in events if isinstance(e, CheckpointSaved)} == set(SAVED)
    assert len(writers) == len(SAVED)
    return disk.tried


def moments(operations: list[Operation]) -> Iterator[int]:
    """How many operations each trial lets succeed before the kill, signal or fault: 0, 1, 2, ...
    If several writes to one file follow each other, only the first, the second and the last have
    a trial."""
    for count, operation in enumerate(operations):
        before, after = operations[count - 2 : count], operations[count + 1 : count + 2]
        rows = [other[:2] == operation[:2] for other in (*before, *after)]
        if operation[0] != "write" or not all(rows):
            yield count


def newest_renamed(operations: list[Operation]) -> int | None:
    """The step of the newest checkpoint that these operations rename to its final name, or None."""
    goals = [str(o[2].name) for o in operations if o[0] == "rename"]
    steps = [int(goal[5:]) for goal in goals if goal.startswith("step-")]
    return max(steps, default=None)


@pytest.mark.slow
def test_a_kill_at_any_operation(
    begin: Callable[[str], Setup], monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    whole = begin("whole")
    operations = record(whole, monkeypatch)
    for count in some(moments(operations), 4, slow):
        setup = begin(f"killed-{count}")

        def body(setup: Setup = setup, count: int = count) -> None:
            durable.disk = Deadly(count, half=True)
            list(train(setup))

        status, text = in_child(body)
        assert status == signal.SIGKILL, text
        newest, notes = checkpoint.newest_valid(setup.run)
        assert notes == []
        assert (newest.step if newest else None) == newest_renamed(operations[:count])
        resume(setup.run)
        assert final_weights(setup.run) == final_weights(whole.run)
        assert checkpoint.choose_step(setup.run, "best") == checkpoint.best_step(whole.run)


@pytest.mark.long_series
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_any_operation_that_fails(
    number: int, begin: Callable[[str], Setup], monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    whole = begin("whole")
    operations = record(whole, monkeypatch)
    for count in some(moments(operations), 6, slow):
        setup = begin(f"failed-{count}")
        events: list[Event] = []
        message, code = "", 1
        disk = Refusing(count, number)
        with monkeypatch.context() as patch:
            patch.setattr(durable, "disk", disk)
            try:
                events.extend(train(setup))
            # The training raises an error only if the last checkpoint of the run cannot be saved.
            except GptcliError as error:
                message, code = error.message, error.exit_code
        assert disk.refused
        assert code == 1
        notices = [e.message for e in events if isinstance(e, Notice)]
        if message or notices:
            (text,) = notices or [message]
            assert os.strerror(number) in text
            assert "MiB free there" in text
            assert "\n" not in text
        else:  # the operation that failed only had to tidy up, which gptcli can do later
            assert operations[count][0] in ("rename", "unlink", "rmdir", "fsync_folder")
        for step in checkpoint.steps_of(setup.run):
            checkpoint.load(setup.run, step, with_state=True)
        resume(setup.run)
        assert final_weights(setup.run) == final_weights(whole.run)


class Interrupting(Watched):
    """A disk that interrupts its process by the signal `number`.

    It sends the signal after `count` operations of the background thread. Then this thread waits a
    moment, and continues."""

    def __init__(self, count: int, number: int) -> None:
        self.left, self.number = count, number

    def watch(self, operation: Operation, do: Callable[[], Any]) -> Any:
        if threading.current_thread() is threading.main_thread():
            return do()
        self.left -= 1
        if self.left == -1:
            os.kill(os.getpid(), self.number)
            threading.Event().wait(0.02)  # the training loop continues during this wait
        return do()


@pytest.mark.long_series
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_a_checkpoint_is_written(
    number: int, begin: Callable[[str], Setup], cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = begin("whole")
    operations = record(whole, monkeypatch)
    first = next(i for i, o in enumerate(operations) if o[0] == "rename")
    source = whole.config.data.source
    for count in (0, 2, first // 2, first, first + 1):
        run = whole.run.with_name(f"stopped-{count}")
        with monkeypatch.context() as patch:
            patch.setattr(durable, "disk", Interrupting(count, number))
            outcome = cli("train", source, *WORDS, "--out", run)
        assert outcome.code == 130, outcome.err
        assert "saved at step" in outcome.err
        newest, notes = checkpoint.newest_valid(run)
        assert newest is not None
        assert f"saved at step {newest.step}; " in outcome.err
        assert notes == []
        assert temporaries(run) == [".lock"]
        prepared = prepare_resume(run, None)
        assert isinstance(prepared, Prepared)
        list(train(prepared.setup))
        assert final_weights(run) == final_weights(whole.run)


LEAVE = """
import os, signal, sys, threading, time
from gptcli.files import durable
from gptcli.training import saving

saving.BACKGROUND_BYTES = 0

class Stuck(durable.Disk):
    def write(self, file, data):
        if threading.current_thread() is not threading.main_thread():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(2.5)  # in less than a second it would count as the same Ctrl-C
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(600)
        return super().write(file, data)

durable.disk = Stuck()
from gptcli.cli import main
main()
"""


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_a_save_that_hangs(
    begin: Callable[[str], Setup], tmp_path: Path
) -> None:
    whole = begin("whole")
    list(train(whole))
    run = tmp_path / "left"
    source = whole.config.data.source
    done = subprocess.run(
        [sys.executable, "-c", LEAVE, "train", source, *WORDS, "--out", str(run)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert "stopped without saving; go on with: gptcli train --resume" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Fatal" not in done.stderr
    prepared = prepare_resume(run, None)
    assert isinstance(prepared, Prepared)
    list(train(prepared.setup))
    assert final_weights(run) == final_weights(whole.run)
