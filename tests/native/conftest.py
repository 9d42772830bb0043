"""The C library, as it is used here and without tiles; what cannot be had skips its tests."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from gptcli.native import library


@pytest.fixture(scope="session")
def native() -> ctypes.CDLL:
    """The C library of this machine, in a cache that stays: other tests found it in theirs."""
    library.find.cache_clear()
    found = library.find()
    if found.library is None:
        pytest.skip(f"no C passes on this machine: {found.reason}")
    return found.library


@pytest.fixture(scope="session")
def without_tiles(native: ctypes.CDLL, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The C library as machines have it whose processors know AVX512-BF16 but no tiles."""
    if not native.compiled_with_amx():
        pytest.skip("no tiles on this machine: the C library is without them as it is")
    path = tmp_path_factory.mktemp("without-tiles") / "gpt.so"
    source = Path(library.__file__).with_name("gpt.c")
    off = ("-mno-amx-tile", "-mno-amx-bf16")
    compiler = (os.environ.get("CC") or shutil.which("gcc") or "cc").split()
    subprocess.run([*compiler, *library._FLAGS, *off, "-o", path, source, "-lm"], check=True)
    built = library._load(library.TRAINING, path)
    assert not built.compiled_with_amx()
    return built


DECODERS = {
    "as it is": (),
    "without tiles": ("-mno-amx-tile", "-mno-amx-bf16"),
    "without bfloat16": ("-march=x86-64-v3",),
    "without vectors": ("-march=x86-64",),
}
"""The C decoder as other processors have it, by what the compiler is told beyond the usual."""


@pytest.fixture(scope="session", params=list(DECODERS))
def decoding(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ctypes.CDLL:
    """The C library of sampling."""
    found = library.find(library.SAMPLING)
    if found.library is None:
        pytest.skip(f"no C decoder on this machine: {found.reason}")
    off = DECODERS[request.param]
    if not off:
        return found.library
    if platform.machine() != "x86_64":
        pytest.skip("another family of processors")
    path = tmp_path_factory.mktemp("decoder") / "decode.so"
    source = Path(library.__file__).with_name("decode.c")
    compiler = (os.environ.get("CC") or shutil.which("gcc") or "cc").split()
    subprocess.run([*compiler, *library._FLAGS, *off, "-w", "-o", path, source, "-lm"], check=True)
    return library._load(library.SAMPLING, path)
