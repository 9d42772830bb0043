"""How each key and each save of a file changes the state of `gptcli learn`."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

from gptcli.cli.learn_screen import State, is_to_write, spent, strengths
from gptcli.course.catalogue import EXERCISES, Exercise
from gptcli.course.checking import Checker
from gptcli.course.folder import saved, write_missing
from gptcli.course.progress_file import ProgressFile, keep_copy
from gptcli.course.report import FileReport
from gptcli.course.solutions import compare, solution
from gptcli.errors import GptcliError
from gptcli.files.durable import write_atomically

LONGEST_PAUSE_S = 600.0  # the most seconds of a pause that count as working time
LONGEST_EDIT_S = 3600.0  # the most seconds in the learner's editor that count as working time
_PAGE = 10  # lines that a page key moves by
_MOST_PRINTS = 25  # the most lines of a file's output that are shown


class BackgroundCheck:
    """Checks files in a thread, so that keys work during a check. Checks one file at a time."""

    def __init__(self) -> None:
        self._checker = Checker()
        self._thread: threading.Thread | None = None
        self._result: FileReport | GptcliError | None = None
        self.since = 0.0

    @property
    def busy(self) -> bool:
        """Whether a check is running, or `take` has not returned its result yet."""
        return self._thread is not None

    def start(self, path: Path, exercise: str) -> None:
        """Begin to check the learner's file `path` for an exercise."""
        assert not self.busy
        self.since = time.monotonic()
        self._thread = threading.Thread(target=self._check, args=(path, exercise), daemon=True)
        self._thread.start()

    def take(self, wait_s: float | None = 0.0) -> FileReport | GptcliError | None:
        """The result of the check; None without a check, or if it needs more than `wait_s` seconds.

        If `wait_s` is None, waits without a limit."""
        if self._thread is None:
            return None
        self._thread.join(wait_s)
        if self._thread.is_alive():
            return None
        self._thread = None
        result, self._result = self._result, None
        assert result is not None
        return result

    def close(self) -> None:
        """End the worker process, even if a check is running in it."""
        self._checker.__exit__(None, None, None)
        if self._thread is not None:
            self._thread.join(1.0)
            self._checker.__exit__(None, None, None)  # the thread may have started another worker

    def _check(self, path: Path, exercise: str) -> None:
        try:
            self._result = self._checker.check(str(path), exercise)
        except GptcliError as error:
            self._result = error
        except Exception as error:  # the screen must show every error
            self._result = GptcliError(
                f"the check failed: {type(error).__name__}: {error}", "save the file to try again"
            )


