"""The lesson on layer normalisation: its four steps and its bank of known mistakes.

Dimensions: B batch, T time, C channels (n_embd). The functions in `forms` and `parts` of MISTAKES
take w and x. w.g is the learner's gain (C,), w.b is the bias (C,) or None, and x (B, T, C) is the
input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.course.exercises.explainer import ExerciseMistake, apart
from gptcli.course.exercises.learner_module import (
    LearnerModule,
    ModuleLesson,
    Run,
    Size,
    close,
    general_mistakes,
)
from gptcli.course.exercises.tensor_trace import TensorTrace
from gptcli.course.lesson import CheckFailed, Step

EPS = 1e-5
GAINS = ("weight", "gain", "gamma", "scale", "g", "a", "alpha", "w")
BIASES = ("bias", "shift", "beta", "offset", "b", "center")
Weights = Any

STEPS = (
    Step(
        "mean",
        "over which numbers is the mean taken, and how many means does x (B, T, C) have?",
        "each token is normalised by itself: one mean per token, over its C channels",
        "reduce the last dimension (dim=-1) and keep it (keepdim=True), so that the mean can be "
        "subtracted",
    ),
    Step(
        "variance",
        "what is squared, and what is the sum of the squares divided by?",
        "sum the squared distances from the mean over the C channels, and divide the sum by C",
        "torch's var() divides by C - 1 unless you pass unbiased=False",
    ),
    Step(
        "normalise",
        "what happens to a token whose channels are all equal?",
        "subtract the mean and divide by sqrt(variance + eps), with eps = 1e-5",
        "add eps to the variance before taking the root, never to the root",
    ),
    Step(
        "gain and bias",
        "which of gain and bias multiplies, which is added, and in which order?",
        "the gain multiplies the normalised channels; then the bias, if there is one, is added",
        "each is an nn.Parameter of length C: the gain starts at ones, the bias at zeros (the bias "
        "is None if config.bias is False)",
    ),
)


def mean(x: Tensor, dim: Any = -1) -> Tensor:
    """Step 1: the mean over `dim`."""
    out: Tensor = x.mean(dim=dim, keepdim=True)
    return out


def variance(x: Tensor, m: Tensor, dim: Any = -1) -> Tensor:
    """Step 2: the mean squared distance from m, over `dim`."""
    return mean((x - m) ** 2, dim)


def gained(w: Weights, y: Tensor) -> Tensor:
    """Step 4: y times the gain, plus the bias if there is one."""
    out: Tensor = y * w.g if w.b is None else y * w.g + w.b
    return out


def steps(w: Weights, x: Tensor) -> Iterator[list[Tensor]]:
    """Yield a list for each step: the tensors that correct code usually computes in this step."""
    m = mean(x)
    yield [m, x - m]
    v = variance(x, m)
    root = torch.sqrt(v + EPS)
    yield [v, v + EPS, v.sqrt(), root, 1 / root]
    y = normal(x)
    yield [y]
    yield [gained(w, y)]


def normal(x: Tensor) -> Tensor:
    """Steps 1 to 3: each token with mean 0 and variance 1."""
    m = mean(x)
    return (x - m) / torch.sqrt(variance(x, m) + EPS)


def _over(dim: Any) -> tuple[Callable[[Weights, Tensor], Tensor], ...]:
    """Wrong layer norms: the mean is over `dim`, the variance over `dim` or the last dimension."""

    def form(w: Weights, x: Tensor, same: bool, var_dim: Any) -> Tensor:
        m = mean(x, dim)
        v = variance(x, mean(x, var_dim) if same else m, var_dim)
        return gained(w, (x - m) / torch.sqrt(v + EPS))

    return tuple(
        partial(form, same=same, var_dim=var) for same in (False, True) for var in (dim, -1)
    )


class _Scaled:
    """A layer norm with a mistake in steps 1 to 3. `part` is its result without gain and bias."""

    def __init__(self, change: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        self._change = change

    def part(self, w: Weights, x: Tensor) -> Tensor:
        m = mean(x)
        return self._change(x, m, variance(x, m))

    def __call__(self, w: Weights, x: Tensor) -> Tensor:
        return gained(w, self.part(w, x))


def _scaled(change: Callable[[Tensor, Tensor, Tensor], Tensor]) -> tuple[Any, ...]:
    """A layer norm that is wrong in steps 1 to 3, for which it calls change(x, mean, variance)."""

    return (_Scaled(change),)


def _affine(change: Callable[[Weights, Tensor], Tensor]) -> tuple[Any, ...]:
    """A layer norm that is wrong in step 4, for which it calls change(w, normalised x)."""

    def form(w: Weights, x: Tensor) -> Tensor:
        return change(w, normal(x))

    return (form,)


def _b(w: Weights) -> Tensor:
    zeros: Tensor = torch.zeros_like(w.g) if w.b is None else w.b
    return zeros


def _unbiased(x: Tensor) -> Tensor:
    return x.var(dim=-1, keepdim=True)


_AFFINE = r"return|\bself\.(weight|gain|gamma|scale|g|bias|beta|shift|b)\b"
# fmt: off
MISTAKES = (
    ExerciseMistake("missing-gain", 4, "a constructor without a gain",
            "your module has no parameter of shape ({C},) for the gain; it has {have}",
            "training does not change a plain tensor, and module.to(device) does not move it",
            "write self.weight = nn.Parameter(torch.ones(config.n_embd))",
            at=r"self\.(weight|gain|gamma|scale|g|w)\s*=|ones"),
    ExerciseMistake("bias-ignored", 4, "a bias that ignores config.bias",
            "with config.bias = {bias} your module has {have}",
            "config.bias says whether there is a bias",
            "make the bias an nn.Parameter if config.bias is True, else None",
            at=r"self\.(bias|beta|shift|b|offset)\s*=|register_parameter\(.bias|zeros"),
    ExerciseMistake("gain-not-ones", 4, "nn.Parameter(torch.zeros(C)) or torch.randn(C)",
            "your gain starts at {value}, not at 1",
            "at the start the layer should only normalise: gain 1, bias 0",
            "start the gain with torch.ones",
            at=r"self\.(weight|gain|gamma|scale|g|w)\s*=|register_parameter\(.weight|ones"),
    ExerciseMistake("bias-not-zeros", 4, "nn.Parameter(torch.ones(C)) for the bias",
            "your bias starts at {value}, not at 0",
            "at the start the layer should only normalise: gain 1, bias 0",
            "start the bias with torch.zeros",
            at=r"self\.(bias|beta|shift|b|offset)\s*=|register_parameter\(.bias|zeros"),
    ExerciseMistake("mean-over-time", 1, "x.mean(dim=1)",
            "your mean goes over dim 1, the {T} tokens, not over the {C} channels",
            "a token would depend on its neighbours, also on later tokens",
            "reduce the last dimension, dim=-1", _over(1),
            at=r"(mean|var|std|sum)\(.*\b1\b",
            parts=(lambda w, x: mean(x, 1),)),
    ExerciseMistake("mean-over-batch", 1, "x.mean(dim=0), as in batch normalisation",
            "your mean goes over dim 0, the {B} sequences, not over the {C} channels",
            "that is batch normalisation; a token must not depend on other sequences",
            "reduce the last dimension, dim=-1", _over(0), at=r"(mean|var|std|sum)\(.*\b0\b",
            parts=(lambda w, x: mean(x, 0),)),
    ExerciseMistake("mean-over-everything", 1, "x.mean()",
            "you take one mean over all {B} x {T} x {C} numbers, not one per token",
            "mean() and var() without dim reduce the whole batch",
            "pass dim=-1 and keepdim=True", _over((0, 1, 2)), at=r"(mean|var|std)\(\s*\)",
            parts=(lambda w, x: x.mean(),)),
    ExerciseMistake("mean-over-tokens-and-channels", 1,
            "x.mean(dim=(-2, -1)) or normalized_shape (T, C)",
            "you take one mean over {T} x {C} numbers, not over the {C} channels of each token",
            "each token is normalised by itself", "reduce only the last dimension", _over((1, 2)),
            at=r"(mean|var|std)\(",
            parts=(lambda w, x: mean(x, (1, 2)),)),
    ExerciseMistake("mean-over-batch-and-time", 1, "x.mean(dim=(0, 1)), as nn.BatchNorm1d does",
            "you take a mean for each of the {C} channels, over all {B} x {T} tokens",
            "that is batch normalisation; here each token is normalised by itself",
            "reduce the last dimension", _over((0, 1)), at=r"(mean|var|std)\(",
            parts=(lambda w, x: mean(x, (0, 1)),)),
    ExerciseMistake("rms", 1, "x / torch.sqrt((x * x).mean(-1) + eps)",
            "you subtract no mean from the {C} channels: this is RMSNorm",
            "layer normalisation subtracts the mean first; RMSNorm does not",
            "subtract the mean from x first, then square and divide",
            _scaled(lambda x, m, v: x / torch.sqrt(mean(x * x) + EPS)), at=r"\*\*\s*2|pow|mean\("),
    ExerciseMistake("unbiased-variance", 2, "x.var(dim=-1) or x.std(dim=-1)",
            "you divide the sum of the squares by C - 1 = {C1}, not by C = {C}",
            "var() and std() estimate from a sample by default; here you have all channels",
            "pass unbiased=False (or correction=0)",
            _scaled(lambda x, m, v: (x - m) / torch.sqrt(_unbiased(x) + EPS))
            + _scaled(lambda x, m, v: (x - m) / (_unbiased(x).sqrt() + EPS))
            + _scaled(lambda x, m, v: (x - m) / _unbiased(x).sqrt()), at=r"\b(var|std)\(|- 1\b",
            parts=(lambda w, x: _unbiased(x), lambda w, x: _unbiased(x).sqrt(),)),
    ExerciseMistake("sum-for-mean", 2, "((x - mean) ** 2).sum(-1)",
            "you sum the {C} squares without dividing by {C}",
            "the variance is the mean of the squares", "take the mean instead of the sum",
            _scaled(lambda x, m, v: (x - m) / torch.sqrt(v * x.shape[-1] + EPS)), at=r"sum\(",
            parts=(lambda w, x: variance(x, mean(x)) * x.shape[-1],)),
    ExerciseMistake("not-squared", 2, "(x - mean).abs().mean(-1)",
            "you do not square the distances of the {C} channels from their mean",
            "the variance is the mean of the squared distances",
            "square the distances", _scaled(
                lambda x, m, v: (x - m) / torch.sqrt(mean((x - m).abs()) + EPS))
            + _scaled(lambda x, m, v: (x - m) / (mean((x - m).abs()) + EPS)), at=r"abs\("),
    ExerciseMistake("root-of-deviation", 2, "torch.sqrt(x.std(-1) + eps)",
            "you take the root of a standard deviation of {C} channels, which is a root already",
            "the standard deviation is the root of the variance", "take the root of the variance",
            _scaled(lambda x, m, v: (x - m) / torch.sqrt(v.sqrt() + EPS))
            + _scaled(lambda x, m, v: (x - m) / torch.sqrt(_unbiased(x).sqrt() + EPS)),
            at=r"std\("),
    ExerciseMistake("variance-not-centred", 2, "(x ** 2).mean(-1)",
            "you square the {C} channels of x, not their distances from the mean",
            "the mean of x squared is the variance plus the squared mean",
            "subtract the mean before squaring",
            _scaled(lambda x, m, v: (x - m) / torch.sqrt(mean(x * x) + EPS)), at=r"\*\*\s*2|pow",
            parts=(lambda w, x: mean(x * x),)),
    ExerciseMistake("eps-outside", 3, "(x - mean) / (torch.sqrt(var) + eps)",
            "you add eps = 1e-05 to the root, not to the variance of the {C} channels",
            "sqrt(v) + eps is not sqrt(v + eps): the outputs differ for a token of small variance",
            "move eps inside the root",
            _scaled(lambda x, m, v: (x - m) / (v.sqrt() + EPS)), at=r"\+\s*(self\.)?(eps|1e-0?5)"),
    ExerciseMistake("eps-divided", 3, "((x - mean) ** 2).sum(-1) + eps, then / C",
            "you add eps = 1e-05 before you divide by C = {C}, so the variance gets only eps / C",
            "eps must be added to the variance itself",
            "divide the sum of the squares by C first, then add eps",
            _scaled(lambda x, m, v: (x - m) / torch.sqrt(v + EPS / x.shape[-1])),
            at=r"\+\s*(self\.)?(eps|1e-0?5)|eps|1e-"),
    ExerciseMistake("no-eps", 3, "(x - mean) / torch.sqrt(var)",
            "you add no eps to the variance of the {C} channels",
            "a token whose channels are all equal has variance 0, which gives 0 / 0",
            "add eps = 1e-5 to the variance", _scaled(lambda x, m, v: (x - m) / v.sqrt()),
            at=r"sqrt\(|std\(|\*\*\s*-?0\.5|/"),
    ExerciseMistake("another-eps", 3, "eps = 1e-6, 1e-8 or 1e-12",
            "your eps is not 1e-05: the output for the {C} channels fits another eps",
            "GPT-2 uses 1e-5, and a trained model needs the eps of its training",
            "set eps to 1e-5", tuple(form for eps in (1e-3, 1e-4, 1e-6, 1e-7, 1e-8, 1e-10, 1e-12)
            for form in _scaled(lambda x, m, v, eps=eps: (x - m) / torch.sqrt(v + eps)))  # type: ignore[misc]
            + _scaled(lambda x, m, v: (x - m) / torch.sqrt(v + EPS * EPS)),
            at=r"1e-|\beps\w*\s*=|0\.0|eps"),
    ExerciseMistake("no-root", 3, "(x - mean) / (var + eps)",
            "you divide the {C} channels by the variance, not by its root",
            "after a division by the variance, the channels have variance 1 / variance, not 1",
            "take the root of variance + eps",
            _scaled(lambda x, m, v: (x - m) / (v + EPS)), at=r"/"),
    ExerciseMistake("not-centred", 3, "x / torch.sqrt(var + eps)",
            "you divide x itself: the mean of its {C} channels is still in the result",
            "the mean must be subtracted from x before the division", "divide x - mean",
            _scaled(lambda x, m, v: x / torch.sqrt(v + EPS)), at=r"/|rsqrt"),
    ExerciseMistake("multiplied-by-root", 3, "(x - mean) * torch.sqrt(var + eps)",
            "you multiply the {C} channels by the root instead of dividing",
            "a token of large variance should shrink",
            "divide by the root, or multiply by torch.rsqrt",
            _scaled(lambda x, m, v: (x - m) * torch.sqrt(v + EPS)), at=r"\*\s*.*sqrt"),
    ExerciseMistake("no-gain", 4, "return normal + self.bias",
            "your gain of {C} numbers is never used", "the layer should learn its gain",
            "multiply the normalised channels by the gain", _affine(lambda w, y: y + _b(w)),
            at=r"return"),
    ExerciseMistake("no-bias", 4, "return normal * self.weight",
            "your bias of {C} numbers is never added", "the layer should learn its bias",
            "add the bias, if there is one, after the gain", _affine(lambda w, y: y * w.g),
            at=r"return"),
    ExerciseMistake("no-gain-or-bias", 4, "return normal",
            "neither your gain nor your bias of {C} numbers is used",
            "without them every layer would output mean 0 and variance 1",
            "multiply by the gain, then add the bias", _affine(lambda w, y: y), at=_AFFINE),
    ExerciseMistake("gain-added", 4, "normal + self.weight + self.bias",
            "your gain of {C} numbers is added, not multiplied", "a gain scales",
            "multiply by the gain", _affine(lambda w, y: y + w.g + _b(w)), at=_AFFINE),
    ExerciseMistake("bias-before-gain", 4, "(normal + self.bias) * self.weight",
            "your bias of {C} numbers is added before the gain multiplies, so it is scaled too",
            "gain first, then bias", "move the bias out of the product",
            _affine(lambda w, y: (y + _b(w)) * w.g), at=_AFFINE),
    ExerciseMistake("bias-subtracted", 4, "normal * self.weight - self.bias",
            "your bias of {C} numbers is subtracted", "a bias must be added", "change the sign",
            _affine(lambda w, y: y * w.g - _b(w)), at=_AFFINE),
    ExerciseMistake("gain-plus-one", 4, "normal * (1 + self.weight) + self.bias",
            "you add 1 to the gain of {C} numbers", "the gain starts at 1 already",
            "multiply by the gain itself", _affine(lambda w, y: y * (1 + w.g) + _b(w)),
            at=_AFFINE),
    ExerciseMistake("gain-and-bias-swapped", 4, "normal * self.bias + self.weight",
            "you multiply by the bias of {C} numbers, and add the gain",
            "the gain multiplies, and the bias is added", "exchange the two",
            _affine(lambda w, y: y * (w.g if w.b is None else w.b)
                    + (0 if w.b is None else w.g)), at=_AFFINE),
    ExerciseMistake("changes-in-training", 4, "dropout, or statistics of the batch",
            "in training mode your output differs by up to {difference} from that in evaluation",
            "a layer norm does the same in training and in evaluation: it has no dropout and keeps "
            "no statistics", "remove the code that depends on self.training", at=r"training|rop"),
    *general_mistakes(4),
)
# fmt: on


def weights(learner: LearnerModule, module: nn.Module, size: Size) -> Weights:
    """The gain and the bias, each (C,), found by name or else by order.

    If there is no gain, the field `g` is a vector of ones, and the field `have` names all
    parameters of the module. `start` reports this fault."""
    gain = bias = None
    have, others = [], []
    for name, parameter in module.named_parameters():
        last = name.rsplit(".", 1)[-1]
        have.append(f"`{name}` {tuple(parameter.shape)}")
        if parameter.numel() != size.C or parameter.shape[-1] != size.C:
            continue
        if last in GAINS and gain is None:
            gain = parameter.flatten()
        elif last in BIASES and bias is None:
            bias = parameter.flatten()
        else:
            others.append(parameter.flatten())
    if gain is None and others:  # the names are unknown, and most constructors make the gain first
        gain = others.pop(0)
    if bias is None and others:
        bias = others.pop(0)
    if gain is None:  # steps 1 to 3 need no gain, so they can still be judged
        ones = torch.ones(size.C, dtype=torch.float64)
        return SimpleNamespace(g=ones, b=bias, have=", ".join(have) or "none")
    return SimpleNamespace(g=gain, b=bias, have=None)


def start(learner: LearnerModule) -> Iterator[CheckFailed]:
    """Yield faults of the constructor: no gain, wrong initial values, or config.bias ignored."""
    for size in SIZES[:2]:
        w = weights(learner, module := learner.construct(size), size)
        lines = learner.constructor
        if w.have is not None:
            yield learner.mistake("missing-gain", within=lines, C=size.C, have=w.have)
        if (w.b is not None) != size.bias:
            have = "no bias" if w.b is None else f"a bias of shape {tuple(w.b.shape)}"
            names = ", ".join(f"`{name}`" for name, _ in module.named_parameters())
            have = f"{have} (its parameters: {names})"
            yield learner.mistake("bias-ignored", within=lines, bias=size.bias, have=have)
        if not bool((w.g == 1).all()):
            value = apart(float(w.g[w.g != 1][0].detach()), 1.0, 3)[0]
            yield learner.mistake("gain-not-ones", within=lines, value=value)
        if w.b is not None and bool(w.b.any()):
            value = f"{float(w.b[w.b != 0][0].detach()):.3g}"
            yield learner.mistake("bias-not-zeros", within=lines, value=value)


def draw(size: Size, generator: torch.Generator) -> Tensor:
    """Random tokens of many scales, because eps matters only for tokens of small variance.

    If the seed of `size` is 2, the channels of one token are all equal."""
    shape = (size.B, size.T, size.C)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    scale = 10.0 ** torch.linspace(-3, 1, size.B * size.T, dtype=torch.float64)
    x = x * scale.view(size.B, size.T, 1) + 0.5
    if size.seed == 2:
        x[0, 0] = 0.75
    return x


def train(learner: LearnerModule) -> Iterator[CheckFailed | tuple[str, str]]:
    """Yield a fault if training mode changes the output, and a note if torch's norm is used."""
    module, w, x = learner.filled(SIZES[0])
    with torch.no_grad():
        trace = TensorTrace(learner.file.path, module)
        y = learner.run(module.train(), w, x, trace)
        wanted = gained(w, normal(x))
    if not close(y, wanted):
        difference = f"{float((y - wanted).abs().max()):.3g}"
        yield learner.mistake_in_forward("changes-in-training", difference=difference)
    if any(isinstance(part, nn.LayerNorm) for part in module.modules()):
        yield "torch's own", "right, but torch.nn.LayerNorm does the steps for you"


def first_wrong(run: Run) -> int | None:
    """Step 1 if forward changes the mean and never uses the correct mean; else None."""
    m = mean(run.x)
    place = run.trace.place_of(m)
    others = (run.x - m, *run.landmarks[1], *run.landmarks[2])
    if place is None or run.x.shape[-1] == 1 or any(run.trace.has(one) for one in others):
        return None
    after = (one for one in run.trace.operations[place + 1 :] if one.results and one.line)
    changed = next(after, None)
    if changed is not None and changed.results[0].shape == m.shape:
        return 1
    return None


SIZES = (
    Size(2, 5, 6),
    Size(3, 4, 7, bias=False, seed=1),
    Size(4, 3, 8, seed=2),
    Size(1, 2, 5, seed=3),
)
LESSON = ModuleLesson(
    "layernorm", STEPS, SIZES, MISTAKES, weights, start, steps, draw, train, first_wrong,
    alone=frozenset({2}), names=((r"eps", 3), (r"weight|bias|gain|gamma|beta|scale|shift", 4)),
)  # fmt: skip
