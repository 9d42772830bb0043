"""gptcli with stdout or stderr that is closed, full, or read by a program that has ended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")

SAMPLE = ("sample", "--max-new-tokens", "5", "--temperature", "0")


Shell = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def shell(program: list[str]) -> Shell:
    """shell(LINE, RUN, COMMAND, *WORDS) runs LINE in a shell.

    In LINE, "$@" stands for `gptcli COMMAND RUN WORDS`."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}

    def run_line(
        line: str, run: Path, command: str, *words: str, unbuffered: bool = False
    ) -> subprocess.CompletedProcess[str]:
        start = [*program, *(["-u"] if unbuffered else [])]
        return subprocess.run(
            ["sh", "-c", line, "sh", *start, command, str(run), *words],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )

    return run_line


@pytest.mark.long_series
@pytest.mark.parametrize("words", [SAMPLE, ("score", "TEXT"), ("eval",)], ids=lambda w: w[0])
def test_closed_streams(
    words: tuple[str, ...], trained: Path, text_file: Path, shell: Shell
) -> None:
    command, *more = [str(text_file) if word == "TEXT" else word for word in words]
    usual = shell('"$@"', trained, command, *more)
    done = shell('"$@" 2>&-', trained, command, *more)
    assert (done.returncode, done.stdout) == (0, usual.stdout)
    done = shell('"$@" >&-', trained, command, *more)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", usual.stderr)


def test_all_streams_closed(trained: Path, shell: Shell) -> None:
    assert shell('"$@" <&- >&- 2>&-', trained, *SAMPLE).returncode == 0


def test_no_other_file_gets_the_number_of_a_closed_stream() -> None:
    program = (
        "import os, sys\n"
        "from gptcli.cli.output import open_closed_streams\n"
        "open_closed_streams()\n"
        "sys.exit(not (os.path.samestat(os.fstat(2), os.stat(os.devnull))\n"
        "    and sys.stderr.fileno() == 2 and os.get_inheritable(2)))\n"
    )
    done = subprocess.run(["sh", "-c", '"$@" 2>&-', "sh", sys.executable, "-c", program])
    assert done.returncode == 0


@pytest.mark.long_series
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize(
    "words",
    [SAMPLE, (*SAMPLE, "--stream"), (*SAMPLE, "--json"), ("score", "TEXT")],
    ids=["sample", "stream", "json", "score"],
)
def test_a_full_stdout_is_named_in_the_error(
    words: tuple[str, ...], unbuffered: bool, trained: Path, text_file: Path, shell: Shell
) -> None:
    command, *more = [str(text_file) if word == "TEXT" else word for word in words]
    done = shell('"$@" >/dev/full', trained, command, *more, unbuffered=unbuffered)
    assert done.returncode == 1
    first, _, hint, *rest = done.stderr.splitlines()
    assert first == "error: standard output: No space left on device"
    assert "checkpoint" not in hint.lower()
    assert rest == []


@pytest.mark.long_series
@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_cut_off_output_fails(
    more: tuple[str, ...],
    unbuffered: bool,
    trained: Path,
    text_file: Path,
    tmp_path: Path,
    shell: Shell,
) -> None:
    long = tmp_path / "long.txt"
    long.write_text(text_file.read_text("utf-8") * 10, "utf-8")
    line = '{ "$@"; echo $? >&2; } | head -c 60 >/dev/null'
    done = shell(line, trained, "score", str(long), *more, unbuffered=unbuffered)
    assert done.stderr == "1\n"
