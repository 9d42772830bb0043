"""Explains a failed check: the first wrong step, the known mistake, and the line to quote.

The path from a wrong file to its report:
1. checks.py runs the learner's class (learner_attention.py) on sizes, weights and inputs from
   cases.py. The first check that fails raises CheckFailed, and lesson.py passes it to `diagnose`.
2. forward_trace.py repeats the forward pass and records every torch operation.
3. matching.py finds the values of the reference (stages.py) among the traced tensors.
   compared_forward.py holds the trace, the matches and the reference.
4. first_wrong_step.py decides which of the eight steps is the first wrong one, with the help of
   first_wrong_operation.py.
5. mistakes/bank.py runs every known mistake on the same weights. The report names the mistake
   that gives the learner's output. evidence.py rejects mistakes that the trace contradicts. If
   no mistake gives the output, or the file stops early, evidence.py compares the wrong value of
   the step with the wrong values of the known mistakes.
6. quoted_line.py chooses the line of the learner's file to quote: `line_to_quote`.
7. finding.py puts step, mistake, message and line into a Finding. lesson.py makes the report.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from gptcli.course.attention import STEP_NAMES
from gptcli.course.attention.compared_forward import (
    ComparedForward,
    forward_of_case,
    forward_without_output,
    repeat_forward,
)
from gptcli.course.attention.evidence import (
    VALUE_OF_STEP,
    describe_tensor,
    fill_of_hidden_scores,
    first_operation_with,
    first_operation_with_nan,
    heads_are_summed,
    is_plausible,
    learner_weights,
    lowers_precision,
    mistake_with_value,
    operation_that_named,
    queries_meet_keys,
    slug_of_swapped_names,
    step_by_right_tokens,
    unused_projections,
)
from gptcli.course.attention.finding import (
    Finding,
    describe_range,
    finding_at_operation,
    finding_from_check,
    hints_of_step,
    step_marks,
    with_weights,
)
from gptcli.course.attention.first_wrong_operation import (
    PRODUCTS,
    first_operation_off_reference,
    mask_hides_too_much,
    matched_before,
    operation_that_changed_value,
    step_named_in_source,
)
from gptcli.course.attention.first_wrong_step import first_wrong_step, softmax_over_one_number
from gptcli.course.attention.forward_trace import Operation
from gptcli.course.attention.gradient_loss import lost_gradient, stopped_backward
from gptcli.course.attention.learner_attention import LearnerAttention
from gptcli.course.attention.matching import (
    first_missing_step,
    last_right_operation,
    transposed_scores,
    value_in,
)
from gptcli.course.attention.mistakes.attention_mistake import AttentionMistake, message_numbers
from gptcli.course.attention.mistakes.bank import bank_results, values_equal
from gptcli.course.attention.quoted_line import line_to_quote
from gptcli.course.attention.quoted_mask_line import has_mask
from gptcli.course.attention.score_scale import (
    explain_scale,
    scale_of_scores,
    scaled_twice,
    wrong_scale,
)
from gptcli.course.attention.source_text import step_above
from gptcli.course.attention.stages import Values
from gptcli.course.attention.training_dropout import dropout_before_softmax
from gptcli.course.attention.unfinished import (
    LATER,
    fault_of_last_step,
    line_of_last_step,
    what_is_missing,
)
from gptcli.course.attention.wrong_factor import (
    CopiedVariable,
    copied_variable,
    discarded_softmax,
)
from gptcli.course.attention.wrong_heads import explain_heads
from gptcli.course.lesson import CheckFailed
from gptcli.course.sandbox.learner_file import in_words

# If the absolute value of a hidden score is below this, the message quotes the score.
LARGE_FILL = 1e6
# These are mistakes only if the names of the layers fix the order of queries, keys and values.
ORDER_OF_PROJECTIONS = {
    *("query-key-swapped", "key-value-swapped", "query-value-swapped", "qkv-rotated"),
}


def diagnose(learner: LearnerAttention, check: str, failed: CheckFailed) -> Finding:
    """The finding for a failed `check`: the wrong step, and the mistake if the bank knows it.

    Some failures already name the mistake, and need only a step and a line. For most others, the
    learner's forward pass is compared with the reference."""
    if failed.mistake == "missing-projection" and failed.step == 8:
        # The missing layer belongs to the last step, so look for an earlier wrong step first.
        forward = forward_without_output(learner)
        if forward is not None and _first_wrong_step(forward) < 8:
            return _compared_with_reference(forward, failed)
    if failed.step is not None or learner.attempt is None:
        step = failed.step or (1 if check in ("constructor", "projections") else None)
        marks = step_marks(step, None, None)
        return Finding(step, failed.mistake, failed.message, failed.hints, marks)
    if failed.mistake == "backward-stops":
        forward = repeat_forward(learner, grad=True)
        if forward.wrong and forward.y is not None:
            return _compared_with_reference(forward, failed)
        return stopped_backward(forward, failed)
    if check == "gradients":
        return lost_gradient(repeat_forward(learner, grad=True), failed)
    if failed.mistake == "input-changed":
        forward = repeat_forward(learner)
        return finding_at_operation(forward, forward.trace.changed_at, failed)
    if failed.mistake == "dropout-before-softmax":
        return dropout_before_softmax(learner, failed)
    stops = failed.mistake in ("raises", "not-implemented", "returns-nothing", "time-limit")
    training = learner.attempt.module.training
    if failed.mistake == "dropout-in-evaluation" or (training and not stops):
        return _random_output(learner, failed)
    if failed.mistake == "mask-by-value":
        return _mask_by_value(learner, failed)
    if check == "float32":
        forward = repeat_forward(learner, tolerance=1e-5)
        return finding_from_check(forward, _first_wrong_step(forward), failed)
    if failed.mistake == "output-dtype":
        forward = repeat_forward(learner)
        lowering = (op.index for op in forward.trace.operations if lowers_precision(op))
        return finding_at_operation(forward, next(lowering, None), failed)
    # Prefer the usual case, because it shows more than a case with one token or one head.
    usual = forward_of_case(learner)
    if usual is not None and usual.wrong:
        return _compared_with_reference(usual, failed)
    return _compared_with_reference(repeat_forward(learner), failed)


