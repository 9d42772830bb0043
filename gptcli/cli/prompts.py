"""Reads the prompts of `gptcli sample`: from the command line, a file, or the lines of a file."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gptcli.cli.escapes import literal_escapes_note, unescape
from gptcli.cli.output import note
from gptcli.cli.run_argument import named_run
from gptcli.errors import GptcliError, cropped
from gptcli.files.paths import expanded

_MOST_BYTES = 1 << 26


def encoding_of_run(run: str | None, command: str) -> str | None:
    """The data.encoding of the run that `command` reads."""
    from gptcli.training.run_folder import read_config

    return read_config(named_run(run, command)).data.encoding


def read_text(file: Path, command: str, encoding: Callable[[], str | None]) -> str:
    """The text of a file without its byte-order mark, in UTF-8 or else in the run's `encoding`.

    Raises GptcliError if the file cannot be read, is in another encoding or is too long. Hints name
    `command`, the command or option that reads the file."""
    file = expanded(file)
    try:
        with file.open("rb") as opened:  # with a limit, because a pipe can be endless
            data = opened.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise GptcliError(
                f"{file}: longer than {_MOST_BYTES:,} bytes",
                f"{command} takes a text that fits a model",
            )
        return data.decode("utf-8-sig")
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG or "\n" in str(file):
            instead = ", or use --prompt TEXT" if command.startswith("--prompt") else ""
            raise GptcliError(
                f"`{cropped(str(file))}` is not the name of a file: it looks like a text itself",
                f"save the text in a file and name the file{instead}",
            ) from None
        raise GptcliError(
            f"{cropped(str(file))}: cannot be read ({error.strerror})",
            f"{command} takes a UTF-8 text file",
        ) from None
    except UnicodeDecodeError as error:
        other = encoding()
        if other is not None:
            with suppress(UnicodeError):
                return data.decode(other).removeprefix("\ufeff")
        read = f" and not {other}" if other is not None else ""
        message = f"{file}: not UTF-8 text (byte {error.start}){read}"
        raise GptcliError(*_with_encoding(file, message, data)) from None


def _with_encoding(file: Path, message: str, data: bytes) -> tuple[str, str]:
    """The message and the hint, with the probable encoding of `data` and the conversion."""
    from gptcli.corpus.conversion import conversion_command
    from gptcli.corpus.undecodable import looks_like, public_name

    looks = looks_like(data[: 1 << 15])
    if looks is None:
        return message, "save it as UTF-8"
    name = public_name(looks)
    return f"{message}; it looks like {name}", f"convert it: {conversion_command(file, name)}"


def typed(text: str, where: str, *, escape: bool) -> str:
    """A text that the user typed for the option `where`; with `escape`, its escapes are replaced.

    Without `escape`, prints a note if the text has `\\n` or `\\t` (literal_escapes_note)."""
    if escape:
        return unescape(text, where)
    if (message := literal_escapes_note(text, where)) is not None:
        note(message)
    return text


def read_prompts(
    prompt: str | None,
    file: Path | None,
    lines: bool,
    *,
    escape: bool = False,
    encoding: Callable[[], str | None] = lambda: None,
) -> list[str]:
    """The prompts in order; one empty prompt if neither `prompt` nor `file` is given.

    With `lines`, each line of the file is a prompt. With `escape`, escapes in `prompt` and in these
    lines are replaced. A file that is not UTF-8 is read in `encoding`. Raises GptcliError if both
    `prompt` and `file` are given, if `lines` is given without a file, or if the file cannot be
    used."""
    if file is None:
        if lines:
            raise GptcliError("--prompt-lines needs a file", "add --prompt-file FILE")
        return [typed(prompt or "", "--prompt", escape=escape)]
    if prompt is not None:
        raise GptcliError("--prompt and --prompt-file cannot both be given", "leave one out")
    text = read_text(file, "--prompt-file", encoding)
    if not lines:
        return [text.removesuffix("\n").removesuffix("\r")]
    if not text:
        raise GptcliError(f"{file}: the file has no lines", "write one prompt per line")
    prompts = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    if not escape:
        return prompts
    return [unescape(line, f"{file}:{number}") for number, line in enumerate(prompts, 1)]
