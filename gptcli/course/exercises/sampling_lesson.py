"""The lesson on sampling: compare a learner's eight functions with the reference."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations, permutations
from typing import Any

import torch
from torch import Tensor

from gptcli.course.exercises import sampling as reference
from gptcli.course.exercises.learner_functions import LearnerFunctions
from gptcli.course.exercises.sampling_mistakes import MISTAKES, STEPS
from gptcli.course.exercises.sampling_stops import check_stops
from gptcli.course.exercises.watch import lines_run
from gptcli.course.lesson import CheckFailed, Lesson, Say
from gptcli.course.report import Check
from gptcli.course.sandbox.learner_file import LearnerFile, place_of
from gptcli.course.sandbox.time_limit import TookTooLong, within
from gptcli.plurals import counted

FUNCTIONS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "draw",
    "next_token",
    "cut_at_stop",
)
PARTS = {"r": "repetition_penalty", "t": "temperature", "k": "top_k", "p": "top_p", "m": "min_p"}
INF = float("inf")
NEARLY_ONE = 1 - 2**-53  # the largest float64 below 1
LIMIT_S = 2.0  # seconds for one call; correct code takes well under a millisecond
CLOSE = 1e-6  # the tolerance for probabilities, because a learner can compute in float32
V = 8


def _logits(probabilities: Sequence[float]) -> Tensor:
    """Logits that have these probabilities. Some of the logits are positive."""
    return torch.tensor(probabilities, dtype=torch.float64).log() + 2.0


def _random(seed: int, size: int = V) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator, dtype=torch.float64) * 2


def _partly_cut(seed: int) -> Tensor:
    """Random logits, two of which are -inf, as if an earlier filter had cut them."""
    return _random(seed).index_fill(0, torch.tensor([0, 4]), -INF)


FIVE = _logits([0.05, 0.4, 0.1, 0.25, 0.2])
PEAKED = _logits([0.03, 0.02, 0.85, 0.1])
EQUAL_TEN = torch.zeros(10, dtype=torch.float64)  # after rounding, ten times 0.1 is less than 1


class LearnerSampling(LearnerFunctions):
    """The functions of a learner's file. Their errors become CheckFailed."""

    def __init__(self, file: LearnerFile, say: Say) -> None:
        super().__init__(file, say, FUNCTIONS, STEPS, MISTAKES)
        self.notes: dict[str, str] = {}
        # the lines that ran in the first wrong call of next_token
        self.ran: frozenset[int] = frozenset()

    def logits(self, step: int, logits: Tensor, *more: Any) -> Tensor:
        """What the learner's function for `step` returns for `logits`, as float64 (V,).

        Raises CheckFailed if the function returns no tensor, or a tensor of another shape."""
        name, given = FUNCTIONS[step - 1], logits.clone()
        got = self.ask(step, given, *more)
        if not isinstance(got, Tensor):
            raise self.failed_at(
                step,
                "no-tensor",
                f"`{name}` returned {str(got)[:60]}, not a tensor" + self.quoted(step),
                "what does the last line of the function return?",
            )
        if got.shape != logits.shape:
            of = tuple(logits.shape)
            if got.dim() == 1:
                count = counted(len(got), "number")
                raise self.mistake("only-the-kept", step=step, name=name, got=count, of=of[0])
            raise self.failed_at(
                step,
                "shape",
                f"`{name}` returns shape {tuple(got.shape)}, expected {of}" + self.quoted(step),
                "which shape does logits have here, and is there a batch dimension?",
            )
        if not torch.equal(given, logits):
            self.notes[name] = "it changes the logits that it gets; return new ones instead"
        return got.detach().to(torch.float64)

    def token(self, step: int, *arguments: Any) -> int:
        """The id that the learner's function for `step` returns, or -1 for None.

        Raises CheckFailed for any other result that is not a whole number."""
        got = self.ask(step, *arguments)
        if got is None:
            return -1
        try:
            if isinstance(got, Tensor):
                got = got.item()
            if isinstance(got, bool):
                raise TypeError
            return int(got) if isinstance(got, float) and got.is_integer() else operator.index(got)
        except (TypeError, ValueError, RuntimeError):
            raise self.no_id(step, str(got)[:60]) from None

    def ask(self, step: int, *arguments: Any) -> Any:
        """Call the learner's function for `step`, and return its result.

        An exception, or a call that takes longer than LIMIT_S, becomes CheckFailed."""
        try:
            with within(LIMIT_S):
                return super().ask(step, *arguments)
        except TookTooLong as error:
            place, known = place_of(error, self.file.path), STEPS[step - 1]
            quote = self.source.quote(place[0]) if place is not None else ""
            raise CheckFailed(
                "time-limit",
                f"`{FUNCTIONS[step - 1]}` does not end within {LIMIT_S:g} seconds{quote}",
                (
                    "which loop does not end, and what should change in each round?",
                    f"a loop ends only if its condition becomes false; {known.tell}",
                    f"{known.show}{quote}",
                ),
                step,
            ) from None

    def mistake(self, slug: str, evidence: str = "", **more: Any) -> CheckFailed:
        """The CheckFailed for the known mistake `slug`. It quotes a line of the step's function.

        The mistake's `at` joins patterns by `|`. Takes the first pattern that matches a line. If
        the pattern matches several lines and some of these lines are in `ran`, only those in `ran`
        count. Quotes the first line that counts, or, for the pattern `return`, the last one. Quotes
        a line such as `if p >= 1:` only if no other line matches."""
        mistake = next(m for m in MISTAKES if m.slug == slug)
        lines = self.source.lines_of(FUNCTIONS[(more.get("step") or mistake.step) - 1])
        guards = self.source.matches(r"^\s*if (p|k|m)\b.*:\s*$", lines)  # such as `if p >= 1:`
        for pattern in mistake.at.split("|"):
            found = [n for n in self.source.matches(pattern, lines) if n not in guards]
            found = [n for n in found if n in self.ran] or found
            if found:
                return super().mistake(
                    slug, evidence, line=found[-1 if pattern == "return" else 0], **more
                )
        return super().mistake(slug, evidence, **more)

    def wrong_softmax(self, step: int | None) -> CheckFailed | None:
        """The CheckFailed for a wrong softmax that the file defines and the step's function uses.

        None if the function uses no softmax of the file. Also None if that softmax is right, raises
        an error for one tensor, or returns no tensor. A softmax is recognised by its name."""
        lines = self.source.lines_of(FUNCTIONS[step - 1]) if step else None
        given = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
        for name in sorted(self.source.helpers.names_used(lines or (), FUNCTIONS)):
            function = self.module_names.get(name)
            if not re.search(r"soft_?max", name, re.IGNORECASE) or not callable(function):
                continue
            try:
                got = function(given.clone())
                wrong = not torch.allclose(got.double(), given.softmax(0), 0.0, CLOSE)
                shown = [round(float(value), 2) for value in got.flatten()[:3]]
            except Exception:  # it raised an error, needed more arguments, or returned no tensor
                continue
            if wrong:
                assert step is not None
                found = self.source.lines_of(name) or set()
                line = next(
                    (
                        matches[0]
                        for pattern in ("exp", "sum", "return")
                        if (matches := self.source.matches(pattern, found))
                    ),
                    None,
                )
                return super().mistake(
                    "helper-is-no-softmax", step=step, line=line, name=name, got=shown
                )
        return None

    def no_id(self, step: int, got: str) -> CheckFailed:
        """The CheckFailed for a function that returns no id."""
        return self.failed_at(
            step,
            "no-id",
            f"`{FUNCTIONS[step - 1]}` returned {got}, not the id of a token" + self.quoted(step),
            "what does the function return if no condition in it is true?",
        )


