"""`gptcli sample --sampler FILE`: a correct file gives the same text as no file.

A wrong file is an error.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptcli.course.catalogue import exercise_named
from gptcli.course.solutions import solution
from tests.course.sampling_files import NUMPY, with_functions


def texts(cli: Any, *words: object) -> list[tuple[str, str]]:
    outcome = cli("sample", *words, "--json")
    assert outcome.code == 0, outcome.err
    found = [json.loads(line) for line in outcome.out.splitlines()]
    return [(one["text"], one["stopped"]) for one in found]


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--temperature", 1.3, "--top-k", 9, "--top-p", 0.8, "--num-samples", 3),
        ("--temperature", 0, "--repetition-penalty", 1.2),
        ("--min-p", 0.05, "--stop", "night", "--stop", ":\n", "--num-samples", 4),
        ("--dtype", "float32", "--prompt", "QUEEN:", "--stop", "t"),
    ],
)
def test_a_right_file_gives_the_builtin_text(
    options: tuple[object, ...], cli: Any, trained: Path, tmp_path: Path
) -> None:
    words = (trained, "--seed", 7, "-n", 70, *options)
    builtin = texts(cli, *words)
    for name, text in (
        ("sampling.py", solution(exercise_named("sampling"))),
        ("numpy_style.py", with_functions(NUMPY)),
    ):
        file = tmp_path / name
        file.write_text(text, encoding="utf-8")
        assert texts(cli, *words, "--sampler", file) == builtin
    if "--stop" in options:
        assert "stop" in {stopped for _, stopped in builtin}


@pytest.mark.parametrize(
    ("text", "options", "code", "says", "hint"),
    [
        (None, (), 2, "there is no file", "gptcli exercise sampling --out my"),
        ("def draw(logits, u):\n    return 0\n", (), 2, "no function `next_token`",
         "next_token(logits, seen_ids, u, t, k, p, m, penalty)"),
        ("import torhc\n", (), 2, "No module named 'torhc'", "torhc"),
        ("def next_token(*a):\n    print('hello')\n    return 1 / 0\n", (), 1,
         "its next_token raises ZeroDivisionError: division by zero, at line 3",
         "gptcli check-sampling"),
        ("def next_token(*a):\n    return 0\n", ("--stop", "K"), 1,
         "--stop needs its function `cut_at_stop`", "gptcli check-sampling"),
        ("skeleton", (), 1, 'NotImplementedError: step 7: the next token', "gptcli check-sampling"),
    ],
)  # fmt: skip
def test_an_unusable_file_is_an_error(
    text: str | None,
    options: tuple[str, ...],
    code: int,
    says: str,
    hint: str,
    cli: Any,
    trained: Path,
    tmp_path: Path,
) -> None:
    file = tmp_path / "mine.py"
    if text is not None:
        written = exercise_named("sampling").skeleton() if text == "skeleton" else text
        file.write_text(written, encoding="utf-8")
    outcome = cli("sample", trained, "-n", 5, "--sampler", file, *options)
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    message, _, advice = outcome.err.partition("\n\nhint: ")
    assert says in message.replace("\n", " ")
    assert hint in advice
    assert "Traceback" not in outcome.err


def test_the_check_says_how_to_use_a_right_file(cli: Any, tmp_path: Path) -> None:
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    right.write_text(solution(exercise_named("sampling")), encoding="utf-8")
    wrong.write_text(right.read_text("utf-8").replace("set(seen_ids)", "seen_ids[1:]"), "utf-8")
    outcome = cli("check-sampling", right)
    assert outcome.code == 0
    assert f"next: gptcli sample --sampler {right}" in outcome.out.splitlines()
    outcome = cli("check-sampling", right, wrong, "--json")
    assert outcome.code == 1
    first, second = map(json.loads, outcome.out.splitlines())
    assert (first["ok"], first["exercise"], first["first_wrong_step"]) == (True, "sampling", None)
    assert (second["first_wrong_step"], second["mistake"]) == (5, "some-of-the-text")
    assert "set(seen_ids)" not in second["message"]
    assert "`for i in seen_ids[1:]:`" in second["message"]
