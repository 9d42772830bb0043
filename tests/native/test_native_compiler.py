"""The search for a C compiler: $CC, gcc, cc, and the Python package ziglang."""

from __future__ import annotations

import importlib.util
import platform
import sys
from pathlib import Path

import pytest

from gptcli.native import library
from gptcli.native.compiler import NONE, Compiler, find_compiler
from gptcli.native.library import SAMPLING, TRAINING, TRAINING_FLOAT32

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the C libraries need Linux")

REAL_ZIG = importlib.util.find_spec("ziglang")


def program(path: Path, script: str = "") -> Path:
    """A program that runs a shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a compiler. Programs are looked up in tmp_path/bin only."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not Path(p, "ziglang").exists()])
    importlib.invalidate_caches()


@pytest.fixture
def zig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of zig in a package ziglang. An import of this package would fail."""
    path = program(tmp_path / "site" / "ziglang" / "zig")
    (path.parent / "__init__.py").write_text("raise RuntimeError", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return path


def test_other_compilers_come_before_zig(
    zig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_compiler() == Compiler((str(zig), "cc"), is_zig=True)
    assert "ziglang" not in sys.modules
    cc = program(tmp_path / "bin" / "cc")
    assert find_compiler() == Compiler((str(cc),))
    gcc = program(tmp_path / "bin" / "gcc")
    assert find_compiler() == Compiler((str(gcc),))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CC", " ~/clang  -m64 ")
    assert find_compiler() == Compiler((str(tmp_path / "clang"), "-m64"))


def test_a_folder_with_a_space_is_no_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gcc = program(tmp_path / "my programs" / "gcc")
    monkeypatch.setenv("PATH", str(gcc.parent))
    assert find_compiler() == Compiler((str(gcc),))


@pytest.mark.parametrize("lacks", ["package", "program", "permission"])
def test_there_may_be_no_compiler(lacks: str, zig: Path) -> None:
    if lacks == "permission":
        zig.chmod(0o644)
    else:
        zig.unlink()
    if lacks == "package":
        (zig.parent / "__init__.py").unlink()
        zig.parent.rmdir()
    assert find_compiler() is None


@pytest.mark.parametrize("has_tools", [True, False])
def test_macos_without_its_tools_has_no_compiler(
    has_tools: bool, zig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "bin" / "xcode-select", f"exit {0 if has_tools else 2}")
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    expected = Compiler(("/usr/bin/gcc",)) if has_tools else Compiler((str(zig), "cc"), is_zig=True)
    assert find_compiler() == expected


@pytest.fixture
def new_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a new cache folder. The process forgets which library it found before."""
    monkeypatch.setenv("GPTCLI_CACHE", str(tmp_path / "cache"))
    library.find.cache_clear()
    return tmp_path / "cache"


def test_zig_builds_a_library(
    zig: Path, new_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("needs x86-64")
    monkeypatch.setenv("GPTCLI_CPU", "sse2")
    script = f'echo "$@" > {tmp_path}/words; env > {tmp_path}/variables; exit 1'
    program(zig, script)
    found = library.find(SAMPLING)
    assert found.reason == "the C compiler failed: without a message"
    words = (tmp_path / "words").read_text("utf-8").split()
    assert words[0] == "cc"
    assert "-march=x86_64" in words
    assert not [word for word in words if word.startswith("-march=x86-64")]
    variables = dict(
        line.split("=", 1) for line in (tmp_path / "variables").read_text("utf-8").splitlines()
        if line.startswith("ZIG_")
    )  # fmt: skip
    kept = str(new_cache / "native" / "zig")
    assert variables == {"ZIG_GLOBAL_CACHE_DIR": kept, "ZIG_LOCAL_CACHE_DIR": kept}
    library.find.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [None, "sse2"])
def test_the_real_zig_builds_each_library(
    kind: str | None, new_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if REAL_ZIG is None or REAL_ZIG.origin is None:
        pytest.skip("the package ziglang (101 MB) is not installed")
    if kind is not None:
        if platform.machine() != "x86_64":
            pytest.skip("needs x86-64")
        monkeypatch.setenv("GPTCLI_CPU", kind)
    monkeypatch.syspath_prepend(str(Path(REAL_ZIG.origin).parents[1]))
    for source in (SAMPLING, TRAINING_FLOAT32, TRAINING):
        found = library.find(source)
        assert found.library is not None or "processor" in found.reason, found.reason
    library.find.cache_clear()
    assert (new_cache / "native" / "zig").is_dir()


def test_the_message_names_the_package(new_cache: Path) -> None:
    assert library.find(SAMPLING) == library.Found(None, NONE, user_can_fix=True)
    assert "`pip install ziglang`" in NONE
    library.find.cache_clear()
