"""`gptcli train TEXT --minutes M`: the network, batch and steps that make the most of the time.

Dimensions: N parameters of the blocks, B batch, T context, C channels. What is chosen is a function
of two numbers: the operations that the machine can do in the time, and the size of the text. The
rules were fitted on our own runs; benchmarks/DIAL.md has the runs and the plot.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gptcli.config import Config
from gptcli.corpus.sources import Source, find_source
from gptcli.devices import choose_device, choose_dtype, choose_threads
from gptcli.errors import GptcliError
from gptcli.model.user_parts import UserParts
from gptcli.training.cost import matrix_parameters
from gptcli.training.estimate import seconds_per_step
from gptcli.training.passes import choose_engine
from gptcli.training.setup import open_text, resolve

LADDER = (
    (2, 64), (2, 96), (2, 128), (3, 128), (4, 128), (4, 192), (5, 256), (6, 320), (6, 384),
    (8, 512), (10, 640), (12, 768),
)  # fmt: skip
"""(n_layer, n_embd) of the networks to choose from."""

# Fitted: benchmarks/DIAL.md.
_BEST_SIZE, _AT_OPERATIONS, _SIZE_GROWS = 1.6e6, 3.3e13, 0.55
_FILL = 6.0  # parameters of the blocks for each character of the text, at most
_BY_HEART_EPOCHS = 100.0

_REFERENCE = (4, 128, 256, 8)  # n_layer, n_embd, T, B: the step whose speed stands for the machine
_EPOCHS_UNDROPPED, _DROPOUT_GROWS, _MOST_DROPOUT = 2.7, 0.05, 0.4
_STEP_TOKENS = 2048  # for some three million tokens in all
_MOST_CHARACTERS = 256  # different ones, with which a token is a character
_CHARACTERS_A_TOKEN = 2.5  # of a bpe
_LONG, _READ = 4e6, 0.6  # characters of a text that is read at least so often, or in pieces
_LOOKED_AT = 500_000  # characters of the text

_AT_THE_END = 0.5  # seconds to save, and to leave
_SAVING = 0.15  # seconds for the checkpoint that may follow an evaluation
_FEWEST_STEPS = 20


def dropout_for(epochs: float) -> float:
    """The share to drop where the text is read so many times: more with each doubling."""
    doublings = math.log2(max(1.0, epochs / _EPOCHS_UNDROPPED))
    return min(_MOST_DROPOUT, round(_DROPOUT_GROWS * doublings, 2))


@dataclass(frozen=True)
class ChosenSettings:
    """A choice, as dotted keys, and why."""

    values: dict[str, Any]
    reasons: list[str]


def best_size(operations: float) -> float:
    """The best N for a budget of operations: 6 for each parameter and token of the training."""
    return _BEST_SIZE * float((operations / _AT_OPERATIONS) ** _SIZE_GROWS)


def block_parameters(n_layer: int, n_embd: int) -> float:
    """N of a modern network, nearly."""
    return 12.0 * n_layer * n_embd**2


def shape_of(parameters: float) -> tuple[int, int]:
    """The network of the ladder whose N is nearest, as a ratio."""
    return min(LADDER, key=lambda s: abs(math.log(block_parameters(*s) / parameters)))


def choose_settings(operations: float, characters: float, different: int) -> ChosenSettings:
    """What to train with so many operations on a text of so many characters, of which so many
    are different. The network grows with the operations, but no further than the text can fill;
    a text that is read again and again is dropped in part; larger steps where there are many.
    A text that is too long to be read once is read in pieces of words."""
    wanted, room = best_size(operations), _FILL * characters
    n_layer, n_embd = shape_of(min(wanted, room))
    tokens = operations / (6 * block_parameters(n_layer, n_embd))
    too_long = characters > _LONG and tokens < _READ * characters
    kind = "bpe" if different > _MOST_CHARACTERS or too_long else "char"
    each = 1.0 if kind == "char" else _CHARACTERS_A_TOKEN
    epochs = tokens * each / characters
    dropout = dropout_for(epochs)
    block_size = 256 if tokens > 256 * 4000 else 128
    block_size = min(block_size, max(4, 2 ** int(math.log2(max(4.0, characters / each / 4)))))
    batch_size = max(4, 2 ** round(math.log2(_STEP_TOKENS * (tokens / 3e6) ** 0.25 / block_size)))
    values = {
        "tokenizer.kind": kind,
        "model.n_layer": n_layer,
        "model.n_embd": n_embd,
        "model.n_head": n_embd // (64 if n_embd % 64 == 0 and n_embd > 64 else 32),
        "model.block_size": block_size,
        "model.dropout": dropout,
        "train.batch_size": batch_size,
    }
    if kind == "bpe":
        values["tokenizer.vocab_size"] = 2048
    size = f"{n_layer} layers, {n_embd} wide"
    fits = "the size that fits the time" if wanted <= room else "all that so short a text can fill"
    reasons = [
        f"{size}: {fits}",
        f"tokenizer {kind}: "
        + (
            f"{different} different characters"
            if kind == "char"
            else "the text is too long to be read by characters"
            if too_long
            else "many different characters"
        ),
        f"{batch_size} x {block_size} tokens a step",
    ]
    return ChosenSettings(values, reasons)


def fit_to_minutes(
    config: Config,
    asked: set[str],
    *,
    keep: bool,
    minutes: float,
    begun: float,
    user_parts: UserParts | None,
) -> tuple[Config, list[str]]:
    """The config with which a training that began at time.perf_counter() `begun` ends `minutes`
    later, and what was chosen and why. The dotted keys in `asked` stay as they are; with `keep`
    all do but the number of steps. Raises GptcliError where the time is too short."""
    if "train.max_steps" in asked:
        raise GptcliError(
            "--minutes chooses train.max_steps, which is given too", "leave one of them out"
        )
    choose_threads(config.run.threads)
    end = begun + 60 * minutes - _AT_THE_END
    reasons: list[str] = []
    if not keep:
        config, reasons = _fill_in(config, asked, end)
    corpus = open_text(config, user_parts=user_parts)
    has_user_parts = user_parts is not None and user_parts.in_network()
    patience = min(2.0, 0.05 * (end - begun))
    step = _measure(
        resolve(config, corpus, has_user_parts=has_user_parts),
        corpus.tokenizer.vocab_size,
        user_parts,
        patience,
    )
    tokens_per_step = config.train.batch_size * config.train.grad_accum * config.model.block_size
    evaluation = (len(corpus.val) if corpus.val else 0) / 3 / tokens_per_step * step + _SAVING
    left = end - time.perf_counter()
    steps = int(left / step)
    while steps >= _FEWEST_STEPS:
        tried = with_values(config, {"train.max_steps": steps})
        every = int(resolve(tried, corpus, has_user_parts=has_user_parts).train.eval_every)
        over = steps * step + math.ceil(steps / every) * evaluation - left
        if over <= 0:
            break
        steps -= max(1, int(over / step))
    else:
        raise GptcliError(
            f"{minutes:g} minutes are too short: {60 * minutes - left:.0f} s had passed when the "
            f"training could begin, and a step takes {step:.2g} s here",
            f"--minutes {math.ceil((60 * minutes - left) / 20 + _FEWEST_STEPS * step / 10) / 2:g}",
        )
    epochs = steps * tokens_per_step / len(corpus.train)
    read = f"; the text is read {epochs:,.3g} times"
    if not keep and "model.dropout" not in asked:
        tried = with_values(tried, {"model.dropout": dropout_for(epochs)})
        if tried.model.dropout:
            read += f", so dropout is {tried.model.dropout}"
    reasons.append(f"{steps:,} steps of {1e3 * step:.3g} ms, measured on this machine{read}")
    if epochs > _BY_HEART_EPOCHS:
        reasons.append(
            f"the text is small: it will be read {epochs:,.0f} times and learned by heart; "
            "sampling takes the checkpoint of the lowest validation loss, and more text helps "
            "more than more minutes"
        )
    return tried, [f"--minutes {minutes:g}: {reason}" for reason in reasons]


def _fill_in(config: Config, asked: set[str], end: float) -> tuple[Config, list[str]]:
    """The choice for this machine and text in all keys that were not asked for."""
    source = find_source(config.data.source)
    start = "".join(_first_characters(source, _LOOKED_AT))
    bytes_each = len(start.encode("utf-8", "replace")) / max(1, len(start))
    characters = source.size / bytes_each * (1 - config.data.val_fraction)
    n_layer, n_embd, T, B = _REFERENCE
    reference = with_values(
        config,
        {
            "model.n_layer": n_layer,
            "model.n_embd": n_embd,
            "model.n_head": n_embd // 64,
            "model.block_size": T,
            "train.batch_size": B,
        },
    )
    step = _measure(reference, 96, None, seconds=0.8)
    speed = 6.0 * matrix_parameters(reference, 96) * B * T / step
    chosen = choose_settings(
        speed * max(1.0, end - time.perf_counter()), characters, len(set(start))
    )
    values = {key: value for key, value in chosen.values.items() if key not in asked}
    return with_values(config, values), chosen.reasons


def _first_characters(source: Source, count: int) -> Iterator[str]:
    """Pieces of the text until `count` characters have come."""
    for piece in source.pieces():
        yield piece.text
        count -= len(piece.text)
        if count <= 0:
            return


def _measure(
    config: Config, vocab_size: int, user_parts: UserParts | None, seconds: float | None = None
) -> float:
    device = choose_device(config.run.device)
    dtype = choose_dtype(config.run.dtype, device)
    engine, _ = choose_engine(
        config,
        device,
        dtype,
        compiled=config.run.compile is True,
        has_user_parts=user_parts is not None and user_parts.in_network(),
    )
    return seconds_per_step(config, vocab_size, dtype, device, engine, user_parts, seconds)


def with_values(config: Config, values: dict[str, Any]) -> Config:
    """The config with other values, by dotted key; all its rules are checked again."""
    tree = config.model_dump()
    for key, value in values.items():
        section, _, name = key.partition(".")
        tree[section][name] = value
    return Config.model_validate(tree)
