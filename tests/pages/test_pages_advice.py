"""The advice of a report on real runs: its verdicts are true, and its commands work.

recorded_runs.json holds the losses of runs that were trained for these tests. One overfits a text
of 1,600 characters, one is a good run with --minutes, one was interrupted, one diverged, one ended
because of train.patience, one was resumed, one is short, and one has no validation.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gptcli.config import Config
from gptcli.events import Evaluated, StepDone
from gptcli.files.durable import folder_lock
from gptcli.pages.advice import Advice, advice
from gptcli.pages.run_data import RunData

RECORDED: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "recorded_runs.json").read_text("utf-8")
)


def recorded(name: str, path: Path | None = None) -> RunData:
    run = RECORDED[name]
    config = Config.model_validate(run["config"])
    tokens = config.tokens_per_step
    steps = [StepDone(n, n * tokens, n / 5, loss, 0.01, norm, 1e4, True)
             for n, loss, norm in run["steps"]]  # fmt: skip
    evaluations = [Evaluated(n, n * tokens, n / 5, loss, False) for n, loss in run["evaluations"]]
    return RunData(
        path or Path("runs") / name, name, config, run["status"], steps, evaluations, [], [],
        config.train.max_steps,
    )  # fmt: skip


def verdicts(found: Advice) -> tuple[str, ...]:
    return tuple(one.verdict for one in found.answers)


@pytest.mark.parametrize(
    ("name", "expected", "ideas"),
    [
        ("overfit", ("Yes", "No", "Yes"),
         ("", "train.patience=3", "model.n_layer=1 train.patience=3")),
        ("fine", ("No", "Yes", "Yes"), ("--minutes 1.4", "model.n_layer=4")),
        ("stopped", ("No", "Yes", "Unknown"), ("--resume --out runs/stopped",)),
        ("diverged", ("No", "No", "No"), ("train.learning_rate=auto",)),
        ("patience", ("No", "Hardly", "Yes"), ("",)),
        ("resumed", ("No", "Yes", "Yes"), ("train.max_steps=400", "model.n_layer=4")),
        ("short", ("No", "Yes", "Yes"), ("train.max_steps=60", "model.n_layer=4")),
        ("noval", ("No", "Yes", "Yes"), ("data.val_fraction=0.1",)),
    ],
)  # fmt: skip
def test_verdicts_and_ideas(name: str, expected: tuple[str, ...], ideas: tuple[str, ...]) -> None:
    found = advice(recorded(name))
    assert verdicts(found) == expected
    assert len(found.next) == len(ideas)
    for (_, command), end in zip(found.next, ideas, strict=True):
        assert command.endswith(end)


def test_figures_are_those_of_the_run() -> None:
    overfit, time, _ = advice(recorded("overfit")).answers
    assert "best at step 160 (2.440) and rose to 2.557 at step 400" in overfit.sentence
    assert "fell from 2.038 to 1.683" in overfit.sentence
    assert "None of the 12 evaluations after step 160" in time.sentence
    text = advice(recorded("resumed")).summary
    assert "18 % of its text of 1,140,545 tokens" in text
    patience = advice(recorded("patience"))
    assert "train.patience=3 ended the run" in patience.answers[1].sentence
    assert "read its text 53 times" in patience.next[0][0]
    broken = advice(recorded("diverged"))
    assert "0.003, instead of 100" in broken.next[0][0]


def test_no_sentence_has_a_wrong_plural_or_an_empty_figure() -> None:
    for name in RECORDED:
        found = advice(recorded(name))
        words = " ".join(
            [
                found.summary,
                *(one.sentence for one in found.answers),
                *(one for one, _ in found.next),
            ]
        )
        assert not re.search(r"\b1 (?!in)\w+s\b", words), words
        assert "0.0 times" not in words
        assert "nan" not in words.split()


def test_a_text_that_was_read_once() -> None:
    run = recorded("resumed")
    read = run.config.tokens_per_step * run.last_step
    run = replace(run, status={**run.status, "train_tokens": read})
    assert f"It read {read:,} tokens: its text of {read:,} tokens, once." in advice(run).summary


def test_one_worse_evaluation_is_too_early_to_tell() -> None:
    run = recorded("resumed")
    last = run.evaluations[-1]
    worse = replace(last, step=last.step + 20, val_loss=1.02 * last.val_loss)
    found = advice(replace(run, evaluations=[*run.evaluations, worse]))
    assert found.answers[0].verdict == "Too early to tell"


def test_without_validation_a_text_that_was_read_often_is_unknown() -> None:
    run = recorded("noval")
    often = replace(run, status={**run.status, "train_tokens": 2000})
    found = advice(often)
    assert found.answers[0].verdict == "Unknown"
    assert "data.val_fraction is 0" in found.answers[0].sentence


def test_a_diverged_run_of_the_usual_rate_gets_a_lower_one() -> None:
    run = recorded("diverged")
    train = run.config.train.model_copy(update={"learning_rate": 0.002})
    config = run.config.model_copy(update={"train": train})
    assert advice(replace(run, config=config)).next[0][1].endswith("train.learning_rate=0.0005")


def test_a_user_s_part_is_named_again() -> None:
    run = recorded("resumed")
    own = replace(run, status={**run.status, "own_parts": ["attention"]})
    assert "--attention FILE" in advice(own).next[0][1]


def test_a_fine_tune_names_its_base_again() -> None:
    """Without --from, the command would train new weights.

    A fine-tune cannot change its network."""
    for name in RECORDED:
        run = recorded(name)
        status = {**run.status, "started_from": {"run": "/runs/my base", "step": 40}}
        for _, command in advice(replace(run, status=status)).next:
            if command.startswith("gptcli train") and "--resume" not in command:
                assert "--from '/runs/my base'" in command
            assert "model.n_layer" not in command


def test_each_command_trains_in_a_free_folder_that_is_not_the_base(tmp_path: Path) -> None:
    """The base can be called RUN-2. Its name in --from stays as it is."""
    run = recorded("overfit", tmp_path / "tt")
    base = f"{tmp_path / 'tt'}-2"  # no such folder: the base has moved
    (tmp_path / "tt-3").mkdir()
    status = {**run.status, "started_from": {"run": base, "step": 40}}
    config = run.config.model_copy(
        update={"model": run.config.model.model_copy(update={"dropout": 0.0})}
    )
    found = advice(replace(run, status=status, config=config)).next
    commands = [shlex.split(command) for _, command in found if command]
    assert [words[words.index("--from") + 1] for words in commands] == [base, base]
    outs = [Path(words[words.index("--out") + 1]).name for words in commands]
    assert outs == ["tt-4", "tt-5"]


def test_no_sweep_is_proposed_for_a_run_with_a_user_s_part() -> None:
    run = recorded("patience")
    settled = replace(run, status={**run.status, "train_tokens": 10**9})
    assert "gptcli sweep" in advice(settled).next[0][1]
    own = replace(settled, status={**settled.status, "own_parts": ["mlp"]})
    (command,) = (command for _, command in advice(own).next)
    assert command.startswith("gptcli train")
    assert "--mlp FILE train.learning_rate=" in command


def test_the_median_is_the_one_that_finds_the_spikes() -> None:
    """The first tenth of the steps has large norms.

    It counts neither for the median nor as spikes."""
    run = recorded("resumed")
    norms = [20.0] * 20 + [1.0] * 100 + [3.0] * 80
    steps = [replace(one, grad_norm=n) for one, n in zip(run.steps, norms, strict=True)]
    assert "times the median (1.00)" in advice(replace(run, steps=steps)).answers[2].sentence
    steps[150] = replace(steps[150], grad_norm=9.0)
    sentence = advice(replace(run, steps=steps)).answers[2].sentence
    assert "1 of 180 logged steps" in sentence
    assert "(1.00); the largest was 9.00" in sentence
    broken = [replace(one, grad_norm=float("nan")) for one in steps]
    assert advice(replace(run, steps=broken)).answers[2].verdict == "Unknown"


def test_too_few_finite_norms_are_counted() -> None:
    run = recorded("resumed")
    norms = [1.0] * 11 + [float("nan")] * 9
    steps = [replace(one, grad_norm=n) for one, n in zip(run.steps[:20], norms, strict=True)]
    answer = advice(replace(run, steps=steps)).answers[2]
    assert answer.verdict == "Unknown"
    assert "9 of 18 logged steps had a finite gradient norm" in answer.sentence


def test_a_run_that_trains_now_is_not_judged(tmp_path: Path) -> None:
    run = recorded("stopped", tmp_path)
    still = replace(run, status={k: v for k, v in run.status.items() if k != "stopped"})
    with folder_lock(tmp_path):
        found = advice(still)
    assert found.answers[1].verdict == "Still training"
    assert [one[1].split()[:2] for one in found.next] == [["gptcli", "report"]]
    # Nobody holds the run's lock, so the training was killed.
    assert "--resume" in advice(still).next[0][1]


@pytest.mark.slow
def test_the_commands_work(cli: Any, trained: Path, tmp_path: Path) -> None:
    """Call the `train` commands of the advice, except those with --resume, on the config of a real
    run. Add --dry-run to each command."""
    for name in RECORDED:
        for _, command in advice(recorded(name, trained)).next:
            words = shlex.split(command)[1:]
            if words[:1] != ["train"] or "--resume" in words:
                continue
            words[words.index("--out") + 1] = str(tmp_path / "new")
            outcome = cli(*words, "--dry-run")
            assert outcome.code == 0, f"{command}\n{outcome.err}"
