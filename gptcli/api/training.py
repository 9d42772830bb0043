"""`gptcli.train`: trains as the command `gptcli train` does, and yields the events of the run.

The loop runs in its own thread. After each event, the loop waits while the caller's code works.
Python raises Ctrl-C in the main thread, so Ctrl-C never stops a step in the middle, and no signal
handler is needed. The caller can be in any thread.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.api.loading import path_text
from gptcli.api.new_run import (
    NewRun,
    Request,
    Wanted,
    folder_of_option,
    locked_run_folder,
    new_folder,
    plan_run,
    prepare_copy,
    refuse_contradictions,
    refuse_out,
    wanted_run,
)
from gptcli.api.recording import (
    explained,
    finish_copy,
    journal_of,
    recorded_training,
    seconds_for_loggers,
)
from gptcli.api.resumed_run import resumed_run
from gptcli.api.texts import MOST_TEXTS, Target
from gptcli.api.user_files import UserFiles, split_tokenizer
from gptcli.api.wanted_config import GivenConfig
from gptcli.errors import GptcliError
from gptcli.events import Event, Finished, Notice, RunStarted
from gptcli.number_values import python_value, real_number
from gptcli.openmp import spin_briefly

if TYPE_CHECKING:
    from gptcli.api.notebook import View
    from gptcli.config import Config
    from gptcli.training.setup import FinishedRun, Prepared

PathLike = str | os.PathLike[str]

_MOST_MINUTES = 100_000  # the bound of train.minutes in gptcli.config


def train(
    config: PathLike | Sequence[PathLike] | Mapping[str, Any] | Config | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    out: PathLike | None = None,
    from_run: PathLike | None = None,
    minutes: float | None = None,
    resume: bool = False,
    extend: bool = False,
    overwrite: bool = False,
    force: bool = False,
    attention: str | None = None,
    layernorm: str | None = None,
    mlp: str | None = None,
    block: str | None = None,
    tokenizer: str | None = None,
    copy_to: str | None = None,
    progress: bool = False,
) -> Training:
    """A training, which begins when you iterate over it or call `finish()`.

    `config` is the name of a shipped config, a YAML file, a dict of sections, or a Config; the
    training uses it with `overrides`. If `config` is a text, a folder, a list of texts or folders,
    or None (the shipped text), gptcli chooses the settings. `overrides` is a dict from dotted keys
    to values, or a list of "KEY=VALUE". The other arguments are those of `gptcli train`. `out` is
    the run folder, `from_run` is a run to start from, and `minutes` is a time limit. `resume`
    continues the run in `out`, or the newest run. The arguments from `attention` to `tokenizer`
    name the user's Python files, which gptcli runs; `tokenizer` can also name a tokenizer.json or a
    run. `copy_to` is a URL to which the run is copied; if the folder `out` is missing or empty,
    `resume` fetches the run from this URL. `progress` shows the training in a notebook, or on a
    terminal as `gptcli train` does.

    Raises GptcliError at once if the config or an argument is wrong. Errors in the texts, and with
    `resume` also errors in the config, are raised later, by the iteration or by finish(). The
    weights equal those of `gptcli train`, to the last bit."""
    spin_briefly()
    words = _words(overrides)
    minutes = _checked_minutes(minutes)
    folder, base = path_text("out", out), path_text("from_run", from_run)
    tokenizer, copy_to = path_text("tokenizer", tokenizer), path_text("copy_to", copy_to)
    tokenizer_file, words = split_tokenizer(
        tokenizer, words, resume=resume, is_fine_tune=from_run is not None
    )
    files = UserFiles(
        path_text("attention", attention),
        path_text("layernorm", layernorm),
        path_text("mlp", mlp),
        path_text("block", block),
        tokenizer_file,
    )
    refuse_contradictions(
        {
            "resume": resume,
            "extend": extend,
            "overwrite": overwrite,
            "from_run": from_run is not None,
            "minutes": minutes is not None,
            "force": force,
        },
        files,
        str,
    )
    request = Request(
        _target(config),
        words,
        None if folder is None else Path(folder),
        base,
        files,
        force,
        copy_to=copy_to,
    )
    if resume:
        from gptcli.training.run_folder import find_run

        if copy_to is None:
            find_run(folder)
        return Training(_Resume(request, extend), progress=progress)
    if request.out is not None:
        folder_of_option(request.out)
    wanted = wanted_run(request, minutes)
    return Training(_Start(request, wanted, overwrite), progress=progress)


class Training:
    """A training. Iterate over it once to get its events. The last event is Finished.

    If your loop ends early (`break`, an error, Ctrl-C), the run is saved and can be resumed. `run`
    is the folder of the run, or None before RunStarted. `finished` is the last event, or None
    before the end."""

    run: Path | None = None
    finished: Finished | None = None

    def __init__(self, job: _Job, *, progress: bool) -> None:
        self._job, self._progress = job, progress
        self._begun = False

    def __iter__(self) -> Iterator[Event]:
        """The events of the run.

        Raises GptcliError at a second call, or if the text or the disk cannot be used."""
        if self._begun:
            raise GptcliError(
                "this training has begun: you can iterate over it only once",
                "to go on with its run: gptcli.train(resume=True, out=training.run)",
            )
        self._begun = True
        return self._events()

    def finish(self) -> Finished:
        """Train to the end and return the last event."""
        for _ in self:
            pass
        assert self.finished is not None
        return self.finished

    def stop(self) -> None:
        """Ask the loop to finish its step, to save and to end. The last events still come.

        If the run has not started yet, the iteration raises GptcliError instead. Any thread can
        call `stop`."""
        self._job.stopping.set()

    def __repr__(self) -> str:
        if not self._begun:
            return "<Training: not begun; iterate over it, or call finish()>"
        if self.finished is None:
            return f"<Training of {self.run}>"
        return f"<Training of {self.run}: {self.finished.stopped} at step {self.finished.step:,}>"

    def _events(self) -> Generator[Event, None, None]:
        with ExitStack() as stack:
            view: View | None = None
            if self._progress:
                from gptcli.api.notebook import open_view

                view = stack.enter_context(open_view())

            def seen(event: Event) -> Event:
                if isinstance(event, RunStarted):
                    self.run = event.run
                elif isinstance(event, Finished):
                    self.finished, self.run = event, event.run
                if view is not None:
                    _show(view, event)
                return event

            worker = _Worker(self._job)
            stack.callback(worker.end, seen)
            for event in worker.events():
                yield seen(event)


def _show(view: View, event: Event) -> None:
    """Show an event. Before RunStarted of a resumed run, recall the events recorded earlier."""
    if isinstance(event, RunStarted) and event.resumed_from:
        from gptcli.view.history import recorded_events

        for earlier in recorded_events(event.run):
            view.recall(earlier)
    view.handle(event)


# ---- the thread --------------------------------------------------------------------------------


class _Worker:
    """Runs a job in a thread. After each event, the thread waits until the next event is wanted."""

    def __init__(self, job: _Job) -> None:
        self._job = job
        self._asked: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Event | _End] = queue.SimpleQueue()
        self._ended = False
        self._abandoned = False  # nobody wants events any more
        self._thread = threading.Thread(target=self._work, name="gptcli.train", daemon=True)
        self._thread.start()
        atexit.register(self.end, lambda event: event)  # if the caller's loop is open at exit

    def events(self) -> Iterator[Event]:
        """The events of the job. Raises the error with which the job ends."""
        while not self._ended:
            answer = self._next()
            if isinstance(answer, _End):
                if answer.error is not None:
                    raise answer.error
                return
            yield answer

    def end(self, seen: Callable[[Event], object]) -> None:
        """Let the job save and end, if it has not ended. Passes the job's last events to `seen`.

        If a KeyboardInterrupt comes, this function ends at once; the thread still saves, and then
        ends. Raises GptcliError if the job cannot save."""
        self._job.stopping.set()
        try:
            while not self._ended:
                answer = self._next()
                if not isinstance(answer, _End):
                    seen(answer)
                elif answer.error is not None and not isinstance(answer.error, _StoppedEarlyError):
                    raise answer.error
        except BaseException:
            self._abandoned = True
            self._asked.put(None)
            raise

    def _next(self) -> Event | _End:
        self._asked.put(None)
        answer = self._get()
        if isinstance(answer, _End):
            self._ended = True
            self._thread.join()
            atexit.unregister(self.end)
        return answer

    def _get(self) -> Event | _End:
        while True:
            try:  # on Windows, Ctrl-C arrives only between two waits
                return self._answers.get(timeout=1.0)
            except queue.Empty:
                continue

    def _work(self) -> None:
        self._asked.get()
        error: BaseException | None = None
        try:
            with closing(self._job.events()) as events:
                for event in events:
                    self._answers.put(event)
                    if not self._abandoned:
                        self._asked.get()
        except BaseException as raised:
            error = raised
        self._answers.put(_End(error))


class _StoppedEarlyError(GptcliError):
    """The error if `stop` was called before the first step."""

    def __init__(self) -> None:
        super().__init__(
            "the training was stopped before its first step", "nothing was saved; start it again"
        )


class _End:
    """Marks the end of a job's events. `error` is set if the job failed."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


