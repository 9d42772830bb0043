"""Make the pictures of the course pages from real checks of files with one mistake each, as SVG.

    python docs/captures_course.py

It fills in two skeletons of `gptcli exercise` in a temporary folder, each with one wrong step, and
shows what the commands print.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from captures import console
from rich.text import Text

COURSE = Path(__file__).resolve().parent / "course"

# The lines of each step that replace the skeleton's `raise NotImplementedError`.
ATTENTION = (
    "q, k, v = self.query(x), self.key(x), self.value(x)",
    "q, k, v = (y.view(B, T, self.n_head, -1).transpose(1, 2) for y in (q, k, v))",
    "q, k, v = (y.flatten(0, 1) for y in (q, k, v))",
    "scores = q @ k.transpose(1, 2) / math.sqrt(self.head_dim)",
    "scores = scores.tril()",  # the mistake: hidden scores become 0
    "weights = self.attn_dropout(scores.softmax(dim=-1))",
    "y = (weights @ v).view(B, self.n_head, T, -1)",
    "return self.resid_dropout(self.c_proj(y.transpose(1, 2).flatten(2)))",
)
LAYERNORM = (
    "mean = x.mean(dim=-1, keepdim=True)",
    "variance = x.var(dim=-1, keepdim=True)",  # the mistake: divided by C - 1
    "normal = (x - mean) / torch.sqrt(variance + self.eps)",
    "return normal * self.weight + (0 if self.bias is None else self.bias)",
)


def gptcli(*words: str, color: bool = True) -> str:
    """The output of a gptcli command, by default in colours as on a terminal of 80 columns."""
    settings = {"COLUMNS": "80", "FORCE_COLOR": "1", "TERM": "xterm-256color"} if color else {}
    command = [sys.executable, "-m", "gptcli", *words]
    done = subprocess.run(
        command, env=os.environ | settings, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def fill_in(path: Path, steps: tuple[str, ...]) -> None:
    """Replace each `raise NotImplementedError` of the skeleton at `path` by a line of `steps`."""
    text = path.read_text(encoding="utf-8")
    for number, line in enumerate(steps, start=1):
        blank = rf'raise NotImplementedError\("step {number}: [^"]*"\)'
        assert re.search(blank, text), f"no step {number} in {path}"
        text = re.sub(blank, lambda _, line=line: line, text, count=1)
    path.write_text(text, encoding="utf-8")


def capture(name: str, *words: str) -> None:
    """Write docs/course/NAME.svg: a command and its output."""
    screen = console()
    command = " ".join(("gptcli", *words))
    screen.print(f"$ {command}", style="bold")
    screen.print(Text.from_ansi(gptcli(*words).rstrip()))
    screen.save_svg(str(COURSE / f"{name}.svg"), title=f"gptcli {words[0]}")


def main() -> None:
    """Write docs/course/check-attention.svg, status.svg and check-layernorm.svg."""
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)  # so that the pictures show short paths
        for exercise in ("attention", "layernorm", "mlp"):
            gptcli("exercise", exercise, "--out", "my", color=False)
        fill_in(Path("my/attention.py"), ATTENTION)
        fill_in(Path("my/layernorm.py"), LAYERNORM)
        capture("check-attention", "check-attention", "my/attention.py")
        capture("check-layernorm", "check-layernorm", "my/layernorm.py")
        right = LAYERNORM[1].replace("x.var(", "x.var(correction=0, ")
        text = Path("my/layernorm.py").read_text(encoding="utf-8")
        Path("my/layernorm.py").write_text(text.replace(LAYERNORM[1], right), encoding="utf-8")
        capture("status", "exercise", "--status", "my")
        os.chdir(COURSE)


if __name__ == "__main__":
    main()
