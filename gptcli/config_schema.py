"""The JSON Schema of the config, in which each key has its docstring from gptcli.config.

Python does not keep the docstrings of attributes. pydantic could read them from the source, but it
would do this in every process that imports gptcli.config, and that takes longer than validating a
config. This file reads the docstrings only when they are needed: for an error message or for
`gptcli schema`.
"""

from __future__ import annotations

import ast
import inspect
from functools import cache
from typing import Any

from gptcli import config


@cache
def config_schema() -> dict[str, Any]:
    """The JSON Schema of gptcli.config.Config. Callers must not change it."""
    schema = config.Config.model_json_schema()
    docstrings = _docstrings()
    for name, section in schema["$defs"].items():
        keys = getattr(config, name).model_fields
        for attribute, field in keys.items():
            entry = section["properties"][field.alias or attribute]
            text = docstrings.get((name, attribute))
            if text is not None:
                entry["description"] = text
                section["properties"][field.alias or attribute] = dict(sorted(entry.items()))
    return schema


def _docstrings() -> dict[tuple[str, str], str]:
    """The docstrings of the attributes of classes in gptcli.config: (class, attribute) -> text."""
    found = {}
    for part in ast.parse(inspect.getsource(config)).body:
        if isinstance(part, ast.ClassDef):
            for above, below in zip(part.body, part.body[1:], strict=False):
                if (
                    isinstance(above, ast.AnnAssign)
                    and isinstance(above.target, ast.Name)
                    and isinstance(below, ast.Expr)
                    and isinstance(below.value, ast.Constant)
                    and isinstance(below.value.value, str)
                ):
                    found[part.name, above.target.id] = inspect.cleandoc(below.value.value)
    return found
