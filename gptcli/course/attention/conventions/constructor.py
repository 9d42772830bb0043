"""Makes a module of the learner's class, whose constructor follows any known convention.

Many scripts have sizes in variables of the file, such as `n_embd = 384` or a dict `GPT_CONFIG`.
While the constructor or forward runs, these variables have the sizes of the case that is checked.
"""

from __future__ import annotations

import contextlib
import dis
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from gptcli.course.attention.conventions import words
from gptcli.course.attention.conventions.settings import LearnerConfig, setting_values
from gptcli.errors import GptcliError

_SIZES = {
    words.N_EMBD, words.N_HEAD, words.HEAD_DIM, words.N_KV_HEAD, words.BLOCK_SIZE, words.DROPOUT,
    words.BIAS, words.DEVICE,
}  # fmt: skip
"""The meanings that a variable of the learner's file can have, if it is not a config."""


@dataclass(frozen=True)
class Argument:
    """An argument of the constructor. `meaning` is None if the argument is the config."""

    name: str
    meaning: str | None
    positional: bool = False


class Constructor:
    """How to call the constructor of one class.

    Raises GptcliError if the constructor needs an argument whose meaning is unknown."""

    def __init__(self, cls: type[nn.Module], file_name: str) -> None:
        self.cls = cls
        self._arguments = list(_bound(cls, file_name))
        self._variables = list(_variables_of(cls))

    @property
    def is_course_form(self) -> bool:
        """Whether the call is `Class(config)`, and the class reads no settings of the file."""
        return [argument.meaning for argument in self._arguments] == [None] and not self._variables

    @property
    def names_heads(self) -> bool:
        """Whether an argument, a variable or the config tells the class the number of heads."""
        meanings = {argument.meaning for argument in self._arguments}
        meanings |= {meaning for _, _, meaning in self._variables}
        return not meanings.isdisjoint({None, words.N_HEAD})

    def names_of(self, meaning: str) -> list[str]:
        """The names of the constructor's arguments and the file's variables that mean `meaning`."""
        return [a.name for a in self._arguments if a.meaning == meaning] + [
            name for _, name, of in self._variables if of == meaning
        ]

    def build(self, config: LearnerConfig) -> nn.Module:
        """A new module of the class, with the sizes of `config`."""
        values = setting_values(config)
        positional, named = [], {}
        for argument in self._arguments:
            value = config if argument.meaning is None else values.get(argument.meaning)
            if argument.positional:
                positional.append(value)
            else:
                named[argument.name] = value
        with self.variables(config):
            module: nn.Module = self.cls(*positional, **named)
        return module

    @contextlib.contextmanager
    def variables(self, config: LearnerConfig) -> Iterator[None]:
        """Give the file's variables the settings of `config`; restore their values afterwards."""
        values = setting_values(config)
        before = [(space, name, space[name]) for space, name, _ in self._variables]
        for space, name, meaning in self._variables:
            space[name] = config if meaning is None else values[meaning]
        try:
            yield
        finally:
            for space, name, value in before:
                space[name] = value

    def describe(self) -> str:
        """The constructor in words, such as "Class(d_model, num_heads) with the file's dropout"."""
        call = ", ".join(argument.name for argument in self._arguments)
        also = ", ".join(dict.fromkeys(name for _, name, _ in self._variables))
        return f"{self.cls.__name__}({call})" + (f" with the file's {also}" if also else "")


def _bound(cls: type[nn.Module], file_name: str) -> Iterator[Argument]:
    """The constructor's arguments that get a value. All other arguments keep their defaults."""
    parameters = _parameters(cls)
    guessed = _guessed(cls, parameters)
    required = [p for p in parameters if p.default is p.empty]
    for i, parameter in enumerate(parameters):
        name, positional = parameter.name, parameter.kind == parameter.POSITIONAL_ONLY
        meaning = words.meaning_of(name)
        others = {words.meaning_of(p.name) for p in parameters if p is not parameter}
        sizes = {words.N_EMBD, words.N_HEAD, words.HEAD_DIM}
        if name in guessed:
            yield Argument(name, guessed[name], positional)
        elif i == 0 and not others & sizes and _is_config(parameter, meaning, len(required)):
            yield Argument(name, None, positional)
        elif meaning is not None and (parameter in required or _is_bound(parameter, meaning)):
            yield Argument(name, meaning, positional)
        elif parameter.default is parameter.empty:
            if words.names_config(name):
                yield Argument(name, None, positional)
                continue
            raise GptcliError(
                f"{file_name}: `{cls.__name__}` needs an argument `{name}`, and the checker does "
                f"not know its meaning; the class takes {inspect.signature(cls)}",
                f"give it a default, `{name}=...`, or write `def __init__(self, config):`; config "
                "has n_embd, n_head, dropout, bias and block_size",
            )


