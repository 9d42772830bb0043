"""YAML files and `KEY=VALUE` overrides -> Config, with every problem reported at once.

A problem names its file and line (or the override), what is wrong, and the nearest valid name.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from gptcli.config import Config
from gptcli.config_problems import Key, Problem, explain, flatten
from gptcli.errors import GptcliError, nearest
from gptcli.files.bounded import read_bounded
from gptcli.files.shipped import shipped_configs

_MOST_BYTES = 1 << 17
_MOST_NODES = 1_000
_MOST_DEPTH = 20
_KINDS = ("map", "seq", "str", "int", "float", "bool", "null")


class ConfigError(GptcliError):
    """All that is wrong with a config: one (message, hint) for each problem."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        hints = (hint for _, hint in problems if hint)
        super().__init__("\n".join(message for message, _ in problems), "\n".join(hints))
        self.problems = list(problems)


class _TooMuchError(yaml.MarkedYAMLError):
    """More than a config can be."""


class _Loader(yaml.SafeLoader):
    """YAML with numbers as YAML 1.2 and Python write them: `3e-4` is a number, `on` is a word.

    What is far more than a config is refused as soon as it is seen."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._nodes += 1
        self._depth += 1
        if self._nodes > _MOST_NODES or self._depth > _MOST_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise _TooMuchError(problem="too much for a config", problem_mark=mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


# The resolvers are copied before they are changed: yaml.SafeLoader itself stays as it is.
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, regexp)
        for tag, regexp in resolvers
        if tag
        not in (
            "tag:yaml.org,2002:float",
            "tag:yaml.org,2002:int",
            "tag:yaml.org,2002:bool",
            "tag:yaml.org,2002:timestamp",
        )
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9][0-9_]*$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)


@dataclass
class _Document:
    """What was read, and where each key stands ("file:7" or "model.n_layer=6")."""

    name: str
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Key, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, key: Key) -> str:
        """Where a key stands, or the nearest thing above it that stands somewhere."""
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key, self.name)


def find_config(name: str) -> Path:
    """The YAML file that `name` means: a path, or the name of a shipped config.

    Raises GptcliError where there is neither, with the nearest name."""
    path = Path(name)
    if os.path.isfile(name):  # noqa: PTH113 (False for a name that no file can have)
        return path
    shipped = shipped_configs()
    if name in shipped:
        return shipped[name]
    if os.path.isdir(name):  # noqa: PTH112
        raise GptcliError(f"{name} is a folder, not a config", "name a .yaml file inside it")
    folder = path.parent
    there = os.path.isdir(folder)  # noqa: PTH112
    beside = [str(p) for p in sorted(folder.glob("*.y*ml"))] if there else []
    close = nearest(name, [*shipped, *beside])
    ways = "shipped configs: " + ", ".join(shipped)
    raise GptcliError(
        f"no config file or shipped config named `{name}`",
        f"did you mean `{close}`? ({ways})" if close else ways,
    )


def load_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """Read the config `name` (a path or a shipped name) and apply `KEY=VALUE` overrides.

    Raises ConfigError with all problems found."""
    path = find_config(name)
    return parse_config(read_yaml(path), overrides, name=str(path))


def read_yaml(path: Path, inside: Path | None = None) -> str:
    """The text of a config file; with `inside`, of one that must lie in that folder."""
    try:
        return read_bounded(path, _MOST_BYTES, inside).decode("utf-8-sig")
    except OSError as error:
        raise GptcliError(
            f"{path}: cannot be read ({error.strerror})",
            "is it a config, and yours to read? `gptcli configs tiny` prints one",
        ) from None
    except UnicodeDecodeError as error:
        raise GptcliError(
            f"{path}: not UTF-8 text (byte {error.start})",
            "a config is a YAML text file; `gptcli configs tiny` prints one",
        ) from None


def parse_config(text: str, overrides: Sequence[str] = (), name: str = "config") -> Config:
    """The same from a YAML text; `name` is what problems call it."""
    document = _Document(name)
    _read_yaml(document, text)
    for override in overrides:
        _apply(document, override)
    # A section with nothing in it is all defaults, wherever it was emptied.
    values = {key: {} if value is None else value for key, value in document.values.items()}
    document.values = values
    config = None
    try:
        config = Config.model_validate(document.values, strict=True)
    except ValidationError as error:
        document.problems.extend(explain(document.values, error, document.place))
    if document.problems:
        raise ConfigError(document.problems)
    assert config is not None
    return config


def is_override(argument: str) -> bool:
    """Whether a word of the command line is KEY=VALUE rather than a file's name."""
    return re.match(r"^[A-Za-z_][A-Za-z0-9_.]*=", argument) is not None


def is_known_override(argument: str) -> bool:
    """Whether it sets a key, or a section, that the schema has."""
    return argument.partition("=")[0].partition(".")[0] in Config.model_fields