class SamplingLesson(Lesson[LearnerSampling]):
    """The lesson on choosing the next token, in eight functions."""

    name = "sampling"
    steps = STEPS
    mistakes = MISTAKES

    def load(self, file: LearnerFile, say: Say) -> LearnerSampling:
        """Run the file and return its functions, ready to be tried."""
        return LearnerSampling(file, say)

    def check(self, learner: LearnerSampling, done: list[Check]) -> str:
        """Compare each function with the reference."""
        for check in (_temperature, _top_k, _top_p, _min_p, _penalty, _draw, _next, check_stops):
            try:
                check(learner)
            except CheckFailed as failed:
                raise learner.wrong_softmax(failed.step) or failed from None
        verdict = "the same as the reference in all eight functions"
        done += self.all_steps(verdict)
        done += [Check(name, True, detail, note=True) for name, detail in learner.notes.items()]
        return verdict


# ---- steps 1 to 5: logits in, logits out ---------------------------------------------------------

Case = tuple[Any, ...]
"""The arguments of a step's function. The first argument is the logits."""

Form = Callable[..., Tensor]


def _same(got: Tensor, wanted: Tensor) -> bool:
    """Whether both tensors of logits give the same probabilities."""
    if torch.isneginf(wanted).all() or torch.isneginf(got).all():
        return torch.equal(got.isneginf(), wanted.isneginf())
    a, b = torch.softmax(got, 0), torch.softmax(wanted, 0)
    return bool(torch.allclose(a, b, rtol=0.0, atol=CLOSE))