def _first_wrong_step(forward: ComparedForward) -> int:
    """The number of the first wrong step of `forward`."""
    path = forward.learner.file.path
    return first_wrong_step(forward.trace, forward.found, forward.p, path)


def _compared_with_reference(forward: ComparedForward, failed: CheckFailed) -> Finding:
    """The finding for a forward pass that differs from the reference or does not finish.

    If the trace itself shows the fault, such as an unused layer, the finding names this fault.
    Otherwise it names a mistake of the bank that gives exactly the learner's output. If several do,
    it names the one that is nearest to the first wrong step. If none does, it names a mistake that
    gives the learner's wrong value of the first wrong step. If none gives this value, the message
    comes from the trace."""
    step, trace, found = _first_wrong_step(forward), forward.trace, forward.found
    if forward.y is None:
        return _stopped(forward, step, failed)
    if copied := copied_variable(trace, found, forward.p):
        return _copied(forward, copied)
    order_is_free = forward.learner.layout().order_is_free
    fits = [
        (mistake, values)
        for mistake, values in bank_results(forward.p)
        if values_equal(forward.y, values.out)
        and not values_equal(values.out, forward.values.out)
        and is_plausible(forward, mistake, values)
        and not (order_is_free and mistake.slug in ORDER_OF_PROJECTIONS)
    ]
    # If forward does not use its projections, its output can by accident equal the output of a
    # known mistake in steps 2 to 8.
    if not any(fit[0].step == 1 for fit in fits) and (unused := unused_projections(forward)):
        return _unused(forward, unused)
    if not found.completed_at and not fits and forward.is_opaque:
        step = step_by_right_tokens(forward)
    # If forward never multiplies queries by keys, its output can by accident equal the output of a
    # known mistake in steps 5 to 8.
    if not queries_meet_keys(forward):
        fits = [fit for fit in fits if fit[0].step <= 4]
    changing = operation_that_changed_value(trace, found, forward.p, first_missing_step(found))
    if changing is not None and not any(fit[0].step <= step for fit in fits):
        return _changed_value(forward, changing, step, failed)
    over_one_number = step == 6 and softmax_over_one_number(trace, found)
    if over_one_number and all(fit[0].step > 6 for fit in fits):
        return _unknown_mistake(forward, step, failed)
    if fits:
        mistake, values = min(fits, key=lambda fit: _distance(forward, fit[0], fit[1], step))
    else:
        fit = _swapped_names(forward) or mistake_with_value(forward, step)
        if fit is None or not is_plausible(forward, *fit):
            return _unknown_mistake(forward, step, failed)
        mistake, values = fit
        if (
            mistake.slug == "mask-inverted"
            and transposed_scores(forward.trace, forward.found, forward.p.T) is not None
        ):
            mistake, values = _from_bank("scores-transposed", forward)
    return _known_mistake(forward, mistake, values)


