"""The C libraries, with and without AMX tiles; tests are skipped if one cannot be built."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from gptcli.native import library
from tests.conftest import Once


def compiled(once: Once, source: library.Source, flags: tuple[str, ...]) -> Path:
    """A C library compiled with other flags, by one of the workers."""

    def build(folder: Path) -> None:
        file = library._HERE / source.file
        compiler = (os.environ.get("CC") or shutil.which("gcc") or "cc").split()
        words = [*compiler, *library._FLAGS, *flags, "-o", folder / "library.so", file, "-lm"]
        subprocess.run(words, check=True)

    name = "".join(c if c.isalnum() else "-" for c in "".join(flags))
    return once(f"{source.name}{name}", build) / "library.so"


@pytest.fixture(scope="session")
def native() -> ctypes.CDLL:
    """The training library of this machine, from a cache that outlives the tests."""
    library.find.cache_clear()
    found = library.find()
    if found.library is None:
        assert "the C compiler failed" not in found.reason, found.reason
        pytest.skip(f"no C passes on this machine: {found.reason}")
    return found.library


@pytest.fixture(scope="session")
def without_tiles(native: ctypes.CDLL, once: Once) -> ctypes.CDLL:
    """The training library of a processor that has AVX512-BF16 but no AMX tiles."""
    if not native.compiled_with_amx():
        pytest.skip("this machine has no tiles, so the C library does not use them anyway")
    off = ("-mno-amx-tile", "-mno-amx-bf16")
    built = library._load(library.TRAINING, compiled(once, library.TRAINING, off))
    assert not built.compiled_with_amx()
    return built


DECODERS = {
    "as it is": (),
    "without tiles": ("-mno-amx-tile", "-mno-amx-bf16"),
    "without bfloat16": ("-march=x86-64-v3",),
    "without vectors": ("-march=x86-64",),
}
"""More compiler flags, which build the C decoder of other processors."""

IN_MAKE_TEST = ("as it is", "without vectors")
"""Compiling the others takes 8 seconds each."""


@pytest.fixture(
    scope="session",
    params=[
        pytest.param(name, marks=[] if name in IN_MAKE_TEST else pytest.mark.slow)
        for name in DECODERS
    ],
)
def decoding(request: pytest.FixtureRequest, once: Once) -> ctypes.CDLL:
    """The sampling library, built with each of DECODERS."""
    found = library.find(library.SAMPLING)
    if found.library is None:
        assert "the C compiler failed" not in found.reason, found.reason
        pytest.skip(f"no C decoder on this machine: {found.reason}")
    off = DECODERS[request.param]
    if not off:
        return found.library
    if platform.machine() != "x86_64":
        pytest.skip("another family of processors")
    return library._load(library.SAMPLING, compiled(once, library.SAMPLING, (*off, "-w")))
