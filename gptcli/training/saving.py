"""Saves checkpoints when they are due (by default about once a minute), large ones in a thread.

gptcli copies a large checkpoint in memory. A thread writes the copy to the disk while training
continues. `checkpoint.save_files` writes both small and large checkpoints, so the guarantees after
a crash are the same.

First reading: `Saver.due` and `Saver.save`. Skip the rest: threads, failures, Ctrl-C.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gptcli.errors import GptcliError
from gptcli.events import CheckpointSaved, Event, Notice
from gptcli.training import checkpoint
from gptcli.training.checkpoint_files import TensorFiles
from gptcli.training.training_state import TrainingState

_AUTO_SECONDS = 60.0
_AUTO_MAX_SHARE = 0.01  # saving takes at most this share of the training time
_ABANDON_SECONDS = 0.5  # a second Ctrl-C waits at most this long for a slow disk
BACKGROUND_BYTES = 32 << 20
"""`Saver.save` copies a checkpoint of this many bytes or more, and a thread writes it."""


@dataclass
class _Writing:
    """A checkpoint that is being written."""

    step: int
    thread: threading.Thread | None = None
    path: Path | None = None
    error: BaseException | None = None
    took: float = 0.0  # seconds in the main thread, plus CPU seconds in `thread`


class Saver:
    """Saves a run's checkpoints.

    If `save` fails in the middle of a run, it yields a Notice. The next save that is due tries
    again. If `save_or_raise` fails, it raises the error."""

    def __init__(self, run: Path, keep: int, every: int | str, saved_at: int | None) -> None:
        self.saved_at = saved_at
        """The step of the newest checkpoint, which a thread may still be writing. None if there is
        no checkpoint, or if the last save failed."""
        self._run, self._keep, self._every = run, keep, every
        self._folder = _identity(run)
        self._writing: _Writing | None = None
        self._last = time.perf_counter()
        self._cost = 0.0  # seconds by which the last save delayed training
        self._tried_at = saved_at
        self._must_succeed = False
        self._renaming = threading.Lock()  # held while a checkpoint is renamed and marked
        self._abandoned = False

    def due(self, step: int) -> bool:
        """Whether `checkpoint_every` asks for a checkpoint of this step.

        `auto` asks for a checkpoint each minute, or less often to spend at most 1 % of the time."""
        if step in (self.saved_at, self._tried_at):
            return False
        if self._every != "auto":
            return step % int(self._every) == 0
        waited = time.perf_counter() - self._last
        return waited >= max(_AUTO_SECONDS, self._cost / _AUTO_MAX_SHARE)

    def save(
        self, state: TrainingState, meta: dict[str, Any], *, background: bool = True
    ) -> Iterator[Event]:
        """Write a checkpoint of the current state. A thread may write it if `background` is true.

        If a thread is still writing the previous checkpoint, first waits for the thread. Yields
        CheckpointSaved or Notice for each checkpoint that is finished."""
        yield from self.collect(wait=True)
        begin = time.perf_counter()
        files = state.files()
        step = state.progress.step
        meta = {"progress": asdict(state.progress), **meta}
        best = state.progress.best_step == step
        self._writing = writing = _Writing(step)
        self.saved_at = self._tried_at = step
        if files.size < BACKGROUND_BYTES or not background:
            self._write(writing, files, meta, best)
        else:
            try:
                self._write_in_background(writing, files, meta, best)
            except (MemoryError, RuntimeError):  # no memory for the copy, or no more threads
                self._write(writing, files, meta, best)
        writing.took += time.perf_counter() - begin
        yield from self.collect(wait=False)

    def save_or_raise(self, state: TrainingState, meta: dict[str, Any]) -> Iterator[Event]:
        """Write the checkpoint of this step and wait until it is on the disk.

        Raises GptcliError if it cannot be written."""
        yield from self.collect(wait=True)
        if self.saved_at == state.progress.step:
            return
        self._must_succeed = True
        try:
            yield from self.save(state, meta, background=False)
        finally:
            self._must_succeed = False

    def collect(self, *, wait: bool) -> Iterator[Event]:
        """Yield the event of a finished save, or a Notice if the save failed.

        If `wait` is true, first waits for the thread that saves. Raises the save's error,
        instead of yielding a Notice, in two cases: if the error is unexpected, or during
        `save_or_raise`."""
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
        expected = isinstance(writing.error, (GptcliError, OSError, MemoryError))
        if self._must_succeed or not expected:
            raise writing.error
        yield Notice(
            f"WARNING: {writing.error}. The training continues, and tries again when the next "
            "checkpoint is due"
        )

    def abandon(self) -> None:
        """Give up the checkpoint that a thread is writing, without waiting for the thread.

        Another run may get the folder. So the thread must not rename the checkpoint, mark it as
        best or delete other checkpoints any more. If the thread has already begun to do this, waits
        until it has ended, but at most half a second."""
        self._abandoned = True
        if self._renaming.acquire(timeout=_ABANDON_SECONDS):
            self._renaming.release()

    def _write_in_background(
        self, writing: _Writing, files: TensorFiles, meta: dict[str, Any], best: bool
    ) -> None:
        """Copy the tensors, because the next steps change them. Then start a thread that writes."""
        copied = files.copied()
        # daemon: the thread dies with the process. An incomplete save does no harm, because the
        # earlier checkpoint is still intact.
        thread = threading.Thread(
            target=self._write, args=(writing, copied, meta, best), daemon=True
        )
        writing.thread = thread
        try:
            thread.start()
        except BaseException:
            writing.thread = None
            raise

    def _write(
        self, writing: _Writing, files: TensorFiles, meta: dict[str, Any], best: bool
    ) -> None:
        """Write a checkpoint, mark it as the best if `best` is true, and delete old checkpoints.

        Stores an error in `writing`."""
        begin = time.thread_time()
        try:
            with closing(files), ExitStack() as held:
                if self._run.is_dir() and not os.path.samestat(_identity(self._run), self._folder):
                    raise checkpoint.run_gone_error(self._run)  # another run is at this path

                def still_wanted() -> None:
                    held.enter_context(self._renaming)
                    self._refuse_abandoned()

                self._refuse_abandoned()
                writing.path = checkpoint.save_files(
                    self._run, writing.step, files, meta, still_wanted
                )
                if best:
                    checkpoint.mark_best(self._run, writing.step)
                checkpoint.prune(self._run, self._keep)
        except BaseException as error:  # `collect` raises or reports the error, on the main thread
            writing.error = error
        if writing.thread is not None:
            writing.took += time.thread_time() - begin

    def _refuse_abandoned(self) -> None:
        if self._abandoned:
            raise _AbandonedError


class _AbandonedError(Exception):
    """Stops a background save that `Saver` has abandoned."""


def _identity(run: Path) -> os.stat_result:
    """The `os.stat` result of RUN/.lock. It changes if another run folder replaces this one.

    While this process holds .lock open, no other file can get the inode number of .lock. If there
    is no .lock, returns the result for the folder."""
    lock = run / ".lock"
    return (lock if lock.exists() else run).stat()
