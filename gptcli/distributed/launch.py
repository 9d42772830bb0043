"""`gptcli train --devices N`: starts N ranks on this machine, and ends with the leader's exit code.

The agent of torch.distributed.run starts the processes. If one fails, the agent ends all ranks,
and restarts them if `--max-restarts` allows this. This file turns the agent's reports into gptcli's
messages.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptcli.container import usable_cores
from gptcli.distributed.place import LAUNCH_FOLDER, LOST, word_of
from gptcli.errors import GptcliError
from gptcli.files.paths import shell_word

_SHUTDOWN_S = 600  # enough time for a save after SIGTERM


def launch(devices: int, max_restarts: int, arguments: Sequence[str]) -> int:
    """Run `gptcli ARGUMENTS` in `devices` ranks, and return the exit code of the command.

    Raises GptcliError if a rank died without an error message."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="gptcli-ranks-") as folder:
        os.environ[LAUNCH_FOLDER] = folder
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // devices)))
        if sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=devices,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=max_restarts,
            monitor_interval=0.1,
            shutdown_timeout=_SHUTDOWN_S,
        )
        try:
            elastic_launch(config, sys.executable)("-m", "gptcli.distributed", *arguments)
        except SignalException:
            return int(word_of("ended", folder) or 130)
        except ChildFailedError as error:
            ended = word_of("ended", folder)
            if ended is not None:
                return int(ended)
            if word_of("said", folder) is None:
                _explain(error.failures, devices, word_of("run", folder))
            return 1
        return int(word_of("ended", folder) or 0)


def _explain(failures: dict[int, Any], devices: int, run: str | None) -> None:
    """Raise GptcliError that says why all ranks ended, unless a rank has printed its error."""
    codes = {rank: failure.exitcode for rank, failure in failures.items()}
    if any(code > 0 and code != LOST for code in codes.values()):
        return  # that rank has printed its error
    # The agent ends the other ranks with SIGTERM, so SIGTERM is not the cause.
    killed = {rank: -code for rank, code in codes.items() if code < 0 and code != -signal.SIGTERM}
    if killed:
        rank, number = next(iter(killed.items()))
        name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
        message = f"rank {rank} of {devices} was killed ({name}), so all ranks ended"
    else:
        message = "the ranks lost their connection, so all ranks ended"
    raise GptcliError(
        message,
        "is the memory full? "
        + (
            f"To continue: gptcli train --resume --devices {devices} --out {shell_word(Path(run))}"
            if run is not None
            else "Start it again"
        )
        + "; --max-restarts N does this automatically",
        exit_code=1,
    )
