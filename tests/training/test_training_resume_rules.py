"""What --resume says about keys that the user changes. Messages write values as YAML does. A value
that is equal but written in another way is no change."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from gptcli.config import Config
from gptcli.config_files import dump_config, parse_config
from gptcli.errors import GptcliError
from gptcli.training.consistency import refuse_other_network, same_config
from gptcli.training.resume_rules import config_for_resume

RUN = Path("runs/r")
BASE = (
    "data.source=[a.txt, b.txt, c.txt]",
    "data.weights=3,1,0",
    "model.dropout=0.1",
    "train.lora.rank=4",
    "train.learning_rate=0.01",
)


def config(*overrides: str) -> Config:
    return parse_config("", [*BASE, *overrides])


def asked(*overrides: str) -> tuple[Config, list[str]]:
    """Resume a run of the config BASE with these overrides; return the config and the notes."""
    stored = config()
    wanted = parse_config(dump_config(stored), list(overrides))
    return config_for_resume(RUN, stored, wanted, False, 5)


@pytest.mark.parametrize(
    "word",
    [
        "data.weights=6,2,0",
        "data.weights=0.75,0.25,0",
        "data.weights=[0.3, 0.1, 0]",
        "train.lora.targets=attention,feed_forward",
        "train.lora={rank: 4}",
    ],
)
def test_the_same_in_other_words_is_no_change(word: str) -> None:
    """The run keeps the spelling of the value in its config.yaml, so that the resumed run ends with
    the same bytes."""
    assert asked(word) == (config(), [])


@pytest.mark.parametrize(
    ("word", "said", "hinted"),
    [
        ("data.weights=3,2,0", "data.weights: 3.0, 1.0, 0.0 -> 3.0, 2.0, 0.0", "[3.0, 2.0, 0.0]"),
        ("data.weights=null", "data.weights: 3.0, 1.0, 0.0 -> null", "data.weights=null"),
        ("train.lora.rank=8", "train.lora.rank: 4 -> 8", " train.lora.rank=8"),
        ("train.lora.targets=attention", "targets: all -> attention", "targets=[attention]"),
        ("train.lora=null", "{rank: 4, alpha: 16.0, dropout: 0.0, targets: [all]", "lora=null"),
        ("train.optimizer=adamw", "train.optimizer: muon -> adamw", " train.optimizer=adamw"),
        ("data.skip_undecodable=true", "skip_undecodable: false -> true", "decodable=true"),
        ("data.field=words", "data.field: null -> words", "data.field=words"),
    ],
)
def test_a_refused_change_is_written_as_in_yaml(word: str, said: str, hinted: str) -> None:
    with pytest.raises(GptcliError) as refused:
        asked(word)
    assert said in refused.value.message
    assert hinted in refused.value.hint
    assert not re.search(r"\b(None|True|False)\b|[\[{]['\"]", refused.value.message)
    # The command in the hint gives the same config as the user's override.
    words = shlex.split(refused.value.hint.partition("gptcli train --from ")[2])[1:]
    stored = dump_config(config())
    assert parse_config(stored, words) == parse_config(stored, [word])


def test_several_refused_changes_are_told_apart() -> None:
    with pytest.raises(GptcliError) as refused:
        asked("data.weights=3,2,0", "train.seed=3")
    assert "-> 3.0, 2.0, 0.0; train.seed: 1337 -> 3" in refused.value.message


def test_notes_are_written_as_in_yaml() -> None:
    _, notes = asked("run.loggers=csv,wandb", "train.patience=3", "run.compile=true")
    assert "run.loggers is now csv, wandb" in notes
    assert "train.patience is now 3" in notes
    assert any(note.startswith("run.compile is now true: ") for note in notes)


def test_an_edited_config_is_compared_in_the_same_words() -> None:
    meta = {"config": config().model_dump()}
    with pytest.raises(GptcliError) as refused:
        same_config(RUN, meta, config("train.lora.rank=8", "data.weights=1,1,1"))
    assert "train.lora.rank 8 (checkpoint: 4)" in refused.value.message
    assert "data.weights 1.0, 1.0, 1.0 (checkpoint: 3.0, 1.0, 0.0)" in refused.value.message
    (note,) = same_config(RUN, meta, config("run.loggers=csv"))
    assert note.endswith("run.loggers is csv; the checkpoint has none")


@pytest.mark.parametrize("limit", ["train.minutes=2", "train.max_epochs=5"])
def test_a_run_that_is_killed_after_extend_keeps_its_checkpoints(limit: str) -> None:
    """--extend writes config.yaml before the next checkpoint."""
    stored = config(limit, "train.max_steps=100", "train.warmup_steps=3")
    wanted = config(limit, "train.max_steps=200", "train.warmup_steps=3")
    extended, _ = config_for_resume(RUN, stored, wanted, True, 50)
    assert (extended.train.minutes, extended.train.max_epochs) == (None, None)
    (note,) = same_config(RUN, {"config": stored.model_dump()}, extended)
    assert note.endswith("train.max_steps is 200; the checkpoint has 100")


@pytest.mark.parametrize("limit", ["train.minutes", "train.max_epochs"])
def test_an_edited_limit_is_refused(limit: str) -> None:
    meta = {"config": config(f"{limit}=5", "train.max_steps=100").model_dump()}
    with pytest.raises(GptcliError, match="is not the config of this checkpoint"):
        same_config(RUN, meta, config(f"{limit}=6", "train.max_steps=100"))
    if limit == "train.max_epochs":
        with pytest.raises(GptcliError, match=r"max_epochs null \(checkpoint: 5.0\)"):
            same_config(RUN, meta, config("train.max_steps=100"))


@pytest.mark.parametrize(
    ("limit", "planned"),
    [("train.minutes=2", 5000), ("train.minutes=2", 50), ("train.max_epochs=5", 50)],
)
def test_the_config_of_the_run_resumes_it_after_its_steps_were_planned(
    limit: str, planned: int
) -> None:
    """gptcli changed max_steps. The user did not."""
    stored = config(limit, f"train.max_steps={planned}")
    wanted = config(limit, "train.max_steps=1000")
    asked = 1000 if limit.startswith("train.max_epochs") else None
    assert config_for_resume(RUN, stored, wanted, False, 5, asked=asked) == (stored, [])
    edited = config("train.max_steps=1000")
    for other, explicit in ((wanted, frozenset({"train.max_steps"})), (edited, frozenset())):
        with pytest.raises(GptcliError, match=f"train.max_steps: {planned} -> 1000"):
            config_for_resume(RUN, stored, other, False, 5, explicit, asked=asked)


def test_more_steps_are_refused_although_max_epochs_is_the_same() -> None:
    """train.max_epochs has not lowered the number of steps, or has lowered another number."""
    stored = config("train.max_epochs=5", "train.max_steps=50")
    for asked in (None, 70):
        with pytest.raises(GptcliError, match=r"train\.max_steps: 50 -> 1000"):
            config_for_resume(
                RUN, stored, config("train.max_epochs=5", "train.max_steps=1000"), False, 5,
                asked=asked,
            )  # fmt: skip


def test_another_network_is_written_in_the_same_words() -> None:
    with pytest.raises(GptcliError) as refused:
        refuse_other_network(
            config("model.tied_head=true"), RUN, {"model": config().model.model_dump()}
        )
    assert "model.tied_head true (checkpoint: null)" in refused.value.message
