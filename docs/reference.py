"""Writes docs/reference: every config key, command, option and public Python name.

    python docs/reference.py [--check]

`make reference` runs this program. The texts come from the code: the docstrings of the config, the
help of the commands, and the docstrings of the library. With --check, the program writes nothing
and exits with 1 if a page is out of date.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "reference"

NOTE = "<!-- written by `make reference`; do not edit -->\n\n"


def escaped(text: str) -> str:
    """The text with escapes, so that Markdown and HTML outside of `code` appear literally."""
    special = r"[*<|\[\]]|(?<!\w)_|_(?!\w)"
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else re.sub(special, lambda found: "\\" + found[0], part)
        for part in parts
    )


def cell(text: str) -> str:
    """The text as a cell of a table: in one line, with escaped bars."""
    return " ".join(escaped(text).replace("\\|", "|").replace("|", "\\|").split())


# ---- config keys -------------------------------------------------------------------------------


def config_page() -> str:
    """The page of config keys: each key with its default, its values and its meaning."""
    from gptcli.config_schema import config_schema

    schema = config_schema()
    parts = [
        f"# Config keys\n\n{NOTE}"
        "A config is a YAML file with these sections. `gptcli train CONFIG` trains with a config, "
        "and a run\nfolder holds its config (`config.yaml`). `KEY=VALUE` on the command line "
        "changes a key:\n`gptcli train my.txt model.n_layer=6`. `gptcli configs` prints the "
        "shipped configs. `gptcli schema`\nprints this list as JSON "
        "Schema, which editors understand.\n"
    ]
    for name, entry in schema["properties"].items():
        section = _definition(schema, entry)
        parts.append(f"## {name}\n\n{section['description']}\n")
        parts += _keys(schema, name, section)
    return "\n".join(parts)


def _definition(schema: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """The definition that an entry of the JSON Schema refers to."""
    found: dict[str, Any] = schema["$defs"][entry["$ref"].rpartition("/")[2]]
    return found


def _keys(schema: dict[str, Any], section: str, definition: dict[str, Any]) -> Iterator[str]:
    """The parts of the page that describe the keys of a config section and of the sections inside
    it."""
    for name, entry in definition["properties"].items():
        key = f"{section}.{name}"
        inner = [choice for choice in entry.get("anyOf", [entry]) if "$ref" in choice]
        values = " or ".join(_values(choice) for choice in entry.get("anyOf", [entry]))
        default = json.dumps(entry.get("default"), ensure_ascii=False).strip('"')
        if inner and isinstance(entry.get("default"), dict):
            default = "its keys' defaults"
        meaning = escaped(entry.get("description", ""))
        yield f"### {key}\n\n{meaning}\n\nDefault: `{default}`. Values: {values}.\n"
        for choice in inner:
            yield from _keys(schema, key, _definition(schema, choice))


def _values(entry: dict[str, Any]) -> str:
    """The values that a key accepts, in words."""
    if "const" in entry:
        return f"`{entry['const']}`"
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry["enum"])
    if "$ref" in entry:
        return "a section with the keys below"
    kind = entry["type"]
    if kind == "array":
        many = _values(entry["items"])
        return f"a list of {many}" if "`" in many else f"a list of {many.removeprefix('a ')}s"
    words = {"integer": "a whole number", "number": "a number", "string": "text"}
    plain = {"null": "`null`", "boolean": "`true`, `false`", "object": "a section"}
    return plain[kind] if kind in plain else words[kind] + _range(entry)


def _range(entry: dict[str, Any]) -> str:
    """The bounds of a config key that is a number, in words, or "" if it has no bounds."""
    least, above = entry.get("minimum"), entry.get("exclusiveMinimum")
    most, below = entry.get("maximum"), entry.get("exclusiveMaximum")
    if least is not None and most is not None:
        return f" from {_number(least)} to {_number(most)}"
    bounds = {"at least": least, "above": above, "at most": most, "below": below}
    words = [f"{word} {_number(bound)}" for word, bound in bounds.items() if bound is not None]
    return " " + " and ".join(words) if words else ""


def _number(bound: float) -> str:
    return f"{int(bound):,}" if bound == int(bound) else f"{bound:g}"


# ---- commands ----------------------------------------------------------------------------------


def commands_page() -> str:
    """The page of commands: each command with its arguments and options, as in --help."""
    import typer
    from typer.main import get_command

    from gptcli.cli import app_of

    root: Any = get_command(app_of([]))
    context = typer.Context(root, info_name="gptcli")
    found = list(_commands(root, context))
    table = "\n".join(
        f"| [`{path}`](#{path.replace(' ', '-')}) | {cell(_first(command.help))} |"
        for path, command, _ in found
    )
    parts = [
        "# Commands\n\n"
        + NOTE
        + "With `--help`, every command prints its own section of this page. "
        "`--debug` after any command shows\nthe traceback of an error.\n\n"
        f"| command | what it does |\n|---|---|\n{table}\n"
    ]
    parts += [_command(path, command, inner) for path, command, inner in found]
    return "\n".join(parts)


def _commands(group: Any, context: Any) -> Iterator[tuple[str, Any, Any]]:
    """For each command: its path, the command itself, and its context. A group of commands, such as
    `gptcli tokenizer`, is replaced by its commands."""
    import typer

    for name, command in group.commands.items():
        inner = typer.Context(command, info_name=name, parent=context)
        if hasattr(command, "commands"):
            yield from _commands(command, inner)
        else:
            yield inner.command_path, command, inner


def _first(text: str | None) -> str:
    return (text or "").partition("\n\n")[0]


def _command(path: str, command: Any, context: Any) -> str:
    from gptcli.cli.command_line import parameter_rows

    usage = " ".join(command.collect_usage_pieces(context))
    about = escaped(inspect.cleandoc(command.help or "").replace("\b", ""))
    parts = [f"## {path}\n", f"```text\n{path} {usage}\n```\n", f"{about}\n"]
    for title, rows in parameter_rows(command, context).items():
        rows = [row for row in rows if "--help" not in row[0]]
        if rows:
            lines = "\n".join(f"| `{_code(name)}` | {cell(text)} |" for name, text in rows)
            parts.append(f"| {title[:-1].lower()} | |\n|---|---|\n{lines}\n")
    if command.epilog:
        parts.append(f"```sh\n{command.epilog.removeprefix('Example: ')}\n```\n")
    return "\n".join(parts)


def _code(text: str) -> str:
    """A piece of code as it must be written between backticks in a table of Markdown."""
    return text.replace("|", "\\|")


# ---- Python ------------------------------------------------------------------------------------


def python_page() -> str:
    """The page of the library: each public name with its signature and docstring."""
    import gptcli

    order = ["train", "Training", "load", "Model", "Score", "check", "Verdict"]
    names = order + [name for name in gptcli.__all__ if name not in order]
    table = "\n".join(
        f"| [`gptcli.{name}`](#gptcli{name.lower()}) | {cell(_summary(getattr(gptcli, name)))} |"
        for name in names
    )
    parts = [
        "# Python\n\n" + NOTE + "These are the public names of `import gptcli`. "
        "[In Python](../library.md) explains them\nwith examples.\n\n"
        f"| name | what it is |\n|---|---|\n{table}\n"
    ]
    parts += [_name(name, getattr(gptcli, name)) for name in names]
    return "\n".join(parts)


EVENT = "The union of all classes of events: RunStarted | StepDone | Evaluated and so on."


def _summary(thing: Any) -> str:
    documented = inspect.isclass(thing) or inspect.isroutine(thing)
    return _first(inspect.getdoc(thing) if documented else EVENT)


def _name(name: str, thing: Any) -> str:
    """The part of the page that describes one public name."""
    if inspect.isroutine(thing):
        return f"## gptcli.{name}\n\n{_signature(name, thing)}\n{_doc(thing)}\n"
    if not inspect.isclass(thing):
        return f"## gptcli.{name}\n\n{EVENT}\n"
    parts = [f"## gptcli.{name}\n\n{_doc(thing)}\n"]
    if dataclasses.is_dataclass(thing):
        remarks = _remarks(thing)
        rows = "\n".join(
            f"| `{field.name}` | `{_code(str(field.type))}` | {cell(remarks.get(field.name, ''))} |"
            for field in dataclasses.fields(thing)
            if not field.name.startswith("_")
        )
        parts.append(f"| field | type | |\n|---|---|---|\n{rows}\n")
    if name == "Config":
        parts.append("Sections are attributes: `config.model.n_layer`. [All keys](config.md).\n")
        return "\n".join(parts)
    if name == "CausalSelfAttention":
        return "\n".join(parts)
    for member, value in vars(thing).items():
        if member.startswith("_"):
            continue
        if isinstance(value, property) and value.fget is not None:
            kind = value.fget.__annotations__.get("return", "")
            code = f"```python\n{member}: {kind}\n```"
            parts.append(f"### {name}.{member}\n\n{code}\n\n{_doc(value)}\n")
        elif inspect.isfunction(value):
            parts.append(f"### {name}.{member}\n\n{_signature(member, value)}\n{_doc(value)}\n")
    return "\n".join(parts)


def _doc(thing: Any) -> str:
    """The docstring of a class or function as Markdown. Indented programs become code blocks."""
    text = inspect.getdoc(thing) or ""
    blocks = []
    for block in text.split("\n\n"):
        lines = block.split("\n")
        if all(line.startswith("    ") for line in lines):
            blocks.append("```python\n" + inspect.cleandoc(block) + "\n```")
        else:
            blocks.append(escaped(block))
    return "\n\n".join(blocks)


def _signature(name: str, function: Any) -> str:
    """The signature of a function as a code block. A long signature has one argument per line."""
    signature = inspect.signature(function)
    texts: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in texts:
            texts.append("*")
        text = f"{parameter.name}: {_plain(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            text += " = " + re.sub(r"^'(.*)'$", r'"\1"', repr(parameter.default))
        texts.append(text)
    back = signature.return_annotation
    end = "" if back is signature.empty else f" -> {_plain(back)}"
    line = f"def {name}({', '.join(texts)}){end}: ..."
    if len(line) > 80:
        line = f"def {name}(\n" + "".join(f"    {text},\n" for text in texts) + f"){end}: ..."
    return f"```python\n{line}\n```\n"


def _plain(annotation: Any) -> str:
    """A type annotation as people write it, without module names."""
    if isinstance(annotation, str):
        return annotation.strip("'\"")
    return getattr(annotation, "__name__", str(annotation))


def _remarks(cls: type) -> dict[str, str]:
    """The comments after the fields of a dataclass, by the names of the fields."""
    source = inspect.getsource(cls)
    lines = source.splitlines()
    found = {}
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            _, hash_, remark = lines[(node.end_lineno or 1) - 1].partition("  # ")
            if hash_:
                found[node.target.id] = remark
    return found


PAGES = {"config.md": config_page, "commands.md": commands_page, "python.md": python_page}
"""The pages of docs/reference, and the functions that write them."""


def main() -> None:
    """Write the pages, or with --check compare them with the files."""
    stale = []
    for name, page in PAGES.items():
        path, text = FOLDER / name, page().rstrip() + "\n"
        if "--check" not in sys.argv[1:]:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, "utf-8", newline="\n")
        elif not path.exists() or path.read_text("utf-8") != text:
            stale.append(name)
    sys.exit(f"out of date: {', '.join(stale)}; run: make reference" if stale else 0)


if __name__ == "__main__":
    main()
