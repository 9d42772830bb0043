"""Runs learners' code in a worker process, so that code that hangs or crashes does no harm.

This module does not import torch. The worker answers in JSON, which is safer than pickle.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from gptcli.course.sandbox.descendants import kill_below
from gptcli.course.sandbox.learner_file import LearnerFile
from gptcli.errors import GptcliError

START_S = 180.0  # importing torch from a slow disk can take minutes
GRACE_S = 10.0  # a worker that does not enforce a file's time limit is killed this much later
MEMORY = 4 << 30  # bytes that the learner's code can allocate, besides torch's own memory
IN_CHECK = "GPTCLI_IN_CHECK"  # set in the environment of each worker
_BOOT = (
    "import sys; sys.path[:] = sys.argv[2:]; from gptcli.course.sandbox.worker import main; "
    "main(fork=sys.argv[1] == 'fork')"
)


class Unfinished(Exception):
    """Raised if the check of a file does not finish.

    `reason` is "time-limit" or "crash". `doing` names what the worker did last, such as
    "loading the file". `line` is the number of the line that the file ran last, or None. `detail`
    says what happened, such as "still running after 15 s"."""

    def __init__(self, reason: str, doing: str, detail: str, line: int | None = None) -> None:
        super().__init__(detail)
        self.reason, self.doing, self.detail, self.line = reason, doing, detail, line


@dataclass(frozen=True)
class Limits:
    """The limits of a learner's file.

    `memory` is how much memory the file and the processes that it starts can use, in bytes.
    `file_bytes` is the size of the largest file that these processes can write (None: any size).
    With `quiet`, nothing that the file prints is shown. With `hidden`, the learner's file can
    change nothing outside the folder in which it runs, and read nothing in `hidden` except this
    folder and Python's own folders. All limits except `quiet` need a Worker with `fork`."""

    memory: int = MEMORY
    file_bytes: int | None = None
    quiet: bool = False
    hidden: Path | None = None


class Worker:
    """A process that imports torch once and then checks files. Use it in a `with` statement.

    With `fork`, each file runs in its own fork, so no file changes the process in which the next
    file runs. Forking after importing torch is safe only on Linux."""

    def __init__(
        self, *, fork: bool = sys.platform == "linux", limits: Limits | None = None
    ) -> None:
        self._fork = fork
        self._limits = limits or Limits()
        self._folder = tempfile.TemporaryDirectory(prefix="gptcli-check-")
        self._process: _Process | None = None
        self._closed = False

    def __enter__(self) -> Worker:
        self._process = self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed = True
        self._stop()
        self._folder.cleanup()

    def ask(
        self,
        file: LearnerFile,
        limit_s: float,
        *,
        follow: bool = False,
        folder: Path | None = None,
    ) -> dict[str, Any]:
        """The report on `file` as a JSON object. The check may take at most `limit_s` seconds.

        With `follow`, runs the file once without checks, and returns {}. If the file does not
        finish, `Unfinished.doing` then names the step that the file reached. The file runs in
        `folder`, by default the current folder. Raises GptcliError if the file cannot be used or
        the worker does not start, and Unfinished if the check does not finish."""
        if self._closed:  # after Ctrl-C, another thread has closed this worker
            raise Unfinished("crash", "", "interrupted")
        if self._process is None:
            self._process = self._start()
        process = self._process
        process.wait_until_ready()
        stack = Path(self._folder.name) / "stack.txt"
        stack.write_bytes(b"")
        doing = "loading the file"
        number = process.send(
            {
                "name": file.name,
                "path": str(file.path),
                "class_name": file.class_name,
                "exercise": file.exercise,
                "cells": file.cells,
                "limit_s": limit_s,
                "follow": follow,
                "stack": str(stack),
                "folder": None if folder is None else str(folder),
                "memory": self._limits.memory,
                "file_bytes": self._limits.file_bytes,
                "hidden": None if self._limits.hidden is None else str(self._limits.hidden),
            }
        )
        while True:
            message = process.receive(limit_s + GRACE_S)
            if message.get("id", number) != number:
                continue  # a late answer about an earlier file
            if "doing" in message:
                doing = message["doing"]
            elif "report" in message:
                report = message["report"]
                assert isinstance(report, dict)
                return report
            elif "error" in message:
                raise GptcliError(message["error"]["message"], message["error"]["hint"])
            else:
                break
        if message["died"] is None or not process.is_alive():
            self._stop()  # the next file gets a new process
        trace = stack.read_text(encoding="utf-8", errors="replace")
        line = _line_in(trace, file.path)
        if trace or message["died"] is None:
            raise Unfinished("time-limit", doing, f"still running after {limit_s:g} s", line)
        raise Unfinished("crash", doing, message["died"], line)

    def _start(self) -> _Process:
        return _Process(self._fork, quiet=self._limits.quiet)

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()


