"""Reads `KEY=VALUE` for keys that take text, such as `data.source`: the value as it was typed.

A file name can mean something else in YAML: `08` is a number, `x #2.txt` is a name and a comment,
and `[draft] x.txt` is a broken list. So for a key that takes text, VALUE is read by these rules:

| value | is |
|---|---|
| in single or double quotes, completely | the text inside, with its escapes replaced |
| `null`, `~` or nothing, if the key can be null | null |
| a YAML list of texts, if the key takes lists and no file has this name | that list |
| everything else | the text itself |

The types in gptcli.config decide which keys take text.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from functools import cache
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml

from gptcli.config import Config
from gptcli.errors import GptcliError

_NULLS = ("", "~", "null", "Null", "NULL")
_SINGLE = re.compile(r"'((?:[^']|'')*)'", re.DOTALL)
_DOUBLE = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
# Finds paths such as `C:\texts\new.txt` in double quotes. It does not find `C:\x0A`, because gptcli
# itself writes a control character with this escape.
_WINDOWS_PATH = re.compile(r'"[A-Za-z]:\\(?!\\|x[01][0-9A-F])')


def takes_text(key: tuple[str, ...]) -> bool:
    """Whether `key` takes text. `key` can also name an item of a list."""
    forms = _forms(key[:2])
    return "text" in forms and (len(key) == 2 or (len(key) == 3 and "list" in forms))


def text_of_override(override: str, key: tuple[str, ...], text: str) -> str | list[str] | None:
    """The value of an override `KEY=VALUE`, by the table at the top of this file. `text` is VALUE.

    Raises GptcliError if VALUE has double quotes around a Windows path or an unknown escape."""
    forms = _forms(key)
    if "null" in forms and text in _NULLS:
        return None
    if "list" in forms and text.startswith("[") and not os.path.lexists(text):
        found = _list(override, text)
        if found is not None:
            return found
    if quoted := _SINGLE.fullmatch(text):
        return quoted[1].replace("''", "'")
    if _DOUBLE.fullmatch(text):
        refuse_windows_path(override, text)
        return _unquoted(override, text)
    return text


def refuse_windows_path(where: str, quoted: str) -> None:
    """Raise GptcliError for a Windows path in double quotes, in which `\\t` would mean a tab."""
    if _WINDOWS_PATH.match(quoted):
        path = quoted.strip('"')
        raise GptcliError(
            f"{where}: in double quotes a backslash begins an escape, so {quoted[:80]} is not "
            "the path that you mean",
            f"write it in single quotes, '{path}', or with /: {path.replace(chr(92), '/')}",
        )


@cache
def _forms(key: tuple[str, ...]) -> frozenset[str]:
    """Which kinds of values a text key allows: some of "text", "list" and "null".

    Returns an empty set for all other keys, such as a key whose value can be a number."""
    section = Config.model_fields.get(key[0]) if len(key) == 2 else None
    if section is None:
        return frozenset()
    fields = getattr(section.annotation, "model_fields", {})
    for name, field in fields.items():
        if key[1] == (field.alias or name):
            forms = frozenset(_forms_of(field.annotation))
            return forms if "text" in forms and forms <= {"text", "list", "null"} else frozenset()
    return frozenset()


def _forms_of(annotation: Any) -> Iterator[str]:
    """Which kinds of values a type allows: some of "text", "list", "null" and "other"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _forms_of(arguments[0])
    elif origin in (Union, UnionType):
        for choice in arguments:
            yield from _forms_of(choice)
    else:
        yield {str: "text", list: "list", type(None): "null"}.get(origin or annotation, "other")


def _list(override: str, text: str) -> list[str] | None:
    """The texts in a YAML list such as `[a.txt, "b.txt"]`; None if `text` is not such a list."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError):
        return None
    if not isinstance(node, yaml.SequenceNode):
        return None
    for item in node.value:
        if not isinstance(item, yaml.ScalarNode):
            return None
        if item.style == '"':
            refuse_windows_path(override, text[item.start_mark.index : item.end_mark.index])
    return [str(item.value) for item in node.value]


def _unquoted(override: str, quoted: str) -> str:
    """The text that is written in double quotes, with its escapes replaced."""
    try:  # JSON keeps line breaks such as U+2028; YAML would replace them by blanks
        found = json.loads(quoted, strict=False)
    except ValueError:
        try:
            found = yaml.safe_load(quoted)
        except (yaml.YAMLError, ValueError, OverflowError):
            raise GptcliError(
                f"{override[:80]}: a backslash in double quotes begins an escape, and one of "
                "these escapes is unknown",
                "write the text in single quotes, or a path with /",
            ) from None
    assert isinstance(found, str)
    return found
