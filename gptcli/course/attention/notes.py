"""Notes on a correct attention, such as dropout that never acts. Notes do not fail a check.

Dimensions: B batch, H heads, D head_dim, C channels (n_embd).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gptcli.course.attention.cases import USUAL, Case, config_for, draw_input, generator_for
from gptcli.course.attention.compared_forward import repeat_forward
from gptcli.course.attention.conventions import words
from gptcli.course.attention.first_wrong_operation import FUSED_KERNEL, matched_before
from gptcli.course.attention.learner_attention import Built, LearnerAttention
from gptcli.course.attention.matching import first_missing_step
from gptcli.course.attention.training_dropout import dropped_values
from gptcli.course.lesson import CheckFailed
from gptcli.course.report import Check
from gptcli.errors import GptcliError
from gptcli.plurals import counted

# With one token, each head has one attention weight, which is 1. If attention dropout drops this
# weight, the whole head is 0. Dropout on the output drops single channels. It drops all 16 channels
# of a head only once in 65,000 times.
ONE_TOKEN = Case(B=64, T=1, H=2, D=16, block_size=4, bias=False)
DROPOUT = 0.5
# Values to which attention code rarely applies dropout, in the order in which forward computes
# them: name in the reference -> words for the note.
_EARLY = {"x": "x", "q": "the queries", "k": "the keys", "v": "the values"}


def notes(learner: LearnerAttention) -> list[Check]:
    """Notes on the convention, dropout, tensors that are no buffers, block_size and bfloat16."""
    found: list[Check] = [*_convention(learner), _dropout(learner)]
    built = learner.build(USUAL)
    if plain := _kept_tensors(learner, built.module):
        one = len(plain) == 1
        found.append(
            _note(
                "mask",
                ("" if one else f"{', '.join(plain[:-1])} and ")
                + f"{plain[-1]} "
                + ("is a plain tensor, which stays" if one else "are plain tensors, which stay")
                + " on the CPU when the module moves to a GPU; register "
                + ("it" if one else "them")
                + " with register_buffer",
            )
        )
    if learner.constructor.is_course_form:
        config = config_for(USUAL)
        del config.block_size
        try:
            learner.construct(config)
        except (CheckFailed, GptcliError):
            found.append(
                _note(
                    "block_size",
                    "the class needs config.block_size; a class that makes its mask for the "
                    "current T works with any config",
                )
            )
    torch.set_default_dtype(torch.float32)
    try:
        module = learner.construct(config_for(learner.case(USUAL))).to(torch.bfloat16)
        with torch.no_grad():
            learner.run(module, draw_input(USUAL, generator_for(USUAL)).to(torch.bfloat16))
    except CheckFailed as failed:
        found.append(
            _note(
                "bfloat16",
                f"does not work in bfloat16 ({failed.message}); train with "
                "run.dtype=float32, or make new tensors in x's dtype",
            )
        )
    finally:
        torch.set_default_dtype(torch.float64)
    return found


def _kept_tensors(learner: LearnerAttention, module: nn.Module) -> list[str]:
    """The names of tensors that `module` keeps without making them parameters or buffers.

    The first call of forward can make a mask that the module keeps. A tensor that every call
    replaces, such as the last weights, is left out: it is on the device of x."""
    states = []
    for _ in range(2):
        with contextlib.suppress(CheckFailed):
            learner.run(module, draw_input(USUAL, generator_for(USUAL)))
        states.append(_plain_tensors(module))
    first, second = states
    return [f"`{name}`" for name, tensor in second.items() if first.get(name) is tensor]


def _plain_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors in `module` that are neither parameters nor buffers, in a dict by path."""
    return {
        f"{path}.{name}" if path else name: value
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, Tensor)
    }


