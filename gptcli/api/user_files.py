"""Loads the user's parts: attention, layer norm, MLP, block, tokenizer and sampler from files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.errors import GptcliError, cropped
from gptcli.files.names import shown
from gptcli.files.paths import shell_word

if TYPE_CHECKING:
    from gptcli.config import Config
    from gptcli.course.sandbox.learner_file import LearnerFile
    from gptcli.model.user_parts import UserParts
    from gptcli.sampling.user_sampler import UserSampler

PARTS = ("attention", "layernorm", "mlp", "block", "tokenizer")


@dataclass(frozen=True)
class UserFiles:
    """The names of the files with the user's parts, from the command line or a call in Python."""

    attention: str | None = None
    layernorm: str | None = None
    mlp: str | None = None
    block: str | None = None
    tokenizer: str | None = None

    def given(self) -> dict[str, str]:
        """Part -> FILE[:CLASS], for every part that has a file."""
        return {name: spec for name in PARTS if (spec := getattr(self, name)) is not None}


def split_tokenizer(
    option: str | None, overrides: list[str], *, resume: bool, is_fine_tune: bool
) -> tuple[str | None, list[str]]:
    """The Python file that `--tokenizer` names, and the overrides for the config.

    The file is None if `--tokenizer` names no Python file. If `--tokenizer` or tokenizer.from names
    a tokenizer.json or a run, three overrides are added: tokenizer.from, tokenizer.kind and
    tokenizer.vocab_size. These overrides replace the values of a CONFIG. With `resume`, only
    tokenizer.from is added and no tokenizer is loaded, because the run has its own copy. Raises
    GptcliError if the options contradict each other or the tokenizer cannot be used."""
    of_tokenizer = [one for one in overrides if re.match(r"tokenizer\b", one)]
    if option is None and not of_tokenizer:
        return None, overrides
    from gptcli.config_files import ConfigError, parse_config

    try:
        section = parse_config("{}", of_tokenizer, name="command line").tokenizer
    except ConfigError:  # the error comes again later, with the config's other problems
        return None, overrides
    if option is not None and section.from_ is not None:
        raise GptcliError(
            f"tokenizer.from={section.from_} and --tokenizer cannot be used together",
            "leave one out",
        )
    if option is not None and _is_python(option):
        if "kind" in section.model_fields_set and section.kind != "bpe":
            raise GptcliError(
                f"tokenizer.kind={section.kind} and --tokenizer cannot be used together",
                "leave one out; tokenizer.vocab_size works with --tokenizer",
            )
        # A user's tokenizer counts as bpe, and a CONFIG's tokenizer.from has no effect.
        return option, [*overrides, "tokenizer.kind=bpe", "tokenizer.from=null"]
    key = "tokenizer.from" if option is None else "--tokenizer"
    if option is not None:
        section = section.model_copy(update={"from_": shown(option)})
    if section.from_ is None:
        return None, overrides
    if resume:
        return None, [*overrides, _override("from", section.from_)]
    from gptcli.config import Config
    from gptcli.training.named_tokenizer import follow_tokenizer

    named, _ = follow_tokenizer(Config(tokenizer=section), key, is_fine_tune=is_fine_tune)
    followed = named.tokenizer
    return None, [
        *overrides,
        _override("from", followed.from_),
        _override("kind", followed.kind),
        _override("vocab_size", followed.vocab_size),
    ]


def _override(name: str, value: Any) -> str:
    return f"tokenizer.{name}={json.dumps(value, ensure_ascii=False)}"


def _is_python(spec: str) -> bool:
    """Whether `--tokenizer` names a Python file, instead of a tokenizer.json or a run."""
    from gptcli.course.sandbox.learner_file import split_class

    name, class_name = split_class(spec)
    path = Path(name)
    if class_name is not None or path.suffix == ".py":
        return True
    if path.suffix == ".json" or not os.path.isfile(name):  # noqa: PTH113
        return False
    with path.open("rb") as file:
        return not file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"["))


NO_DROPOUT = "dropout-never-acts"


