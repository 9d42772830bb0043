"""Runs still work after their folder, text or machine has changed. Commands in hints work, too."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gptcli.devices import choose_dtype
from gptcli.errors import GptcliError
from gptcli.files.caches import cache_folder
from gptcli.files.paths import absolute, expanded, shell_word
from gptcli.training import run_folder

SMALL = (
    "model.n_layer=1",
    "model.n_head=2",
    "model.n_embd=16",
    "model.block_size=16",
    "train.batch_size=4",
    "train.max_steps=6",
    "run.threads=1",
    "run.dtype=float32",
)


@pytest.fixture
def project(tmp_path: Path, text_file: Path, cli: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that becomes the current folder.

    It holds the text texts/t.txt, and the run runs/r, which was trained on this text."""
    folder = tmp_path / "project"
    (folder / "texts").mkdir(parents=True)
    shutil.copy(text_file, folder / "texts" / "t.txt")
    monkeypatch.chdir(folder)
    assert cli("train", "texts/t.txt", *SMALL, "--out", "runs/r").code == 0
    return folder


def stored(run: str = "runs/r") -> str:
    return str(run_folder.read_config(Path(run)).data.source)


def typed(cli: Any, text: str) -> Any:
    """Run the first `gptcli` command of a hint, and return its outcome."""
    found = re.search(r"gptcli ([^;\n]*)", text)
    assert found is not None, text
    return cli(*shlex.split(found[1]))


# ---- ~ for the home folder -----------------------------------------------------------------------


