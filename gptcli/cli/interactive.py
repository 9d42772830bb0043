"""`gptcli sample --interactive`: the user and the model write in turns; Ctrl-C stops an answer."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from types import FrameType
from typing import TYPE_CHECKING

from gptcli.cli.output import note, print_error
from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from gptcli.sampling.conversation import Conversation

_HELP = (
    "Type a prompt and press Enter. An empty line lets the model continue. Ctrl-C stops a "
    "continuation, `/new` begins a new text, Ctrl-D (or `/quit`) leaves."
)


def converse(
    conversation: Conversation,
    max_new_tokens: int,
    show: Callable[[str], None],
    first: str | None = None,
) -> None:
    """Take turns until the input ends. `first` is the first prompt; if it is None, ask for one."""
    if sys.stdin is None:  # the caller closed stdin
        return
    terminal = sys.stdin.isatty()
    if terminal:
        note(_HELP)
        with suppress(ImportError):  # readline gives input() line editing and a history
            import readline  # noqa: F401
    line = first
    while True:
        if line is None:
            try:
                line = input("> " if terminal and sys.stdout.isatty() else "")
            except EOFError:
                if terminal:
                    show("\n")
                return
            except KeyboardInterrupt:
                note("\n(Ctrl-D leaves)")
                continue
            except UnicodeDecodeError:
                print_error(GptcliError("the line is not UTF-8 text", "type it again"))
                continue
        command = line.strip()
        if command == "/quit":
            return
        if command == "/new":
            conversation.new()
        elif command.startswith("/") and command[1:].isalpha():
            note(f"no such command: {command}. {_HELP}")
        elif any("\ud800" <= character <= "\udfff" for character in line):
            print_error(GptcliError("the line is not UTF-8 text", "type it again"))
        else:
            _answer(conversation, line, max_new_tokens, show)
        line = None


def _answer(
    conversation: Conversation, line: str, max_new_tokens: int, show: Callable[[str], None]
) -> None:
    out, line_is_open = sys.stdout, False
    try:
        with stopped_by_user() as should_stop, redirect_stdout(sys.stderr):
            for piece in conversation.say(line, max_new_tokens, should_stop):
                with redirect_stdout(out):
                    show(piece)
                line_is_open = not piece.endswith("\n") if piece else line_is_open
    except GptcliError as error:
        print_error(error)
    if line_is_open:
        show("\n")


@contextmanager
def stopped_by_user() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C into a request to stop. Yields a function that says whether Ctrl-C was pressed.

    A second Ctrl-C leaves the block at once."""
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
