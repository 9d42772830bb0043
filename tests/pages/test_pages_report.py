"""`gptcli report`: its advice about made-up loss curves, the content of the page, and reports on
runs of older versions."""

from __future__ import annotations

import html
import json
import math
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from gptcli.events import Evaluated, StepDone
from gptcli.pages import chromium
from gptcli.pages.advice import doubled, norms_of, overfitting
from gptcli.pages.run_data import read_run, spread, thinned

OLD = Path(__file__).parent.parent / "old_runs"


def evaluations(*losses: float, every: int = 100) -> list[Evaluated]:
    return [
        Evaluated(every * (i + 1), 0, float(i), loss, loss == min(losses[: i + 1]))
        for i, loss in enumerate(losses)
    ]


def page_data(path: Path) -> Any:
    found = re.search(r'id="report">(.*?)</script>', path.read_text("utf-8"), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


@pytest.mark.parametrize(
    ("losses", "is_overfit"),
    [
        ((3.0, 2.0, 1.5, 1.4), False),
        ((3.0, 2.0, 2.1), False),  # a single higher loss proves nothing
        ((3.0, 2.0, 2.1, 2.2), True),
        ((3.0, 2.0, 2.001, 2.002), False),  # a rise of less than 0.1 % counts as noise
    ],
)
def test_overfitting(losses: tuple[float, ...], is_overfit: bool) -> None:
    found = overfitting(evaluations(*losses))
    assert found is not None
    assert found.is_overfit == is_overfit
    assert overfitting(evaluations(3.0)) is None


def test_what_twice_the_steps_bring() -> None:
    """If the loss falls by 0.3 each time the number of steps doubles, `doubled` returns 0.3."""
    losses = [4 - 0.3 * math.log2(100 * (i + 1)) for i in range(12)]
    points = [(100 * (i + 1), loss) for i, loss in enumerate(losses)]
    assert doubled(points) == pytest.approx(0.3)
    assert doubled([(1, 3.0), (2, 2.0)]) is None
    assert doubled([(1, 2.0), (2, 2.0), (3, 2.0)]) == pytest.approx(0)


def test_spikes() -> None:
    steps = [StepDone(i, 0, 0.0, 2.0, 0.1, 9.0 if i == 50 else 1.0, 1.0, True) for i in range(100)]
    found = norms_of(steps)
    assert found is not None
    assert [one.step for one in found.spikes] == [50]
    # Large gradients at the start of a run are normal, and no spike.
    steps[5] = StepDone(5, 0, 0.0, 2.0, 0.1, 90.0, 1.0, True)
    assert norms_of(steps) == found
    assert norms_of(steps[:10]) is None


def test_thinned_curves_keep_their_mean_and_ends() -> None:
    x, y = thinned([list(range(1000)), [float(i) for i in range(1000)]], 100)
    assert len(x) == len(y) == 100
    assert sum(y) / 100 == pytest.approx(499.5)
    assert spread(list(range(10)), 4) == [0, 3, 6, 9]


def test_the_report_of_a_run(cli: Any, trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    outcome = cli("report", trained, "--out", path)
    assert outcome.code == 0, outcome.err
    text = path.read_text("utf-8")
    assert len(text) < 1_000_000
    for fact in (
        "Did it overfit?",
        "Would more time help?",
        "What to try next",
        "A passage that it never trained on",
        "What its heads looked at",
        "uPlot (v1.6.32)",
    ):
        assert fact in text, fact
    assert "lacks" not in re.sub(r"<script.*", "", text, flags=re.DOTALL)
    data = page_data(path)
    run = read_run(trained)
    loss = data["charts"][0]
    val = [v for v in loss["series"][1]["values"] if v is not None]
    assert val == [float(f"{one.val_loss:.5g}") for one in run.evaluations]
    assert [one["title"] for one in data["charts"]][-1] == "Gradient norm by part of the network"
    assert len(data["passage"]["moments"]) == len(run.evaluations)
    assert len(data["passage"]["labels"]) == 33
    opens_at = data["passage"]["opensAt"]
    assert run.best is not None
    assert data["passage"]["moments"][opens_at]["step"] == run.best.step
    assert data["maps"]["opensAt"] == opens_at
    assert f"At step {run.best.step:,}, " in text
    assert cli("report", trained, "--out", path).code == 2
    assert cli("report", trained, "--out", path, "--overwrite").code == 0


def test_a_fine_tune_is_repeated_from_its_base(cli: Any, trained: Path, tmp_path: Path) -> None:
    """The command below "How to repeat it" gives the weights of the run, to the last bit."""
    words = ("train", "--from", trained, "--out", tmp_path / "tuned", "train.max_steps=2")
    assert cli(*words).code == 0
    assert cli("report", tmp_path / "tuned", "--out", tmp_path / "page.html").code == 0
    text = html.unescape((tmp_path / "page.html").read_text("utf-8"))
    _, _, after = text.partition("How to repeat it")
    assert "must still be that of step" in after
    command = re.search(r'<code class="command">(.*?)</code>', after)
    assert command is not None
    assert cli(*shlex.split(re.sub("<.*?>", "", command[1]))[1:]).code == 0
    weights = "checkpoints/step-00000002/model.safetensors"
    same = (tmp_path / "tuned" / weights).read_bytes()
    assert (tmp_path / "tuned-again" / weights).read_bytes() == same
    assert cli("report", tmp_path / "tuned", "--out", tmp_path / "second.html").code == 0
    second = html.unescape((tmp_path / "second.html").read_text("utf-8"))
    assert "tuned-again-2" in re.sub("<.*?>", "", second)  # `tuned-again` exists


def test_the_parts_norms_are_those_of_all_weights(trained: Path) -> None:
    for one in read_run(trained).steps:
        assert len(one.part_norms) == 3
        assert math.hypot(*one.part_norms) == pytest.approx(one.grad_norm, rel=0.01)


@pytest.mark.parametrize("name", ["gpt2-bpe-adamw", "modern-char-muon", "modern-byte-adamw"])
def test_an_old_run_gets_a_report_that_says_what_it_lacks(
    name: str, cli: Any, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    outcome = cli("report", OLD / name / "run", "--out", path)
    assert outcome.code == 0, outcome.err
    text = path.read_text("utf-8")
    assert "This report lacks" in text
    assert "an earlier version" in text
    assert page_data(path)["passage"] is None


def test_a_report_opens_at_the_checkpoint_that_sample_takes(
    cli: Any, trained: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    evaluated = [one for one in records if "val_loss" in one]
    assert len(evaluated) == 2
    # Make the first evaluation the best one, so that the report opens at it.
    evaluated[0]["val_loss"] = 0.5
    (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records), "utf-8")
    assert cli("report", run, "--out", tmp_path / "r.html").code == 0
    data = page_data(tmp_path / "r.html")
    assert data["passage"]["opensAt"] == data["maps"]["opensAt"] == 0


def test_damaged_records_are_left_out(cli: Any, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    good = (run / "attention.jsonl").read_text("utf-8")
    (run / "attention.jsonl").write_text(
        '{"step": 1, "ids": [1, 2], "losses": [1.0], "maps": [["!"]]}\n[]\nnonsense\n' + good,
        "utf-8",
    )
    assert cli("report", run, "--out", tmp_path / "r.html").code == 0
    assert len(page_data(tmp_path / "r.html")["maps"]["moments"]) == good.count("\n")


def test_a_run_without_steps_cannot_be_reported(cli: Any, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "metrics.jsonl").unlink()
    outcome = cli("report", run, "--out", tmp_path / "r.html")
    assert outcome.code == 1
    assert "cannot write a report" in outcome.err


def test_attention_records_end_with_the_checkpoint_after_a_resume(
    cli: Any, trained: Path, tmp_path: Path
) -> None:
    """A resumed run repeats the evaluations after its checkpoint. attention.jsonl must have only
    one record for each step."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    before = read_run(run).inside
    outcome = cli("train", "--resume", "--extend", "--out", run, "train.max_steps=60")
    assert outcome.code == 0, outcome.err
    steps = [one["step"] for one in read_run(run).inside]
    assert steps == sorted(set(steps))
    assert steps[: len(before)] == [one["step"] for one in before]
    assert steps[-1] == 60


@pytest.mark.slow
@pytest.mark.skipif(chromium.find_chromium() is None, reason="Chromium is not installed")
def test_a_pdf(cli: Any, trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.pdf"
    assert cli("report", trained, "--pdf", "--out", path).code == 0
    assert path.read_bytes().startswith(b"%PDF")
