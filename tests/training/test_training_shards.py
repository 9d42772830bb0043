"""Sharded checkpoints are read like whole ones, and gathered at the end of a run. Errors name what
is damaged."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gptcli.errors import GptcliError
from gptcli.events import Event, Notice
from gptcli.files.remote import RemoteFolder
from gptcli.training import checkpoint, run_copy, saving, tensor_file, training_state
from gptcli.training.checkpoint_files import joined
from gptcli.training.gathered_weights import gather_weights
from gptcli.training.loop import Setup
from gptcli.training.meta_file import dump_meta, names_of, shard_name
from gptcli.training.run_copy import RunCopy, fetch_run
from tests.conftest import Cli
from tests.training.faulty_disks import TwoShards, write, write_shards

Drive = Callable[..., list[Event]]
SHARDS = [shard_name(part, number, 2) for part in ("model", "state") for number in (1, 2)]
OFTEN = ("train.checkpoint_every=5", "train.eval_every=10", "train.keep_checkpoints=9")


@pytest.fixture
def sharding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a training of one process write its checkpoints in two shards, as two ranks do."""
    monkeypatch.setattr(training_state, "WholeFiles", TwoShards)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with one whole checkpoint and two checkpoints in shards."""
    folder = tmp_path / "run"
    folder.mkdir()
    write(folder, 10)
    for step in (20, 30):
        write_shards(folder, step)
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("as_arrays", [False, True])
def test_shards_are_read_as_the_whole_tensors(
    as_arrays: bool, new: Any, drive: Drive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive(new("whole", *OFTEN))
    monkeypatch.setattr(training_state, "WholeFiles", TwoShards)
    drive(new("shards", *OFTEN))
    whole, shards = (
        checkpoint.load(tmp_path / name, 20, with_state=True, as_arrays=as_arrays)
        for name in ("whole", "shards")
    )
    assert names(shards.path) == {"meta.json", *SHARDS}
    for a, b in ((whole.model, shards.model), (whole.state, shards.state)):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].tolist() == b[name].tolist(), name
            assert tuple(a[name].shape) == tuple(b[name].shape)


@pytest.mark.usefixtures("sharding")
@pytest.mark.parametrize("most", [0, 1 << 40])
def test_a_run_goes_on_from_shards_to_the_same_bits(
    most: int, new: Any, resumed: Any, drive: Drive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "BACKGROUND_BYTES", most)
    drive(new("whole", *OFTEN))
    drive(new("cut", *OFTEN), stop_at=10)
    drive(resumed("cut"))
    for name in SHARDS:
        one, other = (checkpoint.folder_of(tmp_path / run, 20) / name for run in ("whole", "cut"))
        assert one.read_bytes() == other.read_bytes()


# ---- damage ------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def exchange(path: Path) -> None:
    """Give a shard the content of the checkpoint's other shard."""
    number = 3 - int(path.name.split("-")[1])
    shutil.copyfile(path.with_name(shard_name(path.name.split("-")[0], number, 2)), path)


def of_another_step(path: Path) -> None:
    shutil.copyfile(path.parent.with_name("step-00000020") / path.name, path)


@pytest.mark.parametrize("damage", [Path.unlink, cut, exchange, of_another_step])
@pytest.mark.parametrize("name", SHARDS)
def test_a_damaged_shard_is_named_and_the_checkpoint_before_is_used(
    name: str, damage: Callable[[Path], None], run: Path
) -> None:
    path = checkpoint.folder_of(run, 30) / name
    damage(path)
    with pytest.raises(GptcliError) as refused:
        checkpoint.load(run, 30, with_state=True)
    assert str(path) in refused.value.message
    assert refused.value.exit_code == 1
    assert refused.value.hint == "choose another with --checkpoint: 10, 20"
    saved, notes = checkpoint.newest_valid(run)
    assert saved is not None
    assert (saved.step, len(notes)) == (20, 1)
    assert str(path) in notes[0]
    assert set(saved.model["w"].tolist()) == {20.0}


