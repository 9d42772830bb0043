"""What the live view shows besides the events of a run: keys, memory, and use of the machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from rich.text import Text

from gptcli.events import CheckpointSaved, Event, ExtraEvaluation, SampleDrawn, StepDone
from gptcli.view.glyphs import LABEL, Glyphs
from gptcli.view.run_status import RunStatus

KEYS = {
    "s": ("sample", "sampling", "write a sample now"),
    "e": ("evaluate", "evaluating", "evaluate now; does not count as an evaluation of the run"),
    "c": ("checkpoint", "saving", "save a checkpoint now"),
    "q": (
        "save and quit",
        "quitting",
        "finish the step, save and quit; --resume continues the run",
    ),
    "?": ("help", "help", "show or hide this help"),
}
"""For each key: the name of its action, the word while the action is pending, and the help."""

_NUMBERS = {
    "loss": "loss on the newest batch in nats per token; lower is better",
    "val loss": "loss on text kept out of training; if it rises, the model overfits",
    "lr": "the learning rate: how far each step moves the weights",
    "norm": "norm of the gradient before clipping; a jump often means an unusual batch",
    "of peak": "share of the speed that this machine reached in matrix products",
}
_STEPS_OF_A_WISH = 2  # after more steps, a key other than q no longer counts as pending


@dataclass
class LiveState:
    """The keys that were pressed, and how much of the machine the run uses."""

    has_keys: bool = False
    peak_flops: float | None = None
    memory_held: Callable[[], int | None] = lambda: None
    """A function that returns how many bytes of memory the run holds now."""
    shows_help: bool = False
    pending: dict[str, int] = field(default_factory=dict)
    """For each pressed key whose work is not done: the number of steps since it was pressed."""

    def press(self, key: str) -> None:
        """Take in a key that was pressed."""
        if key == "?":
            self.shows_help = not self.shows_help
        elif key in KEYS:
            self.pending[key] = 0

    def absorb(self, event: Event) -> None:
        """Take in an event, and forget the keys whose work is done."""
        if not self.pending:
            return
        done = {SampleDrawn: "s", ExtraEvaluation: "e", CheckpointSaved: "c"}.get(type(event))
        if done is not None:
            self.pending.pop(done, None)
        elif isinstance(event, StepDone):
            counts = {key: steps + 1 for key, steps in self.pending.items()}
            self.pending = {
                key: n for key, n in counts.items() if n <= _STEPS_OF_A_WISH or key == "q"
            }

    def share_of_peak(self, status: RunStatus) -> float | None:
        """The run's operations per second as a share of the machine's peak; None if unknown."""
        if status.step is None or status.started is None or not self.peak_flops:
            return None
        per_token = status.started.flops_per_token
        speed = status.step.tokens_per_second
        # Both speeds are measured, so without `min` the share could exceed 1.
        return min(1.0, per_token * speed / self.peak_flops) if per_token else None


def key_line(state: LiveState, width: int) -> Text:
    """One line with the keys and their actions. A pending action is bold."""
    line = Text(" ")
    for key, (name, doing, _) in KEYS.items():
        busy = key in state.pending
        word = doing if busy else name
        if key == "?" and state.shows_help:
            word = "close help"
        part = Text.assemble((key, "bold"), " ", (word, "bold" if busy else LABEL), "   ")
        if line.cell_len + part.cell_len - 3 > width:
            break
        line.append_text(part)
    line.rstrip()
    return line


def help_lines(width: int, height: int, glyphs: Glyphs) -> list[Text]:
    """The help: what each key does and what the numbers mean, in at most `height` lines."""
    keys = [Text.assemble("   ", (f"{key:<8} ", "bold"), what) for key, (*_, what) in KEYS.items()]
    numbers = [
        Text.assemble("   ", (f"{name:<8} ", "bold"), what) for name, what in _NUMBERS.items()
    ]
    lines = [Text(" keys", style=LABEL), *keys, Text(), Text(" numbers", style=LABEL), *numbers]
    if len(lines) > height:
        lines = [*keys, *numbers]
    return lines[: max(0, height)]
