"""Reads the prompts of `gptcli sample`: from the command line, a file, or each line of a file."""

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
    """The value of data.encoding in the config of a run. Error messages name `command`."""
    from gptcli.training.run_folder import read_config

    return read_config(named_run(run, command)).data.encoding


def read_text(file: Path, command: str, encoding: Callable[[], str | None]) -> str:
    """The text of a file in UTF-8 or in the run's encoding, without its byte-order mark.

    `encoding` returns the run's encoding, or None. `command` is the command or option that reads
    the file; hints name it. Raises GptcliError if the file cannot be read, is too long, or is in
    another encoding."""
    file = expanded(file)
    try:
        with file.open("rb") as opened:  # a pipe can be endless, so the size is limited
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
    """`message` with the likely encoding of `data`, and a hint that says how to convert `file`.

    If the encoding is unknown, returns `message` as it is."""
    from gptcli.corpus.conversion import conversion_command
    from gptcli.corpus.undecodable import looks_like, public_name

    looks = looks_like(data[: 1 << 15])
    if looks is None:
        return message, "save it as UTF-8"
    name = public_name(looks)
    return f"{message}; it looks like {name}", f"convert it: {conversion_command(file, name)}"


def typed(text: str, where: str, *, escape: bool) -> str:
    """`text`, which the user typed for the option or argument `where`.

    If `escape` is true, the escapes in the text are replaced. Otherwise, a text with `\\n` or `\\t`
    gets a note (literal_escapes_note)."""
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

    If `lines` is true, each line of the file is a prompt. Otherwise, the whole file is one prompt,
    without the newline at its end. If `escape` is true, escapes in `prompt` and in the lines are
    replaced. If the file is not UTF-8, it is read in the encoding that `encoding` returns. Raises
    GptcliError if both `prompt` and `file` are given, if `lines` is given without a file, or if the
    file cannot be used."""
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
