"""Builds the grid of a sweep: all combinations of the values that the user gives for the keys."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from gptcli.errors import GptcliError

MOST_RUNS = 200


@dataclass(frozen=True)
class Point:
    """One run of a grid: the name of its folder, and its overrides KEY=VALUE."""

    name: str
    overrides: tuple[str, ...]


def grid_of(words: Sequence[str]) -> tuple[list[Point], list[str]]:
    """The points of a grid, and the overrides that all points share.

    A word KEY=V1,V2 has several values. Commas within brackets or quotes do not separate values.
    Raises GptcliError if a word is not KEY=VALUE or KEY=V1,V2, if a list has an empty value or the
    same value twice, if a key has two lists, if no key has two values, if there are more than 200
    points, or if two points have the same name."""
    swept: list[tuple[str, list[str]]] = []
    shared = []
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not re.fullmatch(r"[a-z_.]+", key):
            raise GptcliError(
                f"`{word}` is not of the form KEY=V1,V2",
                "for example train.learning_rate=1e-3,3e-3",
            )
        values = split_values(text)
        if len(values) == 1:
            shared.append(word)
        elif len(set(values)) < len(values) or not all(values):
            raise GptcliError(
                f"`{word}` has an empty value, or the same value twice", "give each value once"
            )
        elif key in (known for known, _ in swept):
            raise GptcliError(f"`{key}` is given twice", "put all its values into one list")
        else:
            swept.append((key, values))
    if not swept:
        raise GptcliError(
            "a sweep needs a key with two values or more",
            "for example gptcli sweep tiny train.learning_rate=0.01,0.02",
        )
    points = []
    for values_of in itertools.product(*(values for _, values in swept)):
        pairs = [(key, value) for (key, _), value in zip(swept, values_of, strict=True)]
        name = "-".join(f"{key.rpartition('.')[2]}={_safe(value)}" for key, value in pairs)
        points.append(Point(name, tuple(f"{key}={value}" for key, value in pairs)))
    if len(points) > MOST_RUNS:
        raise GptcliError(
            f"the grid has {len(points)} runs; at most {MOST_RUNS} are allowed",
            "give fewer values",
        )
    if len({point.name for point in points}) < len(points):
        raise GptcliError("two runs of the grid would have the same name", "give simpler values")
    return points, shared


def split_values(text: str) -> list[str]:
    """Split a text at the commas that are not within brackets or quotes."""
    values, depth, quote, start = [], 0, "", 0
    for i, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "[{(":
            depth += 1
        elif character in "]})":
            depth -= 1
        elif character == "," and depth == 0:
            values.append(text[start:i])
            start = i + 1
    return [*values, text[start:]]


def _safe(value: str) -> str:
    return re.sub(r"[^\w.+-]", "_", value)[-40:]
