"""Where what can be made again is kept: prepared texts, the library built for this processor."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """The folder for what gptcli can make again: $GPTCLI_CACHE, or `gptcli` in the place that
    the system has for caches of a user."""
    if chosen := os.environ.get("GPTCLI_CACHE"):
        return Path(chosen).expanduser()
    try:
        return _system_caches() / "gptcli"
    except RuntimeError:  # the user has no home, as in some containers
        return Path(tempfile.gettempdir(), "gptcli")


def _system_caches() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return xdg if xdg.is_absolute() else Path.home() / ".cache"
