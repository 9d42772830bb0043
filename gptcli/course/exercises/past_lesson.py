"""Checks key/value caches: forward takes and returns the past, or the module keeps the past.

The past is the keys and values of the tokens before x. Dimensions: B batch, T new tokens, S tokens
in all, C channels (n_embd), H heads, D channels per head, N tokens of a text.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from gptcli.course.exercises.cache_outputs import Seen, half_written, named, random
from gptcli.course.exercises.learner_module import close
from gptcli.course.exercises.past_call import output_and_present
from gptcli.course.exercises.past_layout import leaves
from gptcli.course.exercises.past_learner import SIZES, Called, PastLearner, Text
from gptcli.course.exercises.past_mistakes import STEPS
from gptcli.course.exercises.past_network import check_network
from gptcli.course.exercises.past_storing import position, positions, storing
from gptcli.course.lesson import CheckFailed
from gptcli.course.report import Check
from gptcli.course.sandbox.learner_file import in_words
from gptcli.plurals import counted

# ---- the checks ----


def check_past(learner: PastLearner, done: list[Check]) -> str:
    """The verdict on a right forward, in a few words. Adds the passed checks to `done`.

    Raises CheckFailed if there is a mistake."""
    learner.adapt()
    error = 0.0
    for size in SIZES:
        text = learner.text(size)
        error = max(error, _check_text(learner, text))
    _two_continuations(learner)
    _two_texts(learner)
    _dtype(learner)
    assert learner.attention is not None
    around = check_network(learner, learner.module_of_file, learner.attention)
    if around is not None:
        name, fault = around
        if fault is not None:
            raise fault
        learner.notes.append(("network", f"`{name}` gives the same outputs with a past as without"))
    done += [
        Check(f"{n} {step.name}", True, _unseen(learner, n, around is not None))
        for n, step in enumerate(STEPS, 1)
    ]
    verdict = f"the same as recomputation, largest error {error:.1g}"
    done.append(Check("whole", True, verdict))
    done.append(Check("form", True, learner.form.words(), note=True))
    done += [Check(name, True, detail, note=True) for name, detail in learner.notes]
    return verdict


def _unseen(learner: PastLearner, step: int, has_network: bool) -> str:
    """Why a step does not apply to the learner's file; "" if the step applies."""
    if step == 3 and not has_network and not any(name == "more" for name, _ in learner.notes):
        return "your attention has no positions: the code that calls it adds them"
    if step == 4 and not learner.form.keeps_state:
        return "your past holds all tokens up to block_size; a new text begins without a past"
    return ""


def _check_text(learner: PastLearner, text: Text) -> float:
    """Let forward read the text in pieces; return the largest error, or raise CheckFailed."""
    size = text.size
    whole = learner.whole(text.module, text.text)
    calls = learner.read(text, size.pieces)
    seen = [_seen(text, whole), *(_seen(text, one) for one in calls)]
    unwritten = [one.failed for one in seen if one.failed is not None
                 and one.failed.mistake == "not-implemented"]  # fmt: skip
    right = all(one.right for one in seen)
    fault = None if right else random(learner, lambda: learner.whole(text.module, text.text).y)
    if fault is not None:
        raise fault
    if whole.failed is None and not unwritten:
        fault = storing(learner, text, whole, calls)
        harmless = right and fault is not None and fault.mistake in _HARMLESS
        if fault is not None and not harmless:
            raise fault
    if right and len(calls) == len(size.pieces):
        return max(one.error for one in seen)
    if text.weights is None:
        raise _own_reference(learner, text, whole, calls)
    fault = _half_read(learner, calls[-1])
    if fault is not None:
        raise fault
    if unwritten:
        raise half_written(learner, text.weights, text.text, seen)
    raise named(learner, text.weights, text.text, seen)


# slugs of mistakes that the check ignores if all outputs are right
_HARMLESS = {"wrong-result", "drops-the-oldest"}


def _seen(text: Text, one: Called) -> Seen:
    wanted = text.wanted[:, one.start : one.total]
    return Seen(one.start, one.count, wanted, one.y, one.failed, one.trace)


def _own_reference(
    learner: PastLearner, text: Text, whole: Called, calls: list[Called]
) -> CheckFailed:
    """The CheckFailed for the wrong forward of an attention that has more parts than week 1's.

    Such a forward is wrong if it stops, or if it gives other outputs with a past than for the whole
    text."""
    if whole.failed is not None:
        return whole.failed
    one = next((c for c in calls if c.failed is not None or not _seen(text, c).right), calls[-1])
    if one.failed is not None and one.failed.mistake != "raises":
        return one.failed
    at = position(learner, text, one) if one.failed is None and one.start else None
    if at is not None:
        return positions(learner, one, at)
    if one.failed is not None:
        numbers = one.failed.message
        if str(one.total) in numbers and "mask" in numbers:
            return learner.mistake(
                "mask-is-square", f" ({_words_of(numbers)})", S=one.total,
                T=counted(one.count, "query", "queries"), within=learner.forward_lines(),
            )  # fmt: skip
        return one.failed
    lines = learner.forward_lines()
    learner.ran = one.trace.lines
    evidence = _seen(text, one).evidence()
    slug = _mask_of(text, one)
    if slug is not None:
        return learner.mistake(slug, evidence, within=lines, T=one.count, S=one.total)
    suspects = r"tri[ul]|mask|\binf\b|is_causal|softmax"
    return learner.failed_at(
        5, "wrong-result",
        "with the past, your attention gives another result than on the whole text"
        + learner.source.quote(learner.source.find(suspects, lines)) + evidence,
        "take one new token after 6 stored ones: which keys does it look at, and with which "
        "weights?",
    )  # fmt: skip


