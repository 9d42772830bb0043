"""`gptcli learn` in a pseudo-terminal: keys, Ctrl-C, Ctrl-Z, the editor, TERM=dumb."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gptcli.cli.editor import editor
from gptcli.cli.keys import names_of
from gptcli.errors import GptcliError
from tests.view.view_screen import Screen

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX terminals")

SHELL = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
child = os.fork()
if child == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    from gptcli.course import checking
    from gptcli.course.report import FileReport

    def check(self, spec, exercise):
        text = open(spec).read()
        print("printed by the file", file=sys.stderr)
        if "explode" in text:
            raise ZeroDivisionError("in the checker")
        return FileReport(spec, exercise, "X", "passes" in text, "your scores are wrong", "scale",
                          4, hints=("one?", "two!", "three."))

    checking.Checker.check = check
    from gptcli.cli import main
    main()
while True:
    _, status = os.waitpid(child, os.WUNTRACED)
    os.tcsetpgrp(0, os.getpid())
    mode = termios.tcgetattr(0)[3]
    in_order = bool(mode & termios.ECHO and mode & termios.ICANON)
    if os.WIFSTOPPED(status):
        print("[stopped", in_order, end="]", flush=True)
        input()
        os.tcsetpgrp(0, child)
        os.kill(child, signal.SIGCONT)
    else:
        print("[exit", os.waitstatus_to_exitcode(status), in_order, end="]", flush=True)
        break
"""
"""The source of a small shell with job control. It runs gptcli as its child, with a quick check
instead of the real one, so that no test waits for PyTorch."""


class Terminal:
    """A pseudo-terminal in which the small shell SHELL runs `gptcli learn my`."""

    shell = SHELL
    arguments: tuple[str, ...] = ("learn", "my")

    def __init__(self, folder: Path, **environ: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "VISUAL")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.shell, *self.arguments],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True, cwd=folder,
            env={**kept, "TERM": "xterm", "PYTHONPATH": str(Path.cwd()), **environ},
        )  # fmt: skip
        os.close(slave)
        self.output, self.seen = "", 0

    def until(self, text: str) -> str:
        """Read the terminal's output until it contains `text`, and return all output so far.

        Each call searches after the text that the previous call found. Fails after 300 seconds."""
        end = time.monotonic() + 300
        while text not in self.output[self.seen :]:
            assert time.monotonic() < end, f"no {text!r} in {self.output[self.seen :][-2000:]!r}"
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    self.output += os.read(self.master, 1 << 16).decode("utf-8", "ignore")
                except OSError:
                    assert text in self.output[self.seen :], self.output[self.seen :]
        self.seen = self.output.index(text, self.seen) + len(text)
        return self.output

    def type(self, keys: str) -> None:
        """Send `keys` to the terminal, as if a user typed them."""
        os.write(self.master, keys.encode())

    def rows(self) -> list[str]:
        """The rows of the terminal's screen after the output that `until` has read so far."""
        screen = Screen(80, 24)
        screen.write(self.output.replace("\r\n", "\n"))
        assert screen.wrapped == 0
        return screen.rows()

    def close(self) -> None:
        """Close the terminal and end the shell."""
        os.close(self.master)
        self.process.kill()
        self.process.wait()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    one = Terminal(tmp_path, EDITOR="true")
    yield one
    one.close()


def test_a_visit_to_the_course(terminal: Terminal, tmp_path: Path) -> None:
    terminal.until("your scores are wrong")
    terminal.type("h")
    terminal.until("hint 1 of 3: ")
    terminal.type("hl")
    terminal.until("the course: ")
    terminal.type("\x1b[Bj\x1b")
    terminal.until("hint 2 of 3: ")
    rows = terminal.rows()
    assert sum("your scores are wrong" in row for row in rows) == 1
    assert sum("printed by the file" in row for row in rows) == 1
    assert len(rows) <= 24
    terminal.type("\x1a")  # Ctrl-Z
    terminal.until("[stopped True]")
    assert "hint 2" not in "\n".join(terminal.rows())
    terminal.type("\n")
    terminal.until("hint 2 of 3: ")
    fcntl.ioctl(terminal.master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 130, 0, 0))
    terminal.until("hint 2 of 3: ")
    (tmp_path / "my/attention.py").write_text("# passes\n", encoding="utf-8")
    terminal.until("attention passes: ")
    terminal.until("the reference")
    terminal.type("n")
    terminal.until("layernorm (week 3)")
    terminal.type("q")
    terminal.until("[exit 0 True]")
    assert "\x1b[?1049h" not in terminal.output
    value = json.loads((tmp_path / "my/progress.json").read_text("utf-8"))
    assert value["exercises"]["attention"]["hints_used"] == 2


def test_ctrl_c_restores_the_terminal(terminal: Terminal) -> None:
    terminal.until("your scores are wrong")
    terminal.type("\x03")
    terminal.until("interrupted")
    terminal.until("[exit 130 True]")


@pytest.mark.parametrize(
    ("command", "note"),
    [
        pytest.param(
            "nosuch-editor",
            "there is no program `nosuch-editor`, which $EDITOR names",
            id="missing",
            marks=pytest.mark.slow,
        ),
        pytest.param("false", "false ended with exit code 1", id="fails", marks=pytest.mark.slow),
        pytest.param(
            '{python} -c \'import sys; open(sys.argv[1], "w").write("explode")\'',
            "in the checker",
            id="saves",
        ),
    ],
)
def test_the_editor_gets_the_terminal(command: str, note: str, tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, EDITOR=command.format(python=sys.executable), NO_COLOR="1")
    try:
        terminal.until("your scores are wrong")
        terminal.type("e")
        terminal.until(note[-11:])
        terminal.until("quit")
        assert note in " ".join(" ".join(terminal.rows()).split())
        terminal.type("q")
        terminal.until("[exit 0 True]")
    finally:
        terminal.close()


def test_a_terminal_without_cursor_control_gets_pages(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, TERM="dumb")
    try:
        terminal.until("your scores are wrong")
        terminal.type("h")
        terminal.until("hint 1 of 3: one?")
        terminal.type("q")
        assert "\x1b" not in terminal.until("[exit 0 True]")
    finally:
        terminal.close()


def test_keys_have_names() -> None:
    typed = "hH\x1b[A\x1bOB\x1b[5~ \r\x04\x1bü\x1b[200~"
    assert names_of(typed) == [
        "h", "h", "up", "down", "page up", "page down", "enter", "q", "esc", "ü", "\x1b[200~",
    ]  # fmt: skip


def test_the_editor_is_the_one_that_is_set() -> None:
    assert editor({"VISUAL": "sh -x", "EDITOR": "false"}, Path("a.py")) == ["sh", "-x"]
    assert editor({"VISUAL": " ", "EDITOR": "sh"}, Path("a.py")) == ["sh"]
    with pytest.raises(GptcliError, match="no program `nosuch`"):
        editor({"EDITOR": "nosuch -w"}, Path("a.py"))
