"""Runs gptcli as one rank of a training. One of the ranks has a fault: it writes the shards of one
checkpoint slowly, fails to write them, or does not see the run folder.

`python -m tests.distributed.slow_disk ...` reads the fault from environment variables. SAVES says
where checkpoints are written: in a `background` thread or in the training `loop`. RANK_WITH_FAULT
is the number of the rank with the fault. FAULT_STEP is the step of the checkpoint at which the
fault happens. FAULT is the kind of the fault: `slow`, `full`, `odd` (an unexpected exception) or
`blind` (the rank does not see the run folder).
"""

from __future__ import annotations

import errno
import io
import os
import time

from gptcli.files import durable
from gptcli.training import saving

# How long a slow disk waits before it writes a shard. A test can kill the rank during this time.
SECONDS = 4.0


class Faulty(durable.Disk):
    """A disk that has a fault when it writes the shards of one checkpoint.

    It writes all other files as usual."""

    def __init__(self, fault: str, step: int) -> None:
        self._fault, self._folder = fault, f".step-{step:08d}."

    def write(self, file: io.FileIO, data: memoryview) -> int:
        """Write the data.

        If the file is a shard of the checkpoint with the fault, wait before the first write
        ("slow"), or raise an error instead ("full", "odd")."""
        if self._folder in str(file.name) and "-of-" in str(file.name):
            if self._fault == "slow" and file.tell() == 0:
                time.sleep(SECONDS)
            elif self._fault == "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file.name))
            elif self._fault == "odd":
                raise ZeroDivisionError("a bug")
        return super().write(file, data)


def main() -> None:
    saving.BACKGROUND_BYTES = 0 if os.environ["SAVES"] == "background" else 1 << 40
    fault = os.environ.get("FAULT", "")
    if os.environ["RANK"] == os.environ.get("RANK_WITH_FAULT"):
        durable.disk = Faulty(fault, int(os.environ["FAULT_STEP"]))
        if fault == "blind":
            from gptcli.distributed import orders

            orders.folder_mark = lambda run: []
    from gptcli.__main__ import main as train

    train()


if __name__ == "__main__":
    main()
