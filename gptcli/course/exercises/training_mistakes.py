"""The six steps of the training exercise and its bank of known mistakes."""

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
        "which token does each position of x predict, and where can a window begin?",
        "y is x one token later; a window can begin at 0 to len(data) - block_size - 1",
        "torch.randint(len(data) - block_size, (batch_size,)): its upper end is excluded",
    ),
    Step(
        "loss",
        "what is averaged, and does cross_entropy expect logits or probabilities?",
        "one call of F.cross_entropy for all B*T positions, with the unchanged logits",
        "reshape logits to (B*T, V) and targets to (B*T)",
    ),
    Step(
        "learning rate",
        "what is the rate at step 0, at the end of the warm-up, and after max_steps?",
        "first max_lr * (step + 1) / warmup_steps, then half a cosine down to min_lr, and min_lr "
        "from max_steps on",
        "if done goes from 0 at warmup_steps to 1 at max_steps, 0.5 * (1 + cos(pi * done)) falls "
        "from 1 to 0",
    ),
    Step(
        "clipping",
        "how many norms are there: one per parameter, or one in total?",
        "one norm of all gradients together; if it exceeds max_norm, scale all gradients by one "
        "factor",
        "take the root of the sum of all squares; multiply each p.grad in place by max_norm / norm",
    ),
    Step(
        "training step",
        "what should the gradients be before the first backward, and what after the last one?",
        "zero the gradients once, add up the gradients of all batches (divide each loss by "
        "len(batches)), clip once, step once",
        "zero_grad; for each batch (loss / len(batches)).backward(); clip; step",
    ),
    Step(
        "evaluation",
        "should dropout and autograd be active while you measure?",
        "call model.eval() before and model.train() after; compute without gradients; return the "
        "mean over all batches",
        "write @torch.no_grad() above the function",
    ),
)


def _with(change: Callable[[float], float], **other: Any) -> Callable[..., float]:
    """A wrong learning rate schedule, in which `change` replaces the half cosine.

    `change` gets the share of the decay's steps that are done, and returns the share of the decay
    that is left. `other` changes other parts of the schedule."""

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
    """A wrong clip_gradients, which computes the gradients' norm with the function `norm`."""
    return lambda g, m: (_scaled(g, min(1.0, m / norm(g))), norm(g))


