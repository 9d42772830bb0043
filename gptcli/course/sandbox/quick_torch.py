"""PyTorch imported without the parts that a check does not need, in a third less time."""

from __future__ import annotations

import gc
import importlib
import sys
from types import ModuleType
from typing import Any

UNUSED = ("torch._meta_registrations", "torch.export")
"""Modules that `import torch` imports, and that only tracing uses, on the device "meta"."""


class _Later(ModuleType):
    """A module that is imported when somebody reads one of its names."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system asks
            raise AttributeError(name)
        return getattr(_imported(self), name)

    def __dir__(self) -> list[str]:
        return dir(_imported(self))


def _imported(later: _Later) -> ModuleType:
    """The real module, in place of `later`."""
    if sys.modules.get(later.__name__) is later:
        del sys.modules[later.__name__]
    module = importlib.import_module(later.__name__)
    later.__dict__.update(module.__dict__)
    return module


def import_torch() -> None:
    """Import torch, and UNUSED once they are used, or at once if this torch needs them."""
    if "torch" in sys.modules:
        return
    unused = [_Later(name) for name in UNUSED]
    sys.modules.update((each.__name__, each) for each in unused)
    was_enabled = gc.isenabled()
    gc.disable()  # an import makes little garbage, and the collector looks at everything
    try:
        torch = importlib.import_module("torch")
        try:
            _let_generators_be_made(torch)
            torch.Generator().manual_seed(1)
        except Exception:  # another version of torch
            for each in unused:
                _imported(each)
    finally:
        if was_enabled:
            gc.enable()


def _let_generators_be_made(torch: ModuleType) -> None:
    """Do what torch 2.13 does at the end of `torch._prims.rng_prims`, which UNUSED imports."""
    if hasattr(torch._C, "_set_generator_metaclass"):
        base = importlib.import_module("torch._opaque_base")
        torch._C._set_generator_metaclass(base.OpaqueBaseMeta)
