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

from gptcli.course.catalogue import exercise_named
from gptcli.errors import GptcliError, nearest
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


def find_file(spec: str, exercise: str = "attention") -> LearnerFile:
    """The file that `FILE` or `FILE:CLASS` names. It exists and parses; nothing of it was run.

    A drive letter (`C:\\x.py:Class`) is part of the file. Raises GptcliError if there is no such
    file, or if the file is not Python."""
    spec = str(expanded(spec))
    name, class_name = spec, exercise_named(exercise).target or "module"
    if not os.path.isfile(spec) and ":" in spec:  # noqa: PTH113 (False for an impossible name)
        left, right = spec.rsplit(":", 1)
        if right.isidentifier() or os.path.isfile(left):  # noqa: PTH113
            name, class_name = left, right
    if not class_name.isidentifier():
        raise GptcliError(
            f"{name}: `{class_name}` is not the name of a class",
            "write FILE or FILE:CLASS, for example `attention.py:MyAttention`",
        )
    path = Path(name)
    if os.path.isdir(name):  # noqa: PTH112
        raise GptcliError(f"{name} is a folder", "name the Python file in it" + _such_as(path))
    if not os.path.isfile(name):  # noqa: PTH113
        raise GptcliError(f"there is no file {name}", _where_else(path))
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


def _parse(name: str, path: Path) -> None:
    try:
        with tokenize.open(path) as source:  # honours a coding line, as Python does
            ast.parse(source.read(), filename=name)
    except SyntaxError as error:
        where = f"{name}:{error.lineno}" if error.lineno else name
        line = (error.text or "").strip()
        line = line if len(line) <= 200 else line[:197] + "..."
        raise GptcliError(
            f"{where}: {error.msg}" + (f": `{line}`" if line else ""),
            "Python cannot read this file; fix that line first",
        ) from None
    except (ValueError, UnicodeDecodeError, RecursionError, MemoryError) as error:
        raise GptcliError(
            f"{name} is not Python: {in_words(error)}", "name a .py file with your class in it"
        ) from None
    except OSError as error:
        raise GptcliError(
            f"{name} cannot be read: {error.strerror}", "check the file's permissions"
        ) from None


def _such_as(folder: Path) -> str:
    first = min(folder.glob("*.py"), default=None)
    return "" if first is None else f", for example {first}"


def _where_else(path: Path) -> str:
    folder = path.parent
    if not os.path.isdir(folder):  # noqa: PTH112
        return f"there is no folder {folder} either"
    like = nearest(path.name, (p.name for p in folder.glob("*.py")))
    if like is not None:
        return f"did you mean {folder / like}?"
    return "name a .py file with your class in it" + _such_as(folder)


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