@pytest.mark.parametrize("missing", SHARDS)
def test_an_index_without_one_shard_is_damaged(missing: str, run: Path) -> None:
    meta = checkpoint.read_meta(run, 30)
    del meta["files"][missing]
    (checkpoint.folder_of(run, 30) / "meta.json").write_bytes(dump_meta(30, meta, meta["files"]))
    with pytest.raises(GptcliError, match=f"`files.{missing.split('-')[0]}.safetensors` has an"):
        checkpoint.load(run, 30)


def test_shards_of_two_saves_are_not_one_checkpoint(run: Path) -> None:
    """This meta.json lists the first of two shards, and the second of three.

    So it lists no complete set of shards."""
    files = {shard_name("model", 1, 2): {}, shard_name("model", 2, 3): {}}
    with pytest.raises(ValueError, match="it lists neither"):
        names_of(files, "model")


@pytest.mark.parametrize("as_arrays", [False, True])
@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ({"w": (3, 2)}, {"w": (3, 4)}, "the rows of `w` in the shards do not fit"),
        ({"w": (3, 2)}, {"w": (3,)}, "the rows of `w` in the shards do not fit"),
        ({"w": (3, 2)}, {}, "`w` is not in all shards"),
        ({}, {"w": (3, 2)}, "`w` is not in the first shard"),
        ({"w": ()}, {"w": ()}, "`w` is a number, but in several shards"),
    ],
)
def test_shards_that_do_not_fit_together(
    first: dict[str, tuple[int, ...]],
    second: dict[str, tuple[int, ...]],
    reason: str,
    as_arrays: bool,
) -> None:
    def shard(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
        tensors = {name: torch.ones(shape) for name, shape in shapes.items()}
        if not as_arrays:
            return tensors
        return {
            name: memoryview(tensor.numpy().copy()) if tensor.dim() else memoryview(tensor.numpy())
            for name, tensor in tensors.items()
        }

    with pytest.raises(ValueError, match=reason):
        joined([shard(first), shard(second)])


def test_fewer_rows_than_ranks() -> None:
    """If a tensor has fewer rows than there are ranks, PyTorch gives the last ranks no rows."""
    w = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(joined([{"w": w[:1]}, {"w": w[1:]}, {"w": w[2:]}])["w"], w)
    views = [memoryview(w[:1].numpy().copy()), memoryview(b"").cast("f")]
    whole = joined([{"w": each} for each in views])["w"]
    assert (whole.tolist(), whole.shape) == ([[0.0, 1.0, 2.0]], (1, 3))


def test_shards_that_do_not_fit_in_the_memory_together(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = checkpoint.read_meta(run, 30)["files"]
    sizes = [files[name]["size"] for name in names_of(files, "model")]
    monkeypatch.setattr(tensor_file, "total_memory", lambda: max(sizes))
    with pytest.raises(GptcliError, match="more than this machine's memory"):
        checkpoint.load(run, 30)


# ---- the end of a run --------------------------------------------------------------------------


def test_the_weights_are_gathered_for_other_programs(run: Path) -> None:
    from safetensors.torch import load_file

    checkpoint.mark_best(run, 20)
    meta = json.loads((checkpoint.folder_of(run, 30) / "meta.json").read_bytes())
    meta["progress"]["best_step"] = 20
    (checkpoint.folder_of(run, 30) / "meta.json").write_bytes(dump_meta(30, meta, meta["files"]))
    assert gather_weights(run) == []
    for step in (20, 30):
        folder = checkpoint.folder_of(run, step)
        assert names(folder) == {"meta.json", "model.safetensors", *SHARDS[2:]}
        assert set(load_file(folder / "model.safetensors")["w"].tolist()) == {float(step)}
        assert set(checkpoint.load(run, step, with_state=True).state["m"].tolist()) == {-step}
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert gather_weights(run) == []  # all weights are gathered already, so nothing happens
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.usefixtures("sharding")
def test_commands_read_shards_as_they_read_gathered_weights(
    new: Any, drive: Drive, cli: Cli, tmp_path: Path
) -> None:
    run = tmp_path / "r"
    drive(new("r", *OFTEN))
    outputs = []
    for _ in range(2):
        exported = tmp_path / "exported"
        shutil.rmtree(exported, ignore_errors=True)
        results = [
            cli("sample", run, "--seed", 1, "--max-new-tokens", 20),
            cli("eval", run, "--json"),
            cli("export", run, "--to", "huggingface", "--out", exported),
        ]
        assert [result.code for result in results] == [0, 0, 0], results
        weights = (exported / "model.safetensors").read_bytes()
        outputs.append([results[0].out, results[1].out, weights])
        assert gather_weights(run) == []
    assert outputs[0] == outputs[1]
    assert "model.safetensors" in names(checkpoint.folder_of(run, 20))


def test_damaged_shards_are_not_gathered(run: Path) -> None:
    path = checkpoint.folder_of(run, 30) / SHARDS[0]
    cut(path)
    (warning,) = gather_weights(run)
    assert warning.startswith("WARNING: the weights of step 30 stay in shards")
    assert str(path) in warning
    assert names(path.parent) == {"meta.json", *SHARDS}


@pytest.mark.usefixtures("sharding")
def test_a_run_that_was_killed_before_it_gathered_gathers_when_it_is_resumed(
    new: Any, drive: Drive, tmp_path: Path
) -> None:
    from gptcli.training.setup import FinishedRun, prepare_resume

    drive(new("r", *OFTEN))
    folder = checkpoint.folder_of(tmp_path / "r", 20)
    assert "model.safetensors" not in names(folder)
    assert isinstance(prepare_resume(tmp_path / "r", None), FinishedRun)
    assert "model.safetensors" in names(folder)
    assert not [event for event in drive(new("other")) if isinstance(event, Notice)]


# ---- copies at a URL ---------------------------------------------------------------------------


@pytest.mark.usefixtures("sharding")
def test_a_copy_of_shards_comes_back_and_follows_what_was_gathered(
    new: Callable[..., Setup], drive: Drive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"memory://{uuid.uuid4()}/run"
    setup = new("r", *OFTEN)
    drive(setup)
    copy = RunCopy(setup.run, url)
    assert copy.finish(lambda: False, 60) == []
    assert fetch_run(url, tmp_path / "shards") == 20
    saved = checkpoint.load(tmp_path / "shards", 20, with_state=True)
    assert names(saved.path) == {"meta.json", *SHARDS}

    sent: list[str] = []
    upload = RemoteFolder.upload
    monkeypatch.setattr(
        run_copy.RemoteFolder,
        "upload",
        lambda self, source, name: (sent.append(name), upload(self, source, name))[1],
    )
    gather_weights(setup.run)
    assert copy.finish(lambda: False, 60) == []
    there = set(RemoteFolder(url).names("checkpoints/step-00000020"))
    assert there == names(checkpoint.folder_of(setup.run, 20))
    assert [name for name in sent if "/step-00000020/" in name] == [
        # The copy at the URL already has the optimizer's state.
        "checkpoints/step-00000020/model.safetensors"
    ]
    assert fetch_run(url, tmp_path / "gathered") == 20
    again = checkpoint.load(tmp_path / "gathered", 20, with_state=True)
    assert all(torch.equal(saved.model[name], again.model[name]) for name in saved.model)


def test_a_shard_that_was_changed_at_the_url_is_not_fetched(run: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/copy"
    for name in ("config.yaml", "tokenizer.json"):
        (run / name).write_text("{}")
    assert RunCopy(run, url).finish(lambda: False, 60) == []
    cut(tmp_path / "copy" / "checkpoints" / "step-00000030" / SHARDS[3])
    assert fetch_run(url, tmp_path / "back") == 20
