"""Uses the user's sampling functions (--sampler) to choose tokens and to stop at stop strings.

The user's `next_token` gets the logits of one text, in float64. The engine still computes the
logits, so a correct sampler gives the same text as the builtin sampling.
"""

from __future__ import annotations

import contextlib
import operator
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptcli.errors import GptcliError
from gptcli.files.paths import shell_word
from gptcli.sampling.next_token import SamplingParams, is_greedy, second_number
from gptcli.sampling.stop_filter import StopFilter


@dataclass(frozen=True)
class UserSampler:
    """The user's sampling functions.

    `file` is the file's name for messages. `path` is the file that Python runs.

    next_token(logits, seen_ids, u, t, k, p, m, penalty) returns an id. cut_at_stop(text, stops)
    returns (show, hold, stopped). `cut_at_stop` is None if the file does not define it."""

    file: str
    path: Path
    next_token: Callable[..., Any]
    cut_at_stop: Callable[..., Any] | None = None

    def choose(
        self,
        logits: Tensor,
        seen_ids: Sequence[int],
        params: SamplingParams,
        uniform: Tensor,
        allowed: Tensor | None = None,
    ) -> int:
        """The next token of one text: logits (V,), its ids, uniform float64 () -> an id.

        If `allowed`, bool (V,), forbids the id, the user's function chooses again, as in
        choose_valid_token. This time, the logits of all forbidden ids are -inf.

        Raises GptcliError if the user's function fails or does not return an id."""
        first = self._ask(logits, seen_ids, params, uniform)
        if allowed is None or allowed[first]:
            return first
        valid = logits.masked_fill(~allowed, float("-inf"))
        return self._ask(valid, seen_ids, params, second_number(uniform))

    def _ask(
        self, logits: Tensor, seen_ids: Sequence[int], params: SamplingParams, uniform: Tensor
    ) -> int:
        size = len(logits)
        settings = (
            0.0 if is_greedy(params) else params.temperature,
            size if params.top_k is None else params.top_k,
            1.0 if params.top_p is None else params.top_p,
            0.0 if params.min_p is None else params.min_p,
            params.repetition_penalty,
        )
        given = logits.detach().to("cpu", torch.float64, copy=True)
        found = self._call("next_token", given, list(seen_ids), float(uniform), *settings)
        try:
            value: Any = found.item() if isinstance(found, Tensor) else found
            token = operator.index(value)
        except (TypeError, ValueError, RuntimeError):
            raise self._unusable(f"its next_token returned {_short(found)}, not an id") from None
        if not 0 <= token < size:
            raise self._unusable(f"its next_token returned {token}; ids go from 0 to {size - 1}")
        return token

    def stop_filter(self, stops: Sequence[str]) -> StopFilter:
        """A StopFilter that calls cut_at_stop; without `stops`, one that lets all text pass.

        Raises GptcliError if there are `stops` and the user's file lacks cut_at_stop."""
        if not stops:
            return StopFilter(())
        if self.cut_at_stop is None:
            raise self._unusable("--stop needs its function `cut_at_stop`, which is missing")
        return _UserStopFilter(self, stops)

    def cut(self, text: str, stops: Sequence[str]) -> tuple[str, str, bool]:
        """Return (show, hold, stopped) from the user's cut_at_stop.

        Raises GptcliError if the user's function fails or returns anything else."""
        found = self._call("cut_at_stop", text, list(stops))
        try:
            show, hold, stopped = found
        except (TypeError, ValueError):
            show = found
        else:
            show, hold = show or "", hold or ""
            if isinstance(show, str) and isinstance(hold, str):
                return show, hold, bool(stopped)
        raise self._unusable(f"its cut_at_stop returned {_short(found)}, not (show, hold, stopped)")

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call the user's function and return its result. What it prints goes to stderr."""
        try:
            with contextlib.redirect_stdout(sys.stderr), torch.no_grad():
                return getattr(self, name)(*arguments)
        except (Exception, SystemExit) as error:
            words = " ".join(str(error).split())[:200]
            what = type(error).__name__ + (f": {words}" if words else "")
            frames = traceback.extract_tb(error.__traceback__)
            line = next((f.lineno for f in reversed(frames) if f.filename == str(self.path)), None)
            where = "" if line is None else f", at line {line}"
            raise self._unusable(f"its {name} raises {what}{where}") from error

    def _unusable(self, what: str) -> GptcliError:
        return GptcliError(
            f"your own sampler {self.file} cannot be used: {what}",
            f"gptcli check-sampling {shell_word(self.file)} explains more",
            exit_code=1,
        )


class _UserStopFilter(StopFilter):
    """A StopFilter in which the user's function decides what is shown and what is held back."""

    def __init__(self, sampler: UserSampler, stops: Sequence[str]) -> None:
        super().__init__(stops)
        self._sampler, self._all = sampler, list(stops)

    def push(self, text: str) -> str:
        if self.stopped:
            return ""
        show, self._held, self.stopped = self._sampler.cut(self._held + text, self._all)
        if self.stopped:
            self._held = ""
        return show


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
