"""The C code compiles without warnings for every kind of processor.

Newer compilers refuse what older ones only warn about, such as a function that no included header
declares. gptcli would then train and sample without the C libraries.
"""

from __future__ import annotations

import platform
import shutil
import subprocess

import pytest

from gptcli.native import library
from gptcli.processor import KINDS, features_and_flags

CROSS_COMPILERS = {"x86_64": "x86_64-linux-gnu-gcc", "aarch64": "aarch64-linux-gnu-gcc"}

BUILDS = [
    (kind, source)
    for kind in KINDS
    for source in (library.TRAINING, library.TRAINING_FLOAT32, library.SAMPLING)
    if features_and_flags(kind).features >= source.required_features
]


@pytest.mark.parametrize(
    ("kind", "source"), BUILDS, ids=[f"{kind}-{source.name}" for kind, source in BUILDS]
)
def test_no_warnings(kind: str, source: library.Source) -> None:
    machine = KINDS[kind].machine
    compiler = "gcc" if platform.machine() == machine else CROSS_COMPILERS[machine]
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    # without optimisation, gcc warns that it cannot inline everything
    flags = ("-std=gnu11", "-pthread", *source.flags, *features_and_flags(kind).flags)
    words = [compiler, *flags, "-Wall", "-Werror", "-Wno-psabi", "-fsyntax-only"]
    done = subprocess.run(
        [*words, str(library._HERE / source.file)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_bfloat16_libraries_are_among_the_builds() -> None:
    assert ("amx", library.TRAINING) in BUILDS
    assert ("amx", library.SAMPLING) in BUILDS
    assert ("sse2", library.TRAINING) not in BUILDS
