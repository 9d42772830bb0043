"""Parses the command line, gives hints for misspelt options and commands, and writes --help."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from typer import Context
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from gptcli.api.named_run import is_run, prompt_word
from gptcli.errors import GptcliError, cropped
from gptcli.other_spellings import (
    COMMAND_OF,
    FIXED,
    FORM_OF,
    KEY_OF,
    SENTENCE_OF,
    VALUES,
    normalised,
)

Problem = tuple[str, str]
"""An error message and its hint."""

_WITH_KEYS = ("train", "bench", "plan")
"""The commands for which the hint about an unknown option can be to write KEY=VALUE."""


class CommandLineError(GptcliError):
    """The error for wrong options, or for more words than the command takes.

    `problems` is a list of (message, hint)."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(*problems[0])
        self.problems = problems


def same_option(name: str) -> str:
    """The name of an option or command as Typer knows it: with dashes instead of underscores."""
    return name.replace("_", "-")


class Command(TyperCommand):
    """A command whose errors propose the correct option, and whose --help has no Python types."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments.

        Raises CommandLineError with all problems that `_problems` finds, and GptcliError for a
        value that is not a number or is out of range."""
        if not ctx.resilient_parsing:
            problems = list(_problems(ctx, args))
            if len(problems) > 1:  # if there is only one hint, it need not name the option
                problems = [(message, _option(message) + hint) for message, hint in problems]
            if problems:
                raise CommandLineError(problems)
        typed = list(args)  # a copy, because Typer empties the list
        try:
            return super().parse_args(ctx, args)
        except TyperException as error:
            raise _bad_value(ctx, typed, error) or error from None

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The words of the line "Usage" in the help: [OPTIONS], then the names of the arguments."""
        return ["[OPTIONS]", *(metavar(p) for p in self.params if _is_argument(p))]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and options into the help, with their bounds in words."""
        _write_parameters(self, ctx, formatter)


class Group(TyperGroup):
    """A group of commands. The error about an unknown command has a hint."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options that come before the command.

        Raises CommandLineError for a wrong option."""
        begin = []
        for word in args:
            if not word.startswith("-"):
                break
            begin.append(word)
        problems = list(_problems(ctx, begin))
        if problems and not ctx.resilient_parsing:
            raise CommandLineError(problems[:1])
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that the user named, and its arguments.

        `chat` means `sample --interactive`, and `help COMMAND` means `COMMAND --help`. Raises
        GptcliError if there is no such command."""
        word, rest = args[0], args[1:]
        if self.get_command(ctx, same_option(word)) is None:
            if word == "chat" and "sample" in self.commands:
                return super().resolve_command(ctx, ["sample", "--interactive", *rest])
            if word == "help":
                if not rest:
                    print_help(ctx)
                return self.resolve_command(ctx, [*rest, "--help"])
            raise GptcliError(f"no such command '{word}'", self._other_command(ctx, word, rest))
        return super().resolve_command(ctx, args)

    def _other_command(self, ctx: Context, word: str, rest: list[str]) -> str:
        """The hint of the error about an unknown command."""
        above, path = ctx.parent is not None, ctx.command_path
        inside = COMMAND_OF.get(f"{ctx.info_name} {word.lower()}")
        other = inside or COMMAND_OF.get(word.lower())
        if other is not None and other.split()[0] in (*self.commands, "--version") and not above:
            return f"write `gptcli {other}`"
        close = get_close_matches(same_option(word).lower(), self.commands, n=1)
        if close:
            return f"did you mean `{path} {close[0]}`?"
        if not above and is_text_or_config(word):
            return f"to train on it: gptcli train {shlex.quote(word)}"
        return f"the commands are: {', '.join(self.commands)}"

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options and the commands into the help."""
        _write_parameters(self, ctx, formatter)
        self.format_commands(ctx, formatter)


def print_help(ctx: Context) -> None:
    """Print the help of a group, and end the command."""
    import typer

    typer.echo(ctx.get_help())
    ctx.exit()


def is_text_or_config(word: str) -> bool:
    """Whether a word is the path of a file or folder, or the name of a shipped config or text."""
    from gptcli.files.shipped import shipped_configs, shipped_texts

    try:
        there = bool(word) and Path(word).exists()
    except (OSError, ValueError):  # a name that no file can have
        there = False
    return there or word in shipped_configs() or word in shipped_texts()


# ---- misspelt options --------------------------------------------------------------------------