def _flat(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x.reshape(-1, x.shape[-1]), y.reshape(-1)


# The functions in `forms`. Step 2: (logits, targets) -> loss.
# Step 3: (step, max_lr, min_lr, warmup, max) -> rate.
# Step 4: (gradients, max_norm) -> gradients and norm. Step 5: any_step with keyword arguments.
# fmt: off
MISTAKES = (
    ExerciseMistake("batch-shape", 1,
            "one-dimensional x", "your get_batch returns x of shape {x} and y of shape {y}, "
            "expected {wanted} for both", "x and y must both have B windows of T tokens",
            "stack the windows",
            at=r"stack|return"),
    ExerciseMistake("not-int64", 1,
            "int32 or float data", "your get_batch returns {dtype}, expected torch.int64",
            "embeddings and losses need int64", "call .long()", at=r"float|int32|\.to\("),
    ExerciseMistake("targets-not-shifted", 1, "y = data[i : i + block_size]",
            "your y is x itself: x begins with {x}, y with {y}",
            "the model would learn to copy its input", "begin y one token later than x",
            at=r"\by\w*\s*="),
    ExerciseMistake("targets-shifted-wrongly", 1, "y = data[i + 2 : ...], or i - 1",
            "your y begins {by:+d} tokens after x: x begins with {x}, y with {y}",
            "y has the next tokens, at +1", "begin y at i + 1", at=r"\by\w*\s*="),
    ExerciseMistake("targets-rolled", 1, "y = x.roll(-1)",
            "your y is x moved by one, and the last token of y is the first of x: x is {x}, y is "
            "{y}",
            "the target of the last token is the next token of the data, outside the window",
            "slice y from the data, one token later than x", at=r"roll|cat|\by\w*\s*="),
    ExerciseMistake("targets-mixed", 1, "y from other windows than x",
            "your y does not have the next token at {wrong} of {of} places: x begins with {x}, y "
            "with {y}", "y has the next tokens of the same window",
            "if x begins at i, begin y at i + 1", at=r"\by\w*\s*="),
    ExerciseMistake("same-every-time", 1, "torch.manual_seed(0) in get_batch",
            "generators with different seeds give the same batch, whose windows begin at {x}",
            "different seeds must give different batches",
            "draw the starts with generator=generator",
            at=r"seed|randint|rand"),
    ExerciseMistake("not-a-window", 1,
            "random tokens", "the tokens of your x, {x}, are not neighbours in the data",
            "a window is block_size neighbouring tokens", "slice the data", at=r"\bx\w*\s*="),
    ExerciseMistake("start-out-of-range", 1,
            "randint(len(data) - block_size + 1), or randint(len(data))",
            "with {n} tokens and block_size {t}, your window goes past the end: {error}",
            "the last target must also be in the data",
            "pass len(data) - block_size to randint, whose upper end is excluded",
            at=r"randint|rand"),
    ExerciseMistake("last-start-missing", 1, "randint(len(data) - block_size - 1)",
            "with {n} tokens and block_size {t}, none of your windows begins at token {start}",
            "randint already excludes its upper end", "pass len(data) - block_size",
            at=r"randint|rand"),
    ExerciseMistake("first-start-missing", 1,
            "randint(1, ...)", "none of your windows begins at token 0 of "
            "{n}", "the first token counts too", "begin at 0", at=r"randint|rand"),
    ExerciseMistake("same-windows", 1, "one start for all rows, or no randomness",
            "all your {b} windows begin at {start}",
            "the windows of a batch must come from many places",
            "draw batch_size starts", at=r"randint|start"),
    ExerciseMistake("generator-ignored", 1, "torch.randint(...) without generator=",
            "two generators with the same seed give batches whose windows begin at {x} and at {y}",
            "nobody could repeat a training run", "pass generator=generator", at=r"randint|rand"),
    ExerciseMistake("loss-summed",
            2, 'reduction="sum"', "you do not average the losses over all positions",
            "the step size would depend on the number of tokens", "take the mean",
            (lambda x, y: F.cross_entropy(*_flat(x, y), reduction="sum"),
             lambda x, y: F.cross_entropy(*_flat(x, y), reduction="sum") / len(x)), r"sum|/"),
    ExerciseMistake("softmax-twice", 2, "F.cross_entropy(logits.softmax(-1), targets)",
            "you apply a softmax to the logits before cross_entropy",
            "cross_entropy contains the softmax",
            "pass the logits unchanged", (lambda x, y: loss_of(x.softmax(-1), y),), r"softmax"),
    ExerciseMistake("shifted-again", 2, "logits[:, :-1] with targets[:, 1:]",
            "you shift the targets again",
            "get_batch has already shifted them: y has the next tokens",
            "compare logits[:, t] with targets[:, t]",
            (lambda x, y: loss_of(x[:, :-1], y[:, 1:]),), r":-1|1:"),
    ExerciseMistake("last-position-only", 2, "logits[:, -1]", "you use only the last position",
            "every position predicts its next token, and its loss must count", "use all positions",
            (lambda x, y: F.cross_entropy(x[:, -1], y[:, -1]),), r"-1"),
    ExerciseMistake("perplexity", 2, "torch.exp(loss)", "you return exp(loss)",
            "the exponential of the loss is the perplexity; training minimises the loss",
            "return the loss itself",
            (lambda x, y: loss_of(x, y).exp(),), r"exp"),
    ExerciseMistake("bits", 2, "loss / math.log(2)", "your loss is in bits",
            "the loss must be in nats",
            "leave log(2) out", (lambda x, y: loss_of(x, y) / math.log(2),), r"log"),
    ExerciseMistake("sign", 2, "log_softmax without the minus", "your loss has the wrong sign",
            "training would make the predictions worse",
            "negate it", (lambda x, y: -loss_of(x, y),),
            r"return"),
    ExerciseMistake("warmup-from-zero", 3,
            "max_lr * step / warmup_steps", "your learning rate at step 0 is 0",
            "the first step would change nothing", "use step + 1",
            (_with(_cosine, rise=lambda s, w: s / w),), r"step\s*/"),
    ExerciseMistake("no-warmup", 3, "the cosine from the beginning", "you have no warm-up",
            "large steps at the beginning do harm", "let the rate rise while step < warmup_steps",
            (_with(_cosine, rise=lambda s, w: 1.0), lambda s, a, b, w, n: _with(_cosine)(
                s, a, b, 0, n)), r"warm"),
    ExerciseMistake("linear-decay", 3,
            "1 - done", "your decay is linear", "the decay should be half a cosine",
            "0.5 * (1 + cos(pi * done))", (_with(lambda d: 1 - d),), r"1(\.0)? - "),
    ExerciseMistake("whole-cosine", 3, "math.cos(2 * math.pi * done) or cos(done)",
            "you use the wrong part of the cosine", "from 0 to pi the cosine falls from 1 to -1",
            "use cos(pi * done), where done goes from 0 to 1",
            (_with(lambda d: 0.5 * (1 + math.cos(2 * math.pi * d))),
             _with(lambda d: 0.5 * (1 + math.cos(d))), _with(lambda d: math.cos(math.pi * d / 2))),
            r"cos"),
    ExerciseMistake("decay-to-zero", 3, "max_lr * cosine", "your decay ends at 0, not at min_lr",
            "the decay goes down to min_lr", "add min_lr, and scale max_lr - min_lr",
            (_with(_cosine, no_floor=True), _with(_cosine, no_floor=True, after=lambda low: 0.0)),
            r"return .*cos|\* cos"),
    ExerciseMistake("floor-added", 3,
            "min_lr + max_lr * cosine", "your decay begins at max_lr + min_lr",
            "the decay must begin at max_lr", "scale max_lr - min_lr", (
            lambda s, a, b, w, n: _with(_cosine)(s, a, b, w, n) if s < w or s >= n
            else b + a * _cosine((s - w) / (n - w)),), r"return .*cos|\* cos"),
    ExerciseMistake("decay-from-zero", 3, "done = step / max_steps",
            "your decay counts the steps from step 0, not from the end of the warm-up",
            "the rate would jump at the end of the warm-up",
            "subtract warmup_steps from step and from max_steps",
            (_with(_cosine, from_zero=True),), r"/\s*max_steps"),
    ExerciseMistake("decay-too-long", 3, "done = (step - warmup_steps) / max_steps",
            "you divide the steps after the warm-up by max_steps, so the decay ends above min_lr",
            "the decay has only max_steps - warmup_steps steps",
            "divide by max_steps - warmup_steps", (_with(_cosine, long=True),), r"/\s*max_steps"),
    ExerciseMistake("rises-again", 3, "no test for step >= max_steps",
            "after max_steps your learning rate rises again",
            "after half a period, the cosine rises",
            "return min_lr from max_steps on", (_with(_cosine, endless=True),), r"cos"),
    ExerciseMistake("zero-after-the-end", 3, "return 0.0 after max_steps",
            "after max_steps your learning rate is 0, not min_lr",
            "the rate stays at min_lr after the decay",
            "return min_lr",
            (_with(_cosine, after=lambda low: 0.0),), r"return 0"),
    ExerciseMistake("norm-of-each", 4, "clipping each gradient by its own norm",
            "you clip each gradient by its own norm",
            "clipping each gradient separately changes the direction of the step",
            "use one norm of all gradients together", (_clip(lambda g, m: (
                [t * min(1.0, m / max(_norm([t]), 1e-12)) for t in g], _norm(g))),), r"\.norm\("),
    ExerciseMistake("clipped-by-value", 4, "p.grad.clamp_(-max_norm, max_norm)",
            "you clip each number separately",
            "clipping each number separately changes the direction of the step",
            "scale all gradients by one factor",
            (_clip(lambda g, m: ([t.clamp(-m, m) for t in g], _norm(g))),),
            r"clamp"),
    ExerciseMistake("always-scaled", 4, "p.grad *= max_norm / norm", "you scale small gradients up",
            "clipping must only make gradients smaller", "scale only if norm > max_norm",
            (_clip(lambda g, m: (_scaled(g, m / _norm(g)), _norm(g))),), r"max_norm\s*/"),
    ExerciseMistake("no-root", 4,
            "the sum of squares as the norm", "you do not take the root of the sum",
            "the norm is the root of the sum of squares", "take the root",
            (_by(lambda g: _norm(g) ** 2),), r"\*\* 2|pow|sum"),
    ExerciseMistake("another-norm", 4, "abs().sum(), or the sum of the norms",
            "your norm is not the root of the sum of all squares",
            "square all numbers, add them up, take the root",
            "sum the squares of all gradients, and take one root at the end",
            (_by(lambda g: sum(float(t.abs().sum()) for t in g)), _by(
                lambda g: sum(_norm([t]) for t in g)), _by(
                lambda g: max(float(t.abs().max()) for t in g)), _by(
                lambda g: max(_norm([t]) for t in g))), r"norm|abs"),
    ExerciseMistake("not-clipped", 4, "g = g * scale, which changes a copy",
            "your gradients stay unchanged", "an assignment to g does not change p.grad",
            "use p.grad.mul_",
            (_clip(lambda g, m: (g, _norm(g))),), r"\bg\s*=|grad\s*=(?!=)"),
    ExerciseMistake("returns-norm-after", 4, "return of the clipped norm",
            "you return the norm after clipping",
            "only the norm before clipping shows how large the gradients are",
            "return the norm that you measured before clipping",
            (_clip(lambda g, m: (_scaled(g, min(1.0, m / _norm(g))), min(m, _norm(g)))),),
            r"return"),
    ExerciseMistake("parameters-exhausted", 4, "two loops over parameters",
            "your clip_gradients is wrong for model.parameters(), which is a generator: a second "
            "loop over it finds nothing", "train_step passes model.parameters()",
            "begin with parameters = list(parameters)", at=r"for .* in parameters|parameters"),
    ExerciseMistake("without-gradient", 4, "p.grad of an unused parameter",
            "your clip_gradients stops at a parameter without a gradient: {error}",
            "p.grad of an unused parameter is None", "skip such parameters", at=r"grad"),
    ExerciseMistake("no-backward", 5, "backward left out", "your train_step computes no gradients",
            "the optimizer needs the gradient of the loss", "call backward on the loss of each "
            "batch, divided by len(batches)", at=r"loss"),
    ExerciseMistake("no-step", 5, "optimizer.step() left out",
            "you never call optimizer.step(), so no weight changes",
            "backward only computes gradients", "call optimizer.step() after clipping",
            at=r"backward|clip"),
    ExerciseMistake("last-batch-only", 5, "backward after the loop",
            "only your last batch gives a gradient",
            "gradient accumulation adds up the gradients of all batches",
            "call backward inside the loop",
            at=r"backward"),
    ExerciseMistake("no-zero-grad", 5,
            "zero_grad left out", "your train_step keeps the gradients of the call before",
            "backward adds to the gradients that exist",
            "zero the gradients before the first backward",
            (partial(any_step, zero="no"),),
            r"backward"),
    ExerciseMistake("zero-each-batch", 5, "zero_grad inside the loop",
            "only your last batch gives a gradient",
            "gradient accumulation adds up the gradients of all batches",
            "zero once, before the loop",
            (partial(any_step, zero="each"),), r"zero_grad"),
    ExerciseMistake("zero-before-step", 5, "zero_grad between backward and step",
            "you zero the gradients between backward and optimizer.step()",
            "optimizer.step() then has no gradients",
            "zero the gradients before the loop",
            (partial(any_step, zero="after"),), r"zero_grad"),
    ExerciseMistake("not-divided", 5, "loss.backward() for each batch",
            "you sum the gradients of the batches instead of averaging",
            "four batches of 2 must give the same step as one batch of 8",
            "divide each loss by len(batches)",
            (partial(any_step, share=1.0),), r"backward"),
    ExerciseMistake("step-each-batch", 5, "optimizer.step() inside the loop",
            "you make a step for every batch",
            "gradient accumulation makes one step from the gradients of all batches",
            "call optimizer.step() once, after the loop", (partial(any_step, step="each"), partial(
                any_step, step="each", clip="each"), partial(
                any_step, step="each", clip="each", zero="each"), partial(
                any_step, step="each", clip="each", zero="each", share=1.0)), r"\.step\("),
    ExerciseMistake("no-clipping", 5, "clip_gradients not called",
            "you do not clip the gradients before optimizer.step()",
            "without clipping, one bad batch can do harm",
            "clip between the last backward and the step",
            (partial(any_step, clip="no"), partial(any_step, clip="after")), r"\.step\("),
    ExerciseMistake("clipped-each-batch", 5,
            "clip inside the loop", "you clip after every batch, not once at the end",
            "the gradients of all batches are added up first, and then the sum is clipped",
            "clip once, after the loop",
            (partial(any_step, clip="each"),), r"clip"),
    ExerciseMistake("rate-not-set", 5, "lr not used",
            "you do not set the optimizer's learning rate to lr",
            "the schedule would have no effect", 'set group["lr"] in optimizer.param_groups',
            (partial(any_step, rate="never"),), r"\.step\("),
    ExerciseMistake("rate-of-first-group", 5, 'optimizer.param_groups[0]["lr"] = lr',
            "you set the learning rate of only the first parameter group",
            "an optimizer can have several groups",
            "set the rate of all groups", (partial(any_step, rate="first"),), r"param_groups"),
    ExerciseMistake("returns-last-loss", 5,
            "return loss", "you return the last loss or the sum, not the mean",
            "train_step must return the mean over all batches",
            "add up the losses, and divide by len(batches)",
            (partial(any_step, returns="last"), partial(any_step, returns="sum")), r"return"),
    ExerciseMistake("autograd-left-off", 6, "torch.set_grad_enabled(False)",
            "after your `{name}`, autograd stays switched off: no later training step could "
            "compute gradients",
            "a `with torch.no_grad():` switches autograd on again at its end",
            "write @torch.no_grad() above the function",
            at=r"set_grad_enabled|__enter__|inference_mode|no_grad|enter_context"),
    ExerciseMistake("not-in-eval-mode", 6, "model.eval() left out",
            "the model was in training mode for {count} of {of} batches",
            "dropout would change the loss", "call model.eval() first", at=r"def evaluate"),
    ExerciseMistake("left-in-eval-mode", 6, "model.train() left out",
            "after your `evaluate`, the model is still in evaluation mode",
            "training would continue without dropout", "call model.train() at the end",
            at=r"\.eval\(|return"),
    ExerciseMistake("gradients-on", 6, "no torch.no_grad()",
            "autograd was on for {count} of the {of} batches", "autograd wastes memory and time",
            "write @torch.no_grad() above the function", at=r"def evaluate"),
    ExerciseMistake("not-the-mean", 6, "the last batch, or the sum",
            "your evaluate returns {yours}, {what} of {of} losses; the mean is {wanted}",
            "evaluate must return the mean over all batches",
            "add up the losses, and divide by len(batches)",
            at=r"return"),
    ExerciseMistake("changes-the-model", 6, "requires_grad_(False), or backward in evaluate",
            "after your `evaluate`, the parameter `{name}` has other values than before, has a "
            "gradient, or no longer requires a gradient", "an evaluation must only measure",
            "switch autograd off with torch.no_grad(), and change no parameter",
            at=r"requires_grad|backward|\.step\(|grad"),
)
# fmt: on
