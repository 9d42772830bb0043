"""`gptcli check-cache`, and `gptcli sample` with the learner's key/value cache."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gptcli.course.catalogue import exercise_named
from gptcli.course.solutions import solution

SMALL = ("model.n_layer=2", "model.n_head=2", "model.n_embd=16", "model.block_size=16",
         "train.batch_size=4", "train.max_steps=6", "run.threads=1", "run.dtype=float32",
         "train.sample_every=0", "train.eval_every=6", "run.device=cpu")  # fmt: skip
LENGTH = "return 0 if self.keys is None else self.keys.shape[2]"


@pytest.fixture(scope="module")
def text() -> str:
    return solution(exercise_named("cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(cli: Any, text: str, text_file: Path, folder: Path) -> Path:
    """A run folder, made once for all tests of this file.

    The run was trained with the solution of the exercise `cache`. Before each test, this fixture
    writes the solution to cache.py beside the run folder."""
    path = folder / "cache.py"
    path.write_text(text, encoding="utf-8")
    if not (folder / "run").exists():
        words = ("train", "course", f"data.source={text_file}", *SMALL, "--attention", path)
        outcome = cli(*words, "--out", folder / "run", "--json")
        assert outcome.code == 0, outcome.err
    return folder / "run"


def sampled(cli: Any, run: Path, *words: object) -> Any:
    return cli("sample", run, "--attention", run.parent / "cache.py", "-n", "40", "--seed", "3",
               *words)  # fmt: skip


def test_sampling_uses_the_cache_and_gives_the_same_text(cli: Any, text: str, run: Path) -> None:
    """The 40 new tokens do not fit into the context of 16 tokens, so gptcli has to clear the
    learner's cache while it samples."""
    spy = text.replace("        # Step 2.", "        print('holds', k.shape[2])\n        # Step 2.")
    (run.parent / "cache.py").write_text(spy, encoding="utf-8")
    outcome = sampled(cli, run, "--num-samples", "2")
    assert outcome.code == 0, outcome.err
    assert "your cache: " in outcome.err
    assert "times as fast, and the same text" in outcome.err
    lengths = [int(number) for number in re.findall(r"holds (\d+)", outcome.err)]
    assert max(lengths) == 16
    # The prompt is empty, and each of the two layers prints a length for each token.
    assert lengths[:4] == [1, 1, 2, 2]
    plain = text.replace("x, cache=None", "x").replace("if cache is not None", "if False")
    (run.parent / "cache.py").write_text(plain, encoding="utf-8")
    without = sampled(cli, run, "--num-samples", "2")
    assert without.code == 0, without.err
    assert without.out == outcome.out
    assert "your cache" not in without.err


def test_rounding_can_change_the_text_in_bfloat16(cli: Any, text: str, run: Path) -> None:
    wrong = text.replace(LENGTH, "return 0")  # changes the logits more than rounding does
    (run.parent / "cache.py").write_text(wrong, encoding="utf-8")
    outcome = sampled(cli, run, "--dtype", "bfloat16")
    assert outcome.code == 0, outcome.err
    assert "another text, perhaps because bfloat16 rounds; try --dtype float32" in outcome.err


def test_json_has_both_speeds(cli: Any, run: Path) -> None:
    outcome = sampled(cli, run, "--json")
    assert outcome.code == 0, outcome.err
    value = json.loads(outcome.out)
    assert value["same_text_without_cache"] is True
    assert value["tokens_per_second_without_cache"] > 0


WRONG = {
    "positions begin at 0": (LENGTH, "return 0", 1, "your cache changes the text"),
    "mask": ("diagonal=S - T + 1", "diagonal=1", 1, "your cache changes the text"),
    "stops": ("dim=2", "dim=5", 1, "sampling with your cache stops: IndexError"),
    "unwritten": (LENGTH, 'raise NotImplementedError("step 3: positions")', 1, "cache.py:38: "),
    "no clear": ("def clear", "def _clear", 2, "your `KeyValueCache` has no method `clear`"),
    "no length": ("def length", "def _length", 2, "your `KeyValueCache` has no `length`"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_cache_is_an_error(cli: Any, text: str, run: Path, name: str) -> None:
    old, new, code, says = WRONG[name]
    assert old in text
    (run.parent / "cache.py").write_text(text.replace(old, new), encoding="utf-8")
    outcome = sampled(cli, run)
    assert outcome.code == code
    assert says in " ".join(outcome.err.split())
    assert "hint: see gptcli check-cache" in outcome.err
    assert "Traceback" not in outcome.err


def test_check_cache(cli: Any, text: str, tmp_path: Path) -> None:
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    right.write_text(text, encoding="utf-8")
    wrong.write_text(text.replace(LENGTH, "return 0"), encoding="utf-8")
    outcome = cli("check-cache", right, wrong, "--json")
    assert outcome.code == 1
    values = [json.loads(line) for line in outcome.out.splitlines()]
    assert [value["ok"] for value in values] == [True, False]
    assert values[1]["first_wrong_step"] == 3
    outcome = cli("check-cache", right)
    assert outcome.code == 0
    assert f"next: gptcli train course --attention {right}" in outcome.out
    assert f"gptcli sample --attention {right}" in outcome.out
    assert cli("check-cache", tmp_path / "none.py").code == 2