@pytest.mark.slow
def test_a_home_folder_is_expanded_wherever_a_path_is_read(
    cli: Any, tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(text_file, home / "tt.txt")
    (home / "c.yaml").write_text("data: {source: ~/tt.txt}\n", encoding="utf-8")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    assert cli("train", "~/c.yaml", *SMALL, "--out=~/x").code == 0
    assert stored(str(home / "x")) == (home / "tt.txt").as_posix()
    for words in (
        ("eval", "~/x"),
        ("eval", "~/x", "--file=~/tt.txt"),
        ("sample", "~/x", "--prompt-file=~/tt.txt", "--max-new-tokens", 1),
        ("score", "~/x", "~/tt.txt"),
        ("inspect-batch", "~/x", 1),
        ("runs", "~/"),
        ("configs", "~/c.yaml"),
        ("train", "--resume", "--out", "~/x"),
        ("tokenizer", "train", "~/tt.txt", "--out", "~/t.json"),
        ("tokenizer", "encode", "a", "--tokenizer", "~/t.json"),
        ("exercise", "mlp", "--out", "~/my"),
    ):
        outcome = cli(*words)
        assert outcome.code == 0, (words, outcome.err)
    assert not (tmp_path / "~").exists()
    assert cli("check-mlp", "~/my/mlp.py").code == 1


def test_an_unknown_user_is_an_error(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GptcliError, match="there is no user `nouser-x`"):
        expanded("~nouser-x/a")
    outcome = cli("train", *SMALL, "--out=~nouser-x/a")
    assert (outcome.code, "there is no user `nouser-x`" in outcome.err) == (2, True)
    monkeypatch.setenv("GPTCLI_CACHE", "~nouser-x/a")
    with pytest.raises(GptcliError, match="GPTCLI_CACHE"):
        cache_folder()


def test_absolute_paths_keep_links_but_not_dots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a/b")
    monkeypatch.chdir(tmp_path)
    assert absolute("a/../link") == tmp_path / "link"
    assert absolute("link/..") == tmp_path / "a"  # the parent of the link's target, not of the link


# ---- the text moves ------------------------------------------------------------------------------


def test_a_project_can_move_as_a_whole(
    project: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.rename(project.with_name("moved"))
    monkeypatch.chdir(project.with_name("moved"))
    for words in (("eval", "r"), ("inspect-batch", "r", 2), ("train", "--resume")):
        outcome = cli(*words)
        assert outcome.code == 0, outcome.err
    (project / "texts").mkdir(parents=True)  # now another text has the old path
    (project / "texts" / "t.txt").write_text("another text\n" * 99, encoding="utf-8")
    assert cli("eval", "r").code == 0


def test_a_moved_text_is_named_and_remembered(project: Path, cli: Any) -> None:
    (project / "texts" / "t.txt").rename(project / "new.txt")
    before = (project / "runs" / "r" / "config.yaml").stat().st_mtime_ns
    for words in (("eval", "r"), ("inspect-batch", "r", 2)):
        lost = cli(*words)
        assert (lost.code, "is missing" in lost.err) == (2, True)
        hint = lost.err.replace("PATH", "new.txt")
        assert typed(cli, hint).code == 0
        assert stored() == (project / "new.txt").as_posix()
        assert (project / "runs" / "r" / "config.yaml").stat().st_mtime_ns == before
        (project / "new.txt").rename(project / "old.txt")
        (project / "old.txt").rename(project / "newer.txt")
        assert cli(*words, "data.source=newer.txt").code == 0
        (project / "newer.txt").rename(project / "new.txt")
        assert stored() == (project / "newer.txt").as_posix()
    assert cli("train", "new.txt", "--resume", "--out", "runs/r").code == 0
    assert stored() == (project / "new.txt").as_posix()
    assert cli("score", "r", "new.txt").code == 0


@pytest.mark.parametrize(
    "words", [("eval", "r"), ("inspect-batch", "r", "1"), ("train", "--resume", "--out", "runs/r")]
)
def test_another_text_is_refused_and_not_remembered(
    words: tuple[str, ...], project: Path, cli: Any
) -> None:
    (project / "other.txt").write_text("quite another text\n" * 50, encoding="utf-8")
    outcome = cli(*words, "data.source=other.txt")
    assert outcome.code == 2
    assert outcome.err.startswith("error: other.txt is not the text that runs/r was trained on")
    assert stored() == (project / "texts" / "t.txt").as_posix()
    refused = cli(*words[:2], *words[2:], "train.seed=5")
    assert refused.code == 2


@pytest.mark.long_series
@pytest.mark.parametrize("command", ["eval", "inspect-batch", "train"])
def test_a_moved_validation_text_is_named_and_remembered(
    command: str, project: Path, cli: Any
) -> None:
    (project / "old").mkdir()
    (project / "v.txt").write_text("KING:\nA zebra!\n" * 9, "utf-8")
    (project / "w.txt").write_text("KING:\nA lion!\n" * 9, "utf-8")
    validated = (*SMALL, "data.val_source=v.txt", "--out", "runs/v")
    assert cli("train", "texts/t.txt", *validated).code == 0
    more = ("--resume", "--extend", "train.max_steps=8", "--out", "runs/v")
    words = {"eval": ("runs/v",), "inspect-batch": ("runs/v", "1"), "train": more}[command]
    (project / "v.txt").rename(project / "old" / "v.txt")
    lost = cli(command, *words)
    assert lost.code == 2
    assert "the validation text of runs/v is missing" in lost.err
    assert "data.source=PATH" not in lost.err
    (project / "texts" / "t.txt").rename(project / "old" / "t.txt")
    both = cli(command, *words)
    assert "data.source=PATH data.val_source=PATH" in both.err
    half = cli(command, *words, "data.source=old/t.txt")
    assert (half.code, "is missing" in half.err) == (2, True)
    refused = cli(command, *words, "data.source=old/t.txt", "data.val_source=w.txt")
    assert refused.code == 2
    assert "w.txt is not its validation text" in refused.err
    assert typed(cli, half.err.replace("PATH", "old/v.txt")).code == 0
    (project / "old" / "t.txt").rename(project / "texts" / "t.txt")
    (project / "old" / "v.txt").rename(project / "v2.txt")
    (project / "v.txt").mkdir()
    refused = cli("eval", "runs/v", "data.source=texts/t.txt", "data.val_source=null")
    assert "data.val_source cannot change" in refused.err
    renamed = ("data.source=texts/t.txt", "data.val_source=v2.txt")
    assert cli("eval", "runs/v", *renamed).code == 0
    assert cli("eval", "runs/v", "data.val_source=w.txt").code == 2
    assert cli("eval", "runs/v").code == 0
    assert cli("eval", "runs/r", "data.val_source=v2.txt").code == 2


def test_the_config_of_a_moved_run_finds_its_text(
    project: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.rename(project.with_name("moved"))
    monkeypatch.chdir(project.with_name("moved"))
    for number, words in enumerate((("runs/r/config.yaml",), ("--from", "runs/r"))):
        outcome = cli("train", *words, "--out", f"runs/{number}")
        assert outcome.code == 0, outcome.err
        assert stored(f"runs/{number}") == absolute("texts/t.txt").as_posix()
    refused = cli("train", "runs/r/config.yaml", "data.source=no.txt", "--out", "runs/s")
    assert (refused.code, "no.txt" in refused.err) == (2, True)


# ---- the machine ---------------------------------------------------------------------------------


def test_a_run_of_another_machine_resumes_here(
    project: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = project / "runs" / "r" / "config.yaml"
    config = path.read_text("utf-8")
    for old, new in (
        (r"device: \w+", "device: cuda"),
        (r"threads: \d+", "threads: 4000"),
        (r"dtype: \w+", "dtype: float16"),
        (r"compile: \w+", "compile: true"),
        (r"engine: \w+", "engine: native"),
    ):
        config = re.sub(old, new, config)
    path.write_text(config, encoding="utf-8")
    for words in (("eval", "r"), ("sample", "r", "--max-new-tokens", 1), ("inspect-batch", "r", 1)):
        assert cli(*words).code == 0
    refused = cli("train", path, "--out", "runs/s")
    assert refused.code == 2
    assert "run.device=auto" in refused.err
    assert "run.threads=auto" in refused.err
    assert not (project / "runs" / "s").exists()
    outcome = cli("train", "--resume", "--extend", "train.max_steps=8", "--out", "runs/r")
    assert outcome.code == 0, outcome.err
    assert "chosen again for this machine: run.device is now cpu (was cuda)" in outcome.err
    run = run_folder.read_config(project / "runs" / "r").run
    assert (run.device, run.compile) == ("cpu", False)
    assert f"torch.{run.dtype}" == str(choose_dtype("auto", torch.device("cpu")))
    assert isinstance(run.threads, int)
    assert run.threads < 4000
    autos = re.findall(r"run\.\w+=auto", refused.err)
    assert cli("train", path, "--out", "runs/s", *autos).code == 0


def test_on_the_same_machine_nothing_is_chosen_again(project: Path, cli: Any) -> None:
    outcome = cli("train", "--resume", "--extend", "train.max_steps=8", "--out", "runs/r")
    assert outcome.code == 0
    assert "chosen again" not in outcome.err


# ---- hints whose commands work -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "advice"),
    [
        ("train.stop_at_val_loss=100", "train.stop_at_val_loss=null"),
        ("train.patience=1 train.learning_rate=50", "train.patience=null"),
        ("train.log_every=5", "--extend"),
    ],
)
def test_the_advice_after_a_stop_trains_on(
    setting: str, advice: str, cli: Any, tmp_path: Path, text_file: Path
) -> None:
    words = (*SMALL, "train.eval_every=2", *setting.split(), "--out", tmp_path / "r")
    assert cli("train", text_file, *words).code == 0
    before = run_folder.read_status(tmp_path / "r")["steps"]
    told = cli("train", "--resume", "--out", tmp_path / "r")
    assert advice in told.err
    more = cli("train", "--resume", "--extend", "train.max_steps=20", "--out", tmp_path / "r")
    if advice != "--extend":  # another rule ended the run, so --extend is not enough
        assert advice in more.err
        assert run_folder.read_config(tmp_path / "r").train.max_steps == 6
        outcome = typed(cli, told.err)
        assert outcome.code in (0, 1), outcome.err
    assert run_folder.read_status(tmp_path / "r")["steps"] > before


def test_a_text_of_resume_sets_only_the_text(project: Path, cli: Any) -> None:
    outcome = cli("train", "texts/t.txt", "--resume", "--out", "runs/r")
    assert (outcome.code, "is finished" in outcome.err) == (0, True)
    refused = cli("train", "texts/t.txt", "--resume", "--out", "runs/r", "train.batch_size=2")
    assert "train.batch_size: 4 -> 2\n" in refused.err
    assert "n_layer" not in refused.err
    assert typed(cli, refused.err.partition("hint:")[2]).code == 0
    assert "is a run, not a text" in cli("train", "runs/r", "--resume").err


# ---- links ---------------------------------------------------------------------------------------


@pytest.fixture
def disk(project: Path) -> Path:
    """The folder that holds the checkpoints of runs/r. A link runs/r/checkpoints leads to it."""
    place = project.with_name("disk")
    (project / "runs" / "r" / "checkpoints").rename(place)
    (project / "runs" / "r" / "checkpoints").symlink_to(place)
    return place


def test_checkpoints_can_be_a_link_to_another_disk(disk: Path, cli: Any) -> None:
    assert cli("eval", "r").code == 0
    assert cli("train", "train.max_steps=8", "--resume", "--extend", "--out", "runs/r").code == 0
    assert (disk / "step-00000008").is_dir()
    again = cli("train", "texts/t.txt", *SMALL, "--out", "runs/r", "--overwrite")
    assert f"the old checkpoints stay in {disk}" in again.err
    assert (disk / "step-00000008").is_dir()
    assert not Path("runs/r/checkpoints").is_symlink()


def test_a_link_to_a_missing_disk_does_not_start_again(disk: Path, cli: Any) -> None:
    disk.rename(disk.with_name("away"))
    for words in (("eval", "r"), ("train", "--resume", "--out", "runs/r")):
        outcome = cli(*words)
        assert (outcome.code, "which is missing" in outcome.err) == (1, True)
    assert "damaged" in cli("runs").out


def test_a_link_to_foreign_files_is_not_written_to(disk: Path, cli: Any) -> None:
    (disk / "letter.txt").touch()
    outcome = cli("train", "train.max_steps=8", "--resume", "--extend", "--out", "runs/r")
    assert (outcome.code, "other files than checkpoints" in outcome.err) == (1, True)
    (disk / "letter.txt").unlink()
    shutil.copytree("runs/r", "runs/s", symlinks=True)
    Path("runs/s/checkpoints").unlink()
    Path("runs/s/checkpoints").symlink_to("../r/checkpoints")
    outcome = cli("train", "train.max_steps=8", "--resume", "--extend", "--out", "runs/s")
    assert (outcome.code, "of another run" in outcome.err) == (1, True)


def test_damaged_checkpoints_are_trained_again_by_the_hint(project: Path, cli: Any) -> None:
    for path in (project / "runs" / "r" / "checkpoints").glob("step-*/model.safetensors"):
        path.unlink()
    outcome = cli("train", "train.max_steps=8", "--resume", "--extend", "--out", "runs/r")
    assert (outcome.code, "every checkpoint is damaged" in outcome.err) == (1, True)
    assert typed(cli, outcome.err.partition("hint:")[2]).code == 0
    assert stored() == (project / "texts" / "t.txt").as_posix()
    assert cli("eval", "r").code == 0


# ---- names and folders ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX only")
def test_a_name_that_is_not_utf_8(project: Path, cli: Any) -> None:
    name = os.fsdecode(b"q\xe9")
    outcome = cli("train", "texts/t.txt", *SMALL, "--out", f"runs/{name}", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["run"] == f"runs/{name}"
    assert "q\\xe9" in cli("runs").out
    assert name in [json.loads(line)["name"] for line in cli("runs", "--json").out.splitlines()]
    for words in (("eval",), ("sample", "--max-new-tokens", 1), ("score", "texts/t.txt")):
        found = cli(words[0], name, *words[1:], "--json")
        assert found.code == 0, found.err
        json.loads(found.out)
    assert "--out $'runs/q\\xe9'" in cli("train", "--resume", "--out", f"runs/{name}").err
    assert shell_word("a b") == "'a b'"


def test_a_path_that_is_too_long_leaves_nothing(
    project: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = project / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    for out in ("a/" * 2500, "b/" + "x" * 300 + "/c", "y" * 300):
        outcome = cli("train", "../texts/t.txt", *SMALL, "--out", out)
        assert outcome.code == 2, outcome.err
        assert outcome.err.startswith("error: ")
        assert list(empty.iterdir()) == []
    (empty / "t.txt").write_text("short", encoding="utf-8")
    assert cli("train", "t.txt", *SMALL, "--out", "c/d/e").code == 2
    assert [path.name for path in empty.iterdir()] == ["t.txt"]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Windows allows only shorter paths")
def test_a_run_1500_folders_deep(project: Path, cli: Any) -> None:
    out = "a/" * 1500 + "r"
    try:
        outcome = cli("train", "texts/t.txt", *SMALL, "--out", out)
        assert outcome.code == 0, outcome.err
        assert cli("eval", out).code == 0
    finally:  # to delete the folders, pytest would need a deeper recursion than Python allows
        subprocess.run(["rm", "-rf", "a"], check=True)
