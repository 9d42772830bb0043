"""Step 1 of the exercise modern, RMSNorm: comparison with the reference, and known mistakes.

Dimensions: B batch, T time, C channels (n_embd). The functions in `forms` of MISTAKES take w and x.
w.g is the learner's gain (C,), w.b is a bias (C,) or None, and x (B, T, C) is the input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.course.exercises.explainer import ExerciseMistake, apart
from gptcli.course.exercises.layernorm import BIASES, GAINS
from gptcli.course.exercises.learner_module import (
    LearnerModule,
    ModuleLesson,
    Size,
    close,
    general_mistakes,
)
from gptcli.course.exercises.modern import EPS
from gptcli.course.exercises.modern_mistakes import STEPS
from gptcli.course.exercises.modern_modules import GroupedSize
from gptcli.course.exercises.tensor_trace import TensorTrace
from gptcli.course.lesson import CheckFailed

Weights = Any


def _mean(x: Tensor, dim: Any = -1) -> Tensor:
    out: Tensor = x.mean(dim=dim, keepdim=True)
    return out


def normal(x: Tensor) -> Tensor:
    """Each token divided by the root of (the mean of its squared channels, plus EPS)."""
    return x / torch.sqrt(_mean(x**2) + EPS)


def steps(w: Weights, x: Tensor) -> Iterator[list[Tensor]]:
    """Yield a list with the result of step 1."""
    yield [normal(x) * w.g]


def _sized(*changes: Callable[[Tensor], Tensor]) -> tuple[Any, ...]:
    """RMSNorms that normalise in a wrong way: change(x) is the result before the gain."""
    return tuple(lambda w, x, change=change: change(x) * w.g for change in changes)


def _gained(*changes: Callable[[Weights, Tensor], Tensor]) -> tuple[Any, ...]:
    """RMSNorms that use the gain in a wrong way: change(w, normalised x) returns the output."""
    return tuple(lambda w, x, change=change: change(w, normal(x)) for change in changes)


def _over(dim: Any) -> tuple[Any, ...]:
    return _sized(lambda x: x / torch.sqrt(_mean(x**2, dim) + EPS))


def _with_eps(*values: float) -> tuple[Any, ...]:
    return tuple(
        form
        for eps in values
        for form in _sized(lambda x, eps=eps: x / torch.sqrt(_mean(x**2) + eps))  # type: ignore[misc]
    )


def _variance(x: Tensor, correction: int = 0) -> Tensor:
    return x.var(dim=-1, keepdim=True, correction=correction)


def _centred(x: Tensor) -> Tensor:
    return x - _mean(x)


def _sum(x: Tensor) -> Tensor:
    out: Tensor = (x**2).sum(dim=-1, keepdim=True)
    return out


def _length(x: Tensor) -> Tensor:
    out: Tensor = x.norm(dim=-1, keepdim=True)
    return out


_ROOT = r"sqrt\(|\*\*\s*-?\s*\(?\s*0?\.5|norm\(|/"
_SQUARES = r"\*\*\s*2|pow|square|mean\(|sum\(|norm\("

# fmt: off
MISTAKES = (
    ExerciseMistake("missing-gain", 1, "a constructor without a gain",
            "your RMSNorm has no parameter of shape ({C},) for the gain; it has {have}",
            "training does not change a plain tensor, and module.to(device) does not move it",
            "write self.weight = nn.Parameter(torch.ones(config.n_embd))",
            at=r"self\.(weight|gain|gamma|scale|g|w)\s*=|ones"),
    ExerciseMistake("gain-not-ones", 1, "nn.Parameter(torch.zeros(C)) or torch.randn(C)",
            "your gain starts at {value}, not at 1",
            "a new layer should only normalise", "start the gain with torch.ones",
            at=r"self\.(weight|gain|gamma|scale|g|w)\s*=|register_parameter|ones"),
    ExerciseMistake("has-bias", 1, "a bias, as in layer normalisation",
            "your RMSNorm has parameters besides the gain: {have}",
            "RMSNorm has only a gain: it subtracts no mean and adds no bias",
            "keep only the gain in the constructor and in forward",
            at=r"self\.(bias|beta|shift|b|offset)\s*=|zeros"),
    ExerciseMistake("mean-subtracted", 1, "(x - mean) / torch.sqrt(var + eps)",
            "you subtract the mean of the {C} channels, as layer normalisation does",
            "RMSNorm is layer normalisation without the mean: it only divides",
            "divide x itself, by the root of the mean of x ** 2",
            _sized(lambda x: _centred(x) / torch.sqrt(_variance(x) + EPS),
                   lambda x: _centred(x) / torch.sqrt(_variance(x, 1) + EPS),
                   lambda x: _centred(x) / torch.sqrt(_mean(x**2) + EPS),
                   lambda x: _centred(x) / torch.sqrt(_variance(x) + 1e-5)), r"\bx\s*-|mean\("),
    ExerciseMistake("variance-for-squares", 1, "x / torch.sqrt(x.var(-1) + eps)",
            "you divide the {C} channels by the root of their variance, not by the root of the "
            "mean of their squares",
            "the variance subtracts the mean before it squares; RMSNorm does not",
            "use (x ** 2).mean(dim=-1, keepdim=True)",
            _sized(lambda x: x / torch.sqrt(_variance(x) + EPS),
                   lambda x: x / torch.sqrt(_variance(x, 1) + EPS),
                   lambda x: x / (_variance(x, 1).sqrt() + EPS), lambda x: x / (
                       _variance(x).sqrt() + EPS), lambda x: x / _variance(x, 1).sqrt(),
                   lambda x: x / _variance(x).sqrt()), r"var\(|std\(|\bx\s*-|var"),
    ExerciseMistake("sum-for-mean", 1, "(x ** 2).sum(-1), or x.norm(dim=-1)",
            "you divide by the length of the vector: the {C} squares are summed, not averaged",
            "the divisor must not grow with the number of channels",
            "take the mean of the squares, or divide the norm by sqrt(C)",
            _sized(lambda x: x / torch.sqrt(_sum(x) + EPS),
                   lambda x: x / (_length(x) + EPS), lambda x: x / _length(x),
                   lambda x: x / _length(x).clamp_min(1e-12), lambda x: x / _length(x).clamp_min(
                       EPS)), r"sum\(|norm\(|normalize"),
    ExerciseMistake("root-of-c-wrong", 1, "x.norm(dim=-1) * C ** 0.5, (x ** 2).sum(-1) / (C - 1)",
            "your divisor is not the root of the mean of the {C} squares: it is too large or too "
            "small by a factor",
            "the mean of the squares is the squared length divided by C",
            "use (x ** 2).mean(dim=-1, keepdim=True)",
            _sized(lambda x: x / (_length(x) / x.shape[-1] + EPS),
                   lambda x: x / torch.sqrt(_sum(x) / x.shape[-1] ** 0.5 + EPS),
                   lambda x: x / torch.sqrt(_sum(x) / (x.shape[-1] - 1) + EPS),
                   lambda x: x / torch.sqrt(_sum(x) / x.shape[-1] ** 2 + EPS),
                   lambda x: x / torch.sqrt(_sum(x) / x.shape[-2] + EPS),
                   lambda x: x / (_length(x) * x.shape[-1] ** 0.5 + EPS)), _SQUARES),
    ExerciseMistake("not-squared", 1, "x.abs().mean(-1), or x.mean(-1) ** 2",
            "you do not average the squares of the {C} channels",
            "square each channel first, then take the mean, then the root",
            "use (x ** 2).mean(dim=-1, keepdim=True)",
            _sized(lambda x: x / (_mean(x.abs()) + EPS), lambda x: x / _mean(x.abs()),
                   lambda x: x / torch.sqrt(_mean(x.abs()) + EPS),
                   lambda x: x / torch.sqrt(_mean(x) ** 2 + EPS), lambda x: x / (_mean(x) + EPS),
                   lambda x: x / torch.sqrt(_mean(x) + EPS), lambda x: x / _mean(x)),
            r"abs\(|mean\("),
    ExerciseMistake("no-root", 1, "x / ((x ** 2).mean(-1) + eps)",
            "you divide the {C} channels by the mean of their squares, not by its root",
            "a token of twice the size would become half as large, but its size must not matter",
            "add eps to the mean, then take the root",
            _sized(lambda x: x / (_mean(x**2) + EPS), lambda x: x / _mean(x**2)), r"/|mean\("),
    ExerciseMistake("multiplied-by-root", 1, "x * torch.sqrt(mean + eps)",
            "you multiply the {C} channels by the root instead of dividing",
            "a token with large channels should shrink",
            "divide by the root, or multiply by torch.rsqrt",
            _sized(lambda x: x * torch.sqrt(_mean(x**2) + EPS)), r"\*.*sqrt|\*"),
    ExerciseMistake("eps-outside", 1, "x / (torch.sqrt(mean) + eps)",
            "you add eps = 1e-06 to the root, not to the mean of the {C} squares",
            "sqrt(m) + eps is not sqrt(m + eps): the outputs differ for a small token",
            "move eps inside the root",
            _sized(lambda x: x / (_mean(x**2).sqrt() + EPS)), r"\+\s*[\w.]*eps|\+\s*1e-|eps"),
    ExerciseMistake("no-eps", 1, "x / torch.sqrt((x ** 2).mean(-1))",
            "you add no eps to the mean of the {C} squares",
            "a token of zeros would give 0 / 0", "add eps = 1e-6 to the mean of the squares",
            _sized(lambda x: x / _mean(x**2).sqrt()), _ROOT),
    ExerciseMistake("eps-as-minimum", 1, "clamp(min=eps)",
            "you use eps as a lower limit, and do not add it to the mean of the {C} squares",
            "eps is added to the mean of the squares, before the root",
            "write torch.sqrt(mean + eps)",
            _sized(lambda x: x / torch.sqrt(_mean(x**2).clamp_min(EPS)),
                   lambda x: x / _mean(x**2).sqrt().clamp_min(EPS)), r"clamp|max"),
    ExerciseMistake("another-eps", 1, "eps = 1e-5, 1e-8 or 1e-12",
            "your eps is not 1e-06: the output for the {C} channels fits another eps",
            "Qwen3 uses 1e-6, and a trained model needs the eps of its training",
            "set eps to 1e-6", _with_eps(1e-2, 1e-3, 1e-4, 1e-5, 1e-7, 1e-8, 1e-9, 1e-10, 1e-12,
                                         torch.finfo(torch.float64).eps,
                                         torch.finfo(torch.float32).eps, EPS * EPS, 2e-6),
            r"1e-|\beps\w*\s*=|0\.0|eps|rms_norm|RMSNorm"),
    ExerciseMistake("over-time", 1, "(x ** 2).mean(dim=1)",
            "your mean goes over dim 1, the {T} tokens, not over the {C} channels",
            "a token would depend on its neighbours, also on later tokens",
            "reduce the last dimension, dim=-1", _over(1), r"(mean|norm|sum)\(.*\b1\b|mean\("),
    ExerciseMistake("over-batch", 1, "(x ** 2).mean(dim=0)",
            "your mean goes over dim 0, the {B} sequences, not over the {C} channels",
            "a token must not depend on other sequences",
            "reduce the last dimension, dim=-1", _over(0), r"(mean|norm|sum)\(.*\b0\b|mean\("),
    ExerciseMistake("over-everything", 1, "(x ** 2).mean()",
            "you take one mean over several tokens, not one for each token of {C} channels",
            "each token is normalised by itself", "pass dim=-1 and keepdim=True",
            (*_over((0, 1, 2)), *_over((1, 2)), *_over((0, 1))), r"(mean|norm|sum)\("),
    ExerciseMistake("no-gain", 1, "return x / size",
            "your gain of {C} numbers is never used", "the layer should learn its gain",
            "multiply by self.weight", _gained(lambda w, y: y), r"return"),
    ExerciseMistake("gain-added", 1, "x / size + self.weight",
            "your gain of {C} numbers is added, not multiplied", "a gain scales",
            "multiply by the gain", _gained(lambda w, y: y + w.g), r"return"),
    ExerciseMistake("gain-divides", 1, "x / (size * self.weight)",
            "you divide by the gain of {C} numbers", "a gain multiplies",
            "multiply by the gain", _gained(lambda w, y: y / w.g), r"return|/"),
    ExerciseMistake("gain-plus-one", 1, "x / size * (1 + self.weight)",
            "you add 1 to the gain of {C} numbers",
            "Gemma does this with a gain that starts at 0, but here the gain starts at 1",
            "multiply by the gain itself", _gained(lambda w, y: y * (1 + w.g)), r"return|1"),
    ExerciseMistake("gain-before-norm", 1, "x = x * self.weight before the mean of the squares",
            "you multiply by the gain before you measure the {C} channels, so the divisor depends "
            "on the gain", "normalise first, then apply the gain",
            "multiply the result by the gain",
            (lambda w, x: normal(x * w.g), lambda w, x: x / torch.sqrt(
                _mean((x * w.g) ** 2) + EPS) * w.g), r"weight|gain|gamma|scale"),
    ExerciseMistake("changes-in-training", 1, "dropout, or statistics of the batch",
            "in training mode your output differs by up to {difference} from that in evaluation",
            "an RMSNorm does the same in training and in evaluation",
            "remove the code that depends on self.training", at=r"training|rop"),
    *general_mistakes(1),
)
# fmt: on


def weights(learner: LearnerModule, module: nn.Module, size: Size) -> Weights:
    """The gain (C,), and the bias (C,) or None. Raises CheckFailed if there is no gain."""
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
    if gain is None and others:
        gain = others.pop(0)
    if gain is None:
        raise learner.mistake(
            "missing-gain", within=learner.constructor, C=size.C, have=", ".join(have) or "none"
        )
    return SimpleNamespace(g=gain, b=bias)


def start(learner: LearnerModule) -> Iterator[CheckFailed]:
    """Yield a CheckFailed if the gain does not start at 1, and one if other parameters exist."""
    w = weights(learner, module := learner.construct(SIZES[0]), SIZES[0])
    lines = learner.constructor
    if not bool((w.g == 1).all()):
        value = apart(float(w.g[w.g != 1][0].detach()), 1.0, 3)[0]
        yield learner.mistake("gain-not-ones", within=lines, value=value)
    others = [name for name, p in module.named_parameters() if p.data_ptr() != w.g.data_ptr()]
    if others:
        have = ", ".join(f"`{name}`" for name in others)
        yield learner.mistake("has-bias", within=lines, have=have)


def draw(size: Size, generator: torch.Generator) -> Tensor:
    """Random tokens of many scales, because eps matters only for tokens with small numbers.

    With seed 2, one token has only zeros."""
    shape = (size.B, size.T, size.C)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) + 0.5
    # for a token with very small numbers, any two values of eps give different outputs
    least = -6 if size.seed == 3 else -3
    x = x * (10.0 ** torch.linspace(least, 1, size.B * size.T)).view(size.B, size.T, 1)
    if size.seed == 2:
        x[0, 0] = 0.0
    return x


def train(learner: LearnerModule) -> Iterator[CheckFailed | tuple[str, str]]:
    """Yield a fault if training mode changes the output, and a note if torch's own norm is used."""
    module, w, x = learner.filled(SIZES[0])
    with torch.no_grad():
        trace = TensorTrace(learner.file.path, module)
        y = learner.run(module.train(), w, x, trace)
    if not close(y, normal(x) * w.g):
        difference = f"{float((y - normal(x) * w.g).abs().max().detach()):.3g}"
        yield learner.mistake_in_forward("changes-in-training", difference=difference)
    if learner.source.find(r"rms_norm\(|nn\.RMSNorm\(", learner.constructor | learner.methods):
        yield "torch's own", "right, but torch's own RMSNorm does the step for you"


SIZES = (
    GroupedSize(2, 5, 6),
    GroupedSize(3, 4, 7, bias=False, seed=1),
    GroupedSize(4, 3, 8, seed=2),
    GroupedSize(1, 2, 5, seed=3),
)
LESSON = ModuleLesson("modern", STEPS[:1], SIZES, MISTAKES, weights, start, steps, draw, train)
