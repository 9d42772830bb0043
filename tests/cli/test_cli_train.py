"""`gptcli train` as a user calls it: files, JSON, --resume, --from, errors."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from gptcli.errors import GptcliError
from gptcli.files.shipped import shipped_configs

SMALL = (
    "model.n_layer=1",
    "model.n_head=2",
    "model.n_embd=32",
    "model.block_size=32",
    "train.batch_size=8",
    "run.threads=1",
    "run.dtype=float32",
    "run.device=cpu",
)
KEYS = {
    "run",
    "steps",
    "tokens",
    "seconds",
    "resumed_from",
    "train_loss",
    "val_loss",
    "best_val_loss",
    "best_step",
    "stopped",
}


def one_object(out: str) -> dict[str, Any]:
    (line,) = out.splitlines()
    value = json.loads(line)
    assert isinstance(value, dict)
    return value


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]


def test_a_run_folder_and_its_json(cli: Any, text_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "r"
    outcome = cli(
        "train",
        text_file,
        *SMALL,
        "train.max_steps=12",
        "train.eval_every=6",
        "train.sample_every=6",
        "--out",
        run,
        "--json",
    )
    assert outcome.code == 0, outcome.err
    summary = one_object(outcome.out)
    assert summary.keys() >= KEYS
    assert (summary["steps"], summary["stopped"], summary["resumed_from"]) == (12, "done", None)
    assert summary["tokens"] == 12 * 8 * 32
    assert {path.name for path in run.iterdir()} >= {
        "config.yaml",
        "tokenizer.json",
        "metrics.jsonl",
        "samples.txt",
        "checkpoints",
    }
    assert (run / "checkpoints" / "best").read_text("utf-8").startswith("step-000000")
    stepped = [r for r in records(run) if r["kind"] == "step"]
    assert [r["step"] for r in stepped] == list(range(1, 13))
    assert all(
        r.keys()
        >= {"step", "tokens", "seconds", "loss", "learning_rate", "grad_norm", "tokens_per_second"}
        for r in stepped
    )
    evaluated = [r for r in records(run) if r["kind"] == "eval"]
    assert [r["step"] for r in evaluated] == [6, 12]
    assert evaluated[-1]["val_loss"] == pytest.approx(summary["val_loss"])
    assert re.findall(r"=== step (\d+) ===", (run / "samples.txt").read_text("utf-8")) == [
        "6",
        "12",
    ]
    config = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    assert config["train"]["learning_rate"] == 0.02
    assert config["train"]["warmup_steps"] == 0
    assert config["run"]["dtype"] == "float32"
    for line in outcome.err.splitlines():
        assert len(line) <= 160
    assert f'Next: gptcli sample {run} --prompt "..."' in outcome.err
    assert f"gptcli sample {run} -i" in outcome.err
    assert "\x1b" not in outcome.err


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name == "gpt2-124m" else name
        for name in sorted(shipped_configs())
    ],
)
def test_every_shipped_config_trains(name: str, cli: Any, tmp_path: Path, text_file: Path) -> None:
    outcome = cli(
        "train",
        name,
        *SMALL,
        "train.max_steps=3",
        "train.grad_accum=2",
        f"data.source={text_file}",
        "--out",
        tmp_path / "r",
        "--json",
    )
    assert outcome.code == 0, outcome.err
    assert one_object(outcome.out)["steps"] == 3


def test_the_shipped_text_and_a_free_run_name(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in ("", "-2"):
        outcome = cli(
            "train",
            "tiny",
            *SMALL,
            "train.max_steps=2",
            "train.eval_every=99999",
            "data.val_fraction=0.002",
            "--json",
        )
        assert outcome.code == 0, outcome.err
        assert Path(one_object(outcome.out)["run"]) == Path("runs") / f"tiny{number}"


def test_folder_and_jsonl_as_text(cli: Any, tmp_path: Path, text_file: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.txt").write_text(text_file.read_text("utf-8"), encoding="utf-8")
    (folder / "picture.png").write_bytes(b"\x89PNG\x00\xff")
    jsonl = tmp_path / "docs.jsonl"
    speeches = text_file.read_text("utf-8").split("\n\n")
    jsonl.write_text("".join(json.dumps({"text": s}) + "\n" for s in speeches), encoding="utf-8")
    for source, kind in ((folder, "byte"), (jsonl, "bpe")):
        outcome = cli(
            "train",
            source,
            *SMALL,
            "train.max_steps=2",
            f"tokenizer.kind={kind}",
            "tokenizer.vocab_size=300",
            "--out",
            tmp_path / kind,
            "--json",
        )
        assert outcome.code == 0, outcome.err
    assert (
        "picture.png"
        in cli("train", folder, *SMALL, "train.max_steps=2", "--out", tmp_path / "again").err
    )


def test_dry_run_writes_nothing(cli: Any, text_file: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    outcome = cli(
        "train",
        text_file,
        *SMALL,
        "train.max_steps=50",
        "--dry-run",
        "--json",
        "--out",
        tmp_path / "r",
    )
    assert outcome.code == 0, outcome.err
    plan = one_object(outcome.out)
    assert plan.keys() >= {
        "parameters",
        "tokens_per_step",
        "total_tokens",
        "epochs",
        "memory_bytes",
        "seconds_estimate",
        "device",
        "dtype",
        "compile",
    }
    assert plan["tokens_per_step"] == 8 * 32
    assert plan["total_tokens"] == 50 * 8 * 32
    assert plan["seconds_estimate"] > 0
    assert sorted(tmp_path.rglob("*")) == before
    assert "parameters" in cli("train", text_file, *SMALL, "--dry-run").out


def test_dry_run_says_that_it_does_not_time_compiled_steps(
    cli: Any, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptcli.training.dry_run.seconds_per_step", lambda *_: 1.0)
    words = ("train", text_file, *SMALL, "train.max_steps=50", "--dry-run")
    for overrides, times in (((), 0), (("run.compile=true",), 2)):  # in the time, and in a note
        outcome = cli(*words, *overrides)
        assert outcome.code == 0, outcome.err
        assert outcome.out.count("without torch.compile") == times
    plan = one_object(cli(*words, "run.compile=true", "--json").out)
    assert plan["seconds_estimate"] > 50
    assert any("without torch.compile" in note for note in plan["notes"])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("tiny",), None),
        (("tiny", "--attention", "mine.py"), "checking your files"),
        (("tiny", "--minutes", "1"), "reading the text and measuring this machine"),
        (("data.csv",), "reading the text and measuring this machine"),
    ],
)
def test_the_waiting_line_says_what_train_does(
    words: tuple[str, ...], line: str | None, cli: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    lines: list[str] = []

    @contextmanager
    def waiting(what: str) -> Iterator[None]:
        lines.append(what)
        yield

    def stop(*_: object) -> None:
        raise GptcliError("stopped here", "")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.csv").touch()
    monkeypatch.setattr("gptcli.cli.train.waiting", waiting)
    monkeypatch.setattr("gptcli.cli.train.plan_run", stop)
    assert "stopped here" in cli("train", *words).err
    assert lines == ([] if line is None else [line])


def test_dry_run_says_if_the_model_does_not_fit(cli: Any, text_file: Path) -> None:
    outcome = cli(
        "train", text_file, "model.n_embd=1000000", "model.n_head=1", "--dry-run", "--json"
    )
    assert outcome.code == 0, outcome.err
    plan = one_object(outcome.out)
    assert plan["memory_bytes"] > 10**13
    assert plan["seconds_estimate"] is None
    assert "does not fit" in cli("train", text_file, "model.n_embd=1000000", "model.n_head=1",
                                 "--dry-run").out  # fmt: skip


def test_an_overwrite_that_fails_loses_nothing(cli: Any, text_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "r"
    cli("train", text_file, *SMALL, "train.max_steps=2", "--out", run)
    before = {p.relative_to(run): p.read_bytes() for p in run.rglob("*") if p.is_file()}
    for words in (("tiny", "data.source=no-such"), (text_file, "model.n_embd=1000000",
                                                    "model.n_head=1")):  # fmt: skip
        outcome = cli("train", *words, "--out", run, "--overwrite")
        assert outcome.code in (1, 2)
        assert "\nerror: " in f"\n{outcome.err}"  # notes about the settings may come first
        after = {p.relative_to(run): p.read_bytes() for p in run.rglob("*") if p.is_file()}
        assert after == before


def test_a_path_with_an_emoji_and_blanks(cli: Any, text_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "my 😀 te'xt=1: #.txt"
    path.write_text(text_file.read_text("utf-8"), encoding="utf-8")
    outcome = cli("train", path, *SMALL, "train.max_steps=2", "--out", tmp_path / "r 😀", "--json")
    assert outcome.code == 0, outcome.err
    assert cli("eval", tmp_path / "r 😀", "--json").code == 0


ATTENTION = """
import torch
from gptcli.model.attention import CausalSelfAttention as Builtin

