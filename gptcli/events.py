"""The events of a training run: plain objects that gptcli.training.loop yields.

The loop knows nothing about screens or log files. The terminal, metrics.jsonl and the tests read
these events.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

Stopped = Literal["done", "target", "patience", "interrupted", "diverged"]


@dataclass(frozen=True)
class RunStarted:
    """Before the first step: the facts for the headline."""

    run: Path
    source: str
    tokenizer: str  # "char", "bpe", ...
    vocab_size: int
    arch: str
    parameters: int
    parameters_without_embeddings: int
    train_tokens: int
    val_tokens: int
    max_steps: int  # as planned at the start; a Replanned can change it
    tokens_per_step: int
    device: str  # "cpu (2 threads)", "cuda (NVIDIA H200)"
    dtype: str
    compiled: bool
    resumed_from: int | None
    flops_per_token: float = 0.0  # of a training step; 0 if it is not known
    adapter_parameters: int | None = None  # trained by LoRA; None: all parameters are trained


@dataclass(frozen=True)
class StepDone:
    """After every step. Steps with `logged` go to metrics.jsonl and to the plain log."""

    step: int
    tokens: int  # trained on so far
    seconds: float  # since step 0, resumed parts included
    loss: float  # nats per token, of this step's batch
    learning_rate: float
    grad_norm: float  # before clipping
    tokens_per_second: float  # since the last logged step, without evaluations
    logged: bool
    part_norms: tuple[float, ...] = ()  # of embeddings, each block, the rest; of logged steps


@dataclass(frozen=True)
class Evaluated:
    """After an evaluation of the whole validation split."""

    step: int
    tokens: int
    seconds: float
    val_loss: float  # nats per token
    best: bool  # the lowest validation loss so far
    by_text: tuple[tuple[str, float], ...] = ()  # of a mixture: each text's name and loss


@dataclass(frozen=True)
class ExtraEvaluation:
    """After an evaluation that the user asked for. The run does not count it: not as its best
    loss, not for its patience or target, and metrics.jsonl does not hold it."""

    step: int
    val_loss: float  # nats per token


@dataclass(frozen=True)
class LookedInside:
    """After an evaluation: how the network reads a passage of the validation split.

    Only the journal gets it, for reports."""

    step: int
    ids: tuple[int, ...]  # the tokens of the passage
    losses: tuple[float, ...]  # nats of each token but the first
    maps: tuple[tuple[bytes, ...], ...]  # layer, head, lower triangle with 255 for a weight of 1


@dataclass(frozen=True)
class Replanned:
    """After the number of steps was planned again, so that the run ends at the promised time."""

    step: int  # done when the plan was made
    max_steps: int  # the new number of steps of the run
    why: str  # "the machine is slower than measured"


@dataclass(frozen=True)
class CheckpointSaved:
    """After a checkpoint is on the disk."""

    step: int
    path: Path


@dataclass(frozen=True)
class SampleDrawn:
    """After a sample: what the model writes at this step."""

    step: int
    prompt: str
    text: str  # the continuation


@dataclass(frozen=True)
class Notice:
    """A message for the user, of one line. `short` says the same in a few words, if it matters
    beyond the moment; the live view keeps that."""

    message: str
    short: str = ""


@dataclass(frozen=True)
class Finished:
    """The last event."""

    step: int
    tokens: int
    seconds: float
    stopped: Stopped
    train_loss: float | None  # of the last step
    val_loss: float | None  # last
    best_val_loss: float | None
    best_step: int | None
    diagnosis: str | None = None  # if stopped is "diverged"
    hint: str | None = None
    run: Path | None = None  # None: unknown, for a run that is only shown
    first_val_loss: float | None = None  # before the first step of a fine-tune


Event: TypeAlias = (
    RunStarted
    | StepDone
    | Evaluated
    | ExtraEvaluation
    | LookedInside
    | Replanned
    | CheckpointSaved
    | SampleDrawn
    | Notice
    | Finished
)
