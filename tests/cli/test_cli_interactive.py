"""`gptcli sample -i` on a terminal: answers on the line of the prompt, bold prompts, commands."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from gptcli.cli import interactive
from gptcli.cli.interactive import Settings, Turns, converse
from gptcli.errors import GptcliError
from gptcli.sampling.next_token import SamplingParams
from gptcli.tokenization import build_tokenizer

BOLD, DIM, PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"


class FakeConversation:
    """Replaces a conversation with a model: logs each call, and answers each prompt with `name`."""

    def __init__(self, name: str) -> None:
        self.name, self.log = name, []  # type: ignore[var-annotated]

    def say(self, text: str, limit: int, should_stop: Any, *, to_line_end: bool) -> Iterator[str]:
        self.log.append(("say", text, limit, to_line_end))
        yield f" <{self.name}>"

    def new(self) -> None:
        self.log.append(("new",))

    def reseed(self, seed: int) -> None:
        self.log.append(("seed", seed))

    def continue_with(self, streams: Any) -> None:
        self.log.append(("streams", streams))


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """talk("line", ...) types these lines in `gptcli sample -i`. It returns three things:
    the log of the conversation's calls, stdout, and stderr."""

    def run(
        *lines: str, terminal: bool = True, term: str = "xterm", first: str | None = None,
        escape: bool = False,
    ) -> tuple[list[Any], str, str]:  # fmt: skip
        log: list[Any] = []
        byte = build_tokenizer("byte", 0, lambda: iter(()))

        def load(name: str | None, settings: Settings) -> Turns:
            if name == "nosuch":
                raise GptcliError("no run named `nosuch`", "the runs are: a")
            fake = FakeConversation(name or "first")
            fake.log = log
            return Turns(fake, lambda params: params.temperature, byte, "error", name or "first")  # type: ignore[arg-type,return-value]

        typed = iter(lines)

        def read(prompt: str = "") -> str:
            sys.stdout.write(prompt)
            line = next(typed, None)
            if line is None:
                raise EOFError
            if terminal:
                sys.stdout.write(line + "\n")
            return line

        monkeypatch.setattr("builtins.input", read)
        monkeypatch.setenv("TERM", term)
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
        monkeypatch.setattr(
            interactive.shutil, "get_terminal_size", lambda: os.terminal_size((20, 9))
        )
        settings = Settings(SamplingParams(0.8), 500, 1)
        converse(load, settings, sys.stdout.write, first, escape=escape)  # type: ignore[arg-type]
        found = capsys.readouterr()
        return log, found.out, found.err

    return run


def test_the_answer_continues_on_the_line_of_the_prompt(talk: Any) -> None:
    log, out, _ = talk("Once upon")
    assert log == [("say", "Once upon", 500, True)]
    rewritten = f"\x1b[1A\r\x1b[J{DIM}> {PLAIN}{BOLD}Once upon{PLAIN} <first>\n"
    assert out.startswith("> Once upon\n" + rewritten)


@pytest.mark.parametrize(("length", "rows"), [(17, 1), (18, 2), (37, 2), (38, 3)])
def test_a_line_that_wraps_is_rewritten_from_its_first_row(
    length: int, rows: int, talk: Any
) -> None:
    assert f"\x1b[{rows}A" in talk("x" * length)[1]


def test_without_a_terminal_nothing_is_rewritten_and_the_limit_is_exact(talk: Any) -> None:
    log, out, err = talk("KING", "/temp 0.5", terminal=False)
    assert log == [("say", "KING", 500, False), ("streams", 0.5)]
    assert out == " <first>\n"
    assert "\x1b" not in err
    _, out, _ = talk("KING", term="dumb")
    assert "\x1b" not in out


def test_no_color_keeps_one_line_without_colour(talk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[1A\r\x1b[J> KING <first>\n" in talk("KING")[1]


def test_the_first_prompt_is_shown(talk: Any) -> None:
    assert talk(first="KING")[1].startswith(f"{DIM}> {PLAIN}{BOLD}KING{PLAIN} <first>\n")


def test_commands_change_what_comes_next(talk: Any) -> None:
    log, out, err = talk(
        "/temp 0", "/len 7", "/seed 9", "a", "/new", "/run b", "b", "/temp", "/len", "/seed", "/run"
    )
    assert log == [
        ("streams", 0.0), ("seed", 9), ("say", "a", 7, True), ("new",), ("say", "b", 7, True),
    ]  # fmt: skip
    assert " <b>\n" in out
    for line in ("temperature 0", "about 7 tokens", "seed 9", "b; a new text begins"):
        assert err.count(line) >= 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/temp hot", "`hot` is not a number"),
        ("/temp -1", "`-1` is not a number"),
        ("/temp nan", "`nan` is not a number"),
        ("/len 1.5", "`1.5` is not a whole number"),
        ("/seed " + "9" * 5000, "is not a whole number"),
        ("/run nosuch", "no run named `nosuch`"),
        ("/temperature", "no such command: /temperature"),
    ],
)
def test_a_wrong_command_changes_nothing(line: str, message: str, talk: Any) -> None:
    log, _, err = talk(line, "on")
    assert message in err
    assert "Traceback" not in err
    assert log == [("say", "on", 500, True)]


def test_help_lists_the_commands(talk: Any) -> None:
    log, _, err = talk("/help")
    assert log == []
    for name in ("/new", "/quit", "/temp", "/len", "/seed", "/run", "Ctrl-C"):
        assert err.count(name) == 2  # once in the help at the start, and once more after /help


def test_text_that_begins_with_a_slash_is_text(talk: Any) -> None:
    assert [entry[1] for entry in talk("/usr/bin is", "/and so on")[0]] == [
        "/usr/bin is", "/and so on",
    ]  # fmt: skip


def test_typed_lines_can_have_escapes(talk: Any) -> None:
    log, _, err = talk(r"KING:\n", r"\q", escape=True)
    assert log == [("say", "KING:\n", 500, True)]
    assert "is not an escape" in err
    assert talk(r"KING:\n")[0] == [("say", r"KING:\n", 500, True)]


def test_quit_leaves(talk: Any) -> None:
    assert talk("/quit", "never read")[0] == []
