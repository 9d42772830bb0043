"""The times in run.json: when a run was begun or resumed, and when it ended."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any


def now() -> str:
    """The current time as run.json records it: UTC, in ISO 8601 format."""
    return datetime.now(timezone.utc).isoformat()


def starts_of(status: dict[str, Any]) -> list[dict[str, Any]]:
    """The starts and resumes that run.json lists. Damaged entries are left out.

    Each start has two keys: `at`, its time, and `seconds`, the training time before it."""
    found = status.get("starts")
    return [
        start
        for start in (found if isinstance(found, list) else [])
        if isinstance(start, dict)
        and time_in(start, "at") is not None
        and type(start.get("seconds")) in (int, float)
        and 0 <= start["seconds"] < 1e12
    ]


def time_in(status: dict[str, Any], key: str) -> datetime | None:
    """A time of run.json in the local time zone; None if it is missing or damaged."""
    try:
        return datetime.fromisoformat(status[key]).astimezone()
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return None
