"""The pictures of the course, from real checks of files with one mistake each.

The program writes the skeletons of the exercises attention, layer norm and MLP with `gptcli
exercise`. It fills in the attention and the layer norm with one wrong step each, and draws the
output of their checks. Then it corrects the layer norm, and draws the output of
`gptcli exercise --status`.
"""

from __future__ import annotations

import re
from pathlib import Path

from captures import still
from pictures import Workshop

# For each step, the line that replaces the skeleton's `raise NotImplementedError`.
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


def fill_in(path: Path, steps: tuple[str, ...]) -> None:
    """In the skeleton at `path`, replace each step's `raise NotImplementedError` by the step's line
    in `steps`."""
    text = path.read_text(encoding="utf-8")
    for number, line in enumerate(steps, start=1):
        blank = rf'raise NotImplementedError\("step {number}: [^"]*"\)'
        assert re.search(blank, text), f"no step {number} in {path}"
        text = re.sub(blank, lambda _, line=line: line, text, count=1)
    path.write_text(text, encoding="utf-8")


def checks(shop: Workshop) -> None:
    """Write docs/course/check-attention.svg, docs/course/check-layernorm.svg and
    docs/course/status.svg."""
    folder = shop.fresh("course")
    for exercise in ("attention", "layernorm", "mlp"):
        shop.gptcli("exercise", exercise, "--out", "my", folder=folder)
    fill_in(folder / "my/attention.py", ATTENTION)
    fill_in(folder / "my/layernorm.py", LAYERNORM)
    for exercise in ("attention", "layernorm"):
        command = f"gptcli check-{exercise} my/{exercise}.py"
        still(folder, f"course/check-{exercise}.svg", command)
    right = LAYERNORM[1].replace("x.var(", "x.var(correction=0, ")
    path = folder / "my/layernorm.py"
    path.write_text(path.read_text("utf-8").replace(LAYERNORM[1], right), encoding="utf-8")
    still(folder, "course/status.svg", "gptcli exercise --status my")
