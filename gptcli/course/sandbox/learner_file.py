"""Find and run a learner's file: from `FILE[:CLASS]` on the command line to the class in it.

Nothing here imports torch until a class is loaded, so that a misspelt name is reported at once.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.machinery
import importlib.util
import inspect
import os
import sys
import tokenize
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING

from gptcli.course.catalogue import EXERCISES, exercise_named
from gptcli.errors import GptcliError, cropped, nearest
from gptcli.files.paths import expanded

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class LearnerFile:
    """A file that exists and is Python, the class to look for in it, and its exercise."""

    name: str  # as the user wrote it, without the class
    path: Path
    class_name: str
    exercise: str = "attention"


def split_class(spec: str) -> tuple[str, str | None]:
    """FILE and CLASS of `FILE[:CLASS]`. A drive letter (`C:\\x.py`) is part of the file."""
    spec = str(expanded(spec))
    if not os.path.isfile(spec) and ":" in spec:  # noqa: PTH113 (False for an impossible name)
        left, right = spec.rsplit(":", 1)
        if right.isidentifier() or os.path.isfile(left):  # noqa: PTH113
            return left, right
    return spec, None


def find_file(spec: str, exercise: str = "attention") -> LearnerFile:
    """The file that `FILE` or `FILE:CLASS` names. It exists and parses; nothing of it was run.

    Raises GptcliError if there is no such file, or if the file is not Python."""
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
        raise GptcliError(
            f"{name} is a notebook",
            "save the cell that holds the class as a .py file, and name that",
        )
    _parse(name, path)
    return LearnerFile(name, path.resolve(), class_name, exercise)


def load_class(file: LearnerFile) -> type[nn.Module]:
    """Run the file and return its class, a torch.nn.Module.

    The file can import files next to it. Raises GptcliError if the file cannot be run or has no
    such class."""
    from torch import nn

    module = run_file(file)
    cls = getattr(module, file.class_name, None)
    if cls is None:
        classes = {
            name: value
            for name, value in vars(module).items()
            if inspect.isclass(value)
            and issubclass(value, nn.Module)
            and value.__module__ == module.__name__
        }
        if not classes:
            raise GptcliError(
                f"{file.name}: there is no class `{file.class_name}`",
                "the file defines no torch.nn.Module; write one, or name another file",
            )
        like = nearest(file.class_name, classes) or next(iter(classes))
        raise GptcliError(
            f"{file.name}: there is no class `{file.class_name}`; it has "
            + ", ".join(f"`{name}`" for name in classes),
            f"try `{file.name}:{like}`",
        )
    if not (inspect.isclass(cls) and issubclass(cls, nn.Module)):
        raise GptcliError(
            f"{file.name}: `{file.class_name}` is not a torch.nn.Module",
            f"write `class {file.class_name}(nn.Module):`",
        )
    return cls


def place_of(error: BaseException, path: Path) -> tuple[int, str] | None:
    """The last line of the file `path` that `error` passed through, as (number, text), or None."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename) == path:
        return error.lineno or 1, (error.text or "").strip()
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        if Path(frame.filename) == path:
            return frame.lineno or 1, frame.line or ""
    return None


def raised_in(error: BaseException, path: Path) -> bool:
    """Whether a line of the file itself raised `error`, and not code that the file called."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename) == path


def in_words(error: BaseException) -> str:
    """`ValueError: ...` on one line of readable length."""
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
"""What a file of this suffix usually holds, if it holds no Python."""

_MOST_BYTES = 1 << 22


def _parse(name: str, path: Path) -> None:
    """Raise GptcliError unless the file is Python that defines something."""
    other = _OTHER_FORMATS.get(path.suffix.lower())
    try:
        if path.stat().st_size > _MOST_BYTES:  # parsing takes a hundred times as much memory
            raise _not_python(name, f"it has {path.stat().st_size:,} bytes")
        with tokenize.open(path) as source:  # honours a coding line, as Python does
            tree = ast.parse(source.read(), filename=name)
        only_values = tree.body and all(isinstance(part, ast.Expr) for part in tree.body)
        if only_values and path.suffix != ".py":  # JSON is also a Python expression
            raise _not_python(name, f"it is {other or 'data'}")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if other is not None:
            raise _not_python(name, f"it is {other}") from None
        raise _unreadable_python(name, error) from None
    except OSError as error:
        raise GptcliError(
            f"{name} cannot be read: {error.strerror}", "check the file's permissions"
        ) from None


def _not_python(name: str, what: str) -> GptcliError:
    hint = "name the .py file with the code that you wrote"
    if name.lower().endswith(".json"):
        hint += (
            "; a tokenizer.json is for `gptcli train --tokenizer` and `gptcli tokenizer`, which "
            "read it as data"
        )
    return GptcliError(f"{name} is not a Python file: {what}", hint)


def _unreadable_python(name: str, error: Exception) -> GptcliError:
    if isinstance(error, SyntaxError):
        where = f"{name}:{error.lineno}" if error.lineno else name
        line = (error.text or "").strip()
        line = line if len(line) <= 200 else line[:197] + "..."
        return GptcliError(
            f"{where}: {error.msg}" + (f": `{line}`" if line else ""),
            "Python cannot read this file; fix that line first",
        )
    return GptcliError(
        f"{name} is not Python: {in_words(error)}", "name a .py file with your class in it"
    )


def _such_as(folder: Path, exercise: str) -> str:
    """The file of the exercise in a folder; if it has none, a file that no other exercise needs."""
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
    begin = f"; gptcli exercise {exercise} --out my writes one to fill in"
    return "name a .py file with your class in it" + (_such_as(folder, exercise) or begin)


class _FreshLoader(importlib.machinery.SourceFileLoader):
    """Compiles the source each time.

    A cached bytecode file would be stale after an edit within the same second, and would litter
    the learner's folder."""

    def get_code(self, fullname: str) -> CodeType:
        code = self.source_to_code(self.get_data(self.path), self.path)
        assert isinstance(code, CodeType)
        return code


def run_file(file: LearnerFile) -> ModuleType:
    """Run the file and return its module. Raises GptcliError if it cannot be run."""
    # A unique name: a learner's `attention.py` or `random.py` must not hide another module.
    key = hashlib.sha256(str(file.path).encode("utf-8", "surrogatepass")).hexdigest()[:12]
    name = f"_learner_{key}_{file.path.stem}"
    loader = _FreshLoader(name, str(file.path))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module there
    try:
        with _neighbours_importable(file.path.parent), contextlib.redirect_stdout(sys.stderr):
            loader.exec_module(module)
    except ImportError as error:
        raise GptcliError(
            f"{_at(file, error)}: {error}",
            "install it, or do without: torch and its modules are enough",
        ) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also sys.exit() at module level
        raise GptcliError(
            f"{_at(file, error)}: {in_words(error)}",
            f"the file stops before its class can be used; it must run as `python {file.name}`",
        ) from error
    return module


def _at(file: LearnerFile, error: BaseException) -> str:
    place = place_of(error, file.path)
    return file.name if place is None else f"{file.name}:{place[0]}"


@contextlib.contextmanager
def _neighbours_importable(folder: Path) -> Iterator[None]:
    """Make the files next to the learner's importable, and forget them afterwards.

    Another learner can have a different `layers.py`."""
    before = set(sys.modules)
    writes = sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            top, origin = name.split(".")[0], getattr(sys.modules[name], "__file__", None)
            # Comparing folders is not enough: the folder can contain a virtual environment.
            if origin and Path(origin) in (folder / f"{top}.py", folder / top / "__init__.py"):
                del sys.modules[name]
