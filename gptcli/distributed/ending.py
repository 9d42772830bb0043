"""Ends a rank's process before Python's teardown, in which PyTorch's threads could abort it."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from contextlib import suppress

from gptcli.distributed.place import word_of


def end_rank(ended: SystemExit) -> None:
    """End this process with the exit code of `ended`, after Python's own exit functions have run.

    Threads of torch.distributed can still wait for Python's lock. At its normal end, the
    interpreter would stop such a thread in the middle of C++ code, and C++ would then abort the
    process. A rank that has saved and ended normally would look like a failure. So this function
    calls os._exit, which ends the process without the interpreter's normal end.

    A rank that `gptcli train --devices N` started exits with 0 if the training ended normally,
    because the agent of torch.distributed.run takes any other code for a failure, and ends or
    restarts all ranks. The leader leaves the real exit code for the launcher."""
    code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as in multiprocessing
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(0 if word_of("ended") is not None else code)
