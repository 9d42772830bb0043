"""When checkpoints are written, and by whom: small ones at once, large ones beside the training.

A large one is a copy in memory of the moment, which a thread writes while the next steps are made;
what it writes, and in which order, is checkpoint.save's affair, and so the guarantees are the same.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gptcli.errors import GptcliError
from gptcli.events import CheckpointSaved, Event, Notice
from gptcli.training import checkpoint
from gptcli.training.training_state import TrainingState

_CHECKPOINT_SECONDS = 60.0
_CHECKPOINT_SHARE = 0.01
_ABANDON_SECONDS = 0.5  # a second Ctrl-C waits no longer for a disk that is stuck
BACKGROUND_BYTES = 32 << 20  # from so many on it pays to copy and to write beside the training


@dataclass
class _Writing:
    """A checkpoint on its way to the disk."""

    step: int
    thread: threading.Thread | None = None
    path: Path | None = None
    error: BaseException | None = None
    took: float = 0.0  # seconds of a processor
    tensors: list[dict[str, Any]] = field(default_factory=list)


class Saver:
    """Saves a run's state. A failed save in the middle of a run is a notice, and is tried again
    when the next is due; `save_or_raise` raises instead."""

    def __init__(self, run: Path, keep: int, every: int | str, saved_at: int | None) -> None:
        self.saved_at = saved_at
        """The step of the newest checkpoint, written or on its way."""
        self._run, self._keep, self._every = run, keep, every
        self._folder = _identity(run)
        self._writing: _Writing | None = None
        self._last = time.perf_counter()
        self._cost = 0.0  # seconds that a save took from the training
        self._tried_at = saved_at
        self._must = False  # whether a failed save is the end
        self._naming = threading.Lock()  # held while a written checkpoint takes its place
        self._abandoned = False

    def due(self, step: int) -> bool:
        """Whether a checkpoint of this step should be written: at the steps that were asked for,
        or about once a minute, at most for a hundredth of the time."""
        if step in (self.saved_at, self._tried_at):
            return False
        if self._every != "auto":
            return step % int(self._every) == 0
        waited = time.perf_counter() - self._last
        return waited >= max(_CHECKPOINT_SECONDS, self._cost / _CHECKPOINT_SHARE)

    def save(
        self, state: TrainingState, meta: dict[str, Any], *, beside: bool = True
    ) -> Iterator[Event]:
        """Begin a checkpoint of this moment, or write it where it is small (or not to be written
        `beside` the training); a checkpoint that is still on its way is waited for first."""
        yield from self.collect(wait=True)
        begin = time.perf_counter()
        model, optimizer = state.weights.named(), state.optimizers.state()
        size = sum(t.numel() * t.element_size() for t in (*model.values(), *optimizer.values()))
        step = state.progress.step
        meta = {"progress": asdict(state.progress), **meta}
        best = state.progress.best_step == step
        self._writing = writing = _Writing(step)
        self.saved_at = self._tried_at = step
        if size < BACKGROUND_BYTES or not beside:
            self._write(writing, model, optimizer, meta, best)
        else:
            try:
                self._write_beside(writing, model, optimizer, meta, best)
            except (MemoryError, RuntimeError):  # no room for the copies, or for one thread more
                self._write(writing, model, optimizer, meta, best)
        writing.took += time.perf_counter() - begin
        yield from self.collect(wait=False)

    def _write_beside(
        self,
        writing: _Writing,
        model: dict[str, Any],
        optimizer: dict[str, Any],
        meta: dict[str, Any],
        best: bool,
    ) -> None:
        """Begin to write copies: the next steps change the tensors."""
        model = {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.items()}
        optimizer = {
            name: tensor.detach().to("cpu", copy=True) for name, tensor in optimizer.items()
        }
        # It may be killed with the process; the checkpoint before it is whole.
        thread = threading.Thread(
            target=self._write, args=(writing, model, optimizer, meta, best), daemon=True
        )
        writing.thread = thread
        try:
            thread.start()
        except BaseException:
            writing.thread = None
            raise

    def save_or_raise(self, state: TrainingState, meta: dict[str, Any]) -> Iterator[Event]:
        """The checkpoint of this step, durable; raises GptcliError where it cannot be written."""
        yield from self.collect(wait=True)
        if self.saved_at == state.progress.step:
            return
        self._must = True
        try:
            yield from self.save(state, meta, beside=False)
        finally:
            self._must = False

    def _write(
        self,
        writing: _Writing,
        model: dict[str, Any],
        optimizer: dict[str, Any],
        meta: dict[str, Any],
        best: bool,
    ) -> None:
        begin = time.thread_time()
        try:
            if self._run.is_dir() and not os.path.samestat(_identity(self._run), self._folder):
                raise checkpoint.run_gone_error(self._run)  # and another run in its place
            with ExitStack() as held:

                def still_wanted() -> None:
                    held.enter_context(self._naming)
                    self._refuse_abandoned()

                self._refuse_abandoned()
                writing.path = checkpoint.save(
                    self._run, writing.step, model, optimizer, meta, still_wanted
                )
                if best:
                    checkpoint.mark_best(self._run, writing.step)
                checkpoint.prune(self._run, self._keep)
        except BaseException as error:  # said by whoever gathers it
            writing.error = error
        if writing.thread is not None:
            writing.took += time.thread_time() - begin

    def abandon(self) -> None:
        """Give up a checkpoint that is still on its way, without waiting for its writing: from now
        on nothing of it gets a name, is marked or makes another one go, since the run folder may
        become another run's. One that is just getting its name is waited for, for a moment."""
        self._abandoned = True
        if self._naming.acquire(timeout=_ABANDON_SECONDS):
            self._naming.release()

    def _refuse_abandoned(self) -> None:
        if self._abandoned:
            raise _AbandonedError

    def collect(self, *, wait: bool) -> Iterator[Event]:
        """What has become of a checkpoint that was on its way, if it has arrived."""
        writing = self._writing
        if writing is None:
            return
        if writing.thread is not None:
            if not wait and writing.thread.is_alive():
                return
            writing.thread.join()
        self._writing = None
        self._last, self._cost = time.perf_counter(), writing.took
        if writing.error is None:
            assert writing.path is not None
            yield CheckpointSaved(writing.step, writing.path)
            return
        self.saved_at = None
        if self._must or not isinstance(writing.error, (GptcliError, OSError, MemoryError)):
            raise writing.error
        yield Notice(
            f"WARNING: {writing.error}. The training goes on, and tries again when the next "
            "checkpoint is due"
        )


class _AbandonedError(Exception):
    """Nobody wants the checkpoint any more."""


def _identity(run: Path) -> os.stat_result:
    """What tells a run folder from another one in its place: its lock, which is held open, so that
    no other file can get its number; without one (a loop that nobody locked) the folder."""
    lock = run / ".lock"
    return (lock if lock.exists() else run).stat()
