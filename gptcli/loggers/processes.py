"""Starts the process that writes a log, reads its answer, and ends the process if it hangs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.files.paths import shell_word
from gptcli.loggers.catalogue import LOGGERS, import_path

FINISH_S = 30.0
"""The most seconds that a training waits at its end for the last rows of the logs."""

_BOOT = (
    "import sys; request, *sys.path[:] = sys.argv[1:]; "
    "from gptcli.loggers.writer import main; main(request)"
)


@dataclass(frozen=True)
class Written:
    """The answer of a writer: how many rows and samples it wrote, or a problem with its hint."""

    rows: int = 0
    samples: int = 0
    problem: str | None = None
    hint: str | None = None


class Writer:
    """A process that writes one log. It has its own process group, and `kill` ends this group."""

    def __init__(self, run: Path, logger: str, path: Path | None, *, follow: bool) -> None:
        self.logger = logger
        request = {
            "run": str(run.absolute()),
            "logger": logger,
            "path": str((path or run / LOGGERS[logger].place).absolute()),
            "inside": path is None,
            "follow": follow,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, json.dumps(request), *import_path()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._answer = b""
        self._last_words: deque[bytes] = deque(maxlen=1)
        self._threads = [
            threading.Thread(target=target, daemon=True)
            for target in (self._read_answer, self._read_errors)
        ]
        for thread in self._threads:
            thread.start()

    def _read_answer(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as pipe:
            self._answer = pipe.readline(1 << 20)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as pipe:
            self._last_words.extend(line for line in pipe if line.strip())

    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def end(self) -> None:
        """Ask the process to write the remaining rows and samples, and then to end."""
        assert self._process.stdin is not None
        with suppress(OSError, ValueError):
            # To close the pipe is not enough, because a fork of the training can keep it open.
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()
        with suppress(OSError):
            self._process.stdin.close()

    def kill(self) -> None:
        """End the process at once, and (not on Windows) the processes that it started."""
        with suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        self._process.wait()

    def result(self) -> Written:
        """Wait until the process has ended, and return its answer.

        Without an answer, `problem` of the result says how the process ended."""
        code = self._process.wait()
        self.end()
        for thread in self._threads:
            thread.join(timeout=1.0)  # a process that the writer started can hold a pipe open
        found: Any = None
        with suppress(ValueError):
            found = json.loads(self._answer)
        if isinstance(found, dict):
            return Written(**found)
        words = b"".join(self._last_words).decode("utf-8", "replace").strip()
        return Written(problem=f"its process ended with code {code}" + (f": {words}" * bool(words)))


class RunLoggers:
    """The loggers of a run that trains. None of them can stop or delay a step."""

    def __init__(self, run: Path, names: Iterable[str]) -> None:
        self._run = run
        self._names = list(dict.fromkeys(names))
        self._writers: list[Writer] = []

    def start(self) -> list[str]:
        """Start the loggers, and return a note for the user about each logger.

        Call `start` after the Journal exists, because a Journal deletes the lines of metrics.jsonl
        that a resumed run repeats."""
        notes = []
        for name in self._names:
            try:
                self._writers.append(Writer(self._run, name, None, follow=True))
            except OSError as error:
                notes.append(self._warning(name, f"cannot be started ({error.strerror})"))
                continue
            logger = LOGGERS[name]
            notes.append(f"{name}: {logger.shown_by(self._run / logger.place)}")
        return notes

    def problems(self) -> list[str]:
        """A warning about each logger that has failed since the last call."""
        ended = [writer for writer in self._writers if writer.ended()]
        self._writers = [writer for writer in self._writers if writer not in ended]
        return [
            self._warning(writer.logger, f"failed: {result.problem}")
            for writer in ended
            if (result := writer.result()).problem is not None
        ]

    def finish(self, give_up: Callable[[], bool], seconds: float = FINISH_S) -> list[str]:
        """Let the loggers write their last rows, and return the warnings for the user.

        Waits for at most `seconds`, or until `give_up` returns True. Then it ends the loggers that
        have not finished."""
        for writer in self._writers:
            writer.end()
        until = time.monotonic() + seconds
        warnings = []
        try:
            while self._writers and time.monotonic() < until and not give_up():
                time.sleep(0.02)
                warnings += self.problems()
        finally:
            for writer in self._writers:
                writer.kill()
                writer.result()
        warnings += [
            self._warning(writer.logger, "did not finish in time, and was ended")
            for writer in self._writers
        ]
        self._writers = []
        return warnings

    def _warning(self, name: str, what: str) -> str:
        again = f"gptcli log {shell_word(self._run)} --to {name}"
        return f"WARNING: the logger {name} {what}. The run is not affected; {again} writes the log"