def _repeats(again: Tensor, first: Tensor) -> bool:
    """Whether two calls gave the same logits. Here nan equals nan."""
    return bool(torch.allclose(again, first, rtol=0.0, atol=CLOSE, equal_nan=True))


def _compare(
    learner: LearnerSampling,
    step: int,
    right: Form,
    cases: Sequence[Case],
    show: Callable[..., str],
) -> None:
    """Raise CheckFailed if the learner's function differs from `right` in one of `cases`."""
    name = FUNCTIONS[step - 1]
    got = [learner.logits(step, *case) for case in cases]
    wanted = [right(*case) for case in cases]
    wrong = [i for i, (a, b) in enumerate(zip(got, wanted, strict=True)) if not _same(a, b)]
    if not wrong:
        return
    try:
        again = [learner.logits(step, *case) for case in cases]
    except CheckFailed:  # although the same calls raised no error before
        again = []
    if not again or not all(map(_repeats, again, got)):
        raise learner.mistake("remembers", step=step, name=name)
    i = wrong[0]
    evidence = show(*cases[i], got[i], wanted[i])

    def same(form: Form) -> bool:
        return all(_same(a, form(*case)) for a, case in zip(got, cases, strict=True))

    def all_are(test: Callable[[Tensor, Tensor], bool]) -> bool:
        return all(test(a, b) for a, b in zip(got, wanted, strict=True))

    for slug, test in (
        ("returns-probabilities", _is_softmax),
        ("zero-for-cut", _has_zeros),
        ("order-lost", _is_reordered),
    ):
        if all_are(test):
            raise learner.mistake(slug, f" ({evidence})", step=step, name=name)
    for mistake in MISTAKES:  # before "all-cut", because many mistakes cut all tokens
        if mistake.step == step and any(same(form) for form in mistake.forms):
            raise learner.mistake(mistake.slug, f" ({evidence})")
    empty = [j for j in wrong if bool((got[j].isneginf() | got[j].isnan()).all())]
    if empty:
        evidence = show(*cases[empty[0]], got[empty[0]], wanted[empty[0]])
        of = len(got[empty[0]])
        raise learner.mistake("all-cut", f" ({evidence})", step=step, name=name, of=of)
    raise learner.named(step, lambda form: False, evidence, learner.quoted(step))


def _is_softmax(got: Tensor, wanted: Tensor) -> bool:
    """Whether `got` is the softmax of the logits `wanted`, or a multiple of this softmax."""
    if not bool((got >= 0).all()) or not 0 < float(got.sum()) < INF:
        return False
    return bool(torch.allclose(got / got.sum(), torch.softmax(wanted, 0), rtol=0.0, atol=CLOSE))


def _has_zeros(got: Tensor, wanted: Tensor) -> bool:
    cut = wanted.isneginf()
    # a logit that an earlier filter cut is -inf, and -inf times 0 is nan
    zeros = got.masked_fill(cut & ~got.isfinite(), 0.0)
    return bool(torch.allclose(zeros, wanted.masked_fill(cut, 0.0), atol=CLOSE))


def _is_reordered(got: Tensor, wanted: Tensor) -> bool:
    return _same(got.sort().values, wanted.sort().values)


def _numbers(values: Tensor, digits: int = 3) -> str:
    return "[" + ", ".join(f"{value:.{digits}g}" for value in values.tolist()) + "]"


def _unequal(got: Tensor, wanted: Tensor) -> str:
    """The words "returns ..., expected ...", with so many digits that the numbers differ."""
    digits = 3
    while digits < 17 and _numbers(got, digits) == _numbers(wanted, digits):
        digits += 1
    return f"returns {_numbers(got, digits)}, expected {_numbers(wanted, digits)}"


