"""The check finds the first wrong step and the mistake in many styles of code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gptcli.course import check_files
from gptcli.course.attention.mistakes.bank import BANK
from gptcli.course.report import FileReport
from tests.conftest import some
from tests.course.styles import STYLES, Change, wrong_files
from tests.course.unseen_changes import UNSEEN

Judged = dict[str, tuple[Change, FileReport]]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, slow: bool) -> Judged:
    """The reports on ten wrong files with different mistakes.

    With --slow, the reports on all wrong files of styles.py: each mistake in every style that can
    have it."""
    folder = tmp_path_factory.mktemp("steps")
    by_mistake: dict[str, list[str]] = {}
    for name in wrong_files():
        by_mistake.setdefault(name.partition("__")[2], []).append(name)
    chosen = [
        name
        for i, names in some(list(enumerate(by_mistake.values())), 10, slow)
        for name in (names if slow else [names[i % len(names)]])
    ]
    files = {name: wrong_files()[name] for name in chosen}
    for name, (text, _) in files.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    reports = check_files([str(folder / f"{name}.py") for name in files])
    found = {}
    for (name, (_, change)), report in zip(files.items(), reports, strict=True):
        assert isinstance(report, FileReport), f"{name}: {report}"
        found[name] = (change, report)
    return found


def test_every_wrong_file_fails(judged: Judged) -> None:
    assert len(judged) >= 10  # ten files; with --slow, all wrong files
    assert [name for name, (_, report) in judged.items() if report.ok] == []


def test_the_right_step_is_named(judged: Judged, slow: bool) -> None:
    missed = [
        f"{name}: step {change.step}, named {report.first_wrong_step} ({report.mistake})"
        for name, (change, report) in judged.items()
        if report.first_wrong_step != change.step
    ]
    assert len(missed) <= 0.02 * len(judged), "\n".join(missed)


def test_the_mistake_is_named(judged: Judged, slow: bool) -> None:
    missed = [
        f"{name}: {change.slugs}, named {report.mistake}"
        for name, (change, report) in judged.items()
        if change.slugs != "*" and report.mistake not in change.slugs.split()
    ]
    assert len(missed) <= (0.08 if slow else 0.12) * len(judged), "\n".join(missed)


def test_the_right_step_of_later_mistakes_is_named(tmp_path: Path, slow: bool) -> None:
    texts = {
        f"{style}__{change.name}": (change, text)
        for change in UNSEEN
        for style, text in change.texts().items()
    }
    chosen = [name for _, name in some(list(enumerate(texts)), 12, slow)]
    for name in chosen:
        (tmp_path / f"{name}.py").write_text(texts[name][1], encoding="utf-8")
    missed = []
    reports = list(check_files([str(tmp_path / f"{name}.py") for name in chosen]))
    for name, report in zip(chosen, reports, strict=True):
        assert isinstance(report, FileReport), f"{name}: {report}"
        if report.first_wrong_step != texts[name][0].step:
            missed.append(f"{name}: {texts[name][0].step}, named {report.first_wrong_step}")
    assert len(missed) <= 0.02 * len(chosen), "\n".join(missed)
    unnamed = [
        f"{name}: {texts[name][0].slugs}, named {report.mistake}"
        for name, report in zip(chosen, reports, strict=True)
        if isinstance(report, FileReport)
        and texts[name][0].slugs != "*"
        and report.mistake not in texts[name][0].slugs.split()
    ]
    assert unnamed == []


def test_messages_quote_the_file(judged: Judged) -> None:
    """Each message quotes a line of the file exactly, or names a shape or a number."""
    for name, (_, report) in judged.items():
        text = Path(report.file).read_text(encoding="utf-8").splitlines()
        quoted = re.search(r"line (\d+)(?: of [\w.]+)?, `([^`]*)`", report.message)
        assert quoted or re.search(r"\(\d+, \d+|= \d", report.message), report.message
        if quoted:
            assert text[int(quoted[1]) - 1].strip() == quoted[2], name
        assert len(report.hints) == 3
        assert report.to_json(3)["hint"] == report.hints[2]
        assert not re.search(r"[{}]", report.message.replace(quoted[2] if quoted else "", ""))


def test_messages_quote_the_line_that_is_wrong(judged: Judged) -> None:
    asked, missed = 0, []
    for name, (change, report) in judged.items():
        style = STYLES[name.split("__")[0]].splitlines()
        text = Path(report.file).read_text(encoding="utf-8").splitlines()
        changed = {i + 1 for i, line in enumerate(text) if line not in style}
        quoted = re.search(r"line (\d+)", report.message)
        if not changed or report.first_wrong_step != change.step:
            # No report can quote a deleted line. A report that names another step than that of the
            # mistake quotes a line of this other step.
            continue
        asked += 1
        if quoted is None or int(quoted[1]) not in changed:
            missed.append(f"{name}: {sorted(changed)}, quoted {quoted and quoted[1]}")
    assert len(missed) <= 0.15 * asked, "\n".join(missed)


@pytest.mark.slow
def test_messages_do_not_guess(tmp_path: Path) -> None:
    """The check does not guess between mistakes that give the same numbers at one head_dim.

    If head_dim is 8, for example, a division by 8 and a division by head_dim are the same. The
    check must compare at a second head_dim or look at the trace."""
    fused = STYLES["fused"]
    files = {
        "eight": fused.replace("math.sqrt(D)", "8.0"),
        "root": fused.replace("math.sqrt(D)", "D"),
        "log": fused.replace("F.softmax(scores, dim=-1)", "F.log_softmax(scores.clamp(-99), -1)"),
        "power": fused.replace("F.softmax(scores, dim=-1)", "torch.exp2(scores)"),
    }
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    said = {}
    for name, report in zip(
        files, check_files([str(tmp_path / f"{name}.py") for name in files]), strict=True
    ):
        assert isinstance(report, FileReport)
        said[name] = (report.mistake, report.message)
    assert said["eight"][0] == "scale-wrong"
    assert "head_dim = 8 itself" not in said["eight"][1]
    assert said["root"][0] == "scale-without-root"
    assert "without a softmax" not in said["log"][1] + said["power"][1]


@pytest.mark.slow
def test_right_files_of_every_style_pass(tmp_path: Path) -> None:
    specs = []
    for style, text in STYLES.items():
        (tmp_path / f"{style}.py").write_text(text, encoding="utf-8")
        specs.append(str(tmp_path / f"{style}.py"))
    for report in check_files(specs):
        assert isinstance(report, FileReport)
        assert report.ok, f"{report.file}: {report.message}"


def test_the_bank_reads_like_a_lesson() -> None:
    assert len({mistake.slug for mistake in BANK}) >= 60
    assert {mistake.step for mistake in BANK} == set(range(1, 9))
    for mistake in BANK:
        assert mistake.writes
        assert mistake.variants
        assert re.fullmatch(r"[a-z0-9-]+", mistake.slug)
        assert re.search(r"\{\w+", mistake.message), f"{mistake.slug} quotes no size"
