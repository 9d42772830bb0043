"""`gptcli learn`: keys, checks of saved files, hints, resets, output without a terminal."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gptcli.cli.learn_screen import is_to_write
from gptcli.cli.learn_session import LONGEST_PAUSE_S, Session
from gptcli.course.catalogue import EXERCISES, Exercise
from gptcli.course.checking import check_file
from gptcli.course.progress_file import ProgressFile
from gptcli.course.report import FileReport
from gptcli.course.solutions import solution
from gptcli.errors import GptcliError

BY_NAME = {exercise.name: exercise for exercise in EXERCISES}
LAYERNORM, MLP = BY_NAME["layernorm"], BY_NAME["mlp"]
RIGHT = solution(LAYERNORM)


class Learner:
    """A session of `gptcli learn` without a terminal, in which tests press keys and save files."""

    def __init__(self, folder: Path, edit: Callable[[Path, int | None], str]) -> None:
        self.now = 0.0
        self.said: list[str] = []
        self.session = Session(
            folder, edit=edit, said=self.said.append, exercises=(LAYERNORM, MLP),
            clock=lambda: self.now,
        )  # fmt: skip
        self.folder, self.state = folder, self.session.state
        self.session.wait()

    def press(self, *keys: str) -> str:
        """Press keys, and return the note on the screen."""
        for key in keys:
            self.session.press(key)
        return self.state.note

    def save(self, text: str, name: str = "layernorm.py") -> None:
        """Save a file, and wait until it is checked."""
        (self.folder / name).write_text(text, encoding="utf-8")
        self.settle()

    def settle(self) -> None:
        """Let the session notice changed files, and wait until it has checked these files."""
        for _ in range(4):
            self.session.tick()
        self.session._take(None)

    def record(self, name: str = "layernorm") -> dict[str, object]:
        """The record of an exercise in progress.json."""
        value = json.loads((self.folder / "progress.json").read_text("utf-8"))
        record = value["exercises"][name]
        assert isinstance(record, dict)
        return record


def quick_check(self: object, spec: str, exercise: str) -> FileReport:
    """A quick replacement for the checker: it only searches the file's text, and runs no code."""
    text = Path(spec).read_text("utf-8")
    if "class LayerNorm(\n" in text:
        raise GptcliError(f"{spec}:1: '(' was never closed", "fix it")
    step, slug = None, None
    if todo := re.search(r'NotImplementedError\("step (\d)', text):
        step, slug = int(todo[1]), "not-implemented"
    elif wrong := [i for i, sign in ((2, ".var("), (3, "+ 0.1"), (4, "normal\n")) if sign in text]:
        step, slug = wrong[0], f"mistake-{wrong[0]}"
    hints = () if step is None else ("one?", "two!", f"three, {step}.")
    message = f"step {step} is still to be written: line 1" if step else "right"
    return FileReport(spec, exercise, "X", step is None, message, slug, step, hints=hints)


@pytest.fixture
def learner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Learner]:
    monkeypatch.setattr("gptcli.cli.learn_session.Checker.check", quick_check)
    edited: list[tuple[Path, int | None]] = []

    def edit(path: Path, line: int | None) -> str:
        edited.append((path, line))
        return "edited"

    one = Learner(tmp_path / "my", edit)
    one.edited = edited  # type: ignore[attr-defined]
    yield one
    one.session.close()


def test_it_begins_with_the_first_exercise_and_its_first_step(learner: Learner) -> None:
    names = {path.name for path in learner.folder.iterdir()}
    assert names == {"layernorm.py", "layernorm.md", "AGENTS.md"}
    assert "never" in (learner.folder / "AGENTS.md").read_text("utf-8").lower()
    report = learner.state.report
    assert report is not None
    assert report.first_wrong_step == 1
    text = (learner.folder / "layernorm.py").read_text("utf-8").splitlines()
    assert learner.state.to_write is not None
    assert "step 1" in text[learner.state.to_write - 1]
    assert learner.press("e") == "edited"
    assert learner.edited == [(learner.folder / "layernorm.py", learner.state.to_write)]  # type: ignore[attr-defined]


def test_a_save_is_checked_and_counted_once(learner: Learner) -> None:
    wrong = RIGHT.replace("((x - mean) ** 2).mean(dim=-1, keepdim=True)", "x.var(-1, keepdim=True)")
    learner.save(wrong)
    report = learner.state.report
    assert report is not None
    assert report.first_wrong_step == 2
    assert learner.state.note == "Step 1 is right now."
    assert learner.record()["attempts"] == 1
    os.utime(learner.folder / "layernorm.py", ns=(1, 1))  # the file is saved again without a change
    learner.settle()
    assert learner.record()["attempts"] == 1
    learner.save(LAYERNORM.skeleton())
    assert learner.state.note == "Step 1 is no longer right; it was right before this save."


