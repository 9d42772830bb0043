"""Detects a network that no longer learns: the norm of its gradient is exactly 0."""

from __future__ import annotations

_STEPS = 5


class ZeroGradients:
    """Takes the gradient norm of each step, and reports if it stays 0.

    A learning rate that is far too high can make every unit of the network constant. Then the loss
    is finite, and nothing else looks wrong."""

    def __init__(self) -> None:
        self._in_a_row = 0

    def begin(self, grad_norm: float) -> bool:
        """Whether this is exactly the fifth step in a row with a gradient norm of 0."""
        self._in_a_row = self._in_a_row + 1 if grad_norm == 0 else 0
        return self._in_a_row == _STEPS


def still(step: int, learning_rate: float | str) -> str:
    """The note for the user that the network no longer learns."""
    return (
        f"step {step}: the norm of the gradient has been exactly 0 for {_STEPS} steps, so the "
        "network no longer learns. The learning rate is probably too high: its highest value is "
        f"{learning_rate} (train.learning_rate)"
    )
