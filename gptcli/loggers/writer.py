"""The process that writes one log of a run. It never changes the run's own files.

A logger can fail, hang, end the process or start other processes. The training goes on in all of
these cases: it only starts this process, and tells it through standard input when the run ends.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from gptcli.config_files import parse_config, read_yaml
from gptcli.config_problems import flatten
from gptcli.errors import GptcliError
from gptcli.files.bounded import refuse_link_out
from gptcli.loggers.log import Log, RunFacts
from gptcli.loggers.rows import Row, Rows, Sample
from gptcli.loggers.run_clock import run_clock

_POLL_S = 0.5


def main(arguments: str) -> None:
    """Write the log that the JSON object `arguments` describes, and end the process.

    Prints one JSON object on stdout. Its keys are `rows` and `samples` (how many were written), or
    `problem` and possibly `hint`. The keys of `arguments` are `run`, `logger`, `path`, `inside`
    (whether the path must lie in the run folder) and `follow` (whether to keep writing new records
    until standard input has a line or ends)."""
    answer = _own_stdout()
    request = json.loads(arguments)
    for name in ("SIGINT", "SIGHUP"):  # a Ctrl-C in the terminal must stop only the training
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    with suppress(AttributeError, OSError):
        os.nice(10)  # the training has priority
    try:
        found: dict[str, Any] = _write(request)
    except GptcliError as error:
        found = {"problem": error.message, "hint": error.hint}
    except BaseException as error:
        what = " ".join(str(error).split())
        found = {"problem": f"{type(error).__name__}: {what}" if what else type(error).__name__}
    with suppress(OSError):
        answer.write(json.dumps(found) + "\n")
        answer.flush()
    os._exit(1 if "problem" in found else 0)  # do not wait for threads of the logger


def _own_stdout() -> IO[str]:
    """The stream that was stdout. From now on, everything that libraries print goes to stderr."""
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return own


def _write(request: dict[str, Any]) -> dict[str, Any]:
    """Write the log, and return how many rows and samples it has."""
    run, path = Path(request["run"]), Path(request["path"])
    ended = threading.Event()
    if request["follow"]:
        threading.Thread(target=_wait_for_end, args=(ended,), daemon=True).start()
    else:
        ended.set()
    if request["inside"]:
        refuse_link_out(path, run)
    rows, log, count = Rows(run), None, {"rows": 0, "samples": 0}
    while True:
        # Ask before `read`. If the run has ended by now, `read` sees all of its lines.
        is_end = ended.is_set()
        found = rows.read(ended=is_end)
        if rows.first and found and log is None:
            clock = run_clock(run, max(map(_seconds, found)))
            log = _open_log(request["logger"], path, _facts(run, rows.first, clock(0.0)))
            time = clock(0.0)
        for item in found:
            if log is None:  # a run without metrics can have samples
                break
            if isinstance(item, Row):
                time = clock(item.values["seconds"]) if "seconds" in item.values else time
                log.row(item, time)
            else:
                log.sample(item, time)  # it follows the row of its step, if there is one
            count["rows" if isinstance(item, Row) else "samples"] += 1
        if is_end:
            break
        if found and log is not None:
            log.flush()
        ended.wait(_POLL_S)
    if log is not None:
        log.close()
    return count


def _open_log(name: str, path: Path, facts: RunFacts) -> Log:
    """Open and return a new log of the logger `name` at `path`. Imports the logger's package."""
    if name == "csv":
        from gptcli.loggers.csv_log import CsvLog

        return CsvLog(path)
    if name == "tensorboard":
        from gptcli.loggers.tensorboard_log import TensorboardLog

        return TensorboardLog(path, facts)
    if name == "trackio":
        from gptcli.loggers.trackio_log import TrackioLog

        return TrackioLog(path, facts)
    assert name == "wandb"
    from gptcli.loggers.wandb_log import WandbLog

    return WandbLog(path, facts)


def _seconds(item: Row | Sample) -> float:
    return item.values.get("seconds", 0.0) if isinstance(item, Row) else 0.0


def _facts(run: Path, first: bytes, began: float) -> RunFacts:
    """What a log says about its run, besides rows and samples."""
    path = run / "config.yaml"
    config = parse_config(read_yaml(path, inside=run), name=str(path)).model_dump()
    return RunFacts(
        name=run.resolve().name,
        identity=hashlib.sha256(first).hexdigest()[:8],
        config={".".join(key): _plain(value) for key, value in flatten(config).items()},
        began=began,
    )


def _plain(value: object) -> bool | int | float | str:
    """A config's value in a type that all loggers accept: a list or null becomes text."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return value if isinstance(value, (bool, int, float, str)) else "null"


def _wait_for_end(ended: threading.Event) -> None:
    """Wait until the training ends (standard input has a line or ends), then set `ended`."""
    with suppress(OSError):
        os.read(0, 1)
    ended.set()
