"""Reads YAML files and `KEY=VALUE` overrides into a Config; reports all problems at once.

The message about a problem names the file and line (or the override), and says what is wrong. For
an unknown name, it also proposes the nearest valid name.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from gptcli.config import Config
from gptcli.config_problems import Key, Problem, explain, flatten, keys_and_values
from gptcli.errors import GptcliError, nearest
from gptcli.files.bounded import LinkOutError, read_bounded
from gptcli.files.paths import expanded
from gptcli.files.shipped import shipped_configs
from gptcli.text_values import refuse_windows_path, takes_text, text_of_override

_MAX_BYTES = 1 << 20
_MAX_NODES = 1_000
_MAX_DEPTH = 20
_TOO_MUCH = "more values or deeper nesting than a config can have"
_KINDS = ("map", "seq", "str", "int", "float", "bool", "null")


class ConfigError(GptcliError):
    """The error for a config, with all its problems: `problems` is a list of (message, hint)."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        hints = (hint for _, hint in problems if hint)
        super().__init__("\n".join(message for message, _ in problems), "\n".join(hints))
        self.problems = list(problems)


class _TooMuchError(yaml.MarkedYAMLError):
    """A YAML text with more nodes or levels than any config has."""


class _Loader(yaml.SafeLoader):
    """Reads YAML in which `3e-4` is a number, and `on` and `yes` are text, as in YAML 1.2.

    Raises _TooMuchError as soon as a text has more nodes or levels than any config."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._nodes += 1
        self._depth += 1
        if self._nodes > _MAX_NODES or self._depth > _MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise _TooMuchError(problem=_TOO_MUCH, problem_mark=mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


# _Loader gets its own dict of rules, because the rules of yaml.SafeLoader must not change.
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
            "tag:yaml.org,2002:value",
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


class _Dumper(yaml.SafeDumper):
    """Writes YAML from which _Loader reads exactly the same values.

    A text that _Loader would take for a number, a bool or null is written in quotes. Special
    characters are written as escapes, because a line break such as U+0085 would otherwise become a
    newline or a blank."""

    def represent_str(self, text: str) -> yaml.ScalarNode:
        style = None if text.isprintable() and "\ufeff" not in text else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers
# A newline is written as `\x0A`, never as `\n`: see refuse_windows_path.
_Dumper.ESCAPE_REPLACEMENTS = {'"': '"', "\\": "\\"}  # type: ignore[misc]
_Dumper.add_representer(str, _Dumper.represent_str)


@dataclass
class _Document:
    """The values of a YAML text, and the place of each key: "file:7" (line 7) or an override."""

    name: str
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Key, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)  # KEY=VALUE, in the given order

    def place(self, *keys: Key) -> str:
        """Where one of `keys` was set, for a message about these keys: "file:7" or an override.

        If overrides set some of `keys`, returns the last such override. Otherwise returns the place
        of the first key that is in the YAML text. If the text has none of `keys`, returns the place
        of the section that would hold the first key, or `name`."""
        written = [key for key in keys if key in self.places]
        typed = [self.places[key] for key in written if self.places[key] in self.overrides]
        if typed:
            return max(typed, key=self.overrides.index)
        key = (*written, *keys)[0]
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key, self.name)


def find_config(name: str) -> Path:
    """The path of the YAML file that `name` means: a shipped config, or a path.

    Raises GptcliError, with the nearest name, if there is no such file or shipped config."""
    path = expanded(name)
    shipped = shipped_configs()
    if name in shipped:  # `course` is the shipped config, and `./course` is a file
        return shipped[name]
    if os.path.isfile(path):  # noqa: PTH113 (False, and no OSError, if no file can have the name)
        return path
    if os.path.isdir(path):  # noqa: PTH112
        raise GptcliError(f"{name} is a folder, not a config", "name a .yaml file inside it")
    folder = path.parent
    folder_exists = os.path.isdir(folder)  # noqa: PTH112
    neighbours = [str(p) for p in sorted(folder.glob("*.y*ml"))] if folder_exists else []
    close = nearest(name, [*shipped, *neighbours])
    choices = "shipped configs: " + ", ".join(shipped)
    raise GptcliError(
        f"no config file or shipped config named `{name}`",
        f"did you mean `{close}`? ({choices})" if close else choices,
    )


def load_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """The config `name` (a path or a shipped config) after `KEY=VALUE` overrides are applied.

    Raises ConfigError with all problems. Raises GptcliError if there is no such config, or if it
    cannot be read as YAML."""
    path = find_config(name)
    return parse_config(read_yaml(path), overrides, name=str(path))


def sections_of(name: str) -> set[str]:
    """The names of the sections in a config file. `name` is a path, or names a shipped config.

    Raises GptcliError if there is no such config, or if the file is not YAML."""
    path = find_config(name)
    document = _Document(str(path))
    _read_yaml(document, read_yaml(path))
    return set(document.values)


def read_yaml(path: Path, inside: Path | None = None) -> str:
    """The text of a config file. If the folder `inside` is given, the file must lie in it.

    Raises GptcliError if the file cannot be read, is too large, or is not UTF-8."""
    try:
        return read_bounded(path, _MAX_BYTES, inside).decode("utf-8-sig")
    except OSError as error:
        raise GptcliError(
            f"{path}: cannot be read ({error.strerror})",
            error.HINT
            if isinstance(error, LinkOutError)
            else "is it a config that you are allowed to read? `gptcli configs tiny` prints one",
        ) from None
    except UnicodeDecodeError as error:
        raise GptcliError(
            f"{path}: not UTF-8 text (byte {error.start})",
            "a config is a YAML text file; `gptcli configs tiny` prints one",
        ) from None


def parse_config(text: str, overrides: Sequence[str] = (), name: str = "config") -> Config:
    """The config in a YAML text after overrides are applied. Error messages call the text `name`.

    Raises ConfigError with all problems, or GptcliError if the text or an override is not YAML."""
    document = _Document(name)
    _read_yaml(document, text)
    return _checked(document, overrides)


def config_of_values(
    values: Mapping[str, Any], overrides: Sequence[str] = (), name: str = "config"
) -> Config:
    """The config with `values` (section -> key -> value) after overrides are applied.

    Error messages call the config `name`. Raises ConfigError with all problems, or GptcliError if
    an override is not YAML."""
    return _checked(_Document(name, {**values}), overrides)


def _checked(document: _Document, overrides: Sequence[str]) -> Config:
    """The config of a document's values after overrides are applied. Raises ConfigError."""
    for override in overrides:
        _apply(document, override)
    # In an empty section (`model:`, or `model=` on the command line), all keys have their defaults.
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
    """Whether a word of the command line has the form KEY=VALUE. Other words can be file names."""
    return re.match(r"^[A-Za-z_][A-Za-z0-9_.]*=", argument) is not None


