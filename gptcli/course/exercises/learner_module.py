"""Build and run a learner's torch module (norm, MLP, block), and compare it with the reference.

Dimensions: B batch, T time, C channels (n_embd), H heads.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.course.attention.cases import fill_parameters
from gptcli.course.attention.conventions.settings import LearnerConfig
from gptcli.course.exercises.building import build
from gptcli.course.exercises.explainer import ExerciseMistake, Explainer, apart, step_named_in
from gptcli.course.exercises.tensor_trace import Healed, TensorTrace
from gptcli.course.exercises.training_calls import compare_calls, mistakes_of_calls
from gptcli.course.lesson import TOLERANCE, CheckFailed, Lesson, Say, Step
from gptcli.course.report import Check
from gptcli.course.sandbox.learner_class import load_class
from gptcli.course.sandbox.learner_file import LearnerFile, in_words, place_of
from gptcli.course.sandbox.time_limit import TookTooLong, within
from gptcli.course.sandbox.variables import last_line_before, tensors_at
from gptcli.errors import GptcliError


@dataclass(frozen=True)
class Size:
    """The sizes of one comparison. In each Size that a lesson lists, B, T and C are different."""

    B: int
    T: int
    C: int
    H: int = 1
    bias: bool = True
    dropout: float = 0.0
    seed: int = 0

    def config(self) -> LearnerConfig:
        """The config that the constructor gets."""
        return LearnerConfig(
            n_embd=self.C,
            n_head=self.H,
            dropout=self.dropout,
            bias=self.bias,
            block_size=self.T + 3,
        )

    def __str__(self) -> str:
        return f"B={self.B}, T={self.T}, n_embd={self.C}"


def no_step(run: Run) -> int | None:
    """Always None, for lessons in which only the trace shows the first wrong step."""
    return None


def no_unseen(trace: TensorTrace, weights: Any, x: Tensor) -> int | None:
    """Always None, for lessons in which only the trace shows where a stopped forward is wrong."""
    return None


def all_seen(trace: TensorTrace, weights: Any, x: Tensor, step: int) -> bool:
    """Always True, for lessons in which one correct result shows that a whole step is right."""
    return True


@dataclass(frozen=True)
class ModuleLesson(Lesson["LearnerModule"]):
    """A lesson whose file defines one torch module, (B, T, C) -> (B, T, C).

    `weights` collects the learner's tensors and submodules, which `landmarks` and the mistakes'
    forms take as an argument. It raises CheckFailed if the module lacks a part that every
    comparison needs. `start` yields the other faults of the constructor. `landmarks` yields a list
    of tensors for each step; the list is empty for a step outside the module. If the trace has one
    of these tensors, forward has done the step. The first tensor of the last step is the output.
    `draw` draws the input x. `train` yields notes, and the faults that show only in training mode.
    `first_wrong` finds the first wrong step if the lesson knows more than the trace shows. `unseen`
    does the same for a forward that stops. `seen` tells whether the trace has all results of a
    step, for lessons in which one landmark is not enough to tell this. A step in `alone` can be
    right although the step before it is wrong. `names` holds pairs: a pattern for attribute names,
    and the step that uses these attributes."""

    name: str
    steps: tuple[Step, ...]
    sizes: tuple[Size, ...]
    mistakes: tuple[ExerciseMistake, ...]
    weights: Callable[[LearnerModule, nn.Module, Size], Any]
    start: Callable[[LearnerModule], Iterator[CheckFailed]]
    landmarks: Callable[[Any, Tensor], Iterator[list[Tensor]]]
    draw: Callable[[Size, torch.Generator], Tensor]
    train: Callable[[LearnerModule], Iterator[CheckFailed | tuple[str, str]]]
    first_wrong: Callable[[Run], int | None] = no_step
    unseen: Callable[[TensorTrace, Any, Tensor], int | None] = no_unseen
    alone: frozenset[int] = frozenset()
    names: tuple[tuple[str, int], ...] = ()
    seen: Callable[[TensorTrace, Any, Tensor, int], bool] = all_seen

    def load(self, file: LearnerFile, say: Say) -> LearnerModule:
        """Run the file and return its class, ready to be tried."""
        return LearnerModule(file, load_class(file), self, say)

    def check(self, learner: LearnerModule, done: list[Check]) -> str:
        """Compare construction, output, gradients and training with the reference."""
        learner.needs_forward()
        faults = list(self.start(learner))
        error, right = 0.0, True
        try:
            error = compare_output(learner, faults)
        except CheckFailed as failed:
            right = failed.mistake == "input-changed"
            if not (faults and _lacks_part(failed)):
                faults.append(failed)
        if not faults or min(_step(fault) for fault in faults) > 1:
            faults += compare_gradients(learner, right=right)
        notes: list[tuple[str, str]] = []
        if not faults:
            for found in self.train(learner):
                if isinstance(found, CheckFailed):
                    faults.append(found)
                else:
                    notes.append(found)
        if not faults and any(size.dropout for size in self.sizes):
            repeated = compare_calls(learner, self.sizes[0])
            faults += [] if repeated is None else [repeated]
        if faults:
            raise min(faults, key=_step)
        verdict = f"the same as the reference, largest error {error:.1g}"
        done += self.all_steps(verdict)
        done += [Check(name, True, detail, note=True) for name, detail in notes]
        return verdict


def _step(failed: CheckFailed) -> int:
    return failed.step or 1


def _lacks_part(failed: CheckFailed) -> bool:
    """Whether forward stopped because it uses a submodule that the constructor did not make."""
    text = str(failed)
    return "has no attribute" in text or "'NoneType' object is not callable" in text


RUN_LIMIT_S = 6.0  # for one forward; correct code needs milliseconds
_OF_CONSTRUCTOR = {"dropout-rate", "dropout-rate-inverted", "another-eps"}
"""Mistakes that usually are in the constructor: the line to quote is searched there first."""
_OF_PLACE = {
    "gelu-after-projection", "gelu-before-expanding", "gelu-twice", "output-bent",
    "dropout-never-acts", "dropout-elsewhere", "residual-inside",
}  # fmt: skip
"""Mistakes that are always in forward, so messages do not quote the constructor."""


class LearnerModule(Explainer):
    """Build and run modules of a learner's class. Their errors become CheckFailed."""

    def __init__(
        self, file: LearnerFile, cls: type[nn.Module], lesson: ModuleLesson, say: Say
    ) -> None:
        super().__init__(file, lesson.steps, lesson.mistakes)
        self.cls, self.lesson, self.say = cls, lesson, say
        self.constructor = self.source.class_lines(cls.__name__, constructor=True)
        self.methods = self.source.class_lines(cls.__name__, constructor=False)

    def needs_forward(self) -> None:
        """Raise CheckFailed if the learner's class has no forward."""
        if self.cls.forward is nn.Module.forward:
            own = [name for name, value in vars(self.cls).items() if inspect.isfunction(value)]
            raise self.missing(1, "method", "forward", [n for n in own if n != "__init__"])

    def construct(self, size: Size) -> nn.Module:
        """A new module of `size`, in float64 and evaluation mode, with its initial weights."""
        self.say("step 1: building the module")
        if self.cls.__init__ is nn.Module.__init__:
            raise self.missing(1, "method", "__init__", [])
        try:
            module = build(self.cls, size.config())
        except GptcliError as error:
            raise GptcliError(f"{self.file.name}: {error.message}", error.hint) from None
        except (Exception, SystemExit) as error:
            raise self.stopped(error, f"building `{self.cls.__name__}`", 1) from error
        return module.to(torch.float64).eval()

    def filled(self, size: Size) -> tuple[nn.Module, Any, Tensor]:
        """A new module with random weights, what `lesson.weights` finds in it, and an input."""
        module = self.construct(size)
        generator = torch.Generator().manual_seed(1000 + size.seed)
        fill_parameters(module, generator)
        weights = self.lesson.weights(self, module, size)
        return module, weights, self.lesson.draw(size, generator)

    def run(self, module: nn.Module, weights: Any, x: Tensor, trace: TensorTrace) -> Tensor:
        """Return module(x), with the shape and dtype of x. Record its operations in `trace`.

        Raises CheckFailed, at the first wrong or missing step, if forward stops, or if its result
        is not a tensor with the shape and dtype of x."""
        doing = f"forward on x of shape {tuple(x.shape)}"
        self.say(f"step 1: {doing}")
        before = x.detach().clone()
        try:
            with within(RUN_LIMIT_S), trace:
                y = self.forward(module, x)
        except TookTooLong as error:
            raise self._endless(error, doing, trace, weights, before) from None
        except (Exception, SystemExit) as error:
            unwritten = step_named_in(error)
            step = unwritten or self.step_after(trace, weights, before, error)
            wrong = self._earlier_mistake(trace, weights, before, step)
            if wrong is None and unwritten is not None and self.lesson.unseen is no_unseen:
                wrong = self._fault_of_last_step(trace, weights, before, error, unwritten)
            if wrong is None and unwritten is None:
                wrong = self._lost_dimension(trace, weights, before, error)
            raise wrong or self.stopped(error, doing, step) from error
        wrong_kind = self._wrong_kind(y, x, doing)
        if wrong_kind is not None:
            slug, message, hint = wrong_kind
            step = self.step_after(trace, weights, before)
            line = self.source.find(r"\breturn\b", self.methods)
            written = self.source.matches(r"\S", self.source.lines_of("forward"))
            written = [number for number in written if number in self.methods]
            if slug == "returns-nothing" and line is None and written:
                line = written[-1]
                message += f": forward has no return after{self.source.quote(line)[4:]}"
            else:
                message += self.source.quote(line)
            raise self._earlier_mistake(trace, weights, before, step) or self.failed_at(
                step, slug, message, hint
            )
        out: Tensor = y
        return out

    def _endless(
        self, error: TookTooLong, doing: str, trace: TensorTrace, weights: Any, x: Tensor
    ) -> CheckFailed:
        """The CheckFailed for a forward that does not end. It quotes the line that ran last.

        A step counts as done if the trace has its result, or a part of this result. A part can be,
        for example, the result for one token."""
        with torch.no_grad():
            marks = self.landmarks(weights, x)
        done = [
            i
            for i, wanted in enumerate(marks, 1)
            if any(trace.has(one) or trace.has_part(one) for one in wanted)
        ]
        place = place_of(error, self.file.path)
        named = None if place is None else self.source.step_named_at(place[0])
        last = len(self.lesson.steps)
        step = min(max(done, default=0) + 1, last)
        if named is not None and step < named <= last:
            step = named
        known = self.lesson.steps[step - 1]
        quote = "" if place is None else self.source.quote(place[0])
        return CheckFailed(
            "time-limit",
            f"{error}, in step {step}, {known.name}{quote} ({doing})",
            (
                "which loop does your file run at that moment, and what should end the loop?",
                f"a loop ends only if its condition becomes false; {known.tell}",
                f"print a counter in the loop; {known.show}{quote}",
            ),
            step,
        )

    def forward(self, module: nn.Module, x: Tensor) -> Any:
        """What the learner's forward returns."""
        return module(x)

    def _wrong_kind(self, y: Any, x: Tensor, doing: str) -> tuple[str, str, str] | None:
        """What is wrong with the type, shape or dtype of `y`: (slug, message, hint), or None."""
        if not isinstance(y, Tensor):
            kind = "None" if y is None else f"a {type(y).__name__}"
            return (
                "returns-nothing" if y is None else "no-tensor",
                f"{doing} returned {kind}, not a tensor",
                "what does the last line of forward return?",
            )
        if y.shape != x.shape:
            return (
                "output-shape",
                f"your output has shape {tuple(y.shape)}; it needs the shape of x, "
                f"{tuple(x.shape)}",
                "which is the first step whose shape differs from the comment in the skeleton?",
            )
        if y.dtype != x.dtype:
            return (
                "output-dtype",
                f"your output is {y.dtype}, but x and the weights are {x.dtype}",
                "which line changes the dtype? look for .float() and dtype=...",
            )
        return None

    def landmarks(self, weights: Any, x: Tensor) -> list[list[Tensor]]:
        """The correct results of each step, which the reference computes from `weights` and `x`.

        If the reference raises an exception at a step, the list ends before this step."""
        found: list[list[Tensor]] = []
        try:
            for wanted in self.lesson.landmarks(weights, x):
                found.append(wanted)
        except Exception:  # a submodule of the learner raised an error; `start` reports why
            return found
        return found

    def step_after(
        self, trace: TensorTrace, weights: Any, x: Tensor, error: BaseException | None = None
    ) -> int:
        """The first step whose result is not in the trace; the last step if all results are there.

        If the trace has the result of a step, all earlier steps count as done. But the result of a
        step in `alone` says nothing about earlier steps. `error` can show that forward has reached
        a later step."""
        with torch.no_grad():
            marks = self.landmarks(weights, x)
        done = {
            i
            for i, wanted in enumerate(marks, 1)
            if not wanted or any(trace.has(one) for one in wanted)
        }
        step = max(done - self.lesson.alone, default=0) + 1
        while step in done:
            step += 1
        last = len(self.lesson.steps)
        if error is not None and (place := place_of(error, self.file.path)) is not None:
            named = self.source.step_named_at(place[0])  # a comment `# Step 3`
            if (
                named is not None
                and step < named <= last
                and isinstance(error, NotImplementedError)
            ):
                return named
        # `self.c_proj(F.gelu(h))` looks up c_proj before it computes the GELU
        if isinstance(error, AttributeError):
            used = (n for p, n in self.lesson.names if re.search(p, str(error.name)))
            step = max(step, next(used, step))
        return min(step, last)

    def _fault_of_last_step(
        self, trace: TensorTrace, weights: Any, x: Tensor, error: BaseException, unwritten: int
    ) -> CheckFailed | None:
        """The CheckFailed if a step before `unwritten` is wrong; None if all these steps are right.

        The result of step `unwritten` - 1 counts only if a variable holds it when the code
        stops."""
        with torch.no_grad():
            marks = self.landmarks(weights, x)
        later = "; later steps are still to be written"
        for step, wanted in enumerate(marks[: unwritten - 1], 1):
            known = self.lesson.steps[step - 1]
            if not wanted:
                continue
            places = [at for one in wanted if (at := trace.place_of(one)) is not None]
            if not places:
                if step < unwritten - 1 and step in self.lesson.alone:
                    continue
                done = [one for before in marks[: step - 1] for one in before]
                line = trace.line_after(done)
                if line is None:
                    line = last_line_before(error, self.file.path)
                quote = self.source.quote(line) + _first_numbers(trace, line, wanted[0])
                message = f"your code does not compute the result of step {step}, {known.name}"
                hints = (known.ask, known.tell, known.show + self.source.quote(line))
                return CheckFailed("wrong-output", f"{message}{quote}{later}", hints, step)
            held = TensorTrace.of(value for _, value in tensors_at(error, self.file.path))
            if step == unwritten - 1 and not any(held.has(one) for one in wanted):
                quote = self.source.quote(trace.operations[min(places)].line)
                message = f"you compute the result of step {step}, {known.name}, but no variable "
                hints = (
                    "what happens to the result of that line?",
                    "torch returns a new tensor, and does not change the old one",
                    f"assign the result to a variable, `name = ...`{quote}",
                )
                message += f"keeps it{quote}{later}"
                return CheckFailed("result-not-kept", message, hints, step)
        return None

    def _lost_dimension(
        self, trace: TensorTrace, weights: Any, x: Tensor, error: BaseException
    ) -> CheckFailed | None:
        """The CheckFailed if a result lost its last dimension, so that shapes clash; else None."""
        if not re.search("size of tensor|broadcast|shape", str(error)):
            return None
        with torch.no_grad():
            marks = self.landmarks(weights, x)
        for step, wanted in enumerate(marks, 1):
            for one in wanted:
                at = trace.place_of(one) if one.dim() and one.shape[-1] == 1 else None
                operation = None if at is None else trace.operations[at]
                shapes = [] if operation is None else [t.shape for t in operation.results]
                restored = any(close(t, one) for op in trace.operations for t in op.results)
                line = None if operation is None else operation.line
                if line is None or self.source.step_named_at(line) not in (None, step):
                    continue  # the line belongs to another step that computes the same numbers
                if one.shape[:-1] in shapes and not restored:
                    place = place_of(error, self.file.path)
                    known, quote = self.lesson.steps[step - 1], self.source.quote(line)
                    where = f", so {self._at(place[0])} stops: {in_words(error)}" if place else ""
                    return CheckFailed(
                        "dimension-lost",
                        f"the result of step {step}, {known.name}, has shape "
                        f"{tuple(one.shape[:-1])}, not {tuple(one.shape)}{quote}{where}",
                        (
                            "which shape must the result have to fit x?",
                            "a reduction removes its dimension, and (B, T) does not broadcast with "
                            "(B, T, C)",
                            f"pass keepdim=True{quote}",
                        ),
                        step,
                    )
        return None

    def _earlier_mistake(
        self, trace: TensorTrace, weights: Any, x: Tensor, step: int
    ) -> CheckFailed | None:
        """The CheckFailed if the trace shows a known mistake of steps 1 to `step`; else None."""
        for mistake in self.mistakes:
            if mistake.step <= step and self.shows(mistake, trace, weights, x):
                marks = self.landmarks(weights, x)
                right = marks[mistake.step - 1] if len(marks) >= mistake.step else []
                # The right result must be one tensor: its parts could belong to another result.
                if not any(trace.has(one, in_parts=False) for one in right):
                    return self.mistake(mistake.slug, **self.facts(x))
        return None

    def shows(self, mistake: ExerciseMistake, trace: TensorTrace, weights: Any, x: Tensor) -> bool:
        """Whether the trace has the wrong result of a known mistake."""
        parts = (form.part for form in mistake.forms if hasattr(form, "part"))
        for part in (*mistake.parts, *parts):
            try:
                with torch.no_grad():
                    result = part(weights, x)
            except Exception:  # `part` may use a weight or submodule that the module lacks
                continue
            if trace.has(result, in_parts=False):
                return True
        return False

    def facts(self, x: Tensor) -> dict[str, Any]:
        """The sizes that messages mention."""
        B, T, C = x.shape
        return {"B": B, "T": T, "C": C, "C1": C - 1, "C4": 4 * C}

    def mistake_in_forward(
        self, slug: str, evidence: str = "", suspect: int | None = None, **facts: Any
    ) -> CheckFailed:
        """The CheckFailed for the known mistake `slug`. It quotes the line that is probably wrong.

        It quotes `suspect` if this line is in a method and matches the mistake's pattern, else the
        first matching line of the methods. If no line of the methods matches, or only `return`
        lines do, it quotes the first matching line of the constructor. If no line matches at all,
        it quotes `suspect`. For mistakes in _OF_CONSTRUCTOR, the constructor is searched first. In
        the lesson on the block, and for mistakes in _OF_PLACE, the constructor is never searched.
        """
        pattern = next(m for m in self.mistakes if m.slug == slug).at
        lines = self.source.matches(pattern, self.methods)
        of_constructor = (
            []
            if self.lesson.name == "block" or slug in _OF_PLACE
            else self.source.matches(pattern, self.constructor)
        )
        line: int | None
        if of_constructor and slug in _OF_CONSTRUCTOR:
            line = of_constructor[0]
        elif suspect in lines:
            line = suspect
        elif lines and not (of_constructor and all(self._is_return(line) for line in lines)):
            line = lines[0]
        elif of_constructor:
            line = of_constructor[0]
        else:
            line = lines[0] if lines else suspect
        return self.mistake(slug, evidence, line=line, within=self.methods, **facts)

    def _is_return(self, line: int) -> bool:
        return line in self.source.matches(r"^\s*return\b", self.methods)

    def step_of_line(
        self, trace: TensorTrace, weights: Any, x: Tensor, line: int | None, at: int
    ) -> int:
        """The step to which operation number `at` of the trace belongs.

        The operation is on `line` of the learner's file."""
        with torch.no_grad():
            marks = self.landmarks(weights, x)
        before = 0
        for step, wanted in enumerate(marks, 1):
            places = [p for one in wanted if (p := trace.place_of(one)) is not None]
            if not places:
                continue
            place = min(places)
            if place == at and step > before:
                return step
            if place < at:
                before = step if trace.operations[place].line != line else step - 1
        return min(before + 1, len(self.lesson.steps))


