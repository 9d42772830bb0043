"""The times in run.json: when a run was begun or resumed, and when it ended."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any


def now() -> str:
    """The time now, as run.json records it: UTC in the format of ISO 8601."""
    return datetime.now(timezone.utc).isoformat()


def time_in(status: dict[str, Any], key: str) -> datetime | None:
    """A time of run.json, in the local zone; None if it is missing or damaged."""
    try:
        return datetime.fromisoformat(status[key]).astimezone()
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return None
