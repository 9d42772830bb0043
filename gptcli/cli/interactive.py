"""`gptcli sample --interactive`: type a prompt, see the continuation; Ctrl-C stops it."""

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
    "Type a prompt and Enter; an empty line lets the model go on. Ctrl-C stops a continuation, "
    "`/new` begins a new text, Ctrl-D (or `/quit`) leaves."
)


def talk(
    conversation: Conversation,
    max_new_tokens: int,
    show: Callable[[str], None],
    first: str | None = None,
) -> None:
    """Turns until the input ends; `first` is said before the user is asked."""
    if sys.stdin is None:  # closed by the caller
        return
    terminal = sys.stdin.isatty()
    if terminal:
        note(_HELP)
        with suppress(ImportError):  # lines can be edited and found again
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
    """Within, Ctrl-C is a wish: what is given says whether it came. A second one leaves at once
    what is being done within."""
    came = False

    def wish(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if came:
            raise KeyboardInterrupt
        came = True

    before = signal.signal(signal.SIGINT, wish)
    try:
        yield lambda: came
    except KeyboardInterrupt:
        note("\n(cut short; a new text begins)")
    finally:
        signal.signal(signal.SIGINT, before)