@dataclass(frozen=True)
class Run:
    """One forward of a learner's module, with the results of the reference.

    `landmarks` are the correct results of the steps before the first step that the reference could
    not compute."""

    size: Size
    module: nn.Module
    weights: Any  # the result of the lesson's `weights`
    x: Tensor
    y: Tensor
    landmarks: list[list[Tensor]]
    trace: TensorTrace
    faults: tuple[CheckFailed, ...]

    @property
    def wanted(self) -> Tensor | None:
        """The first tensor in the last entry of `landmarks`; None if `landmarks` is empty.

        This is the correct output if `landmarks` has all steps."""
        return self.landmarks[-1][0] if self.landmarks else None

    @property
    def right(self) -> bool:
        """Whether the output equals `wanted`."""
        return self.wanted is not None and close(self.y, self.wanted)


def compare_output(learner: LearnerModule, known: Iterable[CheckFailed] = ()) -> float:
    """The largest difference from the reference over all sizes.

    Raises CheckFailed if an output differs, if dropout acts in evaluation, or if forward changes x.
    If an output differs, the CheckFailed names a known mistake that explains the outputs for all
    sizes, or else the first wrong step. `known` are the faults of the constructor. Because of such
    a fault, the reference can fail to compute an output."""
    runs = [_run(learner, size) for size in learner.lesson.sizes]
    complete = len(learner.lesson.steps)
    lost = [run for run in runs if len(run.landmarks) < complete]
    if lost and not list(known):
        for _ in learner.lesson.landmarks(lost[0].weights, lost[0].x):
            pass  # raise the reference's exception again, because it is a fault of gptcli
    faults = [fault for run in runs for fault in run.faults]
    bad = [run for run in runs if len(run.landmarks) < complete or not run.right]
    if bad:
        faults.append(_explained(learner, runs, bad))
    if faults:
        raise min(faults, key=_step)
    return max(float((run.y - w).abs().max()) for run in runs if (w := run.wanted) is not None)


