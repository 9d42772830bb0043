"""`python -m tests.distributed.slow_disk ...`: gptcli in a rank whose shards are slow, or refused.

The variables say what is different: SAVES is `background` or `loop`; RANK_WITH_FAULT, FAULT
(`slow`, `full`, `odd`, `blind`) and FAULT_STEP say which rank meets which fault, and at which
checkpoint.
"""

from __future__ import annotations

import errno
import io
import os
import time

from gptcli.files import durable
from gptcli.training import saving

SECONDS = 4.0  # of a slow file: long enough to be killed meanwhile


class Faulty(durable.Disk):
    """A disk with the fault, for the shards of one checkpoint."""

    def __init__(self, fault: str, step: int) -> None:
        self._fault, self._folder = fault, f".step-{step:08d}."

    def write(self, file: io.FileIO, data: memoryview) -> int:
        """Write, after the fault."""
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
