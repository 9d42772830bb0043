"""In a notebook or a test, check(MyAttention) returns what check-attention finds, as an object."""

from __future__ import annotations

import json
import linecache
import math
import re
import textwrap
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gptcli.course import check, verdict
from gptcli.errors import GptcliError
from tests.course.part_files import BASE
from tests.course.wrong_attention import FILES, WRONG_FILES

RIGHT = (FILES / "course_style.py").read_text("utf-8")
WRONG = {each.name: each.text() for each in WRONG_FILES}


@pytest.fixture(autouse=True, scope="module")
def _no_worker_stays() -> Iterator[None]:
    yield
    verdict._checker().stop()


POWERS = {"scale": -0.5}
HIDDEN = torch.tensor([-math.inf])


def causal(T: int) -> torch.Tensor:
    return torch.tril(torch.ones(T, T, dtype=torch.bool))


class Base(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def heads(self, x: torch.Tensor) -> list[torch.Tensor]:
        B, T, C = x.shape
        return [
            each.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
            for each in self.c_attn(x).split(C, dim=-1)
        ]


class MyAttention(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.heads(x)
        scores = q @ k.transpose(-2, -1) * q.size(-1) ** POWERS["scale"]
        w = F.softmax(scores.masked_fill(~causal(x.size(1)), HIDDEN.item()), dim=-1)
        y: torch.Tensor = self.c_proj((w @ v).transpose(1, 2).reshape(x.shape))
        return y


class NoMask(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.heads(x)
        w = (q @ k.transpose(-2, -1) * q.size(-1) ** -0.5).softmax(-1)
        y: torch.Tensor = self.c_proj((w @ v).transpose(1, 2).reshape(x.shape))
        return y


class Tags(HTMLParser):
    """Reads the HTML of a verdict: its text, and the tags that are not closed yet."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def in_cells(*cells: str) -> dict[str, Any]:
    """Run the code of cells as a notebook does, and return the names that the cells define.

    There is no file: linecache holds the lines."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells, 1):
        filename = f"<ipython-input-{number}-0123456789ab>"
        lines = cell.splitlines(keepends=True)
        linecache.cache[filename] = (len(cell), None, lines, filename)
        exec(compile(cell, filename, "exec"), names)
    return names


def test_a_right_class_is_true() -> None:
    found = check(MyAttention)
    assert found, found.message
    assert (found.first_wrong_step, found.mistake, found.hint(1)) == (None, None, None)
    assert "8" in str(found)
    assert repr(found).startswith("<check of MyAttention: ok: the same as the reference")
    assert json.loads(json.dumps(found.to_json()))["ok"] is True


def test_a_wrong_class_says_step_line_and_hints() -> None:
    found = check(NoMask)
    assert not found
    assert (found.first_wrong_step, found.mistake) == (5, "mask-missing")
    assert len({found.hint(level) for level in (1, 2, 3)}) == 3
    assert f"hint: {found.hint(1)}" in str(found)
    assert "✗ 5  causal mask" in str(found)
    assert repr(found).startswith("<check of NoMask: wrong at step 5: ")
    tags = Tags()
    tags.feed(found._repr_html_())
    assert tags.open == []
    assert tags.text.count("✗") == 1
    assert tags.text.count("✓") >= 3
    assert "hint 3" in tags.text
    assert str(found.hint(3)) in tags.text


def test_a_class_inside_a_function_with_its_variables() -> None:
    limit = -1e9
    last_two = (-2, -1)

    class Local(Base):
        """A docstring
        of two lines."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.heads(x)
            scores = q @ k.transpose(*last_two) / math.sqrt(q.size(-1))
            w = F.softmax(scores.masked_fill(~causal(x.size(1)), limit), dim=-1)
            y: torch.Tensor = self.c_proj((w @ v).transpose(1, 2).reshape(x.shape))
            return y

    found = check(Local)
    assert found, found.message


AT_THE_TOP = """\
class Mine(__import__("torch").nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (
            each.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
            for each in self.c_attn(x).split(C, dim=-1)
        )
        w = (q @ k.transpose(-2, -1) * q.size(-1) ** -0.5).softmax(-1)
        return self.c_proj((w @ v).transpose(1, 2).reshape(B, T, C))
"""


@pytest.mark.parametrize(
    "text",
    [
        AT_THE_TOP + "\n\nfrom torch import nn\n",
        # the class is in a function, and uses a variable of this function
        "def make(nn):\n" + textwrap.indent(AT_THE_TOP, "    ") + "    return Mine\n"
        "Mine = make(__import__('torch').nn)\n",
    ],
)
def test_a_class_at_the_top_of_a_file_keeps_its_line_numbers(text: str, tmp_path: Path) -> None:
    path = tmp_path / "top.py"
    path.write_text(text, encoding="utf-8")
    names: dict[str, Any] = {"__name__": "top"}
    exec(compile(text, str(path), "exec"), names)
    found = check(names["Mine"])
    assert (found.first_wrong_step, found.mistake) == (5, "mask-missing"), found.message
    lines = text.splitlines()
    (number, code), *_ = re.findall(r"line (\d+), `(.*?)`:", found.message)
    assert lines[int(number) - 1].strip() == code
    marks = found.report.picture.steps if found.report.picture else ()
    assert [lines[m.line - 1].strip() for m in marks if m.line] == [m.code for m in marks if m.line]


def test_rounding_to_float32_is_not_the_first_wrong_token(tmp_path: Path) -> None:
    """The output is slightly off at token 0. This is allowed, but a later token is wrong."""
    path = tmp_path / "mine.py"
    by_value = RIGHT.replace("mask == 0", "scores.tril() == 0").replace(
        "return self.c_proj(y)",
        "y = self.c_proj(y @ torch.eye(C, dtype=torch.float32))\n        y[:, 0] += 5e-5\n"
        "        return y",
    )
    path.write_text(by_value, encoding="utf-8")
    assert "first at token 1 (not finite)" in check(path).message
    rounded = RIGHT.replace(
        "return self.c_proj(y)",
        "y = self.c_proj(y.float().to(x.dtype))\n        y[:, 3:] += 1.0\n        return y",
    )
    path.write_text(rounded, encoding="utf-8")
    assert "first at token 3 of 5" in check(path).message


def test_a_class_in_cells_of_a_notebook() -> None:
    head, _, rest = RIGHT.partition("class CausalSelfAttention")
    right = in_cells(head + "\nSCALE = 1\n", "x = SCALE\n\nclass Mine" + rest)
    assert check(right["Mine"])
    wrong = WRONG["scale_missing" if "scale_missing" in WRONG else "no_scale"]
    head, _, rest = wrong.partition("class CausalSelfAttention")
    found = check(in_cells(head, "print = 3\n\nclass Mine" + rest)["Mine"])
    assert found.first_wrong_step == 4
    assert "cell 2, line " in found.message


def test_a_class_that_reads_a_config_of_another_cell() -> None:
    config = (
        "from dataclasses import dataclass\n\n@dataclass\nclass GPTConfig:\n    n_embd: int = 24\n"
        "    n_head: int = 3\n    dropout: float = 0.0\n    bias: bool = True\n"
        "    block_size: int = 64\n"
    )
    text = RIGHT.replace("__init__(self, config)", "__init__(self)")
    names = in_cells(config, "config = GPTConfig(n_head=4)\n", text)
    found = check(names["CausalSelfAttention"])
    assert found, found.message


def test_classes_of_other_exercises_are_known_by_name() -> None:
    for name, text in BASE.items():
        target = {"layernorm": "LayerNorm", "mlp": "MLP", "block": "Block"}[name]
        assert check(in_cells(text)[target]).report.exercise == name
        renamed = in_cells(text.replace(f"class {target}", "class Mine"))["Mine"]
        assert check(renamed, exercise=name), name


def test_files_instances_and_what_cannot_be_checked(tmp_path: Any) -> None:
    path = tmp_path / "mine.py"
    path.write_text(RIGHT.replace("CausalSelfAttention", "Other"), encoding="utf-8")
    assert check(f"{path}:Other")
    assert not check(tmp_path / "nowhere.py")
    asks = "\nfrom gptcli.course import check\nassert check(Other)\n"
    path.write_text(path.read_text("utf-8") + asks, encoding="utf-8")
    found = check(f"{path}:Other")
    assert found
    assert "stops the file" not in str(found)
    names: dict[str, Any] = {"nn": nn, "__name__": "__main__"}
    exec("class Typed(nn.Module):\n    def forward(self, x): return x\n", names)
    found = check(names["Typed"])
    assert "the source of `Typed` cannot be found" in found.message
    assert "in a notebook cell or a .py file" in str(found.hint(1))
    assert "cannot be found" in found._repr_html_()
    assert not check(int)
    with pytest.raises(GptcliError, match="there is no exercise `atention`"):
        check(MyAttention, exercise="atention")
