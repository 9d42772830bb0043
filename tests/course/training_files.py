"""Right and wrong files for the exercise `training`, most of them made from one template."""

from __future__ import annotations

from typing import Any

BASE = """import math

import torch
import torch.nn.functional as F


def get_batch(data, block_size, batch_size, generator=None):
    starts = torch.randint(len(data) - block_size, (batch_size,), generator=generator)
    x = torch.stack([data[i : i + block_size] for i in starts])
    y = torch.stack([data[i + 1 : i + 1 + block_size] for i in starts])
    return x, y


def loss_of(logits, targets):
    return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))


def learning_rate(step, max_lr, min_lr, warmup_steps, max_steps):
    if step < warmup_steps:
        return max_lr * (step + 1) / warmup_steps
    if step >= max_steps:
        return min_lr
    done = (step - warmup_steps) / (max_steps - warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * done))
    return min_lr + (max_lr - min_lr) * cosine


def clip_gradients(parameters, max_norm):
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = torch.sqrt(sum((g ** 2).sum() for g in grads))
    if norm > max_norm:
        for g in grads:
            g.mul_(max_norm / norm)
    return norm


def train_step(model, optimizer, batches, lr, max_norm):
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad()
    total = 0.0
    for x, y in batches:
        loss = loss_of(model(x), y) / len(batches)
        loss.backward()
        total += loss.item()
    clip_gradients(model.parameters(), max_norm)
    optimizer.step()
    return total


@torch.no_grad()
def evaluate(model, batches):
    model.eval()
    losses = [loss_of(model(x), y).item() for x, y in batches]
    model.train()
    return sum(losses) / len(losses)
"""

STARTS = "torch.randint(len(data) - block_size, (batch_size,), generator=generator)"
Y = "data[i + 1 : i + 1 + block_size]"
LOSS = "F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))"
ZERO = "    optimizer.zero_grad()\n    total"
CLIP = "    clip_gradients(model.parameters(), max_norm)\n"
STEP = "    optimizer.step()\n"
NORM = "norm = torch.sqrt(sum((g ** 2).sum() for g in grads))"
SCALED = "    if norm > max_norm:\n        for g in grads:\n            g.mul_(max_norm / norm)\n"
DONE = "done = (step - warmup_steps) / (max_steps - warmup_steps)"
END = "    if step >= max_steps:\n        return min_lr\n"
MIN = "min_lr + (max_lr - min_lr) * cosine"

