"""Writes the reports in docs/course: what the checks say about solutions with one mistake each.

This program changes the solution of an exercise as an entry of MISTAKES says, and checks the
changed file. The output of the check replaces a block of the page that begins with `wrong: `.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from gptcli.course.catalogue import exercise_named
from gptcli.course.solutions import solution

COURSE = Path(__file__).parent / "course"

Changes = tuple[tuple[str, str], ...]

# changes of several lines, or too long for one line of MISTAKES: (right code, wrong code)
RESIDUAL = (
    ("normal = self.ln_1(x)", "x = self.ln_1(x)"),
    ("x + self.attn(normal)", "x + self.attn(x)"),
)
CLIPPING = (
    (
        "    if norm > max_norm:\n        for g in grads:\n            g.mul_(max_norm / norm)",
        "    for g in grads:\n        g.clamp_(-max_norm, max_norm)",
    ),
)
PENALTY = (
    ("logits[i] / penalty if logits[i] > 0 else logits[i] * penalty", "logits[i] / penalty"),
)
ORDER = (("top_k(temperature(logits, t), k), p), m)", "top_k(logits, k), p), m) / t"),)
HELD_BACK = (
    (
        "    for start in range(len(text)):\n"
        "        if any(stop.startswith(text[start:]) for stop in stops):\n"
        "            return text[:start], text[start:], False\n",
        "",
    ),
)
INTERLEAVED = (
    ("x.chunk(2, dim=-1)", "x[..., ::2], x[..., 1::2]"),
    ("torch.cat((a * cos", "torch.stack((a * cos"),
    ("b * cos + a * sin), dim=-1)", "b * cos + a * sin), dim=-1).flatten(-2)"),
)
GROUPS = (
    ("k.repeat_interleave(group, dim=1)", "k.repeat(1, group, 1, 1)"),
    ("v.repeat_interleave(group, dim=1)", "v.repeat(1, group, 1, 1)"),
)

# page -> for each of its reports, in their order: the exercise, and the changes of its solution
MISTAKES: dict[str, list[tuple[str, Changes]]] = {
    "week-1-2-attention.md": [
        ("attention", (("q = q.view(B, T, H, D).transpose(1, 2)", "q = q.view(B, H, T, D)"),)),
        ("attention", (("/ math.sqrt(D)", "/ math.sqrt(C)"),)),
        ("attention", (("mixed.transpose(1, 2).reshape(B, T, C)", "mixed.reshape(B, T, C)"),)),
    ],
    "week-3-layernorm-mlp-block.md": [
        ("layernorm", (("torch.sqrt(variance + self.eps)", "(torch.sqrt(variance) + self.eps)"),)),
        ("mlp", (("return self.dropout(y)", "return F.dropout(y, 0.1)"),)),
        ("block", RESIDUAL),
    ],
    "week-4-tokenizer.md": [
        ("tokenizer", (("i += 2", "i += 1"),)),
        ("tokenizer", (("key=counts.get)", "key=lambda p: (counts[p], p))"),)),
        ("tokenizer", (("pair = min(known, key=self.merges.get)", "pair = known[0]"),)),
        ("tokenizer", ((', errors="replace")', ")"),)),
    ],
    "week-5-6-training.md": [
        ("training", (("(len(data) - block_size,", "(len(data) - block_size - 1,"),)),
        ("training", (("max_lr * (step + 1) /", "max_lr * step /"),)),
        ("training", CLIPPING),
        ("training", (("(loss / len(batches)).backward()", "loss.backward()"),)),
        ("training", (("    model.train()\n", ""),)),
    ],
    "week-7-sampling.md": [
        ("sampling", (("order[before >= p]", "order[before + probabilities > p]"),)),
        ("sampling", (('logits < kth, float("-inf")', "logits < kth, 0.0"),)),
        ("sampling", PENALTY),
        ("sampling", ORDER),
        ("sampling", HELD_BACK),
    ],
    "week-8-cache.md": [
        ("cache", (("(self.keys, k), dim=2", "(self.keys, k), dim=1"),)),
        ("cache", (("torch.ones(T, S, ", "torch.ones(T, T, "),)),
        ("cache", (("diagonal=S - T + 1", "diagonal=1"),)),
        ("cache", (("0 if self.keys is None else self.keys.shape[2]", "0"),)),
    ],
    "week-9-modern.md": [
        ("modern", (("torch.arange(length)", "torch.arange(1, length + 1)"),)),
        ("modern", INTERLEAVED),
        ("modern", GROUPS),
    ],
}

_REPORT = re.compile(r"(?<=^```text\n)wrong: .*?(?=^```$)", re.MULTILINE | re.DOTALL)


def report(exercise: str, changes: Changes) -> str:
    """What the check of `exercise` prints about the changed solution, from "wrong: " on.

    Lines have at most 80 characters."""
    text = solution(exercise_named(exercise))
    for right, wrong in changes:
        assert text.count(right) == 1, (exercise, right)
        text = text.replace(right, wrong)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"{exercise}.py").write_text(text, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "gptcli", f"check-{exercise}", f"{exercise}.py"],
            capture_output=True,
            text=True,
            cwd=folder,
            env={**os.environ, "COLUMNS": "80", "NO_COLOR": "1"},
        )
    _, begin, rest = done.stdout.partition("wrong: ")
    assert begin, (exercise, changes, done.stdout, done.stderr)
    return "".join(f"{line.rstrip()}\n" for line in (begin + rest).rstrip().splitlines())


def page_with_reports(page: str) -> str:
    """The text of a page of docs/course with new reports in the place of the old ones."""
    text = (COURSE / page).read_text(encoding="utf-8")
    reports = [report(*mistake) for mistake in MISTAKES[page]]
    assert len(_REPORT.findall(text)) == len(reports), page
    new = iter(reports)
    return _REPORT.sub(lambda _: next(new), text)


def main() -> None:
    stale = []
    for page in MISTAKES:
        text = page_with_reports(page)
        if text != (COURSE / page).read_text(encoding="utf-8"):
            stale.append(page)
            if "--check" not in sys.argv:
                (COURSE / page).write_text(text, encoding="utf-8")
    if stale and "--check" in sys.argv:
        raise SystemExit(f"run `make reports`: {', '.join(stale)} would change")


if __name__ == "__main__":
    main()
