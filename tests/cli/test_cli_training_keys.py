"""The keys of the live view: each does what its label says, and the terminal is always restored."""

from __future__ import annotations

import json
import os
import pty
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gptcli import interrupts
from gptcli.cli import training_keys
from gptcli.cli.signals import Stop
from gptcli.cli.training_keys import TrainingKeys
from gptcli.training import checkpoint
from tests.cli.test_cli_learn_terminal import SHELL, Terminal
from tests.conftest import SMALL

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX terminals")


class _Typed:
    """Replaces standard input by a pseudo-terminal, on which tests can press keys."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.master, self.slave = pty.openpty()
        self.stdin = os.fdopen(self.slave, "r")
        monkeypatch.setattr(sys, "stdin", self.stdin)
        self.group = os.getpgrp()
        monkeypatch.setattr(os, "tcgetpgrp", lambda fd: self.group)
        monkeypatch.setattr(training_keys, "POLL_SECONDS", 0.0)

    def press(self, keys: TrainingKeys, text: str) -> None:
        os.write(self.master, text.encode())
        time.sleep(0.02)
        keys.poll()

    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self.slave)[3] & termios.ECHO)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Typed]:
    one = _Typed(monkeypatch)
    yield one
    one.stdin.close()
    os.close(one.master)


def test_each_key_is_a_wish_once(typed: _Typed) -> None:
    shown: list[str] = []
    stop = Stop()
    with TrainingKeys(stop, shown.append) as keys:
        assert not typed.echoes()
        for text in ("s", "s", "E", "c", "?", "x", "\x1b[B"):
            typed.press(keys, text)
        assert keys.wishes() == ["sample", "evaluate", "checkpoint"]
        assert keys.wishes() == []
        assert shown == ["s", "e", "c", "?"]
        assert not keys.wanted()
        typed.press(keys, "q")
        assert keys.wanted()
        assert stop.wanted()
    assert typed.echoes()
    assert keys._give_back not in interrupts.before_leaving


def test_pasted_text_is_no_key(typed: _Typed) -> None:
    with TrainingKeys(Stop(), lambda key: None) as keys:
        typed.press(keys, "quick: please sample and evaluate")
        assert not keys.wanted()
        assert keys.wishes() == []


def test_in_the_background_the_terminal_is_not_touched(typed: _Typed) -> None:
    typed.group += 1  # as if another program were in the foreground
    with TrainingKeys(Stop(), lambda key: None) as keys:
        typed.press(keys, "q")
        assert typed.echoes()
        assert not keys.wanted()
        typed.group -= 1  # as after the shell's command `fg`
        keys.poll()
        assert not typed.echoes()
    assert typed.echoes()


class Training(Terminal):
    """A pseudo-terminal in which a small shell starts a long training of a tiny network."""

    shell = (
        SHELL[: SHELL.index("    from gptcli.course import")]
        + SHELL[SHELL.index("    from gptcli.cli import main") :]
    )

    def __init__(self, folder: Path, text: Path) -> None:
        self.arguments = (
            "train", str(text), "--out", "r", *SMALL, "train.max_steps=100000",
            "model.block_size=16", "model.n_embd=16", "train.eval_every=90000", "run.compile=false",
        )  # fmt: skip
        super().__init__(folder)

    def until(self, text: str) -> str:
        """Read until `text` appears.

        Waits up to four times as long as Terminal.until, because the import of PyTorch takes long
        on a busy machine."""
        for _ in range(3):
            try:
                return super().until(text)
            except AssertionError:
                if self.process.poll() is not None:
                    raise
        return super().until(text)


@pytest.fixture
def training(tmp_path: Path, text_file: Path) -> Iterator[Training]:
    one = Training(tmp_path, text_file)
    yield one
    one.close()


@pytest.mark.slow
def test_keys_sample_evaluate_save_and_quit(training: Training, tmp_path: Path) -> None:
    training.until("save and quit")
    for key, seen in (
        ("s", "sample at step"),
        ("e", "evaluated at step"),
        ("c", "checkpoint saved at step"),
        ("?", "close help"),
        ("?", "sample at step"),
    ):
        training.type(key)
        training.until(seen)
    training.type("q")
    training.until("go on with: gptcli train --resume --out r")
    training.until("[exit 130 True]")
    run = tmp_path / "r"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {record["kind"] for record in records} == {"step"}
    assert (run / "samples.txt").read_text("utf-8").startswith("=== step ")
    assert len(checkpoint.steps_of(run)) == 2


@pytest.mark.slow
def test_ctrl_z_gives_the_terminal_back(training: Training) -> None:
    training.until("save and quit")
    training.type("\x1a")
    training.until("[stopped True]")
    training.type("\n")
    training.until("elapsed")
    training.type("?")
    training.until("close help")
    training.type("\x03")
    training.until("[exit 130 True]")