# ---- what the thread does ----------------------------------------------------------------------


class _Job:
    """A training as a generator of events. It saves and ends when `stopping` is set."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.stopping = threading.Event()

    def events(self) -> Generator[Event, None, None]:
        """The events of the run. Finished comes after the folder is complete and unlocked."""
        raise NotImplementedError

    def follow(self, prepared: Prepared) -> Generator[Event, None, Finished]:
        """Train and record. Yields all events except the last, and returns the last event."""
        from gptcli.loggers.processes import RunLoggers
        from gptcli.training import run_folder
        from gptcli.training.run_summary import RunSummary

        if self.stopping.is_set():
            raise _StoppedEarlyError
        run = prepared.setup.run
        summary = RunSummary(prepared.setup)
        run_folder.write_status(run, summary.begun())
        finished: Finished | None = None
        loggers = RunLoggers(run, prepared.setup.config.run.loggers)
        try:
            with (
                journal_of(run, summary) as journal,
                closing(
                    recorded_training(prepared, summary, journal, loggers, self.stopping.is_set)
                ) as events,
            ):
                for event in events:
                    if isinstance(event, Finished):
                        finished = event
                    else:
                        yield event
        except BaseException as error:
            loggers.finish(lambda: False, seconds_for_loggers(prepared))
            if not isinstance(error, Exception):
                raise
            clearer = explained(error, prepared, self.request.files)
            if clearer is None:
                raise
            raise clearer from error
        run_folder.write_status(run, summary.ended())
        warnings = loggers.finish(lambda: False, seconds_for_loggers(prepared))
        for warning in [*warnings, *finish_copy(prepared, lambda: False)]:
            yield Notice(warning)
        assert finished is not None
        return finished


class _Start(_Job):
    """Trains a new run."""

    def __init__(self, request: Request, wanted: Wanted, overwrite: bool) -> None:
        super().__init__(request)
        self._wanted, self._overwrite = wanted, overwrite

    def events(self) -> Generator[Event, None, None]:
        if self.stopping.is_set():
            raise _StoppedEarlyError
        if self.request.out is not None:
            refuse_out(self.request.out, overwrite=self._overwrite)
        prepare_copy(self.request, resume=False)
        warned: list[str] = []
        new = plan_run(self.request, self._wanted, time.perf_counter(), warned.append)
        new.notes[:0] = warned
        if self.stopping.is_set():
            raise _StoppedEarlyError
        from gptcli.files.durable import LockedError
        from gptcli.native import library
        from gptcli.training import run_folder

        if new.config.run.engine != "torch":
            library.start_building_training(new.config.run.dtype)  # compiles while the text is read
        out = self.request.out
        while True:
            run = folder_of_option(out) if out is not None else run_folder.free_name(new.name)
            try:
                yield (yield from self._train_in(run, new))
                return
            except (LockedError, run_folder.RunExistsError):
                if out is not None:
                    raise
                # another training was faster and took this name

    def _train_in(self, run: Path, new: NewRun) -> Generator[Event, None, Finished]:
        from gptcli.training.run_folder import restore_replaced

        with new_folder(run, overwrite=self._overwrite, restore=restore_replaced) as folder:
            return (yield from self.follow(folder.prepare(self.request, new)))


class _Resume(_Job):
    """Continues a run."""

    def __init__(self, request: Request, extend: bool) -> None:
        super().__init__(request)
        self._extend = extend

    def events(self) -> Generator[Event, None, None]:
        from gptcli.training import setup

        warned: list[str] = []
        if (fetched := prepare_copy(self.request, resume=True)) is not None:
            warned.append(fetched)
        resumed = resumed_run(self.request, warned.append)
        with locked_run_folder(resumed.run, create=False):
            prepared = resumed.prepare(extend=self._extend)
            prepared.notes[:0] = warned
            if isinstance(prepared, setup.Prepared):
                last = yield from self.follow(prepared)
            else:
                last = yield from _nothing_to_do(resumed.run, prepared)
        yield last


def _nothing_to_do(run: Path, done: FinishedRun) -> Generator[Event, None, Finished]:
    """The events if the run to resume is already finished: notices, and then Finished."""
    for message in done.notes:
        yield Notice(message)
    status = done.status
    yield Notice(f"{run} is finished (step {status['steps']}, {status['stopped']}); nothing to do")
    return Finished(
        step=status["steps"],
        tokens=status["tokens"],
        seconds=status["seconds"],
        stopped=status["stopped"],
        train_loss=status["train_loss"],
        val_loss=status["val_loss"],
        best_val_loss=status["best_val_loss"],
        best_step=status["best_step"],
        first_val_loss=status.get("first_val_loss"),
        run=run,
    )


# ---- arguments ---------------------------------------------------------------------------------


def _target(config: Any) -> Target | GivenConfig:
    """The config or the texts that the argument `config` names."""
    if config is None:
        return None
    if isinstance(config, (str, os.PathLike)):
        return os.fspath(config)
    if isinstance(config, Mapping):
        return GivenConfig(_plain(config))
    from gptcli.config import Config

    if isinstance(config, Config):
        return GivenConfig(config.model_dump(exclude_unset=True))
    if isinstance(config, Sequence) and all(isinstance(one, (str, os.PathLike)) for one in config):
        texts = [os.fspath(one) for one in config]
        if not 1 <= len(texts) <= MOST_TEXTS:
            raise GptcliError(
                f"a list of {len(texts)} texts; a list can have 1 to {MOST_TEXTS}",
                "name the folder that holds them",
            )
        return texts[0] if len(texts) == 1 else texts
    raise GptcliError(
        f"config must name a config or texts; got {type(config).__name__}",
        'for example gptcli.train("tiny"), or gptcli.train({"train": {"max_steps": 100}})',
    )


def _checked_minutes(minutes: Any) -> float | None:
    """The time limit as a float; None for None.

    Raises GptcliError if it is no number of minutes."""
    if minutes is None:
        return None
    number = real_number(minutes)
    if number is None or not 0 < number <= _MOST_MINUTES:
        raise GptcliError(
            f"minutes must be a number above 0, {_MOST_MINUTES:,} or less; got "
            f"{cropped_value(minutes)}",
            "for example minutes=1",
        )
    return number


def _plain(value: Any) -> Any:
    """The value, with mappings as dicts, tuples as lists, paths as text, and NumPy's and PyTorch's
    scalars as Python's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else python_value(value)


