"""Make the pictures of the README from a real training run and a real check, as SVG.

    python docs/captures.py

It trains most of the default config in a temporary folder, which takes about a minute. It also
checks an attention whose scores are not scaled.
"""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

from rich.console import Console

from gptcli.cli.check import show_file
from gptcli.config_files import load_config
from gptcli.course import check_file
from gptcli.events import SampleDrawn
from gptcli.memory import memory_held
from gptcli.training.loop import train
from gptcli.training.peak import known_peak
from gptcli.training.setup import prepare_new
from gptcli.view.live_state import LiveState
from gptcli.view.terminal import LiveView

DOCS = Path(__file__).resolve().parent

UNSCALED = """\
import torch
from torch import nn


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(2, 3)
        future = torch.ones(T, T, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, float("-inf")).softmax(-1)
        return self.c_proj((weights @ v).transpose(1, 2).reshape(B, T, C))
"""


def console() -> Console:
    """A console of 80 by 30 that records what is printed."""
    return Console(
        record=True, width=80, height=30, file=io.StringIO(), force_terminal=True,
        color_system="truecolor", highlight=False,
    )  # fmt: skip


def capture_training() -> None:
    """Write docs/train.svg: the live view of the default run after its fourth sample."""
    screen = console()
    config = load_config("shakespeare")
    setup = prepare_new(config, Path("runs/shakespeare")).setup
    peak = known_peak(setup.dtype, setup.device, setup.threads)
    view = LiveView(screen, LiveState(True, peak, memory_held))
    for event in train(setup):
        view.handle(event)
        if isinstance(event, SampleDrawn) and event.step >= 0.7 * config.train.max_steps:
            break
    screen.print("$ gptcli train", style="bold")
    screen.print(view.render(79, 26))
    screen.save_svg(str(DOCS / "train.svg"), title="gptcli train")


def capture_check() -> None:
    """Write docs/check-attention.svg: the report on an attention without the scale."""
    Path("my_attention.py").write_text(UNSCALED, encoding="utf-8")
    screen = console()
    screen.print("$ gptcli check-attention my_attention.py", style="bold")
    show_file(check_file("my_attention.py"), screen)
    screen.save_svg(str(DOCS / "check-attention.svg"), title="gptcli check-attention")


def main() -> None:
    """Write docs/train.svg and docs/check-attention.svg."""
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)  # so that the pictures show short paths
        capture_check()
        capture_training()
        os.chdir(DOCS)


if __name__ == "__main__":
    main()
