"""The reference of an exercise: a filled-in skeleton, also shown beside a learner's file."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gptcli.course.catalogue import MATERIAL, Exercise

_TO_WRITE = re.compile(r"^ *raise NotImplementedError\(.*\)$", re.MULTILINE)
_STEP = re.compile(r"^\s*#\s*(?:[Ss]tep )?(\d+)\.")
_PIECES = re.compile(r"^---\n", re.MULTILINE)


def solution(exercise: Exercise) -> str:
    """The text of the skeleton with every step filled in. It passes the exercise's check."""
    text = (MATERIAL / f"{exercise.name}.solution.txt").read_text(encoding="utf-8")
    pieces = iter(_PIECES.split(text))
    return _TO_WRITE.sub(lambda _: next(pieces).rstrip("\n"), exercise.skeleton())


@dataclass(frozen=True)
class Pair:
    """The lines of one step in the learner's file and in the reference.

    Step 0 is the code before step 1. Each line is a tuple: the line's number in its file, and its
    text."""

    step: int
    learner: list[tuple[int, str]]
    reference: list[tuple[int, str]]


def compare(learner: str, reference: str) -> list[Pair]:
    """The learner's file beside the reference: a Pair for each step.

    Leaves out step 0 if it is the same in both files. If the comments in the learner's file do not
    number the same steps as the reference, there is only one Pair, with all lines of both files."""
    mine, ours = _cut(learner), _cut(reference)
    if list(mine) != list(ours):
        whole = [[line for part in parts.values() for line in part] for parts in (mine, ours)]
        return [Pair(0, _without_docstring(whole[0]), _without_docstring(whole[1]))]
    pairs = [Pair(step, mine[step], ours[step]) for step in ours]
    first = Pair(0, _without_docstring(mine[0]), _without_docstring(ours[0]))
    # Do not show imports and constructor if the learner left them as they are in the skeleton.
    same = [line for _, line in first.learner] == [line for _, line in first.reference]
    return [*([] if same else [first]), *pairs[1:]]


def _cut(text: str) -> dict[int, list[tuple[int, str]]]:
    """step -> its numbered lines, from the comment `# Step N.` to the next such comment.

    Step 0 has the lines before step 1. The `def` line of a function belongs to the step that the
    function contains."""
    parts: dict[int, list[tuple[int, str]]] = {0: []}
    step = 0
    for number, line in enumerate(text.splitlines(), 1):
        found = _STEP.match(line)
        if found and int(found[1]) == step + 1:
            before = parts[step]
            step += 1
            head: list[tuple[int, str]] = []
            if step > 1:
                while before and before[-1][1].lstrip().startswith(("def ", "@", "# Start")):
                    head.insert(0, before.pop())
            parts[step] = head
        parts[step].append((number, line))
    for part in parts.values():
        while part and not part[-1][1].strip():
            part.pop()
    return parts


def _without_docstring(lines: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """The lines without the file's docstring and without blank lines at the top."""
    rest = list(lines)
    if rest and rest[0][1].startswith('"""'):
        end = next((i for i, (_, t) in enumerate(rest) if t.rstrip().endswith('"""') and i), 0)
        rest = rest[end + 1 :]
    while rest and not rest[0][1].strip():
        rest.pop(0)
    return rest
