"""The validation split: chooses the tokens for validation, and refuses texts that are too short."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptcli.corpus.token_store import TokenStore
from gptcli.errors import GptcliError
from gptcli.plurals import agreeing

Ranges = NDArray[np.int64]
"""Ranges [start, stop) of tokens in rising order: int64 (n, 2)."""

LEAST_VALIDATION = 2
"""The smallest number of tokens for an evaluation: one is the input, and one is predicted."""


def train_tokens(tokens: int, val_fraction: float) -> int:
    """The number of training tokens at the beginning of a text.

    All later tokens are for validation."""
    return int(tokens * (1 - val_fraction))


def check_split(name: str, tokens: int, val_fraction: float, block_size: int) -> int:
    """The number of training tokens, after a check that both splits are long enough.

    `tokens` is the number of all tokens of the text `name`. Training needs block_size + 1 tokens:
    a window and the token after it. Validation needs 2 tokens, or none if val_fraction is 0.
    Raises GptcliError if one of the two splits is too short. The hint of the error proposes other
    values, if any can help, and a longer text."""
    train = train_tokens(tokens, val_fraction)
    validation = tokens - train
    if train < block_size + 1:
        part = "it" if val_fraction == 0 else "its training split"
        raise GptcliError(
            f"{name} is too short: {part} has {_tokens(train)}, and block_size = {block_size} "
            f"needs {block_size + 1}",
            _ways_to_train(tokens, val_fraction, block_size),
        )
    if val_fraction > 0 and validation < LEAST_VALIDATION:
        message = (
            f"{name} has no validation split: data.val_fraction = {val_fraction} leaves "
            f"{_tokens(validation)} of {tokens} for it, but {LEAST_VALIDATION} are needed"
        )
        raise GptcliError(message, _ways_to_validate(tokens, block_size))
    return train


def check_validation(names: list[str], tokens: int) -> None:
    """Raise GptcliError if the texts `names` of data.val_source have too few tokens."""
    if tokens < LEAST_VALIDATION:
        raise GptcliError(
            f"the validation text {', '.join(names)} is too short: it has {_tokens(tokens)}, and "
            f"{LEAST_VALIDATION} are needed",
            "name a longer text with data.val_source",
        )


def split_documents(
    starts: NDArray[Any], tokens: int, val_fraction: float
) -> tuple[Ranges, Ranges]:
    """The ranges of tokens for training, and the ranges of tokens for validation.

    If the text has many documents, both splits have tokens from all parts of the text.

    `starts` has the position at which each document begins, in rising order. Of each long
    document, the end is for validation: val_fraction of its tokens. A document is long if it has
    more tokens than a twentieth of all validation tokens, and if its end has at least 2 tokens. The
    short documents are put into a fixed random order. The first of them are for validation, until
    they have about val_fraction of the tokens of all short documents."""
    starts = np.asarray(starts, dtype=np.int64)
    stops = np.append(starts[1:], tokens).astype(np.int64)
    lengths = stops - starts
    tails = lengths - (lengths * (1 - val_fraction)).astype(np.int64)
    validation = tokens - train_tokens(tokens, val_fraction)
    long = (lengths * _LONG > validation) & (tails >= LEAST_VALIDATION)
    from_ = np.where(long, stops - tails, stops)  # first validation token of each document
    short = np.flatnonzero(~long)
    order = short[np.argsort(_shuffled(short), kind="stable")]
    filled = np.cumsum(lengths[order])
    # The first documents of `order` are chosen. The last of them is chosen only if it brings the
    # number of chosen tokens nearer to the wanted number.
    chosen = order[filled - lengths[order] / 2 <= lengths[order].sum() * val_fraction]
    from_[chosen] = starts[chosen]
    return _ranges(starts, from_), _ranges(from_, stops)


def unlike_note(
    train: TokenStore, val: TokenStore, vocab_size: int, *, own: bool, documents: int
) -> list[str]:
    """A note for the user, in a list, if the validation tokens are unlike the training tokens.

    `own` says whether the user named a validation text. `documents` is the number of documents."""
    there, parts, spread = distances(train, val, vocab_size)
    if there < _MOST + _TIMES * parts and there < _MOST_SORTED + _TIMES * spread:
        return []
    if own:
        return [
            "data.val_source is unlike the training text, so the validation loss says little about "
            "the training"
        ]
    if documents > 1:
        advice = "data.val_split=documents mixes the documents"
    else:
        advice = "mix the text, or name your own validation text with data.val_source"
    return [f"the validation part, the end of the text, is unlike the rest: {advice}"]


def distances(train: TokenStore, val: TokenStore, vocab_size: int) -> tuple[float, float, float]:
    """How far three samples of a text are from the training text, in nats per token.

    The first sample is from the validation tokens. The second is from one of nine parts of the
    training tokens. Each part gives such a sample, and the median of their distances is returned.
    The third sample is spread over all training tokens. The distance is the relative entropy
    between the token frequencies of a sample and those of samples from eight other parts. All
    samples have the same number of tokens, because a smaller sample has a larger distance. In a
    sorted text, all parts are far from each other, and only the third sample is near. All distances
    are 0 if the text is too short to compare."""
    each = min(_SAMPLE, len(val), len(train) // _PARTS)
    if each < _LEAST_SAMPLE:
        return 0.0, 0.0, 0.0
    size = len(train) // _PARTS
    parts = np.stack(
        [_counts(train, part * size, size, each, vocab_size) for part in range(_PARTS)]
    )
    whole = parts.sum(axis=0)
    there = _counts(val, 0, len(val), each, vocab_size)
    spread = _counts(train, 0, len(train), each, vocab_size, places=128)
    # A part is compared with the other 8 parts. So these two samples are compared with 8 parts.
    return (
        _relative_entropy(there, whole - parts[-1]),
        float(np.median([_relative_entropy(part, whole - part) for part in parts])),
        _relative_entropy(spread, whole - parts[-1]),
    )


_PARTS = 9
_SAMPLE = 1 << 15
_LEAST_SAMPLE = 1000

# Measured on texts in three languages, on code and on documentation of 5 KB to 1 MB, with char,
# byte and bpe tokens. If the whole text is of one kind, the distance of the validation tokens is at
# most 1.9 times the distance of a part. If the text ends in another language or with text of
# another kind, the distance of the validation tokens is 2.9 to 65 times the distance of a part.
_MOST, _TIMES, _MOST_SORTED = 0.05, 2.5, 0.2


def _counts(
    store: TokenStore, start: int, size: int, count: int, vocab_size: int, places: int = 8
) -> Any:
    """How often each token occurs in about `count` tokens, which are read at `places` places."""
    length = count // min(places, count)
    firsts = np.linspace(start, start + size - length, min(places, count)).astype(int)
    tokens = np.concatenate([store.read(int(first), length) for first in firsts])
    return np.bincount(tokens, minlength=vocab_size).astype(np.float64)


def _relative_entropy(part: Any, whole: Any) -> float:
    p = (part + 0.5 * (part + whole > 0)) / (part + 0.5 * (part + whole > 0)).sum()
    q = (whole + 0.5 * (part + whole > 0)) / (whole + 0.5 * (part + whole > 0)).sum()
    used = p > 0
    return float((p[used] * np.log(p[used] / q[used])).sum())


_LONG = 20  # a long document has more than 1 / 20 of all validation tokens


def _ranges(starts: NDArray[np.int64], stops: NDArray[np.int64]) -> Ranges:
    """The ranges [start, stop) without empty ones.

    Ranges that touch each other become one range."""
    kept = starts < stops
    starts, stops = starts[kept], stops[kept]
    apart = np.flatnonzero(stops[:-1] != starts[1:]) + 1
    return (
        np.stack([starts[np.append([0], apart)], np.append(stops[apart - 1], stops[-1:])], axis=1)
        if len(starts)
        else np.zeros((0, 2), np.int64)
    )


def _shuffled(numbers: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Turn each of `numbers` into a pseudo-random number, by SplitMix64.

    The result is the same on every machine."""
    z = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    found: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return found


