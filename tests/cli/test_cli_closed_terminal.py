"""A training saves its run even if its terminal is closed, or if its stdout or stderr is full."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors import safe_open

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX terminals")
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")

SLOW = """
import fcntl, os, sys, termios, time
from pathlib import Path
from gptcli.training.passes import TorchPasses

mark, controls = Path(sys.argv.pop(1)), sys.argv.pop(1) == "controls"
if controls:  # like the terminal of a login: closing it sends SIGHUP
    fcntl.ioctl(2, termios.TIOCSCTTY, 0)
steps, step = [], TorchPasses.gradients

def slow(self, *arguments, **more):
    steps.append(1)
    if len(steps) == 3:
        mark.touch()
        while mark.exists():  # until the terminal is closed
            time.sleep(0.01)
    print("a line that a user's module prints")
    return step(self, *arguments, **more)

TorchPasses.gradients = slow
from gptcli.cli import main
main()
"""
"""The source of a program that trains. Its third step waits until the terminal is closed."""

SMALL = (
    "model.n_layer=1",
    "model.n_head=2",
    "model.n_embd=32",
    "model.block_size=32",
    "train.batch_size=8",
    "train.max_steps=6",
    "train.log_every=1",
    "run.threads=1",
    "run.engine=torch",
    "run.dtype=float32",
    "run.device=cpu",
)


def words(text: Path, run: Path, *more: str) -> list[str]:
    return ["train", str(text), *SMALL, "--out", str(run), *more]


def status(run: Path) -> tuple[str, int]:
    """What run.json says about how the run ended, and the step of the run's newest checkpoint."""
    newest = max((run / "checkpoints").glob("step-*"))
    with safe_open(newest / "model.safetensors", "np") as tensors:
        assert tensors.keys()
    return json.loads((run / "run.json").read_bytes())["stopped"], int(newest.name[5:])


@pytest.mark.long_series
@pytest.mark.parametrize(
    ("controls", "term"),
    [
        pytest.param(True, "xterm", id="hang-up-live view"),
        pytest.param(True, "dumb", id="hang-up-plain lines", marks=pytest.mark.slow),
        pytest.param(False, "xterm", id="disowned-live view", marks=pytest.mark.slow),
        pytest.param(False, "dumb", id="disowned-plain lines"),
    ],
)
def test_a_closed_terminal_does_not_lose_the_run(
    controls: bool, term: str, text_file: Path, tmp_path: Path
) -> None:
    run, mark = tmp_path / "r", tmp_path / "mark"
    master, terminal = os.openpty()
    child = subprocess.Popen(
        [
            *(
                sys.executable,
                "-c",
                SLOW,
                str(mark),
                "controls" if controls else "does not control",
            ),
            *words(text_file, run),
        ],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "TERM": term},
        start_new_session=True,
    )
    os.close(terminal)
    shown = b""
    try:
        end = time.monotonic() + 300
        while not mark.exists() and child.poll() is None and time.monotonic() < end:
            if select.select([master], [], [], 0.02)[0]:
                shown += os.read(master, 65536)
        assert mark.exists(), shown.decode()
    finally:
        os.close(master)
        mark.unlink(missing_ok=True)
        try:
            code = child.wait(300)
        finally:
            child.kill()
    assert (b"\x1b[?25l" in shown) == (term == "xterm")
    assert (code, *status(run)) == ((130, "interrupted", 3) if controls else (0, "done", 6))


@pytest.mark.slow
@pytest.mark.long_series
@needs_full
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_full_stderr_changes_nothing(
    more: tuple[str, ...], text_file: Path, tmp_path: Path, program: list[str]
) -> None:
    run = tmp_path / "r"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*program, *words(text_file, run, *more)],
            stdout=subprocess.PIPE,
            stderr=full,
            check=False,
        )
        missing = subprocess.run(
            [*program, "sample", str(tmp_path / "none")],
            stderr=full,
            check=False,
        )
    assert (done.returncode, *status(run)) == (0, "done", 6)
    assert not more or json.loads(done.stdout)["steps"] == 6
    assert missing.returncode == 2


@needs_full
def test_a_full_stdout_is_an_error_but_the_run_is_saved(
    text_file: Path, tmp_path: Path, program: list[str]
) -> None:
    run = tmp_path / "r"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*program, *words(text_file, run, "--json")],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, *status(run)) == (1, "done", 6)
    assert "error: standard output: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


@needs_full
def test_a_full_stdout_does_not_hide_why_a_run_failed(
    text_file: Path, tmp_path: Path, program: list[str]
) -> None:
    run = tmp_path / "r"
    subprocess.run([*program, *words(text_file, run)], check=True, capture_output=True)
    (run / "samples.txt").unlink(missing_ok=True)
    (run / "samples.txt").mkdir()
    with Path("/dev/full").open("w") as full:
        more = ["train", "train.max_steps=9", "--resume", "--extend", "--out", str(run), "--json"]
        done = subprocess.run(
            [*program, *more],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert "samples.txt" in done.stderr
    assert "No space left" not in done.stderr


def test_a_closed_terminal_never_counts_as_the_second_ctrl_c(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from gptcli.cli.signals import LeaveAtOnce, stop_on_signals

    clock = iter([100.0, 200.0, 300.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        try:
            os.kill(os.getpid(), signal.SIGHUP)
        except LeaveAtOnce:
            pytest.fail("ended without saving")
        assert stop.wanted()
