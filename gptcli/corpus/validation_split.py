"""The validation split: where training tokens end, and errors for texts that are too short."""

from __future__ import annotations

import math

from gptcli.errors import GptcliError

LEAST_VALIDATION = 2
"""Tokens that an evaluation needs: one as input and one to predict."""


def train_tokens(tokens: int, val_fraction: float) -> int:
    """The number of training tokens. The tokens after them, to the end, are for validation."""
    return int(tokens * (1 - val_fraction))


def check_split(name: str, tokens: int, val_fraction: float, block_size: int) -> int:
    """The number of training tokens of the text `name` with `tokens` tokens.

    Training needs block_size + 1 tokens: a window and the token after it. Validation needs 2, or
    none if val_fraction is 0. Raises GptcliError if a split is too short; its hint proposes values
    that work."""
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
    """A val_fraction with two digits that leaves `train` tokens for training.

    The value is rounded. If `down`, it leaves at least `train` tokens, else at most `train`."""
    exact = 1 - train / tokens
    scale = 10.0 ** (1 - math.floor(math.log10(exact)))  # two significant digits
    exact_units = round(exact * scale, 6)  # 20.000000000002 is 20
    units = math.floor(exact_units) if down else math.ceil(exact_units)
    # train_tokens also rounds, so the result can be off by one token. One more unit corrects it.
    found = train_tokens(tokens, units / scale)
    if found < train if down else found > train:
        units += -1 if down else 1
    return units / scale


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count} tokens"
