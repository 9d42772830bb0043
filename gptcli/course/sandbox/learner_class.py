"""Loads a learner's file and returns the class to check.

This is the class that the user names, or else the class that the exercise asks for.
"""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import TYPE_CHECKING

from gptcli.course.catalogue import exercise_named
from gptcli.course.sandbox.definitions import Missing
from gptcli.course.sandbox.learner_file import LearnerFile
from gptcli.course.sandbox.running import error_of, failed_class, failed_classes, run_file
from gptcli.errors import GptcliError, nearest

if TYPE_CHECKING:
    from torch import nn


def load_class(file: LearnerFile) -> type[nn.Module]:
    """Run the file and return its class, a torch.nn.Module.

    If the user named no class, an attention class can have any name. Raises GptcliError if the file
    cannot be run or has no such class."""
    return class_in(file, run_file(file))


def classes_in(file: LearnerFile, module: ModuleType) -> list[type[nn.Module]]:
    """The file's classes that can be the attention, the most likely one first.

    If the file has the class that the user or the exercise names, returns only what `class_in`
    returns. Raises GptcliError if no class of the file can be the attention."""
    from gptcli.course.attention.conventions.class_choice import attention_classes

    first = class_in(file, module)
    if first.__name__ == file.class_name or getattr(module, file.class_name, None) is not None:
        return [first]
    return [first, *(cls for cls in attention_classes(module) if cls is not first)]


def class_in(file: LearnerFile, module: ModuleType) -> type[nn.Module]:
    """The class that `file` names, in the file's module. Raises GptcliError if there is none.

    If the user named no class, and the file lacks the class that the exercise `attention` asks
    for, returns the class that is most likely an attention. If the class of an attention is a
    single head, and another class of the file stacks several of these heads, returns the stack."""
    from torch import nn

    from gptcli.course.attention.conventions.class_choice import (
        attention_classes,
        looks_right,
        stack_of,
    )

    cls = getattr(module, file.class_name, None)
    if isinstance(cls, Missing):
        cls = None
    failed = failed_class(module, file.class_name)
    if cls is None and failed is None and file.class_name == _expected(file):
        broken = next((name for name in failed_classes(module) if looks_right(name)), None)
        if broken is not None and (error := error_of(file, module, broken)) is not None:
            raise error
        if file.exercise == "attention" and (found := attention_classes(module)):
            return found[0]
    if cls is None:
        if (error := error_of(file, module, file.class_name)) is not None:
            raise error
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
                "the file defines no torch.nn.Module: write this class, or name another file",
            )
        like = nearest(file.class_name, classes) or next(iter(classes))
        raise GptcliError(
            f"{file.name}: there is no class `{file.class_name}`; the file has "
            + ", ".join(f"`{name}`" for name in classes),
            f"try `{file.name}:{like}`",
        )
    if not (inspect.isclass(cls) and issubclass(cls, nn.Module)):
        raise GptcliError(
            f"{file.name}: `{file.class_name}` is not a torch.nn.Module",
            f"write `class {file.class_name}(nn.Module):`",
        )
    if file.exercise == "attention" and (stack := stack_of(cls, module)) is not None:
        return stack
    return cls


def _expected(file: LearnerFile) -> str | None:
    """The name of the class that the exercise asks for."""
    return exercise_named(file.exercise).target
