"""The processor's features, and $GPTCLI_CPU, which lets the C libraries use only some of them.

A kind of processor is named after its newest vector or matrix unit. It has all features that the C
libraries need for this unit. KINDS lists the kinds of each family from old to new, and a kind also
has the features of all earlier kinds of its family. With `GPTCLI_CPU=avx2`, the C libraries use
no feature that is newer than AVX2. This variable is for tests and comparisons.
"""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from gptcli.errors import GptcliError, nearest

_VARIABLE = "GPTCLI_CPU"


@dataclass(frozen=True)
class Kind:
    """A kind of processor."""

    machine: str
    """The family of processors, by the name that platform.machine() returns."""
    features: frozenset[str]
    """The features, as named in /proc/cpuinfo, that this kind adds to the earlier kinds of its
    family in KINDS."""
    flags: tuple[str, ...]
    """The compiler flags for these features."""


KINDS = {
    "sse2": Kind("x86_64", frozenset(), ("-march=x86-64",)),
    "avx2": Kind(
        "x86_64",
        frozenset({"avx2", "fma", "f16c", "bmi2"}),
        ("-mavx2", "-mfma", "-mf16c", "-mbmi2"),
    ),
    "avx512": Kind(
        "x86_64",
        frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"}),
        ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
    ),
    "avx512_bf16": Kind("x86_64", frozenset({"avx512_bf16"}), ("-mavx512bf16",)),
    "amx": Kind(
        "x86_64",
        frozenset({"amx_tile", "amx_bf16", "amx_int8"}),
        ("-mamx-tile", "-mamx-bf16", "-mamx-int8"),
    ),
    "neon": Kind("aarch64", frozenset(), ()),
}


@dataclass(frozen=True)
class Processor:
    """The features that the C libraries may use, and the compiler flags for these features."""

    features: frozenset[str]
    flags: tuple[str, ...]


def features_and_flags(kind: str) -> Processor:
    """The features and compiler flags of `kind`, with those of the earlier kinds of its family."""
    machine = KINDS[kind].machine
    family = [name for name, one in KINDS.items() if one.machine == machine]
    kinds = [KINDS[name] for name in family[: family.index(kind) + 1]]
    features = frozenset({machine}).union(*(one.features for one in kinds))
    return Processor(features, tuple(flag for one in kinds for flag in one.flags))


@functools.cache
def this_processor(restriction: str | None = None) -> Processor | None:
    """This machine's processor, restricted to the kind `restriction`; None on an unknown system.

    Raises GptcliError if there is no such kind, or if this processor lacks a feature of the
    kind."""
    found = all_features()
    if found is None:
        return None
    if restriction is None:
        arm = "aarch64" in found
        return Processor(found, ("-mcpu=native" if arm else "-march=native",))
    if restriction not in KINDS:
        close = nearest(restriction, KINDS)
        raise GptcliError(
            f"{_VARIABLE} is `{restriction}`, which is no kind of processor",
            f"did you mean {close}?" if close else f"kinds: {', '.join(KINDS)}",
        )
    asked = features_and_flags(restriction)
    if not found >= asked.features:
        missing = ", ".join(sorted(asked.features - found))
        raise GptcliError(
            f"{_VARIABLE} is `{restriction}`, but this processor does not have {missing}",
            f"unset {_VARIABLE}, or name a kind whose features this processor has",
        )
    return asked


def usable_processor() -> Processor | None:
    """This machine's processor, restricted by $GPTCLI_CPU; None on an unknown operating system.

    Raises GptcliError if $GPTCLI_CPU names an unknown kind, or one whose features this processor
    lacks."""
    return this_processor(os.environ.get(_VARIABLE) or None)


def is_restricted() -> bool:
    """Whether $GPTCLI_CPU is set, so that the C libraries use only some features."""
    return bool(os.environ.get(_VARIABLE))


@functools.cache
def all_features() -> frozenset[str] | None:
    """The processor's features and its family; None on an unknown operating system."""
    machine = {"arm64": "aarch64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())
    if sys.platform == "darwin":
        return frozenset((machine, *_features_of_macos()))
    if sys.platform != "linux":
        return None
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return frozenset((machine, *value.split()))
    except OSError:
        pass
    return frozenset((machine,))


def _features_of_macos() -> list[str]:
    """The features that macOS reports for an x86-64 processor, in lower case.

    Those in KINDS have the same names in Linux."""
    keys = ("machdep.cpu.features", "machdep.cpu.leaf7_features")
    try:
        done = subprocess.run(["sysctl", "-n", *keys], capture_output=True, check=False, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.decode("utf-8", "replace").lower().split()
