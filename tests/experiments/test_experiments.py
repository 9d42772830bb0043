"""Comparisons with several seeds, sweeps and intervals: the statistics, the grid, resuming, and
what the commands print."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest

from gptcli.cli.compared import shortened
from gptcli.cli.sweep import _config
from gptcli.errors import GptcliError
from gptcli.experiments.grid import grid_of, split_values
from gptcli.experiments.intervals import difference_of, mean_and_interval, t_975, verdict
from gptcli.experiments.trials import best_step_now, is_finished
from gptcli.training.run_commands import is_free
from tests.conftest import SMALL
from tests.pages.browser import opened

SHORT = ("train.max_steps=4", "train.eval_every=2", "model.n_embd=8", "model.n_head=2")


@pytest.fixture
def two(cli: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `runs` with the runs `one` and `two`.

    Each has four steps, and their learning rates differ."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    for name, rate in (("one", 0.02), ("two", 0.001)):
        outcome = cli("train", "tiny", "--out", f"runs/{name}", f"data.source={text_file}", *SMALL,
                      *SHORT, f"train.learning_rate={rate}")  # fmt: skip
        assert outcome.code == 0, outcome.err
    return tmp_path / "runs"


def lines_of(out: str) -> list[Any]:
    return [json.loads(line) for line in out.splitlines()]


# ---- statistics ----


def test_the_quantiles_are_those_of_student() -> None:
    """The integral of the density of Student's t from 0 to the quantile of 97.5 % is 0.475."""
    for n in (1, 2, 5, 12, 30):
        scale = math.gamma((n + 1) / 2) / (math.sqrt(n * math.pi) * math.gamma(n / 2))
        width = t_975(n) / 20_000
        area = sum(
            scale * (1 + ((i + 0.5) * width) ** 2 / n) ** (-(n + 1) / 2) for i in range(20_000)
        )
        assert area * width == pytest.approx(0.475, abs=5e-5)
    assert t_975(1000) == t_975(30)


def test_intervals_hold_the_truth_in_95_of_100() -> None:
    """If two configs are equally good, about 5 % of 2,000 comparisons find a difference, whether
    runs are compared in pairs or not."""
    draw = random.Random(1)
    for paired in (True, False):
        wrong = 0
        for _ in range(2000):
            luck = [draw.gauss(0, 1) for _ in range(8)]
            a = {
                i: (luck[i] if paired else draw.gauss(0, 1)) + draw.gauss(0, 0.3) for i in range(4)
            }
            b = (
                {i: luck[i] + draw.gauss(0, 0.3) for i in range(4)}
                if paired
                else {i: luck[i] + draw.gauss(0, 0.3) for i in range(4, 8)}
            )
            found = difference_of(a, b)
            assert found.paired == paired
            wrong += bool(found.is_more_than_noise)
        assert 60 <= wrong <= 140


def test_pairs_remove_the_luck_that_seeds_share() -> None:
    a = {1: 1.0, 2: 2.0, 3: 3.0}
    b = {1: 0.9, 2: 1.91, 3: 2.89}
    found = difference_of(a, b)
    assert found.difference == pytest.approx(-0.1)
    assert found.is_more_than_noise
    assert "b is better than a by 0.1000" in verdict("a", "b", found)
    apart = difference_of(a, {4: 0.9, 5: 1.91, 6: 2.89})
    assert not apart.is_more_than_noise
    assert verdict("a", "b", apart).startswith("no difference beyond noise")


def test_one_run_has_no_interval() -> None:
    found = difference_of({1: 2.0}, {1: 1.5})
    assert (found.difference, found.interval) == (-0.5, None)
    assert "--seeds" in verdict("a", "b", found)
    mean, interval = mean_and_interval([1.0, 2.0, 4.0])
    assert interval is not None
    half = 4.303 * statistics.stdev([1, 2, 4]) / 3**0.5
    assert interval == pytest.approx((mean - half, mean + half))


# ---- the grid ----


def test_the_grid_has_all_combinations() -> None:
    points, shared = grid_of(["a.x=1,2", "b.y=[3,4],[5]", "c.z=7"])
    assert shared == ["c.z=7"]
    assert [point.overrides for point in points] == [
        ("a.x=1", "b.y=[3,4]"),
        ("a.x=1", "b.y=[5]"),
        ("a.x=2", "b.y=[3,4]"),
        ("a.x=2", "b.y=[5]"),
    ]
    assert len({point.name for point in points}) == 4
    assert split_values("'a,b',c") == ["'a,b'", "c"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.x=1"], "two values or more"),
        (["a.x"], "not of the form KEY=V1,V2"),
        (["a.x=1,1"], "twice"),
        (["a.x=1,"], "empty"),
        (["a.x=1,2", "a.x=3,4"], "given twice"),
        (["a.x=" + ",".join(map(str, range(201)))], "201 runs"),
    ],
)
def test_wrong_grids(words: list[str], message: str) -> None:
    with pytest.raises(GptcliError, match=message):
        grid_of(words)


# ---- the commands ----


