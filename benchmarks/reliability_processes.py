"""Runs each training in a separate process, for benchmarks/reliability.py.

The process calls `gptcli.cli.main`. To save start-up time, it is forked from a process that has
imported the modules of a training but has not computed anything (POSIX only).
"""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 60.0  # after this many seconds, a training counts as hung


def warm() -> None:
    """Import the modules of a training. This function computes nothing, because computing starts
    threads, and a process with threads must not be forked."""
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in ("safetensors.torch", "tokenizers", "yaml", "gptcli.cli", "gptcli.config_files",
                 "gptcli.tokenization.bpe_training", "gptcli.training.loop",
                 "gptcli.training.setup", "gptcli.training.run_summary",
                 "gptcli.view.terminal"):  # fmt: skip
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    assert threading.active_count() == 1


class Training:
    """`gptcli WORDS` in a separate process. Its stdout and stderr go to files in `folder`."""

    def __init__(
        self, words: list[str], folder: Path, prepare: Callable[[], None] | None = None
    ) -> None:
        self._out, self._err = folder / "out.txt", folder / "err.txt"
        self._out.write_bytes(b"")
        self._err.write_bytes(b"")
        self._begun, self.seconds = time.perf_counter(), 0.0
        self._code: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._child(words, prepare)

    def _child(self, words: list[str], prepare: Callable[[], None] | None) -> None:
        code = 70
        try:
            flags = os.O_WRONLY | os.O_APPEND
            for number, path in ((1, self._out), (2, self._err)):
                os.dup2(os.open(path, flags), number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            if prepare is not None:
                prepare()
            from gptcli.cli import main

            sys.argv = ["gptcli", *words]
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 70
        except BaseException:
            traceback.print_exc()
        for thread in threading.enumerate():  # as the interpreter does when it exits
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def running(self) -> bool:
        """Whether the process is still running."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._ended(status)
        return self._code is None

    def wait(self) -> int:
        """Wait for the process and return its exit code.

        The code is -N if signal N ended the process. It is -100 if the process hung and this
        function killed it."""
        deadline = time.perf_counter() + PATIENCE
        while self.running():
            if time.perf_counter() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                self._code = -100
            time.sleep(0.0005)
        assert self._code is not None
        return self._code

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition()` is true or the training has ended; at most PATIENCE seconds."""
        deadline = time.perf_counter() + PATIENCE
        while not condition() and self.running() and time.perf_counter() < deadline:
            time.sleep(0.0005)

    def send(self, number: int) -> None:
        """Send a signal if the process is still running."""
        if self.running():
            os.kill(self.pid, number)

    def said(self) -> str:
        """The text that the training has written to stderr."""
        return self._err.read_text("utf-8", "replace")

    def last_words(self) -> str:
        """The last 500 characters of stderr, for a report."""
        return self.said()[-500:]

    def summary(self) -> dict[str, Any]:
        """The object that `--json` printed, or {} if it printed nothing."""
        lines = self._out.read_text("utf-8").splitlines()
        return dict(json.loads(lines[-1])) if lines else {}

    def resumed_from(self) -> int | None:
        """The step from which the run was resumed, as the headline on stderr says it. None if there
        is no headline yet, or if the run is new."""
        found = re.search(r" tokens, from step (\d+)$", self.said(), re.MULTILINE)
        return int(found[1]) if found else None

    def has_begun(self) -> bool:
        """Whether the training has printed its headline."""
        return " steps of " in self.said()

    def _ended(self, status: int) -> None:
        self._code = os.waitstatus_to_exitcode(status)
        self.seconds = time.perf_counter() - self._begun