def _run(learner: LearnerModule, size: Size) -> Run:
    """Build a module of `size`, call its forward, and return the results as a Run.

    The `faults` of the Run report dropout in evaluation mode, and an x that forward changed."""
    lesson = learner.lesson
    module, weights, x = learner.filled(size)
    faults = []
    with torch.no_grad():
        given = x.clone()
        trace = TensorTrace(learner.file.path, module, given, quiet=True)
        y = learner.run(module, weights, given, trace)
        noisy = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            plain = TensorTrace(learner.file.path, module)
            noisy.append(learner.run(module, weights, x.clone(), plain))
        marks = learner.landmarks(weights, x)
    if not torch.equal(*noisy) and bool(torch.stack(noisy).isfinite().all()):
        faults.append(
            learner.mistake_in_forward(
                "dropout-in-evaluation",
                dropout=size.dropout,
                difference=f"{float((noisy[0] - noisy[1]).abs().max()):.3g}",
            )
        )
    elif not close(noisy[0], y):
        # `quiet` left out a dropout that acts alike in both calls, such as one of rate 1.0.
        y = noisy[0]
    if trace.changed is not None or not torch.equal(given, x):
        changed = trace.changed
        line = None if changed is None else changed.line
        at = 0 if changed is None else trace.operations.index(changed)
        step = len(lesson.steps)
        if changed is not None:
            step = learner.step_of_line(trace, weights, x, line, at)
        difference = f"{float((given - x).abs().max()):.3g}"
        faults.append(
            learner.mistake(
                "input-changed",
                step=step,
                line=line,
                within=learner.methods,
                difference=difference,
            )
        )
    return Run(size, module, weights, x, y, marks, trace, tuple(faults))


