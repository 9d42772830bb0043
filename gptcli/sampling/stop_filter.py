"""Finds stop strings that span several tokens; holds back a possible beginning of a stop string."""

from __future__ import annotations

from collections.abc import Sequence


class StopFilter:
    """Returns generated text, but holds back a possible beginning of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Add `text`; return what can be shown now. Drops a stop string and all text after it."""
        if self.stopped:
            return ""
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            ready, self._held = self._held[: min(found)], ""
            return ready
        keep = max(
            (
                n
                for stop in self._stops
                for n in range(1, len(stop))
                if self._held.endswith(stop[:n])
            ),
            default=0,
        )
        cut = len(self._held) - keep
        ready, self._held = self._held[:cut], self._held[cut:]
        return ready

    def flush(self) -> str:
        """Return the text that was held back. Call this method at the end of the text."""
        ready, self._held = self._held, ""
        return ready
