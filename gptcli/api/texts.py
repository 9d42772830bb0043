"""Makes the value of data.source, and a name for the run, from the texts that a user names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from gptcli.errors import GptcliError
from gptcli.files.names import exists, path_of, shown
from gptcli.files.remote import is_url

Target = str | list[str] | None
"""The CONFIG, the TEXT or the list of texts that a command line names; None if it names none."""

STDIN = "-"

MOST_TEXTS = 500
"""The largest number of texts in data.source."""


def texts_of(target: Target) -> list[str]:
    """The words in `target`, as a list: one CONFIG, or any number of texts."""
    return [target] if isinstance(target, str) else target or []


def source_override(target: Target) -> str:
    """The texts as an override `data.source=VALUE`, in which VALUE is YAML."""
    import yaml

    names = [shown(text) for text in texts_of(target)]
    value = names[0] if len(names) == 1 else names
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z/][\w/.-]*", value, re.ASCII):
        word = yaml.safe_load(value)
        if isinstance(word, str):
            return f"data.source={value}"
    written = yaml.safe_dump(
        value, default_style='"', default_flow_style=True, allow_unicode=True, width=10**9
    )
    return f"data.source={written.strip()}"


def with_texts(target: Target, overrides: list[str]) -> list[str]:
    """The overrides, with the texts of the command line added as data.source.

    Raises GptcliError if an override also sets data.source."""
    from gptcli.config_files import values_set

    if target is None:
        return overrides
    for override in overrides:
        if "data.source" in values_set([override]):
            raise GptcliError(
                f"`{shown(texts_of(target)[0])}` and `{shown(override)}` both name the text",
                "leave one of the two out",
            )
    return [source_override(target), *overrides]


def refuse_missing_texts(target: Target) -> None:
    """Raise GptcliError if a text of the command line does not exist, or is a run."""
    from gptcli.api import missing_text
    from gptcli.corpus.sources import no_such_text
    from gptcli.files.shipped import shipped_texts

    for text in texts_of(target):
        if text == STDIN or text in shipped_texts() or is_url(text):
            continue
        missing_text.refuse_run(text)
        if text and exists(path_of(shown(text))):
            continue
        error = missing_text.no_such_text(shown(text))
        is_setting = error.hint.startswith("write ")
        is_prose = {" ", "\n"} & set(text) or len(text) > 1000 or not text
        raise (
            no_such_text(text)
            if (isinstance(target, list) or is_prose) and not is_setting
            else error
        )


def refuse_configs_among_texts(targets: list[str]) -> None:
    """Raise GptcliError if the user names several words and one of them is a config."""
    from gptcli.files.shipped import shipped_configs

    configs = [target for target in targets if target in shipped_configs() or is_yaml(target)]
    texts = [target for target in targets if target not in configs]
    if len(configs) > 1:
        raise GptcliError(
            f"`{shown(configs[0])}` and `{shown(configs[1])}` are configs: give only one CONFIG",
            "write changes to a config as KEY=VALUE",
        )
    if configs:
        command = f"{shlex.quote(configs[0])} {shlex.quote(source_override(texts))}"
        raise GptcliError(
            f"`{shown(texts[0])}` is a text and `{shown(configs[0])}` is a config: give only one",
            f"to train a config on a text: gptcli train {shown(command)}",
        )


def is_yaml(target: str) -> bool:
    """Whether a file name has the ending of a YAML file."""
    return target.lower().endswith((".yaml", ".yml"))


def run_name(target: Target) -> str:
    """The name for a run on these texts: the real name of the first file or folder.

    Leaves out the file's ending. Removes dots, hyphens and blanks at the start of the name. A
    control character becomes `_`. The name has at most 100 characters."""
    from gptcli.files.shipped import shipped_texts

    first = texts_of(target)[0]
    if first == STDIN:
        return "stdin"
    if first in shipped_texts():
        return first
    if is_url(first):
        first = first.rstrip("/").rpartition("/")[2]
    path = path_of(shown(first)).resolve()
    name = path.name if path.is_dir() else _without_endings(path.name)
    printable = "".join(
        character if character.isprintable() else "_"
        for character in name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    )
    return re.sub(r"^[.\-\s]+", "", printable.replace("\ufffd", "_"))[:100].rstrip(". ") or "text"


def _without_endings(name: str) -> str:
    path = Path(name)
    return Path(path.stem).stem if path.suffix.lower() in (".gz", ".bz2", ".xz") else path.stem