def _copied(forward: ComparedForward, copied: CopiedVariable) -> Finding:
    """The finding for a line that splits or folds the wrong variable, such as `k = q.view(...)`."""
    what = {"q": "queries", "k": "keys", "v": "values"}[copied.value]
    line = copied.operation.line
    why = f"this line gives the {what} to `{copied.name}`, which held the right numbers before"
    hints = hints_of_step(copied.step, message_numbers(forward.p))
    marks = step_marks(copied.step, forward, line)
    return Finding(copied.step, "variable-copied", forward.quote(line) + why, hints, marks)


def _from_bank(slug: str, forward: ComparedForward) -> tuple[AttentionMistake, Values]:
    """The mistake `slug` of the bank, and what code with this mistake computes."""
    return next(fit for fit in bank_results(forward.p) if fit[0].slug == slug)


def _swapped_names(forward: ComparedForward) -> tuple[AttentionMistake, Values] | None:
    """The mistake of swapped names if two of the variables q, k and v are swapped; else None.

    Also None if the layout leaves their order free."""
    slug = slug_of_swapped_names(forward)
    if forward.learner.layout().order_is_free:
        return None
    return None if slug is None else _from_bank(slug, forward)


def _distance(
    forward: ComparedForward, mistake: AttentionMistake, values: Values, step: int
) -> tuple[int, int, bool]:
    """A sort key for mistakes that all give the learner's output: those near `step` come first.

    If two masks give the same weights, the mask whose scores are in the trace comes first."""
    if mistake.slug == "query-key-swapped":
        return (0 if slug_of_swapped_names(forward) == mistake.slug else 9, 0, False)
    if mistake.slug == "scores-transposed":
        return (1, 0, False)
    masked, right = values.masked, forward.values.masked
    unseen = mistake.step == 5 and first_operation_with(forward, masked, right) is None
    return (abs(mistake.step - step), mistake.step, unseen)


