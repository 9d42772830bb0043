"""Fixtures with the C libraries for several kinds of processors. If a library cannot be built or
loaded, its tests are skipped."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from gptcli.native import library
from gptcli.processor import KINDS, all_features, features_and_flags
from tests.conftest import KEPT_LIBRARIES, Once

EMULATED = Path(__file__).with_name("emulated")
"""The folder of a header immintrin.h that defines the intrinsics of AVX-512, AVX512-BF16 and AMX in
plain C."""


def compiled(
    once: Once, source: library.Source, flags: tuple[str, ...], with_: str | None = None
) -> Path:
    """Compiles a C library with `flags`, and with the compiler `with_` if it is given.

    Returns the path of the compiled library. Only one pytest worker compiles it. The file stays in
    .pytest_cache, where later test runs find it, until the C code, the flags or the compiler's name
    change."""
    file = library._HERE / source.file
    compiler = (with_ or os.environ.get("CC") or shutil.which("gcc") or "cc").split()
    words = [*compiler, *library._FLAGS, *source.flags, *flags]
    content = hashlib.sha256("\n".join(map(str, words)).encode())
    for folder in (library._HERE, EMULATED):
        for path in sorted(folder.rglob("*.[ch]")):
            content.update(path.read_bytes())
    name = f"{source.name}-{content.hexdigest()[:16]}"
    kept = KEPT_LIBRARIES.with_name("other-libraries") / f"{name}.so"

    def build(folder: Path) -> None:
        if kept.exists():
            shutil.copy2(kept, folder / "library.so")
            return
        subprocess.run([*words, "-o", folder / "library.so", file, "-lm"], check=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / "library.so", kept.with_suffix(".new"))
        kept.with_suffix(".new").replace(kept)

    return once(name, build) / "library.so"


def emulated(once: Once, *, amx: bool) -> ctypes.CDLL:
    """The bfloat16 training library with AVX512-BF16, and with AMX if `amx` is true.

    It works on processors without these instructions, because plain C emulates them."""
    kinds = ["avx512", "avx512_bf16", *(["amx"] if amx else [])]
    names = {name.upper() for kind in kinds for name in KINDS[kind].features}
    macros = [f"-D__{name.replace('AVX512_', 'AVX512')}__" for name in sorted(names)]
    flags = ("-O1", "-w", *macros, f"-I{EMULATED}")
    return library._load(library.TRAINING, compiled(once, library.TRAINING, flags))


def of_kind(once: Once, source: library.Source, kind: str) -> ctypes.CDLL:
    """The library `source`, compiled for processors of `kind` (a key of KINDS).

    Skips the test if this processor lacks a feature that `kind` needs."""
    here, asked = all_features(), features_and_flags(kind)
    if here is None or not here >= asked.features:
        pytest.skip(f"this processor is not {kind}")
    quick = ("-O1",) if kind == "sse2" else ()  # with -O1, compiling takes half the time
    return library._load(source, compiled(once, source, (*asked.flags, *quick, "-w")))


def found_or_skipped(source: library.Source) -> ctypes.CDLL:
    """The library that gptcli would compile on this machine. Later test runs find it in a cache.

    Skips the test if there is no library."""
    library.find.cache_clear()
    found = library.find(source)
    if found.library is None:
        assert "the C compiler failed" not in found.reason, found.reason
        pytest.skip(f"no C passes on this machine: {found.reason}")
    return found.library


def has_bf16() -> bool:
    """Whether this processor has instructions that multiply bfloat16 numbers."""
    return (all_features() or frozenset()) >= library.TRAINING.required_features


@pytest.fixture(scope="session")
def native_float32() -> ctypes.CDLL:
    """The float32 training library, compiled for this machine's processor."""
    return found_or_skipped(library.TRAINING_FLOAT32)


@pytest.fixture(scope="session", params=["float32", "bfloat16"])
def native(request: pytest.FixtureRequest, once: Once) -> ctypes.CDLL:
    """The training library in float32 or in bfloat16: each test runs once with each of the two.

    On a processor without bfloat16 instructions, plain C emulates them."""
    if request.param == "float32":
        return found_or_skipped(library.TRAINING_FLOAT32)
    return found_or_skipped(library.TRAINING) if has_bf16() else emulated(once, amx=False)


OTHERS = {
    "float32, sse2": ("float32", "sse2"),
    "float32, avx2": ("float32", "avx2"),
    "float32, clang": ("float32", "clang"),
    "bfloat16, emulated AMX": ("bfloat16", "amx"),
    "bfloat16, emulated without AMX": ("bfloat16", "avx512_bf16"),
}
"""Builds of the training library for other processors or with another compiler: name -> (dtype,
kind of processor or "clang")."""

_SLOW_OTHERS = tuple(name for name in OTHERS if name != "float32, sse2")
"""The builds that only slow tests use."""


@pytest.fixture(
    scope="session",
    params=[
        pytest.param(name, marks=[pytest.mark.slow] if name in _SLOW_OTHERS else [])
        for name in OTHERS
    ],
)
def another_native(request: pytest.FixtureRequest, once: Once) -> ctypes.CDLL:
    """The training library in one of the builds OTHERS: each test runs once with each build."""
    dtype, kind = OTHERS[request.param]
    if kind == "clang":
        if shutil.which("clang") is None:
            pytest.skip("clang is not installed")
        source, flags = library.TRAINING_FLOAT32, ("-march=native", "-w")
        return library._load(source, compiled(once, source, flags, with_="clang"))
    if dtype == "float32":
        return of_kind(once, library.TRAINING_FLOAT32, kind)
    built = emulated(once, amx=kind == "amx")
    assert bool(built.compiled_with_amx()) == (kind == "amx")
    return built


@pytest.fixture
def native_dtype(native: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """The dtype in which the library `native` computes.

    A training in this dtype uses the library `native`."""
    if native.number_bytes() == 4:
        return torch.float32
    find = library.find

    def find_emulated(source: library.Source) -> library.Found:
        return library.Found(native, "") if source is library.TRAINING else find(source)

    monkeypatch.setattr(library, "find", find_emulated)
    monkeypatch.setattr("gptcli.training.other_machine.has_quick_bfloat16", lambda _: True)
    return torch.bfloat16


DECODERS = {
    "as it is": (),
    "without tiles": ("-mno-amx-tile", "-mno-amx-bf16"),
    "without bfloat16": ("-march=x86-64-v3",),
    "without vectors": ("-march=x86-64",),
}
"""Builds of the C decoder, for this processor and for others: name -> compiler flags."""

IN_MAKE_TEST = ("as it is", "without vectors")
"""The keys of DECODERS that `make test` compiles. Each of the remaining builds takes 8 seconds
more."""


@pytest.fixture(
    scope="session",
    params=[
        pytest.param(name, marks=[] if name in IN_MAKE_TEST else pytest.mark.slow)
        for name in DECODERS
    ],
)
def decoding(request: pytest.FixtureRequest, once: Once) -> ctypes.CDLL:
    """The sampling library in one of the builds DECODERS: each test runs once with each build."""
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
