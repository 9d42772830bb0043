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


@pytest.fixture(scope="session")
def native() -> ctypes.CDLL:
    """The training library of this machine, from a cache that outlives the tests."""
    library.find.cache_clear()
    found = library.find()
    if found.library is None:
        pytest.skip(f"no C passes on this machine: {found.reason}")
    return found.library


@pytest.fixture(scope="session")
def without_tiles(native: ctypes.CDLL, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The training library of a processor that has AVX512-BF16 but no AMX tiles."""
    if not native.compiled_with_amx():
        pytest.skip("this machine has no tiles, so the C library does not use them anyway")
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
"""More compiler flags, which build the C decoder of other processors."""


@pytest.fixture(scope="session", params=list(DECODERS))
def decoding(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ctypes.CDLL:
    """The sampling library, built with each of DECODERS."""
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