def _problems(ctx: Context, args: list[str]) -> Iterator[Problem]:
    """(message, hint) for each problem in the words of a command line.

    A problem is an unknown option, an option without the value that it needs, or an option with a
    value that it does not take. If there are more words than the command has arguments, the first
    extra word is a problem, too."""
    known: dict[str, Any] = {same_option(name): p for p in ctx.command.params for name in _names(p)}
    known |= dict.fromkeys(ctx.help_option_names)
    path = ctx.command_path
    command = path.partition(" ")[2]
    words: list[str] = []
    at = 0
    while at < len(args):
        word = args[at]
        at += 1
        if word == "--":
            words += args[at:]
            break
        if not re.match(r"-[^\d.]|-\.?$", word) or word == "-":
            words.append(word)
            continue
        name, equals, value = word.partition("=")
        long = same_option(name)
        if long not in known and not word.startswith("--") and not _is_long(command, name, known):
            first = known.get(word[:2])
            if word[:2] in known:
                if first is not None and not first.is_flag and len(word) == 2:
                    at += 1
                    if at > len(args):
                        yield _needs_value(path, first, word)
                continue
        parameter = known.get(long)
        if long in known:
            takes_value = parameter is not None and not parameter.is_flag
            if takes_value and not equals:
                following = args[at] if at < len(args) else None
                if following is None or (len(following) > 2 and same_option(following) in known):
                    yield _needs_value(path, parameter, name, following)
                at += 1
            elif equals and not takes_value:
                yield (
                    f"{name} takes no value; got `{value}`",
                    f"write {name} alone, or leave it out",
                )
            continue
        if not equals:
            following = args[at] if at < len(args) else ""
            value = following if _can_be_value(following) else ""
        hint, used = _instead(ctx, command, name, value, known)
        at += bool(used and not equals and value)
        yield f"no such option: {name}", hint
    arguments = [p for p in ctx.command.params if _is_argument(p)]
    if all(p.nargs == 1 for p in arguments) and len(words) > len(arguments):
        yield _too_many(ctx, words[len(arguments)], words, known)


def _option(message: str) -> str:
    """The option that an error message names, with a colon; "" if the message names none."""
    return next((f"{word}: " for word in message.split() if word.startswith("-")), "")


