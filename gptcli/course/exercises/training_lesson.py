"""The lesson on training: compare a learner's six functions with the reference."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.course.exercises import training as reference
from gptcli.course.exercises.explainer import apart
from gptcli.course.exercises.learner_functions import LearnerFunctions
from gptcli.course.exercises.training_mistakes import MISTAKES, STEPS
from gptcli.course.exercises.watch import lines_run
from gptcli.course.lesson import CheckFailed, Lesson, Say
from gptcli.course.report import Check
from gptcli.course.sandbox.learner_file import LearnerFile, in_words

FUNCTIONS = ("get_batch", "loss_of", "learning_rate", "clip_gradients", "train_step", "evaluate")
SCHEDULES = ((3e-3, 3e-4, 5, 40), (1.0, 0.1, 0, 10), (0.5, 0.0, 3, 12))
V = 7


class TinyModel(nn.Module):
    """A model with a table of logits and with dropout.

    `calls` has an entry for each call of the model: whether the model was in training mode, whether
    the logits required a gradient, and the line of the learner's file that made the call, or None.
    `backward_passes` counts the backward passes."""

    def __init__(self, path: Path | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.table = nn.Parameter(torch.randn(V, V, generator=generator))
        self.shift = nn.Parameter(torch.randn(V, generator=generator))
        self.dropout = 0.0
        self.calls: list[tuple[bool, bool, int | None]] = []
        self.backward_passes = 0
        self._path = str(path)
        self.table.register_hook(self._count)  # type: ignore[no-untyped-call]

    def _count(self, gradient: Tensor) -> None:
        self.backward_passes += 1

    def forward(self, x: Tensor) -> Tensor:
        logits = self.table[x] + self.shift
        frame: Any = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename != self._path:
            frame = frame.f_back
        line = None if frame is None else frame.f_lineno
        self.calls.append((self.training, logits.requires_grad, line))
        return nn.functional.dropout(logits, self.dropout, self.training)


class WatchedSGD(torch.optim.SGD):
    """An SGD optimizer that records the calls of zero_grad and step."""

    def __init__(self, groups: Any, lr: float) -> None:
        super().__init__(groups, lr=lr)
        self.events: list[str] = []

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Zero the gradients, and record the call."""
        self.events.append("zero")
        super().zero_grad(set_to_none)

    def step(self, closure: Any = None) -> Any:
        """Make a step, and record the call."""
        self.events.append("step")
        return super().step(closure)


class LearnerTraining(LearnerFunctions):
    """The functions of a learner's file. Their errors become CheckFailed."""

    def __init__(self, file: LearnerFile, say: Say) -> None:
        super().__init__(file, say, FUNCTIONS, STEPS, MISTAKES)

    def call(self, step: int, *arguments: Any) -> Any:
        """Call the learner's function for `step`, and return the result.

        Raises CheckFailed if there is no such function, or if the function leaves autograd switched
        off."""
        before = torch.is_grad_enabled()
        result = super().call(step, *arguments)
        after = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        if before and not after:
            torch.set_grad_enabled(True)
            raise self.mistake("autograd-left-off", step=step, name=FUNCTIONS[step - 1])
        return result


class TrainingLesson(Lesson[LearnerTraining]):
    """The lesson on the training loop, in six functions."""

    name = "training"
    steps = STEPS
    mistakes = MISTAKES

    def prepare(self, file: LearnerFile) -> None:
        """Make an optimizer before the time limit of the file begins.

        A process's first optimizer imports torch._dynamo, which takes a second or more."""
        _model_and_optimizer()

    def load(self, file: LearnerFile, say: Say) -> LearnerTraining:
        """Run the file and return its functions, ready to be tried."""
        return LearnerTraining(file, say)

    def check(self, learner: LearnerTraining, done: list[Check]) -> str:
        """Compare each function with the reference."""
        for check in (_batches, _loss, _schedule, _clipping, _steps, _evaluation):
            check(learner)
        verdict = "the same as the reference in all six functions"
        done += self.all_steps(verdict)
        return verdict


