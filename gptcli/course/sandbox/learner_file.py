"""Finds the learner's file that `FILE[:CLASS]` on the command line names, and parses it.

This module does not import torch, so that a misspelt name gets its error at once.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import tokenize
import traceback
from dataclasses import dataclass
from pathlib import Path

from gptcli.course.catalogue import EXERCISES, exercise_named
from gptcli.course.sandbox.notebooks import Cells, as_python
from gptcli.course.sandbox.syntax import syntax_tree
from gptcli.errors import GptcliError, cropped, nearest
from gptcli.files.paths import expanded


@dataclass(frozen=True)
class LearnerFile:
    """An existing Python file, the class to look for in it, and its exercise."""

    name: str  # as the user wrote it, without the class
    path: Path  # for a notebook: the Python file that gptcli made of it
    class_name: str
    exercise: str = "attention"
    cells: Cells = ()  # empty unless the file is a notebook

    @property
    def folder(self) -> Path:
        """The folder of the file that the user named."""
        return Path(self.name).resolve().parent if self.cells else self.path.parent

    def where(self, line: int) -> str:
        """A line's number in words: "line 12", or "cell 4, line 3" in a notebook."""
        for first, number in reversed(self.cells):
            if first <= line:
                return f"cell {number}, line {line - first + 1}"
        return f"line {line}"

    def where_in_name(self, line: int) -> str:
        """What follows "FILE:" for a line: "12", or "cell 4, line 3" in a notebook."""
        return self.where(line).removeprefix("line ")


def split_class(spec: str) -> tuple[str, str | None]:
    """FILE and CLASS of `FILE[:CLASS]`. A drive letter (`C:\\x.py`) belongs to FILE."""
    spec = str(expanded(spec))
    if not os.path.isfile(spec) and ":" in spec:  # noqa: PTH113 (Path raises on an impossible name)
        left, right = spec.rsplit(":", 1)
        if right.isidentifier() or os.path.isfile(left):  # noqa: PTH113
            return left, right
    return spec, None


def find_file(spec: str, exercise: str = "attention") -> LearnerFile:
    """The file that `FILE` or `FILE:CLASS` names. Parses the file, but does not run it.

    Raises GptcliError if there is no such file, if it is not Python, or if CLASS cannot be the name
    of a class."""
    name, named_class = split_class(spec)
    class_name = named_class or exercise_named(exercise).target or "module"
    if not class_name.isidentifier():
        raise GptcliError(
            f"{name}: `{class_name}` is not the name of a class",
            "write FILE or FILE:CLASS, for example `attention.py:MyAttention`",
        )
    path = Path(name)
    if os.path.isdir(name):  # noqa: PTH112
        raise GptcliError(
            f"{name} is a folder", "name the Python file in it" + _such_as(path, exercise)
        )
    if not os.path.isfile(name):  # noqa: PTH113
        raise GptcliError(f"there is no file {cropped(name)}", _where_else(path, exercise))
    if path.suffix == ".ipynb":
        python, cells = as_python(name, path)
        return LearnerFile(name, python, class_name, exercise, cells)
    _check_python(name, path)
    return LearnerFile(name, path.resolve(), class_name, exercise)


def place_of(error: BaseException, path: Path) -> tuple[int, str] | None:
    """(number, text) of the innermost line of the file `path` in the error's traceback, or None."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename) == path:
        return error.lineno or 1, (error.text or "").strip()
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        if Path(frame.filename) == path:
            return frame.lineno or 1, frame.line or ""
    return None


def raised_in(error: BaseException, path: Path) -> bool:
    """Whether `error` was raised in the file `path`, not in code that the file calls."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename) == path


def in_words(error: BaseException) -> str:
    """The error on one line, such as `ValueError: ...`; at most 300 characters of its text."""
    text = " ".join(str(error).split())
    text = text if len(text) <= 300 else text[:297] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


_OTHER_FORMATS = {
    ".json": "JSON", ".jsonl": "JSON", ".yaml": "YAML", ".yml": "YAML", ".toml": "TOML",
    ".txt": "a text", ".md": "a text", ".csv": "a table", ".tsv": "a table", ".html": "HTML",
    ".safetensors": "a file of weights", ".pt": "a file of weights", ".pth": "a file of weights",
    ".bin": "a binary file", ".gguf": "a file of weights", ".npz": "a file of arrays",
    ".npy": "a file of arrays", ".pyc": "compiled Python", ".model": "a SentencePiece model",
    ".zip": "an archive", ".gz": "an archive",
}  # fmt: skip
"""Suffix -> what files with this suffix usually contain."""

