"""The lesson on the feed-forward network (MLP): its four steps and its bank of known mistakes.

Dimensions: B batch, T time, C channels (n_embd), F = 4C. In the `forms` of MISTAKES, w.up is
the learner's first layer, (B, T, C) -> (B, T, F), w.down is the second layer, and x is the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
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
DROPOUT = 0.5

STEPS = (
    Step(
        "expand by 4",
        "how many channels does a token have inside the network?",
        "one linear layer from C to 4C channels, applied to each token by itself",
        "nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias) in the constructor",
    ),
    Step(
        "exact GELU",
        "which activation function is applied to the 4C channels, and in which of its two forms?",
        "GELU is x times the probability that a standard normal number is below x",
        "F.gelu with its defaults does it; by hand it is x * 0.5 * (1 + erf(x / sqrt(2)))",
    ),
    Step(
        "project back",
        "which shape must the output have, so that the block can add it to x?",
        "a second linear layer maps the result of GELU from 4C back to C channels",
        "nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias), applied to the result of "
        "GELU",
    ),
    Step(
        "dropout",
        "what does dropout do in evaluation?",
        "dropout acts on the output, and only in training; in evaluation it changes nothing",
        "make nn.Dropout(config.dropout) in the constructor: it knows the mode of your module",
    ),
)


def phi(x: Tensor) -> Tensor:
    """The probability that a standard normal number is below x."""
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def steps(w: Weights, x: Tensor) -> list[list[Tensor]]:
    """The result of each step, for every form in which it can appear."""
    wide = w.up(x)
    activated = wide * phi(wide)
    out = w.down(activated)
    return [[wide], [activated], [out], [out]]


def _activation(function: Callable[[Tensor], Tensor]) -> tuple[Any, ...]:
    """An MLP with another activation function in step 2."""
    return (lambda w, x: w.down(function(w.up(x))),)


# fmt: off
MISTAKES = (
    ExerciseMistake("missing-layer", 1, "one linear layer, or none",
            "your module has {have}; it needs two matrices, ({C4}, {C}) and ({C}, {C4})",
            "one layer expands, one projects back",
            "make two nn.Linear in the constructor, c_fc and c_proj",
            at=r"nn\.(Linear|Sequential)"),
    ExerciseMistake("gated", 1, "SwiGLU: down(silu(gate(x)) * up(x))",
            "your module has three matrices, {have}; GPT-2's feed-forward network has two",
            "newer models have a gate; that is another network",
            "leave the gate out: expand, GELU, project", at=r"nn\.Linear"),
    ExerciseMistake("wrong-width", 1, "nn.Linear(C, C) or nn.Linear(C, 2 * C)",
            "your hidden width is {width}, which is {times:g} x n_embd; expected 4 x {C} = {C4}",
            "GPT-2 expands by 4", "write 4 * config.n_embd in both layers", at=r"nn\.Linear"),
    ExerciseMistake("bias-ignored", 1, "nn.Linear(C, 4 * C) without bias=",
            "with config.bias = {bias} your first layer has {have}",
            "config.bias says whether linear layers have a bias",
            "pass bias=config.bias to both layers", at=r"nn\.Linear\((?!.*bias)"),
    ExerciseMistake("projection-bias-ignored", 3, "nn.Linear(4 * C, C) without bias=",
            "with config.bias = {bias} your second layer has {have}",
            "config.bias says whether linear layers have a bias",
            "pass bias=config.bias to both layers", at=r"nn\.Linear\(\s*4(?!.*bias)"),
    ExerciseMistake("gelu-before-expanding", 1, "self.c_fc(F.gelu(x))",
            "your GELU acts on the {C} channels of x, before they are expanded to {C4}",
            "two linear layers with nothing between them are one linear layer",
            "expand first, then apply GELU", (lambda w, x: w.down(w.up(F.gelu(x))),
            lambda w, x: w.down(F.gelu(w.up(F.gelu(x))))), at=r"gelu|GELU"),
    ExerciseMistake("tanh-gelu", 2, 'F.gelu(x, approximate="tanh")',
            "your {C4} channels go through GELU's tanh form; this exercise asks for the exact one",
            "the tanh form, which GPT-2 uses, differs by up to 0.0005: close, but not the same",
            "use the error function: F.gelu with its default",
            _activation(lambda a: F.gelu(a, approximate="tanh")), at=r"tanh"),
    ExerciseMistake("relu", 2, "F.relu(x)", "your {C4} channels go through ReLU, not GELU",
            "the transformer of 2017 used ReLU; GPT-2 uses GELU",
            "replace ReLU by GELU", _activation(F.relu), at=r"(?i)relu|clamp|max"),
    ExerciseMistake("silu", 2, "F.silu(x), or x * torch.sigmoid(x)",
            "your {C4} channels go through SiLU (x times sigmoid of x), not GELU",
            "SiLU looks like GELU, but it is wider", "replace it by GELU", _activation(F.silu),
            at=r"(?i)silu|sigmoid"),
    ExerciseMistake("sigmoid-gelu", 2, "x * torch.sigmoid(1.702 * x)",
            "your {C4} channels go through the sigmoid approximation of GELU",
            "sigmoid(1.702 * x) matches the normal distribution to only two digits",
            "use the error function", _activation(lambda a: a * torch.sigmoid(1.702 * a)),
            at=r"1\.702|sigmoid"),
    ExerciseMistake("no-activation", 2, "self.c_proj(self.c_fc(x))",
            "no activation function acts on your {C4} channels between the two layers",
            "two linear layers with nothing between them are one linear layer",
            "apply GELU to the output of the first layer", _activation(lambda a: a),
            at=r"c_proj\("),
    ExerciseMistake("sigmoid", 2, "torch.sigmoid(x)", "your {C4} channels go through a sigmoid",
            "it saturates on both sides; GELU is nearly x for large x", "replace it by GELU",
            _activation(torch.sigmoid), at=r"(?i)sigmoid"),
    ExerciseMistake("tanh", 2, "torch.tanh(x)", "your {C4} channels go through tanh",
            "it saturates on both sides; GELU is nearly x for large x", "replace it by GELU",
            _activation(torch.tanh), at=r"(?i)tanh"),
    ExerciseMistake("leaky-relu", 2,
            "F.leaky_relu(x)", "your {C4} channels go through a leaky ReLU or ELU",
            "GELU is smooth and goes to 0 on the left", "replace it by GELU",
            (*_activation(F.leaky_relu), *_activation(F.elu),
             *_activation(lambda a: F.leaky_relu(a, 0.1))),
            at=r"(?i)relu|elu"),
    ExerciseMistake("gelu-twice", 2, "F.gelu(F.gelu(x))",
            "GELU acts on your {C4} channels twice", "once is enough",
            "look for a second GELU before the second layer",
            _activation(lambda a: F.gelu(F.gelu(a))),
            at=r"(?i)gelu"),
    ExerciseMistake("gelu-without-x", 2, "0.5 * (1 + torch.erf(x / sqrt(2)))",
            "your {C4} channels become probabilities, which are not multiplied by x",
            "GELU is x times that probability", "multiply by x", _activation(phi), at=r"erf"),
    ExerciseMistake("gelu-without-root", 2, "x * 0.5 * (1 + torch.erf(x))",
            "you take erf of the {C4} channels without dividing them by the square root of 2",
            "the normal distribution needs erf(x / sqrt(2))",
            "divide by math.sqrt(2) inside erf",
            _activation(lambda a: 0.5 * a * (1 + torch.erf(a))), at=r"erf"),
    ExerciseMistake("gelu-without-half", 2, "x * (1 + torch.erf(x / sqrt(2)))",
            "your {C4} channels are twice too large: 1 + erf is not halved",
            "1 + erf runs from 0 to 2, a probability from 0 to 1", "multiply by 0.5",
            _activation(lambda a: 2 * a * phi(a)), at=r"erf"),
    ExerciseMistake("gelu-after-projection", 3, "F.gelu(self.c_proj(self.c_fc(x)))",
            "your GELU acts on the {C} channels of the output instead of the {C4} inside",
            "two linear layers with nothing between them are one linear layer",
            "apply GELU between the layers, not after them",
            (lambda w, x: F.gelu(w.down(w.up(x))),),
            at=r"(?i)gelu"),
    ExerciseMistake("output-bent", 3, "F.gelu(self.c_proj(F.gelu(self.c_fc(x))))",
            "an activation function also acts on the {C} channels of your output",
            "the block adds your output to x, so the output must be able to take any value",
            "end with the linear layer",
            (lambda w, x: F.gelu(w.down(F.gelu(w.up(x)))),
             lambda w, x: F.relu(w.down(F.gelu(w.up(x))))), at=r"(?i)gelu"),
    ExerciseMistake("residual-inside", 3, "return x + self.c_proj(h)",
            "your MLP adds x, of {C} channels; the block adds it again",
            "the block adds the residual", "return only the projection",
            (lambda w, x: x + w.down(F.gelu(w.up(x))),), at=r"return|\+"),
    ExerciseMistake("scaled-in-evaluation", 4, "y * (1 - config.dropout)",
            "in evaluation your {C} channels are scaled by 1 - dropout",
            "dropout already scales up in training, so evaluation needs no scaling",
            "do not scale the output in evaluation",
            (lambda w, x: w.down(F.gelu(w.up(x))) * (1 - w.p),
             lambda w, x: w.down(F.gelu(w.up(x))) / (1 - w.p)), at=r"1\.?0?\s*-"),
    *general_mistakes(3, dropout_step=4),
)
# fmt: on


def weights(learner: LearnerModule, module: nn.Module, size: Size) -> Weights:
    """The two layers, found by the shapes of their matrices.

    Accepts bare matrices in either orientation. Raises CheckFailed unless two matrices have
    the right width."""
    C, C4 = size.C, 4 * size.C
    found = [(n, p.detach()) for n, p in module.named_parameters()]
    matrices = [(n, p) for n, p in found if p.dim() == 2]
    have = ", ".join(f"`{n}` {tuple(p.shape)}" for n, p in matrices) or "no matrix"
    if len(matrices) == 3 and {p.numel() for _, p in matrices} == {matrices[0][1].numel()}:
        raise learner.mistake("gated", have=have)
    if len(matrices) != 2:
        raise learner.mistake("missing-layer", have=have, C=C, C4=C4)
    linear = {f"{n}.weight" for n, m in module.named_modules() if isinstance(m, nn.Linear)}
    up, down = matrices
    if up[0] in linear and up[1].shape[1] != C and down[1].shape[1] == C:
        up, down = down, up  # the constructor made the second layer first
    width = up[1].numel() // C
    if width != C4 or down[1].numel() != C * C4 or C not in up[1].shape:
        raise learner.mistake("wrong-width", width=width, times=width / C, C=C, C4=C4)

    def layer(name: str, matrix: Tensor, into: int) -> tuple[Callable[[Tensor], Tensor], Any]:
        owner = name.rpartition(".")[0]
        out = matrix.numel() // into
        same_size = [p for n, p in found if p.dim() == 1 and p.shape[0] == out]
        named = [p for n, p in found if owner and n == f"{owner}.bias"]
        bias = next(iter(named or same_size), None)
        turned = matrix if matrix.shape[1] == into else matrix.T
        return (lambda x: F.linear(x, turned, bias)), bias

    (go_up, up_bias), (go_down, down_bias) = layer(*up, C), layer(*down, C4)
    return SimpleNamespace(
        up=go_up, down=go_down, up_bias=up_bias, down_bias=down_bias, p=size.dropout
    )


def start(learner: LearnerModule) -> None:
    """Check what the constructor makes: two layers, with biases if config.bias is True."""
    for size in SIZES[:2]:
        w = weights(learner, learner.construct(size), size)
        for slug, bias in (
            ("bias-ignored", w.up_bias),
            ("projection-bias-ignored", w.down_bias),
        ):
            if (bias is not None) != size.bias:
                have = "no bias" if bias is None else f"a bias of shape {tuple(bias.shape)}"
                raise learner.mistake(slug, bias=size.bias, have=have)


def draw(size: Size, generator: torch.Generator) -> Tensor:
    """An x that is wide enough for the forms of GELU to differ."""
    return 2 * torch.randn(size.B, size.T, size.C, generator=generator, dtype=torch.float64)


def notes(learner: LearnerModule) -> Iterator[tuple[str, str]]:
    """Notes on dropout in training. They do not make a file wrong."""
    size = Size(4, 8, 16, dropout=DROPOUT, seed=5)
    module = learner.construct(size)
    w = weights(learner, module, size)
    x = draw(size, torch.Generator().manual_seed(3))
    with torch.no_grad():
        wanted = steps(w, x)[-1][0]
        torch.manual_seed(0)
        y = learner.run(module.train(), x)
    if torch.allclose(y, wanted):
        yield "dropout", f"none acts in training, although config.dropout is {DROPOUT}"
        return
    dropped = y.abs() < 1e-12
    if not bool(dropped.any()):
        yield "dropout", "acts inside the network in training, never on the output"
    elif not torch.allclose(y[~dropped], wanted[~dropped] / (1 - DROPOUT)):
        yield (
            "dropout",
            "in training it does not divide the kept values by 1 - dropout, or it acts twice",
        )


SIZES = (
    Size(2, 5, 6),
    Size(3, 4, 7, bias=False, seed=1),
    Size(1, 3, 5, dropout=DROPOUT, seed=2),
    Size(4, 2, 9, dropout=0.25, seed=3),
)
LESSON = ModuleLesson("mlp", STEPS, SIZES, MISTAKES, weights, start, steps, draw, notes)
