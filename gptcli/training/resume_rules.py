"""Decides which config keys may change at --resume, and refuses other changes."""

from __future__ import annotations

import math
from collections.abc import Set
from pathlib import Path
from typing import Any

from gptcli.config import Config
from gptcli.config_files import as_yaml, changed_values, differences, in_words
from gptcli.corpus.shard_corpus import names_shards
from gptcli.errors import GptcliError
from gptcli.files.names import path_of, shown
from gptcli.files.paths import shell_word
from gptcli.training.consistency import LIMITS, NO_EFFECT_ON_WEIGHTS, ROUNDING_ONLY
from gptcli.training.run_commands import resume_command
from gptcli.training.schedule import lr_at, resolve_rate, resolve_warmup
from gptcli.training.text_of_run import absolute_texts


def config_for_resume(
    run: Path,
    stored: Config,
    wanted: Config | None,
    extend: bool,
    step: int,
    explicit: Set[str] = frozenset(),
    planned: int | None = None,
    asked: int | None = None,
) -> tuple[Config, list[str]]:
    """The run's config with the changes that the user asks for, and notes about the changes.

    `stored` is the run's config. `wanted` is the user's config (None: no changes). `step` is the
    checkpoint's step. `planned` is the newest plan of train.max_steps; None if there is no plan.
    `asked` is the number of steps that train.max_epochs has lowered; None if it has not. An `auto`
    in `wanted` changes a key only if the command line sets the key (`explicit`). Raises GptcliError
    if a changed key would change the weights by more than rounding. Also raises GptcliError if
    `extend` is set and train.max_steps does not grow."""
    steps = planned or stored.train.max_steps
    wanted_steps = stored.train.max_steps if wanted is None else wanted.train.max_steps
    if extend and (wanted_steps == stored.train.max_steps or wanted_steps <= steps):
        more = f"train.max_steps={2 * steps}"
        raise GptcliError(
            f"--extend needs more steps than the {steps} of this run",
            f"for example {resume_command(run, [more], extend=True)}",
        )
    if wanted is None:
        return stored, []
    notes: list[str] = []
    refused: dict[str, Any] = {}
    changes = {
        key: new
        for key, (_, new) in differences(stored, wanted).items()
        if (new != "auto" or key in explicit) and not _same_source(key, stored, wanted)
    }
    if _same_mixture(stored, wanted):
        changes.pop("data.weights", None)
    if _same_adapters(stored, wanted):
        changes.pop("train.lora", None)
    if _keeps_tokenizer(stored, wanted):
        changes.pop("tokenizer.from", None)
    if wanted.tokenizer.from_ is not None or names_shards(
        wanted.data.sources
    ):  # the given tokenizer determines kind and vocab_size
        changes.pop("tokenizer.kind", None)
        changes.pop("tokenizer.vocab_size", None)
    if stored.tokenizer.kind != "bpe" or wanted.tokenizer.vocab_size >= stored.tokenizer.vocab_size:
        changes.pop("tokenizer.vocab_size", None)  # a short text gives a smaller vocabulary
    if wanted.train.batch_size == "auto" and wanted.train.sequences == stored.train.sequences:
        changes.pop("train.batch_size", None)  # the run keeps the numbers that `auto` chose
        changes.pop("train.grad_accum", None)
    if not extend and "train.max_steps" not in explicit and _keeps_steps(stored, wanted, asked):
        changes.pop("train.max_steps", None)
    auto = stored.train.model_copy(update={"learning_rate": "auto", "warmup_steps": "auto"})
    if changes.get("train.learning_rate") == "auto":
        changes["train.learning_rate"] = resolve_rate(auto, stored.model.n_embd)
    if changes.get("train.warmup_steps") == "auto":
        changes["train.warmup_steps"] = resolve_warmup(auto)
    for key, new in list(changes.items()):
        old = _value(stored, key)
        if key == "train.max_steps":
            if extend and new > steps:
                # The number of steps is fixed from now on.
                changes |= dict.fromkeys(LIMITS)
                notes.append(_extension_note(stored, new, step))
            else:
                refused[key] = new
        elif key in ("data.source", "data.val_source"):
            pass  # the text may have moved: prepare_resume compares contents
        elif key in LIMITS and new is None and extend:
            pass  # --extend removes the limits of time and epochs
        elif key == "tokenizer.from":
            pass  # prepare_resume compares the tokenizers
        elif key in ROUNDING_ONLY:
            if new != "auto":  # for auto, prepare_resume makes the note
                notes.append(
                    f"{key} is now {in_words(new)}: numbers will round differently from now on"
                )
        elif key in NO_EFFECT_ON_WEIGHTS:
            notes.append(f"{key} is now {in_words(new)}")
        elif old != new:
            refused[key] = new
    if refused:
        raise _refusal(run, stored, refused)
    values = stored.model_dump()
    for key, new in changes.items():
        section, _, name = key.partition(".")
        values[section][name] = new
    return Config.model_validate(values), notes


