"""Loads the tokenizer that `tokenizer.from` names: a run, a folder, or a tokenizer.json."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from gptcli.config import Config
from gptcli.errors import GptcliError, cropped, nearest
from gptcli.files.names import path_of, shown
from gptcli.tokenization import KINDS, Tokenizer, load_tokenizer
from gptcli.training.run_folder import find_run, list_runs, read_config


@dataclass(frozen=True)
class NamedTokenizer:
    """A tokenizer, and the absolute path of its run folder or file."""

    tokenizer: Tokenizer
    path: Path


def load_named(name: str, key: str = "tokenizer.from") -> NamedTokenizer:
    """Load a tokenizer. `name` is a run, a tokenizer.json or the folder of a tokenizer.json.

    The file is data: gptcli executes nothing in it. `key` is the option or config key that holds
    the name, for messages. Raises GptcliError if there is no such tokenizer, or if it cannot be
    used."""
    path = path_of(name)
    is_run = os.path.isfile(path / "config.yaml")  # noqa: PTH113
    if not is_run and os.path.isfile(path / "tokenizer.json"):  # noqa: PTH113
        path = path / "tokenizer.json"
    if os.path.isfile(path):  # noqa: PTH113
        return NamedTokenizer(_load_file(path), path.absolute())
    try:
        run = find_run(str(path))
    except GptcliError as error:
        raise _not_found(name, path, key) from error
    return NamedTokenizer(load_tokenizer(run / "tokenizer.json", inside=run), run.absolute())


def follow_tokenizer(
    config: Config, key: str = "tokenizer.from", *, is_fine_tune: bool = False
) -> tuple[Config, Tokenizer | None]:
    """Load the tokenizer that tokenizer.from names; return a fitting config and the tokenizer.

    The returned config has the tokenizer's kind and size. Without `tokenizer.from`,
    returns `config` and None. `is_fine_tune` is true if the run has --from, which also determines
    the tokenizer. Raises GptcliError if the tokenizer cannot be used, or if the config asks for
    another kind or size."""
    section = config.tokenizer
    if section.from_ is None:
        return config, None
    named = load_named(section.from_, key)
    tokenizer = named.tokenizer
    for name, wanted, found in (
        ("kind", section.kind, tokenizer.kind),
        ("vocab_size", section.vocab_size, tokenizer.vocab_size),
    ):
        is_meant = name in section.model_fields_set and (name == "kind" or tokenizer.kind == "bpe")
        if is_meant and wanted != found:
            raise GptcliError(
                f"tokenizer.{name} is {wanted}, but the tokenizer of {section.from_} has {found}",
                f"leave tokenizer.{name} out" + ("" if is_fine_tune else f", or leave out {key}"),
            )
    values: dict[str, object] = {"kind": tokenizer.kind, "from_": shown(named.path.as_posix())}
    if tokenizer.kind == "bpe":
        values["vocab_size"] = tokenizer.vocab_size
    followed = section.model_copy(update=values)
    return config.model_copy(update={"tokenizer": followed}), tokenizer


def follow_base_run(config: Config, run: Path) -> tuple[Config, Tokenizer]:
    """A fine-tune's config, changed to use the base run's tokenizer; and that tokenizer.

    Raises GptcliError if the config asks for another tokenizer."""
    tokenizer = load_tokenizer(run / "tokenizer.json", inside=run)
    section = config.tokenizer
    inherited = read_config(run).tokenizer.from_
    named = section.from_ if section.from_ != inherited else None
    if named is not None:
        other = load_named(named).tokenizer
        if other.fingerprint() != tokenizer.fingerprint():
            raise GptcliError(
                f"--from takes the tokenizer of {run}, but {named} has another tokenizer",
                "leave --tokenizer and tokenizer.from out; or leave out --from, and train a new "
                "model",
            )
    if "kind" in section.model_fields_set and section.kind != tokenizer.kind:
        raise GptcliError(
            f"--from takes the tokenizer of {run}, whose kind is {tokenizer.kind}; "
            f"tokenizer.kind={section.kind} would have no effect",
            "leave tokenizer.kind out"
            if named is not None  # without --from, `follow_tokenizer` would refuse this kind
            else "leave tokenizer.kind out; or leave out --from, and train a new model with "
            f"{section.kind}",
        )
    from_ = shown(run.absolute().as_posix()) if tokenizer.kind in ("char", "bpe") else None
    followed = section.model_copy(update={"kind": tokenizer.kind, "from_": from_})
    return config.model_copy(update={"tokenizer": followed}), tokenizer


def refuse_other_tokenizer(run: Path, tokenizer: Tokenizer, name: str) -> None:
    """Raise GptcliError unless the tokenizer called `name` is the run's tokenizer."""
    if load_named(name).tokenizer.fingerprint() != tokenizer.fingerprint():
        raise GptcliError(
            f"{run} was trained with another tokenizer than {name}",
            "leave out --tokenizer and tokenizer.from: a run keeps its own tokenizer",
        )


def _load_file(path: Path) -> Tokenizer:
    if path.suffix == ".py":
        raise GptcliError(
            f"{path} is Python code, not a tokenizer.json",
            "to use a tokenizer that you wrote: gptcli train --tokenizer FILE",
        )
    return load_tokenizer(path, other_programs=True)


def _not_found(name: str, path: Path, key: str) -> GptcliError:
    what = "a run, a run folder or a tokenizer.json"
    if os.path.isdir(path):  # noqa: PTH112
        return GptcliError(f"{key}: {name} has no tokenizer.json", f"name {what}")
    if name in KINDS:
        return GptcliError(
            f"{key}: no run or file named `{cropped(name)}`",
            f"for a tokenizer of the kind {name}, set tokenizer.kind={name} instead",
        )
    known = [shown(run.name) for run in list_runs(Path("runs"))]
    close = nearest(name, [*known, *_files_beside(path)])
    hint = f"did you mean `{close}`? " if close else ""
    return GptcliError(f"{key}: no run or file named `{cropped(name)}`", f"{hint}name {what}")


def _files_beside(path: Path) -> list[str]:
    folder = path.parent
    return [shown(p) for p in folder.glob("*.json")] if os.path.isdir(folder) else []  # noqa: PTH112
