"""The checks of layer norm, MLP and block accept right files and name each known mistake."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from gptcli.course import check_file, check_files
from gptcli.course.catalogue import exercise_named
from gptcli.course.examination import LESSONS, examine
from gptcli.course.exercises import block, layernorm, learner_module, mlp
from gptcli.course.report import FileReport
from gptcli.course.sandbox.learner_file import find_file
from gptcli.errors import GptcliError
from tests.conftest import wanted
from tests.course.part_files import BASE, HALF1, MEAN, RIGHT, WRONG, wrong_text

BANKS = {"layernorm": layernorm.LESSON, "mlp": mlp.LESSON, "block": block.LESSON}
KEYS = {"file", "ok", "first_wrong_step", "mistake", "message", "hint", "checks"}
CASES = [(name, i) for name, entries in WRONG.items() for i in range(len(entries))]


@pytest.fixture(scope="module")
def reports(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> dict[str, FileReport]:
    """The reports on those files of part_files.py that the selected tests need, and on skeletons.

    The files are checked in this process, because none of them hangs."""
    folder = tmp_path_factory.mktemp("parts")
    keys, cases = wanted(request, "key"), wanted(request, "case")
    texts = {
        **{f"{e}/{i}": wrong_text(e, WRONG[e][i]) for e, i in CASES if (e, i) in cases},
        **{
            f"{e}/{name}": text
            for e, those in RIGHT.items()
            for name, text in those.items()
            if f"{e}/{name}" in keys
        },
        **{f"{e}/skeleton": exercise_named(e).skeleton() for e in WRONG},
        **{f"{e}/blank": exercise_named(e).skeleton(blank=True) for e in WRONG},
        **{
            f"{e}/reference": f"from gptcli.course.parts import {exercise_named(e).target}\n"
            for e in WRONG
        },
    }
    parts = []
    for key, text in texts.items():
        path = folder / f"{key}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        parts.append((str(path), key.split("/")[0]))
    found = {}
    for key, part in zip(texts, parts, strict=True):
        found[key] = examine(find_file(*part), lambda doing: None)
    return found


@pytest.mark.long_series
@pytest.mark.parametrize("key", [f"{e}/{n}" for e in RIGHT for n in (*RIGHT[e], "reference")])
def test_right_ones_are_accepted(reports: dict[str, FileReport], key: str) -> None:
    report = reports[key]
    assert report.ok, report.message
    assert report.first_wrong_step is None
    assert not any(check.note for check in report.checks) or key == "layernorm/moments"


@pytest.mark.long_series
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_mistakes_are_named_with_their_step(
    reports: dict[str, FileReport], case: tuple[str, int]
) -> None:
    exercise, index = case
    slug, step, *_ = WRONG[exercise][index]
    report = reports[f"{exercise}/{index}"]
    assert (report.mistake, report.first_wrong_step) == (slug, step), report.message
    assert not report.ok
    assert len(report.hints) == 3
    assert re.search(r"\d|`[^`]+`", report.message)
    assert f"{index}.py" in report.message or re.search(r"\d", report.message)
    value = json.loads(json.dumps(report.to_json(2)))
    assert value.keys() >= KEYS
    assert value["hint"] == report.hints[1]
    assert not value["checks"][-1]["ok"]


@pytest.mark.parametrize("exercise", WRONG)
def test_every_mistake_of_the_bank_has_a_file(exercise: str) -> None:
    bank = {mistake.slug for mistake in BANKS[exercise].mistakes}
    assert len(bank) >= 10
    assert bank - {entry[0] for entry in WRONG[exercise]} == set()


@pytest.mark.parametrize("exercise", WRONG)
@pytest.mark.parametrize("kind", ["skeleton", "blank"])
def test_skeletons_fail_at_step_1_in_a_friendly_way(
    reports: dict[str, FileReport], exercise: str, kind: str
) -> None:
    report = reports[f"{exercise}/{kind}"]
    assert (report.mistake, report.first_wrong_step) == ("not-implemented", 1)
    assert "is still to be written: line" in report.message


@pytest.mark.parametrize("name", LESSONS)
def test_the_catalogue_names_the_steps_of_the_lesson(name: str) -> None:
    assert tuple(step.name for step in LESSONS[name].steps) == exercise_named(name).steps


EPS_OUTSIDE = ("torch.sqrt(var + self.eps)", "(torch.sqrt(var) + self.eps)")
UNUSABLE = {
    "no_class": ("class LayerNrom(__import__('torch').nn.Module): pass\n", "there is no class"),
    "missing_import": ("import torhc\n", "missing_import.py:1: No module named"),
    "arguments": (BASE["layernorm"].replace("config)", "config, depth)", 1), "`depth`"),
}


def test_unusable_files_are_errors(tmp_path: Path) -> None:
    specs = []
    for name, (text, _) in UNUSABLE.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        specs.append(str(tmp_path / f"{name}.py"))
    errors = check_files(specs, "layernorm")
    for (name, (_, says)), error in zip(UNUSABLE.items(), errors, strict=True):
        assert isinstance(error, GptcliError), name
        assert says in error.message
        assert error.hint
        assert error.exit_code == 2


def test_a_missing_file_gets_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "layernorm.py").write_text("x = 1\n", encoding="utf-8")
    with pytest.raises(GptcliError, match="there is no file") as caught:
        check_file(str(tmp_path / "layernrom.py"), "layernorm")
    assert "did you mean" in (caught.value.hint or "")


BY_TOKEN = (
    "import torch\nfrom torch import nn\n\n\nclass LayerNorm(nn.Module):\n"
    "    def __init__(self, config):\n        super().__init__()\n"
    "        self.weight = nn.Parameter(torch.ones(config.n_embd))\n"
    "        self.bias = nn.Parameter(torch.zeros(config.n_embd)) if config.bias else None\n\n"
    "    def norm(self, token):\n        mean = token.sum() / len(token)\n"
    "        var = ((token - mean) ** 2).sum() / len(token)\n"
    "        root = (var + 1e-5).sqrt()\n        token = (token - mean) / root * self.weight\n"
    "        return token if self.bias is None else token + self.bias\n\n"
    "    def forward(self, x):\n        out = torch.empty_like(x)\n"
    "        for b in range(len(x)):\n            for t in range(x.shape[1]):\n"
    "                out[b, t] = self.norm(x[b, t])\n        return out\n"
)


def of_text(folder: Path, exercise: str, text: str) -> FileReport:
    path = folder / f"{exercise}.py"
    path.write_text(text, encoding="utf-8")
    return examine(find_file(str(path), exercise), lambda doing: None)


@pytest.mark.parametrize(
    ("exercise", "step", "line", "changes"),
    [
        pytest.param("layernorm", 3, "token = (token - mean) /",
                     ("/ root *", "/ (2 * root) *"), id="third step of a loop over tokens"),
        pytest.param("layernorm", 2, "var = ((token - mean) ** 2)",
                     ("((token - mean) ** 2)", "((token - mean) ** 2).clamp(max=0.01)"),
                     id="second step of a loop over tokens"),
        pytest.param("layernorm", 1, "mean = 0.8 * mean",
                     (MEAN, MEAN + "\n        mean = 0.8 * mean"),
                     id="a mean that is changed"),
        pytest.param("block", 2, "with torch.no_grad():",
                     (HALF1, "a = self.ln_1(x)\n        with torch.no_grad():\n"
                      "            a = self.attn(a)\n        h = x + a"),
                     id="attention without gradient"),
        pytest.param("mlp", 1, "h = F.linear(rows, self.c_fc.weight)",
                     ("h = self.c_fc(x)", "rows = x.reshape(-1, x.shape[-1])\n"
                      "        h = F.linear(rows, self.c_fc.weight)",
                      "y = self.c_proj(h)", "y = self.c_proj(h).view(x.shape)"),
                     id="a line that only reshapes"),
    ],
)  # fmt: skip
def test_step_and_line_agree(
    exercise: str, step: int, line: str, changes: tuple[str, ...], tmp_path: Path
) -> None:
    text = BY_TOKEN if changes[0] in BY_TOKEN else BASE[exercise]
    assert of_text(tmp_path, exercise, text).ok
    for old, new in zip(changes[::2], changes[1::2], strict=True):
        assert old in text
        text = text.replace(old, new)
    report = of_text(tmp_path, exercise, text)
    assert report.first_wrong_step == step, report.message
    assert f"`{line}" in report.message, report.message


def test_an_endless_loop_gets_the_step_in_which_it_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learner_module, "RUN_LIMIT_S", 0.5)
    loop = "root = var.sqrt()\n        while root > 0:\n            root = root * 1.0"
    text = BY_TOKEN.replace("root = (var + 1e-5).sqrt()", loop)
    report = of_text(tmp_path, "layernorm", text)
    assert (report.mistake, report.first_wrong_step) == ("time-limit", 3), report.message
    assert re.search(r"in step 3, normalise, at line 1[56] of layernorm\.py", report.message)


def test_an_endless_loop_is_stopped(tmp_path: Path) -> None:
    path = tmp_path / "mlp.py"
    path.write_text(
        BASE["mlp"].replace("h = F.gelu(h)", "while True:\n            pass"), encoding="utf-8"
    )
    report = check_file(str(path), "mlp", limit_s=1.0)
    assert report.mistake == "time-limit"
    assert "of mlp.py, `pass`" in report.message or "of mlp.py, `while True:`" in report.message


def test_check_command(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    right.write_text(BASE["layernorm"], encoding="utf-8")
    wrong.write_text(wrong_text("layernorm", ("eps-outside", 3, *EPS_OUTSIDE)), encoding="utf-8")
    outcome = cli("check-layernorm", right, wrong, tmp_path / "none.py", "--json")
    assert outcome.code == 2
    values = [json.loads(line) for line in outcome.out.splitlines()]
    assert [value["ok"] for value in values] == [True, False, False]
    assert all(value.keys() >= KEYS for value in values)
    outcome = cli("check-layernorm", wrong, "--hint", "3")
    assert outcome.code == 1
    assert "hint: move eps inside the root, at line 18" in " ".join(outcome.out.split())
    assert "✗ 3  normalise" in outcome.out
    assert cli("check-layernorm", right).code == 0
