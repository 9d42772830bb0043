"""Runs of an earlier version can still be sampled, evaluated, scored and resumed.

tests/old_runs/ holds the runs, and what the commands of the earlier version printed about them.
tests/old_runs/record.py recorded them. Later, gptcli changed: now a full window moves by half of
its length. So texts and scores longer than the context were recorded again for the two gpt2 runs.

The text of the runs now has another path than the one in their config.yaml. `train --resume` gets
the new path as `data.source=NEW`. `eval` and `inspect-batch` read the path in config.yaml, so the
tests write the new path there.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

OLD_RUNS = Path(__file__).parent / "old_runs"
TEXT = OLD_RUNS / "speeches.txt"
NAMES = ("modern-char-muon", "gpt2-bpe-adamw", "modern-byte-adamw", "gpt2-user-parts")
MACHINE = ("--device", "cpu", "--dtype", "float32", "--threads", "1")
# The largest allowed differences from the recorded results. (Other processors add numbers
# in another order.) LOSS is for results from recorded weights, WEIGHTS for results after twenty
# more steps.
LOSS, WEIGHTS = 2e-5, 2e-4


def expected(name: str) -> dict[str, Any]:
    """The recorded output of gptcli about the run `name`."""
    found: dict[str, Any] = json.loads((OLD_RUNS / name / "expected.json").read_text("utf-8"))
    return found


def parts(name: str, *only: str) -> list[str]:
    """Options such as `--mlp FILE`, one for each Python file with a user's part in the run `name`.

    `only` can limit the options to some files."""
    files = sorted((OLD_RUNS / name).glob("*.py"))
    return [
        word
        for path in files
        if not only or path.stem in only
        for word in (f"--{path.stem}", str(path))
    ]


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def run(name: str, tmp_path: Path) -> Path:
    """A copy of a recorded run."""
    return Path(shutil.copytree(OLD_RUNS / name / "run", tmp_path / name))


@pytest.fixture
def moved(run: Path) -> Path:
    """A copy of a recorded run. Its config.yaml has the path of the text on this machine."""
    path = run / "config.yaml"
    old = f"  source: /texts/{TEXT.name}\n"
    config = path.read_text("utf-8")
    assert old in config
    path.write_text(config.replace(old, f"  source: {json.dumps(str(TEXT))}\n"), encoding="utf-8")
    return run


def test_every_recorded_run_is_tested() -> None:
    assert {path.parent.name for path in OLD_RUNS.glob("*/expected.json")} == set(NAMES)


@pytest.mark.parametrize("which", ["last", "best"])
def test_an_old_checkpoint_writes_and_scores_as_it_did(
    which: str, name: str, moved: Path, cli: Any
) -> None:
    goal = expected(name)[which]
    chosen = ("--checkpoint", which, *MACHINE, *parts(name))
    sample = ("--temperature", "0", "--max-new-tokens", "60", "--prompt", "KING:", "--json")
    outcome = cli("sample", moved, *sample, *chosen)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["text"] == goal["text"]

    outcome = cli("eval", moved, "--json", *chosen)
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert (result["checkpoint"], result["tokens"]) == (goal["step"], goal["tokens"])
    assert result["loss"] == pytest.approx(goal["loss"], abs=LOSS)

    outcome = cli("score", moved, TEXT, "--json", *chosen)
    assert outcome.code == 0, outcome.err
    score = json.loads(outcome.out)
    assert score["tokens"] == goal["score"]["tokens"]
    assert score["log_probability"] == pytest.approx(goal["score"]["log_probability"], rel=LOSS)
    first = score["scores"][: len(goal["score"]["first"])]
    assert [[token["id"], token["text"]] for token in first] == [
        token[:2] for token in goal["score"]["first"]
    ]
    assert [token["log_probability"] for token in first] == pytest.approx(
        [token[2] for token in goal["score"]["first"]], abs=10 * LOSS
    )


def test_an_old_run_resumes_to_the_same_weights(name: str, run: Path, cli: Any) -> None:
    goal = expected(name)["resumed"]
    outcome = cli(
        "train", f"data.source={TEXT}", "--resume", "--out", run, "--json", *parts(name)
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    for key in ("resumed_from", "steps", "tokens"):
        assert result[key] == goal[key], key
    for key in ("train_loss", "val_loss", "best_val_loss"):
        assert result[key] == pytest.approx(goal[key], abs=WEIGHTS), key
    weights = load_file(run / "checkpoints" / f"step-{goal['steps']:08d}" / "model.safetensors")
    recorded = load_file(OLD_RUNS / name / "resumed.safetensors")
    assert weights.keys() == recorded.keys()
    for key, tensor in recorded.items():
        difference = float((weights[key] - tensor).abs().max())
        assert difference <= WEIGHTS, f"{key} differs by {difference}"


def test_the_files_of_an_old_run_are_shown_as_they_were(name: str, moved: Path, cli: Any) -> None:
    outcome = cli("runs", moved.parent)
    assert outcome.code == 0, outcome.err
    assert name in outcome.out
    assert "interrupted" in outcome.out
    tokenizer = parts(name, "tokenizer")
    outcome = cli("inspect-batch", moved, 40, *tokenizer)
    assert outcome.code == 0, outcome.err
    assert outcome.out == expected(name)["batch"]
