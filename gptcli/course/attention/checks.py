"""The checks of a learner's attention, one function each. They run in the order of CHECKS.

The docstring of a check says what must be true. A check returns a few words for the report, or
raises CheckFailed.
Dimensions: B batch, T time, C channels (n_embd), H heads, D head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gptcli.course.attention.cases import (
    CASES,
    LENGTHS,
    USUAL,
    Case,
    draw_input,
    generator_for,
)
from gptcli.course.attention.conventions.weights import K, role_of
from gptcli.course.attention.learner_attention import BACKWARD, Built, LearnerAttention
from gptcli.course.attention.training_dropout import SCORES, dropped_values
from gptcli.course.lesson import CheckFailed
from gptcli.plurals import agreeing, counted

# A gradient up to this counts as 0. Rounding in float64 stays below 1e-13 here, and the gradient at
# a later token is far larger if the output depends on that token.
NO_GRADIENT = 1e-10
ROUNDING_OF_FLOAT32 = 1e-5  # rounding to float32 causes smaller errors than this


def constructor(learner: LearnerAttention) -> str:
    """The constructor accepts the sizes of every case.

    If the constructor raises an AssertionError or a ValueError for some sizes, such as an odd
    head_dim, later checks leave these sizes out. But it must accept the sizes of USUAL."""
    learner.refused.clear()
    learner.build(USUAL)
    for case in CASES:
        try:
            learner.build(case)
        except CheckFailed as failed:
            if not isinstance(failed.__cause__, AssertionError | ValueError):
                raise
            learner.refused.append(case)
    return f"{learner.constructor.describe()}, {counted(len(learner.cases), 'size')}"


def projections(learner: LearnerAttention) -> str:
    """The query, key, value and output projections can be recognised."""
    return learner.convention()


@torch.no_grad()
def shape(learner: LearnerAttention) -> str:
    """The output has the shape of x, and all its numbers are finite."""
    for case in learner.cases:
        built = learner.build(case)
        x = draw_input(case, generator_for(case))
        y = learner.run(built.module, x.clone())
        if not torch.isfinite(y).all():
            token, count = _first_token(~torch.isfinite(y)), int((~torch.isfinite(y)).sum())
            raise CheckFailed(
                "not-finite",
                f"{count} of {y.numel()} numbers of the output {agreeing(count, 'is', 'are')} not "
                f"finite, first at token {token} of {case.T} ({case})",
                "look for a row in which the mask hides everything, or for 0 times infinity",
            )
    return "(B, T, C), finite"


def untouched(learner: LearnerAttention) -> str:
    """forward does not change its input x."""
    built = learner.build(USUAL)
    for training in (False, True):
        x = draw_input(USUAL, generator_for(USUAL))
        given = x.clone()
        with torch.no_grad():
            learner.run(built.module.train(training), given)
        if not torch.equal(given, x):
            token = _first_token(given != x)
            raise CheckFailed(
                "input-changed",
                "forward changed its input x in place, first at token "
                f"{token}, by up to {_largest(given, x):.3g}",
                "make a new tensor instead of writing into x: the residual around the attention "
                "still needs x",
            )
    return "x is as before"


@torch.no_grad()
def evaluation(learner: LearnerAttention) -> str:
    """Dropout is off in evaluation mode: two calls give the same output."""
    for p in (0.0, 0.5):
        built = learner.build(USUAL, dropout=p)
        x = draw_input(USUAL, generator_for(USUAL))
        first, second = (_seeded(learner, built, x, seed) for seed in (1, 2))
        if not torch.equal(first, second):
            raise CheckFailed(
                "dropout-in-evaluation",
                f"with config.dropout = {p}, in evaluation "
                "mode, two calls with the same x differ by up to "
                f"{_largest(first, second):.3g}",
                "dropout acts only in training: F.dropout needs training=self.training, and "
                "evaluation mode turns off an nn.Dropout that is a layer of the module",
            )
    return "no dropout, the same twice"


def causal(learner: LearnerAttention) -> str:
    """The gradient of an output is 0 at later tokens of x, and at other sequences of the batch."""
    built = learner.build(USUAL)
    x = draw_input(USUAL, generator_for(USUAL)).requires_grad_()
    y = learner.run(built.module, x)
    if not y.requires_grad:
        return "no gradient to check"
    mix = torch.randn(y.shape, generator=generator_for(USUAL), dtype=y.dtype)
    largest = 0.0
    for t in range(USUAL.T):
        gradient = _learner_gradient(learner, (y[:, t] * mix[:, t]).sum(), x)
        ahead = gradient[:, t + 1 :].abs().amax(dim=(0, 2))  # (T - t - 1,)
        if ahead.numel() and not bool((ahead <= NO_GRADIENT).all()):
            s = t + 1 + int(ahead.nan_to_num(posinf=1e9).argmax())
            raise CheckFailed(
                "not-causal",
                f"the output at token {t} depends on the input at token {s}, "
                f"which comes later (gradient {float(ahead[s - t - 1]):.3g})",
                "a token may look only at itself and at earlier tokens: hide the later ones before "
                "the softmax, which goes over the last dimension",
            )
        largest = max(largest, float(ahead.max()) if ahead.numel() else 0.0)
    for b in range(USUAL.B):
        gradient = _learner_gradient(learner, (y[b] * mix[b]).sum(), x)
        others = torch.cat((gradient[:b], gradient[b + 1 :]))
        if not bool((others.abs() <= NO_GRADIENT).all()):
            raise CheckFailed(
                "sequences-mixed",
                f"the output of sequence {b} of {USUAL.B} depends on another sequence of the batch",
                "split and merge so that each sequence and each head keeps its own (T, D) matrix",
            )
    return f"gradient at later tokens: {largest:.1g}"


@torch.no_grad()
def zeros(learner: LearnerAttention) -> str:
    """The output is correct if one token of x is all zeros and no projection has a bias."""
    built = learner.build(USUAL)
    for _, part in built.projections.items():
        if part.bias is not None:
            part.scale_bias(0.0)
    parts = learner.projections(built.module, built.case)
    built = Built(built.case, built.module, parts)
    x = draw_input(USUAL, generator_for(USUAL))
    x[:, 1] = 0.0
    y = learner.run(built.module, x.clone())
    error = (y - built.reference(x)).abs()
    right = error <= max(learner.tolerance, ROUNDING_OF_FLOAT32)
    if not bool(right.all()):
        token = _first_token(~right)
        finite = bool(y.isfinite().all())
        wrong = f"off by up to {float(error.max()):.3g}" if finite else "not finite"
        raise CheckFailed(
            "mask-by-value",
            "if token 1 is all zeros and no layer has a bias, the output is wrong, first at token "
            f"{token} ({wrong}): a visible score can be exactly 0, so do not find hidden scores by "
            "comparing scores with 0",
            "make the mask from positions, for example torch.ones(T, T).tril() == 0, never from "
            "the scores",
        )
    return "right for a token of zeros"


@torch.no_grad()
def output(learner: LearnerAttention) -> str:
    """The output equals the reference in every case, in evaluation mode without dropout.

    It also equals the reference in training mode without dropout, and in evaluation mode with
    dropout 0.5."""
    largest = 0.0
    for case in learner.cases:
        built = learner.build(case)
        x = draw_input(case, generator_for(case))
        largest = max(largest, _compare(learner, built, x))
    for training, p in ((True, 0.0), (False, 0.5)):
        built = learner.build(USUAL, dropout=p)
        built.module.train(training)
        x = draw_input(USUAL, generator_for(USUAL))
        mode = "training" if training else "evaluation"
        largest = max(largest, _compare(learner, built, x, f", in {mode} with dropout {p}"))
    return f"largest error {largest:.1g}"


@torch.no_grad()
def lengths(learner: LearnerAttention) -> str:
    """One module gives the correct output for texts of several lengths."""
    built = learner.build(USUAL)
    generator = generator_for(USUAL)
    for T in LENGTHS:
        _compare(
            learner,
            built,
            draw_input(USUAL, generator, T),
            f", one module for T = {', '.join(map(str, LENGTHS))}",
        )
    return f"T = {', '.join(map(str, LENGTHS))}"


def gradients(learner: LearnerAttention) -> str:
    """Gradients reach every parameter and x, and the gradient at x is correct.

    A bias of the keys is an exception: its gradient can be 0."""
    built = learner.build(USUAL)
    module = built.module
    x = draw_input(USUAL, generator_for(USUAL)).requires_grad_()
    y = learner.run(module, x)
    hint = "do not use detach(), .data, .item() or torch.no_grad() between x and the output"
    if not y.requires_grad:
        raise CheckFailed(
            "no-gradient",
            f"the output, {tuple(y.shape)}, has no gradient: nothing can be learned",
            hint,
        )
    mix = torch.randn(y.shape, generator=generator_for(USUAL), dtype=y.dtype)
    learner.call(lambda: torch.autograd.backward((y * mix).sum()), BACKWARD, None)
    names = [
        name for name, p in module.named_parameters() if p.grad is None or not bool(p.grad.any())
    ]
    # The bias of the keys adds the same number to all scores of a row. The softmax ignores such a
    # number, so the gradient of this bias is 0.
    unreached = [name for name in names if not _is_key_bias(module.get_parameter(name), name)]
    if unreached:
        raise CheckFailed(
            "no-gradient", f"no gradient reaches {', '.join(f'`{n}`' for n in unreached)}", hint
        )
    gradient = x.grad
    if gradient is None:
        raise CheckFailed("no-gradient", "no gradient reaches the input x", hint)
    right = x.detach().clone().requires_grad_()
    wanted = _gradient((built.reference(right) * mix).sum(), right)
    error = _largest(gradient, wanted)
    if not error <= 10 * max(learner.tolerance, 0.0 if learner.rounded is None else 1e-5):
        raise CheckFailed(
            "wrong-gradient",
            "the output is right, but its gradient at x differs from the "
            f"reference's by up to {error:.3g}",
            hint,
        )
    count = len(list(module.parameters()))
    return f"reach {counted(count, 'parameter')} and x"


def single(learner: LearnerAttention) -> str:
    """The output is also correct if x, the weights and the default dtype are float32."""
    torch.set_default_dtype(torch.float32)
    try:
        built = learner.build(USUAL)
        built.module.to(torch.float32)
        x = draw_input(USUAL, generator_for(USUAL)).to(torch.float32)
        with torch.no_grad():
            y = learner.run(built.module, x.clone())
            wanted = learner.projections(built.module, built.case)
            error = _largest(y.double(), Built(built.case, built.module, wanted).reference(x))
    finally:
        torch.set_default_dtype(torch.float64)
    if not error <= 1e-4:
        raise CheckFailed(
            "float32",
            f"in float32 the output differs from the reference by up to "
            f"{error:.3g}; in float64 it is right",
            "make new tensors in x's dtype",
        )
    return f"largest error {error:.1g}"


def training(learner: LearnerAttention) -> str:
    """In training, dropout does not act on the scores: it must not come before the softmax."""
    try:
        forward, dropped = dropped_values(learner)
    except CheckFailed:
        return "not checked"  # the note on dropout says why
    for value, operation in dropped:
        if value in SCORES:
            hidden = "; a hidden score becomes 0 * -inf = NaN"
            has_nan = any(bool(x.isnan().any()) for x in operation.outputs)
            T = forward.p.T
            raise CheckFailed(
                "dropout-before-softmax",
                f"in training, dropout acts on the {T} x {T} scores, before the softmax: a dropped "
                "score becomes 0, and e^0 = 1 is a weight like any other"
                + (hidden if has_nan else ""),
                "which numbers must be 0 if a token is not to be looked at, the scores or the "
                "weights?",
            )
    return "dropout acts on no scores"


CHECKS = (
    ("constructor", constructor),
    ("projections", projections),
    ("shape", shape),
    ("input untouched", untouched),
    ("evaluation", evaluation),
    ("causal", causal),
    ("output", output),
    ("zeros", zeros),
    ("several lengths", lengths),
    ("gradients", gradients),
    ("float32", single),
    ("training", training),
)


def _is_key_bias(parameter: Tensor, name: str) -> bool:
    """Whether a parameter is the bias of the keys alone, not of a fused projection."""
    return role_of(name.removesuffix(".bias").removesuffix("bias").removeprefix("b_")) == K and (
        "bias" in name.lower() or name.lower().startswith("b") or parameter.dim() == 1
    )


def _compare(learner: LearnerAttention, built: Built, x: Tensor, also: str = "") -> float:
    """The largest error: the difference between the module's output for x and the reference.

    Raises CheckFailed if the error is above the tolerance, and larger than rounding to float32 can
    cause."""
    case, T = built.case, x.shape[1]
    y = learner.run(built.module, x.clone())
    errors = (y - built.reference(x)).abs()
    error = float(errors.max())
    if error <= learner.tolerance:
        return error
    # A token with errors as small as those of rounding to float32 is not the first wrong one.
    token = _first_token(~((errors <= learner.tolerance) | (errors < ROUNDING_OF_FLOAT32)))
    sizes = Case(case.B, T, case.H, case.D, case.block_size)
    message = (
        f"the output differs from the reference by up to {error:.3g}, first at token "
        f"{token} of {T} ({sizes}{also})"
    )
    # Rounding to float32 can cause such a small error. It is no failure, but a note reports it.
    if error < ROUNDING_OF_FLOAT32:
        if learner.attempt is not None:
            learner.rounded = learner.rounded or learner.attempt
        return error
    raise CheckFailed(
        "wrong-output",
        message,
        "compare your code with the eight steps: project, split into heads, fold, scores scaled by "
        "1/sqrt(head_dim), mask, softmax, weighted sum, merge and project",
    )


def _seeded(learner: LearnerAttention, built: Built, x: Tensor, seed: int) -> Tensor:
    """The output for x after torch.manual_seed(seed)."""
    torch.manual_seed(seed)
    return learner.run(built.module, x.clone())


def _learner_gradient(learner: LearnerAttention, scalar: Tensor, x: Tensor) -> Tensor:
    """The gradient of `scalar` at x. Raises CheckFailed if the backward pass raises an error."""
    found = learner.call(lambda: _gradient(scalar, x), BACKWARD, None)
    assert isinstance(found, Tensor)
    return found


def _gradient(scalar: Tensor, x: Tensor) -> Tensor:
    """The gradient of `scalar` at x; zeros if `scalar` does not depend on x."""
    gradient = torch.autograd.grad(scalar, x, retain_graph=True, allow_unused=True)[0]
    return torch.zeros_like(x) if gradient is None else gradient


def _largest(a: Tensor, b: Tensor) -> float:
    """The largest absolute difference between `a` and `b`."""
    return float((a - b).abs().max())


def _first_token(wrong: Tensor) -> int:
    """The index of the first token for which `wrong`, bool (B, T, C), contains a True."""
    return int(wrong.any(dim=0).any(dim=-1).int().argmax())