def _explained(learner: LearnerModule, runs: list[Run], bad: list[Run]) -> CheckFailed:
    """The CheckFailed for the runs `bad`: a known mistake, rounding, or the first wrong step."""
    lesson, run = learner.lesson, bad[0]
    size, y = run.size, run.y
    wanted = run.wanted if len(run.landmarks) == len(lesson.steps) else None
    evidence = ""
    if wanted is not None:
        most = int((y - wanted).abs().nan_to_num(nan=float("inf")).argmax())
        _, T, C = y.shape
        token = (most // (T * C), most // C % T, most % C)  # unravel_index imports sympy
        where = ", ".join(map(str, token))
        mine, right = apart(float(y[token]), float(wanted[token]))
        evidence = f" (output[{where}] is {mine}, expected {right})"
    facts = learner.facts(run.x)
    step = min(_first_wrong_step(learner, each) for each in bad)
    marks = run.landmarks
    done = [t for wanted_of in marks[: step - 1] for t in wanted_of]
    suspect = run.trace.line_after(done)
    for mistake in lesson.mistakes:
        for form in mistake.forms:
            if all(_gives(form, each) for each in runs):
                named = learner.mistake_in_forward(mistake.slug, evidence, suspect, **facts)
                return _at_step_of_line(learner, run, named)
    seen = len(marks) >= step and any(run.trace.has(one) for one in marks[step - 1])
    is_done = seen and lesson.seen is all_seen  # in other lessons, half of the step can be missing
    for mistake in lesson.mistakes if not is_done else ():
        if mistake.step == step and all(
            learner.shows(mistake, each.trace, each.weights, each.x) for each in runs
        ):
            return learner.mistake_in_forward(mistake.slug, evidence, suspect, **facts)
    known = lesson.steps[step - 1]
    if wanted is not None and bool(y.isfinite().all()):
        difference = float((y - wanted).abs().max())
        if difference < 1e-5:
            lost = (i for i, m in enumerate(marks, 1) if not any(run.trace.has(one) for one in m))
            step = next(lost, step)
            line = learner.source.find(r"float\(|float32|half\(|bfloat16", learner.methods)
            quote = learner.source.quote(line if line is not None else suspect)
            return CheckFailed(
                "precision",
                f"your output is wrong by up to {difference:.1e}: this looks like rounding to "
                f"float32, but x is float64{quote}{evidence}",
                (
                    "does every tensor have the dtype of x?",
                    "some line converts to float32, or rounds a constant",
                    f"leave out .float() and dtype=...{quote}; {lesson.steps[step - 1].show}",
                ),
                step,
            )
    if seen and step == 1:  # the line that changes this result, not the one that computes it
        suspect = run.trace.line_after(marks[0]) or suspect
    quote = learner.source.quote(suspect)
    previous = ""
    if (
        step > 1
        and len(marks) >= step - 1
        and any(run.trace.has(one) for one in marks[step - 2])
        and lesson.seen(run.trace, run.weights, run.x, step - 1)
    ):
        previous = f"the result of step {step - 1}, {lesson.steps[step - 2].name}, is right; "
    slug = "wrong-output" if bool(y.isfinite().all()) else "not-finite"
    what = (
        f"your forward changes the result of step {step}, {known.name}, or does not use it"
        if seen
        else f"your forward never computes the result of step {step}, {known.name}"
    )
    return CheckFailed(
        slug,
        f"{previous}{what} ({size}){quote}{evidence}",
        (known.ask, known.tell, known.show + quote),
        step,
    )


def _first_numbers(trace: TensorTrace, line: int | None, wanted: Tensor) -> str:
    """A text such as " (number [0, 0] of this line's result is 2, expected 3)", for a message.

    Compares the first number of the newest result of `line` with the first number of `wanted`. The
    text is "" if the shapes differ or the two numbers are equal."""
    results = [t for one in trace.operations if one.line == line for t in one.results]
    if line is None or not results or results[-1].shape != wanted.shape:
        return ""
    at = ", ".join("0" * wanted.dim())
    mine, right = (float(t.flatten()[0]) for t in (results[-1], wanted))
    if mine == right:
        return ""
    got, expected = apart(mine, right)
    return f" (number [{at}] of this line's result is {got}, expected {expected})"


def _at_step_of_line(learner: LearnerModule, run: Run, failed: CheckFailed) -> CheckFailed:
    """`failed`, moved to step N if it quotes a line under the comment `# Step N`.

    Moves it only to a later step, and only if its own step and all steps from there to N - 1 are
    right. For example, step 1 is right and computes the norm of x. Then `self.attn(x)` under
    `# Step 2` is a mistake of step 2."""
    quoted = re.search(r"\bat line (\d+) of ", str(failed))
    step = None if quoted is None else learner.source.step_named_at(int(quoted[1]))
    if step is None or not _step(failed) < step <= len(run.landmarks):
        return failed
    between = run.landmarks[_step(failed) - 1 : step - 1]
    if all(any(run.trace.has(one) for one in wanted) for wanted in between):
        failed.step = step
    return failed


def _first_wrong_step(learner: LearnerModule, run: Run) -> int:
    found = learner.lesson.first_wrong(run)
    return found or learner.step_after(run.trace, run.weights, run.x)


def _gives(form: Callable[..., Any], run: Run) -> bool:
    """Whether a known mistake gives the output of the run."""
    try:
        with torch.no_grad():
            result = form(run.weights, run.x)
    except Exception:  # `form` may use a weight or submodule that the module lacks
        return False
    return close(run.y, result)


def compare_gradients(learner: LearnerModule, *, right: bool) -> list[CheckFailed]:
    """A list with the CheckFailed for missing or wrong gradients; empty if no gradient is wrong.

    If the output is `right`, the gradients must equal those of the reference. Otherwise, they must
    stay the same after Healed removes the cuts in the module's graph. If the removal also changes
    the output, no gradient is judged."""
    lesson = learner.lesson
    module, weights, x = learner.filled(lesson.sizes[0])
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(9), dtype=x.dtype)
    names = [name for name, _ in module.named_parameters()]
    parameters = list(module.parameters())

    def gradients(y: Tensor, of: Tensor) -> list[Tensor | None]:
        leaves = [of, *(p for p in parameters if p.requires_grad)]
        if not y.requires_grad:
            found: list[Tensor | None] = [None] * len(leaves)
        else:
            found = list(torch.autograd.grad((y * noise).sum(), leaves, allow_unused=True))
        byid = {id(leaf): gradient for leaf, gradient in zip(leaves, found, strict=True)}
        return [byid[id(of)], *(byid.get(id(p)) for p in parameters)]

    outputs: list[Tensor] = []

    def forward(broken: set[int] | None, trace: TensorTrace) -> list[Tensor | None]:
        leaf = x.detach().clone().requires_grad_()
        # If forward never switches dropout off, the seed makes each call drop the same numbers.
        torch.manual_seed(3)
        if broken is None:
            y = learner.run(module, weights, leaf, trace)
        else:
            with Healed(trace, broken):
                y = learner.forward(module, leaf)
        outputs.append(y.detach())
        return gradients(y, leaf)

    trace = TensorTrace(learner.file.path, module)
    try:
        got = forward(None, trace)
    except CheckFailed as failed:  # forward stops if autograd records, but not without it
        return [failed] if right else []
    except RuntimeError as error:
        return [learner.stopped(error, "the backward pass", len(lesson.steps))] if right else []
    cuts = [(i, op.line) for i, op in enumerate(trace.operations) if op.cuts and op.line]
    if right:
        leaf = x.detach().clone().requires_grad_()
        marks = learner.landmarks(weights, leaf)
        if len(marks) < len(lesson.steps):
            return []
        wanted = gradients(marks[-1][0], leaf)
    else:
        try:
            wanted = forward(set(), trace) if cuts else got
        except Exception:  # Healed cannot remove the cut
            return []
        if not close(outputs[0], outputs[-1]):
            return []

    def wrong(found: list[Tensor | None]) -> str | None:
        """The name of the first tensor whose gradient is missing or wrong, or None."""
        for name, mine, right in zip(["x", *names], found, wanted, strict=True):
            if mine is None and right is not None and bool(right.abs().max() > TOLERANCE):
                return name
            if mine is not None and right is not None and not close(mine, right):
                return f"{name} (a part of its gradient is missing or wrong)"
        return None

    name = wrong(got)
    frozen = next((n for n, p in module.named_parameters() if not p.requires_grad), None)
    if frozen is not None and name is None:
        line = learner.source.find(r"requires_grad")
        return [learner.mistake("no-gradient", step=1, line=line, name=frozen)]
    if name is None:
        return []
    lines = list(dict.fromkeys(line for _, line in cuts if line is not None))
    culprit = lines[0] if lines else None
    if len(lines) > 1:
        for line in lines:
            try:
                if wrong(forward({line}, trace)) is not None:
                    culprit = line
                    break
            except Exception:  # for example, Healed cannot undo inference_mode
                break
    if culprit is None:
        return [learner.mistake("no-gradient", within=learner.methods, name=name)]
    at = next(i for i, line in cuts if line == culprit)
    step = learner.step_of_line(trace, weights, x, culprit, at)
    block = learner.source.find(r"no_grad|inference_mode|set_grad_enabled", learner.methods)
    cutting = learner.source.matches(
        r"detach|\.data\b|\.item\(|\.numpy\(|tolist|float\(", learner.methods
    )
    line = culprit if culprit in cutting or block is None or block > culprit else block
    return [learner.mistake("no-gradient", step=step, line=line, name=name)]