def test_two_runs_are_compared(two: Path, cli: Any, tmp_path: Path) -> None:
    outcome = cli("compare", "one", "two", "--html", "ab.html")
    assert outcome.code == 0, outcome.err
    for fact in (
        "o one",
        "x two",
        "train.learning_rate",
        "0.02",
        "A B --seeds 3` can tell",
    ):
        assert fact in outcome.out, fact
    assert "model.n_layer" not in outcome.out  # the runs do not differ in n_layer
    text = (tmp_path / "ab.html").read_text("utf-8")
    assert "train.learning_rate" in text
    assert cli("compare", "one", "two", "--html", "ab.html").code == 2


def test_seeds_give_an_interval_and_are_trained_once(two: Path, cli: Any) -> None:
    outcome = cli("compare", "one", "two", "--seeds", 3, "--json")
    assert outcome.code == 0, outcome.err
    assert "4 runs trained, 0 were already finished" in outcome.err
    (value,) = lines_of(outcome.out)
    assert (value["seeds"], value["paired"]) == (3, True)
    a, b = (value["losses"][arm] for arm in "ab")
    assert list(a) == list(b) == ["1337", "1338", "1339"]
    assert value["difference"] == pytest.approx(statistics.fmean(b[s] - a[s] for s in a))
    assert value["interval"][0] < value["difference"] < value["interval"][1]
    again = cli("compare", "one", "two", "--seeds", 3, "--json")
    assert "0 runs trained, 4 were already finished" in again.err
    assert lines_of(again.out) == [value]
    shutil.rmtree(two / "two-seeds" / "1338")
    found = "1 run trained, 3 were already finished"
    assert found in cli("compare", "one", "two", "--seeds", 3).err


def test_a_diverged_run_is_not_counted_as_finished(two: Path, cli: Any) -> None:
    assert cli("compare", "one", "two", "--seeds", 2).code == 0
    status = two / "two-seeds" / "1338" / "run.json"
    text = status.read_text("utf-8")
    assert '"stopped": "done"' in text
    status.write_text(text.replace('"stopped": "done"', '"stopped": "diverged"'), "utf-8")
    again = cli("compare", "one", "two", "--seeds", 2)
    assert "0 runs trained, 1 was already finished" in again.err
    assert "two with seed 1338 diverged" in again.err


def test_the_warning_about_chance_is_always_shown() -> None:
    """With seven configs there are six verdicts and the warning, with nine there are eight."""
    for pairs in (3, 6, 8):
        said = [f"verdict {i}" for i in range(pairs)]
        shown = shortened([*said, "warning"], pairs)
        assert shown[: min(pairs, 6)] == said[:6]
        assert shown[-1] == "warning"
        assert len(shown) == {3: 4, 6: 7, 8: 8}[pairs]
    assert "2 more verdicts" in shown[6]
    assert shortened([f"verdict {i}" for i in range(7)], 7)[6] == "1 more verdict: --html or --json"
    assert shortened(["the texts differ"], 8) == ["the texts differ"]


def test_a_fine_tune_starts_from_its_base_again(two: Path, cli: Any) -> None:
    """compare --seeds and sweep train a fine-tuned run from the weights of its base."""
    outcome = cli("train", "--from", "one", "--out", "runs/tuned", "train.max_steps=2")
    assert outcome.code == 0, outcome.err
    assert cli("compare", "one", "tuned", "--seeds", 2).code == 0
    assert cli("sweep", "tuned", "train.weight_decay=0,0.1").code == 0
    for run in ("tuned-seeds/1338", "tuned-sweep/weight_decay=0"):
        start = json.loads((two / run / "run.json").read_text("utf-8"))["started_from"]
        assert Path(start["run"]) == (two / "one").absolute()
    assert "started_from" not in (two / "one-seeds" / "1338" / "run.json").read_text("utf-8")
    status = two / "tuned-seeds" / "1338" / "run.json"
    status.write_text(status.read_text("utf-8").replace("started_from", "other"), "utf-8")
    again = cli("compare", "one", "tuned", "--seeds", 2)
    assert again.code == 2
    assert "did not start from the same weights" in again.err


