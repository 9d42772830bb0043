"""The lesson on the transformer block: its four steps and its bank of known mistakes.

Dimensions: B batch, T time, C channels (n_embd). In the `forms` of MISTAKES, w.n1, w.attn,
w.n2 and w.mlp are the learner's own submodules, unchanged, and x (B, T, C) is the input.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.course.exercises.explainer import ExerciseMistake
from gptcli.course.exercises.learner_module import (
    LearnerModule,
    ModuleLesson,
    Size,
    general_mistakes,
)
from gptcli.course.lesson import Step

Weights = Any
NAMES = {
    "n1": ("ln_1", "ln1", "norm1", "norm_1", "layernorm1", "layernorm_1", "input_layernorm"),
    "n2": ("ln_2", "ln2", "norm2", "norm_2", "layernorm2", "layernorm_2"),
    "attn": ("attn", "attention", "self_attn", "sa", "self_attention"),
    "mlp": ("mlp", "ffn", "ff", "ffwd", "feed_forward", "feedforward"),
}

STEPS = (
    Step(
        "first norm",
        "what does the attention read: x, or x after a norm?",
        "pre-norm: the first norm comes before the attention, and you keep x itself",
        "pass self.ln_1(x) to the attention, and keep x for the sum",
    ),
    Step(
        "attention and residual",
        "what is the attention's output added to?",
        "add the attention's output to the x that came in, not to the normed x",
        "the sum is the new x, which the second half continues with",
    ),
    Step(
        "second norm",
        "what does the second norm read, and which norm is it?",
        "the second half has its own norm, applied to the sum after the attention",
        "pass self.ln_2 of the new x to the feed-forward network",
    ),
    Step(
        "feed-forward and residual",
        "what is the feed-forward network's output added to, and what comes after?",
        "add it to the sum after the attention; that is the output",
        "return the new x plus self.mlp of its norm; no norm after it",
    ),
)


def steps(w: Weights, x: Tensor) -> list[list[Tensor]]:
    """The result of each step."""
    first = w.n1(x)
    h = x + w.attn(first)
    second = w.n2(h)
    return [[first], [h], [second], [h + w.mlp(second)]]


def _h(w: Weights, x: Tensor) -> Tensor:
    return steps(w, x)[1][0]


def _then(w: Weights, h: Tensor) -> Tensor:
    """The correct second half, applied to h."""
    out: Tensor = h + w.mlp(w.n2(h))
    return out


# fmt: off
MISTAKES = (
    ExerciseMistake("missing-attention", 2, "a block without an attention",
            "your block has no attention among its submodules: {have}",
            "a block has two norms, an attention and a feed-forward network",
            "make self.attn in the constructor", at=r"def __init__"),
    ExerciseMistake("missing-mlp", 4, "a block without a feed-forward network",
            "your block has no feed-forward network among its submodules: {have}",
            "a block has two norms, an attention and a feed-forward network",
            "make self.mlp in the constructor", at=r"def __init__"),
    ExerciseMistake("missing-norm", 1, "a block without norms",
            "your block has {count} norms among its submodules, expected 2: {have}",
            "each half has its own norm", "make self.ln_1 and self.ln_2 in the constructor",
            at=r"def __init__"),
    ExerciseMistake("shared-norm", 3, "self.ln_2 = self.ln_1, or one self.ln for both",
            "both halves of your block share one norm of {C} channels: {have}",
            "the two halves read different values, so each needs its own gain",
            "make two norms in the constructor", at=r"ln_?2|norm_?2|self\.(ln|norm)\b"),
    ExerciseMistake("post-norm", 1, "x = self.ln_1(x + self.attn(x))",
            "your norms of {C} channels come after the sums, not before the branches",
            "that is the transformer of 2017; GPT-2 norms before, so that x passes unchanged",
            "norm the input of the branch, not the sum", (
                lambda w, x: w.n2((h := w.n1(x + w.attn(x))) + w.mlp(h)),
                lambda w, x: _then(w, w.n1(x + w.attn(x)))), at=r"(ln|norm)_?\d\(x \+"),
    ExerciseMistake("branch-normed", 1, "x = x + self.ln_1(self.attn(x))",
            "your attention reads x of {C} channels without a norm, and the norm comes after it",
            "the norm belongs on the input of the branch",
            "swap the two: the norm first, then the branch",
            (lambda w, x: (h := x + w.n1(w.attn(x))) + w.n2(w.mlp(h)),
             lambda w, x: _then(w, x + w.n1(w.attn(x)))), at=r"(ln|norm)_?\d\(self\."),
    ExerciseMistake("no-norms", 1, "x = x + self.attn(x); x = x + self.mlp(x)",
            "neither of your norms of {C} channels is used",
            "without norms deep stacks do not train",
            "norm the input of each branch",
            (lambda w, x: (h := x + w.attn(x)) + w.mlp(h),), at=r"attn\(x"),
    ExerciseMistake("no-first-norm", 1, "x = x + self.attn(x)",
            "your attention reads x of {C} channels without a norm", "the first norm is left out",
            "norm the input of the attention", (lambda w, x: _then(w, x + w.attn(x)),),
            at=r"(attn|attention)\(x"),
    ExerciseMistake("norms-swapped", 1, "self.attn(self.ln_2(x))",
            "your norms of {C} channels are swapped: ln_2 comes before the attention",
            "each half has its own; if they are swapped, the weights of a trained model do not fit",
            "ln_1 for the attention, ln_2 for the feed-forward network",
            (lambda w, x: (h := x + w.attn(w.n2(x))) + w.mlp(w.n1(h)),), at=r"ln_?2\(x\)|norm_?2"),
    ExerciseMistake("mlp-first", 1, "the feed-forward network before the attention",
            "your feed-forward network comes first, the attention of {C} channels second",
            "first the tokens look at each other, then each is processed separately",
            "swap the two halves",
            (lambda w, x: (h := x + w.mlp(w.n2(x))) + w.attn(w.n1(h)),
             lambda w, x: (h := x + w.mlp(w.n1(x))) + w.attn(w.n2(h))), at=r"mlp\("),
    ExerciseMistake("no-residuals", 2, "x = self.attn(self.ln_1(x)); x = self.mlp(self.ln_2(x))",
            "neither of your branches of {C} channels is added to its input",
            "without residuals no signal and no gradient gets through many blocks",
            "add each branch to x", (lambda w, x: w.mlp(w.n2(w.attn(w.n1(x)))),),
            at=r"attn\("),
    ExerciseMistake("no-first-residual", 2, "x = self.attn(self.ln_1(x))",
            "your attention's output of {C} channels replaces x instead of being added to it",
            "x itself is lost", "add the attention to x",
            (lambda w, x: _then(w, w.attn(w.n1(x))),), at=r"attn\("),
    ExerciseMistake("residual-from-norm", 2, "x = self.ln_1(x); x = x + self.attn(x)",
            "you add the attention to the normed x of {C} channels, not to x itself",
            "the residual stream must pass through the block unchanged",
            "keep x, and store the normed x under another name",
            (lambda w, x: _then(w, (n := w.n1(x)) + w.attn(n)),
             lambda w, x: (m := w.n2((n := w.n1(x)) + w.attn(n))) + w.mlp(m)),
            at=r"x\s*=\s*self\.(ln|norm)"),
    ExerciseMistake("no-attention", 2, "the attention left out of forward",
            "your attention of {C} channels is never used", "the tokens cannot see each other",
            "add the attention of the normed x to x",
            (lambda w, x: _then(w, x), lambda w, x: _then(w, x + w.n1(x))), at=r"def forward"),
    ExerciseMistake("nothing-done", 1,
            "return x", "your forward returns its input x of {C} channels unchanged",
            "both halves are missing", "begin with the first norm", (lambda w, x: x,),
            at=r"return"),
    ExerciseMistake("attention-twice", 2, "x = x + 2 * ..., or the first half done twice",
            "your attention's output of {C} channels is added twice", "add it once",
            "look for a second sum, or a factor",
            (lambda w, x: _then(w, x + 2 * w.attn(w.n1(x))),
             lambda w, x: _then(w, (h := _h(w, x)) + w.attn(w.n1(h)))), at=r"attn\("),
    ExerciseMistake("residual-doubled", 2, "x = x + x + self.attn(...)",
            "you add x of {C} channels twice", "each block would double the residual stream",
            "add x once", (lambda w, x: _then(w, x + _h(w, x)),), at=r"\+"),
    ExerciseMistake("first-norm-again", 3, "self.mlp(self.ln_1(x))",
            "you use the first norm of {C} channels in both halves, and the second not at all",
            "the second half has its own norm", "use ln_2 there",
            (lambda w, x: (h := _h(w, x)) + w.mlp(w.n1(h)),), at=r"mlp\("),
    ExerciseMistake("no-second-norm", 3, "x = x + self.mlp(x)",
            "your feed-forward network reads the {C} channels without a norm",
            "the second norm is left out", "norm its input with ln_2",
            (lambda w, x: (h := _h(w, x)) + w.mlp(h),), at=r"mlp\("),
    ExerciseMistake("second-branch-normed", 3, "x = x + self.ln_2(self.mlp(x))",
            "your second norm of {C} channels comes after the feed-forward network",
            "the norm belongs on the input of the branch", "apply the norm first, then the branch",
            (lambda w, x: (h := _h(w, x)) + w.n2(w.mlp(h)),), at=r"ln_?2\(self|norm_?2"),
    ExerciseMistake("parallel", 3, "x + self.attn(self.ln_1(x)) + self.mlp(self.ln_2(x))",
            "your second half reads the x of {C} channels from before the attention",
            "the halves follow each other: the second reads the output of the first",
            "add the attention to x first, then norm the sum",
            (lambda w, x: _h(w, x) + w.mlp(w.n2(x)),
             lambda w, x: _h(w, x) + w.mlp(w.n1(x))), at=r"mlp\("),
    ExerciseMistake("attention-normed-again", 3, "self.mlp(self.ln_2(attention output))",
            "your second half reads only the attention's output of {C} channels, without x",
            "it should read the sum of x and the attention's output", "norm the sum",
            (lambda w, x: (h := _h(w, x)) + w.mlp(w.n2(h - x)),
             lambda w, x: x + w.mlp(w.n2(w.attn(w.n1(x))))), at=r"mlp\("),
    ExerciseMistake("no-second-residual", 4, "x = self.mlp(self.ln_2(x))",
            "your feed-forward output of {C} channels replaces x instead of being added to it",
            "everything before it is lost", "add it to the sum after the attention",
            (lambda w, x: w.mlp(w.n2(_h(w, x))),), at=r"mlp\("),
    ExerciseMistake("second-residual-from-norm", 4, "h = self.ln_2(x); return h + self.mlp(h)",
            "you add the feed-forward output to the normed {C} channels, not to the sum itself",
            "the residual stream must pass through the block unchanged",
            "keep the sum, and store the normed sum under another name",
            (lambda w, x: (m := w.n2(_h(w, x))) + w.mlp(m),), at=r"ln_?2\("),
    ExerciseMistake("second-residual-from-x", 4, "return x + self.mlp(...) with the first x",
            "you add the feed-forward output to the block's input of {C} channels",
            "the attention's output is lost", "add it to the sum after the attention",
            (lambda w, x: x + w.mlp(w.n2(_h(w, x))),), at=r"return"),
    ExerciseMistake("no-mlp", 4, "the feed-forward network left out of forward",
            "your feed-forward network is never used: the output is the {C} channels after the "
            "attention", "the second half is missing", "add self.mlp of the second norm",
            (lambda w, x: _h(w, x), lambda w, x: w.n2(_h(w, x))), at=r"return"),
    ExerciseMistake("norm-at-the-end", 4, "return self.ln_2(x)",
            "your block ends with one more norm of {C} channels",
            "the residual stream must pass through the block unchanged; the model has one norm at "
            "its very end", "return the sum itself",
            (lambda w, x: w.n2(_then(w, _h(w, x))), lambda w, x: w.n1(_then(w, _h(w, x)))),
            at=r"return"),
    *general_mistakes(4, dropout_step=2),
)
# fmt: on


def weights(learner: LearnerModule, module: nn.Module, size: Size) -> Weights:
    """The learner's norms, attention and MLP, found by name or else by the shapes of the weights.

    Raises CheckFailed if one of the four is missing."""
    children = dict(module.named_children())
    have = ", ".join(f"`{n}` ({type(m).__name__})" for n, m in children.items()) or "none"
    found: dict[str, nn.Module] = {}
    for role, names in NAMES.items():
        for name in names:
            if role not in found and isinstance(getattr(module, name, None), nn.Module):
                found[role] = getattr(module, name)
    taken = {id(part) for part in found.values()}
    rest = [part for part in children.values() if id(part) not in taken]
    norms = [p for p in rest if (q := list(p.parameters())) and all(t.dim() == 1 for t in q)]
    others = [p for p in rest if any(t.dim() > 1 for t in p.parameters())]
    for role in ("n1", "n2"):
        if role not in found and norms:
            found[role] = norms.pop(0)
    wide = [p for p in others if any(max(t.shape) >= 4 * size.C for t in p.parameters())]
    if "mlp" not in found and wide:
        found["mlp"] = wide[0]
    narrow = [p for p in others if p is not found.get("mlp")]
    if "attn" not in found and narrow:
        found["attn"] = narrow[0]
    if ("n1" in found) != ("n2" in found):
        raise learner.mistake("shared-norm", C=size.C, have=have)
    if "n1" not in found:
        raise learner.mistake("missing-norm", count=0, have=have)
    for role, slug in (("attn", "missing-attention"), ("mlp", "missing-mlp")):
        if role not in found:
            raise learner.mistake(slug, have=have)
    if found["n1"] is found["n2"]:
        raise learner.mistake("shared-norm", C=size.C, have=have)
    return SimpleNamespace(**found)


def start(learner: LearnerModule) -> None:
    """Check that the constructor makes two norms, an attention and a feed-forward network."""
    for size in SIZES[:2]:
        weights(learner, learner.construct(size), size)


def draw(size: Size, generator: torch.Generator) -> Tensor:
    """An x whose scale and mean a norm changes."""
    return 1.7 * torch.randn(size.B, size.T, size.C, generator=generator, dtype=torch.float64) + 0.4


def notes(learner: LearnerModule) -> Iterator[tuple[str, str]]:
    """No notes: the steps say everything."""
    return iter(())


SIZES = (
    Size(2, 5, 6, H=2),
    Size(3, 4, 10, H=2, bias=False, seed=1),
    Size(1, 3, 8, H=4, dropout=0.5, seed=2),
)
LESSON = ModuleLesson("block", STEPS, SIZES, MISTAKES, weights, start, steps, draw, notes)