def close(a: Tensor, b: Tensor) -> bool:
    """Whether shapes agree and all numbers are equal within the tolerance. NaN equals NaN."""
    if a.shape != b.shape:
        return False
    return bool(torch.isclose(a, b, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True).all())


def general_mistakes(step: int, *, dropout_step: int | None = None) -> tuple[ExerciseMistake, ...]:
    """The mistakes that any module can have, such as a forward that changes its input x.

    Mistakes with dropout are in step number `dropout_step`, all others in step number `step`.
    Without `dropout_step`, dropout in evaluation is in step number `step` too, and the mistakes
    with dropout in training are left out."""
    return (
        ExerciseMistake(
            "input-changed",
            step,
            "x -= mean, x += ..., x.add_(...)",
            "your forward changed its input x in place, by up to {difference}",
            "the residual stream around this module still needs x unchanged",
            "make a new tensor (`y = x - ...`) instead of changing x",
            at=r"\bx\s*[-+*/]=|\bx(\.data)?\.\w+_\(|\bx\[.*\]\s*[-+*/]?=(?!=)",
        ),
        ExerciseMistake(
            "no-gradient",
            step,
            "x.detach(), .data, torch.no_grad()",
            "no gradient, or a wrong one, flows back to {name}",
            "something cuts the graph, such as detach(), .data, no_grad() or requires_grad=False",
            "compute every step on tensors that autograd can follow",
            at=r"detach\(|\.data\b|no_grad|\.item\(|inference_mode|\.numpy\(",
        ),
        ExerciseMistake(
            "dropout-in-evaluation",
            dropout_step or step,
            "F.dropout(y, p)",
            "with config.dropout = {dropout} and in evaluation mode, two calls with the same x "
            "differ by up to {difference}",
            "dropout must act only in training; F.dropout does not know the mode of your module",
            "use an nn.Dropout made in the constructor, or pass training=self.training",
            at=r"[dD]rop\w*\((?!config)|rand|bernoulli",
        ),
        *(() if dropout_step is None else mistakes_of_calls(dropout_step)),
    )