print("loaded")


class CausalSelfAttention(Builtin):
    def forward(self, x):
        print("called")
        return super().forward(x){more}
"""


@pytest.mark.slow
def test_a_user_attention_from_training_to_sample(
    cli: Any, text_file: Path, tmp_path: Path
) -> None:
    right, wrong, run = tmp_path / "right.py", tmp_path / "wrong.py", tmp_path / "r"
    right.write_text(ATTENTION.format(more=""), encoding="utf-8")
    wrong.write_text(ATTENTION.format(more=" * 1.1"), encoding="utf-8")
    words = ("train", "course", f"data.source={text_file}", *SMALL, "train.max_steps=4")
    built_in = one_object(cli(*words, "--out", tmp_path / "b", "--json").out)
    outcome = cli(*words, "--attention", right, "--out", run, "--json")
    assert outcome.code == 0, outcome.err
    assert one_object(outcome.out)["train_loss"] == pytest.approx(built_in["train_loss"], rel=1e-4)
    refused = cli(*words, "--attention", wrong, "--out", tmp_path / "x")
    assert refused.code == 1
    assert "does not pass its check" in refused.err
    assert not (tmp_path / "x").exists()
    forced = cli(*words, "--attention", wrong, "--out", tmp_path / "x", "--force", "--json")
    assert forced.code == 0, forced.err
    assert "warning: " in forced.err
    for command in ("sample", "eval"):
        asked = cli(command, run)
        assert asked.code == 2
        assert "the command needs --attention FILE" in asked.err
        given = cli(command, run, "--attention", right, "--json")
        assert given.code == 0, given.err
        one_object(given.out)
    modern = cli("train", "tiny", "--attention", right)
    assert modern.code == 2
    assert "needs `arch: gpt2`" in modern.err
    dry = cli(*words, "--attention", tmp_path / "none.py", "--dry-run")
    assert dry.code == 2


def test_an_existing_run_is_not_overwritten(cli: Any, text_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "r"
    words = ("train", text_file, *SMALL, "train.max_steps=2", "--out", run)
    assert cli(*words).code == 0
    (run / "letter.txt").write_text("keep me", encoding="utf-8")
    outcome = cli(*words)
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {run} exists already\n\nhint: ")
    assert cli(*words, "--overwrite").code == 0
    assert (run / "letter.txt").read_text("utf-8") == "keep me"
    first = (run / "metrics.jsonl").read_text("utf-8")
    assert cli(*words, "--overwrite").code == 0
    assert len((run / "metrics.jsonl").read_text("utf-8").splitlines()) == len(first.splitlines())


def test_a_finished_run_says_so(cli: Any, text_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "r"
    cli("train", text_file, *SMALL, "train.max_steps=4", "--out", run)
    outcome = cli("train", "--resume", "--out", run, "--json")
    assert outcome.code == 0
    assert "is finished" in outcome.err
    assert one_object(outcome.out)["steps"] == 4


def test_extending_a_run(cli: Any, text_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "r"
    cli("train", text_file, *SMALL, "train.max_steps=4", "--out", run)
    refused = cli("train", "train.max_steps=8", "--resume", "--out", run)
    assert refused.code == 2
    assert "train.max_steps: 4 -> 8 (needs --extend)" in refused.err
    extended = cli("train", "train.max_steps=8", "--resume", "--extend", "--out", run, "--json")
    assert extended.code == 0, extended.err
    assert "the learning rate continues at" in extended.err
    summary = one_object(extended.out)
    assert (summary["steps"], summary["resumed_from"]) == (8, 4)
    assert [r["step"] for r in records(run) if r["kind"] == "step"] == list(range(1, 9))
    # The run is finished, because --extend has stored the larger max_steps in the run's config.
    assert "is finished" in cli("train", "--resume", "--out", run).err


def test_a_resume_cannot_change_the_model_or_the_seed(
    cli: Any, text_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "r"
    cli("train", text_file, *SMALL, "train.max_steps=4", "--out", run)
    outcome = cli("train", "train.seed=1", "model.n_layer=2", "--resume", "--out", run)
    assert outcome.code == 2
    assert "model.n_layer: 1 -> 2" in outcome.err
    assert "train.seed: 1337 -> 1" in outcome.err


def test_a_run_stopped_before_its_first_checkpoint_starts_again(
    cli: Any, text_file: Path, tmp_path: Path
) -> None:
    import shutil

    run = tmp_path / "r"
    cli("train", text_file, *SMALL, "train.max_steps=4", "--out", run)
    whole = (run / "checkpoints" / "step-00000004" / "model.safetensors").read_bytes()
    shutil.rmtree(run / "checkpoints")
    outcome = cli("train", "--resume", "--out", run, "--json")
    assert outcome.code == 0, outcome.err
    assert "starting again from step 0" in outcome.err
    assert one_object(outcome.out)["resumed_from"] is None
    assert [r["step"] for r in records(run) if r["kind"] == "step"] == [1, 2, 3, 4]
    assert (run / "checkpoints" / "step-00000004" / "model.safetensors").read_bytes() == whole


def test_a_fine_tune_starts_from_the_weights(
    cli: Any, trained: Path, tmp_path: Path, text_file: Path
) -> None:
    run = tmp_path / "tuned"
    outcome = cli(
        "train", text_file, "train.max_steps=5", "--from", trained, "--out", run, "--json"
    )
    assert outcome.code == 0, outcome.err
    assert "starting from the weights" in outcome.err
    before = json.loads(cli("eval", trained, "--json").out)
    losses = [record["val_loss"] for record in records(run) if record["kind"] == "eval"]
    # The fine-tune evaluates the old weights before its first step.
    assert losses[0] == pytest.approx(before["loss"], abs=1e-3)
    assert f"before tuning {losses[0]:.4f}, " in outcome.err
    assert one_object(outcome.out)["first_val_loss"] == losses[0]
    assert (run / "tokenizer.json").read_bytes() == (trained / "tokenizer.json").read_bytes()
    other = tmp_path / "other.txt"
    other.write_text("Ω is not among its characters. " * 99, encoding="utf-8")
    refused = cli("train", other, "--from", trained, "--out", tmp_path / "x")
    assert refused.code == 2
    assert "Ω" in refused.err
    assert not (tmp_path / "x").exists()
    mixed = cli("train", "tiny", "--from", trained, "--out", tmp_path / "x")
    assert mixed.code == 2
    assert "model.n_layer 2 (checkpoint: 1)" in mixed.err


def test_a_diverged_run_fails_with_its_diagnosis(cli: Any, text_file: Path, tmp_path: Path) -> None:
    outcome = cli(
        "train",
        text_file,
        *SMALL,
        "model.arch=gpt2",
        "train.optimizer=adamw",
        "train.learning_rate=100",
        "train.weight_decay=100",
        "train.warmup_steps=0",
        "train.grad_clip=0",
        "--out",
        tmp_path / "r",
        "--json",
    )
    assert outcome.code == 1
    assert one_object(outcome.out)["stopped"] == "diverged"
    found = r"^error: step \d+: the loss is .* first place with NaN or infinity: "
    assert re.search(found, outcome.err, re.M)
    assert "hint: try a lower rate" in outcome.err


WAITING = """
import sys, time
from pathlib import Path
from gptcli.training.passes import TorchPasses

