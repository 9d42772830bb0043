"""The lesson on the feed-forward network (MLP): its four steps and its bank of known mistakes.

Dimensions: B batch, T time, C channels (n_embd), F = 4C. The functions in `forms` and `parts` of
MISTAKES take w and x. w.up is the learner's first layer, (B, T, C) -> (B, T, F), w.down is the
second layer, w.p is config.dropout, and x is the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptcli.course.exercises.explainer import ExerciseMistake, apart
from gptcli.course.exercises.learner_module import (
    LearnerModule,
    ModuleLesson,
    Size,
    close,
    general_mistakes,
)
from gptcli.course.exercises.tensor_trace import TensorTrace
from gptcli.course.lesson import CheckFailed, Step
from gptcli.plurals import counted

Weights = Any
DROPOUT = 0.5
DROPOUT_LINE = r"(?i)drop|bernoulli|rand|self\.p\b|self\.net\b"

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
        "F.gelu computes this by default; by hand it is x * 0.5 * (1 + erf(x / sqrt(2)))",
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


def steps(w: Weights, x: Tensor) -> Iterator[list[Tensor]]:
    """Yield the correct result of each step. Stops after step 2 if w.down is None."""
    wide = w.up(x)
    yield [wide]
    activated = wide * phi(wide)
    yield [activated]
    if w.down is None:
        return
    out = w.down(activated)
    yield [out]
    yield [out]


def _activation(function: Callable[[Tensor], Tensor]) -> tuple[Any, ...]:
    """An MLP that applies `function` in step 2 instead of the exact GELU."""
    return (lambda w, x: w.down(function(w.up(x))),)


def _tanh_gelu(a: Tensor) -> Tensor:
    return F.gelu(a, approximate="tanh")


# fmt: off
MISTAKES = (
    ExerciseMistake("missing-layer", 1, "no linear layer, more than two, or one of a wrong shape",
            "your module has {have}; it needs two matrices, ({C4}, {C}) and ({C}, {C4})",
            "one layer expands, the other projects back",
            "make two nn.Linear in the constructor, c_fc and c_proj",
            at=r"nn\.(Linear|Sequential)"),
    ExerciseMistake("gated", 1, "SwiGLU: down(silu(gate(x)) * up(x))",
            "your module has three matrices, {have}; GPT-2's feed-forward network has two",
            "newer models have a gate, but GPT-2 has none",
            "leave the gate out: expand, GELU, project", at=r"nn\.Linear"),
    ExerciseMistake("no-second-layer", 3, "one linear layer",
            "your module has one matrix, {have}; it needs two, ({C4}, {C}) and ({C}, {C4})",
            "one layer expands, the other projects back",
            "make c_proj in the constructor, a linear layer from 4C to C",
            at=r"proj|Identity|fc2|down|w2"),
    ExerciseMistake("fixed-width", 1, "nn.Linear(768, 3072)",
            "your first layer {name} takes {into}; with this config x has n_embd = {C}",
            "config.n_embd is the number of channels of x",
            "write nn.Linear(config.n_embd, 4 * config.n_embd)", at=r"Linear|Parameter"),
    ExerciseMistake("wrong-second-layer", 3, "nn.Linear(C, 4 * C) twice, or nn.Linear(2 * C, C)",
            "your second layer {name} has a weight of shape {shape}, expected ({C}, {C4}): from "
            "4 x n_embd = {C4} channels back to {C}",
            "the second layer takes the output of the first one, and must return as many channels "
            "as x has",
            "write nn.Linear(4 * config.n_embd, config.n_embd)", at=r"Linear|Parameter"),
    ExerciseMistake("wrong-width", 1, "nn.Linear(C, C) or nn.Linear(C, 2 * C)",
            "your hidden width is {width}, which is {times:g} x n_embd; expected 4 x {C} = {C4}",
            "GPT-2 has 4 times as many channels inside", "write 4 * config.n_embd in both layers",
            at=r"nn\.Linear"),
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
            "GELU acts once, between the two layers; the first layer reads x itself",
            "expand first, then apply GELU", (lambda w, x: w.down(w.up(F.gelu(x))),
            lambda w, x: w.down(F.gelu(w.up(F.gelu(x))))), at=r"gelu|GELU"),
    ExerciseMistake("tanh-gelu", 2, 'F.gelu(x, approximate="tanh")',
            "your {C4} channels go through GELU's tanh form; this exercise asks for the exact one",
            "the tanh form, which GPT-2 uses, differs by up to 0.0005: close, but not the same",
            "use the exact form: F.gelu(x) without `approximate`",
            _activation(_tanh_gelu), at=r"tanh",
            parts=(lambda w, x: _tanh_gelu(w.up(x)),)),
    ExerciseMistake("relu", 2, "F.relu(x)", "your {C4} channels go through ReLU, not GELU",
            "the transformer of 2017 used ReLU; GPT-2 uses GELU",
            "replace ReLU by GELU", _activation(F.relu), at=r"(?i)relu|clamp|max",
            parts=(lambda w, x: F.relu(w.up(x)),)),
    ExerciseMistake("silu", 2, "F.silu(x), or x * torch.sigmoid(x)",
            "your {C4} channels go through SiLU (x times sigmoid of x), not GELU",
            "SiLU has a similar curve, but other values",
            "replace SiLU by GELU", _activation(F.silu),
            at=r"(?i)silu|sigmoid",
            parts=(lambda w, x: F.silu(w.up(x)),)),
    ExerciseMistake("sigmoid-gelu", 2, "x * torch.sigmoid(1.702 * x)",
            "your {C4} channels go through the sigmoid approximation of GELU",
            "sigmoid(1.702 * x) agrees with the normal distribution to only two digits",
            "use the error function", _activation(lambda a: a * torch.sigmoid(1.702 * a)),
            at=r"1\.702|sigmoid"),
    ExerciseMistake("no-activation", 2, "self.c_proj(self.c_fc(x))",
            "no activation function acts on your {C4} channels between the two layers",
            "two linear layers without an activation between them are no more than one linear "
            "layer",
            "apply GELU to the output of the first layer", _activation(lambda a: a),
            at=r"c_(proj|fc)\("),
    ExerciseMistake("sigmoid", 2, "torch.sigmoid(x)", "your {C4} channels go through a sigmoid",
            "a sigmoid saturates on both sides; GELU is nearly x for large x",
            "replace the sigmoid by GELU", _activation(torch.sigmoid), at=r"(?i)sigmoid",
            parts=(lambda w, x: torch.sigmoid(w.up(x)),)),
    ExerciseMistake("tanh", 2, "torch.tanh(x)", "your {C4} channels go through tanh",
            "tanh saturates on both sides; GELU is nearly x for large x",
            "replace tanh by GELU", _activation(torch.tanh), at=r"(?i)tanh",
            parts=(lambda w, x: torch.tanh(w.up(x)),)),
    ExerciseMistake("leaky-relu", 2,
            "F.leaky_relu(x)", "your {C4} channels go through a leaky ReLU or ELU",
            "GELU is smooth, and nearly 0 for very negative x", "use GELU instead",
            (*_activation(F.leaky_relu), *_activation(F.elu),
             *_activation(lambda a: F.leaky_relu(a, 0.1))),
            at=r"(?i)relu|elu"),
    ExerciseMistake("gelu-twice", 2, "F.gelu(F.gelu(x))",
            "GELU acts on your {C4} channels twice", "once is enough",
            "look for a second GELU before the second layer",
            _activation(lambda a: F.gelu(F.gelu(a))),
            at=r"(?i)gelu"),
    ExerciseMistake("gelu-without-x", 2, "0.5 * (1 + torch.erf(x / sqrt(2)))",
            "you turn your {C4} channels into probabilities, but do not multiply these by x",
            "GELU is x times the probability that a standard normal number is below x",
            "multiply by x", _activation(phi), at=r"erf"),
    ExerciseMistake("gelu-without-root", 2, "x * 0.5 * (1 + torch.erf(x))",
            "you take erf of the {C4} channels without dividing them by the square root of 2",
            "the normal distribution needs erf(x / sqrt(2))",
            "divide by math.sqrt(2) inside erf",
            _activation(lambda a: 0.5 * a * (1 + torch.erf(a))), at=r"erf"),
    ExerciseMistake("gelu-without-half", 2, "x * (1 + torch.erf(x / sqrt(2)))",
            "your {C4} channels are twice as large as they should be: 1 + erf is not halved",
            "1 + erf lies between 0 and 2, but a probability lies between 0 and 1",
            "multiply by 0.5",
            _activation(lambda a: 2 * a * phi(a)), at=r"erf"),
    ExerciseMistake("gelu-after-projection", 2, "F.gelu(self.c_proj(self.c_fc(x)))",
            "your GELU acts on the {C} channels of the output instead of the {C4} channels inside",
            "two linear layers without an activation between them are no more than one linear "
            "layer",
            "apply GELU between the layers, not after them",
            (lambda w, x: F.gelu(w.down(w.up(x))),),
            at=r"(?i)gelu|c_proj\(",
            parts=(lambda w, x: F.gelu(w.down(w.up(x))),)),
    ExerciseMistake("output-bent", 3, "F.gelu(self.c_proj(F.gelu(self.c_fc(x))))",
            "an activation function also acts on the {C} channels of your output",
            "the block adds your output to x, so the output must be able to take any value",
            "end with the linear layer",
            (lambda w, x: F.gelu(w.down(F.gelu(w.up(x)))),
             lambda w, x: F.relu(w.down(F.gelu(w.up(x))))), at=r"(?i)gelu"),
    ExerciseMistake("residual-inside", 3, "return x + self.c_proj(h)",
            "your MLP adds x, of {C} channels; the block adds it again",
            "the block, not the MLP, adds x", "return only the projection",
            (lambda w, x: x + w.down(F.gelu(w.up(x))),), at=r"return|\+"),
    ExerciseMistake("scaled-in-evaluation", 4, "y * (1 - config.dropout)",
            "in evaluation you multiply or divide the {C} channels by 1 - dropout",
            "dropout already scales up in training, so evaluation needs no scaling",
            "do not scale the output in evaluation",
            (lambda w, x: w.down(F.gelu(w.up(x))) * (1 - w.p),
             lambda w, x: w.down(F.gelu(w.up(x))) / (1 - w.p)), at=r"1\.?0?\s*-"),
    ExerciseMistake("dropout-never-acts", 4, "no dropout, or one that forward does not call",
            "in training, with config.dropout = {p}, your forward drops nothing",
            "dropout makes some channels 0 in training; the constructor's nn.Dropout acts only if "
            "forward calls it", "apply self.dropout to the output of the second layer",
            at=r"^\s*return\b"),
    ExerciseMistake("dropout-rate-inverted", 4, "nn.Dropout(1 - config.dropout)",
            "with config.dropout = {p} your forward drops {rate:.0%} of the channels in training",
            "nn.Dropout takes the probability to drop, not the probability to keep; with "
            "config.dropout = 0 your forward would drop everything",
            "pass config.dropout itself", at=DROPOUT_LINE),
    ExerciseMistake("dropout-rate", 4, "nn.Dropout(0.1), whatever the config says",
            "with config.dropout = {p} your forward drops {rate:.0%} of the channels in training",
            "config.dropout is the rate; 0 switches dropout off", "pass config.dropout",
            at=DROPOUT_LINE),
    ExerciseMistake("dropout-not-scaled", 4, "y * mask without / (1 - p)",
            "in training, with config.dropout = {p}, your forward multiplies the kept values by "
            "{factor}, expected 1 / (1 - {p}) = {wanted}",
            "the mean of a channel must be the same in training and in evaluation",
            "divide the kept values by 1 - config.dropout, or use nn.Dropout",
            at=DROPOUT_LINE),
    ExerciseMistake("dropout-in-groups", 4, "one random number per token, or one mask for a batch",
            "in training, with config.dropout = {p}, your forward drops {groups}, instead of "
            "single numbers", "dropout keeps or drops each number independently of all others",
            "draw a random number for each number of the output, or use nn.Dropout",
            at=DROPOUT_LINE),
    ExerciseMistake("dropout-elsewhere", 4, "self.dropout(x), or dropout before GELU",
            "in training, with config.dropout = {p}, your output changes in another way than by "
            "dropout on the output or on GELU's result",
            "dropout acts on the output of the second layer",
            "apply self.dropout to that output only, and return the result", at=DROPOUT_LINE),
    *general_mistakes(3, dropout_step=4),
)
# fmt: on


def weights(learner: LearnerModule, module: nn.Module, size: Size) -> Weights:
    """The two layers, found by the shapes of their matrices.

    A matrix that is not in an nn.Linear can also be transposed. `down` is None if no second layer
    has the correct shape; `start` reports this fault. Raises CheckFailed if the module has no
    matrix or more than two, or if the first matrix has a wrong shape."""
    C, C4 = size.C, 4 * size.C
    found = list(module.named_parameters())
    matrices = [(n, p) for n, p in found if p.dim() == 2]
    have = ", ".join(f"`{n}` {tuple(p.shape)}" for n, p in matrices) or "no matrix"
    lines = learner.constructor
    if len(matrices) == 3 and {p.numel() for _, p in matrices} == {matrices[0][1].numel()}:
        raise learner.mistake("gated", within=lines, have=have)
    if len(matrices) not in (1, 2):
        raise learner.mistake("missing-layer", within=lines, have=have, C=C, C4=C4)
    linear = {f"{n}.weight" for n, m in module.named_modules() if isinstance(m, nn.Linear)}
    up, down = matrices[0], matrices[-1]
    if up[0] in linear and up[1].shape[1] != C and down[1].shape[1] == C:
        up, down = down, up  # the constructor made the second layer first
    if up[0] in linear and len(matrices) == 1 and tuple(up[1].shape) != (C4, C):
        raise learner.mistake("missing-layer", within=lines, have=have, C=C, C4=C4)
    if C not in up[1].shape or (up[0] in linear and up[1].shape[1] != C):
        into = up[1].shape[1]
        raise learner.mistake(
            "fixed-width", within=lines, name=f"`{up[0]}`", into=counted(into, "channel"), C=C
        )
    width = up[1].numel() // C
    if width != C4:
        raise learner.mistake("wrong-width", within=lines, width=width, times=width / C, C=C, C4=C4)

    def layer(name: str, matrix: Tensor, into: int) -> tuple[Callable[[Tensor], Tensor], Any]:
        owner = name.rpartition(".")[0]
        out = matrix.numel() // into
        same_size = [p for n, p in found if p.dim() == 1 and p.shape[0] == out]
        named = [p for n, p in found if owner and n == f"{owner}.bias"]
        bias = next(iter(named or ([] if name in linear else same_size)), None)
        turned = matrix if matrix.shape[1] == into else matrix.T
        return (lambda x: F.linear(x, turned, bias)), bias

    go_up, up_bias = layer(*up, C)
    second = None if len(matrices) == 1 else down
    shapes = [(C, C4)] if down[0] in linear else [(C, C4), (C4, C)]
    if second is None or tuple(down[1].shape) not in shapes:
        return SimpleNamespace(
            up=go_up, down=None, up_bias=up_bias, down_bias=None, p=size.dropout, second=second
        )
    go_down, down_bias = layer(*down, C4)
    return SimpleNamespace(
        up=go_up, down=go_down, up_bias=up_bias, down_bias=down_bias, p=size.dropout, second=second
    )


def start(learner: LearnerModule) -> Iterator[CheckFailed]:
    """Yield the faults of the constructor: a missing or wrong second layer, or wrong biases."""
    for size in SIZES[:2]:
        module = learner.construct(size)
        w = weights(learner, module, size)
        C, C4, lines = size.C, 4 * size.C, learner.constructor
        if (w.up_bias is not None) != size.bias:
            have = _bias_in_words(w.up_bias)
            yield learner.mistake("bias-ignored", within=lines, bias=size.bias, have=have)
        if w.second is None:
            have = ", ".join(
                f"`{n}` {tuple(p.shape)}" for n, p in module.named_parameters() if p.dim() == 2
            )
            yield learner.mistake("no-second-layer", within=lines, have=have, C=C, C4=C4)
        elif w.down is None:
            name, matrix = w.second
            second = learner.source.matches(r"Linear|Parameter", lines)
            yield learner.mistake(
                "wrong-second-layer", line=second[-1] if second else None, name=f"`{name}`",
                shape=tuple(matrix.shape), C=C, C4=C4,
            )  # fmt: skip
        elif (w.down_bias is not None) != size.bias:
            have = _bias_in_words(w.down_bias)
            layers = learner.source.matches(r"nn\.Linear", lines)
            yield learner.mistake(
                "projection-bias-ignored",
                line=layers[-1] if layers else None,
                bias=size.bias,
                have=have,
            )


def _bias_in_words(bias: Tensor | None) -> str:
    return "no bias" if bias is None else f"a bias of shape {tuple(bias.shape)}"


def draw(size: Size, generator: torch.Generator) -> Tensor:
    """A random x with numbers so large that exact and approximate GELU differ."""
    return 2 * torch.randn(size.B, size.T, size.C, generator=generator, dtype=torch.float64)


def train(learner: LearnerModule) -> Iterator[CheckFailed | tuple[str, str]]:
    """Yield a fault of dropout in training (its rate, scale or place), or a note about dropout."""
    for p in (0.25, 0.1, 0.0):
        found = _dropout(learner, p)
        if isinstance(found, CheckFailed):
            yield found
            return
        if found is not None and p == 0.25:
            yield "dropout", found


def _scale_facts(p: float, factor: Tensor) -> dict[str, Any]:
    """The facts for a message about dropout with rate `p`, which multiplies by `factor`."""
    mine, wanted = apart(float(factor.mean()), 1 / (1 - p), 3)
    return {"p": p, "factor": mine, "wanted": wanted}


def _dropout(learner: LearnerModule, p: float) -> CheckFailed | str | None:
    """The CheckFailed for wrong dropout at rate `p`, a note on where dropout acts, or None."""
    size = Size(4, 32, 32, dropout=p, seed=5)
    module, w, x = learner.filled(size)
    with torch.no_grad():
        *_, (activated,), (wanted,), _ = steps(w, x)
        torch.manual_seed(0)
        trace = TensorTrace(learner.file.path, module)
        y = learner.run(module.train(), w, x, trace)
    if close(y, wanted):
        return None if p == 0 else learner.mistake_in_forward("dropout-never-acts", p=p)
    inside = _dropped(trace, activated)
    after = wanted
    if inside is not None:
        wrong = _wrong_dropout(learner, p, inside, activated)
        if wrong is not None:
            return wrong
        with torch.no_grad():
            after = w.down(inside)
        if close(y, after):
            return "acts on GELU's result in training, not on the output"
    if not bool(((y == 0) & (after.abs() > 1e-9)).any()):
        factor = y / after
        if p > 0 and float(factor.std()) < 1e-9:
            return learner.mistake_in_forward("dropout-not-scaled", **_scale_facts(p, factor))
        return learner.mistake_in_forward("dropout-elsewhere", p=p)
    wrong = _wrong_dropout(learner, p, y, after)
    if wrong is None and inside is not None:
        return "acts twice in training: on GELU's result and on the output"
    return wrong


def _dropped(trace: TensorTrace, whole: Tensor) -> Tensor | None:
    """The first traced tensor that dropout can have made from `whole`; None if there is none.

    Dropout sets some numbers to 0, and multiplies all others by the same factor."""
    for operation in trace.operations:
        for tensor in operation.results:
            if tensor.shape != whole.shape or not bool(((tensor == 0) & (whole != 0)).any()):
                continue
            factor = (tensor / whole)[tensor != 0]
            if len(factor) < 2 or float(factor.std()) < 1e-9:
                return tensor
    return None


def _wrong_dropout(
    learner: LearnerModule, p: float, y: Tensor, wanted: Tensor
) -> CheckFailed | None:
    """The CheckFailed for a dropout that made `y` from `wanted`; None if the dropout is correct.

    A correct dropout has the rate `p`."""
    zero = y == 0
    rate = float(zero[wanted != 0].double().mean())
    for dim, groups in (
        (-1, "whole tokens"), (0, "the same numbers in all sequences"), (1, "whole channels")
    ):  # fmt: skip
        share = zero.double().mean(dim=dim)
        if 0 < rate < 1 and bool(((share == 0) | (share == 1)).all()):
            return learner.mistake_in_forward("dropout-in-groups", p=p, groups=groups)
    if abs(rate - p) > 0.03 or (p == 0 and rate > 0):
        slug = "dropout-rate-inverted" if abs(rate - (1 - p)) < 0.03 else "dropout-rate"
        return learner.mistake_in_forward(slug, p=p, rate=rate)
    factor = (y / wanted)[~zero]
    if float(factor.std()) > 1e-9:
        return learner.mistake_in_forward("dropout-elsewhere", p=p)
    if abs(float(factor.mean()) - 1 / (1 - p)) > 1e-6:
        return learner.mistake_in_forward("dropout-not-scaled", **_scale_facts(p, factor))
    return None


SIZES = (
    Size(2, 5, 6),
    Size(3, 4, 7, bias=False, seed=1),
    Size(1, 3, 5, dropout=DROPOUT, seed=2),
    Size(4, 2, 9, dropout=0.25, seed=3),
)
LESSON = ModuleLesson(
    "mlp", STEPS, SIZES, MISTAKES, weights, start, steps, draw, train,
    names=((r"gelu|act", 2), (r"proj|down|2$", 3), (r"drop", 4)),
)  # fmt: skip
