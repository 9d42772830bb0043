"""`gptcli learn`: the course in one command: skeletons, checks on save, hints, progress."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.cli.output import note, stdout_console
from gptcli.errors import GptcliError
from gptcli.files.paths import expanded, shell_word

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from gptcli.cli.keys import Keys
    from gptcli.cli.learn_session import Session

_TICK_S = 0.15
_DEFAULT = "my"


def learn(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DIR]",
            help="The folder for your files. Default: the current folder if it is a course "
            "folder, else `my`. gptcli runs your files there.",
        ),
    ] = None,
) -> None:
    """Take the course: write each part of a GPT yourself.

    The command writes the next exercise into DIR. At each save, it checks your file and shows which
    steps are right. Keys: e opens your editor ($VISUAL or $EDITOR), h gives a hint and then
    stronger hints, n goes to the next exercise, l lists the exercises, s shows the reference, r
    starts the file again (a copy is kept), q quits.

    DIR/progress.json records attempts, time and hints. DIR/AGENTS.md asks coding assistants to be
    tutors. If stdin is not a terminal, the command checks once and prints what to do. If stdin is a
    terminal but stdout is not, or on Windows, there are no keys, and the command checks at each
    save until Ctrl-C.
    """
    from gptcli.course.progress_file import is_course_folder

    if folder is None:
        folder = Path() if is_course_folder(Path()) else Path(_DEFAULT)
    folder = expanded(folder)
    if folder.exists() and not folder.is_dir():
        raise GptcliError(f"{folder} is a file", "name the folder for your files: gptcli learn my")
    from gptcli.cli.keys import has_keys

    console = stdout_console()
    if has_keys() and sys.stdout.isatty():
        _at_a_terminal(folder, console)
    else:
        _in_lines(folder, console, follow=sys.stdin is not None and sys.stdin.isatty())


# ---- at a terminal ----


class _Panel:
    """The screen of the course at the bottom of the terminal. Each change is drawn in place."""

    def __init__(self, session: Session, console: Console) -> None:
        from gptcli.view.region import Region

        self._session, self._console = session, console
        self._region = Region(console, self._draw)
        self._size = console.size

    def _draw(self, width: int, height: int) -> list[Text]:
        from gptcli.cli.learn_screen import render

        return render(self._session.state, width, height, unicode=_has_unicode(self._console))

    def paint(self) -> None:
        """Draw the screen if its content or the size of the window has changed."""
        if self._session.changed or self._console.size != self._size:
            self._session.changed, self._size = False, self._console.size
            self._region.refresh()

    def open(self) -> None:
        """Reserve the bottom of the terminal for the screen."""
        self._region.open()
        self._session.changed = True

    def close(self) -> None:
        """Erase the screen."""
        self._region.close()


class _Pages:
    """The screen on a terminal without cursor control, where each change prints it again."""

    def __init__(self, session: Session, console: Console) -> None:
        self._session, self._console = session, console
        self._printed = ""

    def paint(self) -> None:
        """Print the screen if it has changed since the previous time."""
        from gptcli.cli.learn_screen import render

        state = replace(self._session.state, checking_s=None)
        unicode = _has_unicode(self._console)
        lines = render(state, self._console.width - 1, 10_000, unicode=unicode)
        text = "\n".join(line.plain for line in lines)
        if text != self._printed:
            self._printed = text
            self._console.print("-" * (self._console.width - 1))
            for line in lines:
                self._console.print(line)

    def open(self) -> None:
        """Make `paint` print the screen again: another program may have used the terminal."""
        self._printed = ""

    def close(self) -> None:
        """Do nothing, because the printed screen can stay."""


def _at_a_terminal(folder: Path, console: Console) -> None:
    """Run the course with keys, until the learner presses q or Ctrl-C."""
    from gptcli.cli.keys import Keys
    from gptcli.cli.learn_session import Session

    with ExitStack() as stack:
        prints, terminal = stack.enter_context(_caught_stderr())

        def edit(path: Path, line: int | None) -> str:
            from gptcli.cli.editor import editor, open_in_editor

            try:
                words = editor(os.environ, path)
            except GptcliError as error:
                return f"{error.message}: {error.hint}"
            screen.close()
            try:
                with keys.given_back():
                    return open_in_editor(words, path, line, terminal)
            finally:
                screen.open()

        session = Session(
            folder, edit=edit, said=lambda text: console.print(text, style="green"), prints=prints
        )
        stack.callback(session.close)
        can_move = console.is_interactive and not console.is_dumb_terminal
        screen = (_Panel if can_move else _Pages)(session, console)
        keys = stack.enter_context(Keys())
        screen.open()
        stack.callback(screen.close)
        while not session.done:
            session.tick()
            screen.paint()
            for key in keys.read(_TICK_S):
                if key == "stop":
                    _stop(keys, screen)
                else:
                    session.press(key)
    here = "" if folder == Path(_DEFAULT) else f" {shell_word(folder)}"
    note(f"your progress is in {session.progress.path}; go on with: gptcli learn{here}")


def _stop(keys: Keys, screen: _Panel | _Pages) -> None:
    """Stop the process after Ctrl-Z. The shell uses the terminal until the user runs `fg`."""
    screen.close()
    keys.stop()
    screen.open()


@contextmanager
def _caught_stderr() -> Iterator[tuple[Callable[[], list[str]], int]]:
    """Catch what the learner's files print on stderr, because it would damage the screen.

    Yields two values: a function that returns the lines that were caught since its previous call,
    and the file descriptor of the real stderr. If stderr is not a terminal, nothing is caught."""
    real = os.dup(2)
    try:
        if not os.isatty(real):  # 2>log
            yield list, real
            return
        with tempfile.TemporaryFile() as file:
            os.set_blocking(file.fileno(), True)
            import fcntl

            flags = fcntl.fcntl(file, fcntl.F_GETFL)
            fcntl.fcntl(file, fcntl.F_SETFL, flags | os.O_APPEND)  # new_lines empties the file

            def new_lines() -> list[str]:
                file.seek(0)
                data = file.read(1 << 16)
                file.truncate(0)
                return data.decode("utf-8", "replace").splitlines()

            sys.stderr.flush()
            os.dup2(file.fileno(), 2)
            try:
                yield new_lines, real
            finally:
                sys.stderr.flush()
                os.dup2(real, 2)
    finally:
        os.close(real)


def _has_unicode(console: Console) -> bool:
    return "utf" in (console.encoding or "").lower()


# ---- without keys ----


def _in_lines(folder: Path, console: Console, *, follow: bool) -> None:
    """Print the state of the course as lines.

    If `follow` is true, print it again at each save until Ctrl-C."""
    from gptcli.cli.learn_session import Session

    session = Session(folder, edit=None, said=lambda text: None)
    try:
        _check_on(session, console)
        while follow and session.state.view != "done":
            _say_how_to_go_on(session, follow)
            session.await_save(time.sleep, _TICK_S)
            console.print()
            _check_on(session, console)
        _say_how_to_go_on(session, follow)
    finally:
        session.close()


def _check_on(session: Session, console: Console) -> None:
    """Check exercises in order, and print their steps, until one does not pass or all pass."""
    from gptcli.cli.learn_screen import render_plain

    unicode = _has_unicode(console)
    while True:
        if session.state.view != "done":
            session.wait()
        passes = session.state.view == "compare" or session.state.passes
        for told in (session.state.trouble, session.state.note):
            if told:
                note(f"note: {told}")
        session.state.trouble = ""
        for line in render_plain(session.state, console.width, unicode=unicode):
            console.print(line, soft_wrap=True)
        if not passes or session.state.view == "done":
            return
        console.print()
        session.press("n")


def _say_how_to_go_on(session: Session, follow: bool) -> None:
    state = session.state
    if state.view == "done":
        return
    path, command = shell_word(state.path), state.exercise.command
    note("")
    if follow:
        note(f"watching {path}: save it to check it again, stop with Ctrl-C")
    else:
        note(f"edit {path}, then run: gptcli learn {shell_word(state.folder)}")
    note(f"for a hint: gptcli {command} {path} --hint 1")
