"""A learner's key/value cache: find its class and its methods, and make a cache for each layer."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.course.attention.conventions import words
from gptcli.course.attention.conventions.call import take_positional_only
from gptcli.course.sandbox.learner_file import LearnerFile, in_words, place_of
from gptcli.errors import GptcliError
from gptcli.files.paths import shell_word

NAME = "KeyValueCache"
_CLASSES = (NAME, "KVCache", "LayerCache", "AttentionCache", "Cache")
METHODS = {
    "append": ("append", "update", "extend", "add", "store", "push"),
    "length": (
        "length", "seen", "size", "position", "pos", "current_length", "seq_len", "num_tokens",
        "n_tokens", "start", "start_pos", "get_seq_length", "__len__",
    ),
    "fits": ("fits", "has_room", "has_room_for", "can_fit"),
    "clear": ("clear", "reset", "reset_cache", "empty", "forget"),
}  # fmt: skip
"""The names that a learner can give each method. The first of them is the name in the course."""
_ARGUMENTS = ("cache", "kv_cache", "kvcache", "layer_cache", "past", "past_kv", "layer_past", "kv")


@dataclass(frozen=True)
class CacheSizes:
    """The sizes for which a cache is made. Most constructors ask only for block_size."""

    batch: int
    n_head: int
    head_dim: int
    block_size: int
    dtype: torch.dtype
    device: torch.device


def cache_class(module: ModuleType, name: str = NAME) -> type[Any] | None:
    """The learner's cache class, or None.

    Takes the class called `name`, else a class with a usual name, else the first class with a
    method `append` or `update`. Takes an nn.Module only if it is called `name`."""
    own = {
        key: value
        for key, value in vars(module).items()
        if inspect.isclass(value) and (key == name or not issubclass(value, nn.Module))
    }
    for usual in (name, *_CLASSES):
        if usual in own:
            return own[usual]
    return next(
        (cls for cls in own.values() if method_of(cls, "append", ("append", "update"))), None
    )


def method_of(cls: type[Any], what: str, names: Iterable[str] = ()) -> str | None:
    """The learner's name for a method; None if the class has no such method.

    `what` is the method's key in METHODS. `names` replaces the names in METHODS."""
    for name in names or METHODS[what]:
        if name in vars(cls) or (not name.startswith("__") and hasattr(cls, name)):
            return name
    return None


class CacheClass:
    """Makes caches of a learner's class, and calls their methods by the learner's names."""

    def __init__(self, cls: type[Any]) -> None:
        self.cls = cls
        self.names = {what: method_of(cls, what) for what in METHODS}

    def make(self, sizes: CacheSizes) -> Any:
        """A new cache.

        If the first argument has an unknown name and no default, it gets block_size. Does not
        catch the constructor's exceptions. If a later argument has an unknown name and no default,
        the constructor raises a TypeError."""
        arguments: dict[str, Any] = {}
        config = SimpleNamespace(
            block_size=sizes.block_size,
            n_head=sizes.n_head,
            n_embd=sizes.n_head * sizes.head_dim,
        )
        if self.cls.__init__ is object.__init__:
            return self.cls()
        for i, parameter in enumerate(list(inspect.signature(self.cls).parameters.values())):
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            value = _value_of(parameter.name, sizes)
            if words.names_config(parameter.name):
                value = config
            if value is None and parameter.default is parameter.empty and i == 0:
                value = sizes.block_size
            if value is not None:
                arguments[parameter.name] = value
        given = take_positional_only(inspect.signature(self.cls), arguments)
        return self.cls(*given, **arguments)

    def append(self, cache: Any, k: Tensor, v: Tensor) -> Any:
        """Call the learner's `append`, and return its result."""
        assert self.names["append"] is not None
        return getattr(cache, self.names["append"])(k, v)

    def length(self, cache: Any) -> Any:
        """The learner's `length`, which can be a property, an attribute, a method or `__len__`."""
        name = self.names["length"] or self._attribute(cache)
        assert name is not None
        value = len(cache) if name == "__len__" else getattr(cache, name)
        return value() if callable(value) else value

    def has_length(self, cache: Any) -> bool:
        """Whether the cache has a `length`."""
        return self.names["length"] is not None or self._attribute(cache) is not None

    def clear(self, cache: Any) -> None:
        """Call the learner's `clear`."""
        assert self.names["clear"] is not None
        getattr(cache, self.names["clear"])()

    @staticmethod
    def _attribute(cache: Any) -> str | None:
        found = (name for name in METHODS["length"] if name in getattr(cache, "__dict__", {}))
        return next(found, None)


