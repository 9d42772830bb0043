"""Step 8 of the sampling exercise: compare a learner's cut_at_stop with the reference."""

from __future__ import annotations

import random
from collections.abc import Callable

from gptcli.course.exercises import sampling as reference
from gptcli.course.exercises.learner_functions import LearnerFunctions

Three = tuple[str, str, bool]
"""(text to show, text to hold back, whether a stop string was found)."""


def _short_texts(count: int) -> list[tuple[str, list[str]]]:
    """`count` texts, each with 1 to 3 stop strings, all made of the letters a and b.

    The end of a text is often the beginning of a stop string."""
    rng = random.Random(7)

    def word(least: int, most: int) -> str:
        return "".join(rng.choices("ab", k=rng.randint(least, most)))

    return [(word(1, 6), [word(2, 4) for _ in range(rng.randint(1, 3))]) for _ in range(count)]


CHOSEN: tuple[tuple[str, list[str]], ...] = (
    ("What light? KIN", ["KING:"]),
    ("What light? KING: is", ["KING:"]),
    ("KING: What", ["KING:"]),
    ("a KING: b KING: c", ["KING:"]),
    ("a light", ["KING:"]),
    ("K", ["KING:"]),
    ("a\n\n", ["\n\n\n", "END"]),
    ("one END two STOP", ["STOP", "END"]),
    ("one STOP two END", ["STOP", "END"]),
    ("one EN", ["STOP", "END"]),
    ("one ST", ["STOP", "END"]),
    ("aab", ["aabc", "b"]),
    ("x aba", ["abac"]),
    ("x abab", ["ababc", "bb"]),
    ("x END", ["END"]),
    ("x KING", ["KING", "KINGS"]),
    ("x abab", ["bb", "ababc"]),
    ("one LINK", ["KING:"]),
    ("any text", []),
    ("", ["END"]),
    ("", []),
)
TEXTS = (*CHOSEN, *_short_texts(60))


def check_stops(learner: LearnerFunctions) -> None:
    """Compare the learner's cut_at_stop with the reference. Raises CheckFailed if they differ."""
    got = [_three(learner, text, stops) for text, stops in TEXTS]
    wanted = [reference.cut_at_stop(text, stops) for text, stops in TEXTS]
    if got == wanted:
        return
    if got != [_three(learner, text, stops) for text, stops in TEXTS]:
        raise learner.mistake("remembers", step=8, name="cut_at_stop")
    i = next(i for i, (a, b) in enumerate(zip(got, wanted, strict=True)) if a != b)
    text, stops = TEXTS[i]
    evidence = f"cut_at_stop({text!r}, {stops}) returns {got[i]}, expected {wanted[i]}"

    def same_in(count: int) -> Callable[[Callable[..., Three]], bool]:
        return lambda form: all(form(*TEXTS[i]) == got[i] for i in range(count))

    # If no known mistake gives these results for all texts, the file may have two mistakes. One of
    # them may change only the results for the random texts, so try the chosen texts alone.
    failed = learner.named(8, same_in(len(TEXTS)), evidence, learner.quoted(8))
    if failed.mistake == "wrong-result" and i < len(CHOSEN):
        failed = learner.named(8, same_in(len(CHOSEN)), evidence, learner.quoted(8))
    raise failed


def _three(learner: LearnerFunctions, text: str, stops: list[str]) -> Three:
    """(show, hold, stopped) from the learner's function. None as show or hold becomes ""."""
    given = list(stops)
    got = learner.ask(8, text, given)
    if not isinstance(got, (tuple, list)) or len(got) != 3:
        raise learner.failed_at(
            8, "not-three", f"`cut_at_stop` returned {str(got)[:60]}, not (show, hold, stopped)"
            + learner.quoted(8), "which three values does each `return` give?",
        )  # fmt: skip
    show, hold, stopped = got
    show, hold = show or "", hold or ""
    if not isinstance(show, str) or not isinstance(hold, str):
        raise learner.failed_at(
            8, "not-three", f"`cut_at_stop` returned {str(got)[:60]}, but show and hold must be "
            "texts" + learner.quoted(8), "of which type is each value that you return?",
        )  # fmt: skip
    return show, hold, bool(stopped)
