"""Draws the losses of a run as an SVG picture, for the model card and for notebooks."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path

from gptcli.files.bounded import read_lines

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 640, 260, 56, 16, 36  # size and margins in pixels

Points = list[tuple[int, float]]
"""The points of a curve: pairs of step and loss."""


def recorded_losses(run: Path) -> tuple[Points, Points]:
    """The training losses and the validation losses in a run's metrics.jsonl, as two curves."""
    train: Points = []
    val: Points = []
    with suppress(OSError):
        for line in read_lines(run / "metrics.jsonl", run):
            with suppress(ValueError, KeyError, TypeError):
                record = json.loads(line)
                kind = {"step": "loss", "eval": "val_loss"}.get(record["kind"])
                if kind is not None and math.isfinite(float(record[kind])):
                    points = train if kind == "loss" else val
                    points.append((int(record["step"]), float(record[kind])))
    return train, val


def loss_curve(train: Points, val: Points) -> str:
    """An SVG with the losses over the steps. `train` must have two or more points."""
    steps = [step for step, _ in (*train, *val)]
    losses = [loss for _, loss in (*train, *val)]
    last, low, high = max(steps), min(losses), max(losses)
    high = max(high, low + 1e-6)
    width, height = _WIDTH - _LEFT - 16, _HEIGHT - _TOP - _BOTTOM

    def path(points: Points) -> str:
        return " ".join(
            f"{_LEFT + width * step / last:.1f},{_TOP + height * (high - loss) / (high - low):.1f}"
            for step, loss in points
        )

    base = _TOP + height
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'font-family="sans-serif" font-size="12" role="img" aria-label="loss against steps">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<path d="M{_LEFT},{_TOP} V{base} H{_LEFT + width}" fill="none" stroke="#888888"/>',
        f'<polyline points="{path(train)}" fill="none" stroke="#7aa6d8" stroke-width="1.5"/>',
    ]
    if val:
        lines.append(
            f'<polyline points="{path(val)}" fill="none" stroke="#c1440e" stroke-width="2"/>'
        )
    for loss in (low, high):
        y = _TOP + height * (high - loss) / (high - low)
        lines.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{loss:.2f}</text>')
    lines += [
        f'<text x="{_LEFT}" y="{base + 16}">0</text>',
        f'<text x="{_LEFT + width}" y="{base + 16}" text-anchor="end">step {last:,}</text>',
        f'<text x="{_LEFT + width}" y="{_TOP + 12}" text-anchor="end" fill="#7aa6d8">training'
        "</text>",
    ]
    if val:
        lines.append(
            f'<text x="{_LEFT + width}" y="{_TOP + 28}" text-anchor="end" fill="#c1440e">'
            "validation</text>"
        )
    return "\n".join((*lines, "</svg>")) + "\n"
