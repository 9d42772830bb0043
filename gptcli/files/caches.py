"""Finds the cache folder ($GPTCLI_CACHE), which holds encoded texts and compiled C libraries."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from gptcli.errors import GptcliError
from gptcli.files.paths import expanded


def cache_folder() -> Path:
    """$GPTCLI_CACHE, or `gptcli` in the system's folder for the user's caches.

    If the user has no home folder, it is `gptcli` in the system's folder for temporary files.
    gptcli can rebuild everything in the cache folder. Raises GptcliError if $GPTCLI_CACHE names the
    home folder of an unknown user."""
    if chosen := os.environ.get("GPTCLI_CACHE"):
        try:
            return expanded(chosen)
        except GptcliError as error:
            raise GptcliError(f"GPTCLI_CACHE: {error.message}", error.hint) from None
    try:
        return _system_caches() / "gptcli"
    except RuntimeError:  # in some containers the user has no home folder
        return Path(tempfile.gettempdir(), "gptcli")


def _system_caches() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    xdg = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME", "")))  # noqa: PTH111
    return xdg if xdg.is_absolute() else Path.home() / ".cache"