def _words(overrides: Any) -> list[str]:
    """The overrides as a list of KEY=VALUE."""
    if isinstance(overrides, Mapping):
        words = [_word(str(key), _plain(value)) for key, value in overrides.items()]
    else:
        words = _listed_words(overrides)
    for word in words:
        try:
            word.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise GptcliError(
                f"the override {cropped_value(word)} is not valid Unicode", "correct it"
            ) from None
    return words


def _listed_words(overrides: Any) -> list[str]:
    is_list = isinstance(overrides, Iterable) and not isinstance(overrides, str)
    words: list[Any] = list(overrides) if is_list else [None]
    if not all(isinstance(one, str) for one in words):
        raise GptcliError(
            "overrides must be a dict from keys to values, or a list of KEY=VALUE",
            'for example {"model.n_layer": 6}',
        )
    return words


def _word(key: str, value: Any) -> str:
    from gptcli.text_values import takes_text

    if isinstance(value, str) and takes_text(tuple(key.split("."))):
        quoted = value.replace("'", "''")
        return f"{key}='{quoted}'"
    try:
        return f"{key}={json.dumps(value, ensure_ascii=False)}"
    except (TypeError, ValueError):
        raise GptcliError(
            f"{key}: {cropped_value(value)} is no value of a config",
            "give a number, a text, a bool, None, or a list or dict of them",
        ) from None


def cropped_value(value: Any) -> str:
    """A value for a message: on one line, cut off if it is long."""
    line = " ".join(repr(value).split())
    return line if len(line) <= 60 else line[:57] + "..."
