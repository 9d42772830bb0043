"""Imports PyTorch in a third less time, without the parts that only tracing needs."""

from __future__ import annotations

import builtins
import gc
import importlib
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

UNUSED = ("torch.export", "torch._meta_registrations")
"""Modules that only tracing with the device "meta" uses. `import torch` imports them at its end."""

NEED_THEM = (
    *UNUSED,
    *(
        f"torch.{name}"
        for name in ("_prims", "_refs", "_decomp", "_export", "_dynamo", "_inductor")
    ),
)
"""The modules UNUSED, and the modules that can be imported only after UNUSED."""

_import = builtins.__import__


class _Later(ModuleType):
    """Stands for a module in UNUSED, which is imported only if code needs it.

    If code reads a name from a stand-in, the real modules are imported."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python's import reads such names from every module
            raise AttributeError(name)
        _import_the_rest()
        return getattr(sys.modules[self.__name__], name)

    def __dir__(self) -> list[str]:
        _import_the_rest()
        return dir(sys.modules[self.__name__])


def import_torch() -> None:
    """Import torch.

    The modules UNUSED are imported only when they are needed. If this version of torch already
    needs them at its import, they are imported at once."""
    if "torch" in sys.modules:
        return
    sys.modules.update((name, _Later(name)) for name in UNUSED)
    was_enabled = gc.isenabled()
    gc.disable()  # an import leaves little garbage, but each collection takes time
    try:
        torch = importlib.import_module("torch")
        builtins.__import__ = _import_in_order
        try:
            _let_generators_be_made(torch)
            torch.Generator().manual_seed(1)
        except Exception:  # this version of torch needs UNUSED
            _import_the_rest()
    finally:
        if was_enabled:
            gc.enable()


def _import_in_order(
    name: str,
    globals: Mapping[str, object] | None = None,
    locals: Mapping[str, object] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    """Replaces Python's `import`. Imports the modules UNUSED before a module that needs them."""
    if level == 0 and name.startswith("torch"):
        names = {name, *(f"{name}.{each}" for each in fromlist or ())}
        if any((each + ".").startswith(tuple(f"{x}." for x in NEED_THEM)) for each in names):
            _import_the_rest()
    return _import(name, globals, locals, fromlist, level)


def _import_the_rest() -> None:
    """Import the modules UNUSED, and remove their stand-ins. A second call does nothing."""
    builtins.__import__ = _import
    late = [name for name in UNUSED if isinstance(sys.modules.get(name), _Later)]
    stand_ins = [sys.modules.pop(name) for name in late]
    for stand_in in stand_ins:
        module = importlib.import_module(stand_in.__name__)
        stand_in.__dict__.update(module.__dict__)  # for code that still holds the stand-in
        parent, _, name = stand_in.__name__.rpartition(".")
        setattr(sys.modules[parent], name, module)


def _let_generators_be_made(torch: ModuleType) -> None:
    """Make torch.Generator() usable: set its metaclass as torch._prims.rng_prims does (torch 2.13).

    Usually, `import torch` does this while it imports the modules UNUSED. gptcli imports these
    modules later or never, so this function does it."""
    if hasattr(torch._C, "_set_generator_metaclass"):
        base = importlib.import_module("torch._opaque_base")
        torch._C._set_generator_metaclass(base.OpaqueBaseMeta)
