"""Finds the students of a class in a folder, and each student's file for each exercise."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

from gptcli.course.attention.conventions.class_choice import looks_right
from gptcli.course.catalogue import EXERCISES, Exercise
from gptcli.course.sandbox.copied_folder import LEFT_OUT, regular_files
from gptcli.course.sandbox.learner_file import parsed
from gptcli.course.sandbox.notebooks import as_python
from gptcli.course.sandbox.syntax import syntax_tree
from gptcli.errors import GptcliError
from gptcli.files.paths import shell_word

_SUFFIXES = (".py", ".ipynb")
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Student:
    """A student: the name, the folder or single file, and the student's file for each exercise."""

    name: str
    path: Path
    files: dict[str, Path]


def find_students(folder: Path) -> list[Student]:
    """The students: one for each folder, Python file or notebook in `folder`, sorted by name.

    Leaves out hidden entries, the folders in LEFT_OUT, and files that are named exactly like an
    exercise. Raises GptcliError if `folder` does not exist, cannot be read, holds no students, or
    holds the work of a single student."""
    if not folder.is_dir():
        raise GptcliError(
            f"{folder} is a file" if folder.exists() else f"there is no folder {folder}",
            "name the folder that contains one folder for each student",
        )
    try:
        entries = sorted(folder.iterdir(), key=lambda path: path.name.casefold())
    except OSError as error:
        raise GptcliError(
            f"{folder} cannot be read: {error.strerror}", "check the folder's permissions"
        ) from None
    seen = [path for path in entries if not path.name.startswith(".")]
    folders = [path for path in seen if path.is_dir() and path.name not in LEFT_OUT]
    files = [path for path in seen if path.is_file() and path.suffix in _SUFFIXES]
    exercises = {each.name for each in EXERCISES}
    named = [path for path in files if path.stem in exercises]
    if named and not folders:
        raise GptcliError(
            f"{folder} holds the files of one student, such as {named[0].name}",
            f"name the folder above it; gptcli exercise --status {shell_word(folder)} shows how "
            "far this student is",
        )
    students = [Student(path.name, path, _files_in(path)) for path in folders]
    for path in files:
        if path not in named:  # the files in `named` are the teacher's, not a student's
            students.append(Student(path.stem, path, dict.fromkeys(_exercises_in(path), path)))
    if not students:
        raise GptcliError(
            f"{folder} holds no students",
            "put one folder or one .py file for each student into it",
        )
    return _with_different_names(students)


def tree_of(path: Path) -> ast.Module | None:
    """The syntax tree of a Python file or notebook; None if it is unusable or over 1 MiB."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            return None
        python = as_python(str(path), path)[0] if path.suffix == ".ipynb" else path
        return parsed(str(path), python)
    except (GptcliError, OSError):
        return None


def _with_different_names(students: list[Student]) -> list[Student]:
    """The students, sorted by name. Students with the same name get the names of their files.

    Example: the folder `anna` and the file `anna.py` belong to two students called "anna". They are
    then called "anna" and "anna.py"."""
    names = [student.name for student in students]
    return sorted(
        (
            Student(each.path.name, each.path, each.files) if names.count(each.name) > 1 else each
            for each in students
        ),
        key=lambda student: (student.name.casefold(), student.name),
    )


def _files_in(folder: Path) -> dict[str, Path]:
    """exercise -> its file in a student's folder.

    Looks for files named after exercises. If there are none, uses `_exercises_in`."""
    files = [path for path in regular_files(folder) if path.suffix in _SUFFIXES]
    found: dict[str, Path] = {}
    for path in files:
        stem = path.stem.casefold()
        # Uploads rename files: `attention (1).py`, `attention_20311.py`.
        for name in (stem, re.sub(r"[ _-]*(\(\d+\)|[_-]\d+)$", "", stem)):
            if any(each.name == name for each in EXERCISES):
                found.setdefault(name, path)
    if found:
        return found
    for path in files:
        for name in _exercises_in(path):
            found.setdefault(name, path)
    return found


def _exercises_in(path: Path) -> list[str]:
    """The exercise that the file's name contains; if none, all exercises that the file defines.

    A file defines an exercise if it has the exercise's class, or half of its functions."""
    words = re.split(r"[^a-z0-9]+", path.stem.casefold())
    named = [each.name for each in EXERCISES if each.name in words]
    if named:
        return named[:1]
    tree = tree_of(path)
    if tree is None:
        return [EXERCISES[0].name]  # the check will report why the file cannot be read
    return [each.name for each in EXERCISES if _defines(tree, each)]


def _defines(tree: ast.Module, exercise: Exercise) -> bool:
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    if exercise.target:
        like = exercise.name == "attention" and any(map(looks_right, classes))
        return exercise.target in classes or like
    functions = _functions(tree)
    asked = _functions(syntax_tree(exercise.skeleton()))
    return 2 * len(functions & asked) >= len(asked)


def _functions(tree: ast.Module) -> set[str]:
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