@pytest.mark.parametrize("exercise", [EXERCISES[0], LAYERNORM], ids=lambda e: e.name)
def test_a_wrong_step_before_an_unwritten_one_is_not_called_unwritten(
    exercise: Exercise, tmp_path: Path
) -> None:
    """Learners often save a file in which step 1 is wrong and step 2 is not yet written."""
    right = solution(exercise).splitlines()
    todo = next(i for i, line in enumerate(right) if "Step 2." in line)
    text = "\n".join(right[:todo]) + '\n        raise NotImplementedError("step 2: later")\n'
    text = text.replace("self.key(x)", "self.query(x)").replace("x.mean(dim=-1", "x.mean(dim=1")
    path = tmp_path / f"{exercise.name}.py"
    path.write_text(text, encoding="utf-8")
    report = check_file(str(path), exercise.name)
    assert (report.ok, report.first_wrong_step) == (False, 1)
    # The report names the mistake, or at least says that step 1 is wrong.
    named = report.mistake not in ("not-implemented", None)
    assert named or "step 1, queries, keys and values, is not done" in report.message
    assert not is_to_write(report)
    assert len(set(report.hints)) == 3
    path.write_text(exercise.skeleton(path), encoding="utf-8")
    report = check_file(str(path), exercise.name)
    assert is_to_write(report)
    assert len(set(report.hints)) == 3


def test_hints_grow_and_begin_again_for_another_mistake(learner: Learner) -> None:
    learner.save(RIGHT.replace("+ self.eps", "+ 0.1"))
    for strength in (1, 2, 3):
        learner.press("h")
        assert learner.state.hint == strength
    assert "strongest hint" in learner.press("h")
    assert learner.state.hint == 3
    assert learner.record()["hints_used"] == 3
    learner.save(RIGHT.replace("+ self.eps", "+ 0.1") + "\n# the same mistake\n")
    assert learner.state.hint == 3
    learner.save(RIGHT.replace("normal * self.weight", "normal"))
    assert learner.state.hint == 0


def test_passing_shows_the_reference_and_n_goes_on(learner: Learner) -> None:
    learner.save(RIGHT)
    assert learner.state.view == "compare"
    assert [pair.step for pair in learner.state.pairs] == [1, 2, 3, 4]
    assert learner.said == ["layernorm passes: 1 attempt, under 1 min, 0 hints"]
    assert learner.record()["passed"] is not None
    learner.press("n")
    assert learner.state.exercise is MLP
    learner.session.wait()
    learner.save(solution(MLP), "mlp.py")
    learner.press("n")
    assert learner.state.view == "done"
    learner.session.close()
    again = Learner(learner.folder, lambda path, line: "")
    assert again.state.passes
    assert again.said == []
    again.press("n")
    assert again.state.view == "done"
    again.session.close()


@pytest.mark.parametrize("key", ["s", "r", "n"])
def test_some_keys_must_be_pressed_twice_in_a_row(key: str, learner: Learner) -> None:
    learner.save(mine := LAYERNORM.skeleton() + "# mine\n")
    first = learner.press(key)
    assert "once more" in first
    learner.press("h")
    assert "once more" in learner.press(key)
    assert (learner.state.view, learner.state.at) == ("work", 0)
    learner.press(key)
    if key == "s":
        assert learner.state.view == "compare"
        assert learner.record()["solution_seen"] is True
    elif key == "r":
        assert (learner.folder / "layernorm.py.1").read_text("utf-8") == mine
        assert "# mine" not in (learner.folder / "layernorm.py").read_text("utf-8")
    else:
        assert learner.state.exercise is MLP


def test_the_list_opens_another_exercise(learner: Learner) -> None:
    learner.press("l")
    assert learner.state.view == "list"
    learner.press("up", "down", "down", "down")
    assert learner.state.selected == 1
    learner.press("enter")
    assert (learner.state.view, learner.state.exercise) == ("work", MLP)
    assert (learner.folder / "mlp.py").exists()


