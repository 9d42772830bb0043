"""The solution of every exercise passes, and can be shown beside a learner's file, step by step."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from gptcli.course.catalogue import EXERCISES, Exercise
from gptcli.course.checking import check_file
from gptcli.course.same_code import fingerprint, reference_fingerprints
from gptcli.course.solutions import compare, solution


@pytest.mark.long_series
@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)
def test_the_solution_passes_its_check(exercise: Exercise, tmp_path: Path) -> None:
    path = tmp_path / f"{exercise.name}.py"
    text = solution(exercise)
    assert "NotImplementedError" not in text
    path.write_text(text, encoding="utf-8")
    report = check_file(str(path), exercise.name)
    assert report.ok, report.message


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)
def test_every_step_of_a_skeleton_stands_beside_its_solution(exercise: Exercise) -> None:
    pairs = compare(exercise.skeleton(), solution(exercise))
    assert [pair.step for pair in pairs] == list(range(1, len(exercise.steps) + 1))
    for pair in pairs:
        mine, ours = ("\n".join(t for _, t in p) for p in (pair.learner, pair.reference))
        assert f"Step {pair.step}." in mine
        assert f"Step {pair.step}." in ours
        assert "NotImplementedError" in mine
        assert "NotImplementedError" not in ours


@pytest.mark.long_series
@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)
def test_a_solution_counts_as_nobodys_copy(exercise: Exercise) -> None:
    assert fingerprint(ast.parse(solution(exercise))) in reference_fingerprints()


def test_a_file_without_the_comments_of_the_steps_is_shown_whole() -> None:
    mine = '"""Mine."""\n\nimport torch\n\nclass A:\n    pass  # Step 7\n'
    (pair,) = compare(mine, solution(EXERCISES[0]))
    assert [text for _, text in pair.learner] == mine.splitlines()[2:]
    assert pair.learner[0] == (3, "import torch")
    assert any("class CausalSelfAttention" in text for _, text in pair.reference)


def test_an_own_constructor_is_shown() -> None:
    right = solution(EXERCISES[0])
    pairs = compare(right.replace("self.n_head = config.n_head", "self.n_head = 1"), right)
    assert [pair.step for pair in pairs] == list(range(9))
    assert compare(right, right)[0].step == 1