def _convention(learner: LearnerAttention) -> Iterator[Check]:
    """Yield a note on code that did not run, and one for each difference from the course."""
    if learner.left_out is not None:
        yield _note("file", learner.left_out)
    if learner.single:
        yield _note("float64", "the code works only in float32, so the check used float32")
    elif learner.rounded is not None:
        yield _note("precision", _place_of_rounding(learner))
    for sentence in learner.call_notes():
        yield _note("forward", sentence)
    layout = learner.layout()
    if not layout.has_output:
        yield _note(
            "output projection",
            "there is none: forward returns the concatenated heads; GPT-2 multiplies them by one "
            "more matrix",
        )
    if layout.letters != "qkv" or layout.order != "stacked":
        yield _note(
            "rows",
            "the rows of the fused matrix are not in GPT-2's order, so GPT-2's weights do not fit: "
            + layout.words(),
        )
    wrong = []
    for wanted in (True, False):
        config = config_for(learner.case(USUAL))
        config.bias = wanted
        case = learner.case(USUAL)
        parts = learner.projections(learner.construct(config), case)
        wrong += [
            f"{name} with config.bias = {wanted} has {'a' if part.bias is not None else 'no'} bias"
            for name, part in parts.items()
            if (part.bias is not None) != wanted and (layout.has_output or name != "output")
        ]
    if (wrong and learner.constructor.names_of(words.BIAS)) or (
        wrong and learner.constructor.is_course_form
    ):
        yield _note("bias", f"does not follow config.bias: {wrong[0]}; pass bias=config.bias")
    if learner.refused:
        sizes = ", ".join(f"n_head={case.H} with head_dim={case.D}" for case in learner.refused)
        yield _note("sizes", f"the constructor refuses {sizes}, so the check left them out")


def _place_of_rounding(learner: LearnerAttention) -> str:
    """A sentence that names the step and the line in which numbers become float32.

    If the trace does not show the line, the sentence names neither."""
    learner.attempt = learner.rounded
    forward = repeat_forward(learner)
    for operation in forward.trace.operations:
        numbers = [*operation.inputs, *operation.outputs]
        if any(x.dtype == torch.float32 for x in numbers):
            step = first_missing_step(matched_before(forward.found, operation.index))
            quoted = forward.quote(forward.line(operation.index))
            return f"step {step}: {quoted}computed in float32, although x is float64"
    return "forward computes some numbers in float32, although x is float64"


@torch.no_grad()
def _dropout(learner: LearnerAttention) -> Check:
    """A Check of dropout in training: which values it drops, and whether it scales the others."""
    try:
        built = learner.build(ONE_TOKEN, dropout=DROPOUT)
        built.projections.output.set_weight(torch.eye(ONE_TOKEN.C, dtype=torch.float64))
        if built.projections.output.bias is not None:
            built.projections.output.bias.zero_()
        parts = learner.projections(built.module, built.case)
        built = Built(built.case, built.module, parts)
        x = draw_input(ONE_TOKEN, generator_for(ONE_TOKEN))
        options = {"use_dropout": True} if learner.takes_use_dropout else {}
        torch.manual_seed(0)
        y = learner.run(built.module.train(), x.clone(), **options)
        ratio = y / built.reference(x)  # 0 for dropped values, dropout's scale for the others
        forward, drops = dropped_values(learner)
    except CheckFailed as failed:
        return _note("dropout", f"cannot be checked in training: {failed.message}")
    unusual = [words for name, words in _EARLY.items() if name in {drop.value for drop in drops}]
    if unusual:
        places = " and ".join(unusual)
        return _note(
            "dropout",
            f"acts on {places} in training; GPT-2 has it on the attention weights and the output",
        )
    heads = ratio.view(ONE_TOKEN.B, built.case.H, built.case.D)
    dropped = heads.abs() < 1e-9
    attention = bool(dropped.all(dim=-1).any())
    residual = bool((dropped.any(dim=-1) & ~dropped.all(dim=-1)).any())
    if not (attention or residual):
        return _note("dropout", "none acts in training, even if config.dropout is above 0")
    kept = heads[~dropped]
    lines = {
        operation.line
        for operation in forward.trace.operations
        if "dropout" in operation.name or operation.name == FUSED_KERNEL
    }
    scaled = 1 / (1 - DROPOUT) ** (attention + residual)
    if not torch.allclose(kept, torch.full_like(kept, scaled)):
        if len(lines) > attention + residual:
            return _note(
                "dropout",
                f"acts in {counted(len(lines), 'line')} in training: with config.dropout = "
                f"{DROPOUT} the numbers that are kept are multiplied by "
                f"{float(kept.median()):.3g}, expected {scaled:.3g}; GPT-2 has it once on the "
                "attention weights and once on the output",
            )
        return _note(
            "dropout",
            f"with config.dropout = {DROPOUT} the numbers that are kept are multiplied by "
            f"{float(kept.median()):.3g}, expected {scaled:.3g}: F.dropout with "
            "p=config.dropout already scales them",
        )
    if not attention:
        return _note("dropout", "acts on the output in training, never on the attention weights")
    if not residual:
        return _note("dropout", "acts on the attention weights in training, never on the output")
    return Check("dropout", True, "attention and output, in training only")


def _note(name: str, detail: str) -> Check:
    return Check(name, True, detail, note=True)
