"""Groups options in dataclasses: each field of the dataclass becomes one option of a command."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints

Command = Callable[..., None]


def with_option_groups(command: Command) -> Command:
    """A decorator that gives a command the form that Typer needs: one parameter for each option.

    Typer reads the options from the parameters of a command. If the type of a parameter is a
    dataclass, Typer gets the fields of the dataclass instead, in order. When the command is called,
    it gets an object of the dataclass, with the values of these fields. If a command has several
    dataclasses, no two of them may have a field of the same name."""
    groups: dict[str, Any] = {}
    parameters = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        group = parameter.annotation
        if not is_dataclass(group):
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name] = group
        hints = get_type_hints(group, include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=hints[field.name],
            )
            for field in fields(group)
        ]

    @wraps(command)
    def with_single_options(**values: Any) -> None:
        objects = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**values, **objects)

    with_single_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return with_single_options
