"""run.loggers in a training: loggers write all rows of metrics.jsonl, and a faulty logger never
stops a run."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gptcli.config_files import load_config
from gptcli.loggers import processes
from gptcli.loggers.rows import COLUMNS, Row, Rows
from gptcli.training.run_folder import read_config
from tests.conftest import SMALL

TRAIN = (*SMALL, "run.dtype=float32", "train.log_every=2", "train.eval_every=5")


def rows_of(run: Path) -> list[dict[str, str]]:
    """The rows that metrics.csv must have: the rows of metrics.jsonl, with all values as text."""
    return [
        {"step": str(item.step)} | {name: str(item.values.get(name, "")) for name in COLUMNS}
        for item in Rows(run).read(ended=True)
        if isinstance(item, Row)
    ]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def same_numbers(run: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl without the values that depend on the clock."""
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    clock = ("seconds", "tokens_per_second")
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


def fake_package(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Make a package `trackio` that can be imported, and that runs `code` when it is imported."""
    (folder / "fake" / "trackio").mkdir(parents=True)
    (folder / "fake" / "trackio" / "__init__.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder / "fake"))


# ---- the config ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "loggers"),
    [
        ("", []), ("null", []), ("[]", []), ("csv", ["csv"]), ("csv,wandb", ["csv", "wandb"]),
        ("csv, tensorboard", ["csv", "tensorboard"]), ("[trackio, csv]", ["trackio", "csv"]),
        ("csv,csv", ["csv"]), ("CSV", ["csv"]), ("[csv, csv]", ["csv"]),
    ],
)  # fmt: skip
def test_loggers_as_people_write_them(text: str, loggers: list[str], tmp_path: Path) -> None:
    assert load_config("tiny", [f"run.loggers={text}"]).run.loggers == loggers
    path = tmp_path / "mine.yaml"
    path.write_text(f"run:\n  loggers: {text}\n")
    assert load_config(str(path)).run.loggers == loggers


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("csv,tensorbord", "did you mean `tensorboard`?"),
        ("[wandbb]", "did you mean `wandb`?"),
        ("mlflow", "the loggers are: csv, tensorboard, trackio, wandb"),
        ("5", "must be a list of loggers: csv, tensorboard, trackio, wandb; got `5`"),
        ("[1]", "must be a list of loggers"),
        ("{csv: true}", "must be a list of loggers"),
    ],
)
def test_an_unknown_logger(value: str, words: str, cli: Any) -> None:
    outcome = cli("train", "tiny", f"run.loggers={value}")
    assert outcome.code == 2
    assert words in outcome.err


@pytest.mark.parametrize("command", [("train", "tiny", "run.loggers=wandb"), ("log", "--to=wandb")])
def test_a_missing_package_is_an_error_before_anything_happens(
    command: tuple[str, ...], cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # The package wandb makes a folder named wandb. This folder must not be taken for the package.
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "__init__.py").write_text("raise SystemExit('ran')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), ""])
    outcome = cli(*command)
    assert outcome.code == 2
    assert "hint: pip install wandb" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["wandb"]


# ---- training ------------------------------------------------------------------------------------


def test_the_table_has_the_rows_of_the_run_also_after_a_resume(
    cli: Any, text_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    outcome = cli("train", text_file, "--out", run, *TRAIN, "train.max_steps=12", "run.loggers=csv")
    assert outcome.code == 0, outcome.err
    assert f"csv: {run}/metrics.csv" in outcome.err
    first = table(run / "metrics.csv")
    assert first == rows_of(run)
    assert [row["step"] for row in first] == ["1", "2", "4", "5", "6", "8", "10", "12"]
    assert [row["step"] for row in first if row["val_loss"]] == ["5", "10", "12"]
    assert read_config(run).run.loggers == ["csv"]
    # Delete the last checkpoint, as if the run had crashed after it logged step 12. The newest
    # remaining checkpoint is that of step 10.
    shutil.rmtree(run / "checkpoints" / "step-00000012")
    outcome = cli("train", "--resume", "--extend", "--out", run, "train.max_steps=16")
    assert outcome.code == 0, outcome.err
    second = table(run / "metrics.csv")
    assert second == rows_of(run)
    assert [row["step"] for row in second][-4:] == ["12", "14", "15", "16"]
    assert second[:6] == first[:6]
    starts = json.loads((run / "run.json").read_text())["starts"]
    assert [start["seconds"] for start in starts] == sorted(start["seconds"] for start in starts)
    assert len(starts) == 2


@pytest.mark.slow
def test_loggers_can_change_at_a_resume(cli: Any, text_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    cli("train", text_file, "--out", run, *TRAIN, "train.max_steps=4")
    assert not (run / "metrics.csv").exists()
    more = ("--resume", "--extend", "--out", run, "train.max_steps=8")
    outcome = cli("train", *more, "run.loggers=csv")
    assert outcome.code == 0, outcome.err
    assert "run.loggers is now csv" in outcome.err
    assert table(run / "metrics.csv") == rows_of(run)
    outcome = cli("train", *more[:-1], "train.max_steps=10", "run.loggers=[]")
    assert "run.loggers is now none" in outcome.err
    assert len(table(run / "metrics.csv")) < len(rows_of(run))
    assert cli("sample", run, "-n", "3").code == 0


def slow(*values: str) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


IMPORT_ERROR = "raise ImportError('libsqlite3.so is missing')"
CRASH = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
HANG = "import time; time.sleep(600)"
NO_ANSWER = "import os; print('{}'); os.write(2, b'noise\\nlast words\\n'); os._exit(3)"


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize(
    ("code", "words"),
    [
        (IMPORT_ERROR, "failed: ImportError: libsqlite3.so is missing"),
        slow("raise SystemExit('enough')", "failed: SystemExit: enough"),
        slow(CRASH, "failed: its process ended with code -9"),
        slow(NO_ANSWER, "failed: its process ended with code 3: last words"),
        slow(HANG, "did not finish in time, and was ended"),
    ],
    ids=["import-error", "exit", "crash", "no-answer", "hang"],
)
def test_a_logger_that_fails_stops_nothing(
    code: str,
    words: str,
    cli: Any,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, run = tmp_path / "plain", tmp_path / "run"
    train = ("train", text_file, *TRAIN, "train.max_steps=6")
    cli(*train, "--out", plain)
    fake_package(tmp_path, monkeypatch, code)
    # gptcli ends a hanging logger after 5 seconds here. The other faulty loggers end by themselves,
    # much earlier than after 300 seconds.
    monkeypatch.setattr(processes, "FINISH_S", 5.0 if code == HANG else 300.0)
    begun = time.monotonic()
    outcome = cli(*train, "--out", run, "run.loggers=trackio,csv")
    assert time.monotonic() - begun < 600  # HANG sleeps for 600 seconds
    assert outcome.code == 0, outcome.err
    warnings = [line for line in outcome.err.splitlines() if "WARNING" in line]
    again = f"The run is not affected; gptcli log {run} --to trackio writes the log"
    assert warnings == [f"WARNING: the logger trackio {words}. {again}"]
    step = "checkpoints/step-00000006/model.safetensors"
    assert (run / step).read_bytes() == (plain / step).read_bytes()
    assert same_numbers(run) == same_numbers(plain)
    # The failing logger does not affect the logger csv.
    assert table(run / "metrics.csv") == rows_of(run)
    status = json.loads((run / "run.json").read_text())
    assert (status["stopped"], status["steps"]) == ("done", 6)


@pytest.mark.skipif(sys.platform == "win32", reason="needs links")
@pytest.mark.slow
def test_a_log_is_never_written_outside_the_run_folder(
    cli: Any, text_file: Path, tmp_path: Path
) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside.csv"
    cli("train", text_file, "--out", run, *TRAIN, "train.max_steps=2")
    outside.write_text("mine")
    (run / "metrics.csv").symlink_to(outside)
    more = ("train", "--resume", "--extend", "--out", run, "train.max_steps=4")
    outcome = cli(*more, "run.loggers=csv")
    assert outcome.code == 0
    assert f"A link to {outside}, outside {run}" in outcome.err
    outcome = cli("log", run)
    assert outcome.code == 1
    assert outside.read_text() == "mine"


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_log_is_complete_after_a_signal(
    number: signal.Signals, text_file: Path, tmp_path: Path
) -> None:
    """Even if SIGKILL ends the training, the process of the logger still writes all rows of
    metrics.jsonl, and then ends."""
    run = tmp_path / "run"
    command = [
        sys.executable, "-m", "gptcli", "train", str(text_file), "--out", str(run), *TRAIN,
        "train.max_steps=1000000", "train.log_every=1", "train.checkpoint_every=20",
        "run.loggers=csv",
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        until = time.monotonic() + 300
        while not (run / "metrics.csv").exists() and time.monotonic() < until:
            time.sleep(0.1)
        assert (run / "metrics.csv").exists(), "the log appears while the run trains"
        process.send_signal(number)
        assert process.wait(timeout=300) == (130 if number == signal.SIGINT else -9)
    until = time.monotonic() + 300
    while table(run / "metrics.csv") != rows_of(run) and time.monotonic() < until:
        time.sleep(0.1)
    assert table(run / "metrics.csv") == rows_of(run)


@pytest.mark.slow
def test_overwrite_replaces_the_logs_too(cli: Any, text_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train = ("train", text_file, "--out", run, *TRAIN, "train.max_steps=2")
    cli(*train, "run.loggers=csv")
    (run / "loggers" / "tensorboard").mkdir(parents=True)
    (run / "loggers" / "tensorboard" / "log").write_text("old")
    assert cli(*train, "--overwrite").code == 0
    assert not (run / "metrics.csv").exists()
    assert not (run / "loggers").exists()


def test_a_restored_run_has_its_logs(tmp_path: Path) -> None:
    from gptcli.training.run_folder import move_to_replaced, restore_replaced

    def logs(text: str) -> None:
        (tmp_path / "loggers").mkdir()
        (tmp_path / "loggers" / "log").write_text(text)
        for name in ("metrics.csv", "config.yaml"):
            (tmp_path / name).write_text(text)

    logs("old")
    move_to_replaced(tmp_path)
    assert not (tmp_path / "loggers").exists()
    logs("new")
    assert restore_replaced(tmp_path)
    for name in ("metrics.csv", "config.yaml", "loggers/log"):
        assert (tmp_path / name).read_text() == "old"
    assert not (tmp_path / ".replaced").exists()


# ---- gptcli log ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_log_writes_the_table_afterwards(trained: Path, cli: Any, tmp_path: Path) -> None:
    for _ in range(2):
        outcome = cli("log", trained, "--out", tmp_path / "log.csv")
        assert outcome.code == 0, outcome.err
        assert outcome.out == f"wrote {len(rows_of(trained))} steps: {tmp_path}/log.csv\n"
        assert table(tmp_path / "log.csv") == rows_of(trained)
    assert rows_of(trained)


def test_log_keeps_a_file_that_gptcli_did_not_write(
    trained: Path, cli: Any, tmp_path: Path
) -> None:
    (tmp_path / "mine.csv").write_text("a,b\n1,2\n")
    outcome = cli("log", trained, "--out", tmp_path / "mine.csv")
    assert outcome.code == 1
    assert "exists, and is not a log that gptcli wrote" in outcome.err
    assert (tmp_path / "mine.csv").read_text() == "a,b\n1,2\n"


def test_log_of_a_run_without_steps(trained: Path, cli: Any, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    (run / "metrics.jsonl").unlink()
    outcome = cli("log", run)
    assert outcome.code == 2
    assert "has no logged steps yet" in outcome.err
    assert not (run / "metrics.csv").exists()


@pytest.mark.slow
def test_log_while_the_run_trains(trained: Path, cli: Any, tmp_path: Path) -> None:
    from gptcli.files.durable import folder_lock

    run = Path(shutil.copytree(trained, tmp_path / "run"))
    config = (run / "config.yaml").read_text()
    with folder_lock(run):
        # This run has no loggers, so `gptcli log` is the only program that writes the log.
        assert cli("log", run).code == 0
        (run / "config.yaml").write_text(config.replace("loggers: []", "loggers: [csv]"))
        outcome = cli("log", run)
        assert outcome.code == 1
        assert "writes this log itself" in outcome.err
        assert cli("log", run, "--out", tmp_path / "log.csv").code == 0
    assert cli("log", run).code == 0


def test_an_unknown_logger_of_log(cli: Any) -> None:
    outcome = cli("log", "--to", "tensorbord")
    assert outcome.code == 2
    assert "did you mean `tensorboard`?" in outcome.err
