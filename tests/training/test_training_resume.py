"""Runs that are stopped at inconvenient moments: what a resume finds, keeps and repairs."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gptcli.config_files import dump_config
from gptcli.errors import GptcliError
from gptcli.events import Evaluated, Event, Finished
from gptcli.training import checkpoint, run_folder
from gptcli.training.loop import train
from gptcli.training.meta_file import dump_meta
from gptcli.training.setup import FinishedRun, Prepared, prepare_new, prepare_resume

Drive = Callable[..., list[Event]]


def damage(run: Path, step: int) -> None:
    path = checkpoint.folder_of(run, step) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def evaluated(events: list[Event]) -> list[int]:
    return [e.step for e in events if isinstance(e, Evaluated)]


def go_on(run: Path) -> None:
    prepared = prepare_resume(run, None)
    assert isinstance(prepared, Prepared)
    list(train(prepared.setup))


def end(events: list[Event]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


def stop_on(event_type: type, step: int) -> tuple[list[Event], Callable[[], bool]]:
    """An empty list for the events, and a function to pass as `should_stop`.

    The function returns True once the list holds an event of this type whose step is `step` or
    later."""
    events: list[Event] = []
    return events, lambda: any(
        isinstance(e, event_type) and getattr(e, "step", 0) >= step for e in events
    )


def test_pruning_keeps_good_checkpoints_if_newer_ones_are_damaged(
    new: Any, resumed: Any, drive: Drive, tmp_path: Path
) -> None:
    run = tmp_path / "r"
    more = ("train.checkpoint_every=2", "train.keep_checkpoints=4", "train.eval_every=20")
    drive(new("r", *more), stop_at=10)
    for step in (8, 10):
        damage(run, step)
    drive(resumed("r"), stop_at=7)
    assert checkpoint.steps_of(run) == [4, 6, 7]
    saved, notes = checkpoint.newest_valid(run)
    assert saved is not None
    assert (saved.step, notes) == (7, [])


def test_temporary_files_of_a_killed_save_are_deleted(
    new: Any, resumed: Any, drive: Drive, tmp_path: Path
) -> None:
    drive(new("r"), stop_at=5)
    left = tmp_path / "r" / "checkpoints" / ".step-00000009.77.tmp"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    config, theirs = (tmp_path / "r" / name for name in (".config.yaml.77.tmp", ".notes.77.tmp"))
    for path in (config, theirs):
        path.write_bytes(b"half")
    resumed("r")
    assert not left.exists()
    assert not config.exists()
    assert theirs.exists()  # gptcli did not write this file


def test_a_reached_target_ends_the_run_even_if_it_is_interrupted(
    new: Any, resumed: Any, tmp_path: Path
) -> None:
    setup = new("r", "train.stop_at_val_loss=100", "train.eval_every=5")
    events, should_stop = stop_on(Evaluated, 5)
    # should_stop becomes true after the evaluation that reaches the target, before its checkpoint
    # is saved.
    for event in train(setup, should_stop):
        events.append(event)
    assert (end(events).stopped, end(events).step) == ("target", 5)


def test_a_target_reached_just_before_a_kill_ends_the_resumed_run(new: Any, tmp_path: Path) -> None:
    events = train(new("r", "train.stop_at_val_loss=100", "train.eval_every=5"))
    for event in events:
        if type(event).__name__ == "CheckpointSaved":
            break  # a kill at this moment: the checkpoint is saved, and run.json is not yet written
    events.close()
    done = prepare_resume(tmp_path / "r", None)
    assert isinstance(done, FinishedRun)
    assert (done.status["stopped"], done.status["steps"]) == ("target", 5)
    assert run_folder.read_status(tmp_path / "r")["stopped"] == "target"


def test_a_resumed_run_does_the_missing_last_evaluation(
    new: Any, resumed: Any, drive: Drive
) -> None:
    first = drive(new("r", "train.eval_every=5"), stop_at=20)
    assert end(first).stopped == "interrupted"
    assert evaluated(first) == [5, 10, 15]
    second = drive(resumed("r"))
    assert evaluated(second) == [20]
    assert end(second).stopped == "done"


def test_resuming_marks_a_best_checkpoint_that_was_not_marked(
    new: Any, resumed: Any, drive: Drive, tmp_path: Path
) -> None:
    run = tmp_path / "r"
    drive(new("r", "train.eval_every=5"), stop_at=12)
    best = checkpoint.best_step(run)
    assert best is not None
    (run / "checkpoints" / "best").write_text("step-00000001\n", encoding="utf-8")
    drive(resumed("r"), stop_at=13)
    assert checkpoint.best_step(run) == best


def test_saving_a_step_again_replaces_only_its_meta_json(
    new: Any, drive: Drive, tmp_path: Path
) -> None:
    run = tmp_path / "r"
    drive(new("r"), stop_at=5)
    folder = checkpoint.folder_of(run, 5)
    inode = (folder / "model.safetensors").stat().st_ino
    old = checkpoint.load(run, 5, with_state=True)
    checkpoint.save(run, 5, old.model, old.state, {**old.meta, "more": 1})
    assert (folder / "model.safetensors").stat().st_ino == inode
    assert checkpoint.load(run, 5, with_state=True).meta["more"] == 1


def test_an_overwritten_run_is_kept_until_the_new_one_has_a_checkpoint(
    new: Any, drive: Drive, tmp_path: Path
) -> None:
    run = tmp_path / "r"
    drive(new("r"))
    whole = (checkpoint.folder_of(run, 20) / "model.safetensors").read_bytes()
    config = (run / "config.yaml").read_text("utf-8")
    (run / "checkpoints" / "mine.txt").write_text("not gptcli's", encoding="utf-8")
    new("r", "train.seed=2")
    assert checkpoint.steps_of(run) == []
    # The old run is restored, because the new run has no checkpoint.
    run_folder.restore_replaced(run)
    assert (checkpoint.folder_of(run, 20) / "model.safetensors").read_bytes() == whole
    assert (run / "config.yaml").read_text("utf-8") == config
    assert not (run / ".replaced").exists()
    drive(new("r", "train.seed=2"))
    run_folder.restore_replaced(run)  # nothing is restored, because the new run has a checkpoint
    assert (checkpoint.folder_of(run, 20) / "model.safetensors").read_bytes() != whole
    run_folder.delete_replaced(run)
    assert not (run / ".replaced").exists()
    assert (run / "checkpoints" / "mine.txt").exists()


def test_an_edited_config_is_refused_and_an_edited_tokenizer_too(
    new: Any, drive: Drive, tmp_path: Path
) -> None:
    run = tmp_path / "r"
    drive(new("r"), stop_at=5)
    config = (run / "config.yaml").read_text("utf-8")
    for old, edited, message in (
        ("n_head: 2", "n_head: 4", "model.n_head 4"),
        ("optimizer: muon", "optimizer: adamw", r"train\.optimizer adamw \(checkpoint: muon\)"),
    ):
        (run / "config.yaml").write_text(config.replace(old, edited), encoding="utf-8")
        with pytest.raises(GptcliError, match=message):
            go_on(run)
    (run / "config.yaml").write_text(config, encoding="utf-8")
    tokenizer = (run / "tokenizer.json").read_text("utf-8")
    swapped = tokenizer.replace('"K"', '"?"').replace('"Q"', '"K"').replace('"?"', '"Q"')
    assert swapped != tokenizer
    (run / "tokenizer.json").write_text(swapped, encoding="utf-8")
    with pytest.raises(GptcliError, match=r"tokenizer\.json"):
        prepare_resume(run, None)


def test_auto_values_in_an_edited_config_are_resolved_again(
    new: Any, drive: Drive, tmp_path: Path
) -> None:
    run = tmp_path / "r"
    drive(new("r"), stop_at=5)
    config = (run / "config.yaml").read_text("utf-8")
    (run / "config.yaml").write_text(config.replace("threads: 1", "threads: auto"), "utf-8")
    prepared = prepare_resume(run, None)
    assert isinstance(prepared, Prepared)
    assert isinstance(prepared.setup.threads, int)


def test_only_float16_keeps_a_loss_scale(new: Any, drive: Drive, tmp_path: Path) -> None:
    run = tmp_path / "r"
    drive(new("r"), stop_at=5)
    path = checkpoint.folder_of(run, 5) / "meta.json"
    meta = json.loads(path.read_text("utf-8"))
    meta["progress"]["loss_scale"] = 1024.0
    path.write_bytes(dump_meta(5, meta, meta["files"]))
    prepared = prepare_resume(run, None)
    assert isinstance(prepared, Prepared)
    assert end(drive(prepared.setup)).stopped == "done"


def test_a_finished_run_without_run_json_is_described_by_its_checkpoint(
    new: Any, drive: Drive, tmp_path: Path
) -> None:
    run = tmp_path / "r"
    last = end(drive(new("r")))
    assert "stopped" not in run_folder.read_status(run)
    (run / "run.json").unlink()
    done = prepare_resume(run, None)
    assert isinstance(done, FinishedRun)
    status = done.status
    assert (status["steps"], status["stopped"], status["resumed_from"]) == (20, "done", 20)
    assert status["val_loss"] == last.val_loss


def test_a_users_attention_must_be_named_even_before_the_first_checkpoint(
    new: Any, drive: Drive, tmp_path: Path
) -> None:
    from gptcli.model.attention import CausalSelfAttention
    from gptcli.model.user_parts import UserParts

    config = new("other", "model.arch=gpt2", "run.engine=torch").config
    run = tmp_path / "r"
    prepare_new(config, run, user_parts=UserParts(attention=CausalSelfAttention))
    with pytest.raises(GptcliError, match="your attention file"):
        prepare_resume(run, None)


def test_extending_before_the_first_checkpoint_is_saved(
    new: Any, drive: Drive, tmp_path: Path
) -> None:
    run = tmp_path / "r"
    setup = new("r")
    longer = setup.config.model_copy(
        update={"train": setup.config.train.model_copy(update={"max_steps": 30})}
    )
    prepared = prepare_resume(run, longer, extend=True)
    assert isinstance(prepared, Prepared)
    assert (run / "config.yaml").read_text("utf-8") == dump_config(prepared.setup.config)
    assert prepared.setup.config.train.max_steps == 30
    with pytest.raises(GptcliError, match="--extend needs more steps"):
        prepare_resume(run, None, extend=True)


def test_float16_scales_its_loss_and_unscales_its_gradients(new: Any) -> None:
    """gptcli refuses to train in float16 on a CPU.

    This test calls the training loop directly, which can do it."""
    from dataclasses import replace

    from gptcli.training.loop import _Loop

    plain = _Loop(new("a", "model.arch=gpt2"), lambda: False)
    half = _Loop(replace(new("b", "model.arch=gpt2"), dtype=torch.float16), lambda: False)
    assert half.progress.loss_scale == 2.0**15
    for loop in (plain, half):
        loop.state.model.train()
    losses = [(plain.one_step().loss, half.one_step().loss) for _ in range(5)]
    for one, other in losses:
        assert other == pytest.approx(one, rel=5e-3)
    # This loss scale is so high that gradients overflow. The step must halve the scale until all
    # gradients are finite.
    half.progress.loss_scale = 2.0**40
    half.one_step()
    assert 1.0 < half.progress.loss_scale < 2.0**40


# torch.compile causes a warning about torch's own code.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.slow
def test_a_compiled_run_learns_the_same(new: Any, drive: Drive) -> None:
    if shutil.which("g++") is None and shutil.which("c++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    # An evaluation would be compiled, too, which takes half a minute.
    no_evaluation = ("data.val_fraction=0",)
    losses = [
        [e.loss for e in drive(new(name, f"run.compile={on}", "train.max_steps=4", *no_evaluation))
         if type(e).__name__ == "StepDone"]
        for name, on in (("plain", "false"), ("compiled", "true"))
    ]  # fmt: skip
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_overwriting_twice_before_any_checkpoint_keeps_the_trained_run(
    new: Any, drive: Drive, tmp_path: Path
) -> None:
    run = tmp_path / "r"
    drive(new("r"))
    whole = (checkpoint.folder_of(run, 20) / "model.safetensors").read_bytes()
    config = (run / "config.yaml").read_text("utf-8")
    new("r", "train.seed=2")  # this run was killed before its first checkpoint
    new("r", "train.seed=3")  # this run was killed too
    run_folder.restore_replaced(run)
    assert (checkpoint.folder_of(run, 20) / "model.safetensors").read_bytes() == whole
    assert (run / "config.yaml").read_text("utf-8") == config


def test_a_checkpoint_that_cannot_be_opened_is_not_treated_as_damaged(
    new: Any, drive: Drive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "r"
    drive(new("r", "train.checkpoint_every=5"))
    steps = checkpoint.steps_of(run)
    read = checkpoint.read_bounded

    def too_many_open(path: Path, *rest: Any) -> bytes:
        if path.name == "meta.json" and f"{steps[-1]:08d}" in str(path):
            raise OSError(errno.EMFILE, "Too many open files", str(path))
        return read(path, *rest)

    monkeypatch.setattr(checkpoint, "read_bounded", too_many_open)
    with pytest.raises(GptcliError, match="Too many open files"):
        prepare_resume(run, None)
    assert checkpoint.steps_of(run) == steps
