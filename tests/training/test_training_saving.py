"""Saving checkpoints during a run: at once or in the background, also on a disk that refuses to
write."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptcli.errors import GptcliError
from gptcli.events import CheckpointSaved, Event, Finished, Notice
from gptcli.files import durable
from gptcli.training import checkpoint, saving

Drive = Callable[..., list[Event]]
OFTEN = ("train.checkpoint_every=3", "train.eval_every=8", "train.keep_checkpoints=9")


@pytest.fixture(params=["at once", "background"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How gptcli writes checkpoints: "at once" or in the background.

    "At once" means in the training loop, which is the default for small checkpoints. A test with
    this fixture runs once in each way."""
    monkeypatch.setattr(saving, "BACKGROUND_BYTES", 0 if request.param == "background" else 1 << 40)
    return str(request.param)


def files(run: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted((run / "checkpoints").rglob("*.safetensors"))
    }


def saved(events: list[Event]) -> list[int]:
    return [event.step for event in events if isinstance(event, CheckpointSaved)]


def test_a_checkpoint_written_in_the_background_is_the_same(
    new: Any, drive: Drive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, most in (("at once", 1 << 40), ("background", 0)):
        monkeypatch.setattr(saving, "BACKGROUND_BYTES", most)
        events = drive(new(name, *OFTEN))
        assert set(saved(events)) == {3, 6, 8, 9, 12, 15, 16, 18, 20}
        assert len(saved(events)) == 9
    assert files(tmp_path / "at once") == files(tmp_path / "background")
    for step in checkpoint.steps_of(tmp_path / "background"):
        checkpoint.load(tmp_path / "background", step, with_state=True)
    assert checkpoint.best_step(tmp_path / "background") == checkpoint.best_step(
        tmp_path / "at once"
    )


def test_a_stopped_run_continues_from_its_checkpoint(
    how: str, new: Any, resumed: Any, drive: Drive, tmp_path: Path
) -> None:
    drive(new("whole", *OFTEN))
    drive(new("cut", *OFTEN), stop_at=10)
    assert checkpoint.steps_of(tmp_path / "cut")[-1] == 10
    drive(resumed("cut"))
    assert (
        files(tmp_path / "cut")["checkpoints/step-00000020/model.safetensors"]
        == (files(tmp_path / "whole")["checkpoints/step-00000020/model.safetensors"])
    )


class FullDisk:
    """A disk on which every write fails while `full` is True."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full, self.refused = False, 0
        write = durable.write_file

        def write_or_not(path: Path, data: bytes, **more: bool) -> None:
            if self.full:
                self.refused += 1
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            write(path, data, **more)

        monkeypatch.setattr(durable, "write_file", write_or_not)


def test_a_failed_save_is_reported_and_tried_again(
    how: str, new: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from gptcli.training.loop import train

    disk = FullDisk(monkeypatch)
    events, step = [], 0
    for event in train(new("r", *OFTEN)):
        events.append(event)
        step = getattr(event, "step", step)
        disk.full = 4 <= step < 14
    notices = [event.message for event in events if isinstance(event, Notice)]
    assert disk.refused >= 2
    assert len(notices) >= 2
    assert all("WARNING" in text and "No space left" in text for text in notices)
    assert all("MiB" in text and "\n" not in text for text in notices)
    assert isinstance(events[-1], Finished)
    assert events[-1].stopped == "done"
    if how == "at once":
        assert {3, 15, 16, 18, 20} <= set(saved(events))
        assert not {6, 9} & set(saved(events))
    else:  # the thread that writes checkpoints can be some steps behind
        assert 20 in saved(events)
        assert 6 not in saved(events)
    assert not list((tmp_path / "r" / "checkpoints").glob(".*"))
    for step in checkpoint.steps_of(tmp_path / "r"):
        checkpoint.load(tmp_path / "r", step, with_state=True)


def test_a_failed_last_save_is_an_error(
    how: str, new: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from gptcli.training.loop import train

    disk = FullDisk(monkeypatch)

    def run() -> None:
        step = 0
        for event in train(new("r", *OFTEN)):
            step = getattr(event, "step", step)
            disk.full = step >= 13

    with pytest.raises(GptcliError, match="No space left") as failed:
        run()
    assert failed.value.exit_code == 1
    assert "free there" in failed.value.message
    newest, notes = checkpoint.newest_valid(tmp_path / "r")
    assert newest is not None
    # A save in the background may not have completed the checkpoint of step 12.
    assert newest.step in ((12,) if how == "at once" else (9, 12))
    assert notes == []


def test_a_bug_is_not_reported_as_a_full_disk(
    how: str, new: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptcli.training.loop import train

    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(checkpoint, "prune", broken)
    with pytest.raises(ZeroDivisionError):
        list(train(new("r", *OFTEN)))


@pytest.mark.long_series
@pytest.mark.parametrize("what", ["a copy", "the thread"])
@pytest.mark.parametrize("error", [MemoryError, RuntimeError])
def test_without_a_thread_or_a_copy_the_checkpoint_is_written_at_once(
    what: str, error: type[Exception], new: Any, drive: Drive, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """If there is no memory for a copy of the weights, or the background thread cannot start, the
    training loop itself writes the checkpoint."""
    monkeypatch.setattr(saving, "BACKGROUND_BYTES", 0)
    drive(new("whole", *OFTEN))

    def refuse(*args: Any, **more: Any) -> Any:
        raise error("can't")

    with monkeypatch.context() as patch:
        if what == "the thread":
            patch.setattr(saving.threading.Thread, "start", refuse)
        else:
            import torch

            to = torch.Tensor.to

            def copied(self: Any, *args: Any, **more: Any) -> Any:
                return (
                    refuse() if more.get("copy") and args == ("cpu",) else to(self, *args, **more)
                )

            patch.setattr(torch.Tensor, "to", copied)
        events = drive(new("r", *OFTEN))
    assert set(saved(events)) == {3, 6, 8, 9, 12, 15, 16, 18, 20}
    assert not [event for event in events if isinstance(event, Notice)]
    assert files(tmp_path / "r") == files(tmp_path / "whole")
