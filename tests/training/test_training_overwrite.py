"""Two runs are never mixed by a kill or a full disk while `train --overwrite` replaces a run, or
while the old run is restored."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptcli.config_files import parse_config
from gptcli.errors import GptcliError
from gptcli.files import durable
from gptcli.tokenization.byte import ByteTokenizer
from gptcli.training import checkpoint, run_folder
from tests.training.faulty_disks import (
    Deadly,
    Recording,
    Refusing,
    Watched,
    check_tensors,
    in_child,
    temporaries,
    write,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]

OLD, NEW = (10, 20), (5,)


def create(run: Path, seed: int) -> None:
    """Create a run as `gptcli train --overwrite` does."""
    config = parse_config("", [f"train.seed={seed}", "data.source=text.txt"])
    run_folder.create(run, config, ByteTokenizer())


def overwrite(run: Path) -> None:
    """Replace the run in a folder by a new run that has a checkpoint, and delete the old run."""
    create(run, 2)
    write(run, *NEW)
    run_folder.delete_replaced(run)


def content(run: Path) -> dict[str, bytes]:
    """The files of a run: path -> content.

    Leaves out names that begin with a dot: temporary files, `.lock`, and the folder `.replaced`."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(run).parts)
    }


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with two checkpoints and a lock file."""
    monkeypatch.setattr(durable, "disk", Watched())
    run = tmp_path / "old"
    create(run, 1)
    for step in OLD:
        write(run, step)
    checkpoint.mark_best(run, OLD[0])
    (run / "metrics.jsonl").write_bytes(b'{"step": 20}\n')
    (run / ".lock").touch()
    return run


def kills(begun: Path, call: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Copy the run `begun` several times, call `call` on each copy, and return the copies.

    On the first copy, the call was completed. On each further copy, SIGKILL ended the call: before
    its first operation on the disk, before its second, and so on."""
    disk = Recording()
    runs = [shutil.copytree(begun, begun.parent / "whole")]
    with monkeypatch.context() as patch:
        patch.setattr(durable, "disk", disk)
        call(runs[0])
    for count in range(len(disk.tried)):
        runs.append(shutil.copytree(begun, begun.parent / f"killed-{count}"))

        def body(run: Path = runs[-1], count: int = count) -> None:
            durable.disk = Deadly(count, half=False)
            call(run)

        status, text = in_child(body)
        assert status == signal.SIGKILL, text
    return runs


def check_not_mixed(run: Path) -> None:
    """If `run` has a config.yaml, assert that all checkpoints in `run` are of the same run."""
    if (run / "config.yaml").exists():
        new = run_folder.read_config(run).train.seed == 2
        steps = checkpoint.steps_of(run)
        assert set(steps) <= set(NEW) if new else steps == list(OLD)
        for step in steps:
            check_tensors(run, step)


@pytest.mark.slow
def test_a_kill_while_a_run_is_replaced(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(old)
    new, *runs = kills(old, overwrite, monkeypatch)
    after = content(new)
    assert after.keys() & before.keys() == {"config.yaml", "tokenizer.json"}
    for run in runs:
        check_not_mixed(run)
        run_folder.refuse_other_folder(run)  # a user may still use --overwrite on this folder
        had_new = checkpoint.steps_of(run) == list(NEW)
        create(run, 2)
        assert temporaries(run / "checkpoints") == []
        run_folder.restore_replaced(run)
        assert content(run) == (after if had_new else before)
    assert had_new


@pytest.mark.slow
def test_a_kill_while_the_old_run_is_restored(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(old)
    create(old, 2)
    assert content(old) != before
    for run in kills(old, run_folder.restore_replaced, monkeypatch):
        check_not_mixed(run)
        run_folder.refuse_other_folder(run)
        create(run, 2)
        run_folder.restore_replaced(run)
        assert content(run) == before


def test_a_full_disk_while_a_run_is_replaced(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(old)
    disk = Recording()
    with monkeypatch.context() as patch:
        patch.setattr(durable, "disk", disk)
        create(shutil.copytree(old, old.parent / "whole"), 2)
    for count in range(len(disk.tried)):
        run = shutil.copytree(old, old.parent / f"full-{count}")
        with monkeypatch.context() as patch:
            patch.setattr(durable, "disk", Refusing(count, errno.ENOSPC))
            with pytest.raises(GptcliError, match=os.strerror(errno.ENOSPC)):
                create(run, 2)
            run_folder.restore_replaced(run)
        assert content(run) == before


REFUSALS = [
    (errno.ENOSPC, 1), (errno.EDQUOT, 1), (errno.EIO, 1), (errno.EMFILE, 1),
    (errno.EACCES, 2), (errno.EROFS, 2), (errno.ENOTDIR, 2), (errno.ENAMETOOLONG, 2),
]  # fmt: skip


@pytest.mark.parametrize(("number", "code"), REFUSALS)
def test_the_exit_code_tells_a_failing_disk_from_a_wrong_path(
    number: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the disk fails, the exit code is 1 and the message names the free space.

    If the path is wrong, the exit code is 2."""
    run = tmp_path / "new"
    disk = Recording()
    monkeypatch.setattr(durable, "disk", disk)
    create(tmp_path / "whole", 1)
    for count in range(len(disk.tried)):
        monkeypatch.setattr(durable, "disk", Refusing(count, number))
        with pytest.raises(GptcliError) as raised:
            create(run, 1)
        error = raised.value
        assert (error.exit_code, "\n" in error.message) == (code, False)
        assert error.message.startswith(f"{run}")
        assert f"({os.strerror(number)})" in error.message
        assert ("MiB free there" in error.message) == (code == 1)
        shutil.rmtree(run, ignore_errors=True)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        each if i % 8 == 0 else pytest.param(*each, marks=pytest.mark.slow)
        for i, each in enumerate(REFUSALS)
    ],
)
def test_the_command_shows_the_reason(
    number: int, code: int, cli: Any, text_file: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(durable, "disk", Refusing(0, number, always=True))
    outcome = cli(
        "train",
        text_file,
        "train.max_steps=2",
        "run.engine=torch",
        "--out",
        tmp_path / "new" / "run",
    )
    assert (outcome.code, outcome.out) == (code, "")
    error = next(line for line in outcome.err.splitlines() if line.startswith("error: "))
    assert error.startswith(f"error: {tmp_path / 'new' / 'run'}")
    assert f"({os.strerror(number)})" in outcome.err


@pytest.mark.parametrize(
    ("names", "is_half_made"),
    [
        ((".lock", "tokenizer.json", ".config.yaml.77.tmp"), True),
        ((".lock", "tokenizer.json", ".replaced"), True),
        ((".lock", "tokenizer.json", "notes.txt"), False),
        ((".lock", "config.yaml"), False),
        (("tokenizer.json",), False),
    ],
)
def test_overwrite_accepts_a_half_made_run(
    names: tuple[str, ...], is_half_made: bool, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).touch()
    if is_half_made:
        run_folder.refuse_other_folder(tmp_path)
        return
    with pytest.raises(GptcliError, match="is not a run folder"):
        run_folder.refuse_other_folder(tmp_path)