def _known_mistake(forward: ComparedForward, mistake: AttentionMistake, values: Values) -> Finding:
    """The finding for a mistake of the bank. `values` are the values that the mistake gives."""
    step, p = mistake.step, forward.p
    numbers = message_numbers(p)
    if mistake.slug == "softmax-missing" and forward.found.has("weights"):
        return _weights_unused(forward)
    shown = VALUE_OF_STEP[step] if step != 8 else "out"
    wrong, right = getattr(values, shown), getattr(forward.values, shown)
    index = first_operation_with(forward, wrong, right)
    if index is None or values_equal(wrong, right):
        index = forward.first_wrong_operation(step)
    if step == 8 and values_equal(values.out, values.merged):
        index = forward.trace.operations[-1].index
    if step == 1:
        index = operation_that_named(forward, values, index)
    undoes_scale = mistake.slug == "scale-after-softmax" and forward.found.has("scaled")
    if undoes_scale:
        index = forward.first_wrong_operation(6)
    why, slug = mistake.message.format(**numbers), mistake.slug
    scale = scale_of_scores(forward)
    if slug.startswith("scale-") and set(mistake.variants[0]) == {"score"} and scale:
        index = scale[1]
        slug, named, why = explain_scale(forward, scale[0])
        mistake = named or mistake
    elif slug == "scale-without-root" and (twice := scaled_twice(forward)):
        mistake, why = twice
        slug = mistake.slug
    fill = fill_of_hidden_scores(forward) if step == 5 else None
    if fill is not None and abs(fill[0]) < LARGE_FILL:
        slug, index = _slug_of_fill(fill[0]), fill[1]
        why = (
            f"your hidden scores become {fill[0] + 0.0:g}, and the softmax still gives them a "
            f"weight: token 0 looks at all {p.T} tokens"
        )
    else:
        fill = None
    line = line_to_quote(
        forward, index, step=step, slug=slug, values=values, fill=fill, search=not undoes_scale
    )
    first_hint = mistake.hint.format(**numbers)
    if step == 5 and not has_mask(forward):
        first_hint = hints_of_step(step, numbers)[0]  # the mistake's own hint is about a mask
    hints = (
        first_hint,
        hints_of_step(step, numbers)[1],
        mistake.strong_hint.format(**numbers),
    )
    marks = step_marks(step, forward, line)
    finding = Finding(step, slug, forward.quote(line) + why, hints, marks)
    return with_weights(finding, forward, values.weights)


def _weights_unused(forward: ComparedForward) -> Finding:
    """The finding for a file that computes the weights but multiplies the values by the scores."""
    discarded = discarded_softmax(forward.trace, forward.found)
    if discarded is not None:
        why = (
            "the result of this softmax is not assigned to a variable, so you multiply the values "
            "by the scores"
        )
        quoted, hints = forward.quote(discarded.line), hints_of_step(6, message_numbers(forward.p))
        marks = step_marks(6, forward, discarded.line)
        return Finding(6, "weights-unused", quoted + why, hints, marks)
    at = forward.found.completed_at["weights"]
    products = (op.index for op in forward.trace.operations[at + 1 :] if op.name in PRODUCTS)
    line = line_to_quote(forward, next(products, at), search=False)
    made = forward.line(at)
    where = "your softmax" if made is None else forward.learner.file.where(made)
    why = (
        f"the weights of {where} are right, but nothing uses them: you multiply the values by the "
        "scores"
    )
    hints = hints_of_step(7, message_numbers(forward.p))
    marks = step_marks(7, forward, line)
    return Finding(7, "weights-unused", forward.quote(line) + why, hints, marks)


def _slug_of_fill(value: float) -> str:
    """The slug of the mistake if the mask sets the hidden scores to `value`."""
    if value == 0.0:
        return "mask-filled-with-0"
    if abs(value) < 1e-3:
        return "mask-fill-tiny"
    return "mask-fill-too-weak" if value < 0 else "mask-fill-positive"


# step -> slug, and the name of the value in the message
_CHANGED_VALUES = {
    1: ("projections-changed", "the projections"),
    4: ("scores-changed", "the scaled scores"),
    6: ("weights-changed", "the weights"),
    7: ("values-changed", "the weighted values"),
}


def _changed_value(
    forward: ComparedForward, changing: Operation, step: int, failed: CheckFailed
) -> Finding:
    """The finding for `changing`, an operation that spoils the correct result of `step`."""
    if step == 4 and wrong_scale(forward):
        return _unknown_mistake(forward, step, failed)
    slug, name = _CHANGED_VALUES[step]
    after = changing.outputs[0].double()
    before = next(x.double() for x in changing.inputs if x.shape == after.shape)
    if lowers_precision(changing):
        short = str(changing.outputs[0].dtype).removeprefix("torch.")
        largest = float((after - before)[before.isfinite()].abs().max())
        change = f"it rounds them to {short}, which changes them by up to {largest:.2g}"
    elif step == 6:
        sums = after.reshape(-1, forward.p.T)[: forward.p.T].sum(-1)
        change = f"the rows of the first head now sum to {describe_range(sums)}"
    else:
        change = (
            f"before it, they range {describe_range(before, both_ends=True)}; "
            f"after it, {describe_range(after, both_ends=True)}"
        )
    line = line_to_quote(forward, changing.index, search=False)
    why = f"{name} are right until this line changes them; {change}"
    hints = hints_of_step(step, message_numbers(forward.p))
    marks = step_marks(step, forward, line)
    finding = Finding(step, slug, forward.quote(line) + why, hints, marks)
    return with_weights(finding, forward, learner_weights(forward))