def _kept(values: Tensor) -> list[int]:
    """The ids of the tokens that are not cut. Every logit of -1e4 or less counts as cut."""
    return [i for i, value in enumerate(values.tolist()) if value > -1e4]


def _shown_logits(name: str, logits: Tensor, *more: Any) -> str:
    *arguments, got, wanted = more
    given = ", ".join(map(str, [_numbers(logits), *arguments]))
    return f"{name}({given}) {_unequal(got, wanted)}"


def _shown_kept(setting: str, logits: Tensor, value: Any, got: Tensor, wanted: Tensor) -> str:
    mine, right = _kept(got), _kept(wanted)
    text = f"for probabilities {_numbers(torch.softmax(logits, 0))} and {setting} = {value:g}"
    if mine == right:
        return f"{text} it {_unequal(got, wanted)}"
    kept = f"the ids {mine}" if mine else "nothing"
    return f"{text} it keeps {kept}, expected {right}"


def _edge(
    learner: LearnerSampling,
    step: int,
    slug: str,
    right: Form,
    cases: Sequence[Case],
    show: Callable[..., str],
) -> None:
    """Raise the mistake `slug` if the learner's function fails or is wrong in any of `cases`."""
    for case in cases:
        try:
            got = learner.logits(step, *case)
        except CheckFailed as failed:
            if failed.mistake == "not-implemented":
                raise
            raise learner.mistake(slug, f" ({failed.message})") from None
        wanted = right(*case)
        if not _same(got, wanted):
            raise learner.mistake(slug, f" ({show(*case, got, wanted)})")


def _temperature(learner: LearnerSampling) -> None:
    cases = [(torch.tensor([2.0, 1.0, -1.0, 0.5]), 0.5)]
    cases += [(_random(seed), t) for seed, t in ((1, 2.0), (2, 1.0), (3, 0.7), (4, 1.3))]
    _compare(learner, 1, reference.temperature, cases, partial(_shown_logits, "temperature"))


def _top_k(learner: LearnerSampling) -> None:
    show = partial(_shown_kept, "k")
    cases = [(FIVE, 2), (FIVE, 1), (_random(5), 3), (_random(6) - 9, 5), (_partly_cut(7), 4)]
    _compare(learner, 2, reference.top_k, cases, show)
    _edge(learner, 2, "k-too-large", reference.top_k, [(FIVE, 5), (FIVE, 9), (FIVE, 1000)], show)
    ties = torch.tensor([1.0, 3.0, 1.0, 1.0, 0.0])
    got = learner.logits(2, ties, 2)
    kept = set(_kept(got))
    # Three tokens tie for the second place. One of them can stay, or several.
    if not ({1} < kept <= {0, 1, 2, 3} and got[1] == got.max()):
        raise learner.failed_at(
            2, "ties", f"for logits {_numbers(ties)} and k = 2 your top_k keeps the ids "
            f"{sorted(kept)}; expected 1 and at least one of 0, 2, 3" + learner.quoted(2),
            "which logits equal the k-th largest?",
        )  # fmt: skip


def _top_p(learner: LearnerSampling) -> None:
    show = partial(_shown_kept, "p")
    cases = [(FIVE, 0.5), (PEAKED, 0.5), (FIVE, 0.9), (FIVE, 0.7), (FIVE, 0.03)]
    cases += [(_random(8), 0.8), (_random(9) - 9, 0.6), (_partly_cut(10), 0.7), (_random(11), 0.3)]
    _compare(learner, 3, reference.top_p, cases, show)
    whole = [(FIVE, 1.0), (EQUAL_TEN, 1.0), (_partly_cut(12), 1.0)]
    whole += [(_random(seed, 30), 1.0) for seed in range(20, 26)]
    _edge(learner, 3, "p-one", reference.top_p, whole, show)


def _min_p(learner: LearnerSampling) -> None:
    show = partial(_shown_kept, "p")
    cases = [(FIVE, 0.4), (PEAKED, 0.1), (FIVE, 0.2), (_random(13), 0.3)]
    cases += [(_random(14) - 9, 0.05), (_partly_cut(15), 0.4), (_random(16) + 9, 0.6)]
    _compare(learner, 4, reference.min_p, cases, show)
    _edge(learner, 4, "likeliest-cut", reference.min_p, [(FIVE, 1.0), (EQUAL_TEN, 1.0)], show)
    _edge(learner, 4, "p-zero", reference.min_p, [(FIVE, 0.0), (_partly_cut(17), 0.0)], show)


