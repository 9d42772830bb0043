"""The end of a rank's process, without the teardown in which PyTorch's threads can abort."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from contextlib import suppress

from gptcli.distributed.place import word_of


def end_rank(ended: SystemExit) -> None:
    """End this process with the exit code of `ended`, after everything that Python does at its end.

    Threads of torch.distributed can still wait for Python's lock. An interpreter that ends removes
    such a thread from within C++, and C++ then aborts the process: a rank that has saved and ended
    in order would have failed. So the process ends before the interpreter does.

    A rank that `gptcli train --devices N` started exits with 0 if the training ended in order: the
    agent of torch.distributed.run would take another code for a failure, and start all ranks again.
    The leader has left the exit code for the launcher."""
    code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as multiprocessing does
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(0 if word_of("ended") is not None else code)