def _draw(learner: LearnerTraining, n: int, t: int, b: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    try:
        value = learner.ask(1, torch.arange(n), t, b, generator)
    except CheckFailed as failed:
        if "stack expects" in failed.message or "IndexError" in failed.message:
            error = failed.message.rpartition(": ")[2]
            raise learner.mistake("start-out-of-range", n=n, t=t, error=error) from None
        raise
    x, y = _pair(learner, value)
    if x.shape != (b, t) or y.shape != (b, t):
        raise learner.mistake("batch-shape", x=tuple(x.shape), y=tuple(y.shape), wanted=(b, t))
    for tensor in (x, y):
        if tensor.dtype != torch.int64:
            raise learner.mistake("not-int64", dtype=tensor.dtype)
    return x, y


def _pair(learner: LearnerTraining, value: Any) -> tuple[Tensor, Tensor]:
    if (
        isinstance(value, (tuple, list))
        and len(value) == 2
        and all(isinstance(part, Tensor) for part in value)
    ):
        return value[0], value[1]
    raise learner.failed_at(
        1, "no-pair", f"`get_batch` returned {str(value)[:60]}, not (x, y)"
        + learner.quoted(1), "which two tensors does the last line return?",
    )  # fmt: skip


def _batches(learner: LearnerTraining) -> None:
    x, y = _draw(learner, 300, 5, 4, 0)
    if not bool((x.diff(dim=1) == 1).all()):
        raise learner.mistake("not-a-window", x=x[0].tolist())
    by = sorted(set((y - x).flatten().tolist()))
    shown: dict[str, Any] = {"x": x[0, :3].tolist(), "y": y[0, :3].tolist()}
    if by == [0]:
        raise learner.mistake("targets-not-shifted", **shown)
    if by == [-4, 1]:
        shown = {"x": x[0].tolist(), "y": y[0].tolist()}
        raise learner.mistake("targets-rolled", **shown)
    if by != [1]:
        slug = "targets-shifted-wrongly" if len(by) == 1 else "targets-mixed"
        wrong = int((y - x != 1).sum())
        raise learner.mistake(slug, by=by[0], wrong=wrong, of=x.numel(), **shown)
    if len(set(x[:, 0].tolist())) == 1:
        raise learner.mistake("same-windows", b=4, start=int(x[0, 0]))
    again, _ = _draw(learner, 300, 5, 4, 0)
    if not torch.equal(again, x):
        raise learner.mistake("generator-ignored", x=x[:, 0].tolist(), y=again[:, 0].tolist())
    other, _ = _draw(learner, 300, 5, 4, 1)
    if torch.equal(other, x):
        raise learner.mistake("same-every-time", x=x[:, 0].tolist())
    # Only the starts 0 and 1 are possible here. 64 draws practically never miss one of the two.
    n, t = 7, 5
    starts = set()
    for seed in range(4):
        try:
            value = learner.call(1, torch.arange(n), t, 16, torch.Generator().manual_seed(seed))
        except CheckFailed:
            raise
        except (Exception, SystemExit) as error:
            why = in_words(error)
            no_room = "from=0" in why or "random_" in why or "expects" in why
            if no_room and "stack" not in why:
                raise learner.mistake("last-start-missing", n=n, t=t, start=1) from error
            raise learner.mistake("start-out-of-range", n=n, t=t, error=why) from error
        x, y = _pair(learner, value)
        if x.shape != (16, t) or y.shape != (16, t):
            raise learner.mistake(
                "start-out-of-range", n=n, t=t, error=f"y has shape {tuple(y.shape)}"
            )
        if not bool((y - x == 1).all()) or int(x[:, 0].max()) > n - t - 1:
            row = int(x[:, 0].argmax())
            windows = f"x is {x[row].tolist()}, y is {y[row].tolist()}"
            raise learner.mistake("start-out-of-range", n=n, t=t, error=windows)
        starts |= set(x[:, 0].tolist())
    if 0 not in starts:
        raise learner.mistake("first-start-missing", n=n)
    if 1 not in starts:
        raise learner.mistake("last-start-missing", n=n, t=t, start=1)


def _loss(learner: LearnerTraining) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(3, 5, V, generator=generator) * 2
    targets = torch.randint(V, (3, 5), generator=generator)
    got = learner.number(2, logits.clone().requires_grad_(), targets)
    wanted = float(reference.loss_of(logits, targets))
    if abs(got - wanted) > 1e-6:
        mine, right = apart(got, wanted)
        raise learner.named(
            2,
            lambda form: abs(float(form(logits, targets)) - got) < 1e-6,
            f"for logits {tuple(logits.shape)} it returns {mine}, expected {right}",
            learner.quoted(2),
        )
    if not getattr(
        learner.ask(2, logits.clone().requires_grad_(), targets), "requires_grad", False
    ):
        raise learner.failed_at(
            2, "no-gradient", f"your loss {got:.4g} is cut off from the logits: no gradient flows"
            + learner.quoted(2, r"item|detach|float|no_grad|inference|tensor\(|data|return"),
            "train_step calls backward() on the result of loss_of, so return a tensor that depends "
            "on the logits",
        )  # fmt: skip


def _schedule(learner: LearnerTraining) -> None:
    asked = [(s, *schedule) for schedule in SCHEDULES for s in range(schedule[3] + 4)]
    got = [learner.number(3, *arguments) for arguments in asked]

    def same(form: Callable[..., float]) -> bool:
        return all(
            abs(form(*arguments) - rate) <= 1e-9 for arguments, rate in zip(asked, got, strict=True)
        )

    def slower(step: int, top: float, low: float, warm: int, last: int) -> float:
        if step < warm:  # a warm-up that reaches the top one step later is also accepted
            return top * (step + 1) / (warm + 1)
        return reference.learning_rate(step, top, low, warm, last)

    if same(reference.learning_rate) or same(slower):
        return
    wanted = [reference.learning_rate(*arguments) for arguments in asked]
    i = next(i for i, (a, b) in enumerate(zip(got, wanted, strict=True)) if abs(a - b) > 1e-9)
    mine, right = apart(got[i], wanted[i])
    lines = lines_run(learner.file.path, lambda: learner.functions["learning_rate"](*asked[i]))
    # do not quote a line such as `return lr`: the line before it says more
    plain = learner.source.matches(r"^\s*return \w+\s*$")
    line = next((number for number in reversed(lines) if number not in plain), None)
    raise learner.named(
        3,
        same,
        f"learning_rate{asked[i]} returns {mine}, expected {right}",
        learner.source.quote(line),
    )


Clipped = tuple[list[Tensor], float, list[Tensor], float]
"""Gradients before clipping, max_norm, gradients after clipping, and the norm that was returned."""


def _same_clipping(form: Callable[..., Any], tried: list[Clipped]) -> bool:
    """Whether `form` gives the same gradients and norms as the learner's function."""
    for before, max_norm, after, norm in tried:
        grads, returned = form(before, max_norm)
        close = all(torch.allclose(a, b, 1e-5, 1e-9) for a, b in zip(after, grads, strict=True))
        if not close or abs(returned - norm) > 1e-5 * (1 + abs(norm)):
            return False
    return True


def _clipping(learner: LearnerTraining) -> None:
    tried: list[Clipped] = []
    for seed, max_norm in ((1, 1.0), (2, 100.0), (3, 5.0)):
        generator = torch.Generator().manual_seed(seed)
        parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), (2, 2))]
        for i, parameter in enumerate(parameters):
            parameter.grad = torch.randn(parameter.shape, generator=generator) * 3.0**i
        before = [p.grad.clone() for p in parameters if p.grad is not None]
        given = iter(parameters) if seed == 3 else parameters
        try:
            norm = learner.number(4, given, max_norm)
        except CheckFailed as failed:
            if seed != 3 or failed.mistake != "raises":
                raise
            raise learner.mistake("parameters-exhausted", f" ({failed.message})") from None
        tried.append((before, max_norm, [p.grad for p in parameters if p.grad is not None], norm))

    def same(form: Callable[..., Any]) -> bool:
        return _same_clipping(form, tried)

    def right(before: list[Tensor], max_norm: float) -> tuple[list[Tensor], float]:
        norm = float(torch.cat([g.flatten() for g in before]).norm())
        return [g * min(1.0, max_norm / norm) for g in before], norm

    if not same(right):
        before, max_norm, after, norm = next(
            case for case in tried if not _same_clipping(right, [case])
        )
        left = float(torch.cat([g.flatten() for g in after]).norm())
        whole = float(torch.cat([g.flatten() for g in before]).norm())
        evidence = (
            f"gradients of norm {whole:.4g} at max_norm {max_norm:g}: it leaves gradients of norm "
            f"{left:.4g} and returns {norm:.4g}"
        )
        if _same_clipping(right, tried[:2]):  # only the result for an iterator is wrong
            raise learner.mistake("parameters-exhausted", f" ({evidence})")
        raise learner.named(4, same, evidence, learner.quoted(4, r"norm|grad"))
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    used.grad = torch.ones(3)
    try:
        learner.call(4, [used, unused], 1.0)
    except CheckFailed:
        raise
    except (Exception, SystemExit) as error:
        raise learner.mistake("without-gradient", error=in_words(error)) from error


