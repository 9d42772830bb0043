"""The notes that gptcli prints about settings that work, but that users rarely want."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptcli.config_files import load_config, parse_config
from gptcli.files.shipped import shipped_configs
from gptcli.training.setting_notes import rank_notes, setting_notes
from tests.conftest import SMALL

FITS = ("train.max_steps=20", "run.device=cpu", "data.val_fraction=0.2", "model.block_size=16",
        "train.batch_size=4")  # fmt: skip


def notes(cli: Any, text: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> list[str]:
    monkeypatch.setattr("gptcli.training.dry_run.seconds_per_step", lambda *_: 0.01)
    outcome = cli("train", text, *SMALL, *FITS, *overrides, "--dry-run", "--json")
    assert outcome.code == 0, outcome.err
    found: list[str] = json.loads(outcome.out)["notes"]
    return found


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], None),
        (["train.warmup_steps=20"], "the warm-up (20 steps) is as long as the run (20 steps)"),
        (["train.warmup_steps=500"], "the warm-up (500 steps) is as long as the run"),
        (["train.max_steps=1", "train.warmup_steps=1"],
         "the warm-up (1 step) is as long as the run (1 step)"),
        (["train.warmup_steps=15"], "the warm-up (15 steps) reaches into the decay"),
        (["train.decay_fraction=1.0"], None),
        (["data.val_fraction=0.02"], "the validation part has only 4"),
        (["data.val_fraction=0.0"], None),
        (["train.batch_size=1000"], "a step reads 16,000 tokens, and the text has 1,"),
        (["train.grad_accum=100"], "a step reads 6,400 tokens"),
    ],
)  # fmt: skip
def test_notes(
    overrides: list[str],
    words: str | None,
    cli: Any,
    text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = notes(cli, text_file, monkeypatch, *overrides)
    assert len(found) == (words is not None), found
    if words is not None:
        assert found[0].startswith(words)


def test_a_training_prints_the_notes(cli: Any, text_file: Path, tmp_path: Path) -> None:
    words = ("train.max_steps=3", "train.warmup_steps=9", "--out", tmp_path / "r")
    outcome = cli("train", text_file, *SMALL, *words)
    assert outcome.code == 0
    assert "the warm-up (9 steps) is as long as the run (3 steps) or longer" in outcome.err


@pytest.mark.parametrize("name", shipped_configs())
def test_no_shipped_config_gets_a_note(name: str) -> None:
    from gptcli.training.schedule import resolve_warmup

    class Tokens:
        def __init__(self, count: int) -> None:
            self.count = count

        def __len__(self) -> int:
            return self.count

    class Text:
        train, val = Tokens(1_000_000), Tokens(110_000)

    config = load_config(name)
    train = config.train.model_copy(update={"warmup_steps": resolve_warmup(config.train)})
    assert setting_notes(config.model_copy(update={"train": train}), Text()) == []  # type: ignore[arg-type]


def test_a_second_run_of_the_same_name_is_announced(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text_file: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("chat.txt").write_text(text_file.read_text("utf-8"), encoding="utf-8")
    first = cli("train", "chat.txt", *SMALL, "train.max_steps=2")
    assert "exists already" not in first.err
    second = cli("train", "chat.txt", *SMALL, "train.max_steps=2")
    assert (
        "runs/chat exists already, so this run goes to runs/chat-2; to continue the first: "
        "gptcli train --resume --out runs/chat" in second.err
    )
    assert "training on chat.txt, to runs/chat-2" in second.err
    (tmp_path / "w").mkdir()
    monkeypatch.chdir(tmp_path / "w")
    third = cli("train", "../chat.txt", *SMALL, "train.max_steps=2", "--out", "r")
    assert "training on ../chat.txt, to r" in third.err


def test_a_rank_above_that_of_a_change_is_noted() -> None:
    """The change of a matrix cannot have a higher rank than the smaller side of the matrix.

    A higher `train.lora.rank` is allowed, as in peft, but gptcli prints a note."""

    def noted(*overrides: str) -> list[str]:
        words = ("model.n_head=4", "model.n_kv_head=1", "model.n_embd=64", *overrides)
        return rank_notes(parse_config("", [*words]))

    assert noted() == noted("train.lora.rank=16") == []
    (note,) = noted("train.lora.rank=17")
    assert note.startswith("train.lora.rank is 17, and a change of attn.key (16 x 64) has rank 16")
    assert "lower train.lora.rank to 16 or less" in note
    assert noted("train.lora.rank=64", "train.lora.targets=attn.query,mlp.up_proj") == []
    (note,) = noted("train.lora.rank=65", "train.lora.targets=mlp.up_proj")
    assert "mlp.up_proj (192 x 64) has rank 64 at most" in note