def _unused(forward: ComparedForward, names: list[str]) -> Finding:
    """The finding for a forward pass that does not use the query, key and value layers `names`."""
    layers = ", ".join(f"`{name}`" for name in names)
    shape = tuple(forward.p.x.shape)
    message = (
        f"forward computes {shape} from {shape} without {layers}: no gradient reaches these layers"
    )
    hints = hints_of_step(1, message_numbers(forward.p))
    return Finding(1, "projections-unused", message, hints, step_marks(1, forward, None))


def _unknown_mistake(forward: ComparedForward, step: int, failed: CheckFailed) -> Finding:
    """The finding if no mistake of the bank fits. Its message comes from the trace."""
    p, slug = forward.p, f"step-{step}"
    index = forward.first_wrong_operation(step)
    line = line_to_quote(forward, index, step=step, slug=slug)
    if step == 8 and line is not None and step_above(forward.learner.file.path, line) == 7:
        step, slug = 7, "step-7"  # in the course's skeleton, step 7 unfolds the heads
    if step == 8 and failed.mistake in ("sequences-mixed", "not-causal"):
        slug = failed.mistake
    why = (
        f"your numbers first differ from the reference in step {step}, {STEP_NAMES[step]}; "
        f"{failed.message}"
    )
    heads = explain_heads(forward) if step == 2 else None
    scale = scale_of_scores(forward) if step == 4 else None
    if heads is not None:
        slug, why = heads
        if forward.trace.error is not None:
            why = f"{why}; {failed.message}"
    elif scale is not None and math.isclose(scale[0], p.D**-0.5, rel_tol=1e-9):
        slug = "scores-in-another-order"
        why = (
            f"your {p.B} * {p.H} matrices of scores, {p.T} x {p.T} each, are not in the order of "
            "their sequences and heads"
        )
    elif step == 4 and (wrong := wrong_scale(forward)):
        line = line_to_quote(forward, wrong[1], step=4, slug="scale-wrong")
        slug, _, why = explain_scale(forward, wrong[0])
    elif (
        nan := first_operation_with_nan(forward.trace)
    ) is not None and not forward.output_is_finite():
        slug = "not-finite"
        if step == 5:
            line = line_to_quote(forward, nan.index, step=5, slug=slug)
            if not forward.next_is(nan.index, 5):
                slug = "mask-zero-times-infinity"
        else:
            line = line_to_quote(forward, nan.index, search=False)
        why = (
            "the first NaN appears here, in a result of shape "
            f"{tuple(nan.outputs[0].shape)}: a mask hides a complete row, or 0 is multiplied by "
            "infinity"
        )
    elif step == 5 and (fill := fill_of_hidden_scores(forward)) is not None:
        slug = _slug_of_fill(fill[0])
        line = line_to_quote(forward, fill[1], fill=fill)
        why = (
            f"your hidden scores become {fill[0] + 0.0:g}, which is not far enough below the "
            "visible scores: before the mask, the scores range from "
            f"{float(forward.values.scaled.min()):.3g} to {float(forward.values.scaled.max()):.3g}"
        )
    if step == 6 and softmax_over_one_number(forward.trace, forward.found):
        slug, why = "softmax-over-one", "each softmax goes over one number and turns it into 1"
    hints = hints_of_step(step, message_numbers(p))
    marks = step_marks(step, forward, line)
    finding = Finding(step, slug, forward.quote(line) + why, hints, marks)
    return with_weights(finding, forward, learner_weights(forward))


