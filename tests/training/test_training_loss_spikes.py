"""A loss spike is reported once, together with the batch that caused it."""

from __future__ import annotations

import json
import random
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from gptcli.events import Notice
from gptcli.training.loss_spikes import SpikeDetector


def reported(losses: list[float]) -> list[int]:
    spikes = SpikeDetector()
    return [i for i, loss in enumerate(losses) if spikes.excess(loss) is not None]


def noise(count: int, level: float = 3.0, spread: float = 0.05) -> list[float]:
    generator = random.Random(1)
    return [generator.gauss(level, spread) for _ in range(count)]


def test_normal_noise_and_a_falling_loss_are_no_spikes() -> None:
    assert reported(noise(5000)) == []
    falling = [1.0 + 3.0 * 0.97**i + wobble for i, wobble in enumerate(noise(300, 0.0))]
    assert reported(falling) == []
    # A run that overfits has a loss near 0, here 0.01. A loss of 0.15 is 15 times as large, but the
    # rise is still small.
    assert reported([*noise(400, 0.01, 0.0001), 0.15]) == []


def test_one_odd_batch_is_a_spike() -> None:
    losses = noise(200)
    losses[130] = 4.0
    assert reported(losses) == [130]
    spikes = SpikeDetector()
    for loss in losses[:130]:
        spikes.excess(loss)
    assert spikes.excess(4.0) == pytest.approx(3.0, abs=0.05)


def test_the_first_losses_are_never_spikes() -> None:
    assert reported([3.0] * 19 + [9.0]) == []
    assert reported([3.0] * 20 + [9.0]) == [20]


def test_spikes_are_reported_at_most_once_in_50_steps() -> None:
    # The loss stays at a higher level. This is reported once, not at each step.
    assert reported(noise(100) + noise(400, 6.0)) == [100]
    every_third = noise(600)
    every_third[99::3] = noise(len(every_third[99::3]), 5.0)
    assert len(reported(every_third)) <= 10  # 167 of these 500 steps have a high loss
    growing = noise(100) + [3.0 + 2.0**i for i in range(80)]
    assert reported(growing) == [100, 150]


@pytest.mark.slow
def test_the_notice_names_the_command_that_shows_the_batch(
    tmp_path: Path, new: Any, drive: Any, cli: Any
) -> None:
    text = "".join(f"the {w} and the {w}.\n" for w in ("cat", "dog", "cow", "hen")) * 300
    middle = len(text) // 2
    source = tmp_path / "text.txt"
    source.write_text(text[:middle] + "Q#%Z@" * 12 + text[middle:], encoding="utf-8")
    events = drive(
        new("my run", f"data.source={source}", "train.max_steps=250", "train.log_every=50")
    )
    notices = [event.message for event in events if isinstance(event, Notice)]
    assert len(notices) >= 1, "the odd part of the text was not seen"
    assert all(
        re.match(r"step \d+: loss [\d.]+, far above the recent [\d.]+; ", n) for n in notices
    )
    words = shlex.split(notices[0].partition("its batch: ")[2])
    assert words[:2] == ["gptcli", "inspect-batch"]
    shown = [json.loads(line)["text"] for line in cli(*words[1:], "--json").out.splitlines()]
    assert any("Q#%Z@" in one for one in shown)