def _half_read(learner: PastLearner, one: Called) -> CheckFailed | None:
    """A CheckFailed if a call read only the keys or only the values from the past, else None.

    Such a call raises an error, because scaled_dot_product_attention gets more keys than values, or
    more values than keys."""
    refused = one.trace.refused
    if one.failed is None or refused is None or refused[0] != "scaled_dot_product_attention":
        return None
    counts = [tensor.shape[-2] for tensor in refused[1][1:3] if tensor.dim() > 2]
    names = ["keys", "values"]
    if sorted(counts) != sorted((one.count, one.total)) or one.count == one.total:
        return None
    if counts[0] < counts[1]:
        names.reverse()
    return learner.mistake(
        "half-read", f" ({_words_of(one.failed.message)})", within=learner.forward_lines(),
        one=names[0], other=names[1], T=counted(one.count, "new token"), S=one.total,
    )  # fmt: skip


def _words_of(message: str) -> str:
    """What follows the last colon of `message`: the words of the learner's exception."""
    return message.rpartition(": ")[2]


def _mask_of(text: Text, one: Called) -> str | None:
    """The slug of the mistake if the attention weights of a call show a wrong mask, else None."""
    T, S = one.count, one.total
    for operation in one.trace.operations:
        for tensor in operation.results:
            if tensor.dim() < 3 or tensor.shape[-2:] != (T, S) or S == T:
                continue
            if not close(tensor.double().sum(-1), torch.ones_like(tensor[..., 0].double())):
                continue
            open_ = (tensor > 0).reshape(-1, T, S).any(0)
            at = torch.arange(S)[None] - torch.arange(T)[:, None]
            for slug, shift in (("mask-from-the-corner", 0), ("mask-one-too-far", S - T + 1),
                                ("mask-hides-itself", S - T - 1)):  # fmt: skip
                if torch.equal(open_, at <= shift):
                    return slug
            if bool(open_.all()) and T > 1:
                return "no-mask-after-stored"
    return None


def _two_continuations(learner: PastLearner) -> None:
    """Raise CheckFailed if two texts that continue the same past disturb each other."""
    if learner.form.keeps_state or learner.form.changes_past:
        return
    size = replace(SIZES[0], pieces=(5, 3))
    text = learner.text(size)
    first = learner.read(text, (5,))[0]
    other = text.text.flip(0)[:, :3] * 0.5
    learner.call(text.module, other, first.present, 5)
    again = learner.call(text.module, text.text[:, 5:], first.present, 5)
    if again.failed is not None or again.y is None or not close(again.y, text.wanted[:, 5:]):
        now = leaves(first.present)
        same = len(now) == len(first.stored) and all(map(torch.equal, now, first.stored))
        if not same:
            raise learner.mistake("past-changed", within=learner.forward_lines())
        raise learner.mistake(
            "kept-in-module", within=learner.forward_lines(),
            what="if two texts continue one past, the output for the second text is wrong",
        )  # fmt: skip


def _two_texts(learner: PastLearner) -> None:
    """Raise CheckFailed if outputs are wrong after the module has read another text.

    Also raises CheckFailed if the module keeps tokens and has no way to remove them."""
    size = replace(SIZES[0], pieces=(5, 3))
    text = learner.text(size)
    lines = learner.forward_lines()
    other = _other_text(text)
    if learner.form.keeps_state:
        if learner.form.reset is None and not learner.form.starts:
            raise learner.mistake("reset-missing", within=lines)
        module = learner.unused(text.module)
        learner.read(other, (4, 2), module)
        learner.reset(module)
        calls = learner.read(text, size.pieces, module)
        if not all(_seen(text, one).right for one in calls):
            first = calls[0]
            why = (
                f"stops: {_words_of(first.failed.message)}" if first.failed is not None
                else "still computes with tokens of the previous text"
            )  # fmt: skip
            within = learner.source.lines_of(learner.form.reset or "") or lines
            raise learner.mistake("clear-incomplete", problem=why, within=within)
        return
    a = learner.read(text, (5,))[0]
    learner.read(other, (4, 2))
    late = learner.call(text.module, text.text[:, 5:], a.present, 5)
    if late.y is None or not close(late.y, text.wanted[:, 5:]):
        raise learner.mistake(
            "kept-in-module", within=lines,
            what="the output for a text is wrong after the module has read another text",
        )  # fmt: skip


def _other_text(text: Text) -> Text:
    """A copy of `text` with another input. The wanted outputs are still those of the old input."""
    return replace(text, text=text.text.roll(1, 1) + 0.3)


def _dtype(learner: PastLearner) -> None:
    """Raise CheckFailed if the keys or values of a bfloat16 x have another dtype.

    If forward stops, add a note."""
    if learner.form.keeps_state:
        return
    size = SIZES[0]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        module, _ = learner.build(size)
        module = copy.deepcopy(module).to(torch.bfloat16)
        x = torch.randn(size.B, 3, size.C).to(torch.bfloat16)
        learner.dtype = torch.bfloat16
        past = learner.fresh()
        with learner.as_learner():
            out = learner.form(module, x, past, 0, cached=True)
    except Exception as error:
        learner.notes.append(("dtype", f"forward does not run in bfloat16: {in_words(error)}"))
        return
    finally:
        torch.set_default_dtype(before)
        learner.dtype = torch.float64
    present = past if learner.form.changes_past else output_and_present(
        out, x, len(learner.form.past) == 2)[1]  # fmt: skip
    got = {tensor.dtype for tensor in leaves(present)} - {torch.bfloat16}
    if got:
        names = (str(one).removeprefix("torch.") for one in (torch.bfloat16, got.pop()))
        raise learner.mistake(
            "other-dtype", given=next(names), got=next(names), within=learner.forward_lines()
        )