def is_known_override(argument: str) -> bool:
    """Whether a word such as `SECTION.KEY=VALUE` names a section that a config has."""
    return argument.partition("=")[0].partition(".")[0] in Config.model_fields


def values_set(overrides: Sequence[str]) -> dict[str, Any]:
    """The keys that `KEY=VALUE` overrides set, and their values: dotted key -> value.

    An override can set several keys of a section (`train={learning_rate: 0.01}`). An empty section
    (`train=`) sets all its keys to their defaults. Raises GptcliError if an override is not valid
    YAML."""
    found: dict[str, Any] = {}
    for override in overrides:
        alone = _Document(override)
        _apply(alone, override)
        for key, value in flatten(alone.values).items():
            if len(key) == 1 and value is None:
                section = f"{key[0]}."
                found |= {k: v for k, v in _defaults().items() if k.startswith(section)}
            else:
                found[".".join(key)] = value
        for name, keys in alone.values.items():  # `flatten` leaves out `train.lora={}`
            for key, value in keys.items() if isinstance(keys, dict) else ():
                if value == {}:
                    found[f"{name}.{key}"] = value
    return found


def _defaults() -> dict[str, Any]:
    return {".".join(key): value for key, value in flatten(Config().model_dump()).items()}


def dump_config(config: Config) -> str:
    """The config as YAML with every key. parse_config reads the same config from this text."""
    text = yaml.dump(
        config.model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**9
    )
    assert isinstance(text, str)
    return text


def as_yaml(value: object) -> str:
    """A value as YAML on one line, for use in KEY=VALUE: "null", "{rank: 8, dropout: 0.0}"."""
    text = yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=10**9,
        default_flow_style=True,
    )
    assert isinstance(text, str)
    return text.removesuffix("\n").removesuffix("\n...")  # yaml writes "..." after a plain value


def in_words(value: object) -> str:
    """A value as it is written in a sentence: a list without brackets, any other value as YAML."""
    if isinstance(value, list):
        return ", ".join(map(as_yaml, value)) or "none"
    return as_yaml(value)


