"""Checks the documentation without running its commands: links, anchors, options, config keys,
programs, YAML."""

from __future__ import annotations

import re
import shlex
from functools import cache
from typing import Any

import pytest
import typer
from typer.main import get_command

from gptcli.cli import app_of
from gptcli.cli.debug_option import DEBUG
from gptcli.config_files import parse_config
from gptcli.config_problems import dotted_keys
from gptcli.errors import GptcliError
from tests.docs.markdown import (
    PAGES,
    ROOT,
    anchors,
    blocks,
    code_in_text,
    links,
    prose,
    text_of,
    words_of,
)

OUTSIDE = ("https://pytorch.org/", "https://semver.org", "https://github.com/openai/")
"""Links of the documentation to other websites must begin with one of these addresses."""

LANGUAGES = {"sh", "console", "python", "yaml", "text", "js", "json"}

NO_KEY = re.compile(r"\w+\.(py|js|json|h|safetensors|svg|onnx)|model\.(tokenizer|config|module)")
"""Names of files and attributes in the docs that look like config keys, but are none."""


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_and_a_heading(page: str) -> None:
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            assert link.startswith(OUTSIDE), link
            continue
        name, _, anchor = link.partition("#")
        goal = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        assert goal.exists(), f"{page}: {link}"
        assert goal.is_relative_to(ROOT), f"{page}: {link}"
        if anchor:
            there = goal.relative_to(ROOT).as_posix()
            assert anchor in anchors(there), f"{page}: {link}"


@pytest.mark.parametrize("page", PAGES)
def test_every_block_names_its_language_and_has_its_form(page: str) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block}: name the language after ```"
        if block.language == "console":
            assert block.text.startswith("$ "), block
        if block.language == "python":
            compile(block.text, str(block), "exec")
        if block.language == "yaml":
            parse_config(block.text, name=str(block))
    # Every fence must be closed. Otherwise the rest of the page would be code.
    assert len(re.findall(r"^```", text_of(page), re.MULTILINE)) == 2 * len(blocks(page))


@pytest.mark.parametrize("page", PAGES)
def test_a_bar_in_the_code_of_a_table_is_escaped(page: str) -> None:
    """At a bar without a backslash, GitHub would begin a new cell of the table, and hide the last
    cells of the row."""
    for line in prose(page).splitlines():
        if line.startswith("|"):
            for code in re.findall(r"`([^`]+)`", line):
                assert not re.search(r"(?<!\\)\|", code), f"{page}: {line}"


@cache
def command_line() -> tuple[Any, Any]:
    """The command line of gptcli as a Click command with all subcommands, and its Click context."""
    root: Any = get_command(app_of([]))
    return root, typer.Context(root, info_name="gptcli")


def problem(words: list[str]) -> str | None:
    """What is wrong with the words of a gptcli command, or None if they are correct.

    An ellipsis and words in capitals such as RUN are placeholders, and always correct."""
    command, context = command_line()
    rest = list(words)
    if rest and rest[0] == "chat":
        rest[0] = "sample"
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        if re.fullmatch(r"[A-Z]+|\.\.\.|check-\*", name):
            return None
        names = name.replace("\\|", "|").split("|")  # `a|b` means: the command a or the command b
        if unknown := set(names) - set(command.commands):
            return f"no command {unknown}"
        command = command.commands[names[0]]
        context = typer.Context(command, info_name=name, parent=context)
    known = {option: parameter for parameter in command.get_params(context)
             for option in (*parameter.opts, *parameter.secondary_opts)}  # fmt: skip
    overrides, texts = [], []
    while rest:
        word = rest.pop(0)
        option, equals, _ = word.partition("=")
        if re.match(r"-[^\d.]", word):
            if option == DEBUG:
                continue
            if option not in known:
                return f"no option {option}"
            if not known[option].is_flag and not equals and rest:
                rest.pop(0)
        elif re.fullmatch(r"[a-z]+\.[a-z_]+", option) and equals:
            overrides.append(word)
        else:
            texts.append(word)
    if command.name == "train" and len(texts) > 1:
        overrides.insert(0, f"data.source=[{', '.join(texts)}]")
    if command.name == "sweep":  # the values are lists with commas, so only the keys are checked
        keys = {word.partition("=")[0] for word in overrides}
        unknown = keys - set(dotted_keys())
        return f"no key {unknown}" if unknown else None
    if overrides and not any(re.search(r"=([A-Z]+|\.\.\.)$", word) for word in overrides):
        try:
            parse_config("{}", overrides)
        except GptcliError as error:
            return error.message
    return None


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_option_exists(page: str) -> None:
    lines = [command for block in blocks(page) for command in block.commands()]
    for line in [*lines, *code_in_text(page)]:
        if not line.startswith("gptcli ") or page == "CHANGELOG.md":
            continue
        try:
            words, _ = words_of(line)
        except ValueError:  # this is a part of a command, in which a quote is not closed
            continue
        usage = [re.sub(r"[\[\]]", "", word) for word in words[1:]]
        assert problem(usage) is None, f"{page}: {line}: {problem(usage)}"


def test_wrong_commands_are_found() -> None:
    for line in (
        "gptcli trian my.txt", "gptcli train my.txt --mintues 1", "gptcli sample --top_q 3",
        "gptcli train my.txt model.n_leyer=3", "gptcli train my.txt model.n_layer=many",
        "gptcli tokenizer shwo x", "gptcli sweep tiny train.lerning_rate=1,2",
    ):  # fmt: skip
        assert problem(shlex.split(line)[1:]) is not None, line


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_every_config_key_in_the_text_exists(page: str) -> None:
    known = set(dotted_keys())
    for code in code_in_text(page):
        for word in re.findall(r"^(?:data|tokenizer|model|train|run)\.[a-z_]+(?![\w.(/-])", code):
            assert word in known or NO_KEY.fullmatch(word), f"{page}: `{code}`"


def test_the_figures_of_the_performance_page_are_measured() -> None:
    """Every figure in the tables of docs/performance.md before "On your machine" is also in
    benchmarks/RESULTS.md, where it may have more digits. The first columns of the tables are not
    checked."""
    number = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?")
    measured = {
        float(found.replace(",", "")) for found in number.findall(text_of("benchmarks/RESULTS.md"))
    }
    figures = [
        found
        for line in prose("docs/performance.md").partition("## On your machine")[0].splitlines()
        if line.startswith("|")
        for cell in line.split("|")[2:]
        for found in number.findall(cell)
    ]
    assert len(figures) > 25
    for figure in figures:
        plain = figure.replace(",", "")
        zeros = len(plain) - len(plain.rstrip("0"))
        digits = len(plain.partition(".")[2]) if "." in plain else -zeros
        assert any(round(each, digits) == float(plain) for each in measured), (
            f"{figure}: write the measurement into benchmarks/RESULTS.md"
        )
