"""Which config keys can change at --resume, and which changes are refused."""

from __future__ import annotations

import os
from pathlib import Path

from gptcli.config import Config, DataConfig
from gptcli.config_files import differences
from gptcli.corpus.standard_input import STDIN
from gptcli.errors import GptcliError
from gptcli.files.names import path_of, shown
from gptcli.files.shipped import shipped_texts
from gptcli.training.schedule import lr_at

NO_EFFECT_ON_WEIGHTS = {
    "train.eval_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.sample_every",
    "train.log_every",
    "train.stop_at_val_loss",
    "train.patience",
}
"""Keys that can change at a resume, because they do not change the weights."""

ROUNDING_ONLY = {"run.device", "run.dtype", "run.compile", "run.engine", "run.threads"}
"""Keys that can change at a resume. A note tells the user that numbers will round differently."""


def config_for_resume(
    stored: Config, wanted: Config | None, extend: bool, step: int, planned: int | None = None
) -> tuple[Config, list[str]]:
    """The run's config with the changes that the user asks for, and a note about each change.

    `stored` is the run's config, `wanted` the user's (None: no changes), `step` the checkpoint's.
    `planned` is the newest plan of train.max_steps, if a run with a time limit made one.
    Raises GptcliError if a changed key would change the weights, or if `extend` is set and
    train.max_steps does not grow."""
    steps = planned or stored.train.max_steps
    wanted_steps = stored.train.max_steps if wanted is None else wanted.train.max_steps
    if extend and (wanted_steps == stored.train.max_steps or wanted_steps <= steps):
        raise GptcliError(
            f"--extend needs more steps than the {steps} of this run",
            f"for example train.max_steps={2 * steps} --resume --extend",
        )
    if wanted is None:
        return stored, []
    notes, refused = [], []
    changes = {
        key: new
        for key, (_, new) in differences(stored, wanted).items()
        if new != "auto" and not _same_source(key, stored, wanted)
    }
    if _keeps_tokenizer(stored, wanted):
        changes.pop("tokenizer.from", None)
    if wanted.tokenizer.from_ is not None:  # then kind and vocab_size follow the tokenizer
        changes.pop("tokenizer.kind", None)
        changes.pop("tokenizer.vocab_size", None)
    if stored.tokenizer.kind != "bpe" or wanted.tokenizer.vocab_size >= stored.tokenizer.vocab_size:
        changes.pop("tokenizer.vocab_size", None)  # a short text has fewer subwords than asked
    for key, new in list(changes.items()):
        if key == "train.max_steps":
            if extend and new > steps:
                changes["train.minutes"] = None  # the number of steps is fixed from now on
                notes.append(_extension_note(stored, new, step))
            else:
                refused.append(
                    f"{key} {stored.train.max_steps} -> {new}"
                    + (" (needs --extend)" if new > stored.train.max_steps else "")
                )
        elif key in ("data.source", "data.val_source"):
            pass  # the text can have moved: prepare_resume compares the content
        elif key == "train.minutes" and new is None and extend:
            pass  # --extend ends the time limit
        elif key == "tokenizer.from":
            pass  # prepare_resume compares the tokenizers
        elif key in ROUNDING_ONLY:
            notes.append(f"{key} is now {new}: numbers will round differently from now on")
        elif key in NO_EFFECT_ON_WEIGHTS:
            notes.append(f"{key} is now {new}")
        else:
            old = differences(stored, wanted)[key][0]
            refused.append(f"{key} {old} -> {new}")
    if refused:
        raise GptcliError(
            "these keys change the weights, so --resume refuses them: " + ", ".join(refused),
            "leave them as they are, or start a new run from these weights: --from",
        )
    values = stored.model_dump()
    for key, new in changes.items():
        section, _, name = key.partition(".")
        values[section][name] = new
    return Config.model_validate(values), notes


def _extension_note(stored: Config, max_steps: int, step: int) -> str:
    """How the learning rate continues after `--extend`."""
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


def absolute_texts(data: DataConfig) -> DataConfig:
    """The section with absolute paths, so that a resume from another folder finds the texts."""
    return data.model_copy(
        update={
            "source": _absolute(data.source),
            "val_source": None if data.val_source is None else _absolute(data.val_source),
        }
    )


def _absolute(source: str | list[str]) -> str | list[str]:
    if isinstance(source, list):
        return [absolute_source(one) for one in source]
    return absolute_source(source)


def absolute_source(source: str) -> str:
    """A text of `data.source` as an absolute path.

    The name of a shipped text and of standard input stay as they are."""
    if source == STDIN or source in shipped_texts():
        return source
    return shown(path_of(source).absolute().as_posix())


def _keeps_tokenizer(stored: Config, wanted: Config) -> bool:
    """Whether the user names no tokenizer, or the one that the run began with."""
    name = wanted.tokenizer.from_
    if name is None:
        return True
    path = os.path.expanduser(name)  # noqa: PTH111 (Path.expanduser raises for ~nobody)
    places = (Path(path), Path("runs", path))
    return stored.tokenizer.from_ in [place.absolute().as_posix() for place in places]


def _same_source(key: str, stored: Config, wanted: Config) -> bool:
    """Whether a key names the texts that the run has already."""
    name = key.removeprefix("data.")
    return key in ("data.source", "data.val_source") and (
        getattr(absolute_texts(wanted.data), name) == getattr(stored.data, name)
    )