def _stopped(forward: ComparedForward, step: int, failed: CheckFailed) -> Finding:
    """The finding for a forward pass that raises, or returns no tensor of the correct shape.

    If the trace shows an earlier mistake, the finding is about that mistake. Otherwise the message
    has the learner's error, and the shapes of the inputs of the operation that raised the error."""
    earlier = _mistake_before_stop(forward, step)
    if earlier is not None:
        return earlier
    trace, message, first_hint = forward.trace, failed.message, failed.hints[0]
    last = trace.operations[-1] if trace.operations else None
    after_last_right = last_right_operation(forward.found, step) + 1
    line = line_to_quote(forward, after_last_right, search=False)
    if last is not None and last.raised and trace.error is not None:
        doing = f"forward on x {tuple(forward.p.x.shape)}"
        message = forward.learner.failure_from(trace.error, doing).message
        tensors = [describe_tensor(x, forward) for x in last.inputs[:3]]
        layer = _layer_that_takes_time_first(forward, last)
        if layer is not None:
            message += (
                f"; `{layer}` takes x as (T, B, C), because it was made without batch_first=True"
            )
            first_hint = f"make `{layer}` with batch_first=True"
        elif tensors:
            message += f"; inputs of this operation: {' and '.join(tensors)}"
        line = line_to_quote(forward, last.index, search=False)
    elif failed.mistake == "output-shape" and forward.found.has("out") and last is not None:
        line = last.line  # the output was right before this operation
        message = forward.quote(line) + message
    elif trace.error is None and line is not None:
        if failed.mistake == "returns-nothing" and last is not None:
            line = last.line or line
            message += f"; forward has no return after {forward.quote(line).rstrip(': ')}"
        else:
            message += f"; your numbers are right before {forward.quote(line).rstrip(': ')}"
    hints = hints_of_step(step, message_numbers(forward.p))
    if failed.mistake != "not-implemented":
        message += f" (step {step}, {STEP_NAMES[step]})"
        hints = (first_hint, *hints[1:])
    else:
        number = step_named_in_source(trace.error, forward.learner.file.path)
        if number is not None and number > step:
            wrong = fault_of_last_step(forward, number) if number == step + 1 else None
            if wrong is not None:
                return wrong
            line = line_of_last_step(forward)
            quoted = forward.quote(line) if line is not None else ""
            message = f"{quoted}{what_is_missing(forward, step)}; {LATER}"
        else:
            message = f"step {step}, {STEP_NAMES[step]}, is still to be written: {failed.message}"
    return Finding(step, failed.mistake, message, hints, step_marks(step, forward, line))


def _layer_that_takes_time_first(forward: ComparedForward, raised: Operation) -> str | None:
    """The name of the nn.MultiheadAttention that got x as (B, T, C) but takes (T, B, C).

    None if `raised`, the operation that raised the error, is not the call of such a layer."""
    if not any(x.shape == forward.p.x.shape for x in raised.inputs[:1]):
        return None
    if "multi_head_attention" not in raised.name:
        return None
    for name, layer in forward.module.named_modules():
        if isinstance(layer, torch.nn.MultiheadAttention) and not layer.batch_first:
            return str(name)
    return None


