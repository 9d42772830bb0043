"""Token shards, in folders and at URLs: commands that write them, train on them and resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

TINY = (
    "model.n_layer=1", "model.n_head=2", "model.n_embd=32", "model.block_size=16",
    "train.batch_size=4", "train.eval_every=5", "train.checkpoint_every=5", "run.threads=1",
    "run.dtype=float32", "train.keep_checkpoints=9",
)  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "one.txt").write_text("a lot of words, and more of them. " * 60)
    (folder / "two.txt").write_text("0123456789 " * 90)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def tokens(cli: Any, here: Path) -> Path:
    made = cli("tokenizer", "shards", "one.txt", "--tokenizer", "byte", "--out", "tokens")
    assert made.code == 0, made.err
    assert "tokens: 2,041 tokens; train on them: data.source=tokens" in made.err
    return here / "tokens"


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_a_run_stopped_and_resumed_equals_one_that_was_not(
    engine: str, cli: Any, tokens: Path
) -> None:
    """A run starts from a folder of shards. Then the folder is moved, and the run resumes from a
    URL with the folder's new path."""
    words = ("train", "tiny", *TINY, f"run.engine={engine}", "train.max_steps=20")
    whole = cli(*words, "data.source=tokens", "--out", "runs/whole")
    assert whole.code == 0, whole.err
    assert "token shards: 2,041 tokens in 1 file, with their byte tokenizer" in whole.err
    assert cli(*words, "data.source=tokens", "--out", "runs/parts").code == 0
    for path in Path("runs/parts/checkpoints").glob("step-*"):
        if path.name > "step-00000010":
            shutil.rmtree(path)
    assert Path("runs/parts/checkpoints/step-00000010").exists()
    tokens.rename("moved")
    gone = cli("train", "--resume", "--out", "runs/parts")
    assert gone.code == 2
    moved = cli(
        "train", "--resume", "--out", "runs/parts", f"data.source=file://{Path('moved').resolve()}"
    )
    assert moved.code == 0, moved.err
    for name in ("model.safetensors", "state.safetensors"):
        files = [Path(f"runs/{run}/checkpoints/step-00000020/{name}") for run in ("whole", "parts")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_eval_and_inspect_batch_read_shards(cli: Any, tokens: Path) -> None:
    words = ("train", "tiny", *TINY, "train.max_steps=6", "data.source=tokens")
    assert cli(*words, "--out", "runs/r").code == 0
    measured = json.loads(cli("eval", "runs/r", "--json").out)
    assert measured["tokens"] == 2041 - int(2041 * 0.9) - 1
    assert "a lot of" in cli("inspect-batch", "runs/r", "1").out
    other = cli("tokenizer", "shards", "two.txt", "--tokenizer", "byte", "--out", "other")
    assert other.code == 0
    refused = cli("eval", "runs/r", "data.source=other")
    assert refused.code == 2
    assert "is not the text that" in refused.err


def test_what_cannot_be_trained_on(cli: Any, tokens: Path) -> None:
    alone = cli("train", "tokens")
    assert alone.code == 2
    assert "give a CONFIG: gptcli train CONFIG data.source=tokens" in alone.err
    both = cli("train", "tiny", "data.source=[tokens, two.txt]", "--out", "runs/x")
    assert "mix token shards with a text, two.txt" in both.err
    again = cli("tokenizer", "shards", "one.txt", "--tokenizer", "byte", "--out", "tokens")
    assert again.code == 2
    assert "tokens exists already" in again.err
    other = cli("tokenizer", "shards", "two.txt", "--tokenizer", "gpt2", "--out", "other")
    assert other.code == 0
    mixed = cli(
        "train", "tiny", "data.source=[tokens, other]", "data.weights=1,1", "--out", "runs/x"
    )
    assert "other and tokens were encoded by different tokenizers" in mixed.err
    assert cli("train", "s5://x/y", "--out", "runs/x").code == 2
    for texts, said in (
        (("data.source=tokens", "data.val_source=tokens"), "is the validation text"),
        (("data.source=[tokens, tokens]",), "names tokens twice"),
    ):
        refused = cli("train", "tiny", *texts, "--out", "runs/x")
        assert refused.code == 2
        assert said in refused.err
    (tokens / "tokens.json").unlink()
    incomplete = cli("train", "tiny", "data.source=tokens", "--out", "runs/x")
    assert incomplete.code == 2
    assert "without tokens.json, so they are not complete" in incomplete.err


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("tokens.json", "tokens.json is damaged, or of another version of gptcli"),
        ("tokenizer.json", "tokenizer.json is not the tokenizer that made the shards"),
    ],
)
def test_damaged_shards_are_refused_as_a_damaged_text_is(
    file: str, said: str, cli: Any, here: Path, tokens: Path
) -> None:
    """Damaged shards give exit code 2, as a damaged .gz file does: gptcli reads both before a run
    starts."""
    content = (tokens / file).read_bytes()
    (here / "text.txt.gz").write_bytes(b"\x1f\x8b\x08\x00 no gzip")
    text = cli("train", "tiny", "data.source=text.txt.gz", "--out", "runs/x")
    for damaged in (content[: len(content) // 2], b"", b"{}", content.replace(b"1", b"2", 1)):
        (tokens / file).write_bytes(damaged)
        refused = cli("train", "tiny", "data.source=tokens", *TINY, "--out", "runs/x")
        assert said in refused.err
        assert refused.code == text.code == 2
        assert not Path("runs/x").exists()


def test_a_damaged_block_fails_the_run(cli: Any, tokens: Path) -> None:
    """A damaged block gives exit code 1, because the run notices the damage only when it reads the
    block."""
    (shard,) = tokens.glob("*.bin")
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    failed = cli("train", "tiny", "data.source=tokens", *TINY, "--out", "runs/r")
    assert failed.code == 1
    assert f"{shard.name} is damaged: the block of bytes 0 to " in failed.err
    assert "hint: write the shards again" in failed.err
