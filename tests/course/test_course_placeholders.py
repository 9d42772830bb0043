"""Messages of known mistakes get a value for each placeholder, and hints have no placeholders."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from string import Formatter
from types import SimpleNamespace
from typing import cast

import pytest

from gptcli.course.attention.mistakes.attention_mistake import STEP_HINTS, message_numbers
from gptcli.course.attention.stages import Problem
from gptcli.course.examination import LESSONS
from gptcli.course.exercises import explainer, past_mistakes
from gptcli.course.exercises.explainer import ExerciseMistake
from gptcli.course.exercises.questions import QUESTIONS

FOLDER = Path(explainer.__file__).parent
BANKS: dict[str, tuple[ExerciseMistake, ...]] = {
    **{name: LESSONS[name].mistakes for name in LESSONS if name != "attention"},
    "past": past_mistakes.BANK,
}
# the exercises that use a file; the other files belong to the exercise that their name begins with
SHARED = {
    "cache_outputs": ("cache", "past"),
    "learner_module": ("layernorm", "mlp", "block", "modern"),
    "training_calls": ("layernorm", "mlp", "block"),
}
PLACEHOLDER = re.compile(r"\{[A-Za-z_]\w*(![rsa])?(:[^{}\s]*)?\}")
# arguments of `mistake` that say what to quote, and do not fill placeholders
QUOTING = {"step", "line", "within", "suspect", "evidence"}


def placeholders(message: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(message) if name is not None}


@pytest.mark.parametrize("name", BANKS)
def test_hints_have_no_placeholders(name: str) -> None:
    """Only messages are formatted. A placeholder in a hint would be shown as it is."""
    hints = [text for mistake in BANKS[name] for text in (mistake.why, mistake.hint)]
    steps = past_mistakes.STEPS if name == "past" else LESSONS[name].steps
    hints += [text for step in steps for text in (step.ask, step.tell, step.show)]
    hints += QUESTIONS["cache" if name == "past" else name].values()
    assert [text for text in hints if PLACEHOLDER.search(text)] == []


def test_hints_on_attention_name_only_numbers_that_they_get() -> None:
    sizes = SimpleNamespace(B=2, T=3, C=8, H=2, D=4)
    numbers = message_numbers(cast(Problem, sizes))
    texts = [text for hints in STEP_HINTS.values() for text in hints]
    for mistake in LESSONS["attention"].mistakes:
        texts += [mistake.message, mistake.hint, mistake.strong_hint]
    assert [text for text in texts if not placeholders(text) <= numbers.keys()] == []


def raised(path: Path) -> Iterator[tuple[str, set[str], bool]]:
    """For each call of `mistake` that names a slug: the slug, its arguments, and whether the call
    also has arguments that are not written out (**facts)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if node.func.attr in ("mistake", "mistake_in_forward") and node.args:
            names = {each.arg for each in node.keywords if each.arg is not None}
            more = any(each.arg is None for each in node.keywords)
            for part in ast.walk(node.args[0]):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.value, names - QUOTING, more


def banks_of(path: Path) -> list[tuple[ExerciseMistake, ...]]:
    names = SHARED.get(path.stem) or [n for n in BANKS if path.stem.split("_")[0] == n]
    return [BANKS[name] for name in names]


CALLS = [
    (path.name, slug, mistake, names, more)
    for path in sorted(FOLDER.glob("*.py"))
    for slug, names, more in raised(path)
    for bank in banks_of(path)
    for mistake in bank
    if mistake.slug == slug
]


def test_every_placeholder_of_a_message_gets_a_value() -> None:
    assert len(CALLS) > 200
    lacking = [
        (file, slug, placeholders(mistake.message) - names)
        for file, slug, mistake, names, more in CALLS
        if not more and not placeholders(mistake.message) <= names
    ]
    assert lacking == []


# Lessons fill these placeholders in the message of any mistake that they recognise by its `forms`
# or `parts`.
OF_MODULES = {"B", "T", "C", "C1", "C4"}
OF_FORMS: dict[str, set[str]] = {
    **{name: set() for name in ("tokenizer", "training", "sampling")},
    **dict.fromkeys(("layernorm", "mlp", "block"), OF_MODULES),
    "modern": OF_MODULES | {"H", "K", "D", "G"},
}


@pytest.mark.parametrize("name", OF_FORMS)
def test_messages_of_recognised_mistakes_use_only_the_values_of_the_lesson(name: str) -> None:
    rotation = (2, 3) if name == "modern" else ()  # its messages have values of the tables
    lacking = [
        mistake.slug
        for mistake in BANKS[name]
        if (mistake.forms or mistake.parts) and mistake.step not in rotation
        if not placeholders(mistake.message) <= OF_FORMS[name]
    ]
    assert lacking == []


def test_every_value_has_a_placeholder() -> None:
    """A value without a placeholder, in every exercise that can raise the mistake, is not shown."""
    shown: dict[tuple[str, str, frozenset[str]], set[str]] = {}
    for file, slug, mistake, names, _ in CALLS:
        found = shown.setdefault((file, slug, frozenset(names)), set())
        found |= placeholders(mistake.message)
    unused = [(*key[:2], key[2] - names) for key, names in shown.items() if key[2] - names]
    assert unused == []