def _penalty(learner: LearnerSampling) -> None:
    cases: list[Case] = [(torch.tensor([1.5, 3.0, -2.0, 2.0]), [1, 2, 1], 1.5)]
    cases += [
        (_random(18), [3, 0, 5, 3, 3, 7], 1.2),
        (_random(19), [1, 2, 2, 4], 2.0),
        (_random(20), [6], 1.0),
        (_random(21), [0, 1, 0], 0.8),
        (_random(22), [2, 3, 4, 5, 6, 7, 2], 1.7),
    ]
    show = partial(_shown_logits, "repetition_penalty")
    _compare(learner, 5, reference.repetition_penalty, cases, show)


# ---- steps 6 and 7: an id ------------------------------------------------------------------------


def _points(logits: Tensor) -> list[float]:
    """Values of u that are not close to a border between two tokens."""
    borders = torch.softmax(logits, 0).cumsum(0)
    tried = [(i + 0.5) / 16 for i in range(16)]
    return [u for u in tried if float((borders - u).abs().min()) > 1e-4]


def _draw(learner: LearnerSampling) -> None:
    cut = _logits([0.3, 0.2, 0.3, 0.2]).index_fill(0, torch.tensor([0, 3]), -INF)
    given = [_logits([0.2, 0.5, 0.3]), cut, _random(23), _random(24) - 9, _partly_cut(25)]
    cases = [(logits, u) for logits in given for u in _points(logits)]
    got = [learner.token(6, logits.clone(), u) for logits, u in cases]
    wanted = [reference.draw(logits, u) for logits, u in cases]
    if got != wanted:
        again = [learner.token(6, logits.clone(), u) for logits, u in cases]
        i = next(i for i, (a, b) in enumerate(zip(got, wanted, strict=True)) if a != b)
        logits, u = cases[i]
        evidence = (
            f"for probabilities {_numbers(torch.softmax(logits, 0))} and u = {u:.3g} it returns "
            f"{_id(got[i])}, expected {wanted[i]}"
        )
        if again != got:
            raise learner.mistake("u-ignored", f" ({evidence})", name="draw")

        def same(form: Callable[..., int]) -> bool:
            return all(form(*case) == token for case, token in zip(cases, got, strict=True))

        failed = learner.named(6, same, evidence, learner.quoted(6))
        nothing = failed.mistake == "wrong-result" and -1 in got
        raise learner.no_id(6, "None") if nothing else failed
    _edges_of_draw(learner, cut)


def _edges_of_draw(learner: LearnerSampling, cut: Tensor) -> None:
    """Test the draw at u = 0 and at u almost 1. A wrong token or an error gives only a note."""
    for logits, u, right, why in (
        (cut, 0.0, 1, "u = 0 gives a token that is cut; the sum must be larger than u, not equal "
                      "to it"),
        (EQUAL_TEN, NEARLY_ONE, 9, "if rounding leaves the last sum below 1, a u near 1 gives no "
         "token or a wrong one; compare with u times the last sum"),
    ):  # fmt: skip
        try:
            fine = learner.token(6, logits.clone(), u) == right
        except CheckFailed:
            fine = False
        if not fine:
            learner.notes["draw"] = why


def _id(token: int) -> str:
    return "None" if token == -1 else str(token)


def _settings() -> list[tuple[float, int, float, float, float]]:
    """Values of t, k, p, m and penalty. Some of them give other tokens if parts change places."""
    return [
        (1.0, V, 1.0, 0.0, 1.0),
        (0.6, V, 1.0, 0.0, 1.5),
        (0.0, V, 1.0, 0.0, 1.0),
        (0.0, 3, 0.9, 0.1, 3.0),
        (1.4, 3, 1.0, 0.0, 1.0),
        (0.8, V, 0.6, 0.0, 1.0),
        (1.7, V, 1.0, 0.3, 1.0),
        (0.5, 4, 0.7, 0.2, 2.0),
        (2.0, 5, 0.8, 0.25, 1.3),
        (1.5, 3, 0.75, 0.0, 2.5),
        (1.6, V, 0.7, 0.35, 1.8),
        (1.3, 4, 1.0, 0.3, 3.0),
    ]


