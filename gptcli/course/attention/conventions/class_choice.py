"""Finds the attention class in a learner's file that has no class with the expected name."""

from __future__ import annotations

import inspect
import re
from types import ModuleType
from typing import TYPE_CHECKING

from gptcli.course.attention.conventions.other_parts import needs_other_hardware
from gptcli.course.attention.conventions.words import N_HEAD, N_LAYER, meaning_of

if TYPE_CHECKING:
    from torch import nn

_WORDS = (
    (r"causal", 2), (r"multi|mha", 3), (r"self", 1), (r"attention|attn|mha", 6),
    (r"^(head|singlehead|onehead|attentionhead)$", 3),
    (r"cross|encoder|bidirectional|linearattention|sparse|local", -3),
    (r"block|layer$|model|gpt|transformer|decoder|mlp|feedforward|ffn|norm|embed", -5),
    (r"rope|rotary|flex|gqa|mqa|mla|grouped|latent|window|kvcache|withcache", -2),
    (r"wrapper|naive|slow|simple|v1|old|test|base|mixin|config", -1),
)  # fmt: skip


_LARGER = re.compile(r"embedding|norm|mlp|feed_?forward|ffn|ffwd|block", re.IGNORECASE)


def attention_classes(module: ModuleType) -> list[type[nn.Module]]:
    """The classes of a file that look like an attention, the most likely one first.

    If no name looks like an attention, returns the file's only torch.nn.Module, or [] if the file
    does not have exactly one. If a class stacks several heads of another class, the class of the
    heads is left out. If two classes are equally likely, a class comes before the classes that it
    uses. If neither uses the other, the lower class in the file comes first: files often define a
    class for one head above the class for many heads."""
    own = _modules_of(module)
    points: dict[type[nn.Module], float] = {cls: _points(cls.__name__) for cls in own}
    for head, stack in _stacks(own).items():
        points[stack] = max(points[stack], points[head] + 0.5)
        points[head] = 0
    named = [cls for cls in own if points[cls] > 0]
    if not named:
        return own if len(own) == 1 else []
    at = {cls: place for place, cls in enumerate(own)}
    # A class that needs a GPU or a compiler cannot be checked here, so it comes last.
    return sorted(
        named,
        key=lambda cls: (
            needs_other_hardware(cls) is not None,
            -points[cls],
            _is_used(cls, named),
            -at[cls],
        ),
    )


def stack_of(cls: type[nn.Module], module: ModuleType) -> type[nn.Module] | None:
    """The class in `module` that makes a list of heads, each a `cls`; None if there is none."""
    return _stacks(_modules_of(module)).get(cls)


def looks_right(name: str) -> bool:
    """Whether the name of a class looks like the name of an attention."""
    return _points(name) > 0


def _is_learners(cls: type) -> bool:
    home = cls.__module__.split(".")[0]
    return home not in ("torch", "gptcli", "transformers", "lightning")


def _points(name: str) -> int:
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return sum(points for pattern, points in _WORDS if re.search(pattern, plain))


def _modules_of(module: ModuleType) -> list[type[nn.Module]]:
    """The learner's own torch.nn.Modules in a file, in the order of their definitions."""
    from torch import nn

    own = [
        cls
        for cls in vars(module).values()
        if inspect.isclass(cls) and issubclass(cls, nn.Module) and _is_learners(cls)
    ]
    return list(dict.fromkeys(own))


def _stacks(own: list[type[nn.Module]]) -> dict[type[nn.Module], type[nn.Module]]:
    """A dict: class for one head -> class that makes a list of such heads.

    A class with a list is in the dict only if its constructor reads the number of heads, does not
    read the number of layers, and makes no part that only a block or a whole GPT has."""
    found = {}
    for stack in own:
        names = _names_in_constructor(stack)
        meanings = {meaning_of(name) for name in names}
        larger = [name for name in names if _LARGER.search(name) and meaning_of(name) is None]
        makes_list = not names.isdisjoint(("range", "ModuleList", "append"))
        if not makes_list or larger or N_HEAD not in meanings or N_LAYER in meanings:
            continue
        for head in own:
            if head.__name__ in names and not issubclass(stack, head) and _is_one_head(head):
                found[head] = stack
    return found


def _is_one_head(cls: type[nn.Module]) -> bool:
    """Whether `cls` can be an attention with one head, judged by its name and constructor."""
    name = cls.__name__.lower()
    if "head" in name and "multi" not in name:
        return True
    reads_heads = N_HEAD in {meaning_of(name) for name in _names_in_constructor(cls)}
    return _points(cls.__name__) > 0 and not reads_heads


def _is_used(cls: type, others: list[type[nn.Module]]) -> bool:
    """Whether the constructor of one of the `others` names the class `cls`."""
    return any(
        cls.__name__ in _names_in_constructor(other)
        for other in others
        if other is not cls and not issubclass(other, cls)
    )


def _names_in_constructor(cls: type) -> set[str]:
    """The names in the class's own `__init__`: parameters, variables, attributes and classes."""
    code = getattr(vars(cls).get("__init__"), "__code__", None)
    return _names(code) if code is not None else set()


def _names(code: object) -> set[str]:
    found = {*getattr(code, "co_names", ()), *getattr(code, "co_varnames", ())}
    for constant in getattr(code, "co_consts", ()):
        if hasattr(constant, "co_names"):
            found |= _names(constant)
    return found