def _guessed(cls: type[nn.Module], parameters: list[inspect.Parameter]) -> dict[str, str]:
    """name -> guessed meaning (n_embd or n_head) of the arguments with unknown names.

    Guesses no meaning that a known name already has. The order of the arguments decides: almost
    every attention takes n_embd first, then n_head."""
    meanings = {words.meaning_of(p.name) for p in parameters}
    meanings |= {meaning for _, _, meaning in _variables_of(cls)}
    if None in {meaning for _, _, meaning in _variables_of(cls)} or any(
        words.names_config(p.name) for p in parameters
    ):
        return {}
    missing = [size for size in (words.N_EMBD, words.N_HEAD) if size not in meanings]
    unknown = [
        p.name
        for p in parameters
        if words.meaning_of(p.name) is None
        and (p.default is p.empty or type(p.default) is int)
        and p.annotation in (p.empty, int, "int")
    ]
    if len(missing) == 2 and len(unknown) < 2:  # a single unknown argument is a config
        return {}
    return dict(zip(unknown, missing, strict=False))


def _is_bound(parameter: inspect.Parameter, meaning: str) -> bool:
    """Whether the checks give a value to this argument, although it has a default."""
    if meaning == words.SWITCH:
        return parameter.default is True
    if parameter.default is None and meaning in (words.HEAD_DIM, words.N_KV_HEAD):
        return False  # the class computes this size from the other sizes
    return words.is_exact(parameter.name) or meaning not in (words.BIAS, words.CAUSAL)


def _is_config(parameter: inspect.Parameter, meaning: str | None, required: int) -> bool:
    """Whether the first argument is a config: an object with all settings."""
    if words.names_config(parameter.name):
        return True
    annotation = parameter.annotation
    annotated = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    if str(annotated).lower().endswith(("config", "args", "params", "cfg", "dict")):
        return True
    return meaning is None and required == 1 and parameter.default is parameter.empty


def _parameters(cls: type[nn.Module]) -> list[inspect.Parameter]:
    """The parameters of the constructor.

    If a constructor has `**kwargs`, which it can pass to a parent class, the parameters of the
    parent's constructor are included."""
    found: dict[str, inspect.Parameter] = {}
    for parent in cls.__mro__:
        if parent is nn.Module:
            break
        if "__init__" not in vars(parent):
            continue
        own = list(inspect.signature(vars(parent)["__init__"]).parameters.values())[1:]
        for parameter in own:
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                found.setdefault(parameter.name, parameter)
        if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in own):
            break
    return list(found.values())


Variable = tuple[dict[str, Any], str, str | None]
"""(dict of a file's variables, name of one variable, meaning of this variable).

The meaning is None if the variable is a config."""


def _variables_of(cls: type[nn.Module]) -> Iterator[Variable]:
    """Yield the learner's variables that the class and its helpers read: settings and configs."""
    seen: set[int] = set()
    found: set[tuple[int, str]] = set()
    waiting: list[Any] = [cls]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, type):
            waiting += [getattr(f, "__func__", f) for f in vars(thing).values()]
            waiting += [parent for parent in thing.__mro__[1:] if _top_folder(parent.__module__)]
            continue
        thing = inspect.unwrap(thing) if callable(thing) else thing
        if not isinstance(thing, FunctionType) or not _top_folder(thing.__module__):
            continue
        space = thing.__globals__
        for name in _globals_read_by(thing.__code__):
            if name not in space or (id(space), name) in found:
                continue
            value = space[name]
            if isinstance(value, type | FunctionType):
                waiting.append(value)
            elif _is_setting(name, value):
                found.add((id(space), name))
                yield space, name, _size_in(name, value)


def _top_folder(module: str | None) -> str | None:
    """`module`, or None if it belongs to the standard library or to an installed package."""
    found = sys.modules.get(module or "")
    file = getattr(found, "__file__", None)
    if module is None or (found is not None and file is None and module == "builtins"):
        return None
    inside = file is not None and ("site-packages" in file or "dist-packages" in file)
    standard = module.split(".")[0] in sys.stdlib_module_names and module != "__main__"
    return None if inside or standard or module.split(".")[0] in ("torch", "gptcli") else module


def _globals_read_by(code: CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname == "LOAD_GLOBAL":
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals_read_by(constant)


def _is_setting(name: str, value: Any) -> bool:
    """Whether a variable can be a setting or a config, judged by its name and its value."""
    if isinstance(value, bool | int | float | str):
        meaning = _size_in(name, value)
        return meaning in _SIZES and isinstance(value, str) == (meaning == words.DEVICE)
    if isinstance(value, Mapping):
        return sum(isinstance(key, str) and words.is_exact(key) for key in value) >= 2
    of_learner = _top_folder(type(value).__module__) is not None
    is_object = of_learner or type(value).__name__ == "SimpleNamespace"
    return is_object and words.names_config(name) and not isinstance(value, nn.Module)


def _size_in(name: str, value: Any) -> str | None:
    """The meaning of a variable. None for a config, an unknown name and a name of one letter."""
    if not isinstance(value, bool | int | float | str) or len(name) == 1:
        return None
    return words.meaning_of(name)
