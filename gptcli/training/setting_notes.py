"""Notes about settings that work but are probably mistakes, such as too long a warm-up."""

from __future__ import annotations

from gptcli.config import Config
from gptcli.corpus import Corpus
from gptcli.corpus.mixture import MixedTokens
from gptcli.model.weights import parameter_shapes
from gptcli.plurals import agreeing, counted, times

_FEW_WINDOWS = 3
_MOST_TEXTS = 12


def setting_notes(config: Config, corpus: Corpus) -> list[str]:
    """One sentence for each setting that does not suit the run or text, and one for mixed texts.

    `config` is resolved: train.warmup_steps is a number."""
    train, block_size = config.train, config.model.block_size
    train_tokens = len(corpus.train)
    val_tokens = len(corpus.val) if corpus.val else 0
    warmup = int(train.warmup_steps)
    notes = []
    if warmup >= train.max_steps:
        notes.append(
            f"the warm-up ({counted(warmup, 'step')}) is as long as the run "
            f"({counted(train.max_steps, 'step')}) or longer, so the learning rate never "
            "reaches its full value: lower train.warmup_steps"
        )
    elif train.max_steps / (warmup + train.decay_fraction * train.max_steps + 1e-9) < 0.8:
        notes.append(
            f"the warm-up ({counted(warmup, 'step')}) reaches into the decay (the last "
            f"{train.decay_fraction:.0%} of {counted(train.max_steps, 'step')}), so the learning "
            "rate never reaches its full value: lower train.warmup_steps or train.decay_fraction"
        )
    windows = max(0, val_tokens - 1) / block_size
    if val_tokens and windows <= _FEW_WINDOWS:
        shown = f"{windows:.2g}"
        notes.append(
            f"the validation part has only {counted(val_tokens, 'token')} ({shown} "
            f"{agreeing(float(shown), 'window')} of block_size {block_size}), so its loss is a "
            "rough estimate: raise data.val_fraction, or use a longer text"
        )
    step = config.tokens_per_step
    if step > train_tokens:
        notes.append(
            f"a step reads {counted(step, 'token')}, and the text has {train_tokens:,} for "
            f"training, so each step reads the text {times(f'{step / train_tokens:.2g}')}: lower "
            "train.batch_size"
        )
    return notes + rank_notes(config) + _mixture_notes(config, corpus)


def rank_notes(config: Config) -> list[str]:
    """A note if a matrix has fewer rows or columns than the rank of its adapter."""
    lora = config.train.lora
    if lora is None:
        return []
    shapes = parameter_shapes(config.model, 1)
    names = [f"h.0.{name}.weight" for name in lora.names(config.model.traits)]
    smaller = {name: min(shapes[name]) for name in names if min(shapes[name]) < lora.rank}
    if not smaller:
        return []
    name, most = min(smaller.items(), key=lambda pair: pair[1])
    outputs, inputs = shapes[name]
    layer = name.removeprefix("h.0.").removesuffix(".weight")
    return [
        f"train.lora.rank is {lora.rank:,}, and a change of {layer} ({outputs:,} x {inputs:,}) has "
        f"rank {most:,} at most, so part of its adapter adds nothing: lower train.lora.rank to "
        f"{most:,} or less, or train all weights with train.lora=null"
    ]


def _mixture_notes(config: Config, corpus: Corpus) -> list[str]:
    """A note with the shares of up to 12 mixed texts, and how often each text is read.

    [] if the run has only one text."""
    if not isinstance(corpus.train, MixedTokens):
        return []
    tokens = config.tokens_per_step * config.train.max_steps
    parts = []
    for text in corpus.train.texts:
        often = times(f"{tokens * text.share / len(text.tokens):.2g}")
        parts.append(f"{text.name} {100 * text.share:.3g} % (read {often})")
    listed = ", ".join(parts[:_MOST_TEXTS])
    if len(parts) > _MOST_TEXTS:
        listed += f" and {len(parts) - _MOST_TEXTS} more"
    return [f"the texts are mixed: {listed}"]
