"""gptcli notices and names the damaged files of a run, and uses another checkpoint that is
valid."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from gptcli.errors import GptcliError
from gptcli.training import checkpoint, run_folder
from gptcli.training.meta_file import dump_meta
from gptcli.training.setup import Prepared, prepare_resume
from tests.reliability import damage


@pytest.fixture
def run(small_run: Path, tmp_path: Path) -> Path:
    """A copy of the small run, which the test may damage."""
    return Path(shutil.copytree(small_run, tmp_path / "run"))


def spoil(run: Path, step: int, name: str = "model.safetensors") -> Path:
    path = checkpoint.folder_of(run, step) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    return path


@pytest.mark.slow
def test_random_damage_is_noticed_and_named(
    small_run: Path, text_file: Path, tmp_path: Path
) -> None:
    trials = damage.run_trials(small_run, text_file, tmp_path / "cache", 120)
    assert damage.failures(trials) == []
    found = [trial for trial in trials if trial.outcome == "found"]
    assert len(found) > 100
    assert {trial.damage for trial in found} == {one.__name__ for one in damage.DAMAGES}


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "meta.json"])
def test_resume_continues_from_the_newest_valid_checkpoint(run: Path, name: str) -> None:
    path = spoil(run, 12, name)
    prepared = prepare_resume(run, None)
    assert isinstance(prepared, Prepared)
    assert prepared.setup.resume is not None
    assert prepared.setup.resume.step == 8
    (note,) = [note for note in prepared.notes if "it was skipped" in note]
    assert note.startswith(f"{path} is damaged: ")


@pytest.mark.long_series
@pytest.mark.parametrize("name", ["model.safetensors", "meta.json"])
@pytest.mark.parametrize("command", ["sample", "eval", "score"])
def test_commands_fall_back_with_a_notice_unless_a_checkpoint_was_named(
    command: str, name: str, cli: Any, run: Path, text_file: Path
) -> None:
    path = spoil(run, 8, name)
    words = [command, run] + ([text_file] if command == "score" else [])
    words += ["--max-new-tokens", 3] if command == "sample" else []
    outcome = cli(*words)
    assert outcome.code == 0, outcome.err
    assert f"note: {path} is damaged: " in outcome.err
    assert "note: using the newest valid checkpoint, step 12\n" in outcome.err
    for which in ("best", "8"):
        outcome = cli(*words, "--checkpoint", which)
        assert (outcome.code, outcome.out) == (1, "")
        assert outcome.err.startswith(f"error: {path} is damaged: ")
        assert "hint: choose another with --checkpoint: 4, 12" in outcome.err
    assert cli(*words, "--checkpoint", "last").code == 0


def test_a_fine_tune_falls_back_with_the_same_notice(
    cli: Any, run: Path, text_file: Path, tmp_path: Path
) -> None:
    path = spoil(run, 8)
    new = tmp_path / "new"
    outcome = cli("train", text_file, "train.max_steps=2", "--from", run, "--out", new)
    assert outcome.code == 0, outcome.err
    assert f"{path} is damaged: " in outcome.err
    assert "using the newest valid checkpoint, step 12\n" in outcome.err
    assert f"starting from the weights of {run}, step 12" in outcome.err
    assert run_folder.read_status(new)["started_from"] == {"run": str(run), "step": 12}
    spoil(run, 4)
    spoil(run, 12)
    outcome = cli("train", text_file, "--from", run, "--out", tmp_path / "none")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith(f"error: {run}: every checkpoint is damaged: ")
    assert not (tmp_path / "none").exists()


def test_if_every_checkpoint_is_damaged_the_error_names_each(cli: Any, run: Path) -> None:
    paths = [spoil(run, step) for step in damage.STEPS]
    for words in (("sample", run), ("train", "--resume", "--out", run)):
        outcome = cli(*words)
        assert (outcome.code, outcome.out) == (1, "")
        assert outcome.err.startswith(f"error: {run}: every checkpoint is damaged: ")
        assert all(str(path) in outcome.err for path in paths)


@pytest.mark.parametrize("content", [None, b"", b"step-00000004\n", b"step-00000009\n", b"\xff"])
def test_a_wrong_checkpoints_best_is_corrected_by_meta_json(
    content: bytes | None, cli: Any, run: Path
) -> None:
    path = run / "checkpoints" / "best"
    path.unlink() if content is None else path.write_bytes(content)
    outcome = cli("eval", run, "--json")
    assert outcome.code == 0, outcome.err
    assert '"checkpoint": 8' in outcome.out
    assert f"note: {path} " in outcome.err
    assert "the best step is 8" in outcome.err


def test_a_changed_number_in_meta_json_is_noticed(run: Path) -> None:
    path = checkpoint.folder_of(run, 12) / "meta.json"
    text = path.read_text("utf-8")
    changed = text.replace('"evaluations_without_best": ', '"evaluations_without_best": 1')
    assert changed != text
    path.write_text(changed, encoding="utf-8")
    with pytest.raises(GptcliError, match="its content does not match its SHA-256"):
        checkpoint.read_meta(run, 12)
    path.write_text(text.replace('"sha256": "', '"sha25v": "'), encoding="utf-8")
    with pytest.raises(GptcliError, match=r"meta\.json is damaged"):
        checkpoint.read_meta(run, 12)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("progress", []),
        ("progress.step", 13),
        ("progress.tokens", -1),
        ("progress.tokens", True),
        ("progress.tokens", None),
        ("progress.seconds", "1"),
        ("progress.train_loss", []),
        ("progress.best_step", 1.5),
        ("progress.loss_scale", 0),
        ("progress.loss_scale", float("nan")),
        ("progress.nonsense", 1),
        ("files", []),
        ("files.model.safetensors", {"size": 1}),
        ("files.model.safetensors", {"size": 1.0, "sha256": ""}),
        ("files.state.safetensors", {"size": -1, "sha256": ""}),
        ("tokenizer", 1),
        ("model", []),
        ("config", []),
        ("own_parts", "attention"),
        ("own_parts", [1]),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_even_if_the_hash_fits(
    key: str, value: Any, run: Path
) -> None:
    meta = checkpoint.read_meta(run, 12)
    above, _, below = key.partition(".")
    if below:
        meta[above][below] = value
    else:
        meta[above] = value
    path = checkpoint.folder_of(run, 12) / "meta.json"
    path.write_bytes(dump_meta(12, meta, meta["files"]))
    with pytest.raises(GptcliError) as caught:
        checkpoint.read_meta(run, 12)
    assert caught.value.message.startswith(f"{path} is damaged: `{above}")
    assert caught.value.message.endswith("` has an invalid value")


def test_meta_json_knows_every_counter_of_a_run() -> None:
    from dataclasses import fields

    from gptcli.training import meta_file
    from gptcli.training.training_state import Progress

    known = (
        *meta_file._COUNTERS, *meta_file._COUNTERS_OR_NONE,
        *meta_file._NUMBERS, *meta_file._NUMBERS_OR_NONE,
    )  # fmt: skip
    assert sorted(known) == sorted(field.name for field in fields(Progress))


def test_checkpoints_of_format_1_are_read(run: Path) -> None:
    import json

    path = checkpoint.folder_of(run, 12) / "meta.json"
    meta = json.loads(path.read_text("utf-8"))
    del meta["sha256"], meta["config"]
    path.write_text(json.dumps({**meta, "format": 1}), encoding="utf-8")
    saved, notes = checkpoint.newest_valid(run)
    assert saved is not None
    assert (saved.step, notes) == (12, [])


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("seed: 1337", "seed: 1336", "train.seed 1336 (checkpoint: 1337)"),
        ("batch_size: 4", "batch_size: 5", "train.batch_size 5 (checkpoint: 4)"),
        ("dropout: 0.0", "dropout: 0.1", "model.dropout 0.1 (checkpoint: 0.0)"),
        ("val_fraction: 0.1", "val_fraction: 0.3", "data.val_fraction 0.3 (checkpoint: 0.1)"),
        ("max_steps: 12", "max_steps: 10", "train.max_steps 10 (checkpoint: 12)"),
    ],
)
def test_a_changed_key_that_changes_the_weights_is_refused(
    old: str, new: str, words: str, cli: Any, run: Path
) -> None:
    path = run / "config.yaml"
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    for arguments in (("sample", run), ("train", "--resume", "--out", run)):
        outcome = cli(*arguments)
        assert outcome.code == 1
        assert outcome.err.startswith(f"error: {path} is not the config of this checkpoint: ")
        assert words in outcome.err


def test_a_changed_key_that_keeps_the_weights_is_noted(cli: Any, run: Path) -> None:
    path = run / "config.yaml"
    text = path.read_text("utf-8")
    path.write_text(text.replace("keep_checkpoints: 3", "keep_checkpoints: 7"), encoding="utf-8")
    outcome = cli("sample", run, "--max-new-tokens", 1)
    assert outcome.code == 0
    assert f"{path}: train.keep_checkpoints is 7; the checkpoint has 3" in outcome.err


def test_the_hash_of_meta_json_covers_every_value(run: Path) -> None:
    meta = checkpoint.read_meta(run, 12)
    written = dump_meta(12, meta, meta["files"])
    assert written == (checkpoint.folder_of(run, 12) / "meta.json").read_bytes()
    assert dump_meta(12, {**meta, "data": "x"}, meta["files"]) != written
