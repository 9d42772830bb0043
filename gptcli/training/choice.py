"""Chooses network, tokenizer, batch size and dropout for a text and a budget of operations.

The budget is the number of operations that the machine does in the time that the user gives, or in
the steps that the user sets. The rules were fitted to our runs: benchmarks/DIAL.md has the runs and
the plot.

Dimensions: N parameters of the blocks, B batch, T context length, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gptcli.config import TrainConfig
from gptcli.plurals import counted

_LARGER = (
    (6, 96), (8, 96), (6, 128), (8, 128), (8, 160), (8, 192), (8, 256), (8, 320),
    (8, 512), (10, 640), (12, 768),
)  # fmt: skip
NETWORKS = ((2, 64), (2, 96), (2, 128), *_LARGER)
"""(n_layer, n_embd) of the networks among which the rules choose."""

DEEP_NETWORKS = ((4, 32), (6, 32), (4, 64), (6, 64), *_LARGER)
"""(n_layer, n_embd) of the networks for a text that is short, compared with the training time. From
such a text, deep and narrow networks learn more than shallow and wide ones of the same size."""

# Fitted in benchmarks/DIAL.md.
_BEST_SIZE, _AT_OPERATIONS, _SIZE_GROWS = 1.6e6, 3.3e13, 0.65
_MAX_PARAMETERS_PER_CHARACTER = 6.0
_EPOCHS_WITHOUT_DROPOUT, _DROPOUT_PER_DOUBLING, _MAX_DROPOUT = 2.7, 0.05, 0.4
_EPOCHS_WITHOUT_AVERAGE, _AVERAGE_PER_DOUBLING, _MAX_AVERAGE = 20.0, 0.175, 0.35
_LONG_DECAY = 0.8
_MOST_EPOCHS, _MANY_EPOCHS = 80.0, 20.0  # train.max_epochs is 80 if a text is read over 20 times
_TOKENS_PER_STEP, _STEP_AT_TOKENS = 2048, 3e6  # 2048 tokens a step in a training of 3e6 tokens
# (least number of tokens that the training reads, context length). The second table is for texts
# that are read more than 2.7 times.
_CONTEXTS = ((2.5e6, 256), (1.3e6, 128), (0.0, 64))
_CONTEXTS_REPEATED = ((1e6, 256), (0.0, 128))
_STEP_GROWS_SHORT, _STEP_GROWS_LONG = 0.6, 0.25  # a short training needs many small steps
_CHARACTERS_PER_SUBWORD = 2.5
_LONG_TEXT, _MIN_EPOCHS = 4e6, 0.6  # a text with more characters and fewer epochs gets subwords
_MAX_CHAR_VOCABULARY = 8192  # a text with more different characters is read as bytes
_ALPHABET_BYTES = 1.5  # a text with more bytes per character, such as Chinese, gets no subwords
_SUBWORD_BYTES_PER_SECOND = 3e6  # the speed of reading and encoding on a slow machine
_MOST_PREPARATION = 0.2  # encoding may take this share of the time
_VAL_TOKENS = 0.24  # the most validation tokens for each token that the training reads
_LEAST_VAL_WINDOWS = 32  # windows of the validation split, even if _VAL_TOKENS allows fewer
_LEAST_STEPS_PER_EPOCH = 2  # else a step could read a part of a short text twice
VAL_FRACTION = 0.1
PATIENCE = 5


@dataclass(frozen=True)
class Text:
    """The facts about a text that the rules use."""

    characters: int
    bytes: int
    different: int
    """The number of different characters."""


@dataclass(frozen=True)
class ChosenSettings:
    """The chosen values by dotted key, and reasons by section (data, model, tokenizer)."""

    values: dict[str, Any]
    reasons: dict[str, str]


def dropout_for(epochs: float) -> float:
    """The dropout for a text that is read `epochs` times.

    It is 0 up to 2.7 epochs. After that, each doubling of the epochs adds 0.05, up to 0.4."""
    doublings = math.log2(max(1.0, epochs / _EPOCHS_WITHOUT_DROPOUT))
    return min(_MAX_DROPOUT, round(_DROPOUT_PER_DOUBLING * doublings, 2))


def average_for(epochs: float) -> float:
    """The value of train.average for a text that is read `epochs` times.

    It is 0 up to 20 epochs. After that, each doubling of the epochs adds 0.175, up to 0.35."""
    doublings = math.log2(max(1.0, epochs / _EPOCHS_WITHOUT_AVERAGE))
    return min(_MAX_AVERAGE, round(_AVERAGE_PER_DOUBLING * doublings, 3))


def decay_for(epochs: float) -> float:
    """The value of train.decay_fraction for a text that is read `epochs` times.

    It is 0.8 if the text is read so rarely that there is no dropout, else the default."""
    return _LONG_DECAY if dropout_for(epochs) == 0.0 else TrainConfig().decay_fraction


def best_size(operations: float) -> float:
    """The number of parameters N that is best for a budget of operations.

    A token takes 6 N operations."""
    return _BEST_SIZE * float((operations / _AT_OPERATIONS) ** _SIZE_GROWS)


def block_parameters(n_layer: int, n_embd: int) -> float:
    """The approximate number of parameters in the blocks of an `arch: modern` network."""
    return 12.0 * n_layer * n_embd**2


def network_of_size(
    parameters: float, networks: Iterable[tuple[int, int]] = NETWORKS, **given: int
) -> tuple[int, int]:
    """The (n_layer, n_embd) in `networks` whose block parameters are nearest to `parameters`.

    "Nearest" is by ratio. `given` holds n_layer and n_embd if the user has set them. These values
    stay as they are."""
    candidates = {
        (given.get("n_layer", n_layer), given.get("n_embd", n_embd)) for n_layer, n_embd in networks
    }
    ratio = {c: abs(math.log(block_parameters(*c) / parameters)) for c in candidates}
    return min(sorted(candidates), key=lambda c: ratio[c])


def heads_for(n_embd: int) -> int:
    """The number of heads. A head has 64 channels if n_embd is 256, 320, 384 ..., else 32.

    If 32 does not divide n_embd, the number of channels in a head is the even divisor of n_embd
    that is nearest to 32. If n_embd is odd, there is one head."""
    wanted = 64 if n_embd % 64 == 0 and n_embd >= 256 else 32
    sizes = [size for size in range(2, n_embd + 1, 2) if n_embd % size == 0] or [n_embd]
    return n_embd // min(sizes, key=lambda size: (abs(size - wanted), size))


def choose_settings(
    operations: float,
    text: Text,
    given: dict[str, Any],
    seconds: float,
    held_out: float = VAL_FRACTION,
) -> ChosenSettings:
    """Settings for a budget of operations and a text. `given` are the values that the user set.

    `held_out` is the share of the text that is kept for validation.

    The main rules:
    - The network grows with the operations, up to about 6 parameters per character of the text.
    - The more often the text is repeated, the higher the dropout.
    - The longer the training, the larger the batch.
    - A text of over 4 million characters gets subwords under three conditions. With characters as
      tokens, the run would read less than 60 % of the text. The text has less than 1.5 bytes per
      character. The encoding as subwords takes less than a fifth of the `seconds` of the run.
    - A validation split whose evaluation would take too long becomes smaller. A run whose number of
      steps the user set has no time limit, so its split keeps its size."""
    characters = max(1.0, text.characters * (1 - held_out))
    wanted, most = best_size(operations), _MAX_PARAMETERS_PER_CHARACTER * characters
    fixed = {
        key: int(given[f"model.{key}"]) for key in ("n_layer", "n_embd") if f"model.{key}" in given
    }
    n_head = given.get("model.n_head")
    networks = NETWORKS if wanted <= most else DEEP_NETWORKS
    n_layer, n_embd = network_of_size(min(wanted, most), networks, **fixed)
    if n_head is not None and "n_embd" not in fixed:
        pair = 2 * int(n_head)  # rotary positions need an even number of channels per head
        n_embd = max(pair, pair * round(n_embd / pair))
    tokens = operations / (6 * block_parameters(n_layer, n_embd))
    kind, why = _tokenizer_for(text, tokens, characters, seconds)
    kind = given.get("tokenizer.kind", kind)
    characters_per_token = _characters_per_token(kind, text)
    epochs = tokens * characters_per_token / characters
    if "train.max_steps" not in given and epochs > _MOST_EPOCHS:
        tokens, epochs = tokens * _MOST_EPOCHS / epochs, _MOST_EPOCHS
    contexts = _CONTEXTS_REPEATED if epochs > _EPOCHS_WITHOUT_DROPOUT else _CONTEXTS
    block_size = next(size for least, size in contexts if tokens >= least)
    block_size = min(
        block_size, max(4, 2 ** int(math.log2(max(4.0, characters / characters_per_token / 4))))
    )
    block_size = int(given.get("model.block_size", block_size))
    grows = _STEP_GROWS_SHORT if tokens < _STEP_AT_TOKENS else _STEP_GROWS_LONG
    tokens_per_step = _TOKENS_PER_STEP * (tokens / _STEP_AT_TOKENS) ** grows
    batch_size = max(4, 2 ** round(math.log2(max(1.0, tokens_per_step / block_size))))
    in_text = characters / characters_per_token / block_size  # sequences
    batch_size = max(1, min(batch_size, int(in_text / _LEAST_STEPS_PER_EPOCH)))
    values: dict[str, Any] = {
        "tokenizer.kind": kind,
        "model.n_layer": n_layer,
        "model.n_head": n_head if n_head is not None else heads_for(n_embd),
        "model.n_embd": n_embd,
        "model.block_size": block_size,
        "model.dropout": dropout_for(epochs),
        "train.batch_size": batch_size,
        "train.average": average_for(epochs),
    }
    if kind == "bpe":
        values["tokenizer.vocab_size"] = 2048
    if "train.max_steps" not in given and epochs > _MANY_EPOCHS:
        values["train.max_epochs"] = _MOST_EPOCHS
    val_tokens = max(_LEAST_VAL_WINDOWS * block_size, _VAL_TOKENS * tokens)
    share = val_tokens * characters_per_token / max(1, text.characters)
    if share < held_out and "train.max_steps" not in given:
        values["data.val_fraction"] = float(f"{share:.1g}")
    fits = "the size that fits the time" if wanted <= most else "not larger: the text is short"
    reasons = {"tokenizer": why, "model": fits}
    if "data.val_fraction" in values:
        reasons["data"] = "a larger validation split would take too much of the time"
    chosen = {key: value for key, value in values.items() if key not in given}
    touched = {key.partition(".")[0] for key in chosen if key != "model.dropout"}
    return ChosenSettings(chosen, {key: why for key, why in reasons.items() if key in touched})


def _characters_per_token(kind: str, text: Text) -> float:
    if kind in ("bpe", "gpt2"):
        return _CHARACTERS_PER_SUBWORD
    return text.characters / max(1, text.bytes) if kind == "byte" else 1.0


def _tokenizer_for(text: Text, tokens: float, characters: float, seconds: float) -> tuple[str, str]:
    """The kind of tokenizer, and the reason for it."""
    too_long = characters > _LONG_TEXT and tokens < _MIN_EPOCHS * characters
    alphabet = text.bytes < _ALPHABET_BYTES * max(1, text.characters)
    quick = text.bytes / _SUBWORD_BYTES_PER_SECOND < _MOST_PREPARATION * seconds
    if too_long and alphabet and quick:
        return "bpe", "the text is too long to be read as characters"
    if text.different > _MAX_CHAR_VOCABULARY:
        return "byte", f"{text.different:,} different characters are too many"
    if too_long and alphabet:
        return "char", "finding subwords in this long text would take too much of the time"
    return "char", counted(text.different, "different character")