def changed_values(key: str, old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """The change of a key: {dotted key: (old value, new value)}.

    If both values are subsections, such as `train.lora`, returns only their keys that differ."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return {key: (old, new)}
    names = {**old, **new}
    return {
        f"{key}.{name}": (old.get(name), new.get(name))
        for name in names
        if old.get(name) != new.get(name)
    }


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """The keys in which two configs differ: "section.key" -> (old value, new value)."""
    before, after = keys_and_values(old.model_dump()), keys_and_values(new.model_dump())
    return {".".join(key): (before[key], after[key]) for key in before if before[key] != after[key]}


def _read_yaml(document: _Document, text: str) -> None:
    root = _compose(document.name, text)
    if root is None:
        return
    if not isinstance(root, yaml.MappingNode):
        raise GptcliError(
            f"{document.name}:1: expected `section:` lines, found a value or a list",
            "`gptcli configs tiny` prints a config to start from",
        )
    document.values = _construct(document, root, (), [0])


def _compose(name: str, text: str) -> yaml.Node | None:
    """The root node of a YAML text; None if the text is empty.

    Raises GptcliError if it is not YAML."""
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
            "in double quotes, a backslash begins an escape: write paths in single quotes, or "
            "with /"
            if "escape" in what
            else "indent keys with spaces, and write a colon and a space after them",
        ) from None
    except (RecursionError, ValueError, OverflowError):  # for example for "\UFFFFFFFF"
        raise GptcliError(
            f"{name}: not valid YAML: it cannot be read",
            "a config has only sections, and keys with plain values or lists",
        ) from None


def _too_much(where: str) -> GptcliError:
    return GptcliError(f"{where}: {_TOO_MUCH}", "a config has only sections and their keys")


def _construct(document: _Document, node: yaml.Node, key: Key, count: list[int]) -> Any:
    """The Python value of a YAML node.

    Records the place of each key, and the problem of each repeated key, in `document`."""
    count[0] += 1
    line = node.start_mark.line + 1
    if count[0] > _MAX_NODES or len(key) > _MAX_DEPTH:
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
                problem = f"{where}: key `{'.'.join(below)}` is written twice"
                document.problems.append((problem, "remove one"))
            document.places[below] = where
            values[name] = _construct(document, value_node, below, count)
        return values
    if isinstance(node, yaml.SequenceNode):
        return [
            _construct(document, item, (*key, str(i)), count) for i, item in enumerate(node.value)
        ]
    if takes_text(key) and isinstance(node, yaml.ScalarNode):
        return _text(document.name, node)
    return _scalar(document.name, node)


def _refuse_tag(name: str, node: yaml.Node, also: str = "") -> None:
    """Raise GptcliError if the tag of a node is not the tag of a plain value.

    Any other tag can name code to run."""
    prefix, _, kind = node.tag.rpartition(":")
    if prefix != "tag:yaml.org,2002" or kind not in (*_KINDS, also):
        raise GptcliError(
            f"{name}:{node.start_mark.line + 1}: YAML tag `{node.tag[:80]}` is refused",
            "write a plain value",
        )


def _text(name: str, node: yaml.ScalarNode) -> str | None:
    """The text of a node, unchanged even if it is `08` or `true`; None for null."""
    if node.style == '"':
        start, end = node.start_mark, node.end_mark
        written = (start.buffer or "")[start.pointer : end.pointer]
        refuse_windows_path(f"{name}:{start.line + 1}", written)
    return None if node.tag.endswith(":null") else str(node.value)


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
            # Users type `1e3` for a whole number, such as 1000 steps.
            return int(value) if "e" in text.lower() and value.is_integer() else value
    except ValueError:  # too many digits for Python, or `!!int abc`
        raise GptcliError(
            f"{name}:{node.start_mark.line + 1}: `{text[:40]}` is not a number",
            "write a plain value",
        ) from None
    if kind == "bool":
        return text.lower() == "true"
    return None if kind == "null" else text


def _apply(document: _Document, override: str) -> None:
    """Set the key of the override KEY=VALUE in the document.

    VALUE is YAML. If the key takes text, gptcli.text_values reads VALUE instead."""
    # YAML cannot hold a file name that is not UTF-8. Such a name is written with escapes, and
    # gptcli.files.names finds the file again.
    override = override.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise GptcliError(f"`{override}` is not KEY=VALUE", "for example model.n_layer=6")
    key = tuple(name.split("."))
    if len(key) > _MAX_DEPTH:
        raise GptcliError(
            f"{override[:80]}: the key has too many parts", "for example model.n_layer=6"
        )
    value: Any = (
        text_of_override(override, key, text)
        if takes_text(key)
        else _yaml_of_override(override, key, text)
    )
    document.overrides.append(override)
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
    if isinstance(value, dict):
        document.places.update(
            dict.fromkeys(((*key, *below) for below in flatten(value)), override)
        )


def _yaml_of_override(override: str, key: Key, text: str) -> Any:
    try:
        node = _compose(override, text)
    except GptcliError:
        raise GptcliError(
            f"{override[:80]}: the value is not valid YAML",
            "for example model.n_layer=6, or a section: 'model={n_layer: 6, n_embd: 96}'",
        ) from None
    return None if node is None else _construct(_Document(override), node, key, [0])


def json_schema() -> str:
    """The JSON Schema of a config, as text. Editors use it to complete and check keys."""
    from gptcli.config_schema import config_schema

    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **config_schema(),
    }
    return json.dumps(schema, indent=2) + "\n"
