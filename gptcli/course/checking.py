"""Checks learners' files: runs each file in a worker process and returns a report on it.

report = check_file("my_attention.py:MyAttention")
report.ok, report.message, report.to_json()
"""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gptcli.course.attention import STEP_NAMES
from gptcli.course.report import BuiltinReport, Check, FileReport
from gptcli.course.sandbox.isolation import Limits, Unfinished, Worker
from gptcli.course.sandbox.learner_class import load_class
from gptcli.course.sandbox.learner_file import LearnerFile, find_file
from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from torch import nn

LIMIT_S = 15.0  # a correct file takes well under one second
FOLLOW_S = 4.0  # for running a file again, to find the step at which it hangs or ends


def check_builtin() -> BuiltinReport:
    """Compare each code path of the builtin attention with the reference; return the report.

    The comparison runs on each device of this machine, in each dtype of `builtin.dtypes_on`."""
    from gptcli.course.attention.builtin import compare_paths, devices_here

    return compare_paths(devices_here())


def check_file(spec: str, exercise: str = "attention", *, limit_s: float = LIMIT_S) -> FileReport:
    """The report on `FILE[:CLASS]`, which is checked in a worker process.

    The check may take at most `limit_s` seconds. If the forward of an attention does not finish in
    this time, or ends its process, forward runs again for up to FOLLOW_S seconds. This second run
    finds the step at which forward hangs or ends. Raises GptcliError if there is no such file or
    class, or if the file cannot be used at all."""
    with Checker(limit_s) as checker:
        return checker.check(spec, exercise)


def check_files(
    specs: Iterable[str], exercise: str = "attention", *, limit_s: float = LIMIT_S
) -> Iterator[FileReport | GptcliError]:
    """The report on each of `specs`, in order.

    One worker checks all files, so torch is imported only once. If the worker itself hangs or
    crashes, a new worker checks the next file. Yields a GptcliError instead of a report if a file
    cannot be used."""
    with Checker(limit_s) as checker:
        for spec in specs:
            try:
                yield checker.check(spec, exercise)
            except GptcliError as error:
                yield error


class Checker:
    """Checks files one after another in one worker. Use a Checker in a `with` statement.

    The worker starts when the first readable file is checked."""

    def __init__(self, limit_s: float = LIMIT_S, limits: Limits | None = None) -> None:
        self._limit_s = limit_s
        self._limits = limits
        self._worker: Worker | None = None

    def __enter__(self) -> Checker:
        return self

    def __exit__(self, *how: object) -> None:
        self.stop()

    def check(self, spec: str, exercise: str = "attention") -> FileReport:
        """The report on one file. Raises GptcliError if the file cannot be used at all."""
        return self.check_found(find_file(spec, exercise), self._limit_s)

    def check_found(
        self, file: LearnerFile, limit_s: float, folder: Path | None = None
    ) -> FileReport:
        """The report on a file that find_file returned.

        The file runs in `folder`, by default the current folder. Raises GptcliError if the file
        cannot be used at all."""
        if self._worker is None:
            self._worker = Worker(limits=self._limits).__enter__()
        return ask(self._worker, file, limit_s, folder)

    def stop(self) -> None:
        """End the worker, even in the middle of a check. The next check starts a new worker."""
        if self._worker is not None:
            self._worker.__exit__(None, None, None)
            self._worker = None


def ask(
    worker: Worker, file: LearnerFile, limit_s: float = LIMIT_S, folder: Path | None = None
) -> FileReport:
    """The report of `worker` on one file. Raises GptcliError if the file cannot be used at all."""
    try:
        return FileReport.from_worker(worker.ask(file, limit_s, folder=folder))
    except Unfinished as unfinished:
        return _unfinished(worker, file, unfinished, folder)


def load_attention(spec: str) -> type[nn.Module]:
    """The attention class of `FILE[:CLASS]`.

    Runs the file in the current process, so check the file with check_file first. Raises
    GptcliError if there is no such file or class, or if the file cannot be run."""
    return load_class(find_file(spec))


def _unfinished(
    worker: Worker, file: LearnerFile, how: Unfinished, folder: Path | None
) -> FileReport:
    """The report on a file that ran too long or ended its process."""
    found = re.fullmatch(r"step (\d+): (.*)", how.doing)
    step, doing = (int(found[1]), found[2]) if found else (None, how.doing)
    where = ""
    if step is None and doing.startswith("forward"):
        step = _step_of_end(worker, file, folder)
        where = "" if step is None else f", in step {step}, {STEP_NAMES[step]}"
    if how.line is not None:
        linecache.checkcache(str(file.path))
        text = linecache.getline(str(file.path), how.line).strip()
        where += f", at {file.where(how.line)} of {Path(file.name).name}, `{text}`"
    if how.reason == "time-limit":
        message = f"{how.detail}{where} ({doing})"
        hints = (
            "which loop does your file run at that moment, and what should end the loop?",
            "look there for a loop that never ends, or for a very slow computation",
            "print a counter in the loop: most likely its condition never becomes false",
        )
    else:
        message = f"your file ended its process ({how.detail}){where} ({doing})"
        hints = (
            (
                "what does your file do at that moment?",
                "look for exit(), for memory that keeps growing, or for indices outside a tensor",
                "run your code with `python`, without the check: it probably ends at the same line",
            )
            if how.detail != "SIGKILL"
            else (
                "how large are the tensors that your file makes at that moment?",
                "most likely the machine ran out of memory: look for a tensor that is too large",
                "print the shape of each tensor before that line",
            )
        )
    return FileReport(
        file.name,
        file.exercise,
        file.class_name,
        False,
        message,
        how.reason,
        step,
        (Check("runs", False, message),),
        hints,
    )


def _step_of_end(worker: Worker, file: LearnerFile, folder: Path | None) -> int | None:
    """The number of the step at which an attention hangs or ends its process; None if unknown."""
    try:
        worker.ask(file, FOLLOW_S, follow=True, folder=folder)
    except Unfinished as again:
        found = re.fullmatch(r"step (\d)", again.doing)
        return int(found.group(1)) if found else None
    except GptcliError:
        return None
    return None
