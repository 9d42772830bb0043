"""Turns pydantic's validation errors into messages with file, line, value and the nearest key."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import ValidationError

from gptcli.config import Config
from gptcli.errors import nearest
from gptcli.other_spellings import KEY_OF, SENTENCE_OF, normalised

Key = tuple[str, ...]
Problem = tuple[str, str | None]
"""A problem of a config: a message of one line, and a hint or None."""


def dotted_keys() -> list[str]:
    """Every key as "section.key", in the order of the schema. Leaves out the keys of train.lora."""
    return [".".join(key) for key in flatten(Config().model_dump())]


def keys_and_values(values: dict[str, Any]) -> dict[Key, Any]:
    """The values by (section, key): {"a": {"b": {"c": 1}}} -> {("a", "b"): {"c": 1}}."""
    return {(name, key): value for name, keys in values.items() for key, value in keys.items()}


def flatten(values: dict[str, Any], above: Key = ()) -> dict[Key, Any]:
    """A nested mapping as a flat one: {"a": {"b": 1}} -> {("a", "b"): 1}."""
    found: dict[Key, Any] = {}
    for name, value in values.items():
        key = (*above, name)
        found.update(flatten(value, key) if isinstance(value, dict) else {key: value})
    return found


def explain(
    values: dict[str, Any], error: ValidationError, place: Callable[..., str]
) -> Iterator[Problem]:
    """The problems of a config, at most one for each key.

    `values` is the config that was validated. `place` returns where a key is set, such as
    "mine.yaml:7". If the values of several keys do not fit together, `place` gets all of these
    keys, and returns one place."""
    from gptcli.config_schema import config_schema

    schema = config_schema()
    explained: set[Key] = set()
    for detail in error.errors():
        key = tuple(str(part) for part in detail["loc"][:2])
        if len(detail["loc"]) > 2 and _subsection(schema, key) is not None:
            key = tuple(str(part) for part in detail["loc"][:3])
        context = detail.get("ctx", {})
        if detail["type"] == "extra_forbidden":
            key = tuple(str(part) for part in detail["loc"])
            yield (f"{place(key)}: unknown key `{'.'.join(key)}`", _did_you_mean(key))
            continue
        if key in explained:
            continue
        explained.add(key)
        if key == () and "keys" in context:  # from a validator of the whole config
            where = place(*(tuple(name.split(".")) for name in context["keys"]))
            yield f"{where}: {detail['msg']}", context.get("hint")
            continue
        if "keys" in context:  # from a validator in a section
            message = detail["msg"]
            for name in context["keys"]:
                if name not in (values.get(key[0]) or {}):
                    value = context.get(name)
                    message = message.replace(f"{name} {value}", f"{name} {value} (the default)")
            where = place(*((*key, name) for name in context["keys"]))
            yield f"{where}: {message}", context.get("hint")
            continue
        value = detail["input"]
        if len(key) < 2 and detail["type"] == "string_unicode":
            yield (
                f"{place(key)}: a key is not text: `{_short(value)}`",
                _did_you_mean((str(value),)),
            )
            continue
        if len(key) == 1:
            if value is None or value == {}:
                continue
            yield (
                f"{place(key)}: `{key[0]}` is a section of keys, not a value; "
                f"got `{_short(value)}`",
                f"for example\n{key[0]}:\n  {_first_key(key[0])}: ...",
            )
            continue
        value = _value_at(values, key)
        wanted = context.get("wanted") or _describe(_property(schema, key))
        choices = _property(schema, key).get("enum", [])
        close = nearest(str(value), map(str, choices)) if choices else None
        about = " ".join(_property(schema, key)["description"].split())
        if (below := _subsection(schema, key)) is not None:
            first = next(iter(below["properties"].items()))
            about = f"for example {'.'.join(key)}={{{first[0]}: {first[1]['default']}}}"
            yield f"{place(key)}: `{'.'.join(key)}` must be {wanted}; got `{_short(value)}`", about
            continue
        yield (
            f"{place(key)}: `{'.'.join(key)}` must be {wanted}; got `{_short(value)}`",
            f"did you mean `{close}`?" if close else f"{'.'.join(key)}: {about}",
        )


def _did_you_mean(key: Key) -> str | None:
    """A hint for an unknown key: a similar valid key of any section, or all keys of its section.

    If the key is a name that another program uses, the hint can be a sentence from
    gptcli.other_spellings."""
    from gptcli.config_schema import config_schema

    known = dotted_keys()
    below = _subsection(config_schema(), key[:2]) if len(key) > 2 else None
    if below is not None:
        meant = KEY_OF.get(normalised(key[2]), "").rpartition(".")[2]
        close = meant if meant in below["properties"] else nearest(key[2], below["properties"])
        if close:
            return f"did you mean `{'.'.join((*key[:2], close))}`?"
        return f"keys of `{'.'.join(key[:2])}`: {', '.join(below['properties'])}"
    if len(key) > 2 and ".".join(key[:2]) in known:
        return f"`{'.'.join(key[:2])}` takes a plain value"
    name = normalised(key[-1])
    if name in SENTENCE_OF:
        return SENTENCE_OF[name]
    if name in KEY_OF and ".".join(key) not in known:
        return f"did you mean `{KEY_OF[name]}`?"
    inside = nearest(".".join(key), [k for k in known if k.split(".")[0] == key[0]])
    if inside:
        return f"did you mean `{inside}`?"
    exact = [k for k in known if k.split(".")[1] == key[-1]]
    if exact:
        return f"did you mean `{exact[0]}`?"
    if len(key) == 1:
        section = nearest(key[0], sorted({k.split(".")[0] for k in known}))
        if section:
            return f"did you mean the section `{section}`?"
    by_name = {k.split(".")[1]: k for k in known}
    close = nearest(key[-1], by_name)
    if close:
        return f"did you mean `{by_name[close]}`?"
    siblings = [k.split(".")[1] for k in known if k.split(".")[0] == key[0]]
    return (
        f"keys of `{key[0]}`: {', '.join(siblings)}"
        if siblings
        else ("sections: " + ", ".join(dict.fromkeys(k.split(".")[0] for k in known)))
    )


def _property(schema: dict[str, Any], key: Key) -> dict[str, Any]:
    section = schema["properties"][key[0]]
    reference = section.get("$ref") or section["allOf"][0]["$ref"]
    found = schema["$defs"][reference.rpartition("/")[2]]["properties"][key[1]]
    if len(key) == 3:
        below = _subsection(schema, key[:2])
        assert below is not None
        found = below["properties"][key[2]]
    assert isinstance(found, dict)
    return found


def _subsection(schema: dict[str, Any], key: Key) -> dict[str, Any] | None:
    """The schema of a key that is itself a section, such as `train.lora`; None for other keys."""
    if ".".join(key) not in dotted_keys():
        return None
    for part in _property(schema, key).get("anyOf", ()):
        if "$ref" in part:
            found: dict[str, Any] = schema["$defs"][part["$ref"].rpartition("/")[2]]
            return found
    return None


def _describe(schema: dict[str, Any]) -> str:
    """What values a JSON Schema allows, in words: "a whole number of at least 1, or `auto`"."""
    if "anyOf" in schema:
        return ", or ".join(_describe(part) for part in schema["anyOf"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "$ref" in schema:
        return "a section of keys"
    if schema.get("type") == "array":
        return "a list of such values"
    if "enum" in schema:
        return "one of " + ", ".join(f"`{choice}`" for choice in schema["enum"])
    bounds = [
        words.format(_plain(schema[name]))
        for name, words in (
            ("minimum", "at least {}"),
            ("exclusiveMinimum", "above {}"),
            ("maximum", "at most {}"),
            ("exclusiveMaximum", "below {}"),
        )
        if name in schema
    ]
    kind = {
        "integer": "a whole number",
        "number": "a number",
        "boolean": "true or false",
        "null": "null",
        "string": "a name or path",
    }[schema["type"]]
    return kind + (" of " + " and ".join(bounds) if bounds else "")


def _plain(bound: float) -> str:
    return f"{int(bound):,}" if bound == int(bound) and bound < 10**12 else f"{bound:g}"


def _value_at(values: Any, key: Key) -> Any:
    for part in key:
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _short(value: Any) -> str:
    if isinstance(value, str) and re.match(r"^[-+.]?[0-9]", value):
        value = f'"{value}"'  # a number in quotes is text in YAML
    text = (
        "null"
        if value is None
        else str(value).lower()
        if value is True or value is False
        else str(value)
    )
    text = " ".join(text.split())
    return text if len(text) <= 40 else text[:37] + "..."


def _first_key(section: str) -> str:
    return next((k.split(".")[1] for k in dotted_keys() if k.split(".")[0] == section), "key")
