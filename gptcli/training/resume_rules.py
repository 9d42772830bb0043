"""What may change between a stop and a resume: nothing that changes what the run computes."""

from __future__ import annotations

from pathlib import Path

from gptcli.config import Config
from gptcli.config_files import differences
from gptcli.errors import GptcliError
from gptcli.files.shipped import shipped_texts
from gptcli.training.consistency import NO_EFFECT_ON_WEIGHTS, ROUNDING_ONLY
from gptcli.training.schedule import lr_at


def config_for_resume(
    stored: Config, wanted: Config | None, extend: bool, step: int
) -> tuple[Config, list[str]]:
    """The run's config with the changes that may be made to it, and what to say of them."""
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
        changes.pop("tokenizer.vocab_size", None)  # the text may have had fewer pairs than asked
    for key, new in list(changes.items()):
        if key == "train.max_steps":
            if extend and new > stored.train.max_steps:
                notes.append(_extension(stored, new, step))
            else:
                refused.append(
                    f"{key} {stored.train.max_steps} -> {new}"
                    + (" (needs --extend)" if new > stored.train.max_steps else "")
                )
        elif key == "data.source":
            pass  # a text that has moved; its content is compared once it has been read
        elif key in ROUNDING_ONLY:
            notes.append(f"{key} is now {new}: the numbers will be rounded otherwise than before")
        elif key in NO_EFFECT_ON_WEIGHTS:
            notes.append(f"{key} is now {new}")
        else:
            old = differences(stored, wanted)[key][0]
            refused.append(f"{key} {old} -> {new}")
    if refused:
        raise GptcliError(
            "a resume may not change what the run computes: " + ", ".join(refused),
            "leave these as they are, or start a new run (--from takes this one's weights)",
        )
    values = stored.model_dump()
    for key, new in changes.items():
        section, _, name = key.partition(".")
        values[section][name] = new
    return Config.model_validate(values), notes


def _extension(stored: Config, max_steps: int, step: int) -> str:
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
        f"extended to {max_steps} steps: the learning rate goes on at {rates[1]:.2e} "
        f"(it was {rates[0]:.2e}) and falls from step {max(step, falling_from)} "
        f"to 0 at step {max_steps}"
    )


def absolute_source(source: str) -> str:
    """A path that still holds when the run is resumed from another folder."""
    return source if source in shipped_texts() else Path(source).absolute().as_posix()


def _same_source(key: str, stored: Config, wanted: Config) -> bool:
    return key == "data.source" and absolute_source(wanted.data.source) == stored.data.source