def dump_config(config: Config) -> str:
    """The config as YAML, every key written out; load_config reads it back to the same."""
    text = yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)
    assert isinstance(text, str)
    return text


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (old value, new value), for every key in which two configs differ."""
    before, after = flatten(old.model_dump()), flatten(new.model_dump())
    return {".".join(key): (before[key], after[key]) for key in before if before[key] != after[key]}


def _read_yaml(document: _Document, text: str) -> None:
    root = _compose(document.name, text)
    if root is None:
        return
    if not isinstance(root, yaml.MappingNode):
        raise GptcliError(
            f"{document.name}:1: expected `section:` lines, found a single value",
            "`gptcli configs tiny` prints a config to start from",
        )
    document.values = _construct(document, root, (), [0])


def _compose(name: str, text: str) -> yaml.Node | None:
    """The nodes of a YAML text. Raises GptcliError, which names the line."""
    try:
        found: yaml.Node | None = yaml.compose(text, Loader=_Loader)
        return found
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark is not None else name
        if isinstance(error, _TooMuchError):
            raise _too_much(where) from None
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
        raise GptcliError(
            f"{where}: not valid YAML: {what}",
            "keys are indented by spaces and followed by a colon and a space",
        ) from None
    except (RecursionError, ValueError, OverflowError):  # an escape that is no character
        raise GptcliError(
            f"{name}: not valid YAML: it cannot be read", "a config has two levels of plain values"
        ) from None


def _too_much(where: str) -> GptcliError:
    return GptcliError(
        f"{where}: too much for a config", "a config has two levels: a section, and its keys"
    )


def _construct(document: _Document, node: yaml.Node, key: Key, count: list[int]) -> Any:
    """A node's plain value; notes where each key stands, and keys that stand twice."""
    count[0] += 1
    line = node.start_mark.line + 1
    if count[0] > _MOST_NODES or len(key) > _MOST_DEPTH:
        raise _too_much(f"{document.name}:{line}")
    _refuse_tag(document.name, node)
    if isinstance(node, yaml.MappingNode):
        values: dict[str, Any] = {}
        for name_node, value_node in node.value:
            where = f"{document.name}:{name_node.start_mark.line + 1}"
            if not isinstance(name_node, yaml.ScalarNode):
                raise GptcliError(f"{where}: a key must be a plain word", "write `key: value`")
            _refuse_tag(document.name, name_node, also="merge")
            name = str(name_node.value)
            below = (*key, name)
            if name in values:
                problem = f"{where}: key `{'.'.join(below)}` stands twice"
                document.problems.append((problem, "remove one"))
            document.places[below] = where
            values[name] = _construct(document, value_node, below, count)
        return values
    if isinstance(node, yaml.SequenceNode):
        return [
            _construct(document, item, (*key, str(i)), count) for i, item in enumerate(node.value)
        ]
    return _scalar(document.name, node)


def _refuse_tag(name: str, node: yaml.Node, also: str = "") -> None:
    """Only what plain values are is let through: a tag could name code."""
    prefix, _, kind = node.tag.rpartition(":")
    if prefix != "tag:yaml.org,2002" or kind not in (*_KINDS, also):
        raise GptcliError(
            f"{name}:{node.start_mark.line + 1}: YAML tag `{node.tag[:80]}` is refused",
            "write a plain value",
        )


def _scalar(name: str, node: yaml.Node) -> Any:
    kind = node.tag.rpartition(":")[2]
    text = str(node.value)
    try:
        if kind == "int":
            return int(text.replace("_", ""))
        if kind == "float":
            value = float(
                text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan")
            )
            # `1e3` is a whole number to the person who typed it.
            return int(value) if "e" in text.lower() and value.is_integer() else value
    except ValueError:  # more digits than Python turns into a number, or `!!int abc`
        raise GptcliError(
            f"{name}:{node.start_mark.line + 1}: `{text[:40]}` is not a number",
            "write a plain value",
        ) from None
    if kind == "bool":
        return text.lower() == "true"
    return None if kind == "null" else text


def _apply(document: _Document, override: str) -> None:
    """Set one dotted key from `KEY=VALUE`, the value read as YAML."""
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise GptcliError(f"`{override}` is not KEY=VALUE", "for example model.n_layer=6")
    try:
        node = _compose(override, text)
    except GptcliError:
        raise GptcliError(
            f"{override[:80]}: the value is not valid YAML",
            "quote it, for example data.source='\"a: b\"'",
        ) from None
    key = tuple(name.split("."))
    if len(key) > _MOST_DEPTH:
        raise GptcliError(f"{override[:80]}: no key has so many parts", "such as model.n_layer=6")
    value = None if node is None else _construct(_Document(override), node, (), [0])
    section = document.values
    for part in key[:-1]:
        below = section.setdefault(part, {})
        if below is None or not isinstance(below, dict):
            below = section[part] = {}
        section = below
    old = section.get(key[-1])
    merge = isinstance(old, dict) and isinstance(value, dict)
    section[key[-1]] = dict(old or {}) | dict(value or {}) if merge else value
    for i in range(len(key)):
        document.places.setdefault(key[: i + 1], override)
    document.places[key] = override


def json_schema() -> str:
    """The JSON Schema of the YAML, as text; editors complete and check from it."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Config.model_json_schema(),
    }
    return json.dumps(schema, indent=2) + "\n"