def _mistake_before_stop(forward: ComparedForward, step: int) -> Finding | None:
    """The finding if a step is wrong before the line that stops the code; else None."""
    trace, found, path = forward.trace, forward.found, forward.learner.file.path
    if found.has("out"):
        return None
    fit = _swapped_names(forward)
    if fit is None:
        number = step_named_in_source(trace.error, path)
        if number is not None and number <= step:
            return fault_of_last_step(forward, number)
        wrong = first_operation_off_reference(trace, found, forward.p, step) is not None
        if step == 4 and scale_of_scores(forward) and number is not None:
            wrong = True
        if not wrong and not (step == 5 and mask_hides_too_much(trace, found, forward.p)):
            return None
        fit = mistake_with_value(forward, step) or (
            _hidden_too_much(forward) if step == 5 else None
        )
    if (
        fit is not None
        and fit[0].slug == "mask-inverted"
        and transposed_scores(forward.trace, forward.found, forward.p.T) is not None
    ):
        fit = _from_bank("scores-transposed", forward)
    last = trace.operations[-1] if trace.operations else None
    divides = last is not None and last.raised and "div" in last.name
    if fit is not None and fit[0].slug == "softmax-not-normalised" and divides:
        fit = _from_bank("softmax-divided-by-wrong-sums", forward)  # sums without keepdim
    if step == 8 and fit is None and heads_are_summed(forward):
        fit = _from_bank("heads-averaged", forward)
    words = "after that, forward returns no tensor of the right shape"
    if isinstance(trace.error, NotImplementedError):
        words = LATER
    elif trace.error is not None:
        words = f"after that, the file stops: {in_words(trace.error)}"
    later = CheckFailed(f"step-{step}", words, "")
    if fit is None:
        return _unknown_mistake(forward, step, later)
    finding = _known_mistake(forward, *fit)
    return replace(finding, message=f"{finding.message}; {later.message}")


def _hidden_too_much(forward: ComparedForward) -> tuple[AttentionMistake, Values] | None:
    """A known mistake in the mask that hides the same scores as the learner's code, or None.

    The learner's code hides the scores that are -inf in the trace. Also returns what code with the
    mistake computes."""
    p = forward.p
    for operation in forward.trace.operations:
        if "masked" not in forward.found.values_of_operation.get(operation.index, []):
            continue
        for x in operation.outputs:
            if x.numel() != p.B * p.H * p.T * p.T or bool(x.isfinite().all()):
                continue
            for mistake, values in bank_results(p):
                hidden = values.masked.isfinite().logical_not()
                if mistake.step == 5 and torch.equal(hidden.reshape(x.shape), x.isinf()):
                    return mistake, values
    return None


def _mask_by_value(learner: LearnerAttention, failed: CheckFailed) -> Finding:
    """The finding for a mask that is made from the scores. It quotes the line that hides scores."""
    forward = forward_of_case(learner) or repeat_forward(learner)
    hides = [op for op in forward.trace.operations if "fill" in op.name or op.name == "where"]
    line = forward.line(hides[-1].index) if hides else None
    return finding_from_check(forward, 5, failed, line)


def _random_output(learner: LearnerAttention, failed: CheckFailed) -> Finding:
    """The finding for an output that differs between two calls.

    It quotes the line of the first operation whose results differ."""
    forwards = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        forwards.append(repeat_forward(learner))
    first, other_seed, same_seed = forwards
    if first.y is not None and same_seed.y is not None and not torch.equal(first.y, same_seed.y):
        failed = CheckFailed(
            "state-between-calls",
            f"{failed.message}, even with the same random numbers: forward uses something that an "
            "earlier call stored",
            "compute everything from x and the weights, and use nothing from an earlier call",
        )
    pairs = zip(first.trace.operations, other_seed.trace.operations, strict=False)
    for one, two in pairs:
        if any(not torch.equal(a, b) for a, b in zip(one.outputs, two.outputs, strict=False)):
            step = 8
            before = matched_before(first.found, one.index)
            if not before.has("mixed") and not before.has("merged"):
                named = {value_in(x, first.found, first.p.T) for x in one.inputs[:1]}
                of_projection = "dropout" in one.name and bool(named & {"q", "k", "v"})
                step = 6 if before.has("q", "k") and not of_projection else 1
            if failed.mistake == "wrong-output":
                failed = CheckFailed("dropout-fixed-rate", failed.message, failed.hints)
            line = None
            if one.line is not None:
                line = line_to_quote(first, one.index, step=6, slug=failed.mistake, search=False)
            return finding_from_check(first, step, failed, line)
    if first.wrong:
        return _compared_with_reference(first, failed)
    return finding_from_check(first, 8, failed)
