"""Ctrl-C during the imports of a command ends the command with exit code 130."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gptcli import interrupts

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")

INTERRUPTED = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(9):  # Python runs the handler between two instructions
        pass
except BaseException:
    pass
raise ImportError("cannot load module more than once per process")
"""
"""The source of a module that replaces a library. It sends Ctrl-C to its own process while it is
imported, catches the exception, and stays half imported."""


TRAIN = ("train", "tiny", "--out")
"""The first words of a command that imports PyTorch. (`sample` with the C library does not.)"""


def run(
    module: str,
    folder: Path,
    *words: str,
    ignored: bool = False,
    first: str = "",
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run gptcli with a library `module` whose source is INTERRUPTED."""
    (folder / f"{module}.py").write_text(first + INTERRUPTED, "utf-8")
    before = signal.getsignal(signal.SIGINT)
    if ignored:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return subprocess.run(
            [sys.executable, "-m", "gptcli", *words],
            capture_output=True,
            text=True,
            check=False,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join((str(folder), os.environ.get("PYTHONPATH", ""))),
                **environment,
            },
        )
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("module", ["typer", "torch"])
def test_ctrl_c_during_an_import(module: str, tmp_path: Path) -> None:
    done = run(module, tmp_path, *TRAIN, str(tmp_path / "run"))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\ninterrupted\n")


def test_a_ctrl_c_that_the_caller_ignores_is_ignored(tmp_path: Path) -> None:
    done = run("torch", tmp_path, *TRAIN, str(tmp_path / "run"), ignored=True)
    assert done.returncode == 1
    assert "cannot load module" in done.stderr


def is_gone(group: int) -> bool:
    """Whether all processes of the group end within ten seconds.

    The `mv` of the fake compiler may still run for a moment."""
    for _ in range(1000):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="the C library is for Linux")
def test_ctrl_c_stops_a_running_compiler(tmp_path: Path) -> None:
    compiler, started = tmp_path / "cc", tmp_path / "pid"
    compiler.write_text(
        f"#!/bin/sh\necho $$ > {started}.new\nmv {started}.new {started}\nexec sleep 60"
    )
    compiler.chmod(0o700)
    first = f"import os, time\nwhile not os.path.exists({str(started)!r}):\n    time.sleep(0.01)\n"
    done = run(
        "torch",
        tmp_path,
        *TRAIN,
        str(tmp_path / "run"),
        first=first,
        CC=str(compiler),
        GPTCLI_CACHE=str(tmp_path / "cache"),
    )
    assert done.returncode == 130, done.stderr
    assert list((tmp_path / "cache" / "native").iterdir()) == []
    assert is_gone(int(started.read_text()))


def test_outside_imports_ctrl_c_is_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        interrupts.leave_imports_at_once()
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
