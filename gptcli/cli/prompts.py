"""The prompts of `gptcli sample`: from the command line, a file, or each line of it."""

from __future__ import annotations

from pathlib import Path

from gptcli.errors import GptcliError

_MOST_BYTES = 1 << 26


def read_text(file: Path, who: str) -> str:
    """A UTF-8 file, whole; an error says that `who` takes such."""
    try:
        with file.open("rb") as opened:  # a pipe will do, one that never ends will not
            data = opened.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise GptcliError(
                f"{file}: longer than {_MOST_BYTES:,} bytes",
                f"{who} takes a text that fits a model",
            )
        return data.decode("utf-8-sig")
    except OSError as error:
        raise GptcliError(
            f"{file}: cannot be read ({error.strerror})", f"{who} takes a UTF-8 text file"
        ) from None
    except UnicodeDecodeError as error:
        raise GptcliError(
            f"{file}: not UTF-8 text (byte {error.start})", "save it as UTF-8"
        ) from None


def read_prompts(prompt: str | None, file: Path | None, lines: bool) -> list[str]:
    """The prompts in order; one that is empty where none is given."""
    if file is None:
        if lines:
            raise GptcliError("--prompt-lines needs a file", "add --prompt-file FILE")
        return [prompt or ""]
    if prompt is not None:
        raise GptcliError("--prompt and --prompt-file cannot both be given", "leave one out")
    text = read_text(file, "--prompt-file")
    if not lines:
        return [text.removesuffix("\n").removesuffix("\r")]
    if not text:
        raise GptcliError(f"{file}: no line in it", "one prompt a line")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
