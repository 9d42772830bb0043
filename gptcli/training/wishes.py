"""What the user can ask for at any moment of a training: a sample, an evaluation or a checkpoint.

The loop fulfils a wish between two steps. A wish does not change the weights or later decisions of
the run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Literal, TypeAlias

from gptcli.corpus import TokenStore
from gptcli.events import Event, ExtraEvaluation, Notice
from gptcli.training.evaluate import loss_by_text

Wish = Literal["sample", "evaluate", "checkpoint"]
Wishes: TypeAlias = Callable[[], Collection[Wish]]
"""Returns the user's wishes since the previous call."""


def no_wishes() -> Collection[Wish]:
    """No wishes, for a run without a user interface."""
    return ()


def extra_evaluation(
    step: int,
    val: TokenStore | None,
    loss_on: Callable[[TokenStore], float | None],
    should_stop: Callable[[], bool],
) -> Iterator[Event]:
    """Yield the validation loss after `step` steps, or a Notice that says why there is none.

    `val` is None if the run has no validation text. `loss_on` returns None if it stopped early.
    If `should_stop` ended the evaluation, yields nothing."""
    if val is None:
        yield Notice("there is no validation text to evaluate on (data.val_fraction=0)")
        return
    loss, _ = loss_by_text(val, loss_on)
    if loss is not None:
        yield ExtraEvaluation(step, loss)
    elif not should_stop():
        yield Notice(f"step {step}: the time is over, so this step is not evaluated")