def _bad_value(ctx: Context, args: list[str], error: TyperException) -> GptcliError | None:
    """The error for a value that is not a number or is out of range; None for other errors.

    Unlike Typer's error, its message quotes the value."""
    parameter = getattr(error, "param", None)
    if parameter is None or not str(error.format_message()).startswith("Invalid value"):
        return None
    options = _names(parameter)
    given = None
    for word, following in zip(args, [*args[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if same_option(name) in options:
            given = value if equals else following
        elif word[:2] in options and not word.startswith("--"):
            given = word[2:]
    if given is None:
        return None
    least, most = getattr(parameter, "min", None), getattr(parameter, "max", None)
    whole = "integer" in error.format_message() or isinstance(least, int)
    kind = "a whole number" if whole else "a number"
    if least is not None or most is not None:
        kind += (" from " if None not in (least, most) else " of ") + _bounds(least, most)
    return GptcliError(
        f"invalid value for '{options[0]}': `{given}` is not {kind}",
        f"see {ctx.command_path} --help",
    )


def _too_many(ctx: Context, word: str, words: list[str], known: dict[str, Any]) -> Problem:
    """(message, hint) for `word`, the first word for which the command has no argument."""
    path = ctx.command_path
    command = path.partition(" ")[2]
    name, equals, value = word.partition("=")
    hint = f"see {path} --help"
    if len(words) > 1:
        hint = f"put a name with blanks into quotes; {hint}"
    if equals and name.isidentifier():
        hint = _instead(ctx, command, f"--{name}", value, known)[0]
        option = f"--{same_option(name).lower()}"
        if option in known:
            hint = f"write {option} {shlex.quote(value)}"
    elif command == "sample":
        run = [words[0]] if _names_run(words[0]) else []
        text = prompt_word(" ".join(words[len(run) :]))
        hint = f"to continue a text: {' '.join([path, *map(shlex.quote, run)])} --prompt {text}"
    return f"`{cropped(word)}` is one word too many", hint


def _names_run(word: str) -> bool:
    """Whether a word names a run: by its folder, or by its name under runs/."""
    return is_run(word) or is_run(os.path.join("runs", word))  # noqa: PTH118


def _names(parameter: Any) -> list[str]:
    """The options of a parameter; [] for an argument."""
    return [] if _is_argument(parameter) else [*parameter.opts, *parameter.secondary_opts]


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _is_long(command: str, name: str, known: dict[str, Any]) -> bool:
    """Whether a word such as `-prompt` is a long option that was typed with only one dash."""
    word = normalised(name)
    names = {normalised(option) for option in known} | FORM_OF.get(command, {}).keys()
    return len(word) > 1 and (word in names or word in KEY_OF or word in SENTENCE_OF)


def _can_be_value(word: str) -> bool:
    """Whether `word`, which comes after an unknown option, can be the value of this option."""
    return bool(word) and (re.match(r"-\.?\d", word) is not None or word[0] != "-")


def _needs_value(path: str, parameter: Any, name: str, following: str | None = None) -> Problem:
    example = f"write {name} {metavar(parameter)}"
    if following is not None:
        example += f"; if `{following}` is its value, write {name}={shlex.quote(following)}"
    return f"{name} needs a value", f"{example}; see {path} --help"


def _instead(
    ctx: Context, command: str, name: str, value: str, known: dict[str, Any]
) -> tuple[str, bool]:
    """A hint for the unknown option `name`, and whether the next word, `value`, belongs to it."""
    word = normalised(name)
    own = next((option for option in known if normalised(option) == word), None)
    if own is not None:
        takes_value = not known[own].is_flag if known[own] else False
        return f"write {own}, {_difference(name, own)}", takes_value
    if command == "train" and word == "init_from" and value not in ("", "resume"):
        if value == "scratch":
            return "leave it out: a new run starts from new weights", True
        return "gptcli has no trained weights; --from RUN starts from your own run", True
    form = _by_value(command, word, value) or FORM_OF.get(command, {}).get(word)
    if form is not None:
        return _written(ctx.command_path, form, value, known)
    if word in FIXED:
        key, fixed = FIXED[word]
        return _fixed(command, key, fixed, known), False
    setting = _assignment(name, value)
    if command in _WITH_KEYS and setting is not None:
        return f"write {setting}", True
    if word in SENTENCE_OF:
        return SENTENCE_OF[word], not SENTENCE_OF[word].startswith("leave")
    for other, parameters in _other_commands(ctx).items():
        if other == "import" and setting is not None:
            continue  # most users mean the config key, not this option of `import`
        if any(same_option(name) in _names(parameter) for parameter in parameters):
            return f"{same_option(name)} is an option of `gptcli {other}`", True
    options = {normalised(option): option for option in known}
    if len(word) > 1 and (close := get_close_matches(word, options, n=1, cutoff=0.7)):
        return f"did you mean {options[close[0]]}? See {ctx.command_path} --help", True
    if setting is not None:
        return f"this setting is a key of `gptcli train`: {setting}", True
    return f"see {ctx.command_path} --help", False


def _difference(name: str, option: str) -> str:
    """How to write `option`, which the user wrote as `name`. They differ in case or in dashes."""
    words = []
    if same_option(name).lstrip("-") != option.lstrip("-"):
        words.append("in lower case")
    if name.startswith("--") != option.startswith("--"):
        words.append("with two dashes" if option.startswith("--") else "with one dash")
    return " and ".join(words)


def _by_value(command: str, word: str, value: str) -> str | None:
    """What to write instead of `word`, another program's option, if this depends on `value`.

    None for all other options and values."""
    if command == "sample" and word in ("start", "prompt") and value.startswith("FILE:"):
        return f"--prompt-file {shlex.quote(value.removeprefix('FILE:'))}"
    if word == "init_from":
        if value == "resume":
            return "--resume" if command == "train" else "RUN"
        return None
    if command == "train" and word == "n":
        return "--out runs/VALUE" if value and not value.isdigit() else "train.max_steps=VALUE"
    return None


def _written(path: str, form: str, value: str, known: dict[str, Any]) -> tuple[str, bool]:
    """(hint, whether `form` takes a value). The hint says how to write `form` with `value`.

    `form` is from gptcli.other_spellings."""
    option = form.partition(" ")[0]
    if option.isupper() and not option.startswith("-"):
        shown = shlex.quote(value) if value else option
        if option == "RUN" and value == "resume":
            return f"leave it out, or name the run: {path} RUN", True
        if option == "TEXT" and value and not is_text_or_config(value):
            return f"name a text file or a folder, without an option: {path} TEXT", True
        if option == "FILE" and value and not os.path.exists(value):  # noqa: PTH110
            return f"write the text to a file, and name the file: {path} FILE", True
        return f"write the value without an option: {path} {shown}", True
    if "VALUE" not in form:
        return f"write {form}", False
    if option in known and option == "--dtype":
        value = VALUES["run.dtype"].get(value.lower(), value)
    shown = shlex.quote(value) if value else metavar(known[option]) if option in known else "N"
    if "/VALUE" in form:
        shown = shlex.quote(form.split()[1].replace("VALUE", value or "NAME"))
        return f"write {option} {shown}", True
    return f"write {form.replace('VALUE', shown)}", True


def _fixed(command: str, key: str, value: str, known: dict[str, Any]) -> str:
    """The hint for an option such as `--bf16`, which takes no value and means `key` = `value`."""
    option = "--" + key.partition(".")[2]
    if option in known:
        return f"write {option} {value}"
    if command in _WITH_KEYS and value != "int8":
        return f"write {key}={value}"
    return f"leave it out; see gptcli {command} --help"


def _key(name: str) -> str | None:
    """The config key that an option such as `--lr` or `--model.n_layer` means, or None."""
    from gptcli.config_problems import dotted_keys

    word = normalised(name)
    last = word.rpartition(".")[2]
    for key in dotted_keys():
        if word == key or last == key.partition(".")[2]:
            return key
    return KEY_OF.get(last)


def _assignment(name: str, value: str) -> str | None:
    """The KEY=VALUE that an unknown option means, or None. If `value` is "", returns `KEY=...`."""
    key = _key(name)
    if key is None:
        return None
    plain = {"True": "true", "False": "false", "None": "null"}.get(value, value)
    plain = VALUES.get(key, {}).get(plain.lower(), plain)
    return shlex.quote(f"{key}={plain}") if plain else f"{key}=..."


def _other_commands(ctx: Context) -> dict[str, list[Any]]:
    """Command -> its parameters, for all commands except the one that was called."""
    from typer.main import get_command

    from gptcli.cli import app_of

    commands = getattr(get_command(app_of([])), "commands", {})
    own = ctx.command.name if ctx.parent is ctx.find_root() else None
    return {name: each.params for name, each in commands.items() if name != own}


# ---- help --------------------------------------------------------------------------------------

_RANGE = re.compile(r"(?:[\d.e+]+<=?x(?:<=?[\d.e+]+)?|x[<>]=?[\d.e+]+)(?=\]$|;)")
"""Finds the range that Typer writes at the end of a help text, such as `x>=1` or `0.0<=x<=1.0`."""


def metavar(parameter: Any) -> str:
    """The name of a parameter's value in the help, such as `N` or `FILE`."""
    return str(parameter.metavar or parameter.name.upper())


def _write_parameters(command: Any, ctx: Context, formatter: Any) -> None:
    """Write the arguments and the options of a command into its help."""
    for title, found in parameter_rows(command, ctx).items():
        if found:
            with formatter.section(title):
                formatter.write_dl(found)


def parameter_rows(command: Any, ctx: Context) -> dict[str, list[tuple[str, str]]]:
    """The rows of "Arguments" and of "Options" in a help: (name, text) for each parameter."""
    rows: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is None:
            continue
        name, text = record
        if _is_argument(parameter):
            name = metavar(parameter)
        else:
            name = re.sub(r" <[^>]*>", f" {metavar(parameter)}", name)
        least, most = getattr(parameter, "min", None), getattr(parameter, "max", None)
        if "|" in metavar(parameter):  # the name already lists the allowed values
            text = re.sub(f"; {_RANGE.pattern}", "", text)
        elif least is not None or most is not None:
            text = _RANGE.sub(_bounds(least, most), text)
        if _is_argument(parameter):
            text = re.sub(r" *\[required\]$", "", text)
        rows["Arguments" if _is_argument(parameter) else "Options"].append((name, text))
    return rows


def _bounds(least: float | None, most: float | None) -> str:
    """The bounds of a number in words: "at least 1", "0 to 1"."""
    low, high = (f"{bound or 0:,.6f}".rstrip("0").rstrip(".") for bound in (least, most))
    if least is not None and most is not None:
        return f"{low} to {high}"
    return f"at least {low}" if least is not None else f"at most {high}"