def _ways_to_train(tokens: int, val_fraction: float, block_size: int) -> str:
    train = train_tokens(tokens, val_fraction)
    ways = []
    if train >= 2:
        ways.append(f"lower model.block_size to {train - 1}")
    if val_fraction > 0 and tokens - LEAST_VALIDATION >= block_size + 1:
        ways.append(f"lower data.val_fraction to {_fraction(tokens, block_size + 1, down=True)}")
    elif val_fraction > 0 and tokens >= block_size + 1:
        ways.append("set data.val_fraction to 0")
    return ", ".join([*ways, "or use a longer text"]) if ways else "use a longer text"


def _ways_to_validate(tokens: int, block_size: int) -> str:
    without = "data.val_fraction to 0 to train without validation"
    fraction = _fraction(tokens, tokens - LEAST_VALIDATION)
    train = train_tokens(tokens, fraction)
    if train < 2:
        return f"use a longer text, or set {without}"
    lower = f" and lower model.block_size to {train - 1}" if train < block_size + 1 else ""
    return f"raise data.val_fraction to {fraction}{lower}, or set {without}"


def _fraction(tokens: int, train: int, *, down: bool = False) -> float:
    """A val_fraction with two significant digits that leaves about `train` tokens for training.

    It leaves at least `train` tokens if `down` is true, and at most `train` tokens if not."""
    exact = 1 - train / tokens
    scale = 10.0 ** (1 - math.floor(math.log10(exact)))  # two significant digits
    exact_units = round(exact * scale, 6)  # counts 20.000000000002 as 20
    units = math.floor(exact_units) if down else math.ceil(exact_units)
    # train_tokens also rounds, so the result can be wrong by one token. Then one unit more (less
    # if `down` is true) is right.
    found = train_tokens(tokens, units / scale)
    if found < train if down else found > train:
        units += -1 if down else 1
    return units / scale


def _tokens(count: int) -> str:
    return f"{count} {agreeing(count, 'token')}"
