"""The screen of `gptcli learn`: every line fits, and a mark shows where something was left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.text import Text

from gptcli.cli.learn_screen import State, render, render_plain
from gptcli.course.catalogue import EXERCISES
from gptcli.course.progress_file import Record
from gptcli.course.report import Check, FileReport, Picture, StepMark
from gptcli.course.solutions import compare, solution
from gptcli.errors import GptcliError

SIZES = ((79, 23), (119, 39), (40, 10), (20, 3), (5, 1))
ATTENTION = EXERCISES[0]
WEIGHTS = [[1.0, 0, 0, 0, 0]] * 5
MESSAGE = (
    "line 47, `scores = q @ k.transpose(1, 2) / math.sqrt(C)`: your scores are divided by "
    "sqrt(n_embd) = 4.90; each head compares vectors of length head_dim = 8"
)
HINTS = ("how long are the vectors?", "compare scores[0, 0, 1, 0]", "the root of q.shape[-1] 混ざ")


def report(**changes: object) -> FileReport:
    """A report on an attention file in which step 4 is wrong."""
    marks = tuple(
        StepMark(i, name, "right" if i < 4 else "wrong" if i == 4 else "after", 9 * i, "x = y " * 9)
        for i, name in enumerate(ATTENTION.steps, 1)
    )
    whole = FileReport(
        "my/attention.py", "attention", "CausalSelfAttention", False, MESSAGE, "scale-sqrt-n-embd",
        4, (Check("dropout", True, "never acts", note=True),), HINTS,
        Picture(marks, WEIGHTS, WEIGHTS),
    )  # fmt: skip
    return replace(whole, **changes)  # type: ignore[arg-type]


def state(**changes: object) -> State:
    records = {"attention": Record(12, 2040.0, 3), "mlp": Record(4, 9e5, 99, True, "2026-11-27T1")}
    return replace(State(Path("my"), EXERCISES, records), **changes)  # type: ignore[arg-type]


RIGHT = report(ok=True, message="the same as the reference", first_wrong_step=None, hints=())
PAIRS = compare(ATTENTION.skeleton(), solution(ATTENTION))
STATES = {
    "start": state(note="new: my/attention.py. Press e to open it, or open it in any editor."),
    "wrong": state(
        report=report(), hint=3, checked_at="20:15:00", note="Steps 1 to 3 are right now."
    ),
    "to write": state(
        report=report(
            mistake="not-implemented", message="step 4, scores, is still to be written: line 47"
        ),
        to_write=47,
    ),
    "syntax": state(error=GptcliError("my/attention.py: line 3: `(` was never closed", "mend it")),
    "gone": state(missing=True, folder=Path("ünïcödé/" * 20)),
    "slow": state(report=report(), checking_s=12.0, checked_at="20:15:00"),
    "prints": state(report=report(), prints=["混ざった幅の広い文字列\x1b[2J" * 20, "\t1"] * 12),
    "passes": state(report=RIGHT, view="compare", pairs=PAIRS),
    "not mine": state(report=report(), view="compare", pairs=compare("a = 1\n" * 300, "b = 2\n")),
    "list": state(view="list", selected=2),
    "done": state(view="done"),
}


def shown(lines: list[Text]) -> str:
    return "\n".join(line.plain for line in lines)


@pytest.mark.parametrize("unicode", [True, False], ids=["unicode", "ascii"])
@pytest.mark.parametrize("name", STATES)
def test_every_screen_fits_and_marks_what_it_cuts(name: str, unicode: bool) -> None:
    for width, height in SIZES:
        lines = render(replace(STATES[name]), width, height, unicode=unicode)
        assert 1 <= len(lines) <= height, (width, height)
        assert max(line.cell_len for line in lines) <= width, (width, height)
        assert not any("\n" in line.plain or "\x1b" in line.plain for line in lines)
    for width, height in SIZES[:2]:
        whole = shown(render_plain(replace(STATES[name]), width, unicode=unicode))
        screen = shown(render(replace(STATES[name]), width, height, unicode=unicode))
        cut = len(whole.splitlines()) > len(screen.splitlines())
        assert not cut or "... " in screen or "your weights" in whole
        if not unicode and name in ("wrong", "to write", "passes", "list", "done"):
            assert screen.replace("混ざ", "").isascii()


@pytest.mark.long_series
@pytest.mark.parametrize("size", SIZES[:3], ids=str)
def test_the_keys_are_always_there_and_the_rest_can_be_scrolled_to(size: tuple[int, int]) -> None:
    wanted = set(shown(render_plain(replace(STATES["passes"]), size[0])).splitlines()[1:])
    seen: set[str] = set()
    for offset in range(400):
        lines = shown(render(replace(STATES["passes"], offset=offset), *size)).splitlines()
        assert any("next exercise" in line for line in lines)
        seen |= set(lines)
    assert wanted <= seen


def test_a_wrong_step_says_where_what_and_one_hint() -> None:
    screen = shown(render(STATES["wrong"], 79, 23))
    assert "✓ 3" in screen
    assert "✗ 4" in screen
    assert "· 5" in screen
    assert "wrong: line 47" in screen
    assert "hint 3 of 3: the root" in screen
    assert "compare scores" not in screen
    assert "12 attempts, 34 min, 3 hints" in screen
    assert "note: dropout: never acts" in screen


def test_a_count_of_one_has_its_noun_in_the_singular() -> None:
    assert f"the course: 1 of {len(EXERCISES)} passes" in shown(render(STATES["list"], 79, 23))
    left = [shown(render(replace(STATES["passes"], offset=n), 79, 23)) for n in range(400)]
    assert any("... 1 more line (" in screen for screen in left)
    assert not any(" 1 more lines" in screen for screen in left)


def test_a_step_to_write_is_no_mistake() -> None:
    screen = shown(render(STATES["to write"], 79, 23))
    assert "wrong" not in screen
    assert "> 4" in screen
    assert "next: step 4, scores and their scale. Write it in attention.py (line 47)" in screen


def test_the_weights_are_shown_if_there_is_room() -> None:
    assert "your weights" not in shown(render(STATES["wrong"], 79, 23))
    assert "your weights" in shown(render(STATES["wrong"], 119, 39))


def test_no_step_is_ticked_that_the_check_has_not_seen() -> None:
    hangs = report(picture=None, mistake="time-limit", checks=(Check("runs", False, "still"),))
    screen = shown(render(state(report=hangs), 79, 23))
    assert "✓" not in screen
    assert "✗ 4" in screen
    mlp = EXERCISES[2]
    passed = tuple(Check(f"{i} {name}", True, "") for i, name in enumerate(mlp.steps[:2], 1))
    third = report(exercise="mlp", picture=None, first_wrong_step=3, checks=passed)
    screen = shown(render(state(report=third, at=2), 79, 23))
    assert [line.strip()[:3] for line in screen.splitlines()[3:7]] == ["✓ 1", "✓ 2", "✗ 3", "· 4"]


def test_the_reference_is_beside_the_file_in_a_wide_window() -> None:
    wide = shown(render(STATES["passes"], 119, 39)).splitlines()
    assert any(
        "raise NotImplementedError" in line and "│" in line and "self.query(x)" in line
        for line in wide
    )
    narrow = shown(render_plain(STATES["passes"], 79)).splitlines()
    mine = narrow.index(next(line for line in narrow if "your file, step 4" in line))
    ours = narrow.index(next(line for line in narrow if "the reference, step 4" in line))
    assert any('"step 4: scaled scores"' in line for line in narrow[mine:ours])
    assert any("math.sqrt(D)" in line for line in narrow[ours : ours + 5])
