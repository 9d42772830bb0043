"""Finds a C compiler for the C libraries: $CC, gcc, cc, or the Python package ziglang.

The package ziglang (the extra `compiler`) contains a complete C compiler for Linux and macOS. It is
used only if there is no other compiler.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

NONE = "there is no C compiler (`gcc` or `cc`); `pip install ziglang` installs one"
"""The reason in error messages if `find_compiler` returns None."""

# macOS has these two programs even if no compiler is installed. Then each of them only offers to
# install one.
_APPLES = ("/usr/bin/gcc", "/usr/bin/cc")


@dataclass(frozen=True)
class Compiler:
    """A C compiler."""

    words: tuple[str, ...]
    """The command without its flags."""
    is_zig: bool = False

    def flag(self, flag: str) -> str:
        """The gcc flag `flag`, as this compiler spells it.

        Zig writes names of processors with `_`."""
        if self.is_zig and flag.startswith("-march="):
            return "-march=" + flag.removeprefix("-march=").replace("-", "_")
        return flag

    def environment(self, folder: Path) -> dict[str, str]:
        """The environment variables that the compiler needs.

        Zig keeps its own files in `folder`/zig."""
        if not self.is_zig:
            return {}
        cache = str(folder / "zig")
        return {"ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}


def find_compiler() -> Compiler | None:
    """The compiler: $CC, else gcc, else cc, else zig from the package ziglang, else None."""
    if named := os.environ.get("CC", "").split():
        return Compiler(tuple(os.path.expanduser(word) for word in named))  # noqa: PTH111
    for name in ("gcc", "cc"):
        if (path := shutil.which(name)) and not _only_offers_to_install(path):
            return Compiler((path,))
    zig = _zig()
    return None if zig is None else Compiler((str(zig), "cc"), is_zig=True)


def _only_offers_to_install(path: str) -> bool:
    """Whether `path` is the `gcc` or `cc` of a macOS without Apple's developer tools."""
    if sys.platform == "darwin" and path in _APPLES:
        words = ["xcode-select", "-p"]  # prints the folder of the tools, or fails
        try:
            return (
                subprocess.run(words, capture_output=True, check=False, timeout=5).returncode != 0
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
    return False


def _zig() -> Path | None:
    """The program `zig` in the package ziglang, or None if the package is not installed.

    Finds the package without importing it."""
    try:
        found = importlib.util.find_spec("ziglang")
    except (ImportError, ValueError):
        return None
    for folder in (found and found.submodule_search_locations) or ():
        path = Path(folder) / "zig"
        if os.access(path, os.X_OK) and path.is_file():
            return path
    return None
