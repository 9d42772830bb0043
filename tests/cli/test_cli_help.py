"""--help and --version: what they print, and that they import no heavy library."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from gptcli import __version__

COMMANDS = (
    "train",
    "sample",
    "eval",
    "score",
    "serve",
    "export",
    "page",
    "import",
    "check-attention",
    "check-layernorm",
    "check-mlp",
    "check-block",
    "check-tokenizer",
    "check-training",
    "check-sampling",
    "check-cache",
    "check-modern",
    "learn",
    "exercise",
    "grade",
    "bench",
    "plan",
    "runs",
    "look",
    "report",
    "compare",
    "sweep",
    "scaling",
    "show",
    "log",
    "inspect-batch",
    "configs",
    "schema",
    "tokenizer",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, cli) -> None:  # type: ignore[no-untyped-def]
    words = [command] if command != "tokenizer" else ["tokenizer", "encode"]
    outcome = cli(*words, "--help")
    assert outcome.code == 0
    assert f"Example: gptcli {command}" in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 80
    # The help must give each option's value a name instead of a type, and describe ranges in words.
    assert not re.search(r"<\w|x[<>]=|range|\blist\b\[", outcome.out), outcome.out


def test_help_lists_the_commands_and_no_others(cli) -> None:  # type: ignore[no-untyped-def]
    outcome = cli("--help")
    listed = [
        line.split()[0]
        for line in outcome.out.partition("Commands:")[2].splitlines()
        if line.startswith("  ") and not line.startswith("   ") and line.strip()
    ]
    assert [name for name in listed if name != "Start"] == list(COMMANDS)


def test_version(cli) -> None:  # type: ignore[no-untyped-def]
    outcome = cli("--version")
    assert (outcome.code, outcome.out) == (0, f"gptcli {__version__}\n")


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["train", "--help"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['gptcli', *{words!r}]\n"
        "from gptcli.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'yaml', 'tokenizers', 'tiktoken', 'rich'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "no such command 'trian'"),
        (["train", "--ouut", "x"], "no such option: --ouut"),
        (["sample", "--top-k", "x"],
         "invalid value for '--top-k': `x` is not a whole number of at least 1"),
        (["sample", "--top-k=1.5"],
         "invalid value for '--top-k': `1.5` is not a whole number of at least 1"),
        (["sample", "-n-5"],
         "invalid value for '--max-new-tokens': `-5` is not a whole number of at least 0"),
        (["sample", "--temperature", "-1"],
         "invalid value for '--temperature': `-1` is not a number of at least 0"),
        (["train", "--minutes", "0"],
         "invalid value for '--minutes': `0` is not a number from 0.1 to 100,000"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_has_the_error_form(words: list[str], message: str, cli) -> None:  # type: ignore[no-untyped-def]
    outcome = cli(*words)
    assert outcome.code == 2
    assert outcome.out == ""
    first, blank, hint, *rest = outcome.err.split("\n")
    assert first.startswith(f"error: {message}")
    assert (blank, rest) == ("", [""])
    assert hint.startswith(("hint: see gptcli", "hint: did you mean"))


def test_the_configs_are_a_table_of_80_columns(cli) -> None:  # type: ignore[no-untyped-def]
    from gptcli.files.shipped import shipped_configs

    outcome = cli("configs")
    heading, *rows = outcome.out.splitlines()
    assert heading.split() == ["config", "what", "it", "is", "for"]
    start = heading.index("what")
    assert [row[:start].strip() for row in rows if row[0] != " "] == list(shipped_configs())
    assert all(len(row) <= 80 and row[start - 1] == " " and row[start] != " " for row in rows)
