"""The worker process that runs learners' files: its time limits, crashes and printed output."""

from __future__ import annotations

import gc
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gptcli.course import check_file
from gptcli.course.checking import ask
from gptcli.course.sandbox.isolation import Worker
from gptcli.course.sandbox.learner_file import find_file
from gptcli.course.sandbox.syntax import syntax_tree
from tests.course.wrong_attention import FILES, WRONG_FILES

TEXTS = {mistake.name: mistake for mistake in WRONG_FILES}


def write(folder: Path, name: str) -> str:
    path = folder / f"{name}.py"
    path.write_text(TEXTS[name].text(), encoding="utf-8")
    return str(path)


@pytest.fixture(autouse=True)
def _new_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start a new worker process for each test of this file.

    A worker process writes to the stderr that existed when it started, which may be the stderr of
    an earlier test."""
    monkeypatch.setenv("GPTCLI_NEW_WORKER", "1")


@pytest.mark.slow
def test_prints_go_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    report = check_file(str(FILES / "loop_over_heads.py"))
    assert report.ok
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "a loop over 3 heads" in captured.err


@pytest.mark.slow
def test_output_that_bypasses_python_goes_to_stderr(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "writes.py"
    path.write_text(
        "import os; os.write(1, b'straight to 1\\n'); os.system('echo from a shell')\n"
        + (FILES / "fused_sdpa.py").read_text(encoding="utf-8"),
        encoding="utf-8",
    )
    assert check_file(str(path)).ok
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "straight to 1" in captured.err


@pytest.mark.slow
def test_worker_without_forks_goes_on_after_hangs_and_crashes(tmp_path: Path) -> None:
    """The worker process does not fork on macOS and Windows: it runs each file itself."""
    with Worker(fork=False) as worker:

        def check(spec: str, limit_s: float = 30.0) -> tuple[bool, str | None]:
            report = ask(worker, find_file(spec), limit_s)
            return report.ok, report.mistake

        assert check(str(FILES / "fused_sdpa.py")) == (True, None)
        assert check(write(tmp_path, "no_scale")) == (False, "scale-missing")
        assert check(write(tmp_path, "endless"), 0.5) == (False, "time-limit")
        assert check(str(FILES / "course_style.py")) == (True, None)
        assert check(write(tmp_path, "exit")) == (False, "crash")


def test_files_do_not_touch_each_other(tmp_path: Path) -> None:
    """A file that breaks torch does not affect the files that are checked after it.

    The reason is that the worker runs each file in a fork (on systems that have forks)."""
    path = tmp_path / "vandal.py"
    path.write_text(
        "import torch\ntorch.softmax = torch.nn.functional.softmax = None\n"
        + (FILES / "course_style.py").read_text(encoding="utf-8"),
        encoding="utf-8",
    )
    with Worker(fork=hasattr(os, "fork")) as worker:
        assert not ask(worker, find_file(str(path)), 30.0).ok
        if hasattr(os, "fork"):
            assert ask(worker, find_file(str(FILES / "course_style.py")), 30.0).ok


def test_time_limit_holds_and_no_process_stays(tmp_path: Path) -> None:
    """A time limit ends a file that ignores all exceptions, and ends the file's child process."""
    path = tmp_path / "stubborn.py"
    pid = tmp_path / "pid"
    path.write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(pid)!r}, 'w').write(str(child.pid))\n"
        "while True:\n    try:\n        time.sleep(600)\n    except BaseException:\n        pass\n",
        encoding="utf-8",
    )
    start = time.monotonic()
    report = check_file(str(path), limit_s=1.0)
    assert report.mistake == "time-limit"
    assert "at line 6 of stubborn.py, `time.sleep(600)`" in report.message
    assert time.monotonic() - start < 300.0  # without the limit, the file would run for 600 s
    if os.name == "posix":
        _wait_for_end(int(pid.read_text(encoding="utf-8")))


def _wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + 300.0
    while time.monotonic() < deadline:
        status = Path(f"/proc/{pid}/stat")
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        # "Z" stands for a zombie: the process has ended, but nobody has asked for its exit code
        # yet.
        if status.exists() and ") Z " in status.read_text(encoding="utf-8"):
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} is still there")


def test_threads_parse_at_once() -> None:
    """Several threads can parse files at the same time.

    In Python 3.11, ast.parse can raise SystemError if a garbage collection lets another thread
    parse, too. gptcli's lock prevents this."""
    text = "x = [(1, 2), {3: 4}]\n" * 20
    threshold = gc.get_threshold()

    def pause(*_: object) -> None:
        time.sleep(0)

    gc.callbacks.append(pause)
    gc.set_threshold(20)
    try:
        with ThreadPoolExecutor(4) as pool:
            trees = list(pool.map(syntax_tree, [text] * 50))
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(pause)
    assert {len(tree.body) for tree in trees} == {20}


@pytest.mark.slow
def test_a_file_can_use_what_the_worker_has_not_imported(tmp_path: Path) -> None:
    """The worker imports torch.export and torch._meta_registrations only if a file uses them."""
    text = (FILES / "course_style.py").read_text("utf-8")
    head = (
        "import torch.export\n"
        "import torch._meta_registrations\n"
        "from torch.export import Dim\n"
        "assert torch.export.export is not None and Dim('batch') is not None\n"
        "assert len(dir(torch._meta_registrations)) > 100\n"
        "shape = (torch.empty(2, 3, device='meta') @ torch.empty(3, 5, device='meta')).shape\n"
        "assert shape == (2, 5)\n"
    )
    path = tmp_path / "mine.py"
    path.write_text(head + text, encoding="utf-8")
    assert check_file(str(path)).ok
