"""Tells whether a file for --layernorm or --attention belongs to the exercise `modern`."""

from __future__ import annotations

import ast
from dataclasses import replace

from gptcli.course.catalogue import exercise_named
from gptcli.course.report import FileReport
from gptcli.course.sandbox.learner_file import LearnerFile, find_file, parsed, split_class
from gptcli.errors import GptcliError

CLASSES = {"layernorm": "RMSNorm", "attention": "GroupedQueryAttention"}
"""Part -> the class of the exercise `modern` that can replace the part's usual class."""


def find_part(spec: str, part: str) -> LearnerFile:
    """The file that `FILE` or `FILE:CLASS` names for a part, with the exercise that it belongs to.

    A file belongs to the exercise `modern` if it has the class that CLASSES gives for the part, but
    not the part's usual class. If the user names a class, the file belongs to `modern` only if this
    name is the one in CLASSES. Raises GptcliError if there is no such file, or if it is not Python.
    """
    file = find_file(spec, part)
    other = CLASSES.get(part)
    if other is None:
        return file
    named = split_class(spec)[1]
    if named is None:
        names = _defined(parsed(file.name, file.path))
        is_modern = other in names and exercise_named(part).target not in names
    else:
        is_modern = named == other
    return replace(file, exercise="modern", class_name=other) if is_modern else file


def right_enough(file: LearnerFile, part: str, report: FileReport) -> bool:
    """Whether a wrong `file` can still serve as `part`: the steps that `part` needs are correct.

    Only a wrong norm of the exercise `modern` can still serve, because a norm needs only step 1. An
    attention needs all steps, so an attention always gives False."""
    if file.exercise != "modern" or part != "layernorm":
        return False
    return report.first_wrong_step is not None and report.first_wrong_step > 1


def naming_both(error: GptcliError, file: LearnerFile, part: str) -> GptcliError:
    """`error`, with a message that names both classes which can serve as `part`.

    One is the part's usual class, the other is the class that CLASSES gives for the part. If the
    file has one of these classes, or if CLASSES gives none, `error` is returned unchanged."""
    other, usual = CLASSES.get(part), exercise_named(part).target
    if other is None or _defined(parsed(file.name, file.path)) & {other, usual}:
        return error
    message = error.message.replace(f"no class `{usual}`", f"no class `{usual}` or `{other}`")
    hint = f"{error.hint}; --{part} takes a class `{usual}`, or `{other}` of week 9 (modern)"
    return GptcliError(message, hint, exit_code=error.exit_code)


def _defined(tree: ast.Module) -> set[str]:
    """The names of the classes that a file defines or imports at module level."""
    names = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names
