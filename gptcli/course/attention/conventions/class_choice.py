"""Finds the attention class in a learner's file that has no class with the expected name."""

from __future__ import annotations

import inspect
import re
from types import ModuleType
from typing import TYPE_CHECKING

from gptcli.course.attention.conventions.other_parts import needs_other_hardware

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


def attention_classes(module: ModuleType) -> list[type[nn.Module]]:
    """The classes of a file that look like an attention, the most likely one first.

    If no name looks like an attention, returns the file's only torch.nn.Module, or [] if there are
    several. If two classes are equally likely, a class comes before the classes that it uses. If
    neither uses the other, the class that the file defines later comes first, because files often
    define a class for one head before the class for many heads."""
    from torch import nn

    own = [
        cls
        for cls in vars(module).values()
        if inspect.isclass(cls) and issubclass(cls, nn.Module) and _is_learners(cls)
    ]
    own = list(dict.fromkeys(own))
    points = {cls: _points(cls.__name__) for cls in own}
    named = [cls for cls in own if points[cls] > 0]
    if not named:
        return own if len(own) == 1 else []
    at = {cls: place for place, cls in enumerate(own)}
    # A class that needs a GPU cannot be checked here, so it comes last.
    return sorted(
        named,
        key=lambda cls: (
            needs_other_hardware(cls) is not None,
            -points[cls],
            _is_used(cls, named),
            -at[cls],
        ),
    )


def looks_right(name: str) -> bool:
    """Whether the name of a class looks like the name of an attention."""
    return _points(name) > 0


def _is_learners(cls: type) -> bool:
    home = cls.__module__.split(".")[0]
    return home not in ("torch", "gptcli", "transformers", "lightning")


def _points(name: str) -> int:
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return sum(points for pattern, points in _WORDS if re.search(pattern, plain))


def _is_used(cls: type, others: list[type[nn.Module]]) -> bool:
    """Whether another class of the file builds this class."""
    for other in others:
        if other is cls or issubclass(other, cls):
            continue
        init = vars(other).get("__init__")
        code = getattr(init, "__code__", None)
        if code is not None and cls.__name__ in _names(code):
            return True
    return False


def _names(code: object) -> set[str]:
    found = set(getattr(code, "co_names", ()))
    for constant in getattr(code, "co_consts", ()):
        if hasattr(constant, "co_names"):
            found |= _names(constant)
    return found
