"""The worker process that runs learners' files. Only isolation.py starts it.

The worker imports torch once, and writes `{"ready": true}` to its original stdout. Then it reads
requests from stdin, one JSON object per line, and answers on the same stdout: `{"doing": ...}`
during the check, then one `{"report": ...}`, `{"error": ...}` or `{"died": ...}`. All that a
learner's file prints goes to stderr. On Linux each request runs in its own fork. On other systems,
a fork after the import of torch is not safe, so requests run in the worker itself.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from gptcli.course.sandbox.confinement import confine
from gptcli.course.sandbox.descendants import (
    MOST,
    adopt_orphans,
    descendants,
    kill_descendants,
    limit_processes,
    memory_of,
    written_by,
)
from gptcli.course.sandbox.learner_file import LearnerFile, in_words
from gptcli.course.sandbox.prints import few_prints
from gptcli.errors import GptcliError
from gptcli.quick_torch import import_torch

LOOK_S = 0.2  # seconds between two measurements of what a graded file has written
MOST_WRITTEN = 256 << 20  # bytes that one graded file can write, in all its files together
SERVED = 93  # exit code of a fork that has answered; files hardly ever exit with this code
Answer = Callable[[dict[str, Any]], None]


def main(*, fork: bool) -> None:
    """Answer requests until stdin ends. With `fork`, each request runs in its own fork."""
    answers = os.dup(1)
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(2, 1)
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)  # input() in a learner's file must not read the next request
    os.close(nowhere)
    sys.stdout = sys.stderr

    def answer(message: dict[str, Any]) -> None:
        os.write(answers, (json.dumps(message) + "\n").encode("ascii"))

    adopt_orphans()
    import_torch()  # once, so that no fork has to import it
    from gptcli.course.examination import LESSONS

    answer({"ready": True})
    for line in requests:
        request = json.loads(line)
        file = _file_of(request)
        LESSONS[file.exercise].prepare(file)
        with_id = partial(_answer_with_id, answer, request["id"])
        if fork:
            _serve_in_fork(request, with_id)
        else:
            _serve(request, with_id, fork=False)


def _answer_with_id(answer: Answer, number: int, message: dict[str, Any]) -> None:
    answer({"id": number, **message})


def _serve(request: dict[str, Any], answer: Answer, *, fork: bool) -> None:
    import torch

    from gptcli.course.examination import examine, follow

    me = os.getpid()

    def tell(message: dict[str, Any]) -> None:
        if os.getpid() != me:  # this is a fork that the learner's code made and did not end
            os._exit(0)
        answer(message)

    def say(what: str) -> None:
        tell({"doing": what})

    torch.set_num_threads(1)
    file = _file_of(request)
    folder = None if request["folder"] is None else Path(request["folder"])
    if folder is not None:
        os.chdir(folder)
    with Path(request["stack"]).open("w", encoding="utf-8") as stack:
        if fork and folder is not None and request["hidden"] is not None:  # irreversible
            confine(folder, Path(request["hidden"]))
        # faulthandler's timer is a C thread that does not need the GIL, so no file can block it.
        faulthandler.dump_traceback_later(request["limit_s"], exit=True, file=stack)
        try:
            if request["follow"]:
                follow(file, say)
                tell({"report": {}})
                return
            with few_prints(), warnings.catch_warnings():
                # PyTorch warns of k.T if k has four dimensions. The report says more about this
                # mistake.
                warnings.filterwarnings("ignore", message="The use of `x.T`")
                report = examine(file, say)
            tell({"report": asdict(report)})
        except GptcliError as error:
            tell({"error": {"message": error.message, "hint": error.hint}})
        except MemoryError as error:
            tell({"died": in_words(error)})
        finally:
            faulthandler.cancel_dump_traceback_later()


def _file_of(request: dict[str, Any]) -> LearnerFile:
    path = Path(request["path"])
    cells = tuple((first, number) for first, number in request["cells"])
    return LearnerFile(request["name"], path, request["class_name"], request["exercise"], cells)


def _serve_in_fork(request: dict[str, Any], answer: Answer) -> None:
    sys.stderr.flush()
    with warnings.catch_warnings():
        # Python warns if a process with threads forks. But all threads of this process are idle.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            _limit_memory(request["memory"])
            _limit_files(request["file_bytes"])
            limit_processes()
            _limit_descriptors(request["file_bytes"])
            _serve(request, answer, fork=True)
            code = SERVED
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            with contextlib.suppress(Exception):
                sys.stderr.flush()
            os._exit(code)
    folder = Path(request["folder"]) if request["hidden"] is not None else None
    status, too_much = _wait(child, request["limit_s"] + 2.0, request["memory"], folder)
    kill_descendants()
    if too_much is not None:
        answer({"died": too_much})
    elif os.WIFSIGNALED(status):
        answer({"died": signal.Signals(os.WTERMSIG(status)).name})
    elif os.WEXITSTATUS(status) != SERVED:
        answer({"died": f"exit code {os.WEXITSTATUS(status)}"})


def _wait(child: int, limit_s: float, memory: int, folder: Path | None) -> tuple[int, str | None]:
    """Wait for the child. Returns its exit status, and an error text or None.

    Kills the child at the time limit, without an error text. Also kills it, with an error text, if
    it has too many descendants, if they use more than `memory` bytes together, or if they write too
    much into `folder`."""
    deadline = time.monotonic() + limit_s
    next_look = time.monotonic() + LOOK_S  # when to look again at what the file has written
    pause = 0.001
    too_much: str | None = None
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status, too_much
        # A file that ends within the first few milliseconds is not measured.
        if too_much is None and pause > 0.01:
            started = descendants()
            if len(started) > 2 * MOST:  # limit_processes sees only what Python starts
                too_much = f"it started more than {2 * MOST} processes"
            elif len(started) > 1 and memory_of(started) > memory:
                too_much = f"its processes need more than {memory / (1 << 30):.1f} GiB together"
            elif folder is not None and time.monotonic() > next_look:
                next_look = time.monotonic() + LOOK_S
                if written_by(folder, started) > MOST_WRITTEN:
                    too_much = f"it wrote more than {MOST_WRITTEN >> 20} MiB"
        if too_much is not None or time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(pause)
        pause = min(2 * pause, 0.02)


def _limit_memory(most: int) -> None:
    """Allow at most `most` more bytes, so that the line that allocates too much raises an error."""
    import resource

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + most
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or hard > limit:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _limit_descriptors(file_bytes: int | None) -> None:
    """If file sizes are limited, allow at most 128 open files.

    A deleted file uses space on the disk until it is closed."""
    import resource

    if file_bytes is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = 128 if hard == resource.RLIM_INFINITY else min(128, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _limit_files(most: int | None) -> None:
    """Make a write fail if the file would become larger than `most` bytes (None: no limit)."""
    import resource

    if most is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        if hard == resource.RLIM_INFINITY or hard > most:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