def check_and_load(
    files: UserFiles, config: Config, force: bool, warn: Callable[[str], None]
) -> UserParts | None:
    """The user's classes, after each has passed its check; None if no file is named.

    Raises GptcliError if a part cannot work with the config's arch, or if a part fails its check.
    With `force`, a failed check is no error: `warn` gets the problem.
    """
    given = files.given()
    if not given:
        return None
    from gptcli.course.sandbox.modern_file import find_part, naming_both, right_enough

    found = {}
    for part, spec in given.items():
        try:
            found[part] = find_part(spec, part)
        except GptcliError as error:
            if part != "tokenizer" or ".py" in spec:
                raise
            raise GptcliError(
                error.message,
                "name a tokenizer.json, a run, or the .py file with a tokenizer that you wrote",
            ) from None
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
    from gptcli.course.checking import LIMIT_S, Checker

    with Checker() as checker:
        for part, spec in given.items():
            file, problem = found[part], None
            try:
                report = checker.check_found(file, LIMIT_S)
                if right_enough(file, part, report):
                    continue
                if report.mistake == NO_DROPOUT and config.model.dropout == 0.0:
                    continue  # without dropout in the config, the mistake is harmless
                if not report.ok:
                    problem = f"{report.file} does not pass its check: {report.message}"
            except GptcliError as error:
                if not force:
                    raise naming_both(error, file, part) from None
                problem = error.message
            if problem is not None and not force:
                raise GptcliError(
                    problem,
                    f"see gptcli check-{file.exercise} {shell_word(spec)}; --force trains with it "
                    "anyway",
                    exit_code=1,
                )
            if problem is not None:
                warn(f"warning: {problem}")
    return load_user_parts(files)


def load_user_parts(files: UserFiles, *, with_cache: bool = False) -> UserParts | None:
    """The user's classes; None if no file is named. Runs the files in this process.

    With `with_cache`, also loads the key/value cache if the attention's file has one and no block
    is named. Raises GptcliError if a file is missing, or if the user's block cannot take another
    part that the user names.
    """
    given = files.given()
    if not given:
        return None
    if files.tokenizer is not None and not _is_python(files.tokenizer):
        raise GptcliError(
            f"--tokenizer {cropped(files.tokenizer)}: this option names Python code that you wrote",
            "leave --tokenizer out: a run keeps a copy of its tokenizer",
        )
    from gptcli.course.attention.conventions.training import UserAttention
    from gptcli.course.exercises.building import build, takes
    from gptcli.course.exercises.modern_modules import modern_config
    from gptcli.course.exercises.tokenizer_lesson import tokenizer_class
    from gptcli.course.sandbox.learner_class import load_class
    from gptcli.course.sandbox.modern_file import find_part, naming_both
    from gptcli.model.user_parts import UserParts

    found = {part: find_part(spec, part) for part, spec in given.items()}

    def loaded(part: str, file: LearnerFile) -> Any:
        try:
            if part == "tokenizer":
                return tokenizer_class(file)
            if file.exercise == "attention":
                return UserAttention(file)
            return load_class(file)
        except GptcliError as error:
            raise naming_both(error, file, part) from None

    def maker(part: str, cls: Any, inner: dict[str, Any]) -> Any:
        if part == "tokenizer":
            return cls
        if isinstance(cls, UserAttention):
            return cls.make
        if found[part].exercise == "modern":
            return lambda config: build(cls, modern_config(config), inner)
        return lambda config: build(cls, config, inner)

    classes = {part: loaded(part, file) for part, file in found.items()}
    makers: dict[str, Any] = {
        part: maker(part, cls, {}) for part, cls in classes.items() if part != "block"
    }
    if "block" in classes:
        block = classes["block"]
        for part in ("attention", "mlp", "layernorm"):
            if part in makers and not takes(block, part):
                raise GptcliError(
                    f"`{block.__name__}` of {given['block']} makes its own {part}: its "
                    f"constructor has no argument `{part}`, so --{part} has no effect",
                    f"leave --{part} out, or write `def __init__(self, config, {part}=...):`",
                )
        makers["block"] = maker("block", block, dict(makers))
    if isinstance(attention := classes.get("attention"), UserAttention):
        makers["matrices"] = attention.matrices
        if with_cache and "block" not in classes and (cache := attention.cache()) is not None:
            makers["cache"] = cache
    return UserParts(**makers)


def load_sampler(spec: str | None) -> UserSampler | None:
    """The user's sampling functions; None if no file is named. Runs the file in this process.

    Raises GptcliError if there is no such file, if it cannot be run, or if it has no next_token."""
    if spec is None:
        return None
    from gptcli.course.sandbox.learner_file import find_file
    from gptcli.course.sandbox.running import error_of, run_file
    from gptcli.sampling.user_sampler import UserSampler

    file = find_file(spec, "sampling")
    module = run_file(file)
    choose, cut = (getattr(module, name, None) for name in ("next_token", "cut_at_stop"))
    if not callable(choose):
        if (error := error_of(file, module)) is not None:
            raise error
        raise GptcliError(
            f"--sampler {file.name}: there is no function `next_token`",
            "it needs next_token(logits, seen_ids, u, t, k, p, m, penalty), and for --stop also "
            "cut_at_stop(text, stops); gptcli exercise sampling explains them",
        )
    return UserSampler(file.name, file.path, choose, cut if callable(cut) else None)
