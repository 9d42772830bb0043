"""Trainings in several processes, for the tests: start them, send them signals, kill them, wait for
them, read their losses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

SMALL = (
    "model.n_layer=1",
    "model.n_head=2",
    "model.n_embd=32",
    "model.block_size=32",
    "model.dropout=0.1",
    "train.batch_size=4",
    "train.grad_accum=4",
    "train.log_every=1",
    "train.eval_every=10",
    "train.checkpoint_every=10",
    "run.threads=1",
    "run.device=cpu",
    "run.dtype=float32",
)


class Launched:
    """A running training with one or several ranks, in its own process group."""

    def __init__(
        self,
        words: list[str],
        folder: Path,
        *,
        torchrun: int | None = None,
        program: str = "gptcli",
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        start = [sys.executable, "-m", program]
        if torchrun is not None:
            start = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                     f"--nproc-per-node={torchrun}", "-m", program]  # fmt: skip
        self.error = folder / f"stderr-{time.monotonic_ns()}"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        environment |= variables
        environment.pop("GPTCLI_LAUNCH", None)
        with self.error.open("w") as error:
            self.process = subprocess.Popen(
                [*start, *words],
                stdout=subprocess.DEVNULL,
                stderr=error,
                text=True,
                env=environment,
                start_new_session=True,
            )

    def ranks(self) -> dict[int, int]:
        """The running ranks: number of the rank -> process id."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                variables = (path / "environ").read_bytes().split(b"\0")
            except (OSError, ValueError, IndexError):
                continue
            rank = [each[5:] for each in variables if each.startswith(b"RANK=")]
            if parent == self.process.pid and rank:
                found[int(rank[0])] = int(path.name)
        return found

    def until(self, condition: Callable[[], bool], seconds: float = 120.0) -> None:
        """Wait until `condition` returns true.

        Fail if the training ends first, or if the wait takes longer than `seconds`."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"the training ended early:\n{self.said()}"
            assert time.monotonic() < end, f"too slow:\n{self.said()}"
            time.sleep(0.02)

    def signal(self, rank: int | None, number: int) -> None:
        """Send a signal to the rank `rank`, or to the launcher if `rank` is None."""
        os.kill(self.process.pid if rank is None else self.ranks()[rank], number)

    def wait(self, seconds: float = 120.0) -> int:
        """Wait for the end of the training, and return its exit code.

        If the training takes longer than `seconds`, kill its processes and fail."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            for pid in (*self.ranks().values(), self.process.pid):
                os.kill(pid, signal.SIGKILL)
            self.process.wait()
            raise AssertionError(f"the training hangs:\n{self.said()}") from None

    def said(self) -> str:
        """The text that the training has written to stderr so far."""
        return self.error.read_text()


def losses(run: Path) -> dict[tuple[str, int], float]:
    """The losses in metrics.jsonl: (kind of record, step) -> loss."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return {(r["kind"], r["step"]): r.get("loss", r.get("val_loss")) for r in records}


def reached(run: Path, step: int) -> Callable[[], bool]:
    """A function that returns whether metrics.jsonl has a loss of `step` or of a later step."""

    def has() -> bool:
        try:
            return max(at for _, at in losses(run)) >= step
        except (OSError, ValueError):
            return False

    return has


def newest(run: Path) -> int:
    """The step of the newest checkpoint of a run, or 0 if it has none."""
    steps = [int(path.name[5:]) for path in (run / "checkpoints").glob("step-*")]
    return max(steps, default=0)


def weights(run: Path) -> bytes:
    """The bytes of the weights in the newest checkpoint."""
    return (run / "checkpoints" / f"step-{newest(run):08d}" / "model.safetensors").read_bytes()