def _model_and_optimizer() -> tuple[TinyModel, WatchedSGD]:
    model = TinyModel()
    groups: list[dict[str, Any]] = [{"params": [model.table]}, {"params": [model.shift], "lr": 0.3}]
    return model, WatchedSGD(groups, lr=0.7)


def _data(seed: int, count: int) -> list[reference.Batch]:
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.randint(V, (2, 4), generator=generator)

    return [(draw(), draw()) for _ in range(count)]


def _steps(learner: LearnerTraining) -> None:
    def results_of(form: Callable[..., Any]) -> tuple[list[Tensor], TinyModel, WatchedSGD]:
        model, optimizer = _model_and_optimizer()
        out = []
        for seed, lr, max_norm in ((1, 0.5, 0.2), (2, 0.1, 100.0), (3, 0.9, 0.15)):
            loss = float(form(model, optimizer, _data(seed, 3), lr, max_norm))
            out += [model.table.detach().clone(), model.shift.detach().clone()]
            out.append(torch.tensor(loss))
        return out, model, optimizer

    def close(a: list[Tensor], b: list[Tensor]) -> bool:
        return all(torch.allclose(s, t, 1e-4, 1e-6) for s, t in zip(a, b, strict=True))

    try:
        got, model, optimizer = results_of(lambda *arguments: learner.number(5, *arguments))
    except CheckFailed as failed:
        inside = learner.source.lines_of("train_step")
        if failed.mistake == "raises" and not learner.source.matches("backward|autograd", inside):
            raise learner.mistake("no-backward", f" ({failed.message})") from None
        raise
    wanted, _, _ = results_of(reference.any_step)
    if close(got, wanted):
        return
    i = next(
        i for i, (a, b) in enumerate(zip(got, wanted, strict=True))
        if not torch.allclose(a, b, 1e-4, 1e-6)
    )  # fmt: skip
    what = ("a weight", "a weight", "the returned loss")[i % 3]
    most = (got[i] - wanted[i]).abs().argmax()
    mine, right = apart(float(got[i].flatten()[most]), float(wanted[i].flatten()[most]))
    evidence = (
        f"with 3 batches per call, after call {i // 3 + 1} of train_step {what} is "
        f"{mine}, expected {right}"
    )
    unchanged = torch.equal(model.table, TinyModel().table)
    if unchanged and model.backward_passes == 0:
        raise learner.mistake("no-backward", f" ({evidence})")
    if unchanged and "step" not in optimizer.events:
        raise learner.mistake("no-step", f" ({evidence})")

    def same(form: Any) -> bool:
        return close(got, results_of(form)[0])

    last_only = any(
        same(partial(reference.any_step, zero="each", share=share)) for share in (None, 1.0)
    )
    if last_only and model.backward_passes <= 3:
        raise learner.mistake("last-batch-only", f" ({evidence})")
    quote = learner.quoted(5) if i % 3 == 2 else learner.quoted(5, r"backward|\.step\(|return")
    raise learner.named(5, same, evidence, quote)


