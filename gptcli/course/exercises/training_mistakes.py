"""The steps of training, and what people write in their place."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from gptcli.course.exercises.explainer import ExerciseMistake
from gptcli.course.exercises.training import any_step, loss_of
from gptcli.course.lesson import Step

STEPS = (
    Step(
        "get_batch",
        "which token should be predicted at each place of x, and where may a window begin?",
        "y is x one token later; a window may begin at 0 to len(data) - block_size - 1",
        "torch.randint(len(data) - block_size, (batch_size,)): its upper end is left out",
    ),
    Step(
        "loss",
        "over what is the mean taken, and what does cross_entropy expect: logits or probabilities?",
        "F.cross_entropy of all B*T positions at once, on the logits as they are",
        "reshape logits to (B*T, V) and targets to (B*T)",
    ),
    Step(
        "learning rate",
        "what is the rate at step 0, at the end of the warm-up, and after max_steps?",
        "(step + 1) / warmup_steps of max_lr, then half a cosine down to min_lr, and "
        "min_lr from there on",
        "0.5 * (1 + cos(pi * done)) goes from 1 to 0, as done goes from warmup_steps to max_steps",
    ),
    Step(
        "clipping",
        "how many norms are there: one for each parameter, or one in all?",
        "one norm of all gradients together; where it is over max_norm, all shrink by one factor",
        "the root of the sum of all squares; multiply each p.grad in place by max_norm / norm",
    ),
    Step(
        "training step",
        "what do the gradients hold before the first backward, and after the last?",
        "zero the gradients once, add up those of all batches (each loss divided by their number), "
        "clip once, step once",
        "zero_grad; for each batch (loss / len(batches)).backward(); clip; step",
    ),
    Step(
        "evaluation",
        "what do dropout and autograd do while you measure?",
        "model.eval() before, model.train() after, no gradients, and the mean of all batches",
        "put @torch.no_grad() over the function",
    ),
)


def _with(change: Callable[[float], float], **other: Any) -> Callable[..., float]:
    """A schedule whose share of the way down is change(done), in other parts as told."""

    def rate(step: int, top: float, low: float, warm: int, last: int) -> float:
        if step < warm:
            rise: Callable[[int, int], float] = other.get("rise", lambda s, w: (s + 1) / w)
            return top * rise(step, warm)
        if step >= last and not other.get("endless"):
            return float(other["after"](low)) if "after" in other else low
        start = 0 if other.get("from_zero") else warm
        end = last if not other.get("long") else last + warm
        floor = 0.0 if other.get("no_floor") else low
        return floor + (top - floor) * change((step - start) / max(1, end - start))

    return rate


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


def _clip(change: Callable[[list[Tensor], float], tuple[list[Tensor], float]]) -> Any:
    return change


def _norm(grads: list[Tensor]) -> float:
    return math.sqrt(sum(float((g**2).sum()) for g in grads))


def _scaled(grads: list[Tensor], factor: float) -> list[Tensor]:
    return [g * factor for g in grads]


def _by(norm: Callable[[list[Tensor]], float]) -> Callable[..., Any]:
    """Clipping by another norm."""
    return lambda g, m: (_scaled(g, min(1.0, m / norm(g))), norm(g))


def _flat(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x.reshape(-1, x.shape[-1]), y.reshape(-1)


# Forms: step 2 (logits, targets) -> loss; step 3 (step, max_lr, min_lr, warmup, max) -> rate;
# step 4 (gradients, max_norm) -> gradients and norm; step 5 as any_step.
# fmt: off
MISTAKES = (
    ExerciseMistake("batch-shape", 1,
            "one-dimensional x", "get_batch gives shapes {x} and {y}, expected "
            "{wanted} twice", "B windows of T tokens", "stack the windows", at=r"stack|return"),
    ExerciseMistake("not-int64", 1,
            "int32 or float data", "get_batch gives {dtype}, expected torch.int64",
            "embeddings and losses want int64", "call .long()", at=r"float|int32|\.to\("),
    ExerciseMistake("targets-not-shifted", 1, "y = data[i : i + block_size]",
            "y is x itself: for x beginning {x} y begins {y}",
            "the model would learn to copy its input", "begin y one token later", at=r"y\s*="),
    ExerciseMistake("targets-shifted-wrongly", 1, "y = data[i + 2 : ...], or i - 1",
            "y is x {by:+d} tokens away: for x beginning {x} y begins {y}",
            "the next token is one further on", "begin y at i + 1", at=r"y\s*="),
    ExerciseMistake("not-a-window", 1,
            "random tokens", "x holds {x}, which do not follow each other in "
            "the data", "a window is block_size tokens in a row", "slice the data", at=r"x\s*="),
    ExerciseMistake("start-out-of-range", 1,
            "randint(len(data) - block_size + 1), or randint(len(data))",
            "with {n} tokens and block_size {t} a window goes past the end: {error}",
            "the last target must lie in the data too",
            "take len(data) - block_size as the upper end, which randint leaves out",
            at=r"randint|rand"),
    ExerciseMistake("last-start-missing", 1, "randint(len(data) - block_size - 1)",
            "with {n} tokens and block_size {t} no window ever begins at {start}",
            "randint leaves its upper end out already", "take len(data) - block_size",
            at=r"randint|rand"),
    ExerciseMistake("first-start-missing", 1,
            "randint(1, ...)", "no window ever begins at 0 of the {n} "
            "tokens", "the first token counts too", "begin at 0", at=r"randint|rand"),
    ExerciseMistake("same-windows", 1, "one start for all rows, or no randomness",
            "all {b} windows begin at {start}", "a batch should see many places",
            "draw batch_size starts", at=r"randint|start"),
    ExerciseMistake("generator-ignored", 1, "torch.randint(...) without generator=",
            "two generators of one seed give batches that begin {x} and {y}",
            "a run could not be repeated", "pass generator=generator", at=r"randint|rand"),
    ExerciseMistake("loss-summed", 2, 'reduction="sum"', "the losses are summed, not averaged",
            "the rate would depend on the batch size", "take the mean",
            (lambda x, y: F.cross_entropy(*_flat(x, y), reduction="sum"),
             lambda x, y: F.cross_entropy(*_flat(x, y), reduction="sum") / len(x)), r"sum|/"),
    ExerciseMistake("softmax-twice", 2, "F.cross_entropy(logits.softmax(-1), targets)",
            "the logits went through a softmax before cross_entropy",
            "cross_entropy does it inside",
            "pass the logits as they are", (lambda x, y: loss_of(x.softmax(-1), y),), r"softmax"),
    ExerciseMistake("shifted-again", 2, "logits[:, :-1] with targets[:, 1:]",
            "the targets are shifted once more", "get_batch has done it: y is the next token",
            "compare logits[:, t] with targets[:, t]",
            (lambda x, y: loss_of(x[:, :-1], y[:, 1:]),), r":-1|1:"),
    ExerciseMistake("last-position-only", 2, "logits[:, -1]", "only the last position counts",
            "every position predicts its next token", "use all positions",
            (lambda x, y: F.cross_entropy(x[:, -1], y[:, -1]),), r"-1"),
    ExerciseMistake("perplexity", 2, "torch.exp(loss)", "the loss is exponentiated",
            "that is the perplexity; training minimises the loss", "return the loss itself",
            (lambda x, y: loss_of(x, y).exp(),), r"exp"),
    ExerciseMistake("bits", 2, "loss / math.log(2)", "the loss is in bits", "nats are asked for",
            "leave log(2) out", (lambda x, y: loss_of(x, y) / math.log(2),), r"log"),
    ExerciseMistake("sign", 2, "log_softmax without the minus", "the loss has the wrong sign",
            "training would raise it", "negate it", (lambda x, y: -loss_of(x, y),), r"return"),
    ExerciseMistake("warmup-from-zero", 3,
            "max_lr * step / warmup_steps", "the rate of step 0 is 0",
            "the first step would do nothing", "use step + 1",
            (_with(_cosine, rise=lambda s, w: s / w),), r"step\s*/"),
    ExerciseMistake("no-warmup", 3, "the cosine from the beginning", "there is no rise",
            "large first steps harm", "rise while step < warmup_steps",
            (_with(_cosine, rise=lambda s, w: 1.0), lambda s, a, b, w, n: _with(_cosine)(
                s, a, b, 0, n)), r"warm"),
    ExerciseMistake("linear-decay", 3,
            "1 - done", "the way down is straight", "half a cosine is asked for",
            "0.5 * (1 + cos(pi * done))", (_with(lambda d: 1 - d),), r"1(\.0)? - "),
    ExerciseMistake("whole-cosine", 3, "math.cos(2 * math.pi * done) or cos(done)",
            "the cosine takes another part of its wave", "from 0 to pi it goes from 1 to -1",
            "use pi times the share that is done",
            (_with(lambda d: 0.5 * (1 + math.cos(2 * math.pi * d))),
             _with(lambda d: 0.5 * (1 + math.cos(d))), _with(lambda d: math.cos(math.pi * d / 2))),
            r"cos"),
    ExerciseMistake("decay-to-zero", 3, "max_lr * cosine", "the way down leads to 0, not to min_lr",
            "min_lr is the floor", "add min_lr, and scale max_lr - min_lr",
            (_with(_cosine, no_floor=True), _with(_cosine, no_floor=True, after=lambda low: 0.0)),
            r"return .*cos|\* cos"),
    ExerciseMistake("floor-added", 3,
            "min_lr + max_lr * cosine", "the way down begins at max_lr + min_lr",
            "it begins at max_lr", "scale max_lr - min_lr", (
            lambda s, a, b, w, n: _with(_cosine)(s, a, b, w, n) if s < w or s >= n
            else b + a * _cosine((s - w) / (n - w)),), r"return .*cos|\* cos"),
    ExerciseMistake("decay-from-zero", 3, "done = step / max_steps",
            "the way down is counted from step 0, not from the end of the warm-up",
            "the rate would jump where the warm-up ends", "subtract warmup_steps above and below",
            (_with(_cosine, from_zero=True),), r"/\s*max_steps"),
    ExerciseMistake("decay-too-long", 3, "done = (step - warmup_steps) / max_steps",
            "the way down is divided by max_steps, so it never gets to min_lr",
            "from warmup_steps to max_steps there are fewer steps",
            "divide by max_steps - warmup_steps", (_with(_cosine, long=True),), r"/\s*max_steps"),
    ExerciseMistake("rises-again", 3, "no test for step >= max_steps",
            "after max_steps the rate rises again", "the cosine comes back up",
            "return min_lr from max_steps on", (_with(_cosine, endless=True),), r"cos"),
    ExerciseMistake("zero-after-the-end", 3, "return 0.0 after max_steps",
            "after max_steps the rate is 0, not min_lr", "min_lr is the floor", "return min_lr",
            (_with(_cosine, after=lambda low: 0.0),), r"return 0"),
    ExerciseMistake("norm-of-each", 4, "clipping every parameter by its own norm",
            "every gradient is clipped by its own norm", "the direction of the step would change",
            "one norm of all", (_clip(lambda g, m: (
                [t * min(1.0, m / max(_norm([t]), 1e-12)) for t in g], _norm(g))),), r"\.norm\("),
    ExerciseMistake("clipped-by-value", 4, "p.grad.clamp_(-max_norm, max_norm)",
            "each number is clipped by itself", "the direction of the step would change",
            "scale all by one factor",
            (_clip(lambda g, m: ([t.clamp(-m, m) for t in g], _norm(g))),),
            r"clamp"),
    ExerciseMistake("always-scaled", 4, "p.grad *= max_norm / norm", "small gradients are blown up",
            "clipping only makes smaller", "scale only where norm is over max_norm",
            (_clip(lambda g, m: (_scaled(g, m / _norm(g)), _norm(g))),), r"max_norm\s*/"),
    ExerciseMistake("no-root", 4,
            "the sum of squares as the norm", "the root of the sum is not taken",
            "the norm is the root of the sum of squares", "take the root",
            (_by(lambda g: _norm(g) ** 2),), r"\*\* 2|pow|sum"),
    ExerciseMistake("another-norm", 4, "abs().sum(), or the sum of the norms",
            "the norm is not that of all squares", "square, add up, take the root",
            "sum the squares of all parameters first",
            (_by(lambda g: sum(float(t.abs().sum()) for t in g)), _by(
                lambda g: sum(_norm([t]) for t in g)), _by(
                lambda g: max(float(t.abs().max()) for t in g)), _by(
                lambda g: max(_norm([t]) for t in g))), r"norm|abs"),
    ExerciseMistake("not-clipped", 4, "g = g * scale, which changes a copy",
            "the gradients stay as they were", "a new tensor is not p.grad", "use p.grad.mul_",
            (_clip(lambda g, m: (g, _norm(g))),), r"\bg\s*=|grad\s*=(?!=)"),
    ExerciseMistake("returns-norm-after", 4, "return of the clipped norm",
            "the norm that is returned is not the one from before", "it is there to be watched",
            "return what was measured first",
            (_clip(lambda g, m: (_scaled(g, min(1.0, m / _norm(g))), min(m, _norm(g)))),),
            r"return"),
    ExerciseMistake("without-gradient", 4, "p.grad of a parameter that has none",
            "clip_gradients stops where a parameter has no gradient: {error}",
            "a parameter that was not used has p.grad None", "leave those out", at=r"grad"),
    ExerciseMistake("no-zero-grad", 5,
            "zero_grad left out", "the gradients of the step before are added",
            "backward adds to what is there", "zero them first", (partial(any_step, zero="no"),),
            r"backward"),
    ExerciseMistake("zero-each-batch", 5, "zero_grad inside the loop", "only the last batch counts",
            "accumulation adds up the batches", "zero once, before the loop",
            (partial(any_step, zero="each"),), r"zero_grad"),
    ExerciseMistake("zero-before-step", 5, "zero_grad between backward and step",
            "the gradients are zeroed before the step", "the step has nothing to go by",
            "zero before the loop",
            (partial(any_step, zero="after"),), r"zero_grad"),
    ExerciseMistake("not-divided", 5, "loss.backward() for each batch",
            "the gradients of the batches are summed, not averaged",
            "four batches of 2 should equal one of 8", "divide each loss by len(batches)",
            (partial(any_step, share=1.0),), r"backward"),
    ExerciseMistake("step-each-batch", 5, "optimizer.step() inside the loop",
            "there is a step for every batch", "accumulation makes one step of them all",
            "step once, after the loop", (partial(any_step, step="each"), partial(
                any_step, step="each", clip="each"), partial(
                any_step, step="each", clip="each", zero="each"), partial(
                any_step, step="each", clip="each", zero="each", share=1.0)), r"\.step\("),
    ExerciseMistake("no-clipping", 5, "clip_gradients not called", "the gradients are not clipped",
            "one bad batch would do harm", "clip between the last backward and the step",
            (partial(any_step, clip="no"), partial(any_step, clip="after")), r"\.step\("),
    ExerciseMistake("clipped-each-batch", 5,
            "clip inside the loop", "the gradients are clipped after "
            "every batch", "the sum is what counts", "clip once, after the loop",
            (partial(any_step, clip="each"),), r"clip"),
    ExerciseMistake("rate-not-set", 5, "lr not used", "the optimizer's rate is not set to lr",
            "the schedule would have no effect", 'set group["lr"] in optimizer.param_groups',
            (partial(any_step, rate="never"),), r"\.step\("),
    ExerciseMistake("rate-of-first-group", 5, 'optimizer.param_groups[0]["lr"] = lr',
            "the rate of the first parameter group alone is set", "there may be several",
            "set all of them", (partial(any_step, rate="first"),), r"param_groups"),
    ExerciseMistake("returns-last-loss", 5,
            "return loss", "the loss of the last batch is returned, or the "
            "sum", "the mean of all is asked for", "add them up, divide by len(batches)",
            (partial(any_step, returns="last"), partial(any_step, returns="sum")), r"return"),
    ExerciseMistake("not-in-eval-mode", 6, "model.eval() left out",
            "the model was in training mode for {count} of {of} batches",
            "dropout would blur the figure", "call model.eval() first", at=r"def evaluate"),
    ExerciseMistake("left-in-eval-mode", 6, "model.train() left out",
            "after evaluate the model is still in evaluation mode ({of} batches)",
            "training would go on without dropout", "call model.train() at the end", at=r"return"),
    ExerciseMistake("gradients-on", 6, "no torch.no_grad()",
            "autograd was on for {count} of {of} batches", "it costs memory and time for nothing",
            "put @torch.no_grad() over the function", at=r"def evaluate"),
    ExerciseMistake("not-the-mean", 6, "the last batch, or the sum",
            "evaluate gives {yours:.4g}, {what} of the {of} losses, expected the mean {wanted:.4g}",
            "the mean of all batches is asked for", "add them up, divide by len(batches)",
            at=r"return"),
)
# fmt: on