_MOST_BYTES = 1 << 22


def parsed(name: str, path: Path) -> ast.Module:
    """The syntax tree of a Python file. Raises GptcliError if Python cannot read it."""
    try:
        with tokenize.open(path) as source:  # obeys a comment such as `coding: latin-1`
            return syntax_tree(source.read(), filename=str(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _unreadable_python(name, path, error) from None
    except OSError as error:
        raise GptcliError(
            f"{name} cannot be read: {error.strerror}", "check the file's permissions"
        ) from None


def _check_python(name: str, path: Path) -> None:
    """Raise GptcliError if the file is too large, is not Python, or is only data such as JSON."""
    other = _OTHER_FORMATS.get(path.suffix.lower())
    try:
        if path.stat().st_size > _MOST_BYTES:  # parsing needs a hundred times its size in memory
            raise _not_python(name, f"it is too large ({path.stat().st_size:,} bytes)")
        tree = parsed(name, path)
        only_values = tree.body and all(isinstance(part, ast.Expr) for part in tree.body)
        if only_values and path.suffix != ".py":  # JSON is also a Python expression
            raise _not_python(name, f"it is {other or 'data'}")
    except OSError as error:
        raise GptcliError(
            f"{name} cannot be read: {error.strerror}", "check the file's permissions"
        ) from None
    except GptcliError:
        if other is not None:
            raise _not_python(name, f"it is {other}") from None
        raise


def _not_python(name: str, what: str) -> GptcliError:
    hint = "name the .py file with the code that you wrote"
    if name.lower().endswith(".json"):
        hint += (
            "; to use a tokenizer.json, pass it to `gptcli train --tokenizer` or to "
            "`gptcli tokenizer`"
        )
    return GptcliError(f"{name} is not a Python file: {what}", hint)


def _unreadable_python(name: str, path: Path, error: Exception) -> GptcliError:
    encoding = _encoding_of(path)
    if encoding is not None:
        return GptcliError(
            f"{name} is not UTF-8: it looks like {encoding}",
            "save the file as UTF-8; most editors offer this when they save",
        )
    if isinstance(error, SyntaxError):
        where = f"{name}:{error.lineno}" if error.lineno else name
        line = (error.text or "").strip()
        line = line if len(line) <= 200 else line[:197] + "..."
        return GptcliError(
            f"{where}: {error.msg}" + (f": `{line}`" if line else ""),
            "Python cannot read this file: fix that line first",
        )
    return GptcliError(
        f"{name} is not Python: {in_words(error)}", "name a .py file with your class in it"
    )


def _such_as(folder: Path, exercise: str) -> str:
    """The end of a hint that names a Python file in the folder: `, for example FILE`.

    "" if the folder has no such file. FILE is the exercise's own file. If the folder lacks that
    file, FILE is a file that is not named after another exercise."""
    others = {f"{each.name}.py" for each in EXERCISES}
    files = [path for path in folder.glob("*.py") if path.name not in others]
    mine = folder / f"{exercise}.py"
    found = mine if mine.is_file() else min(files, default=None)
    return "" if found is None else f", for example {found}"


def _where_else(path: Path, exercise: str) -> str:
    folder = path.parent
    if not os.path.isdir(folder):  # noqa: PTH112
        return f"there is no folder {folder} either"
    like = nearest(path.name, (p.name for p in folder.glob("*.py")))
    if like is not None:
        return f"did you mean {folder / like}?"
    begin = f"; `gptcli exercise {exercise} --out my` writes a skeleton"
    return "name a .py file with your class in it" + (_such_as(folder, exercise) or begin)


def _encoding_of(path: Path) -> str | None:
    """The likely encoding of a file that is not UTF-8; None if the file is UTF-8."""
    with contextlib.suppress(OSError):
        start = path.read_bytes()
        if start.startswith((b"\xff\xfe", b"\xfe\xff")) or start[:200].count(0) > 20:
            return "UTF-16"
        try:
            start.decode("utf-8")
        except UnicodeDecodeError:
            return "Latin-1 or Windows-1252"
    return None


def without_comment(code: str) -> str:
    """A line of code without the comment at its end. A line that is only a comment is unchanged."""
    if "#" not in code or code.startswith("#"):
        return code
    with contextlib.suppress(tokenize.TokenError, SyntaxError, IndentationError):
        for token in tokenize.generate_tokens(io.StringIO(code).readline):
            if token.type == tokenize.ERRORTOKEN and token.string in "\"'":
                return code  # the line is part of a string that covers several lines
            if token.type == tokenize.COMMENT:
                return code[: token.start[1]].rstrip()
    return code
