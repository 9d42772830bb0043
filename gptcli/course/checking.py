"""Is this attention right? The project's own, or a learner's file.

report = check_file("my_attention.py:MyAttention")
report.ok, report.message, report.to_json()
"""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from gptcli.course.report import STEP_NAMES, BuiltinReport, Check, FileReport
from gptcli.course.sandbox.isolation import Unfinished, Worker
from gptcli.course.sandbox.learner_file import LearnerFile, find_file, load_class
from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from torch import nn

LIMIT_S = 15.0  # a right file takes well under one second
FOLLOW_S = 4.0  # to see at which step a file hangs


def check_builtin() -> BuiltinReport:
    """Compare every path of the project's attention with the reference, in every dtype and on
    every device of this machine."""
    from gptcli.course.attention.builtin import compare_paths, devices_here

    return compare_paths(devices_here())


def check_file(spec: str, *, limit_s: float = LIMIT_S) -> FileReport:
    """Check the class of `FILE[:CLASS]` in a process of its own, within `limit_s` seconds.

    Raises GptcliError where there is no such file or class, or it cannot be used at all."""
    file = find_file(spec)
    with Worker() as worker:
        return _ask(worker, file, limit_s)


def check_files(
    specs: Iterable[str], *, limit_s: float = LIMIT_S
) -> Iterator[FileReport | GptcliError]:
    """Check several files one after another; what check_file would raise takes the place of the
    report. torch is imported once for all of them."""
    files: list[LearnerFile | GptcliError] = []
    for spec in specs:
        try:
            files.append(find_file(spec))
        except GptcliError as error:
            files.append(error)
    if all(isinstance(file, GptcliError) for file in files):
        yield from (file for file in files if isinstance(file, GptcliError))
        return
    with Worker() as worker:
        for file in files:
            if isinstance(file, GptcliError):
                yield file
                continue
            try:
                yield _ask(worker, file, limit_s)
            except GptcliError as error:
                yield error


def load_attention(spec: str) -> type[nn.Module]:
    """The class of `FILE[:CLASS]`, to train with. This runs the file in this process; check it
    with check_file first. Raises GptcliError like check_file."""
    return load_class(find_file(spec))


def find_matrices(file: LearnerFile, cls: type[nn.Module], module: nn.Module, n_embd: int) -> Any:
    """The weights of queries, keys, values and output in a module of the learner's class, (C, C)
    each, as views of its parameters; None where they cannot be mapped. Runs the class once, to
    see on which side bare matrices are multiplied."""
    import torch

    from gptcli.course.attention.learner_attention import LearnerAttention
    from gptcli.course.attention.projections import ProjectionError, find_projections
    from gptcli.course.lesson import CheckFailed

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    learner = LearnerAttention(file, cls, lambda doing: None)
    try:
        learner.settle_columns()
        found = find_projections(module, n_embd, columns=learner.columns)
    except (CheckFailed, ProjectionError, GptcliError):
        return None
    finally:
        torch.set_default_dtype(before)
    return [part.weight for _, part in found.items()]


def _ask(worker: Worker, file: LearnerFile, limit_s: float) -> FileReport:
    try:
        report: dict[str, Any] = worker.ask(file, limit_s)
    except Unfinished as unfinished:
        return _unfinished(file, unfinished, _step_of_end(worker, file, unfinished))
    return FileReport.from_wire(report)


def _step_of_end(worker: Worker, file: LearnerFile, how: Unfinished) -> int | None:
    """The step at which a file hangs or ends its process; None where forward was not reached."""
    if not how.doing.startswith("forward"):
        return None
    try:
        worker.ask(file, FOLLOW_S, follow=True)
    except Unfinished as again:
        found = re.fullmatch(r"step (\d)", again.doing)
        return int(found.group(1)) if found else None
    except GptcliError:
        return None
    return None


def _unfinished(file: LearnerFile, how: Unfinished, step: int | None) -> FileReport:
    where = "" if step is None else f", in step {step}, {STEP_NAMES[step]}"
    if how.line is not None:
        linecache.checkcache(str(file.path))
        text = linecache.getline(str(file.path), how.line).strip()
        where += f", at line {how.line} of {file.path.name}, `{text}`"
    if how.reason == "time-limit":
        message = f"{how.detail}{where} ({how.doing})"
        hint = "look there for a loop that never ends, or for far too much work"
    else:
        message = f"the file ended its process ({how.detail}), {how.doing}{where}"
        hint = (
            "look for exit(), for memory without end, or for indices that leave a tensor"
            if how.detail != "SIGKILL"
            else "most likely the machine ran out of memory: look for a tensor that is too large"
        )
    return FileReport(
        file.name,
        file.class_name,
        False,
        message,
        how.reason,
        step,
        checks=(Check("runs", False, message),),
        hints=(hint,) * 3,
    )
