"""Fixtures for all tests: a separate cache, gptcli without a new process, a trained run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import settings

# PyTorch uses one thread in each pytest worker. If each worker had two threads, the threads of two
# workers would wait for each other on a machine with two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)

# As a background job of a shell, pytest ignores Ctrl-C. Under `nohup`, it ignores SIGHUP.
# Here pytest gets the default handlers, because every process that the tests start inherits an
# ignored signal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# In `make test`, Hypothesis generates the same examples every time. In `make fuzz` (with
# --hypothesis-profile=random), it generates new examples, and stores each failing example as a
# patch in .hypothesis/.
settings.register_profile("fixed", derandomize=True, database=None, deadline=None)
settings.register_profile("random", max_examples=1000, deadline=None, print_blob=True)
settings.load_profile("fixed")

T = TypeVar("T")
HERE = Path(__file__).resolve().parent
KEPT_LIBRARIES = HERE.parent / ".pytest_cache" / "native-libraries"
TEXT = "".join(
    f"{who}:\nWhat {thing} is this, that {deed} by night?\n\n"
    for who in ("KING", "QUEEN", "FOOL")
    for thing in ("light", "shadow", "voice", "hand")
    for deed in ("comes", "sings", "burns", "walks")
)


WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
"""The name of this pytest-xdist worker, such as gw0, or "" if no workers are used."""

Once = Callable[[str, Callable[[Path], None]], Path]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock the file `path` during a `with` block.

    So only one pytest worker at a time runs the block."""
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """once("name", make) makes a folder that all pytest workers share, and returns its path.

    The first worker that calls it creates the folder and calls make(folder). The other workers wait
    until the folder is complete, and then get its path. No test may write to the folder."""
    base = tmp_path_factory.getbasetemp()
    if WORKER and os.name == "posix":
        base = base.parent  # all workers share this folder

    def build(name: str, make: Callable[[Path], None]) -> Path:
        folder, done = base / f"once-{name}", base / f"once-{name}.done"
        if os.name != "posix":
            if not done.exists():
                folder.mkdir()
                make(folder)
                done.touch()
            return folder
        with _locked(base / f"once-{name}.lock"):
            if not done.exists():
                # If make(folder) failed in another worker, the folder may be incomplete.
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return build


@pytest.fixture(scope="session", autouse=True)
def _test_cache(tmp_path_factory: pytest.TempPathFactory, once: Once) -> Iterator[None]:
    """Set GPTCLI_CACHE to a temporary folder, so that no test touches the user's cache.

    Each pytest worker has its own cache. On Linux and macOS, only one worker compiles a C library,
    and the other workers copy it. The compiled libraries stay in .pytest_cache for the next call of
    pytest. The file name of a library contains a hash of its source and of the compiler, so a
    library is compiled again after a change of its source."""
    cache = tmp_path_factory.mktemp("cache")
    _copy_libraries(KEPT_LIBRARIES, cache / "native")
    patch = pytest.MonkeyPatch()
    patch.setenv("GPTCLI_CACHE", str(cache))
    patch.delenv("NO_COLOR", raising=False)
    patch.delenv("FORCE_COLOR", raising=False)
    if WORKER:
        _share_libraries(cache / "native", once)
    yield
    patch.undo()
    _copy_libraries(cache / "native", KEPT_LIBRARIES)


def _copy_libraries(source: Path, goal: Path) -> None:
    """Copy C libraries from `source` to `goal`, except those that `goal` has.

    Several pytest workers can safely do this at the same time."""
    for path in source.glob("*.so"):
        if not (goal / path.name).exists():
            goal.mkdir(mode=0o700, parents=True, exist_ok=True)
            copy = goal / f".{path.name}.{os.getpid()}"
            shutil.copy2(path, copy)
            copy.replace(goal / path.name)


def _share_libraries(native: Path, once: Once) -> None:
    """Put the C libraries into this pytest worker's cache folder `native`.

    Each library is compiled by one worker, and copied by the others."""
    from gptcli.native import library

    sources = [library.TRAINING, library.TRAINING_FLOAT32, library.SAMPLING]
    if WORKER.endswith(("1", "3", "5", "7", "9")):
        sources.reverse()  # so that workers begin with different libraries
    for source in sources:

        def build(folder: Path, source: library.Source = source) -> None:
            library.find(source)
            for path in native.glob(f"{source.name}-*"):
                shutil.copy2(path, folder)

        for path in once(f"library-{source.name}", build).iterdir():
            if not (native / path.name).exists():
                native.mkdir(mode=0o700, exist_ok=True)
                shutil.copy2(path, native)


@pytest.fixture(scope="session", autouse=True)
def _shared_worker_process(pytestconfig: pytest.Config) -> Iterator[None]:
    """Let the course checks of a pytest process share a sandbox process.

    The sandbox process (gptcli.course.sandbox.isolation.Worker) imports PyTorch once. It runs each
    file in a fork of itself, so files cannot affect each other. Outside the tests, every check
    starts a new sandbox process. The tests do the same in three cases: with --slow, on systems
    other than Linux, and if a test sets GPTCLI_NEW_WORKER."""
    # This fixture must not use the fixture `slow`: --slow selects the tests that use `slow`, and
    # every test uses this fixture.
    if pytestconfig.getoption("--slow") or sys.platform != "linux":
        yield
        return
    from gptcli.course.sandbox.isolation import Worker, _Process

    idle: list[_Process] = []
    # Sandbox processes that have not sent their answer yet, because their check still runs or was
    # interrupted.
    busy: set[Worker] = set()
    leave, check = Worker.__exit__, Worker.ask

    def shared(worker: Worker) -> bool:
        return worker._fork and "GPTCLI_NEW_WORKER" not in os.environ

    def enter(self: Worker) -> Worker:
        self._process = idle.pop() if shared(self) and idle else _Process(self._fork)
        return self

    def ask(self: Worker, *arguments: Any, **more: Any) -> Any:
        busy.add(self)
        try:
            return check(self, *arguments, **more)
        finally:
            if not isinstance(sys.exc_info()[1], KeyboardInterrupt):
                busy.discard(self)

    def exit_(self: Worker, kind: Any, error: Any, trace: Any) -> None:
        usable = shared(self) and self not in busy
        if usable and self._process is not None and self._process.is_alive():
            idle.append(self._process)
            self._process = None
        leave(self, kind, error, trace)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "__enter__", enter)
        patch.setattr(Worker, "__exit__", exit_)
        patch.setattr(Worker, "ask", ask)
        yield
    for process in idle:
        process.kill()


