"""The options --attention, --layernorm, --mlp, --block and --tokenizer: run the user's parts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli.cli.output import note
from gptcli.errors import GptcliError
from gptcli.files.paths import shell_word

if TYPE_CHECKING:
    from torch import nn

    from gptcli.config import Config
    from gptcli.model.user_parts import UserParts

PARTS = ("attention", "layernorm", "mlp", "block", "tokenizer")


def _option(name: str, what: str) -> Any:
    return typer.Option(
        f"--{name}",
        metavar="FILE[:CLASS]",
        help=f"Use your own {what} instead of the built-in one. This runs the file.",
    )


AttentionOption = Annotated[str | None, _option("attention", "attention")]
LayerNormOption = Annotated[str | None, _option("layernorm", "layer norm")]
MlpOption = Annotated[str | None, _option("mlp", "feed-forward network")]
BlockOption = Annotated[str | None, _option("block", "block")]
TokenizerOption = Annotated[str | None, _option("tokenizer", "byte-pair encoding")]


@dataclass(frozen=True)
class UserFiles:
    """The files of the user's parts that this command line names."""

    attention: str | None = None
    layernorm: str | None = None
    mlp: str | None = None
    block: str | None = None
    tokenizer: str | None = None

    def given(self) -> dict[str, str]:
        """Part -> FILE[:CLASS], for every part that the command line names."""
        return {name: spec for name in PARTS if (spec := getattr(self, name)) is not None}


def check_and_load(files: UserFiles, config: Config, force: bool) -> UserParts | None:
    """The user's classes after each has passed its check; None if no file is named.

    Raises GptcliError if a part cannot work with the config's arch. Unless `force` is set, also
    raises GptcliError if a part fails its check.
    """
    given = files.given()
    if not given:
        return None
    first = next(iter(given))
    if first != "tokenizer" and not config.model.traits.can_have_user_parts:
        why = {
            "attention": "rotates queries and keys inside its attention",
            "mlp": "has a gated feed-forward network",
        }.get(first, "uses RMSNorm, which has no mean and no bias")
        raise GptcliError(
            f"--{first} needs `arch: gpt2`; the modern arch {why}",
            "add model.arch=gpt2 to the command",
        )
    from gptcli.course.checking import Checker

    with Checker() as checker:
        for part, spec in given.items():
            problem = None
            try:
                report = checker.check(spec, part)
                if not report.ok:
                    problem = f"{report.file} does not pass its check: {report.message}"
            except GptcliError as error:
                if not force:
                    raise
                problem = error.message
            if problem is not None and not force:
                raise GptcliError(
                    problem,
                    f"see gptcli check-{part} {shell_word(spec)}; --force trains with it anyway",
                    exit_code=1,
                )
            if problem is not None:
                note(f"warning: {problem}")
    return load_user_parts(files)


def load_user_parts(files: UserFiles) -> UserParts | None:
    """The user's classes; None if no file is named. This runs the files in this process.

    Raises GptcliError if a file is missing. Also raises GptcliError if the user's block has no
    argument for another part that is named.
    """
    given = files.given()
    if not given:
        return None
    from gptcli.course.checking import find_matrices
    from gptcli.course.exercises.building import build, takes
    from gptcli.course.exercises.tokenizer_lesson import tokenizer_class
    from gptcli.course.sandbox.learner_file import find_file, load_class
    from gptcli.model.user_parts import UserParts

    found = {part: find_file(spec, part) for part, spec in given.items()}
    classes: dict[str, type[Any]] = {
        part: (tokenizer_class if part == "tokenizer" else load_class)(file)
        for part, file in found.items()
    }

    def maker(cls: type[nn.Module], inner: dict[str, Any]) -> Any:
        return lambda config: build(cls, config, inner)

    makers: dict[str, Any] = {
        part: cls if part in ("attention", "tokenizer") else maker(cls, {})
        for part, cls in classes.items()
        if part != "block"
    }
    if "block" in classes:
        block = classes["block"]
        for part in ("attention", "mlp", "layernorm"):
            if part in makers and not takes(block, part):
                raise GptcliError(
                    f"`{block.__name__}` of {given['block']} makes its own {part}, so --{part} "
                    f"would not be used: its constructor has no argument `{part}`",
                    f"leave --{part} out, or write `def __init__(self, config, {part}=...):`",
                )
        makers["block"] = maker(block, dict(makers))
    if "attention" in classes:
        makers["matrices"] = partial(find_matrices, found["attention"], classes["attention"])
    return UserParts(**makers)
