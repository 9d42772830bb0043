"""`gptcli train` in several processes (ranks): starts them, and gives each its part of the work.

If there is only one process, as usual, `Ranks` changes nothing and imports nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gptcli.api.new_run import Request, Wanted, wanted_run
from gptcli.api.resumed_run import ResumedRun
from gptcli.api.user_files import load_user_parts
from gptcli.cli.output import note
from gptcli.distributed.place import place
from gptcli.distributed.share import Share
from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from gptcli.config import Config
    from gptcli.distributed.session import Leader
    from gptcli.training.setup import Prepared

_NATIVE = "the C library (run.engine: native) trains only in one process"


class Ranks:
    """Adapts a training to the number of its processes.

    Of several processes, only the leader has an object of this class. If there is only one process,
    `leader` is None."""

    def __init__(self, leader: Leader | None = None, size: int = 1) -> None:
        self._leader = leader
        self.size = size

    def for_new(self, wanted: Wanted) -> Wanted:
        """The new run `wanted`, with PyTorch as its engine if several processes train it.

        Raises GptcliError if several processes must train it but the config asks for the C
        library."""
        return wanted if self._leader is None else replace(wanted, config=_torch(wanted.config))

    def for_resumed(self, resumed: ResumedRun) -> ResumedRun:
        """The resumed run, with PyTorch as its engine if several processes train it.

        Raises GptcliError if the command line asks for the C library."""
        if self._leader is None:
            return resumed
        from gptcli.training.run_folder import read_config

        if resumed.config is not None and "run.engine" in resumed.asked:
            _torch(resumed.config)  # raises if the command line has run.engine=native
        config = resumed.config or read_config(resumed.run)
        if config.run.engine == "native":
            run = config.run.model_copy(update={"engine": "torch"})
            config = config.model_copy(update={"run": run})
            asked = resumed.asked | {"run.engine"}
            return replace(resumed, config=config, asked=asked)
        return resumed

    def shared(self, prepared: Prepared) -> Prepared:
        """The prepared run, changed so that all processes share the work of each step."""
        if self._leader is None:
            return prepared
        return replace(prepared, setup=self._leader.lead(prepared.setup))

    def asked_to_stop(self) -> bool:
        """Whether any process of the run was asked to stop, for example by a signal."""
        return self._leader is not None and self._leader.asked_to_stop()

    def run_to_continue(self, out: Path | None) -> Path | None:
        """The run that must be continued because a process died.

        None if no process died, or if the run has not begun."""
        if self._leader is None:
            return None
        from gptcli.distributed.session import run_to_continue

        found = run_to_continue(out)
        if found is not None:
            note("a process died; the run goes on from its newest checkpoint")
        return found


@contextmanager
def ranks_of(devices: int, max_restarts: int, request: Request, *, resume: bool) -> Iterator[Ranks]:
    """The processes of a training.

    The `with` block runs only in the leader, or in a single process. A process that torchrun
    started joins the others. If torchrun did not start this process and `devices` is above 1, this
    function starts the processes and exits with the leader's exit code."""
    here = place()
    if here is None and devices == 1:
        yield Ranks()
        return
    if here is None:
        from gptcli.distributed.launch import launch

        if not resume:  # errors of the config are raised before processes are started
            wanted = wanted_run(request, None)
            config = _torch(wanted.config)
            if wanted.is_given and config.train.batch_size != "auto":
                Share.of(config.train, devices)
        sys.exit(launch(devices, max_restarts, sys.argv[1:]))
    from gptcli.distributed import session

    if not here.leads:
        sys.exit(session.follow_leader(here, lambda: load_user_parts(request.files)))
    with session.Leader(here) as leader:
        yield Ranks(leader, here.size)


def _torch(config: Config) -> Config:
    """The config with PyTorch as its engine. Raises GptcliError if it asks for the C library."""
    if config.run.engine == "native":
        raise GptcliError(_NATIVE, "set run.engine to auto or torch, or train in one process")
    return config.model_copy(update={"run": config.run.model_copy(update={"engine": "torch"})})
