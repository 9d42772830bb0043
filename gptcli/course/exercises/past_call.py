"""Call an attention that takes earlier keys and values as an argument, or that keeps them itself.

| form | how it is called |
|---|---|
| argument | `y, (k, v) = forward(x, past=(k, v))`, also as two arguments, a dict or one tensor |
| container | `y = forward(x, cache)`, which changes `cache`: a dict, a list, an object or tensors |
| state | `y = forward(x, use_cache=True)`: the module keeps the tokens, and `reset` removes them |

Dimensions: B batch, T new tokens, S tokens in all, C channels, H heads, D channels per head.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.course.attention.conventions.call import MASKS, Call, call_named

_PAST = re.compile(r"past|cache|kv|prev|stored|history", re.IGNORECASE)
_NO_PAST = re.compile(
    r"^(use|return|with|output|update|is|enable|save|store|keep|need|get)_|pos|len|size|idx|index|"
    r"max|mask|layer_id|count|start|offset|hidden|encoder|heads?$|n_kv|num_kv|seen",
    re.IGNORECASE,
)
_SWITCH = re.compile(
    r"^(use|return|with|output|save|store|keep|need|update|enable|is)_.*"
    r"(cache|past|present|kv|key_?val|states?)|^(caching|cached|incremental|decode|decoding)$",
    re.IGNORECASE,
)
_KEYS = re.compile(r"(^|_)k(eys?)?(_|$)|^k(eys?)?(cache|past)|(cache|past)k(eys?)?$", re.IGNORECASE)
_VALUES = re.compile(
    r"(^|_)v(al(ue)?s?)?(_|$)|^v(alues?)?(cache|past)|(cache|past)v(alues?)?$", re.IGNORECASE
)
_START = re.compile(
    r"^(start_?pos(ition)?|offset|start|(pos|position|cache|past|seq)_?(offset|start|len(gth)?)|"
    r"(n|num)_past|cur_?pos|pos(ition)?)$",
    re.IGNORECASE,
)
_PLACES = re.compile(
    r"^(position_ids|positions|pos_ids|token_positions|input_pos|cache_positions?)$",
    re.IGNORECASE,
)
_RESET = re.compile(
    r"^_?(reset|clear|empty|flush|forget|init)(_?(kv|the|key_value))?_?(cache|past|state|memory|kv)?$",
    re.IGNORECASE,
)
_OF_OBJECTS = {"fits", "length", "update", "get_seq_length", "extend_with", "has_room"}


class GivenCache:
    """A cache that the check passes to a forward that calls `past.update(k, v, ...)`.

    It is for a file without a cache class. It concatenates along the second to last dimension, as
    Hugging Face's caches do."""

    def __init__(self) -> None:
        self.k: Tensor | None = None
        self.v: Tensor | None = None

    def update(self, k: Tensor, v: Tensor, *more: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """Store new keys and values; return all keys and values."""
        self.k = k if self.k is None else torch.cat((self.k, k), dim=-2)
        self.v = v if self.v is None else torch.cat((self.v, v), dim=-2)
        return self.k, self.v

    def get_seq_length(self, *more: Any) -> int:
        """The number of tokens stored."""
        return 0 if self.k is None else self.k.shape[-2]


@dataclass(frozen=True)
class PastCall:
    """How to call a forward with the keys and values of the tokens before x.

    `past` names the argument that takes these keys and values, or two arguments, one for each.
    `switches` names the arguments that switch the cache on, `starts` those that take the number of
    earlier tokens, and `places` those that take the positions of the new tokens. `call` says how
    forward takes its other arguments.

    Some forwards write the new tokens into `past`. For these, each function in `containers` makes
    an empty past to try, such as a dict, and `container` is the function whose past works. If the
    module keeps the tokens itself, `reset` names the method that removes them, or is None."""

    past: tuple[str, ...] = ()
    switches: tuple[str, ...] = ()
    starts: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    containers: tuple[Callable[[], Any], ...] = ()
    container: Callable[[], Any] | None = None
    reset: str | None = None
    empty: str = ""  # the order of the keys' dimensions, such as BHTD, if an empty past has tensors
    buffers: bool = False  # whether the tensors of an empty past have room for block_size tokens
    call: Call = field(default_factory=Call)

    @property
    def changes_past(self) -> bool:
        """Whether forward writes the new tokens into the past that it gets."""
        return self.container is not None or self.buffers

    def fresh(self, sizes: Mapping[str, int], dtype: torch.dtype) -> Any:
        """An empty past: tensors, a container or None. `sizes` has B, H, D, C, W (block_size)."""
        if self.empty:
            shape = [sizes[letter] if letter != "T" else sizes["W"] * self.buffers
                     for letter in self.empty]  # fmt: skip
            return tuple(torch.zeros(shape, dtype=dtype) for _ in range(2))
        return None if self.container is None else self.container()

    @property
    def keeps_state(self) -> bool:
        """Whether the module keeps keys and values itself, and forward takes no past."""
        return not self.past

    def __call__(self, module: nn.Module, x: Tensor, past: Any, start: int, *, cached: bool) -> Any:
        """The result of forward for the tokens x, which follow `start` earlier tokens.

        A `past` of None means that no token came before, or that the module keeps the tokens
        itself. The arguments in `switches` tell forward whether to keep keys and values: they get
        `cached`."""
        T, S = x.shape[1], start + x.shape[1]
        named: dict[str, Any] = {
            name: value for name, value in self.call.others if name not in self.switches
        }
        for name in self.switches:
            named[name] = cached
        for name in self.starts:
            named[name] = start
        for name in self.places:
            at = torch.arange(start, S)
            named[name] = at[None] if name.endswith("ids") else at
        if self.call.mask is not None and (self.call.mask_kind or self.call.mask_is_required):
            kind = self.call.mask_kind or next(iter(MASKS))
            named[self.call.mask] = MASKS[kind](S, x)[..., S - T :, :]
        if len(self.past) == 2:
            keys, values = (None, None) if past is None else past
            named |= dict(zip(self.past, (keys, values), strict=True))
        elif self.past and (past is not None or self.past[0] in named):
            named[self.past[0]] = past
        return call_named(module, (x,) * self.call.times, named)

    def words(self) -> str:
        """How forward takes or keeps earlier keys and values, in words that can end a sentence."""
        if self.keeps_state:
            return "the module keeps the keys and values of earlier tokens itself"
        names = " and ".join(f"`{name}`" for name in self.past)
        if self.changes_past:
            return f"forward changes the keys and values in {names}"
        return (
            f"forward takes the earlier keys and values as {names}, and returns those of all tokens"
        )


def past_call(cls: type[nn.Module], tree: ast.AST, call: Call) -> PastCall | None:
    """How a forward takes or keeps earlier keys and values; None if it does neither.

    `call` says how forward takes its other arguments. `tree` is the syntax tree of the file."""
    parameters = list(inspect.signature(cls.forward).parameters.values())[1 + call.times :]
    names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    past = [name for name in names if _PAST.search(name) and not _NO_PAST.search(name)
            and not _SWITCH.match(name)]  # fmt: skip
    keys = next((name for name in past if _KEYS.search(name) and not _VALUES.search(name)), None)
    values = next((name for name in past if _VALUES.search(name) and not _KEYS.search(name)), None)
    switches = tuple(name for name in names if _SWITCH.match(name))
    starts = tuple(name for name in names if _START.match(name) and name not in past)
    places = tuple(name for name in names if _PLACES.match(name))
    found = PastCall((), switches, starts, places, call=call)
    if keys is not None and values is not None:
        return replace(found, past=(keys, values))
    if past:
        name = past[0]
        return replace(found, past=(name,), containers=_containers(tree, name))
    resets = [name for name in dir(cls) if _RESET.match(name) and not hasattr(nn.Module, name)]
    keeps = re.search(r"cache|past|kv_|_kv", " ".join(_attributes(tree, cls.__name__)))
    if switches or ((resets or starts) and keeps):
        return replace(found, reset=resets[0] if resets else None)
    return None


def asks_object(tree: ast.AST, name: str) -> bool:
    """Whether code uses `name` as a cache object, as in `name.update` or `name.append(k, v)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is(node.value, name) and node.attr in _OF_OBJECTS:
            return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            function = node.func
            if _is(function.value, name) and function.attr == "append" and len(node.args) == 2:
                return True
    return False


def _containers(tree: ast.AST, name: str) -> tuple[Callable[[], Any], ...]:
    """Functions that each make an empty value for argument `name`; () if no code changes it."""
    texts: list[str] = []
    writes = appends = updates = numbers = False
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and _is(node.value, name):
            key = node.slice
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                texts.append(key.value)
            elif isinstance(key, ast.Constant):
                numbers = True
            writes = writes or isinstance(node.ctx, ast.Store)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if _is(node.func.value, name) and node.func.attr in ("append", "extend"):
                appends = True
            if _is(node.func.value, name) and node.func.attr == "update":
                writes = True
                updates = updates or len(node.args) > 1
    if updates:
        return (GivenCache,)
    if not writes and not appends:
        return ()
    empty = dict.fromkeys(texts)
    found: list[Callable[[], Any]] = []
    if texts or writes:
        found += [dict, lambda: dict(empty)]
    if numbers or appends:
        found += [list, lambda: [None, None]]
    return tuple(found)


def _is(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _attributes(tree: ast.AST, name: str) -> list[str]:
    """The names that the class `name` uses in `self.NAME`, or as the first argument of a call.

    An example of such a call is `self.register_buffer("cache", ...)`."""
    return [
        inner.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name == name
        for inner in ast.walk(node)
        if isinstance(inner, ast.Attribute) and _is(inner.value, "self")
    ] + [
        inner.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name == name
        for inner in ast.walk(node)
        if isinstance(inner, ast.Call) and inner.args and isinstance(inner.args[0], ast.Constant)
        and isinstance(inner.args[0].value, str)
    ]  # fmt: skip


def output_and_present(out: Any, x: Tensor, two: bool) -> tuple[Any, Any]:
    """Split `out`, which forward returned, into the output and the keys and values of all tokens.

    The second is None if `out` has no keys and values. `two` says whether forward takes keys and
    values as two arguments."""
    if not isinstance(out, (tuple, list)) or not out:
        return out, None
    first = next((i for i, one in enumerate(out) if isinstance(one, Tensor)), 0)
    rest = [one for i, one in enumerate(out) if i != first and one is not None]
    if not rest:
        return out[first], None
    nested = [one for one in rest if not isinstance(one, Tensor)]
    if nested:
        return out[first], nested[0]
    same = len(rest) >= 2 and rest[0].shape == rest[1].shape
    if two or same:
        return out[first], tuple(rest[:2])
    return out[first], rest[0]