def _evaluation(learner: LearnerTraining) -> None:
    model = TinyModel(learner.file.path).train()
    model.dropout = 0.5
    batches = _data(8, 4)
    losses = [float(reference.loss_of(model.eval()(x), y).detach()) for x, y in batches]
    model.train().calls.clear()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    got = learner.number(6, model, batches)
    of = len(batches)
    for slug, kind in (("not-in-eval-mode", 0), ("gradients-on", 1)):
        bad = [call for call in model.calls if call[kind]]
        if bad:
            raise learner.mistake(slug, line=bad[0][2], count=len(bad), of=of)
    wanted = sum(losses) / of
    if abs(got - wanted) > 1e-6:
        kinds = {"the sum": sum(losses), "the last": losses[-1], "the first": losses[0]}
        what = next((k for k, v in kinds.items() if abs(v - got) < 1e-6), "not the mean")
        mine, mean = apart(got, wanted)
        raise learner.mistake("not-the-mean", yours=mine, what=what, of=of, wanted=mean)
    if not model.training:
        raise learner.mistake("left-in-eval-mode")
    changed = [
        name
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad
        or parameter.grad is not None
        or not torch.equal(parameter, before[name])
    ]
    if changed:
        raise learner.mistake("changes-the-model", name=changed[0])
