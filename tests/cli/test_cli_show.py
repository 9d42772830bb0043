"""`gptcli show RUN` shows a run from its files, and `gptcli show RUN RUN` compares two runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture
def runs(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `runs` with the runs `one` and `two`.

    Run `two` has another n_layer and lower validation losses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "40")
    folder = tmp_path / "runs"
    for name in ("one", "two"):
        shutil.copytree(trained, folder / name)
    config = yaml.safe_load((folder / "two" / "config.yaml").read_text("utf-8"))
    config["model"]["n_layer"] = 3
    (folder / "two" / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    lines = (folder / "two" / "metrics.jsonl").read_text("utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        if record["kind"] == "eval":
            record["val_loss"] -= 0.5
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "two" / "metrics.jsonl").write_text(text, "utf-8")
    return folder


def best(run: Path) -> float:
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    return min(json.loads(line).get("val_loss", 1e9) for line in lines)


def test_a_run_is_shown_as_it_ended(cli: Any, runs: Path) -> None:
    outcome = cli("show", "one")
    assert outcome.code == 0, outcome.err
    for fact in ("speeches.txt → ", "runs/one", "modern, ", "char, ", "┤", "o val loss",
                 "sample at step", "done at step 40 of 40", "loss "):  # fmt: skip
        assert fact in outcome.out, fact
    assert f"best {best(runs / 'one'):.4f} at step " in outcome.out
    assert "\x1b" not in outcome.out
    assert outcome.err == ""


def test_the_newest_run_is_the_default(cli: Any, runs: Path) -> None:
    (runs / "two" / "config.yaml").touch()
    assert "runs/two" in cli("show").out


def test_two_runs_are_compared(cli: Any, runs: Path) -> None:
    outcome = cli("show", "one", "runs/two")
    assert outcome.code == 0, outcome.err
    out = outcome.out
    assert "o val loss of one   x val loss of two" in out
    assert re.search(r"^ +one +two$", out, re.MULTILINE)
    assert re.search(r"^ model\.n_layer +1 +3$", out, re.MULTILINE)
    assert "model.n_embd" not in out, "only settings that differ"
    assert re.search(r"^ status +done +done$", out, re.MULTILINE)
    assert re.search(r"^ steps +40 of 40 +40 of 40$", out, re.MULTILINE)
    a, b = best(runs / "one"), best(runs / "two")
    assert f"two is better by {a - b:.4f} (best validation loss, nats per token)" in out


def test_runs_that_cannot_be_compared_say_why(cli: Any, runs: Path) -> None:
    path = runs / "two" / "tokenizer.json"
    path.write_bytes(path.read_bytes() + b" ")
    assert "the tokenizers differ, so losses per token cannot be compared" in (
        cli("show", "one", "two").out
    )


def test_runs_of_the_same_name_show_their_folders(cli: Any, runs: Path) -> None:
    shutil.copytree(runs / "one", runs.parent / "old" / "one")
    out = cli("show", "one", "old/one").out
    assert re.search(r"^ +runs/one +old/one$", out, re.MULTILINE)
    assert "both runs have the same best validation loss" in out


def test_a_run_that_was_killed_and_one_without_steps(cli: Any, runs: Path) -> None:
    (runs / "one" / "run.json").unlink()
    (runs / "one" / "metrics.jsonl").write_text(
        "".join((runs / "one" / "metrics.jsonl").read_text("utf-8").splitlines(True)[:10])
    )
    out = cli("show", "one").out
    assert "stopped at step 1" in out
    assert " of 40" in out
    shutil.rmtree(runs / "one" / "checkpoints")
    for name in ("metrics.jsonl", "samples.txt"):
        (runs / "one" / name).unlink()
    outcome = cli("show", "one")
    assert (outcome.code, outcome.out.splitlines()[0]) == (0, "not begun at step 0 of 40")
    assert cli("show", "one", "two").code == 0


def test_a_new_plan_is_shown(cli: Any, runs: Path) -> None:
    with (runs / "one" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "plan", "step": 20, "max_steps": 60}\n')
    # `show` ignores a record of the kind `plan` if the run has no time limit.
    assert "done at step 40 of 40" in cli("show", "one").out
    config = runs / "one" / "config.yaml"
    config.write_text(config.read_text("utf-8").replace("minutes: null", "minutes: 1"), "utf-8")
    assert "done at step 40 of 60" in cli("show", "one").out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["onne"], "no run named `onne`"),
        (["one", "twoo"], "no run named `twoo`"),
        (["one", "runs/one"], "runs/one cannot be compared with itself"),
    ],
)
def test_wrong_names(words: list[str], message: str, cli: Any, runs: Path) -> None:
    outcome = cli("show", *words)
    assert outcome.code == 2
    assert outcome.out == ""
    assert f"error: {message}" in outcome.err
    assert "\n\nhint: " in outcome.err


def test_show_does_not_import_torch(runs: Path) -> None:
    code = (
        "import sys\n"
        "sys.argv = ['gptcli', 'show', 'one', 'two']\n"
        "from gptcli.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('TORCH', 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "TORCH False"