class _Process:
    """The worker's process, with a thread that reads the worker's answers."""

    def __init__(self, fork: bool, *, quiet: bool = False) -> None:
        settings = dict.fromkeys(
            ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"
        )
        # The worker turns off torch.compile and torch.jit, because it can trace only eager code.
        settings |= {"TORCHDYNAMO_DISABLE": "1", "PYTORCH_JIT": "0", IN_CHECK: "1"}
        # In a separate session, the worker does not get Ctrl-C. This process gets Ctrl-C, and ends
        # the worker with `kill`.
        self._popen = subprocess.Popen(
            [sys.executable, "-c", _BOOT, "fork" if fork else "reuse", *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet else None,
            env={**os.environ, **settings},
            start_new_session=os.name == "posix",
        )
        self._messages: queue.Queue[dict[str, Any]] = queue.Queue()
        self._ready = False
        self._sent = 0
        assert self._popen.stdout is not None
        threading.Thread(target=self._read, args=(self._popen.stdout,), daemon=True).start()

    def wait_until_ready(self) -> None:
        """Wait until the worker has imported torch.

        Raises GptcliError if the import fails, or takes longer than START_S."""
        if not self._ready:
            if "ready" not in self.receive(START_S):
                self.kill()
                raise GptcliError(
                    "the process that runs the file did not start",
                    "look at its output above, and try `python -c 'import torch'`",
                    exit_code=1,
                )
            self._ready = True

    def send(self, request: dict[str, Any]) -> int:
        """Send a request; return the request's number, which the worker repeats in each answer."""
        self._sent += 1
        assert self._popen.stdin is not None
        with contextlib.suppress(OSError):  # if the worker has died, receive() reports that
            line = json.dumps({"id": self._sent, **request}) + "\n"
            self._popen.stdin.write(line.encode("ascii"))
            self._popen.stdin.flush()
        return self._sent

    def receive(self, limit_s: float) -> dict[str, Any]:
        """The worker's next message; {"died": None} if no message comes within `limit_s`."""
        try:
            return self._messages.get(timeout=limit_s)
        except queue.Empty:
            return {"died": None}

    def is_alive(self) -> bool:
        """Whether the worker can take another request."""
        return self._popen.poll() is None

    def kill(self) -> None:
        """Kill the worker and the processes that it has started.

        On Linux: all these processes. On macOS: those in the worker's process group. On Windows:
        only the worker."""
        if os.name == "posix":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if self.is_alive():  # processes of the latest file may still be running
                    os.kill(self._popen.pid, signal.SIGSTOP)
                    kill_below(self._popen.pid)
                os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.kill()
        self._popen.wait()
        assert self._popen.stdin is not None
        with contextlib.suppress(OSError):
            self._popen.stdin.close()

    def _read(self, stdout: IO[bytes]) -> None:
        with stdout:
            for line in stdout:
                with contextlib.suppress(ValueError):  # the process died while it wrote this line
                    self._messages.put(json.loads(line))
        self._messages.put({"died": f"exit code {self._popen.wait()}"})


def _line_in(trace: str, path: Path) -> int | None:
    """The number of the innermost line of `path` in `trace`, which faulthandler wrote in ASCII."""
    name = str(path).encode("ascii", "backslashreplace").decode("ascii")
    found = re.search(rf'File "{re.escape(name)}", line (\d+)', trace)
    return int(found.group(1)) if found else None