def test_all_seeds_of_a_fine_tune_start_from_the_same_step(two: Path, cli: Any) -> None:
    """If the best step of the base changes, other seeds would start from other weights."""
    for name in ("tuned", "other"):
        words = ("--from", "one", "--out", f"runs/{name}", "train.max_steps=2")
        assert cli("train", *words).code == 0
    sweep = ("sweep", "tuned", "train.weight_decay=0,0.1")
    assert cli("compare", "tuned", "other", "--seeds", 2).code == 0
    assert cli(*sweep).code == 0
    plan = two / "tuned-sweep" / "sweep.json"
    assert json.loads(plan.read_text("utf-8"))["from_step"] == 4
    shutil.rmtree(two / "one" / "checkpoints" / "step-00000004")
    assert best_step_now(str(two / "one")) == 2

    # Finished runs stay usable.
    assert cli("compare", "tuned", "other", "--seeds", 2).code == 0
    refused = cli("compare", "tuned", "other", "--seeds", 3)
    assert refused.code == 2
    assert "tuned with seed 1339 would start from step 2 of" in refused.err
    assert "started from step 4" in refused.err
    assert "--from" in refused.err
    assert not (two / "tuned-seeds" / "1339").exists()

    # An earlier version wrote sweep.json without the step.
    text = plan.read_text("utf-8")
    for content in (text, text.replace(',\n "from_step": 4', "")):
        plan.write_text(content, "utf-8")
        assert cli(*sweep).code == 0
        (two / "tuned-sweep" / "weight_decay=0").rename(two / "moved")
        refused = cli(*sweep)
        assert refused.code == 2
        assert "weight_decay=0 would start from step 2 of" in refused.err
        (two / "moved").rename(two / "tuned-sweep" / "weight_decay=0")
    assert "from_step" not in plan.read_text("utf-8")

    # An earlier version trained seeds from different steps.
    status = two / "tuned-seeds" / "1338" / "run.json"
    changed = re.sub(r'("started_from": {[^}]*"step": )4', r"\g<1>2", status.read_text("utf-8"))
    status.write_text(changed, "utf-8")
    mixed = cli("compare", "tuned", "other", "--seeds", 2)
    assert mixed.code == 2
    assert "1338 started from step 2 of" in mixed.err


def test_a_sweep_of_a_run_s_config_file_keeps_the_base_of_the_run(two: Path, cli: Any) -> None:
    assert cli("train", "--from", "one", "--out", "runs/tuned", "train.max_steps=2").code == 0
    outcome = cli("sweep", "runs/tuned/config.yaml", "train.weight_decay=0,0.1")
    assert outcome.code == 0, outcome.err
    assert "each run starts from the weights of" in outcome.err
    status = two / "config-sweep" / "weight_decay=0" / "run.json"
    start = json.loads(status.read_text("utf-8"))["started_from"]
    assert start == {"run": str((two / "one").absolute()), "step": 4}


def test_a_sweep_refuses_a_run_with_user_s_parts(two: Path, cli: Any) -> None:
    status = two / "one" / "run.json"
    text = status.read_text("utf-8").replace('"own_parts": []', '"own_parts": ["mlp"]')
    status.write_text(text, "utf-8")
    for config in ("one", "runs/one/config.yaml"):
        outcome = cli("sweep", config, "train.weight_decay=0,0.1")
        assert outcome.code == 2
        assert "your own parts" in outcome.err


def test_what_cannot_be_compared(two: Path, cli: Any, trained: Path) -> None:
    outcome = cli("compare", "one", trained, "--json")
    assert outcome.code == 0
    # The two runs have the same text and the same tokenizer, so their losses can be compared.
    assert lines_of(outcome.out)[0]["difference"] is not None
    tokenizer = two / "two" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text("utf-8") + " ", "utf-8")
    assert "tokenizers differ" in lines_of(cli("compare", "one", "two", "--json").out)[0]["verdict"]
    assert cli("compare", "one").code == 2
    assert cli("compare", "one", "one").code == 2
    assert "no run named" in cli("compare", "one", "three").err


@pytest.mark.slow
def test_a_sweep_continues_where_it_was(
    cli: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("sweep", "tiny", f"data.source={text_file}", *SMALL, *SHORT,
             "train.learning_rate=0.02,0.001", "train.seed=1,2")  # fmt: skip
    outcome = cli(*words)
    assert outcome.code == 0, outcome.err
    assert "4 runs trained" in outcome.err
    folder = tmp_path / "runs" / "tiny-sweep"
    runs = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert runs == [f"learning_rate={rate}-seed={s}" for rate in ("0.001", "0.02") for s in (1, 2)]
    assert all(is_finished(folder / run) for run in runs)
    shutil.rmtree(folder / runs[2])
    again = cli(*words, "--json")
    assert "1 run trained, 3 were already finished" in again.err
    values = lines_of(again.out)
    assert len(values) == 3
    assert all(value["a"] == values[0]["a"] and value["difference"] >= 0 for value in values)
    other = cli(*words[:-1], "train.seed=1,2", "train.batch_size=4")
    assert other.code == 2
    assert "another sweep" in other.err


@pytest.mark.slow
def test_the_page_in_a_browser(two: Path, cli: Any, tmp_path: Path) -> None:
    assert cli("compare", "one", "two", "--html", "ab.html").code == 0
    with opened(tmp_path / "ab.html") as page:
        assert page.locator("canvas").count() == 2
        assert page.locator("tbody tr").count() == 2


def test_a_config_beside_a_tokenizer_is_no_run(tmp_path: Path) -> None:
    """A folder with a config.yaml and a tokenizer.json is a run only if it has a run.json."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (tmp_path / "shared.yaml").write_text("{}", "utf-8")
    (folder / "config.yaml").symlink_to("../shared.yaml")  # in a run, gptcli refuses such a link
    (folder / "tokenizer.json").write_text("{}", "utf-8")
    word = str(folder / "config.yaml")
    assert _config(word) == (word, "config", None)


def test_a_name_that_no_folder_can_have_counts_as_free(tmp_path: Path) -> None:
    assert is_free(tmp_path / ("a" * 300), {})
    (tmp_path / "taken").mkdir()
    assert not is_free(tmp_path / "taken", {})