@pytest.fixture(scope="session")
def text_file(once: Once) -> Path:
    """The path of a file with a small text: 48 short speeches."""

    def write(folder: Path) -> None:
        (folder / "speeches.txt").write_text(TEXT, encoding="utf-8", newline="\n")

    return once("text", write) / "speeches.txt"


@dataclass
class Outcome:
    """The exit code, stdout and stderr of a command."""

    code: int
    out: str
    err: str


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--slow", action="store_true", help="run only the tests that are left out without it"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without --slow, leave out tests marked `slow`, and most cases of those marked `long_series`.

    A test has one case for each set of parameters. About a third of the cases of a `long_series`
    remain if it has up to 12 cases, a sixth if it has 13 to 40, and a twelfth if it has more. With
    --slow, two kinds of tests remain: the tests that are left out without --slow, and the tests
    that use the fixture `slow`."""
    slow = config.getoption("--slow")
    series = [
        (item.path, getattr(item, "originalname", item.name))
        for item in items
        if item.get_closest_marker("long_series") is not None
    ]
    lengths, seen = Counter(series), Counter[tuple[Path, str]]()
    kept, left_out = [], []
    for item in items:
        is_slow = item.get_closest_marker("slow") is not None
        if item.get_closest_marker("long_series") is not None:
            test = (item.path, getattr(item, "originalname", item.name))
            i, length = seen[test], lengths[test]
            every = 3 if length <= 12 else 6 if length <= 40 else 12
            # Each group of `every` cases keeps one case: the first group its first, the second
            # group its last, the third group its last but one, ... If all groups kept their first
            # case, all kept cases might have the same value of a parameter.
            is_slow = is_slow or (i + i // every) % every != 0
            seen[test] += 1
        is_wanted = is_slow or "slow" in getattr(item, "fixturenames", ()) if slow else not is_slow
        (kept if is_wanted else left_out).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


def wanted(request: pytest.FixtureRequest, parameter: str, *always: Any) -> set[Any]:
    """The values of `parameter` that this module's selected tests use, and the values `always`.

    A fixture that prepares something for each value can thus leave out values that no test
    needs."""
    params = (
        item.callspec.params
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    )
    return {*always, *(found[parameter] for found in params if parameter in found)}


@pytest.fixture(scope="session")
def slow(pytestconfig: pytest.Config) -> bool:
    """True if a test should try a whole series of cases (`make slow`), False if only some."""
    return bool(pytestconfig.getoption("--slow"))


def some(series: Iterable[T], count: int, slow: bool) -> list[T]:
    """All items of `series` if `slow`, otherwise only `count` evenly spaced items.

    The first and the last item are always among them."""
    whole = list(series)
    if slow or len(whole) <= count:
        return whole
    return [whole[round(i * (len(whole) - 1) / (count - 1))] for i in range(count)]


@pytest.fixture(scope="session")
def program(slow: bool) -> Iterator[list[str]]:
    """The first words of a command line that runs `gptcli` as a process with its own streams.

    A test appends the arguments for gptcli. If "-u" comes first, the streams have no buffers. The
    process is a fork of fork_server.py, which has already imported PyTorch. With --slow, and on
    Windows, the command starts gptcli without fork_server.py."""
    if slow or os.name != "posix":
        yield [sys.executable, str(HERE / "start.py")]
        return
    with tempfile.TemporaryDirectory(prefix="gptcli-forks-") as folder:
        path = str(Path(folder, "socket"))
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.fork_server", path],
            cwd=HERE.parent,
            stdout=subprocess.PIPE,
        )
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            yield [sys.executable, "-IS", str(HERE / "fork_client.py"), path]
        finally:
            server.kill()
            server.communicate()


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """cli("train", "tiny") runs `gptcli train tiny` in this process, and returns its Outcome."""

    def call(*arguments: object) -> Outcome:
        from gptcli.cli import main

        monkeypatch.setattr(sys, "argv", ["gptcli", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return Outcome(code, captured.out, captured.err)

    return call


SMALL = (
    "model.n_layer=1",
    "model.n_head=2",
    "model.n_embd=32",
    "model.block_size=32",
    "train.batch_size=8",
    "run.threads=1",
)
"""Overrides that make the network of any config tiny, so that a step is quick."""


@pytest.fixture(scope="session")
def trained(once: Once, text_file: Path) -> Path:
    """The run folder of a small float32 network: 40 steps on `text_file`, two evaluations."""

    def train(folder: Path) -> None:
        command = [
            sys.executable, "-m", "gptcli", "train", str(text_file), "--out", str(folder / "small"),
            *SMALL, "train.max_steps=40", "train.eval_every=20", "run.dtype=float32",
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)

    return once("trained", train) / "small"
