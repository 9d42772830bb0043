"""Errors and hints for arguments of the wrong kind, such as a text instead of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def here(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that becomes the current folder. It holds the run runs/mine and the text my.txt."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(trained, target_is_directory=True)
    (tmp_path / "my.txt").write_text("KING", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["sample", "some text"], "no run named `some text`",
         "to continue a text: gptcli sample --prompt 'some text'"),
        (["sample", "Où es-tu ?"], "no run named `Où es-tu ?`",
         "to continue a text: gptcli sample --prompt 'Où es-tu ?'"),
        (["sample", "a\nb"], "no run named `a b`",
         'to continue a text: gptcli sample --prompt "$TEXT"'),
        (["inspect-batch", "mine", "5", "a", "b"], "`a`: one word too many",
         "write gptcli inspect-batch RUN STEP [data.source=NEW] [data.val_source=NEW]"),
        (["eval", "mine", "b"], "`b`: give only one run; `mine` is already one",
         "leave one of them out"),
        (["sample", "some", "text here"], "`text here` is one word too many",
         "to continue a text: gptcli sample --prompt 'some text here'"),
        (["sample", "mine", "my", "text"], "`my` is one word too many",
         "to continue a text: gptcli sample mine --prompt 'my text'"),
        (["sample", "word " * 20, "end"], "`end` is one word too many",
         'to continue a text: gptcli sample --prompt "$TEXT"'),
        (["sample", "my.txt"], "my.txt is a file, not a run",
         "to continue the text in it: gptcli sample --prompt-file my.txt; "
         "to train on it: gptcli train my.txt"),
        (["eval", "my.txt"], "my.txt is a file, not a run",
         "to measure the loss of the newest run on it: gptcli eval --file my.txt; "
         "to train on it: gptcli train my.txt"),
        (["sample", "runs/mine/checkpoints/step-00000040"],
         "runs/mine/checkpoints/step-00000040 is inside the run runs/mine",
         "write gptcli sample runs/mine --checkpoint 40"),
        (["eval", "mine/checkpoints/best"], "mine/checkpoints/best is inside the run runs/mine",
         "write gptcli eval runs/mine --checkpoint best"),
        (["score", "runs/mine/config.yaml", "my.txt"],
         "runs/mine/config.yaml is inside the run runs/mine", "write gptcli score runs/mine"),
        (["sample", "runs"], "runs is a folder of 1 run, not a run",
         "name one of them, for example the newest: gptcli sample runs/mine"),
        (["sample", "temp=0.5"], "no run named `temp=0.5`",
         "write an option with two dashes: --temperature 0.5"),
        (["sample", "PROMPT=x"], "no run named `PROMPT=x`",
         "write an option with two dashes: --prompt x"),
        (["sample", "min"], "no run named `min`", "did you mean `mine`?"),
        (["score", "mine"], "no file named `mine`", "give a file, too: gptcli score mine FILE"),
        (["score", "runs/mine"], "runs/mine is a folder, not a text",
         "give a file, too: gptcli score runs/mine FILE"),
        (["score", "some text"], "no file named `some text`",
         "score reads the text from a file"),
        (["train", "--from", "my.txt"], "my.txt is a file, not a run",
         "to train on it: gptcli train my.txt"),
        (["train", "resume"], "no config or text file named `resume`",
         "write the option with two dashes: gptcli train --resume"),
        (["train", "my.txt", "n_layer", "3"], "no config or text file named `n_layer`",
         "write a setting as KEY=VALUE, without blanks: model.n_layer=..."),
        (["train", "my.txt", "lr"], "no config or text file named `lr`",
         "write a setting as KEY=VALUE, without blanks: train.learning_rate=..."),
        (["train", "mine"], "mine is a run, not a text",
         "to continue it: gptcli train --resume --out runs/mine; to start from its weights: "
         "gptcli train TEXT --from runs/mine"),
        (["train", "runs/mine/checkpoints"], "runs/mine/checkpoints is inside a run, not a text",
         "to continue it: gptcli train --resume --out runs/mine; to start from its weights: "
         "gptcli train TEXT --from runs/mine"),
        (["train", "Once upon a time there was"],
         "no shipped text, file or folder is named `Once upon a time there was`",
         "to train on this text itself, save it in a file and name the file"),
    ],
)  # fmt: skip
def test_the_error_names_the_right_form(
    words: list[str], message: str, hint: str, here: Path, cli: Any
) -> None:
    outcome = cli(*words)
    assert outcome.code == 2
    assert outcome.err == f"error: {message}\n\nhint: {hint}\n"
    assert sorted(path.name for path in here.iterdir()) == ["my.txt", "runs"]


def test_the_form_that_a_hint_names_works(here: Path, cli: Any) -> None:
    assert cli("sample", "runs/mine", "--checkpoint", "40", "-n", "3").code == 0
    assert cli("sample", "--prompt-file", "my.txt", "-n", "3").out.startswith("KING")
    assert cli("eval", "--file", "my.txt").code == 0


@pytest.mark.long_series
@pytest.mark.parametrize("text", ["a long text " * 500, "x" * 300], ids=["words", "one word"])
@pytest.mark.parametrize(
    "words",
    [
        ("eval",), ("sample",), ("show",), ("score",), ("eval", "mine"),
        ("inspect-batch", "mine", 3),
        ("train", "my.txt", "--from"), ("train", "my.txt", "--tokenizer"),
        ("tokenizer", "encode", "a", "--tokenizer"), ("eval", "mine", "--tokenizer"),
        ("sample", "--prompt-file"), ("sample", "mine", "--prompt-file"),
        ("train", "my.txt", "--attention"), ("train", "--resume", "--out"),
    ],
)  # fmt: skip
def test_a_long_text_is_cut_off_in_the_error(
    words: tuple[object, ...], text: str, here: Path, cli: Any
) -> None:
    outcome = cli(*words, text)
    assert outcome.code == 2
    message = outcome.err.splitlines()[0]
    assert text[:40] in message
    assert "..." in message
    assert text[:70] not in outcome.err
    assert len(outcome.err) < 400


def test_a_long_text_is_not_hinted_as_the_prompt(here: Path, cli: Any) -> None:
    outcome = cli("sample", "a long text " * 500)
    assert outcome.err.endswith('hint: to continue a text: gptcli sample --prompt "$TEXT"\n')


def test_a_long_path_stays_whole(here: Path, cli: Any) -> None:
    path = f"some/{'folder' * 20}/run"
    assert f"no run named `{path}`" in cli("eval", path).err


@pytest.mark.parametrize("setting", ["model.n_layer=3 model.n_embd=16", "model={n_layer: 3}"])
def test_from_with_another_network_names_the_settings(setting: str, here: Path, cli: Any) -> None:
    words = [setting] if "{" in setting else setting.split()
    for more in ([], ["--dry-run"]):
        outcome = cli("train", "my.txt", "--from", "mine", "model.n_head=2", *words, *more)
        assert outcome.code == 2
        message, _, hint = outcome.err.splitlines()
        assert "--from takes the network of runs/mine" in message
        assert "model.n_layer 3 (in the run: 1)" in message
        keys = "model.n_layer" if "{" in setting else "model.n_layer, model.n_embd"
        assert hint == f"hint: leave out {keys}; or leave out --from, to train a new model"
    assert [path.name for path in (here / "runs").iterdir()] == ["mine"]


def test_a_word_too_many_beside_a_wrong_option(cli: Any) -> None:
    outcome = cli("show", "a", "b", "c", "--nope")
    assert outcome.code == 2
    assert "no such option: --nope" in outcome.err
    assert "`c` is one word too many" in outcome.err
    assert "Traceback" not in outcome.err
