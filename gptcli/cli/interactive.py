"""`gptcli sample --interactive`: the user and the model write in turns. Ctrl-C stops an answer."""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from types import FrameType
from typing import TYPE_CHECKING

from gptcli.cli.escapes import unescape
from gptcli.cli.output import note, print_error
from gptcli.errors import GptcliError
from gptcli.plurals import agreeing

if TYPE_CHECKING:
    from gptcli.sampling.conversation import Conversation
    from gptcli.sampling.params import SamplingParams
    from gptcli.sampling.streams import Streams
    from gptcli.tokenization import Tokenizer
    from gptcli.tokenization.unknown_characters import Rule

_HELP = """\
Type a text and press Enter: the model continues it. After an empty line, the model writes on.
Ctrl-C stops the model. /new begins a new text, /quit (or Ctrl-D) leaves, /help prints these
lines. The next commands change a value, or print it if you give none: /temp 0.8 (temperature),
/len 500 (tokens of an answer), /seed 1, /run NAME (another model)"""
_PROMPT = "> "
_BOLD, _DIM, _PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"


@dataclass(frozen=True)
class Turns:
    """A conversation with a model, and what the user's commands need."""

    conversation: Conversation
    open_streams: Callable[[SamplingParams], Streams]
    tokenizer: Tokenizer
    unknown: Rule
    run: str


@dataclass(frozen=True)
class Settings:
    """The settings that the user can change between two turns."""

    params: SamplingParams
    max_new_tokens: int
    seed: int


def converse(
    load: Callable[[str | None, Settings], Turns],
    settings: Settings,
    show: Callable[[str], None],
    first: str | None = None,
    *,
    escape: bool = False,
) -> None:
    """Read lines and let the model answer them, until the input ends or the user types /quit.

    `first` is the first prompt. If it is None, the first prompt is read, too. `load(run, settings)`
    returns the model of `run`. If `run` is None, `load` returns the model of the run that the
    command line names. If `escape` is true, typed lines can have escapes."""
    if sys.stdin is None:  # the caller closed stdin
        return
    terminal = _Terminal()
    if terminal.reads:
        terminal.hint(_HELP)
        with suppress(ImportError):  # readline gives input() line editing and a history
            import readline  # noqa: F401
    session = _Session(load, settings, show, terminal, escape)
    if first is not None:
        if terminal.rewrites:
            terminal.print_prompt(first)
        session.answer(first)
    while True:
        try:
            line = input(_PROMPT if terminal.reads and terminal.writes else "")
        except EOFError:
            if terminal.reads:
                show("\n")
            return
        except KeyboardInterrupt:
            note("\n(Ctrl-D leaves)")
            continue
        except UnicodeDecodeError:
            print_error(GptcliError("the line is not UTF-8 text", "type it again"))
            continue
        if line.strip() == "/quit":
            return
        try:
            session.take(line)
        except GptcliError as error:
            print_error(error)


