"""The error for a word of `gptcli train` that is no config and no text, with a hint."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from gptcli.api.named_run import is_run, run_around
from gptcli.errors import GptcliError, nearest
from gptcli.other_spellings import KEY_OF, normalised

_FLAGS = ("resume", "extend", "overwrite", "force", "dry-run", "json", "help")


def no_such_text(word: str) -> GptcliError:
    """The error for a word that names no config and no text. The hint says what to write."""
    from gptcli.config_problems import dotted_keys
    from gptcli.files.shipped import shipped_configs

    short = " ".join(word.split())
    short = short if len(short) <= 80 else short[:77] + "..."
    message = f"no config or text file named `{short}`"
    flag = normalised(word).replace("_", "-")
    if flag in _FLAGS:
        return GptcliError(message, f"write the option with two dashes: gptcli train --{flag}")
    key = next((k for k in dotted_keys() if word in (k, k.partition(".")[2])), None)
    key = key or KEY_OF.get(normalised(word.rpartition(".")[2]))
    if key is not None:
        return GptcliError(message, f"write a setting as KEY=VALUE, without blanks: {key}=...")
    if re.fullmatch(r"-?[\d.,e+-]+", word):
        return GptcliError(
            message, "write a setting as KEY=VALUE, without blanks: train.max_steps=500"
        )
    if len(word) > 255 or "\n" in word or len(word.split()) > 3:
        return GptcliError(
            message,
            "gptcli trains on files: save the text as FILE, and run: gptcli train FILE. To "
            "continue a text: gptcli sample --prompt TEXT",
        )
    shipped = list(shipped_configs())
    close = nearest(word, [*shipped, *_files_in_same_folder(word)])
    guess = f"did you mean `{close}`? " if close else ""
    return GptcliError(message, f"{guess}shipped configs: {', '.join(shipped)}")


def refuse_run(word: str) -> None:
    """Raise GptcliError if a word is a run folder, the name of a run, or a folder inside a run."""
    path = word if os.path.lexists(word) else os.path.join("runs", word)  # noqa: PTH118
    if not os.path.isdir(path):  # noqa: PTH112 (False for a name that no folder can have)
        return
    run = Path(path) if is_run(path) else run_around(path)
    if run is None:
        return
    inside = "" if run == Path(path) else "inside "
    shown = shlex.quote(str(run))
    raise GptcliError(
        f"{word} is {inside}a run, not a text",
        f"to continue it: gptcli train --resume --out {shown}; to start from its weights: "
        f"gptcli train TEXT --from {shown}",
    )


def _files_in_same_folder(name: str) -> list[str]:
    """The texts and configs beside the missing file `name`. The user may have meant one of them."""
    folder = Path(name).parent
    try:
        files = sorted(folder.iterdir())
    except OSError:
        return []
    endings = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz", ".yaml", ".yml")
    return [str(p) for p in files if p.suffix in endings]
