"""Corrects the number of steps of a run with a time limit (`train.minutes`) while it trains.

The machine's speed changes while other programs run. So after every step the loop asks the planner
how many steps fit into the time limit. metrics.jsonl and the checkpoints record every plan. A
resumed run repeats the recorded plans, so that it gets the same weights.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.config import Config
from gptcli.corpus import TokenStore
from gptcli.events import Replanned
from gptcli.files.bounded import read_lines
from gptcli.training.schedule import Plan

SECONDS_AT_END = 1.3
"""The time reserved for the start of Python, the final sample, the last messages and the exit."""
_SPEED_SHARE = 0.08  # the speed is an average over this share of the whole time
# The planner considers a new plan after `_CONSIDER_SHARE` of the remaining time, but not before
# `_CONSIDER_LEAST` seconds have passed. If steps are fast, it also considers one at the step
# `_next_step`.
_CONSIDER_SHARE = 0.08
_CONSIDER_LEAST = 0.2
# A new plan is ignored if it changes the number of steps by one, or by at most this share of the
# remaining steps.
_TOLERANCE = 0.02
# To learn how long an evaluation takes, a run times one early: after at most `_TIMED_AT` steps, on
# at most `_TIMED_TOKENS` tokens.
_TIMED_AT, _TIMED_TOKENS = 5, 8193
_SAVE_SECONDS = 0.1  # the least time that a plan allows for a sample and a save
_MOST_LATE = 0.06  # if the run is late by this share of its whole time, an evaluation stops


@dataclass(frozen=True)
class TimeLimit:
    """When a run must end: `end` and `give_up` are values of time.perf_counter()."""

    end: float
    seconds: float
    """The whole time of the run, including start-up."""

    @property
    def give_up(self) -> float:
        """The time at which a late run stops its evaluation."""
        return self.end + _MOST_LATE * self.seconds


class Planner:
    """Decides when the number of steps changes. `now` is a value of time.perf_counter()."""

    def __init__(
        self, limit: TimeLimit, config: Config, val_tokens: int, most_steps: int | None = None
    ) -> None:
        self.limit = limit
        self._most_steps = most_steps
        self._eval_every = int(config.train.eval_every)
        # A token costs a third as much in evaluation as in training.
        self._val_steps = val_tokens / 3 / config.tokens_per_step
        self._evaluation_seconds: float | None = None
        self._pause_seconds = _SAVE_SECONDS  # of the longest pause for a sample and a save
        self._speed = 0.0  # steps per second
        self._timed = 0.0  # seconds of steps so far
        now = time.perf_counter()
        self._next = now + _CONSIDER_SHARE * max(0.0, limit.end - now)
        # If steps are fast, a plan is also considered after an eighth of the remaining steps.
        self._next_step = 0

    def stepped(self, seconds: float) -> None:
        """Record the time of a step."""
        seconds = max(seconds, 1e-9)
        self._timed += seconds
        window = min(self._timed, max(0.5, _SPEED_SHARE * self.limit.seconds))
        weight = min(1.0, seconds / window)
        self._speed += weight * (1.0 / seconds - self._speed)

    def evaluated(self, seconds: float) -> None:
        """Record the time of an evaluation, and of the save after it if there was one."""
        self._evaluation_seconds = seconds

    def paused(self, seconds: float) -> None:
        """Record the time that a sample and a save took between two steps."""
        self._pause_seconds = max(self._pause_seconds, seconds)

    def max_steps(self, step: int, planned: int, now: float) -> int | None:
        """The new number of steps of a run that has done `step` steps; None to keep `planned`."""
        if now >= self.limit.end:
            return step if planned > step else None
        self._next_step = self._next_step or max(1, planned // 8)
        if (now < self._next and step < self._next_step) or self._speed <= 0.0:
            return None
        left = self.limit.end - now
        self._next = now + max(_CONSIDER_LEAST, _CONSIDER_SHARE * left)
        evaluation = (
            self._val_steps / self._speed
            if self._evaluation_seconds is None
            else self._evaluation_seconds
        )
        each = 1.0 / self._speed + evaluation / self._eval_every
        steps = step + max(0, math.floor((left - evaluation - self._pause_seconds) / each))
        if self._most_steps is not None:
            steps = max(step, min(steps, self._most_steps))
        is_right = abs(steps - planned) <= max(1, _TOLERANCE * (planned - step))
        steps = planned if is_right else steps
        self._next_step = step + max(1, (steps - step) // 8)
        return None if is_right else steps


@dataclass(frozen=True)
class PlanHistory:
    """The plans that a run recorded. A resume needs them."""

    plans: tuple[Plan, ...] = ()
    replay_until: int = 0
    """The last step that metrics.jsonl records."""

    @property
    def max_steps(self) -> int | None:
        """The number of steps of the newest plan; None if there is no plan."""
        return self.plans[-1][1] if self.plans else None

    @staticmethod
    def of(run: Path, config: Config, meta: dict[str, Any], step: int) -> PlanHistory:
        """The history of a run. `step` and `meta` are those of the newest checkpoint.

        Plans up to the checkpoint are in its meta.json. Later plans are in metrics.jsonl."""
        if config.train.minutes is None:
            return PlanHistory()
        recorded, last = recorded_plans(run)
        saved = [(at, steps) for at, steps in meta.get("plans", []) if at <= step]
        later = [plan for plan in recorded if plan[0] > step]
        return PlanHistory(tuple(_in_order([*saved, *later])), last)


NO_PLANS = PlanHistory()


def recorded_plans(run: Path) -> tuple[list[Plan], int]:
    """The plans in a run's metrics.jsonl, and the last step that the file records.

    Returns ([], 0) if the file does not exist or cannot be read."""
    metrics = run / "metrics.jsonl"
    try:
        return _plans(read_lines(metrics, run)) if metrics.is_file() else ([], 0)
    except OSError:
        return [], 0


def _plans(lines: Iterable[bytes]) -> tuple[list[Plan], int]:
    plans: list[Plan] = []
    last = 0
    for line in lines:
        try:
            record = json.loads(line)
            kind, step = record["kind"], record["step"]
            if type(step) is not int:
                continue
            last = max(last, step)
            if kind == "plan" and type(record["max_steps"]) is int:
                plans.append((step, record["max_steps"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return plans, last


def _in_order(plans: Iterable[Plan]) -> list[Plan]:
    """The valid plans.

    A plan is valid if its step is above the step of the previous valid plan, and its max_steps is
    not below its step."""
    found: list[Plan] = []
    for step, max_steps in plans:
        if max_steps >= step and (not found or step > found[-1][0]):
            found.append((step, max_steps))
    return found


def time_left(config: Config, used: float) -> TimeLimit | None:
    """The time limit of a run that resumes after `used` seconds; None if it has no limit."""
    if config.train.minutes is None:
        return None
    seconds = 60.0 * config.train.minutes
    return TimeLimit(time.perf_counter() + max(0.0, seconds - used - SECONDS_AT_END), seconds)


class StepPlan:
    """The number of steps of a run, which can change after every step if it has a time limit."""

    def __init__(
        self,
        config: Config,
        limit: TimeLimit | None,
        history: PlanHistory,
        step: int,
        val_tokens: int,
        most_steps: int | None = None,
    ) -> None:
        self.plans = [plan for plan in history.plans if plan[0] <= step]
        """The plans after the first one (`_first`), in the order of their steps."""
        self._first = config.train.max_steps
        self._recorded = dict(history.plans)
        self._replay_until = history.replay_until
        self._planner = None if limit is None else Planner(limit, config, val_tokens, most_steps)
        self._time_evaluation_at = step + min(_TIMED_AT, max(1, (self.max_steps - step) // 10))

    @property
    def max_steps(self) -> int:
        """The number of steps of the newest plan."""
        return self.plans[-1][1] if self.plans else self._first

    def again(self, step: int) -> Replanned | None:
        """The new plan after `step` steps, from the record or the planner; None to keep the old."""
        planned = self.max_steps
        steps = self._recorded.get(step)
        if steps is None and self._planner is not None and step >= self._replay_until:
            steps = self._planner.max_steps(step, planned, time.perf_counter())
        if steps is None:
            return None
        self.plans.append((step, steps))
        return Replanned(step, steps, _why(planned, steps, step))

    def stepped(self, seconds: float) -> None:
        """Record the time of a step."""
        if self._planner is not None:
            self._planner.stepped(seconds)

    def evaluated(self, seconds: float) -> None:
        """Record the time of an evaluation, and of the save after it if there was one."""
        if self._planner is not None:
            self._planner.evaluated(seconds)

    def time_evaluation(
        self, step: int, val: TokenStore | None, loss_on: Callable[[TokenStore], float | None]
    ) -> None:
        """Evaluate a part of `val` early in the run, to learn the time of an evaluation."""
        if self._planner is None or val is None or step != self._time_evaluation_at:
            return
        part = val.part(0, min(len(val), _TIMED_TOKENS))
        begun = time.perf_counter()
        if loss_on(part) is not None:
            self.evaluated((time.perf_counter() - begun) * len(val) / len(part))

    def paused(self, seconds: float) -> None:
        """Record the time that a sample and a save took between two steps."""
        if self._planner is not None:
            self._planner.paused(seconds)

    def is_far_too_late(self) -> bool:
        """Whether the run is so late that an evaluation is not worth the delay."""
        return self._planner is not None and time.perf_counter() > self._planner.limit.give_up


def _why(planned: int, steps: int, step: int) -> str:
    """The reason for a new plan, for the user."""
    if steps <= step:
        return "the time is over"
    return (
        "the machine is faster than planned"
        if steps > planned
        else "the machine is slower than planned"
    )