def _value_of(name: str, sizes: CacheSizes) -> Any:
    """The value for the constructor's argument `name`, or None if the name is unknown."""
    meaning = words.meaning_of(name) if words.is_exact(name) else None
    return {
        words.BATCH_SIZE: sizes.batch,
        words.N_HEAD: sizes.n_head,
        words.N_KV_HEAD: sizes.n_head,
        words.HEAD_DIM: sizes.head_dim,
        words.BLOCK_SIZE: sizes.block_size,
        words.N_EMBD: sizes.n_head * sizes.head_dim,
        words.DTYPE: sizes.dtype,
        words.DEVICE: sizes.device,
    }.get(meaning or "")


def cache_argument(cls: type[nn.Module]) -> str | None:
    """The name of the argument with which the learner's forward takes the cache, or None."""
    parameters = list(inspect.signature(cls.forward).parameters.values())[1:]
    names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    for name in names[1:]:
        if name in _ARGUMENTS or ("cache" in name and not name.startswith(("use", "return"))):
            return name
    return None


class LayerCaches:
    """Caches of the learner's class, one for each layer of a network."""

    def __init__(self, kind: CacheClass, n_layer: int, sizes: CacheSizes) -> None:
        self._kind = kind
        self.layers = [kind.make(sizes) for _ in range(n_layer)]

    @property
    def seen(self) -> int:
        """The position of the next token: the length of the first layer's cache."""
        return int(self._kind.length(self.layers[0]))

    def clear(self) -> None:
        """Remove all tokens from the caches of all layers."""
        for layer in self.layers:
            self._kind.clear(layer)


@dataclass(frozen=True)
class CachedFile:
    """A learner's file with an attention and a key/value cache. A network can sample with them."""

    file: LearnerFile
    kind: CacheClass

    @classmethod
    def of(
        cls, file: LearnerFile, module: ModuleType, attention: type[nn.Module]
    ) -> CachedFile | None:
        """The CachedFile for the learner's `file`, whose code ran as `module`.

        None if the file has no cache class, or if forward takes no cache. Raises GptcliError if the
        class of the cache lacks `append` or `clear`, or if the cache is not forward's second
        argument."""
        own = cache_class(module)
        argument = cache_argument(attention)
        if own is None or argument is None:
            return None
        kind = CacheClass(own)
        for what in ("append", "clear"):
            if kind.names[what] is None:
                raise _lacks(file, kind, f"method `{what}`")
        if list(inspect.signature(attention.forward).parameters)[2] != argument:
            raise GptcliError(
                f"{file.name}: forward must take `{argument}` directly after x",
                f"write `def forward(self, x, {argument}=None):`",
            )
        return cls(file, kind)

    def __call__(
        self, config: Any, batch: int, dtype: torch.dtype, device: torch.device
    ) -> LayerCaches:
        """New caches for all layers of a network. Raises GptcliError if caches have no `length`."""
        sizes = CacheSizes(batch, config.n_head, config.head_dim, config.block_size, dtype, device)
        caches = LayerCaches(self.kind, config.n_layer, sizes)
        if not self.kind.has_length(caches.layers[0]):
            raise _lacks(self.file, self.kind, "`length`")
        return caches

    def failure(self, error: Exception) -> GptcliError | None:
        """The GptcliError for `error`, or None.

        None if no line of the learner's file led to `error`, or if `error` is already a
        GptcliError."""
        place = place_of(error, self.file.path)
        if place is None or isinstance(error, GptcliError):
            return None
        return GptcliError(
            f"{self.file.name}:{self.file.where_in_name(place[0])}: sampling with your cache "
            f"stops: {in_words(error)}: `{place[1]}`",
            f"see gptcli check-cache {shell_word(self.file.name)}",
            exit_code=1,
        )


def _lacks(file: LearnerFile, kind: CacheClass, what: str) -> GptcliError:
    return GptcliError(
        f"{file.name}: your `{kind.cls.__name__}` has no {what}",
        f"see gptcli check-cache {shell_word(file.name)}",
    )
