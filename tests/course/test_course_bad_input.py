"""Files that the check cannot use cause errors, which say what is wrong, where, and what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gptcli.course import check_file, check_files, load_attention
from gptcli.course.sandbox.learner_file import find_file
from gptcli.errors import GptcliError
from tests.course.wrong_attention import FILES

CLASS = """
from torch import nn
class CausalSelfAttention(nn.Module):
    def __init__(self, config{more}):
        super().__init__()
        {body}
    def forward(self, x{also}):
        return x
"""


def file_of(more: str = "", body: str = "pass", also: str = "") -> str:
    return CLASS.format(more=more, body=body, also=also)


# File name -> the text of the file, a part of the error's message, and a part of its hint.
UNUSABLE = {
    "no_class": (
        "from torch import nn\nclass Mixer(nn.Module): pass\nclass Other(nn.Module): pass\n",
        "no class `CausalSelfAttention`; the file has `Mixer`, `Other`",
        "no_class.py:",
    ),
    "nothing": ("x = 1\n", "there is no class `CausalSelfAttention`", "name another file"),
    "function": (
        "def CausalSelfAttention(config): pass\n",
        "is not a torch.nn.Module",
        "class CausalSelfAttention(nn.Module)",
    ),
    "missing_import": (
        "import numpy_but_misspelt\n",
        "missing_import.py:1: No module named 'numpy_but_misspelt'",
        "if you wrote `numpy_but_misspelt` yourself",
    ),
    "missing_package": (
        "import lightning\nclass CausalSelfAttention(lightning.LightningModule): pass\n",
        "missing_package.py:",
        "pip install lightning",
    ),
    "relative_import": (
        "from .parts import x\n",
        "relative_import.py:1: there is no module `.parts`",
        "beside relative_import.py",
    ),
    "raises": (
        "import torch\nclass A(nm.Module): pass\n",
        "raises.py:2: NameError: name 'nm' is not defined",
        "python ",
    ),
    "exits": (
        "import sys\nsys.exit(3)\n",
        "exits.py:2: SystemExit: 3",
        "before it defines the class",
    ),
    "constructor": (
        file_of(more=", quux"),
        "needs an argument `quux`, and the checker does not know its meaning",
        "`quux=...`",
    ),
    "no_constructor": (
        "from torch import nn\nclass CausalSelfAttention(nn.Module):\n"
        "    def forward(self, x): return x\n",
        "CausalSelfAttention has no constructor",
        "def __init__(self, config)",
    ),
    "forward": (
        file_of(also=", gate"),
        "forward needs an argument `gate`, and the checker does not know its meaning",
        "`gate=None`",
    ),
    "helper": (
        "from torch import nn\nclass ScaledDotProductAttention(nn.Module):\n"
        "    def __init__(self, temperature=1.0):\n        super().__init__()\n"
        "    def forward(self, q, k, v, mask=None):\n        return q\n",
        "`ScaledDotProductAttention` gets queries, keys and values and makes none",
        "FILE:CLASS",
    ),
    "more_weights": (
        file_of(
            body="self.qkv, self.proj, self.gate = (nn.Linear(config.n_embd, n * config.n_embd) "
            "for n in (3, 1, 5))"
        ),
        "the module also has `gate` (120, 24), besides the projections",
        "c_proj",
    ),
}


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GptcliError]:
    folder = tmp_path_factory.mktemp("unusable")
    for name, (text, *_) in UNUSABLE.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    specs = [str(folder / f"{name}.py") for name in UNUSABLE]
    found = {}
    for name, error in zip(UNUSABLE, check_files(specs), strict=True):
        assert isinstance(error, GptcliError), f"{name}: {error}"
        found[name] = error
    return found


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_files_are_errors(errors: dict[str, GptcliError], name: str) -> None:
    _, message, hint = UNUSABLE[name]
    error = errors[name]
    assert message in error.message
    assert "\n" not in error.message
    assert hint in (error.hint or "")
    assert error.exit_code == 2


@pytest.mark.parametrize(
    ("spec", "message", "hint"),
    [
        ("atention.py", "there is no file", "did you mean"),
        ("zzz.py", "there is no file", "for example"),
        ("nowhere/attention.py", "there is no file", "there is no folder"),
        (".", "is a folder", "attention.py"),
        ("attention.py:My-Class", "`My-Class` is not the name of a class", "FILE:CLASS"),
        ("broken.py", "broken.py:2: ", "fix that line"),
        ("latin.py", "latin.py is not UTF-8: it looks like Latin-1", "save the file as UTF-8"),
        ("zeros.py", "zeros.py", ""),
        ("cells.ipynb", "cells.ipynb has no code cells", "name a .py file"),
        ("other.ipynb", "is not a Jupyter notebook", "save it again"),
        ("wide.py", "wide.py is not UTF-8: it looks like UTF-16", "save the file as UTF-8"),
    ],
)
def test_missing_files_and_files_that_are_not_python_are_errors(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spec: str,
    message: str,
    hint: str,
) -> None:
    """gptcli finds these errors before it starts a worker process."""
    (tmp_path / "attention.py").write_text("x = 1\n", encoding="utf-8")
    (tmp_path / "broken.py").write_text("x = 1\ndef f(:\n", encoding="utf-8")
    (tmp_path / "latin.py").write_bytes("x = 'caf\u00e9'\n".encode("latin-1"))
    (tmp_path / "zeros.py").write_bytes(b"x = 1\x00\n")
    (tmp_path / "cells.ipynb").write_text('{"cells": []}', encoding="utf-8")
    (tmp_path / "other.ipynb").write_text("[1, 2]", encoding="utf-8")
    (tmp_path / "wide.py").write_text("x = 1\n", encoding="utf-16")
    monkeypatch.setattr("gptcli.course.checking.Worker", None)
    monkeypatch.chdir(tmp_path)
    for call in (check_file, load_attention):
        with pytest.raises(GptcliError) as caught:
            call(spec)
        assert message in caught.value.message
        assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("spec", "name", "class_name"),
    [
        ("a.py", "a.py", "CausalSelfAttention"),
        ("a.py:Mine", "a.py", "Mine"),
        ("b:c.py", "b:c.py", "CausalSelfAttention"),
        ("b:c.py:Mine", "b:c.py", "Mine"),
    ],
)
def test_spec_is_file_and_class(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spec: str,
    name: str,
    class_name: str,
) -> None:
    """FILE:CLASS names a class in a file.

    A colon that belongs to the path does not start the name of a class."""
    if sys.platform == "win32" and "b:" in spec:
        pytest.skip("Windows allows no such file name")
    monkeypatch.chdir(tmp_path)
    Path(name).write_text("", encoding="utf-8")
    file = find_file(spec)
    assert (file.name, file.class_name) == (name, class_name)
    assert file.path == (tmp_path / name).resolve()


def test_a_drive_letter_does_not_start_a_class() -> None:
    with pytest.raises(GptcliError, match=r"there is no file C:\\x\.py(\n|$)"):
        find_file(r"C:\x.py:Mine")
    with pytest.raises(GptcliError, match=r"there is no file C:\\x\.py(\n|$)"):
        find_file(r"C:\x.py")


def test_load_attention_leaves_no_trace(tmp_path: Path) -> None:
    """load_attention leaves no module in sys.modules, and no bytecode in the learner's folder.

    If the learner changes the file, the next call loads the new text, even within the same
    second."""
    for name in ("bare_parameters.py", "bare_product.py"):
        (tmp_path / name).write_bytes((FILES / name).read_bytes())
    spec = str(tmp_path / "bare_parameters.py")
    path = list(sys.path)
    first = load_attention(spec)
    assert first.__name__ == "CausalSelfAttention"
    assert sys.path == path
    assert not {"bare_parameters", "bare_product"} & set(sys.modules)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bare_parameters.py", "bare_product.py"]
    text = (tmp_path / "bare_parameters.py").read_text(encoding="utf-8")
    (tmp_path / "bare_parameters.py").write_text(
        text.replace("0.02", "0.03").replace("C = config", "c = config"), encoding="utf-8"
    )
    again = load_attention(spec)
    assert "C" not in again.__init__.__code__.co_varnames
    assert "C" in first.__init__.__code__.co_varnames


def test_the_command_line_side_does_not_import_torch(tmp_path: Path) -> None:
    """The process of the command does not import torch, pydantic or rich.

    Only the worker process, which runs the learner's file, needs torch."""
    code = (
        "import sys\nfrom gptcli.course import check_file\nimport gptcli.cli.check\n"
        "from gptcli.errors import GptcliError\n"
        "try:\n    check_file('none.py')\nexcept GptcliError:\n    pass\n"
        "print([m for m in ('torch', 'pydantic', 'rich') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