mark, steps, step = Path(sys.argv.pop(1)), [], TorchPasses.gradients

def waiting(self, *arguments, **more):
    steps.append(1)
    if len(steps) == 7:
        mark.touch()
        while mark.exists():
            time.sleep(0.01)
    return step(self, *arguments, **more)

TorchPasses.gradients = waiting
from gptcli.cli import main
main()
"""
"""The source of a program that trains. In the seventh step it creates the file `mark`, and waits
until the test has sent a signal and deleted the file."""


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_the_resumed_run_ends_with_the_same_bytes(
    number: signal.Signals, text_file: Path, tmp_path: Path, cli: Any
) -> None:
    words = [
        "train",
        str(text_file),
        *SMALL,
        "model.dropout=0.1",
        "train.max_steps=20",
        "train.log_every=1",
        "run.engine=torch",
    ]
    run, mark = tmp_path / "parts", tmp_path / "mark"
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, str(mark), *words, "--out", str(run), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None and not mark.exists():
        time.sleep(0.01)
    process.send_signal(number)
    mark.unlink(missing_ok=True)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    summary = one_object(out)
    assert summary["stopped"] == "interrupted"
    assert f"go on with: gptcli train --resume --out {run}" in err
    assert summary["steps"] == 7
    resumed = cli("train", "--resume", "--out", run, "--json")
    assert resumed.code == 0, resumed.err
    assert one_object(resumed.out)["resumed_from"] == summary["steps"]
    assert cli(*words, "--out", tmp_path / "whole").code == 0
    name = Path("checkpoints/step-00000020/model.safetensors")
    assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert [r["step"] for r in records(run) if r["kind"] == "step"] == list(range(1, 21))


@pytest.mark.skipif(os.name != "posix", reason="needs fcntl")
def test_two_trainings_do_not_share_a_folder(cli: Any, text_file: Path, tmp_path: Path) -> None:
    from gptcli.files.durable import folder_lock

    run = tmp_path / "r"
    cli("train", text_file, *SMALL, "train.max_steps=2", "--out", run)
    with folder_lock(run):
        outcome = cli("train", "--resume", "--out", run)
    assert outcome.code == 1
    assert "is being written by another gptcli train" in outcome.err


def test_a_paragraph_is_overfitted_and_recited(cli: Any, tmp_path: Path) -> None:
    paragraph = (
        "To be, or not to be, that is the question: Whether 'tis nobler in the mind to suffer "
        "the slings and arrows of outrageous fortune, or to take arms against a sea of troubles "
        "and by opposing end them.\n"
    )
    text = tmp_path / "p.txt"
    text.write_text(paragraph * 8, encoding="utf-8")
    outcome = cli(
        "train",
        text,
        "model.n_layer=2",
        "model.n_embd=64",
        "model.n_head=2",
        "model.block_size=64",
        "train.max_steps=250",
        "train.batch_size=4",
        "data.val_fraction=0.15",
        "run.threads=1",
        "--out",
        tmp_path / "r",
        "--json",
    )
    assert outcome.code == 0, outcome.err
    said = one_object(
        cli(
            "sample",
            tmp_path / "r",
            "--prompt",
            paragraph[:20],
            "--temperature",
            "0",
            "--max-new-tokens",
            len(paragraph) - 21,
            "--json",
        ).out
    )
    assert said["prompt"] + said["text"] + "\n" == paragraph


@pytest.mark.parametrize(("where", "origin"), [("one_step", 0), ("events", None)])
def test_a_fine_tune_killed_before_its_first_checkpoint_keeps_its_weights(
    where: str,
    origin: int | None,
    cli: Any,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from gptcli.training import loop

    run, old = tmp_path / "tuned", tmp_path / "old"
    shutil.copytree(trained, old)

    def killed(self: Any) -> None:
        raise KeyboardInterrupt

    for _ in range(2):  # the second training resumes the first
        with monkeypatch.context() as patch:
            patch.setattr(loop._Loop, where, killed)
            words = ("--resume",) if run.exists() else ("train.max_steps=5", "--from", old)
            assert cli("train", *words, "--out", run).code == 130
    if origin is None:
        away = old.rename(tmp_path / "away")
        gone = cli("train", "--resume", "--out", run)
        assert gone.code == 1
        assert "the weights that it starts from cannot be loaded" in gone.err
        away.rename(old)
    outcome = cli("train", "--resume", "--out", run, "--json")
    assert outcome.code == 0, outcome.err
    assert one_object(outcome.out)["resumed_from"] == origin
    assert next(r for r in records(run) if r["kind"] == "step")["loss"] < 3.0


def test_overwrite_replaces_runs_only(cli: Any, text_file: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "config.yaml").write_text("mine: 1", encoding="utf-8")
    outcome = cli("train", text_file, *SMALL, "--out", project, "--overwrite")
    assert outcome.code == 2
    assert "is not a run folder" in outcome.err
    assert (project / "config.yaml").read_text("utf-8") == "mine: 1"
    assert cli("train", text_file, "--out", "", "--overwrite").code == 2


def test_a_moved_text_is_recognised_by_its_content(
    cli: Any, text_file: Path, tmp_path: Path
) -> None:
    here, there, run = tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "r"
    here.write_bytes(text_file.read_bytes())
    cli("train", here, *SMALL, "train.max_steps=4", "--out", run)
    here.rename(there)
    outcome = cli("train", f"data.source={there}", "train.max_steps=6", "--resume", "--extend",
                  "--out", run, "--json")  # fmt: skip
    assert outcome.code == 0, outcome.err
    there.write_text("another text " * 99, encoding="utf-8")
    refused = cli("train", "train.max_steps=9", "--resume", "--extend", "--out", run)
    assert refused.code == 2


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs POSIX pipes")
def test_a_closed_pipe_does_not_end_the_training(text_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "r"
    process = subprocess.Popen(
        [sys.executable, "-m", "gptcli", "train", str(text_file), *SMALL, "train.max_steps=100",
         "train.log_every=1", "--out", str(run)],
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    process.stderr.readline()
    process.stderr.close()
    process.wait(timeout=300)
    assert (run / "checkpoints" / "step-00000100").is_dir()


def test_a_file_named_like_an_override_and_a_section_override(
    cli: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.n_layer=1").write_text("a file of that name", encoding="utf-8")
    outcome = cli("train", text_file, *SMALL, "model={n_layer: 2}", "train.max_steps=2", "--out",
                  "r", "--json")  # fmt: skip
    assert outcome.code == 0, outcome.err
    config = yaml.safe_load(Path("r/config.yaml").read_text("utf-8"))
    assert (config["model"]["n_layer"], config["model"]["n_embd"]) == (2, 32)
    assert cli("sample", "r", "--threads", "100000").code == 2


@pytest.mark.slow
def test_training_without_torch_compile_does_not_import_it(text_file: Path, tmp_path: Path) -> None:
    words = ["train", "tiny", f"data.source={text_file}", "train.max_steps=2", "run.device=cpu"]
    program = (
        "import sys; from gptcli.cli import main\n"
        f"sys.argv = ['gptcli', *{[*words, '--out', str(tmp_path / 'run')]!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "sys.exit('torch._dynamo' in sys.modules)\n"
    )
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
