"""The pictures of the README and of docs/: a training, a check, tokens, sizes of networks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pictures import ROOT, Workshop
from terminal import Frame, Terminal, paced, svg

DOCS = Path(__file__).resolve().parent
MINUTES = 3
FASTER = 12  # the factor by which the moving picture shortens waiting times
LEAST, MOST = 0.35, 2.0  # seconds: how long a frame is shown while a command works

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


def training(shop: Workshop) -> None:
    """Write docs/train-moving.svg and docs/train.svg. train-moving.svg shows how a person trains
    and samples in a terminal. train.svg shows the live view at the end of that training."""
    train, sample = f"gptcli train --minutes {MINUTES}", 'gptcli sample -p "KING:" -n 200'
    with Terminal(shop.fresh("recording"), 80, 24) as window:
        window.run(train)
        at = len(window.frames)
        window.run(sample)
        frames = window.frames
    live = [one for one in frames[:at] if "save and quit" in words_of(one)]
    about = (
        f"{train} in a terminal: the loss falls, samples appear. Then {sample} writes a text. "
        f"Waiting is {FASTER} times faster than it was."
    )
    moving = paced(frames, FASTER, LEAST, MOST)
    save("train-moving.svg", svg(moving, "gptcli train, then gptcli sample", about))
    last = live[-1]
    save("train.svg", svg([last], "gptcli train", f"The live view of {train}:\n{words_of(last)}"))


def check(shop: Workshop) -> None:
    """Write docs/check-attention.svg: the report on an attention without the scale."""
    folder = shop.fresh("check")
    (folder / "my_attention.py").write_text(UNSCALED, encoding="utf-8")
    still(folder, "check-attention.svg", "gptcli check-attention my_attention.py")


def tokens(shop: Workshop) -> None:
    """Write docs/tokens.svg: the tokens of a text. The tokenizer is trained on Shakespeare."""
    folder = shop.fresh("tokens")
    words = ("tokenizer", "train", "shakespeare", "--vocab-size", "512", "--out", "p.json")
    shop.gptcli(*words, folder=folder)
    command = 'gptcli tokenizer show "What light through yonder window breaks?" --tokenizer p.json'
    still(folder, "tokens.svg", command, columns=92)


def dial(_: Workshop) -> None:
    """Write docs/dial.svg from the measured runs in benchmarks/dial.py."""
    program = ROOT / "benchmarks" / "dial.py"
    command = [sys.executable, str(program), "--plot", str(DOCS / "dial.svg")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)


def still(folder: Path, name: str, command: str, columns: int = 80) -> None:
    """Write docs/NAME: a picture of a command and of its whole output."""
    with Terminal(folder, columns, 60) as window:
        window.run(command, timeout=120)
        frame = window.still()
    save(name, svg([frame], command, words_of(frame)))


def words_of(frame: Frame) -> str:
    """The text of a frame, for readers who cannot see the picture."""
    lines = []
    for row in frame.rows:
        line = ""
        for _, first, text in row:
            line = line.ljust(first) + text
        lines.append(line.rstrip())
    return "\n".join(lines).strip()


def save(name: str, picture: str) -> None:
    """Write an SVG picture to docs/NAME."""
    (DOCS / name).write_text(picture, encoding="utf-8")
