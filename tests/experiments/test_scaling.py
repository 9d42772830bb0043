"""`gptcli scaling`: the law that it fits to made-up losses, and the whole command with tiny
networks."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from gptcli.errors import GptcliError
from gptcli.experiments import ladder
from gptcli.experiments.power_law import fit

SIZES = [12_288, 24_576, 55_296, 98_304, 230_400, 442_368]
LARGER = 8 * SIZES[-1]


def law(size: float) -> float:
    return 1.2 + 30 * size**-0.35


def test_an_exact_law_is_found() -> None:
    found = fit(SIZES, [law(size) for size in SIZES])
    assert found.exponent == pytest.approx(0.35, rel=0.01)
    assert found.floor == pytest.approx(1.2, abs=0.01)
    predicted, (low, high) = found.predict(LARGER)
    assert predicted == pytest.approx(law(LARGER), abs=0.002)
    assert low <= predicted <= high


@pytest.mark.slow
def test_the_interval_holds_the_truth_about_as_often_as_it_says(slow: bool) -> None:
    """Each ladder is a series of made-up losses, one for each size of network, with noise.

    In at least 85 % of the ladders, the predicted interval contains the loss of a larger
    network."""
    draw = random.Random(3)
    inside, ladders = 0, 300 if slow else 40
    for _ in range(ladders):
        found = fit(SIZES, [law(size) + draw.gauss(0, 0.005) for size in SIZES])
        low, high = found.predict(LARGER)[1]
        inside += low <= law(LARGER) + draw.gauss(0, 0.005) <= high
    assert inside >= 0.85 * ladders


def test_what_cannot_be_predicted() -> None:
    with pytest.raises(GptcliError, match="too few"):
        fit(SIZES[:4], [4.0, 3.0, 2.0, 1.0])
    with pytest.raises(GptcliError, match="not better"):
        fit(SIZES, [1.0, 1.1, 1.2, 1.3, 1.4, 1.5])


def test_the_larger_one_is_eight_times_larger() -> None:
    rungs = ladder.rungs_in(Path("x"))
    assert [rung.size for rung in rungs] == SIZES
    assert ladder.larger_in(Path("x")).size == LARGER


def test_the_command(
    cli: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first call trains five networks for a few steps.

    Then the test deletes one of them, and the second call trains only this network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ladder, "_FEWEST_STEPS", 1)
    monkeypatch.setattr(ladder, "_CALIBRATION_STEPS", 2)
    monkeypatch.setattr(ladder, "RUNGS", ((1, 16), (1, 32), (2, 32), (2, 48), (2, 64)))
    planned = ladder.planned_steps
    monkeypatch.setattr(ladder, "planned_steps", lambda *given: min(8, planned(*given)))
    words = ("scaling", text_file, "run.threads=1", "--out", "ladder")
    outcome = cli(*words, "--minutes", "0.2", "--json")
    assert outcome.code in (0, 1), outcome.err
    # After so few steps, a larger network can be worse than a smaller one. The command then reports
    # an error.
    if outcome.code == 1:
        assert "not better" in outcome.err
    folder = tmp_path / "ladder"
    assert sorted(path.name for path in folder.iterdir()) == [
        "1x16", "1x32", "2x32", "2x48", "2x64", "scaling.json",
    ]  # fmt: skip
    kept = (folder / "1x16" / "run.json").stat().st_mtime_ns
    shutil.rmtree(folder / "2x32")
    for run, loss in (("1x16", 3.0), ("1x32", 2.5), ("2x32", 2.3), ("2x48", 2.1), ("2x64", 2.0)):
        if run != "2x32":
            path = folder / run / "metrics.jsonl"
            records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            records = [r | {"val_loss": loss} if r["kind"] == "eval" else r for r in records]
            path.write_text("".join(json.dumps(r) + "\n" for r in records), "utf-8")
    again = cli(*words, "--minutes", "0.2", "--json")
    assert (folder / "1x16" / "run.json").stat().st_mtime_ns == kept
    assert again.code == 0, again.err
    value = json.loads(again.out)
    assert len(value["networks"]) == 5
    assert value["val_loss"] is None
    assert math.isfinite(value["predicted"])
    other = cli(*words, "--minutes", "0.3")
    assert other.code == 2
    assert "other settings" in other.err
