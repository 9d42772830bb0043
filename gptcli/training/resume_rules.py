"""Which config keys can change at --resume, and which changes are refused."""

from __future__ import annotations

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
    stored: Config, wanted: Config | None, extend: bool, step: int
) -> tuple[Config, list[str]]:
    """The run's config with the changes that the user asks for, and a note about each change.

    `stored` is the run's config, `wanted` the user's (None: no changes), `step` the checkpoint's.
    Raises GptcliError if a changed key would change the weights, or if `extend` is set and
    train.max_steps does not grow."""
    if extend and (wanted is None or wanted.train.max_steps <= stored.train.max_steps):
        raise GptcliError(
            f"--extend needs more steps than the {stored.train.max_steps} of this run",
            f"for example train.max_steps={2 * stored.train.max_steps} --resume --extend",
        )
    if wanted is None:
        return stored, []
    notes, refused = [], []
    changes = {
        key: new
        for key, (_, new) in differences(stored, wanted).items()
        if new != "auto" and not _same_source(key, stored, wanted)
    }
    if stored.tokenizer.kind != "bpe" or wanted.tokenizer.vocab_size >= stored.tokenizer.vocab_size:
        changes.pop("tokenizer.vocab_size", None)  # a short text has fewer subwords than asked
    for key, new in list(changes.items()):
        if key == "train.max_steps":
            if extend and new > stored.train.max_steps:
                notes.append(_extension_note(stored, new, step))
            else:
                refused.append(
                    f"{key} {stored.train.max_steps} -> {new}"
                    + (" (needs --extend)" if new > stored.train.max_steps else "")
                )
        elif key in ("data.source", "data.val_source"):
            pass  # the text can have moved: prepare_resume compares the content
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


def _same_source(key: str, stored: Config, wanted: Config) -> bool:
    """Whether a key names the texts that the run has already."""
    name = key.removeprefix("data.")
    return key in ("data.source", "data.val_source") and (
        getattr(absolute_texts(wanted.data), name) == getattr(stored.data, name)
    )
