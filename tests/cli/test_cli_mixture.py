"""Training on a mixture of texts: the share and the loss of each text, and errors with hints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

TINY = (
    "model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.block_size=16",
    "train.batch_size=4", "train.max_steps=6", "train.eval_every=3", "run.threads=1",
    "run.dtype=float32",
)  # fmt: skip
MIXED = ("data.source=[one.txt, more]", "data.weights=3,1")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    (folder / "more").mkdir(parents=True)
    (folder / "one.txt").write_text("a lot of words, and more of them. " * 40)
    for number in range(8):
        (folder / "more" / f"{number}.txt").write_text("0123456789 " * 8)
    monkeypatch.chdir(folder)
    return folder


def test_a_mixture_from_training_to_show(cli: Any) -> None:
    trained = cli("train", "tiny", *MIXED, *TINY, "--out", "runs/mixed")
    assert trained.code == 0, trained.err
    assert "the texts are mixed: one.txt 75 % (read 0.24 times), more 25 %" in trained.err
    assert "training on one.txt 75 %, more 25 %" in trained.err
    assert "val loss of each text  one.txt " in trained.err
    measured = json.loads(cli("eval", "runs/mixed", "--json").out)
    one, more = measured["texts"]
    assert (one["name"], one["share"], more["name"], more["share"]) == (
        "one.txt", 0.75, "more", 0.25,
    )  # fmt: skip
    assert measured["loss"] == pytest.approx(0.75 * one["loss"] + 0.25 * more["loss"])
    assert measured["tokens"] == one["tokens"] + more["tokens"]
    recorded = list(map(json.loads, Path("runs/mixed/metrics.jsonl").read_text().splitlines()))
    last = [record for record in recorded if record["kind"] == "eval"][-1]
    assert last["val_losses"] == pytest.approx(
        {each["name"]: each["loss"] for each in (one, more)}, abs=1e-4
    )
    shown = cli("show", "runs/mixed").out
    assert "mixed from one.txt 75 %, more 25 %" in shown
    assert "val loss of each text  one.txt " in shown
    (row,) = cli("runs", "runs/mixed", "--json").out.splitlines()
    assert json.loads(row)["text"] == "one.txt 75 %, more 25 %"
    batch = cli("inspect-batch", "runs/mixed", "1", "--json").out.splitlines()
    for line in map(json.loads, batch):
        digits = any(character.isdigit() for character in line["text"])
        assert line["source"] == ("more" if digits else "one.txt")


def test_the_hint_for_a_text_that_moved_works(cli: Any, here: Path) -> None:
    assert cli("train", "tiny", *MIXED, *TINY, "--out", "runs/mixed").code == 0
    Path("one.txt").rename("moved.txt")
    refused = cli("eval", "runs/mixed")
    assert refused.code == 2
    more = json.dumps((here / "more").as_posix())
    assert f"gptcli eval runs/mixed 'data.source=[PATH, {more}]'" in refused.err
    assert cli("eval", "runs/mixed", f"data.source=[moved.txt, {more}]").code == 0


def test_a_mixture_that_moved(cli: Any, here: Path) -> None:
    assert cli("train", "tiny", *MIXED, *TINY, "--out", "runs/mixed").code == 0
    before = json.loads(cli("eval", "runs/mixed", "--json").out)
    (here / "one.txt").rename(here / "other.txt")
    moved = cli("eval", "runs/mixed", "data.source=[other.txt, more]", "--json")
    assert moved.code == 0, moved.err
    assert json.loads(moved.out)["loss"] == before["loss"]


def test_another_text_from_a_mixture(cli: Any) -> None:
    assert cli("train", "tiny", *MIXED, *TINY, "--out", "runs/mixed").code == 0
    tuned = cli("train", "one.txt", "--from", "runs/mixed", "train.max_steps=2", "--out", "runs/t")
    assert tuned.code == 0, tuned.err
    assert "weights: null" in Path("runs/t/config.yaml").read_text()
    assert cli("eval", "runs/mixed", "--file", "one.txt", "--json").code == 0


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ("1", "data.weights has 1 weight, and data.source names 2 texts"),
        ("1,-2", "a weight is a number of at least 0; got `-2`"),
        ("0,0", "data.weights has no weight above 0"),
        ("half,half", "a weight is a number of at least 0; got `half`"),
        ("1,nan", "a weight is a number of at least 0; got `nan`"),
        ("1,true", "a weight is a number of at least 0; got `true`"),
        ("1,1e-9", "the weight 1e-09 is less than 1/100,000 of the sum of the weights"),
        ("[]", "data.weights has no weight above 0"),
    ],
)
def test_weights_that_cannot_be(weights: str, says: str, cli: Any) -> None:
    refused = cli("train", "tiny", MIXED[0], f"data.weights={weights}", "--out", "runs/x")
    assert refused.code == 2
    assert says in refused.err
    assert "data.weights=0.7,0.3" in refused.err
    assert not Path("runs/x").exists()