def _next(learner: LearnerSampling) -> None:
    cases: list[Case] = []
    for number, (t, k, p, m, penalty) in enumerate(_settings()):
        for seed in range(3):
            logits = _random(100 + 3 * number + seed)
            if t == 0:  # so that a penalty makes another logit the largest
                logits[logits.argmax()] = logits.sort().values[-2] + 0.2
            top = logits.argsort(descending=True)[:3].tolist()
            seen = [top[0], top[2], top[0], 5]
            cases += [(logits, seen, u, t, k, p, m, penalty) for u in (0.08, 0.45, 0.83)]
    greedy = [case for case in cases if case[3] == 0]
    drawn = [case for case in cases if case[3] > 0]
    got = [learner.token(7, case[0].clone(), list(case[1]), *case[2:]) for case in drawn]
    wrong = [i for i, case in enumerate(drawn) if got[i] != reference.next_token(*case)]
    if wrong:
        again = [learner.token(7, case[0].clone(), list(case[1]), *case[2:]) for case in drawn]
        evidence = _shown_choice(drawn[wrong[0]], got[wrong[0]])
        first = drawn[wrong[0]]
        learner.ran = frozenset(lines_run(
            learner.file.path, lambda: learner.call(7, first[0].clone(), list(first[1]), *first[2:])
        ))  # fmt: skip
        if again != got:
            raise learner.mistake("u-ignored", f" ({evidence})", step=7, name="next_token")
        if -1 in got:
            raise learner.no_id(7, "None")
        raise _order(learner, drawn, got, evidence)
    for case in greedy:
        try:
            token = learner.token(7, case[0].clone(), list(case[1]), *case[2:])
        except CheckFailed as failed:
            raise learner.mistake("zero-temperature", f" ({failed.message})") from None
        if token != reference.next_token(*case):
            evidence = _shown_choice(case, token)
            if token == int(case[0].argmax()):
                raise learner.mistake("greedy-without-penalty", f" ({evidence})")
            raise learner.mistake("zero-temperature", f" ({evidence})")


def _shown_choice(case: Case, got: int) -> str:
    logits, seen, u, t, k, p, m, penalty = case
    parts = (
        (penalty != 1, f"seen_ids {seen}, penalty = {penalty:g}"),
        (True, f"t = {t:g}"),
        (k < V, f"k = {k}"),
        (p < 1, f"p = {p:g}"),
        (m > 0, f"m = {m:g}"),
        (t > 0, f"u = {u:g}"),
    )
    on = ", ".join(text for is_on, text in parts if is_on)
    return (
        f"for logits {_numbers(logits)}, {on} it returns {_id(got)}, expected "
        f"{reference.next_token(*case)}"
    )


def _order(
    learner: LearnerSampling, cases: Sequence[Case], got: list[int], evidence: str
) -> CheckFailed:
    """The CheckFailed for a next_token that returns wrong ids.

    Tries the known mistakes first, then parts that are left out, then other orders of the parts."""

    tried = list(zip(cases, got, strict=True))
    # compare the wrong results first, because they rule out most orders
    tried.sort(key=lambda pair: reference.next_token(*pair[0]) == pair[1])

    def same(form: Callable[..., int]) -> bool:
        return all(form(*case) == token for case, token in tried)

    failed = learner.named(7, same, evidence, learner.quoted(7))
    if failed.mistake != "wrong-result":
        return failed
    whole = "rtkpm"
    fewer = ["".join(part) for n in (4, 3, 2, 1, 0) for part in combinations(whole, n)]
    orders = ["".join(order) for part in (whole, *fewer[:5]) for order in permutations(part)]
    for order in (*fewer, *orders):
        if not same(partial(reference.any_choice, order=order)):
            continue
        missing = [PARTS[part] for part in whole if part not in order]
        if missing:
            what = ", ".join(f"`{name}`" for name in missing)
            return learner.mistake("left-out", f" ({evidence})", what=what)
        for slug, part, before in (("penalty-late", "r", "kpm"), ("temperature-late", "t", "pm")):
            passed = [PARTS[p] for p in order[: order.index(part)] if p in before]
            if passed:
                what = ", ".join(f"`{name}`" for name in passed)
                return learner.mistake(slug, f" ({evidence})", what=what)
        what = ", ".join(f"`{PARTS[part]}`" for part in order if part in "kpm")
        return learner.mistake("filters-reordered", f" ({evidence})", what=what)
    return failed