# The mistakes. An entry holds the slug of the mistake, the step that is wrong, and then pairs: a
# text of the template, and the text that replaces it.
WRONG: list[tuple[Any, ...]] = [
    ("batch-shape", 1, "return x, y", "return x.flatten(), y.flatten()"),
    ("not-int64", 1, "return x, y", "return x.int(), y.int()"),
    ("targets-not-shifted", 1, Y, "data[i : i + block_size]"),
    ("targets-shifted-wrongly", 1, Y, "data[i + 2 : i + 2 + block_size]",
     "len(data) - block_size", "len(data) - block_size - 1"),
    ("targets-rolled", 1, Y, "data[i : i + block_size].roll(-1)"),
    ("targets-mixed", 1, "return x, y", "return x, y[torch.arange(batch_size) - 1]"),
    ("same-every-time", 1, "    starts", "    generator.manual_seed(3)\n    starts"),
    ("not-a-window", 1, "return x, y", "return x[:, torch.randperm(block_size)], y"),
    ("start-out-of-range", 1, "len(data) - block_size", "len(data) - block_size + 1"),
    ("start-out-of-range", 1, "len(data) - block_size", "len(data)"),
    ("last-start-missing", 1, "len(data) - block_size", "len(data) - block_size - 1"),
    ("first-start-missing", 1, "randint(len", "randint(1, len"),
    ("same-windows", 1, STARTS, STARTS.replace("(batch_size,)", "(1,)") + ".repeat(batch_size)"),
    ("generator-ignored", 1, ", generator=generator)", ")"),
    ("loss-summed", 2, "targets.view(-1))", 'targets.view(-1), reduction="sum")'),
    ("softmax-twice", 2, "logits.view(", "logits.softmax(-1).view("),
    ("shifted-again", 2, LOSS, "F.cross_entropy(logits[:, :-1].transpose(1, 2), targets[:, 1:])"),
    ("last-position-only", 2, LOSS, "F.cross_entropy(logits[:, -1], targets[:, -1])"),
    ("perplexity", 2, LOSS, LOSS + ".exp()"),
    ("bits", 2, LOSS, LOSS + " / math.log(2)"),
    ("sign", 2, LOSS, "logits.log_softmax(-1).gather(-1, targets[..., None]).mean()"),
    ("no-gradient", 2, LOSS, LOSS + ".detach()"),
    ("warmup-from-zero", 3, "(step + 1)", "step"),
    ("no-warmup", 3, "    if step < warmup_steps:\n        return max_lr * (step + 1) / "
     "warmup_steps", "    warmup_steps = 0"),
    ("no-warmup", 3, "max_lr * (step + 1) / warmup_steps", "max_lr"),
    ("linear-decay", 3, "0.5 * (1 + math.cos(math.pi * done))", "1 - done"),
    ("whole-cosine", 3, "math.pi * done", "2 * math.pi * done"),
    ("decay-to-zero", 3, MIN, "max_lr * cosine"),
    ("floor-added", 3, MIN, "min_lr + max_lr * cosine"),
    ("decay-from-zero", 3, DONE, "done = step / max_steps"),
    ("decay-too-long", 3, DONE, "done = (step - warmup_steps) / max_steps"),
    ("rises-again", 3, END, ""),
    ("zero-after-the-end", 3, "return min_lr\n", "return 0.0\n"),
    ("norm-of-each", 4, NORM + "\n" + SCALED, NORM + "\n    for g in grads:\n"
     "        g.mul_(torch.clamp(max_norm / g.norm(), max=1.0))\n"),
    ("clipped-by-value", 4, SCALED, "    for g in grads:\n        g.clamp_(-max_norm, max_norm)\n"),
    ("always-scaled", 4, "if norm > max_norm:", "if True:"),
    ("no-root", 4, "torch.sqrt(sum((g ** 2).sum() for g in grads))",
     "sum((g ** 2).sum() for g in grads)"),
    ("another-norm", 4, NORM, "norm = sum(g.abs().sum() for g in grads)"),
    ("not-clipped", 4, "g.mul_(max_norm / norm)", "g = g * (max_norm / norm)"),
    ("returns-norm-after", 4, "return norm\n", "return min(norm, max_norm)\n"),
    ("parameters-exhausted", 4, "    grads =",
     "    count = sum(1 for p in parameters)\n    grads =",
     "norm = torch.sqrt(sum((g ** 2).sum() for g in grads))",
     "norm = torch.sqrt(sum((g ** 2).sum() for g in grads) + torch.zeros(()))"),
    ("without-gradient", 4, " if p.grad is not None", ""),
    ("no-backward", 5, "        loss.backward()\n", ""),
    ("no-step", 5, STEP, ""),
    ("last-batch-only", 5, "        loss.backward()\n", "", CLIP, "    loss.backward()\n" + CLIP),
    ("no-zero-grad", 5, ZERO, "    total"),
    ("zero-each-batch", 5, ZERO, "    total", "        loss = loss_of(",
     "        optimizer.zero_grad()\n        loss = loss_of("),
    ("zero-before-step", 5, CLIP, CLIP + "    optimizer.zero_grad()\n"),
    ("not-divided", 5, "y) / len(batches)\n", "y)\n", "return total\n",
     "return total / len(batches)\n"),
    ("step-each-batch", 5, CLIP + STEP, "", "        total +=",
     "        clip_gradients(model.parameters(), max_norm)\n        optimizer.step()\n"
     "        total +="),
    ("no-clipping", 5, CLIP, ""),
    ("no-clipping", 5, CLIP + STEP, STEP + CLIP),
    ("clipped-each-batch", 5, CLIP, "", "        total +=",
     "        clip_gradients(model.parameters(), max_norm)\n        total +="),
    ("rate-not-set", 5, 'group["lr"] = lr', "pass"),
    ("rate-of-first-group", 5, "optimizer.param_groups:", "optimizer.param_groups[:1]:"),
    ("returns-last-loss", 5, "return total\n", "return loss.item() * len(batches)\n"),
    ("returns-last-loss", 5, "return total\n", "return total * len(batches)\n"),
    ("autograd-left-off", 6, "    model.eval()\n",
     "    torch.set_grad_enabled(False)\n    model.eval()\n", "@torch.no_grad()\n", ""),
    ("changes-the-model", 6, "    model.eval()\n",
     "    model.eval()\n    for p in model.parameters():\n        p.requires_grad_(False)\n"),
    ("not-in-eval-mode", 6, "    model.eval()\n", ""),
    ("left-in-eval-mode", 6, "    model.train()\n", ""),
    ("gradients-on", 6, "@torch.no_grad()\n", ""),
    ("not-the-mean", 6, "return sum(losses) / len(losses)", "return losses[-1]"),
    ("not-the-mean", 6, "return sum(losses) / len(losses)", "return sum(losses)"),
    ("not-implemented", 4, NORM, "raise NotImplementedError"),
    ("raises", 2, "logits.size(-1)", "7.5"),
    ("no-number", 5, "    return total\n", ""),
    ("no-pair", 1, "return x, y", "return x"),
]  # fmt: skip

RIGHT = {
    "plain": BASE,
    "reference": "from gptcli.course.exercises.training import *\n",
    "torch_does_it": BASE.replace(
        NORM + "\n" + SCALED + "    return norm",
        "return torch.nn.utils.clip_grad_norm_(grads_of(parameters), max_norm)",
    ).replace("    grads = [p.grad for p in parameters if p.grad is not None]\n", "").replace(
        "grads_of(parameters)", "list(parameters)"
    ),
    "zero_at_the_end": BASE.replace(ZERO, "    total")
    .replace(STEP, STEP + "    optimizer.zero_grad(set_to_none=True)\n"),
    "index_arithmetic": BASE.replace(
        "    x = torch.stack([data[i : i + block_size] for i in starts])\n",
        "    at = starts[:, None] + torch.arange(block_size + 1)\n    x = data[at][:, :-1]\n",
    ).replace(f"    y = torch.stack([{Y} for i in starts])\n", "    y = data[at][:, 1:]\n")
    .replace(LOSS, "-logits.log_softmax(-1).gather(-1, targets[..., None]).mean()")
    .replace("(step + 1) / warmup_steps", "(step + 1) / (warmup_steps + 1)")
    .replace("@torch.no_grad()\n", "")
    .replace("    losses = [loss_of(model(x), y).item() for x, y in batches]\n",
             "    with torch.inference_mode():\n"
             "        losses = [loss_of(model(x), y) for x, y in batches]\n"),
}  # fmt: skip


def wrong_text(entry: tuple[Any, ...]) -> str:
    """The text of a wrong file: the template BASE after the replacements in `entry` of WRONG."""
    text = BASE
    for old, new in zip(entry[2::2], entry[3::2], strict=True):
        assert old in text, f"{entry[0]}: {old!r}"
        text = text.replace(old, new)
    return text
