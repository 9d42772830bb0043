"""`gptcli train --copy-to URL`: the copy of a run, from which another machine can resume."""

from __future__ import annotations

import filecmp
import io
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import gptcli

TINY = (
    "model.n_layer=1", "model.n_head=2", "model.n_embd=32", "model.block_size=16",
    "train.batch_size=4", "train.eval_every=5", "train.checkpoint_every=5", "run.threads=1",
    "run.dtype=float32",
)  # fmt: skip


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "one.txt").write_text("a lot of words, and more of them. " * 60)
    monkeypatch.chdir(tmp_path)
    return f"file://{tmp_path}/copy"


def test_a_run_goes_on_on_another_machine(cli: Any, url: str) -> None:
    words = ("train", "tiny", "data.source=one.txt", *TINY)
    begun = cli(*words, "train.max_steps=10", "--out", "runs/here", "--copy-to", url)
    assert begun.code == 0, begun.err
    compared = filecmp.dircmp("runs/here", "copy")
    assert not compared.diff_files
    assert not compared.right_only
    assert compared.left_only == [".lock"]
    shutil.rmtree("runs/here")
    again = cli(
        "train", "--resume", "--extend", "train.max_steps=15", "--out", "runs/there",
        "--copy-to", url,
    )  # fmt: skip
    assert again.code == 0, again.err
    assert f"fetched the run from {url}, at step 10" in again.err
    assert Path("copy/checkpoints/step-00000015/meta.json").is_file()
    used = cli(*words, "--out", "runs/new", "--copy-to", url)
    assert used.code == 2
    assert "holds a run already" in used.err
    assert not Path("runs/new").exists()


def test_standard_input_is_copied_too(cli: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.TextIOWrapper(io.BytesIO(Path("one.txt").read_bytes()))
    monkeypatch.setattr(sys, "stdin", text)
    words = ("train", "tiny", "data.source=-", *TINY, "train.max_steps=5", "--out", "runs/here")
    assert cli(*words, "--copy-to", url).code == 0
    shutil.rmtree("runs/here")
    again = ("--resume", "--extend", "train.max_steps=10", "--out", "runs/there")
    assert cli("train", *again, "--copy-to", url).code == 0
    assert Path("runs/there/text.txt").read_bytes() == Path("one.txt").read_bytes()


def test_what_cannot_be_copied(cli: Any, url: str) -> None:
    words = ("train", "tiny", "data.source=one.txt", *TINY, "train.max_steps=5")
    for wrong in ("ssh://x/y", "memory://x::file://y", "plain/folder"):
        refused = cli(*words, "--out", "runs/x", "--copy-to", wrong)
        assert refused.code == 2
        assert "gptcli reads no URL of this form" in refused.err
    inside = Path("runs/x").absolute()
    for wrong in ("file://", "file:///", inside.as_uri(), f"{inside.as_uri()}/copy"):
        refused = cli(*words, "--out", "runs/x", "--copy-to", wrong)
        assert (refused.code, Path("runs/x").exists()) == (2, False), refused.err
    nothing = cli("train", "--resume", "--out", "runs/x", "--copy-to", url)
    assert nothing.code == 2
    assert "holds no run" in nothing.err
    unnamed = cli("train", "--resume", "--copy-to", url)
    assert "needs --out" in unnamed.err


def test_a_copy_whose_newest_checkpoint_is_damaged_goes_on(cli: Any, url: str) -> None:
    words = ("train", "tiny", "data.source=one.txt", *TINY, "train.max_steps=10")
    assert cli(*words, "--out", "runs/here", "--copy-to", url).code == 0
    shutil.rmtree("runs/here")
    damaged = Path("copy/checkpoints/step-00000010/model.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    again = cli("train", "--resume", "--out", "runs/there", "--copy-to", url)
    assert again.code == 0, again.err
    assert "at step 5" in again.err
    assert "done at step 10" in again.err


def test_the_library_copies(cli: Any, url: str, tmp_path: Path) -> None:
    overrides = dict(word.split("=") for word in (*TINY, "train.max_steps=5"))
    settings = {
        key: int(value) if value.isdecimal() else value for key, value in overrides.items()
    } | {"data.source": "one.txt"}
    gptcli.train("tiny", settings, out=tmp_path / "lib", copy_to=url).finish()
    assert (tmp_path / "copy" / "run.json").read_bytes() == (
        tmp_path / "lib" / "run.json"
    ).read_bytes()
    shutil.rmtree(tmp_path / "lib")
    training = gptcli.train(resume=True, out=tmp_path / "lib", copy_to=url)
    assert training.finish().step == 5
