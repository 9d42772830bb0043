"""The worker process that runs learners' files. Only isolation.py starts it.

The worker imports torch once. Then it reads requests from stdin, one JSON object per line, and
answers on its original stdout: `{"doing": ...}` during the check, then one `{"report": ...}`,
`{"error": ...}` or `{"died": ...}`. Whatever a learner's file prints goes to stderr. On Linux each
request runs in its own fork. On other systems forking a process with torch in it is not safe, so
requests run in the worker itself.
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

LOOK_S = 0.2  # between looks at what a graded file wrote
MOST_WRITTEN = 256 << 20  # bytes that a graded file can write in all
SERVED = 93  # exit code of a fork that has answered; a file's own exit() hardly uses it
Answer = Callable[[dict[str, Any]], None]


def main(*, fork: bool) -> None:
    """Serve requests until stdin ends."""
    answers = os.dup(1)
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(2, 1)
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)  # input() in a learner's file reads end-of-file, not the next request
    os.close(nowhere)
    sys.stdout = sys.stderr

    def answer(message: dict[str, Any]) -> None:
        os.write(answers, (json.dumps(message) + "\n").encode("ascii"))

    adopt_orphans()
    import_torch()  # before the first fork
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
        if os.getpid() != me:  # the file has forked, and its child runs on through this code
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
        if fork and folder is not None and request["hidden"] is not None:  # there is no way back
            confine(folder, Path(request["hidden"]))
        # This timer is a C thread that does not need the GIL, so no file can block it.
        faulthandler.dump_traceback_later(request["limit_s"], exit=True, file=stack)
        try:
            if request["follow"]:
                follow(file, say)
                tell({"report": {}})
                return
            with few_prints(), warnings.catch_warnings():
                # The report says more about k.T on four dimensions.
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
        # This process has only imported modules; its threads, if any, are idle.
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
    """Wait for the child. Return its status, and why it was killed, unless at the time limit.

    It is killed if it and its own children are too many or hold more than `memory` bytes, or if
    they fill `folder`."""
    deadline = time.monotonic() + limit_s
    next_look = time.monotonic() + LOOK_S  # at the disk
    pause = 0.001
    too_much: str | None = None
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status, too_much
        if too_much is None and pause > 0.01:  # a right file ends before the first look, mostly
            started = descendants()
            if len(started) > 2 * MOST:  # of another language; limit_processes holds in Python
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
    """Make allocations fail, with an error that names a line, before memory runs out."""
    import resource

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + most
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or hard > limit:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _limit_descriptors(file_bytes: int | None) -> None:
    """Let few files be open at a time if files are limited: one that has no name counts, too."""
    import resource

    if file_bytes is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = 128 if hard == resource.RLIM_INFINITY else min(128, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _limit_files(most: int | None) -> None:
    """Make a write fail that would make a file larger than `most` bytes."""
    import resource

    if most is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        if hard == resource.RLIM_INFINITY or hard > most:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
