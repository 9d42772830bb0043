"""Layer normalisation: its four steps, and what people write in their place.

Dimensions: B batch, T time, C channels (n_embd). In the forms below w.g is the learner's gain (C,),
w.b their bias (C,) or None, and x (B, T, C) their input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
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

EPS = 1e-5
GAINS = ("weight", "gain", "gamma", "scale", "g", "a", "alpha")
BIASES = ("bias", "shift", "beta", "offset", "b", "center")
Weights = Any

STEPS = (
    Step(
        "mean",
        "over which numbers is the mean taken, and how many means are there for x of (B, T, C)?",
        "each token is normalised by itself: one mean per token, over its C channels",
        "reduce the last dimension (dim=-1) and keep it (keepdim=True), so that it can be "
        "subtracted",
    ),
    Step(
        "variance",
        "what is squared, and what is the sum of the squares divided by?",
        "the mean over the C channels of the squared distances from the mean, divided by C",
        "torch's own var() divides by C - 1 unless it is told not to (unbiased=False)",
    ),
    Step(
        "normalise",
        "what happens to a token whose channels are all equal?",
        "subtract the mean and divide by the root of variance + eps, with eps = 1e-5",
        "eps is added to the variance before the root is taken, never to the root",
    ),
    Step(
        "gain and bias",
        "which of the two multiplies, which is added, and in which order?",
        "the gain multiplies the normalised channels; the bias, where there is one, comes after",
        "both are nn.Parameter of length C: gain ones, bias zeros (None where config.bias is "
        "False)",
    ),
)


def mean(x: Tensor, dim: Any = -1) -> Tensor:
    """Step 1, over `dim`."""
    out: Tensor = x.mean(dim=dim, keepdim=True)
    return out


def variance(x: Tensor, m: Tensor, dim: Any = -1) -> Tensor:
    """Step 2, around m, over `dim`."""
    return mean((x - m) ** 2, dim)


def gained(w: Weights, y: Tensor) -> Tensor:
    """Step 4."""
    out: Tensor = y * w.g if w.b is None else y * w.g + w.b
    return out


def steps(w: Weights, x: Tensor) -> list[list[Tensor]]:
    """What each step computes, in the forms in which it may show."""
    m = mean(x)
    v = variance(x, m)
    root = torch.sqrt(v + EPS)
    y = (x - m) / root
    return [[m, x - m], [v, v + EPS, v.sqrt(), root, 1 / root], [y], [gained(w, y)]]


def _over(dim: Any) -> tuple[Callable[[Weights, Tensor], Tensor], ...]:
    """Mean and variance over another dimension, both or the mean alone, the variance around
    either mean."""

    def form(w: Weights, x: Tensor, own: bool, var_dim: Any) -> Tensor:
        m = mean(x, dim)
        v = variance(x, mean(x, var_dim) if own else m, var_dim)
        return gained(w, (x - m) / torch.sqrt(v + EPS))

    return tuple(partial(form, own=own, var_dim=var) for own in (False, True) for var in (dim, -1))


def _scaled(change: Callable[[Tensor, Tensor, Tensor], Tensor]) -> tuple[Any, ...]:
    """Another step 2 or 3: change(x, mean, variance) -> the normalised channels."""

    def form(w: Weights, x: Tensor) -> Tensor:
        m = mean(x)
        return gained(w, change(x, m, variance(x, m)))

    return (form,)


def _affine(change: Callable[[Weights, Tensor], Tensor]) -> tuple[Any, ...]:
    """Another step 4."""

    def form(w: Weights, x: Tensor) -> Tensor:
        return change(w, steps(w, x)[2][0])

    return (form,)


def _b(w: Weights) -> Tensor:
    zeros: Tensor = torch.zeros_like(w.g) if w.b is None else w.b
    return zeros


def _unbiased(x: Tensor) -> Tensor:
    return x.var(dim=-1, keepdim=True)


# fmt: off
MISTAKES = (
    ExerciseMistake("missing-gain", 1, "a constructor without a gain",
            "the module has no parameter of shape ({C},) to be the gain; it has {have}",
            "a plain tensor is not trained and stays behind when the module moves",
            "make the gain an nn.Parameter of torch.ones(config.n_embd), called `weight`"),
    ExerciseMistake("bias-ignored", 1, "a bias whatever config.bias says",
            "with config.bias = {bias} the module has {have}",
            "config.bias says whether there is a bias at all",
            "make the bias an nn.Parameter where config.bias is True, else None",
            at=r"self\.(bias|beta|shift|b)\s*="),
    ExerciseMistake("gain-not-ones", 1, "nn.Parameter(torch.zeros(C)) or torch.randn(C)",
            "the gain starts at {value}, not at 1",
            "at the start the layer should normalise and nothing else: gain 1, bias 0",
            "start the gain from torch.ones", at=r"self\.(weight|gain|gamma|scale|g)\s*="),
    ExerciseMistake("bias-not-zeros", 1, "nn.Parameter(torch.ones(C)) for the bias",
            "the bias starts at {value}, not at 0",
            "at the start the layer should normalise and nothing else: gain 1, bias 0",
            "start the bias from torch.zeros", at=r"self\.(bias|beta|shift|b)\s*="),
    ExerciseMistake("mean-over-time", 1, "x.mean(dim=1)",
            "the statistics are taken over dim 1, the {T} tokens, not over the {C} channels",
            "a token would see its neighbours, the later ones too",
            "name the last dimension, whatever the number of dimensions", _over(1),
            at=r"(mean|var|std|sum)\(.*\b1\b"),
    ExerciseMistake("mean-over-batch", 1, "x.mean(dim=0), as in batch normalisation",
            "the statistics are taken over dim 0, the {B} sequences, not over the {C} channels",
            "that is batch normalisation; a token must not depend on other sequences",
            "name the last dimension", _over(0), at=r"(mean|var|std|sum)\(.*\b0\b"),
    ExerciseMistake("mean-over-everything", 1, "x.mean()",
            "one mean is taken over all {B} x {T} x {C} numbers, not one for each token",
            "without dim, mean() and var() take in the whole batch",
            "say dim=-1, and keepdim=True", _over((0, 1, 2)), at=r"(mean|var|std)\(\s*\)"),
    ExerciseMistake("mean-over-tokens-and-channels", 1,
            "x.mean(dim=(-2, -1)) or normalized_shape (T, C)",
            "one mean is taken over {T} x {C} numbers, not over the {C} channels of each token",
            "each token is normalised by itself", "reduce one dimension, the last", _over((1, 2)),
            at=r"(mean|var|std)\("),
    ExerciseMistake("mean-over-batch-and-time", 1, "x.mean(dim=(0, 1)), as nn.BatchNorm1d does",
            "the statistics are taken for each of the {C} channels, over all {B} x {T} tokens",
            "that is batch normalisation; here each token is normalised by itself",
            "reduce the last dimension", _over((0, 1)), at=r"(mean|var|std)\("),
    ExerciseMistake("rms", 1, "x / torch.sqrt((x * x).mean(-1) + eps)",
            "no mean is subtracted from the {C} channels: this is RMSNorm",
            "layer normalisation centres first; RMSNorm leaves that out",
            "take the mean over the channels away, before the squares too",
            _scaled(lambda x, m, v: x / torch.sqrt(mean(x * x) + EPS)), at=r"\*\*\s*2|pow|mean\("),
    ExerciseMistake("unbiased-variance", 2, "x.var(dim=-1) or x.std(dim=-1)",
            "the squares are divided by C - 1 = {C1}, not by C = {C}",
            "var() and std() estimate from a sample unless told otherwise; this is no sample",
            "pass unbiased=False (or correction=0)",
            _scaled(lambda x, m, v: (x - m) / torch.sqrt(_unbiased(x) + EPS))
            + _scaled(lambda x, m, v: (x - m) / (_unbiased(x).sqrt() + EPS))
            + _scaled(lambda x, m, v: (x - m) / _unbiased(x).sqrt()), at=r"\b(var|std)\(|- 1\b"),
    ExerciseMistake("sum-for-mean", 2, "((x - mean) ** 2).sum(-1)",
            "the {C} squares are summed and not divided by {C}",
            "the variance is the mean of the squares", "divide by C, or take the mean",
            _scaled(lambda x, m, v: (x - m) / torch.sqrt(v * x.shape[-1] + EPS)), at=r"sum\("),
    ExerciseMistake("not-squared", 2, "(x - mean).abs().mean(-1)",
            "the distances of the {C} channels from their mean are not squared",
            "the variance is made of squares; without them it is the mean distance",
            "square the distances", _scaled(
                lambda x, m, v: (x - m) / torch.sqrt(mean((x - m).abs()) + EPS))
            + _scaled(lambda x, m, v: (x - m) / (mean((x - m).abs()) + EPS)), at=r"abs\("),
    ExerciseMistake("root-of-deviation", 2, "torch.sqrt(x.std(-1) + eps)",
            "the root is taken of a standard deviation of {C} channels, which is a root already",
            "the standard deviation is the root of the variance", "take the variance there",
            _scaled(lambda x, m, v: (x - m) / torch.sqrt(v.sqrt() + EPS))
            + _scaled(lambda x, m, v: (x - m) / torch.sqrt(_unbiased(x).sqrt() + EPS)),
            at=r"std\("),
    ExerciseMistake("variance-not-centred", 2, "(x ** 2).mean(-1)",
            "the {C} squares are taken of x, not of its distances from the mean",
            "the mean of x squared is the variance plus the square of the mean",
            "subtract the mean before squaring",
            _scaled(lambda x, m, v: (x - m) / torch.sqrt(mean(x * x) + EPS)), at=r"\*\*\s*2|pow"),
    ExerciseMistake("eps-outside", 3, "(x - mean) / (torch.sqrt(var) + eps)",
            "eps = 1e-05 is added to the root, not to the variance of the {C} channels",
            "sqrt(v) + eps is not sqrt(v + eps), as a token of small variance shows",
            "move eps inside the root",
            _scaled(lambda x, m, v: (x - m) / (v.sqrt() + EPS)), at=r"\+\s*(self\.)?(eps|1e-0?5)"),
    ExerciseMistake("no-eps", 3, "(x - mean) / torch.sqrt(var)",
            "no eps is added to the variance of the {C} channels",
            "a token whose channels are all equal has variance 0: 0 / 0",
            "add eps = 1e-5 to the variance", _scaled(lambda x, m, v: (x - m) / v.sqrt()),
            at=r"sqrt\(|std\(|\*\*\s*-?0\.5|/"),
    ExerciseMistake("another-eps", 3, "eps = 1e-6, 1e-8 or 1e-12",
            "eps is not 1e-05: the output for the {C} channels is that of another one",
            "GPT-2's is 1e-5; a trained model expects the one that it was trained with",
            "set eps to 1e-5", tuple(form for eps in (1e-3, 1e-4, 1e-6, 1e-7, 1e-8, 1e-10, 1e-12)
            for form in _scaled(lambda x, m, v, eps=eps: (x - m) / torch.sqrt(v + eps)))  # type: ignore[misc]
            + _scaled(lambda x, m, v: (x - m) / torch.sqrt(v + EPS * EPS)), at=r"1e-|eps"),
    ExerciseMistake("no-root", 3, "(x - mean) / (var + eps)",
            "the {C} channels are divided by the variance, not by its root",
            "dividing by the variance leaves 1 / variance, not 1",
            "take the root of variance + eps",
            _scaled(lambda x, m, v: (x - m) / (v + EPS)), at=r"/"),
    ExerciseMistake("not-centred", 3, "x / torch.sqrt(var + eps)",
            "x itself is divided by the root: the mean of its {C} channels stays in",
            "the mean was computed and not used", "divide x - mean",
            _scaled(lambda x, m, v: x / torch.sqrt(v + EPS)), at=r"/|rsqrt"),
    ExerciseMistake("multiplied-by-root", 3, "(x - mean) * torch.sqrt(var + eps)",
            "the {C} channels are multiplied by the root, not divided by it",
            "a token of large variance should shrink", "divide, or multiply by rsqrt",
            _scaled(lambda x, m, v: (x - m) * torch.sqrt(v + EPS)), at=r"\*\s*.*sqrt"),
    ExerciseMistake("no-gain", 4, "return normal + self.bias",
            "the gain of {C} numbers is never multiplied in", "the gain is there to be learnt",
            "multiply the normalised channels by it", _affine(lambda w, y: y + _b(w)),
            at=r"return"),
    ExerciseMistake("no-bias", 4, "return normal * self.weight",
            "the bias of {C} numbers is never added", "the bias is there to be learnt",
            "add it after the gain, where there is one", _affine(lambda w, y: y * w.g),
            at=r"return"),
    ExerciseMistake("no-gain-or-bias", 4, "return normal",
            "neither the gain nor the bias of {C} numbers is used",
            "without them every layer hands on the same mean and variance",
            "multiply by the gain, then add the bias", _affine(lambda w, y: y), at=r"return"),
    ExerciseMistake("gain-added", 4, "normal + self.weight + self.bias",
            "the gain of {C} numbers is added, not multiplied", "a gain scales",
            "multiply by it", _affine(lambda w, y: y + w.g + _b(w)), at=r"return"),
    ExerciseMistake("bias-before-gain", 4, "(normal + self.bias) * self.weight",
            "the bias of {C} numbers is added before the gain multiplies, so it is scaled too",
            "gain first, then bias", "move the bias out of the product",
            _affine(lambda w, y: (y + _b(w)) * w.g), at=r"return"),
    ExerciseMistake("bias-subtracted", 4, "normal * self.weight - self.bias",
            "the bias of {C} numbers is subtracted", "it is added", "change the sign",
            _affine(lambda w, y: y * w.g - _b(w)), at=r"return"),
    ExerciseMistake("gain-plus-one", 4, "normal * (1 + self.weight) + self.bias",
            "1 is added to the gain of {C} numbers", "the gain starts at 1 already",
            "multiply by the gain itself", _affine(lambda w, y: y * (1 + w.g) + _b(w)),
            at=r"return"),
    ExerciseMistake("gain-and-bias-swapped", 4, "normal * self.bias + self.weight",
            "the bias of {C} numbers multiplies and the gain is added",
            "gain multiplies, bias adds", "exchange the two",
            _affine(lambda w, y: y * (w.g if w.b is None else w.b)
                    + (0 if w.b is None else w.g)), at=r"return"),
    *general_mistakes(4),
)
# fmt: on


def weights(learner: LearnerModule, module: nn.Module, size: Size) -> Weights:
    """Gain and bias by name, each (C,)."""
    gain = bias = None
    have = []
    for name, parameter in module.named_parameters():
        last = name.rsplit(".", 1)[-1]
        have.append(f"`{name}` {tuple(parameter.shape)}")
        if parameter.numel() != size.C or parameter.shape[-1] != size.C:
            continue
        if last in GAINS and gain is None:
            gain = parameter.detach().flatten()
        elif last in BIASES and bias is None:
            bias = parameter.detach().flatten()
    if gain is None:
        raise learner.mistake("missing-gain", C=size.C, have=", ".join(have) or "none")
    return SimpleNamespace(g=gain, b=bias)


def start(learner: LearnerModule) -> None:
    """What the constructor makes: Parameters, of the right start, a bias where asked for."""
    for size in SIZES[:2]:
        w = weights(learner, module := learner.construct(size), size)
        if (w.b is not None) != size.bias:
            have = "no bias" if w.b is None else f"a bias of shape {tuple(w.b.shape)}"
            names = ", ".join(f"`{name}`" for name, _ in module.named_parameters())
            raise learner.mistake("bias-ignored", bias=size.bias, have=f"{have} ({names})")
        if not bool((w.g == 1).all()):
            raise learner.mistake("gain-not-ones", value=f"{float(w.g[w.g != 1][0]):.3g}")
        if w.b is not None and bool(w.b.any()):
            raise learner.mistake("bias-not-zeros", value=f"{float(w.b[w.b != 0][0]):.3g}")


def draw(size: Size, generator: torch.Generator) -> Tensor:
    """Tokens of many means and variances: some so small that eps counts, one constant."""
    shape = (size.B, size.T, size.C)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    scale = 10.0 ** torch.linspace(-3, 1, size.B * size.T, dtype=torch.float64)
    x = x * scale.view(size.B, size.T, 1) + 0.5
    if size.seed == 2:
        x[0, 0] = 0.75
    return x


def notes(learner: LearnerModule) -> Iterator[tuple[str, str]]:
    """Worth telling: nothing here makes a file wrong."""
    if any(isinstance(part, nn.LayerNorm) for part in learner.construct(SIZES[0]).modules()):
        yield "torch's own", "right; torch.nn.LayerNorm does the steps for you"


SIZES = (
    Size(2, 5, 6),
    Size(3, 4, 7, bias=False, seed=1),
    Size(4, 3, 8, seed=2),
    Size(1, 2, 5, seed=3),
)
LESSON = ModuleLesson("layernorm", STEPS, SIZES, MISTAKES, weights, start, steps, draw, notes)
