"""A graded file cannot change other folders, read other students' work or end other processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gptcli.course.checking import Checker
from gptcli.course.report import FileReport
from gptcli.course.sandbox.confinement import landlock_version
from gptcli.course.sandbox.descendants import descendants
from gptcli.course.sandbox.isolation import Limits, Worker
from gptcli.course.sandbox.learner_file import find_file
from tests.course.part_files import BASE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux confines files"),
    pytest.mark.skipif(landlock_version() < 1, reason="this kernel has no Landlock"),
]
LAYERNORM = BASE["layernorm"]
FORWARD = "    def forward(self, x):\n"


class Room:
    """The folders of two students of a class.

    The tests run the file of one student, which must not read the file of the other student."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.outside = folder / "class", folder / "outside"
        self.mine, self.other = self.folder / "mine", self.folder / "other"
        for place in (self.outside, self.mine, self.other):
            place.mkdir(parents=True)
        (self.outside / "exam.txt").write_text("precious", encoding="utf-8")
        (self.other / "layernorm.py").write_text("SECRET = 1\n", encoding="utf-8")
        self.checker = Checker(8.0, Limits(file_bytes=16 << 20, quiet=True, hidden=self.folder))

    def run(self, code: str, top: str = "") -> FileReport:
        """The report on a right layer norm: its file starts with `top`, its forward runs `code`."""
        lines = "".join(f"        {line}\n" for line in code.splitlines())
        path = self.mine / "layernorm.py"
        assert FORWARD in LAYERNORM
        path.write_text(top + LAYERNORM.replace(FORWARD, FORWARD + lines), encoding="utf-8")
        return self.checker.check_found(find_file(str(path), "layernorm"), 8.0, self.mine)

    def state(self) -> dict[str, tuple[int, float, bytes]]:
        """Path -> (permissions, time, bytes) of all that the graded file must not change."""
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


# What a graded file tries to change outside its folder. The file ignores the errors that these
# attempts cause, so it passes the check. But nothing outside its folder changes.
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


@pytest.mark.skipif(landlock_version() < 6, reason="this kernel confines no signals")
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
    assert room.run("pass").ok  # the worker process still answers


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
        "import os\nos.system('for i in 1 2 3 4; do setsid sleep 775 & done; wait')",
        "import os\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        __import__('time').sleep(775)\n    os._exit(0)",
    ],
    ids=["ignores signals", "sessions of a shell", "daemon"],
)
def test_no_process_is_left(code: str, room: Room) -> None:
    before = set(descendants())
    start = time.monotonic()
    room.run(code)
    while len(set(descendants()) - before) > 1:  # a new worker process may remain
        assert time.monotonic() - start < 300
        time.sleep(0.05)


def test_the_environment_of_the_next_file_is_clean(room: Room) -> None:
    code = "import os, sys\nos.environ.clear()\nsys.path.clear()\nos.chdir('/')"
    assert room.run(code).ok
    assert room.run("import os, json\nassert os.environ.get('PATH') and os.getcwd() != '/'").ok
    assert os.environ.get("PATH")


def test_python_alone_refuses_on_an_older_kernel(tmp_path: Path) -> None:
    room, mine = tmp_path / "room", tmp_path / "copy"
    packages = room / ".venv" / "site-packages"
    for folder in (packages, mine, room / "other"):
        folder.mkdir(parents=True)
    (packages / "package.py").write_text("value = 5\n", encoding="utf-8")
    (room / "other" / "mlp.py").write_text("secret", encoding="utf-8")
    code = f"""if True:
        import os, sys, tempfile
        from pathlib import Path
        from gptcli.course.sandbox import confinement
        confinement.landlock_version = lambda: 0
        confinement._keep_attributes = lambda: None
        room, mine = Path({str(room)!r}), Path({str(mine)!r})
        sys.path.append(str(room / ".venv" / "site-packages"))
        confinement.confine(mine, room)
        def refused(act, *arguments):
            try:
                act(*arguments)
            except PermissionError:
                return True
            return False
        assert refused(open, room / "other" / "mlp.py")
        assert refused(os.listdir, room / "other")
        assert refused(open, room / "new.txt", "w")
        assert refused(os.remove, room / "other" / "mlp.py")
        assert refused(os.kill, os.getppid(), 15)
        (mine / "log.txt").write_text("x")
        with tempfile.TemporaryFile() as file:
            file.write(b"x")
        import package  # of the teacher's environment, beside the students' folders
        print(package.value, Path("/proc/self/status").exists())
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("5 True\n", "")


def test_a_worker_that_cannot_fork_is_not_confined_to_the_first_folder(tmp_path: Path) -> None:
    with Worker(fork=False, limits=Limits(hidden=tmp_path / "room")) as worker:
        for name in ("ada", "bob"):
            path = tmp_path / name / "layernorm.py"
            path.parent.mkdir()
            path.write_text("open('log.txt', 'w').close()\n" + LAYERNORM, encoding="utf-8")
            report = worker.ask(find_file(str(path), "layernorm"), 8.0, folder=path.parent)
            assert report["ok"], report["message"]
            assert (path.parent / "log.txt").exists()


USES = {
    "temporary files": "import tempfile\ntempfile.NamedTemporaryFile('w').write('x')",
    "torch.save": "torch.save(x, 'x.pt')\nassert torch.equal(torch.load('x.pt'), x)",
    "modules of the folder": "assert five == 5",
    "packages": "import json.tool, numpy.polynomial, torch.optim.swa_utils",
    "threads": "torch.set_num_threads(2)\ntorch.ones(512, 512) @ torch.ones(512, 512)",
    "processes": "import subprocess, sys\n"
    "assert subprocess.check_output([sys.executable, '-c', 'print(5)']) == b'5\\n'",
    "the machine": "import os, platform\nos.cpu_count(), platform.platform(), os.urandom(5)\n"
    "open('/proc/meminfo').read(), os.path.expanduser('~')",
    "permissions": "import os, shutil\nopen('a', 'w').close()\nos.chmod('a', 0o600)\n"
    "shutil.copy2('a', 'b')",
    "cuda": "torch.cuda.is_available()",
    "compile": "torch.compile(lambda t: t + 1)(x)",
}


@pytest.mark.parametrize("name", USES)
def test_what_a_right_file_does_still_works(name: str, room: Room) -> None:
    (room.mine / "lib").mkdir(exist_ok=True)
    (room.mine / "lib" / "values.py").write_text("five = 5\n", encoding="utf-8")
    report = room.run(USES[name], "from lib.values import five\n")
    assert report.ok, report.message