class Session:
    """The work of one learner in a folder.

    `edit` opens a file at a line, and returns a note for the learner. `edit` is None if the
    learner cannot press keys. `said` prints a line that stays in the terminal above the screen.
    `prints` returns what the files printed since its previous call."""

    def __init__(
        self,
        folder: Path,
        *,
        edit: Callable[[Path, int | None], str] | None,
        said: Callable[[str], None],
        prints: Callable[[], list[str]] = list,
        exercises: tuple[Exercise, ...] = EXERCISES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._edit, self._said, self._prints, self._clock = edit, said, prints, clock
        self.progress = ProgressFile(folder)
        records = {each.name: self.progress[each.name] for each in exercises}
        self.state = State(folder, exercises, records, has_keys=edit is not None)
        self.check = BackgroundCheck()
        self.done = False
        self.changed = True  # whether the screen must be drawn again
        self._asked = ""  # the previous key, if it must be pressed twice to act
        self._acted = clock()
        self._files = saved(folder)
        self._settling = False  # a file was saved; wait until the editor has finished
        # None: no check is due. True: a check is due after a save. False: for another reason.
        self._due: bool | None = None
        self._text: str | None = None  # the text of the file in the previous check
        self._checked = ""  # the exercise that the check is about
        self._is_attempt = False  # whether the check is for a save that changed the text
        self._unsaved_s = 0.0  # working time that is not in progress.json yet
        self._same_hints: tuple[object, ...] = ()
        self.open(self._first())
        self._tell_trouble()

    def _first(self) -> int:
        """The index of the first exercise that has not passed yet.

        If all exercises have passed, it is the index of the last one."""
        names = [each.name for each in self.state.exercises]
        todo = [i for i, name in enumerate(names) if self.progress[name].passed is None]
        return todo[0] if todo else len(names) - 1

    # ---- opening, saves, keys, closing ----

    def open(self, at: int) -> None:
        """Go to the exercise with index `at`, and write the exercise's missing files."""
        self._count_time(write=True)
        state = self.state
        state.at, state.view, state.offset, state.selected = at, "work", 0, at
        state.report = state.error = None
        state.missing, state.hint, state.note, state.checked_at = False, 0, "", ""
        state.prints, state.pairs, state.to_write = [], [], None
        self._text = None
        try:
            written = write_missing(state.exercise, state.folder)
        except OSError as error:
            raise GptcliError(
                f"{state.folder}: cannot be written ({error.strerror or error})",
                "name another folder, for example: gptcli learn ~/course",
            ) from None
        if state.path in written:
            keys = "Press e to open it, or open it" if self._edit is not None else "Open it"
            state.note = f"new: {state.path}. {keys} in any editor."
        self._files = saved(state.folder)
        self._due, self._settling = False, False
        self.changed = True

    def tick(self) -> None:
        """Look for saved files, begin a due check, and take the result of a finished check."""
        self._look_for_saves()
        if not self.check.busy and self._due is not None:
            self._begin_check()
        elif self.check.busy:
            self._take(0.0)
        seconds = time.monotonic() - self.check.since if self.check.busy else None
        whole = None if seconds is None else float(int(seconds))
        if whole != self.state.checking_s:
            self.state.checking_s, self.changed = whole, True

    def _look_for_saves(self) -> None:
        now = saved(self.state.folder)
        if now != self._files:
            self._files, self._settling = (
                now,
                True,
            )  # an editor may still be writing
        elif self._settling:
            self._settling, self._due = False, True
            self._count_time()

    def wait(self) -> None:
        """Check the learner's file now, and wait for the result."""
        if self._due is None:
            self._due = False
        self._begin_check()
        self._take(None)

    def await_save(self, sleep: Callable[[float], None], pause_s: float) -> None:
        """Wait until a file in the folder is saved, so that a check is due."""
        while self._due is None:
            sleep(pause_s)
            self._look_for_saves()

    def press(self, key: str) -> None:
        """Do what the learner asks for by pressing `key`."""
        self._count_time()
        asked, self._asked = self._asked, ""
        state, self.changed = self.state, True
        note, state.note, state.trouble = state.note, "", ""
        if key == "q":
            self.done = True
        elif key in ("up", "down", "page up", "page down", "home", "end"):
            self._move(key)
        elif key == "l":
            state.view = "work" if state.view == "list" else "list"
            state.selected, state.offset = state.at, 0
        elif key == "esc":
            state.view, state.offset = "work", 0
        elif key == "enter" and state.view == "list":
            self.open(state.selected)
        elif key == "e":
            self._open_editor()
        elif key == "h" and state.view == "work":
            self._hint()
        elif key == "s":
            self._solution(asked == "s")
        elif key == "r" and state.view == "work":
            self._reset(asked == "r")
        elif key == "n" and state.view in ("work", "compare"):
            self._next(asked == "n")
        else:
            state.note = note
        self._tell_trouble()

    def close(self) -> None:
        """Record the working time, and end the worker process."""
        self._count_time(write=True)
        self.check.close()

    # ---- checks ----

    def _begin_check(self) -> None:
        state, by_save = self.state, bool(self._due)
        self._due, self.changed = None, True
        if by_save:
            state.note = ""  # the note was about the file before this save
        if not state.path.exists():
            state.missing, state.report, state.error = True, None, None
            state.view = "work"
            return
        state.missing = False
        text = _text_of(state.path)
        self._is_attempt = by_save and text != self._text
        self._text, self._checked = text, state.exercise.name
        self.check.start(state.path, self._checked)

    def _take(self, wait_s: float | None) -> None:
        result = self.check.take(wait_s)
        if result is None:
            return
        state, before, name = self.state, self.state.report, self.state.exercise.name
        self.changed = True
        prints = self._prints()[:_MOST_PRINTS]
        state.started = True
        if self._due is not None or self._checked != name:
            return  # the result is for an old version of the file, or for another exercise
        state.prints, state.checked_at = prints, time.strftime("%H:%M:%S")
        report = result if isinstance(result, FileReport) else None
        state.report, state.error = report, result if isinstance(result, GptcliError) else None
        passes = report is not None and report.ok
        is_new = passes and self.progress[name].passed is None
        self._record(attempts=int(self._is_attempt), passed=passes)
        if report is None:
            return
        same = (name, report.mistake, report.first_wrong_step, report.hints)
        if same != self._same_hints:
            self._same_hints, state.hint = same, 0
        state.to_write = _line_to_write(self._text, report)
        if self._is_attempt:
            state.note = _praise(before, report) or state.note
        if passes:
            state.note = ""
            if is_new:
                self._said(f"{name} passes: {spent(state.record)}")
            if is_new or self._is_attempt:
                self._compare()
        elif state.view == "compare":
            state.view, state.offset = "work", 0

    def _record(self, **more: int | float | bool) -> None:
        name = self.state.exercise.name
        record = self.progress.add(name, **more)  # type: ignore[arg-type]
        self.state.records[name] = record
        self._tell_trouble()

    def _count_time(self, most: float = LONGEST_PAUSE_S, *, write: bool = False) -> None:
        """Add the time since the previous action, but no more than `most`, to the working time."""
        now = self._clock()
        self._unsaved_s += min(now - self._acted, most)
        self._acted = now
        if write or self._unsaved_s >= 20:  # do not write the file at every key press
            self._record(seconds=self._unsaved_s)
            self._unsaved_s = 0.0

    def _tell_trouble(self) -> None:
        if self.progress.trouble:
            self.state.trouble, self.progress.trouble = self.progress.trouble, ""
            self.changed = True

    # ---- keys ----

    def _move(self, key: str) -> None:
        state = self.state
        step = {"up": -1, "down": 1, "page up": -_PAGE, "page down": _PAGE}.get(key)
        if state.view == "list":
            last = len(state.exercises) - 1
            to = state.selected + step if step else last * (key == "end")
            state.selected = max(0, min(last, to))
        else:
            to = state.offset + step if step else 10_000 * (key == "end")
            state.offset = max(0, to)

    def _open_editor(self) -> None:
        state = self.state
        line = state.to_write
        if line is None and state.report is not None and state.report.picture is not None:
            wrong = [s.line for s in state.report.picture.steps if s.state == "wrong"]
            line = wrong[0] if wrong else None
        assert self._edit is not None
        state.note = self._edit(state.path, line)
        if state.view == "compare":
            state.view, state.offset = "work", 0
        self._count_time(LONGEST_EDIT_S, write=True)

    def _hint(self) -> None:
        state, report = self.state, self.state.report
        if state.error is not None:
            state.note = "The hint is on the screen already."
        elif report is None:
            state.note = "There is no hint before the first check."
        elif report.ok:
            state.note = "It passes: no hint is needed."
        elif state.hint >= strengths(report):
            one = (
                "This is the only hint" if strengths(report) == 1 else "This is the strongest hint"
            )
            state.note = f"{one}. Try it before you press s."
        else:
            state.hint += 1
            self._record(hints=1)

    def _solution(self, again: bool) -> None:
        state = self.state
        if state.view == "compare":
            state.view, state.offset = "work", 0
        elif state.passes:
            self._compare()
        elif again:
            self._record(solution_seen=True)
            self._compare()
        else:
            self._asked = "s"
            state.note = (
                "You learn more if you see the reference after your own file passes. Press s once "
                "more to see it now; progress.json records this."
            )

    def _compare(self) -> None:
        state = self.state
        state.pairs = compare(self._text or "", solution(state.exercise))
        state.view, state.offset = "compare", 0

    def _reset(self, again: bool) -> None:
        state = self.state
        if not again and state.path.exists():
            self._asked = "r"
            state.note = (
                f"Press r once more to begin {state.path.name} again. Your file is kept under "
                "another name."
            )
            return
        try:
            if state.path.exists():
                kept = keep_copy(state.path, state.path.read_bytes())
                state.note = f"Your file is kept as {kept}. This is a new skeleton."
            else:
                state.note = f"{state.path} is a new skeleton."
            text = state.exercise.skeleton(state.path)
            write_atomically(state.path, text.encode("utf-8"))
        except OSError as error:
            state.note = f"{state.path}: {error.strerror or error}. Nothing was changed."
            return
        state.report = state.error = None
        self._files, self._due, self._settling = saved(state.folder), False, False

    def _next(self, again: bool) -> None:
        state = self.state
        if not state.passes and state.record.passed is None and not again:
            self._asked = "n"
            state.note = (
                f"{state.exercise.name} does not pass yet. Press n once more to leave it for later."
            )
            return
        names = [each.name for each in state.exercises]
        todo = [i for i, name in enumerate(names) if self.progress[name].passed is None]
        after = [i for i in todo if i > state.at] or [i for i in todo if i != state.at]
        if after:
            self.open(after[0])
        elif not todo:
            state.view, state.offset = "done", 0
        else:
            state.note = f"{state.exercise.name} is the only exercise that does not pass yet."


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _line_to_write(text: str | None, report: FileReport) -> int | None:
    """The number of the line `raise NotImplementedError` in the step to write next.

    Returns None if no step must be written, or if this line is not in the text."""
    if not is_to_write(report):
        return None
    sign = re.compile(rf'raise NotImplementedError\(["\']step {report.first_wrong_step}\b')
    lines = (text or "").splitlines()
    return next((i for i, line in enumerate(lines, 1) if sign.search(line)), None)


def _praise(before: FileReport | None, now: FileReport) -> str:
    """A message about a save: which steps became right, or are no longer right; "" if none."""
    old, new = (r and r.first_wrong_step for r in (before, now))
    if not old or not new or new == old:
        return ""
    if new < old:
        return f"Step {new} is no longer right; it was right before this save."
    if new == old + 1:
        return f"Step {old} is right now."
    return f"Steps {old} {'and' if new == old + 2 else 'to'} {new - 1} are right now."
