"""`--minutes M`: chooses network, batch size, dropout and number of steps for the time and text.

The choice is a function of two numbers: how many operations the machine can do in the time, and how
long the text is. The rules were fitted on our runs: benchmarks/DIAL.md has the runs and the plot.
Dimensions: N parameters of the blocks, B batch, T context length, C channels.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

from gptcli.config import Config
from gptcli.corpus.sources import find_source
from gptcli.devices import choose_device, choose_dtype, choose_threads
from gptcli.errors import GptcliError
from gptcli.model.user_parts import UserParts
from gptcli.training.cost import matrix_parameters
from gptcli.training.estimate import seconds_per_step
from gptcli.training.passes import choose_engine
from gptcli.training.setup import open_text, resolve

NETWORKS = (
    (2, 64), (2, 96), (2, 128), (3, 128), (4, 128), (4, 192), (5, 256), (6, 320), (6, 384),
    (8, 512), (10, 640), (12, 768),
)  # fmt: skip
"""(n_layer, n_embd) of the networks that can be chosen."""

# Fitted in benchmarks/DIAL.md.
_BEST_SIZE, _AT_OPERATIONS, _SIZE_GROWS = 1.6e6, 3.3e13, 0.55
_MAX_PARAMETERS_PER_CHARACTER = 6.0
_OVERFIT_EPOCHS = 100.0

_REFERENCE = (4, 128, 256, 8)  # n_layer, n_embd, T, B of the step that measures the machine's speed
_EPOCHS_WITHOUT_DROPOUT, _DROPOUT_PER_DOUBLING, _MAX_DROPOUT = 2.7, 0.05, 0.4
_TOKENS_PER_STEP = 2048  # for a training of 3 million tokens
_MAX_CHAR_VOCABULARY = 256  # a text with more different characters gets a bpe tokenizer
_CHARACTERS_PER_SUBWORD = 2.5
_LONG_TEXT, _MIN_EPOCHS = (
    4e6,
    0.6,
)  # a longer text with fewer epochs gets a bpe tokenizer
_SAMPLED_CHARACTERS = 500_000  # from the beginning of the text

_SECONDS_AT_END = 0.5  # to save and exit
_SAVE_SECONDS = 0.15  # for the checkpoint after an evaluation
_MIN_STEPS = 20


def dropout_for(epochs: float) -> float:
    """Dropout for a text that is read `epochs` times.

    It is 0 up to 2.7 epochs. Each doubling of the epochs then adds 0.05, up to 0.4."""
    doublings = math.log2(max(1.0, epochs / _EPOCHS_WITHOUT_DROPOUT))
    return min(_MAX_DROPOUT, round(_DROPOUT_PER_DOUBLING * doublings, 2))


@dataclass(frozen=True)
class ChosenSettings:
    """The chosen values by dotted key, and the reason for each."""

    values: dict[str, Any]
    reasons: list[str]


def best_size(operations: float) -> float:
    """The best N for a budget of operations (6 per parameter and token)."""
    return _BEST_SIZE * float((operations / _AT_OPERATIONS) ** _SIZE_GROWS)


def block_parameters(n_layer: int, n_embd: int) -> float:
    """The approximate number of parameters in the blocks of an `arch: modern` network."""
    return 12.0 * n_layer * n_embd**2


def network_of_size(parameters: float) -> tuple[int, int]:
    """(n_layer, n_embd) of the network in NETWORKS whose N / `parameters` is nearest to 1."""
    return min(NETWORKS, key=lambda s: abs(math.log(block_parameters(*s) / parameters)))


def choose_settings(operations: float, characters: float, different: int) -> ChosenSettings:
    """Settings for a budget of operations and a text of `characters` characters.

    `different` is the number of different characters. The rules:
    - The network grows with the operations, up to 6 parameters per character of the text.
    - The more often the text is repeated, the higher the dropout.
    - The longer the training, the larger the batch.
    - A text that is too long to be read once as characters gets a bpe tokenizer."""
    wanted, most = best_size(operations), _MAX_PARAMETERS_PER_CHARACTER * characters
    n_layer, n_embd = network_of_size(min(wanted, most))
    tokens = operations / (6 * block_parameters(n_layer, n_embd))
    too_long = characters > _LONG_TEXT and tokens < _MIN_EPOCHS * characters
    kind = "bpe" if different > _MAX_CHAR_VOCABULARY or too_long else "char"
    characters_per_token = 1.0 if kind == "char" else _CHARACTERS_PER_SUBWORD
    epochs = tokens * characters_per_token / characters
    dropout = dropout_for(epochs)
    block_size = 256 if tokens > 256 * 4000 else 128
    block_size = min(
        block_size, max(4, 2 ** int(math.log2(max(4.0, characters / characters_per_token / 4))))
    )
    tokens_per_step = _TOKENS_PER_STEP * (tokens / 3e6) ** 0.25
    batch_size = max(4, 2 ** round(math.log2(tokens_per_step / block_size)))
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
    fits = "the size that fits the time" if wanted <= most else "not larger: the text is short"
    reasons = [
        f"{size}: {fits}",
        f"tokenizer {kind}: "
        + (
            f"{different} different characters"
            if kind == "char"
            else "the text is too long to be read as characters"
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
    """The config whose training ends `minutes` after `begun`, and the reasons for each choice.

    `begun` is a value of time.perf_counter(). The dotted keys in `asked` keep their values. With
    `keep`, only max_steps is chosen. Raises GptcliError if the time is too short."""
    if "train.max_steps" in asked:
        raise GptcliError(
            "--minutes and train.max_steps cannot both be given", "leave one of them out"
        )
    choose_threads(config.run.threads)
    end = begun + 60 * minutes - _SECONDS_AT_END
    reasons: list[str] = []
    if not keep:
        config, reasons = _choose_for_text(config, asked, end)
    corpus = open_text(config, user_parts=user_parts)
    has_user_parts = user_parts is not None and user_parts.in_network()
    budget = min(2.0, 0.05 * (end - begun))
    step_seconds = _measure(
        resolve(config, corpus, has_user_parts=has_user_parts),
        corpus.tokenizer.vocab_size,
        user_parts,
        budget,
    )
    tokens_per_step = config.tokens_per_step
    val_steps = (len(corpus.val) if corpus.val else 0) / 3 / tokens_per_step
    evaluation_seconds = val_steps * step_seconds + _SAVE_SECONDS
    remaining = end - time.perf_counter()
    steps = int(remaining / step_seconds)
    while steps >= _MIN_STEPS:
        candidate = with_values(config, {"train.max_steps": steps})
        every = int(resolve(candidate, corpus, has_user_parts=has_user_parts).train.eval_every)
        over = steps * step_seconds + math.ceil(steps / every) * evaluation_seconds - remaining
        if over <= 0:
            break
        steps -= max(1, int(over / step_seconds))
    else:
        passed = 60 * minutes - remaining
        raise GptcliError(
            f"{minutes:g} minutes are too short: preparation took {passed:.0f} s, and a step takes "
            f"{step_seconds:.2g} s on this machine",
            f"--minutes {math.ceil(passed / 20 + _MIN_STEPS * step_seconds / 10) / 2:g}",
        )
    epochs = steps * tokens_per_step / len(corpus.train)
    read = f"; the text is read {epochs:,.3g} times"
    if not keep and "model.dropout" not in asked:
        candidate = with_values(candidate, {"model.dropout": dropout_for(epochs)})
        if candidate.model.dropout:
            read += f", so dropout is {candidate.model.dropout}"
    milliseconds = 1e3 * step_seconds
    reasons.append(f"{steps:,} steps of {milliseconds:.3g} ms, measured on this machine{read}")
    if epochs > _OVERFIT_EPOCHS:
        reasons.append(
            f"the text is small: it will be read {epochs:,.0f} times, so the model will overfit; "
            "`gptcli sample` uses the checkpoint with the lowest validation loss, and more text "
            "helps more than more minutes"
        )
    return candidate, [f"--minutes {minutes:g}: {reason}" for reason in reasons]


def _choose_for_text(config: Config, asked: set[str], end: float) -> tuple[Config, list[str]]:
    """The config with settings for this machine and text. The keys in `asked` keep their values."""
    source = find_source(config.data)
    start, characters = source.beginning(_SAMPLED_CHARACTERS)
    characters *= 1 - config.data.held_out
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
    step_seconds = _measure(reference, 96, None, seconds=0.8)
    operations_per_second = 6.0 * matrix_parameters(reference, 96) * B * T / step_seconds
    operations = operations_per_second * max(1.0, end - time.perf_counter())
    chosen = choose_settings(operations, characters, len(set(start)))
    values = {key: value for key, value in chosen.values.items() if key not in asked}
    return with_values(config, values), chosen.reasons


def _measure(
    config: Config, vocab_size: int, user_parts: UserParts | None, seconds: float | None = None
) -> float:
    """Seconds per step, measured on this machine."""
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
    """The config with `values`, by dotted key. Raises ValidationError if they do not fit."""
    tree = config.model_dump()
    for key, value in values.items():
        section, _, name = key.partition(".")
        tree[section][name] = value
    return Config.model_validate(tree)
