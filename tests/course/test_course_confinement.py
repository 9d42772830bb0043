"""A graded file changes nothing outside its folder, reads no others' work, ends no process."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gptcli.course.checking import Checker
from gptcli.course.report import FileReport
from gptcli.course.sandbox.confinement import landlock_version
from gptcli.course.sandbox.descendants import descendants
from gptcli.course.sandbox.isolation import Limits
from gptcli.course.sandbox.learner_file import find_file
from tests.course.part_files import BASE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="only forks are confined"),
    pytest.mark.skipif(landlock_version() < 1, reason="this kernel has no Landlock"),
]
LAYERNORM = BASE["layernorm"]
FORWARD = "    def forward(self, x):\n"


class Room:
    """A class of two students: the file of one runs, that of the other has to stay unread."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.outside = folder / "class", folder / "outside"
        self.mine, self.other = self.folder / "mine", self.folder / "other"
        for place in (self.outside, self.mine, self.other):
            place.mkdir(parents=True)
        (self.outside / "exam.txt").write_text("precious", encoding="utf-8")
        (self.other / "layernorm.py").write_text("SECRET = 1\n", encoding="utf-8")
        self.checker = Checker(8.0, Limits(file_bytes=16 << 20, quiet=True, hidden=self.folder))

    def run(self, code: str) -> FileReport:
        """The report on a right file that first runs `code` in forward."""
        lines = "".join(f"        {line}\n" for line in code.splitlines())
        path = self.mine / "layernorm.py"
        assert FORWARD in LAYERNORM
        path.write_text(LAYERNORM.replace(FORWARD, FORWARD + lines), encoding="utf-8")
        return self.checker.check_found(find_file(str(path), "layernorm"), 8.0, self.mine)

    def state(self) -> dict[str, tuple[int, float, bytes]]:
        """What must not change: permissions, times and bytes outside the file's own folder."""
        found = {}
        for place in (self.outside, self.other):
            for path in (place, *sorted(place.rglob("*"))):
                status = path.stat()
                data = path.read_bytes() if path.is_file() else b""
                found[str(path)] = (status.st_mode, status.st_mtime, data)
        return found


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    room = Room(tmp_path_factory.mktemp("room"))
    try:
        yield room
    finally:
        room.checker.stop()


# Each is tried, and whatever it raises is swallowed: a right file passes if nothing had an effect.
CHANGES = {
    "write": "open(P + '/new.txt', 'w').write('x')",
    "append": "open(P + '/exam.txt', 'a').write('x')",
    "remove": "__import__('os').remove(P + '/exam.txt')",
    "rename": "__import__('os').rename(P + '/exam.txt', P + '/other.txt')",
    "take away": "__import__('os').rename(P + '/exam.txt', 'exam.txt')",
    "truncate": "__import__('os').truncate(P + '/exam.txt', 0)",
    "link": "__import__('os').symlink('/etc/passwd', P + '/link')",
    "permissions": "__import__('os').chmod(P + '/exam.txt', 0)",
    "times": "__import__('os').utime(P + '/exam.txt', (1, 1))",
    "tree": "__import__('shutil').rmtree(P)",
    "shell": "__import__('os').system('rm -rf ' + P + '; touch ' + P + '/t; chmod 0 ' + P)",
    "torch": "torch.save(x, P + '/x.pt')",
    "through a link": "(__import__('os').symlink(P, 'l'), open('l/exam.txt', 'w').write('x'))",
}


@pytest.mark.parametrize("name", CHANGES)
def test_nothing_outside_the_folder_changes(name: str, room: Room) -> None:
    before = room.state()
    code = f"P = {str(room.outside)!r}\ntry:\n    {CHANGES[name]}\nexcept Exception:\n    pass"
    report = room.run(code)
    assert report.ok, report.message
    assert room.state() == before


READS = {
    "open": "open(P + '/layernorm.py').read()",
    "list": "' '.join(__import__('os').listdir(P))",
    "shell": "__import__('subprocess').run(['cat', P + '/layernorm.py'], capture_output=True,"
    " text=True).stdout",
    "through a link": "(__import__('os').symlink(P, 'm'), open('m/layernorm.py').read())[1]",
}


@pytest.mark.parametrize("name", READS)
def test_the_work_of_others_is_not_read(name: str, room: Room) -> None:
    code = (
        f"P = {str(room.other)!r}\ngot = ''\ntry:\n    got = {READS[name]}\nexcept OSError:\n"
        "    pass\nassert not got, got"
    )
    report = room.run(code)
    assert report.ok, report.message


@pytest.mark.skipif(landlock_version() < 6, reason="this kernel keeps no signals inside")
@pytest.mark.parametrize(
    "code",
    [
        "import os\nos.kill(os.getppid(), 9)",
        "import ctypes, os\nctypes.CDLL(None).kill(os.getppid(), 9)",
        "import os\nos.system(f'kill -9 {os.getppid()}')",
    ],
)
def test_no_process_outside_is_ended(code: str, room: Room) -> None:
    indented = "".join(f"    {line}\n" for line in code.splitlines())
    report = room.run(f"try:\n{indented}except PermissionError:\n    pass")
    assert report.ok, report.message
    assert room.run("pass").ok  # the worker lives


@pytest.mark.parametrize(
    "code",
    [
        "for i in range(10**6):\n    open(f'f{i}', 'wb').write(b'x' * (8 << 20))",
        "import os\nkept = []\nfor i in range(10**6):\n    f = open(f'g{i}', 'wb')\n"
        "    os.unlink(f'g{i}')\n    f.write(b'x' * (8 << 20))\n    f.flush()\n    kept.append(f)",
    ],
    ids=["many files", "files without a name"],
)
def test_the_disk_is_not_filled(code: str, room: Room) -> None:
    report = room.run(code)
    assert "it wrote more than 256 MiB" in report.message or "Too many open" in report.message
    for path in room.mine.glob("f*"):
        path.unlink()


@pytest.mark.parametrize(
    "code",
    [
        "import signal, time\nfor s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):\n"
        "    signal.signal(s, signal.SIG_IGN)\nwhile True:\n    time.sleep(100)",
        "import os\nos.system('bash -c \":(){ :|:& };:\"')\nwhile True:\n    pass",
        "import os\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        __import__('time').sleep(775)\n    os._exit(0)",
    ],
    ids=["ignores signals", "bomb", "daemon"],
)
def test_no_process_is_left(code: str, room: Room) -> None:
    before = set(descendants())
    start = time.monotonic()
    room.run(code)
    while len(set(descendants()) - before) > 1:  # one is the worker, if it had to start again
        assert time.monotonic() - start < 60
        time.sleep(0.05)


def test_the_environment_of_the_next_file_is_clean(room: Room) -> None:
    code = "import os, sys\nos.environ.clear()\nsys.path.clear()\nos.chdir('/')"
    assert room.run(code).ok
    assert room.run("import os, json\nassert os.environ.get('PATH') and os.getcwd() != '/'").ok
    assert os.environ.get("PATH")