def test_a_deleted_file_and_one_that_does_not_parse(learner: Learner) -> None:
    learner.save("class LayerNorm(\n")
    assert learner.state.error is not None
    assert "never closed" in learner.state.error.message
    (learner.folder / "layernorm.py").unlink()
    learner.settle()
    assert learner.state.missing
    learner.press("r")
    learner.settle()
    assert not learner.state.missing
    assert learner.state.report is not None
    assert not list(learner.folder.glob("layernorm.py.*"))


def test_long_pauses_do_not_count(learner: Learner) -> None:
    learner.now += 90
    learner.press("h")
    learner.now += 100_000
    learner.session.close()
    assert learner.record()["seconds"] == 90 + LONGEST_PAUSE_S


def test_a_result_of_the_exercise_before_is_not_shown(learner: Learner) -> None:
    text = "import time\ntime.sleep(0.5)\nclass LayerNorm: pass\n"
    (learner.folder / "layernorm.py").write_text(text, encoding="utf-8")
    for _ in range(500):  # wait until the session notices the change
        learner.session.tick()
        if learner.session.check.busy:
            break
        time.sleep(0.01)
    assert learner.session.check.busy
    learner.press("n", "n")
    learner.settle()
    learner.session.wait()
    assert learner.state.report is not None
    assert learner.state.report.exercise == "mlp"


# ---- without a terminal ----


def test_without_a_terminal_it_checks_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    outcome = cli("learn")
    assert outcome.code == 0
    assert "> 1  queries, keys and values" in outcome.out
    assert "next: step 1, queries, keys and values" in outcome.out
    assert "edit my/attention.py, then run: gptcli learn my" in outcome.err
    assert "\x1b" not in outcome.out + outcome.err
    assert max(map(len, outcome.out.splitlines())) <= 80
    Path("my/attention.py").write_text(solution(EXERCISES[0]), encoding="utf-8")
    outcome = cli("learn", "my")
    assert "attention passes: all 8 steps" in outcome.out
    assert "the reference, step 5" in outcome.out
    assert "next: step 1, mean" in outcome.out
    monkeypatch.chdir("my")  # the course folder itself can be the current folder
    Path("progress.json").write_text("{", encoding="utf-8")
    outcome = cli("learn", ".")
    assert outcome.code == 0
    assert "progress.json was damaged" in outcome.err
    assert Path("progress.json.1").read_text("utf-8") == "{"
    assert cli("learn").code == 0
    assert not Path("my").exists()


def test_a_file_of_the_learner_is_never_replaced(tmp_path: Path, cli) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "attention.py").write_text("import torhc\n", encoding="utf-8")
    outcome = cli("learn", tmp_path)
    assert outcome.code == 0
    assert "cannot be checked" in outcome.out
    assert "torhc" in outcome.out
    assert (tmp_path / "attention.py").read_text("utf-8") == "import torhc\n"


def test_a_folder_that_cannot_be_used_is_an_error(tmp_path: Path, cli) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").touch()
    for name in ("file", "file/in"):
        outcome = cli("learn", tmp_path / name)
        assert outcome.code == 2
        assert outcome.err.startswith("error: ")
        assert "gptcli learn" in outcome.err


def test_without_keys_no_key_is_named_for_a_deleted_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("gptcli.cli.learn.sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.chdir(tmp_path)
    folder = Path("my files")
    steps = iter(range(100))

    def sleep(seconds: float) -> None:
        step = next(steps)
        if step == 1:
            (folder / "attention.py").unlink()
        elif step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr("gptcli.cli.learn.time", type("Clock", (), {"sleep": staticmethod(sleep)}))
    text = " ".join(cli("learn", folder).out.split())
    assert "gone: there is no file" in text
    assert "start `gptcli learn 'my files'` again, which writes the skeleton" in text
    assert "press" not in text.lower()


def test_saves_are_followed_if_only_the_output_is_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("gptcli.cli.learn.sys.stdin.isatty", lambda: True, raising=False)
    path = tmp_path / "attention.py"
    ProgressFile(tmp_path).add("attention", attempts=1)

    slept = iter(range(100))

    def sleep(seconds: float) -> None:
        if next(slept) == 2:
            path.write_text(solution(EXERCISES[0]), encoding="utf-8")
        elif (tmp_path / "layernorm.py").exists():
            raise KeyboardInterrupt

    monkeypatch.setattr("gptcli.cli.learn.time", type("Clock", (), {"sleep": staticmethod(sleep)}))
    outcome = cli("learn", tmp_path)
    assert outcome.code == 130
    assert "attention passes: all 8 steps" in outcome.out
    assert "next: step 1, mean" in outcome.out
    assert "stop with Ctrl-C" in outcome.err
