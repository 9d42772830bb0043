"""Makes the records of metrics.jsonl: one for each logged step, each evaluation and each new plan.
Also makes the records of attention.jsonl: one for each evaluation.
"""

from __future__ import annotations

import base64
import math
from typing import Any

from gptcli.events import Evaluated, Event, LookedInside, Replanned, StepDone

Record = dict[str, str | int | float | list[float | None] | dict[str, float | None] | None]


def metrics_record(event: Event) -> Record | None:
    """The record of a logged step, an evaluation or a new plan; None for every other event.

    Losses are in nats per token, in full precision. Seconds are counted from step 0 and rounded to
    milliseconds. A value that is not finite becomes None, because JSON has neither nan nor
    infinity.
    """
    if isinstance(event, StepDone):
        if not event.logged:
            return None
        record: Record = {
            "kind": "step",
            "step": event.step,
            "tokens": event.tokens,
            "seconds": _rounded(event.seconds, 3),
            "loss": _finite(event.loss),
            "learning_rate": _six_digits(event.learning_rate),
            "grad_norm": _six_digits(event.grad_norm),
            "tokens_per_second": _rounded(event.tokens_per_second, 1),
        }
        if event.part_norms:
            record["part_norms"] = [_short(norm) for norm in event.part_norms]
        return record
    if isinstance(event, Evaluated):
        record = {
            "kind": "eval",
            "step": event.step,
            "tokens": event.tokens,
            "seconds": _rounded(event.seconds, 3),
            "val_loss": _finite(event.val_loss),
        }
        if event.by_text:
            record["val_losses"] = {name: _finite(loss) for name, loss in event.by_text}
        return record
    if isinstance(event, Replanned):
        return {"kind": "plan", "step": event.step, "max_steps": event.max_steps}
    return None


def passage_record(event: LookedInside) -> dict[str, Any]:
    """The record that attention.jsonl gets after an evaluation.

    Each map is base64 of its lower triangle, row by row."""
    return {
        "step": event.step,
        "ids": list(event.ids),
        "losses": [_finite(loss) for loss in event.losses],
        "maps": [[base64.b64encode(one).decode("ascii") for one in layer] for layer in event.maps],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _rounded(value: float, digits: int) -> float | None:
    return round(value, digits) if math.isfinite(value) else None


def _short(value: float) -> float | None:
    return float(f"{value:.3g}") if math.isfinite(value) else None


def _six_digits(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