class _Session:
    """The model that answers, and the settings that the user's commands change."""

    def __init__(
        self,
        load: Callable[[str | None, Settings], Turns],
        settings: Settings,
        show: Callable[[str], None],
        terminal: _Terminal,
        escape: bool,
    ) -> None:
        self._load, self._show, self._terminal, self._escape = load, show, terminal, escape
        self._settings = settings
        self._turns = load(None, settings)
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda value: terminal.hint(_HELP),
            "/new": lambda value: self._turns.conversation.new(),
            "/temp": self._temperature,
            "/len": self._length,
            "/seed": self._seed,
            "/run": self._run,
        }

    def take(self, line: str) -> None:
        """Run the command in a line, such as /temp, or let the model answer the line.

        Raises GptcliError for a wrong command, a wrong escape, or a line that is not UTF-8."""
        name, _, value = line.strip().partition(" ")
        if name in self._commands:
            self._commands[name](value.strip())
        elif name == line.strip() and name[:1] == "/" and name[1:].isalpha():
            raise GptcliError(f"no such command: {name}", "/help lists the commands")
        elif any("\ud800" <= character <= "\udfff" for character in line):
            raise GptcliError("the line is not UTF-8 text", "type it again")
        else:
            text = unescape(line, "the line") if self._escape else line
            self._terminal.rewrite(line)
            self.answer(text)

    def answer(self, text: str) -> None:
        """Let the model continue the text of the user, and show the continuation."""
        from gptcli.tokenization.unknown_characters import readable

        text, changed = readable(self._turns.tokenizer, self._turns.unknown, text)
        if changed is not None:
            note(f"note: {changed}")
        out, line_is_open = sys.stdout, self._terminal.rewrites and bool(text)
        try:
            with stopped_by_user() as should_stop, redirect_stdout(sys.stderr):
                for piece in self._turns.conversation.say(
                    text,
                    self._settings.max_new_tokens,
                    should_stop,
                    to_line_end=self._terminal.reads,
                ):
                    with redirect_stdout(out):
                        self._show(piece)
                    line_is_open = not piece.endswith("\n") if piece else line_is_open
        except GptcliError as error:
            if line_is_open:
                self._show("\n")
            print_error(error)
            return
        if line_is_open:
            self._show("\n")

    def _temperature(self, value: str) -> None:
        if value:
            number = _number(value, "/temp 0.8: 0 is greedy, 0.5 to 1.2 is usual")
            params = replace(self._settings.params, temperature=number)
            self._settings = replace(self._settings, params=params)
            self._turns.conversation.continue_with(self._turns.open_streams(params))
        self._terminal.hint(f"temperature {self._settings.params.temperature:g}")

    def _length(self, value: str) -> None:
        if value:
            count = _whole_number(value, "/len 500: about how many tokens an answer may have")
            self._settings = replace(self._settings, max_new_tokens=count)
        most = self._settings.max_new_tokens
        self._terminal.hint(f"about {most} {agreeing(most, 'token')} for an answer")

    def _seed(self, value: str) -> None:
        if value:
            seed = _whole_number(value, "/seed 1: a whole number from 0 on")
            self._settings = replace(self._settings, seed=seed)
            self._turns.conversation.reseed(seed)
        self._terminal.hint(f"seed {self._settings.seed}")

    def _run(self, value: str) -> None:
        if value:
            with redirect_stdout(sys.stderr):
                self._turns = self._load(value, self._settings)
            self._terminal.hint(f"{self._turns.run}; a new text begins")
        else:
            self._terminal.hint(self._turns.run)


class _Terminal:
    """What the terminal can do: `reads` lines, `writes` text, `rewrites` a line after Enter."""

    def __init__(self) -> None:
        self.reads, self.writes = sys.stdin.isatty(), sys.stdout.isatty()
        has_cursor = os.environ.get("TERM", "dumb") != "dumb"
        self.rewrites = self.reads and self.writes and has_cursor
        self._colour = not os.environ.get("NO_COLOR") and has_cursor

    def hint(self, text: str) -> None:
        """Print a note on stderr, in dim letters if stderr is a terminal."""
        dim = self._colour and sys.stderr.isatty()
        for line in text.splitlines():
            if dim:
                sys.stderr.write(_DIM)
            note(line)
            if dim:
                sys.stderr.write(_PLAIN)
                sys.stderr.flush()

    def rewrite(self, line: str) -> None:
        """Print the user's line again in its old place, in bold and without its newline.

        The answer of the model then continues this line."""
        from rich.cells import cell_len

        if not self.rewrites or not line.isprintable():
            return
        columns = shutil.get_terminal_size().columns
        rows = cell_len(_PROMPT + line) // max(1, columns) + 1
        sys.stdout.write(f"\x1b[{rows}A\r\x1b[J")
        self.print_prompt(line)

    def print_prompt(self, text: str) -> None:
        """Print the text of the user in bold, without a newline after it."""
        from gptcli.view.safe_text import clean

        dim, bold, plain = (_DIM, _BOLD, _PLAIN) if self._colour else ("", "", "")
        sys.stdout.write(f"{dim}{_PROMPT}{plain}{bold}{clean(text)}{plain}")
        sys.stdout.flush()


def _number(value: str, usage: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise GptcliError(f"`{value}` is not a number from 0 on", usage)
    return number


def _whole_number(value: str, usage: str) -> int:
    if not (value.isascii() and value.isdecimal() and int(value[:19]) < 2**63 and len(value) < 20):
        raise GptcliError(f"`{value}` is not a whole number from 0 on", usage)
    return int(value)


@contextmanager
def stopped_by_user() -> Iterator[Callable[[], bool]]:
    """Inside the `with` block, the first Ctrl-C raises no exception.

    Yields a function that tells whether Ctrl-C was pressed. The second Ctrl-C ends the block at
    once, and prints a note for the user."""
    pressed = False

    def on_ctrl_c(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, on_ctrl_c)
    try:
        yield lambda: pressed
    except KeyboardInterrupt:
        note("\n(interrupted; a new text begins)")
    finally:
        signal.signal(signal.SIGINT, before)