def override_words(stored: Config, config: Config) -> list[str]:
    """The changes from `stored` to `config` as KEY=VALUE, without the paths of the texts."""
    changes = differences(stored, config)
    places = ("data.source", "data.val_source")
    return [
        f"{changed}={as_yaml(value)}"
        for key, (old, new) in changes.items()
        if key not in places
        for changed, (_, value) in changed_values(key, old, new).items()
    ]


def _value(config: Config, key: str) -> Any:
    section, _, name = key.partition(".")
    return config.model_dump()[section][name]


def _refusal(run: Path, stored: Config, refused: dict[str, Any]) -> GptcliError:
    """The error for keys that --resume refuses, because they would change the weights."""
    odd: dict[str, tuple[Any, Any]] = {}
    for key, new in refused.items():
        odd |= changed_values(key, _value(stored, key), new)
    words = [f"{key}={as_yaml(new)}" for key, (_, new) in odd.items()]
    listed = "; ".join(
        f"{key}: {in_words(old)} -> {in_words(new)}" for key, (old, new) in odd.items()
    )
    message = f"these keys change the weights, so --resume refuses them: {listed}"
    steps = refused.get("train.max_steps", 0)
    if set(refused) == {"train.max_steps"} and steps > stored.train.max_steps:
        return GptcliError(
            message + " (needs --extend)",
            f"allow the longer schedule: {resume_command(run, words, extend=True)}",
        )
    if any(key.startswith(("model.", "tokenizer.")) for key in refused):
        return GptcliError(
            message,
            "leave these keys unchanged, or train a new run with another --out: weights fit only "
            "the network and the tokenizer that they were trained with",
        )
    return GptcliError(
        message,
        "leave these keys unchanged, or start a new run from these weights: gptcli train --from "
        + " ".join([shell_word(run), *map(shell_word, words)]),
    )


def _extension_note(stored: Config, max_steps: int, step: int) -> str:
    """A note that says how the learning rate continues after `--extend`."""
    train = stored.train
    rates = [
        lr_at(
            step,
            peak=float(train.learning_rate),
            max_steps=steps,
            warmup_steps=int(train.warmup_steps),
            decay_fraction=train.decay_fraction,
        )
        for steps in (train.max_steps, max_steps)
    ]
    falling_from = round(max_steps * (1 - train.decay_fraction))
    return (
        f"extended to {max_steps} steps: the learning rate continues at {rates[1]:.2e} "
        f"(it was {rates[0]:.2e}) and falls from step {max(step, falling_from)} "
        f"to 0 at step {max_steps}"
    )


def _same_mixture(stored: Config, wanted: Config) -> bool:
    """Whether the texts have the same shares in both configs: weights 6,2 are the same as 3,1."""
    ours, theirs = stored.data.shares, wanted.data.shares
    if ours is None or theirs is None:
        return ours is theirs
    return len(ours) == len(theirs) and all(map(math.isclose, ours, theirs))


def _same_adapters(stored: Config, wanted: Config) -> bool:
    """Whether both configs train the same adapters.

    `all` counts as the list of all names, and `auto` as the value that the run chose."""
    ours, theirs = stored.train.lora, wanted.train.lora
    if ours is None or theirs is None:
        return ours is theirs
    traits = stored.model.traits
    same: dict[str, object] = {"targets": ours.targets}
    if theirs.embeddings == "auto":
        same["embeddings"] = ours.embeddings
    return ours.names(traits) == theirs.names(traits) and ours == theirs.model_copy(update=same)


def _keeps_tokenizer(stored: Config, wanted: Config) -> bool:
    """Whether the user names no tokenizer, or names the one with which the run began."""
    name = wanted.tokenizer.from_
    if name is None:
        return True
    path = path_of(name)
    places = (path, Path("runs", path))
    return stored.tokenizer.from_ in [shown(place.absolute().as_posix()) for place in places]


def _keeps_steps(stored: Config, wanted: Config, asked: int | None) -> bool:
    """Whether `wanted` has the limit that gave the run its number of steps.

    gptcli plans the number of steps for `train.minutes`, and lowers it for `train.max_epochs`."""
    ours, theirs = stored.train, wanted.train
    if ours.minutes is not None or ours.max_epochs is None:
        return ours.minutes is not None and ours.minutes == theirs.minutes
    return ours.max_epochs == theirs.max_epochs and theirs.max_steps == asked


def _same_source(key: str, stored: Config, wanted: Config) -> bool:
    """Whether `key` is data.source or data.val_source, with the same texts in both configs."""
    name = key.removeprefix("data.")
    return key in ("data.source", "data.val_source") and (
        getattr(absolute_texts(wanted.data), name) == getattr(stored.data, name)
    )
