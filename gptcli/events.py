"""The events of a training run: plain objects that gptcli.training.loop yields.

The loop knows nothing about screens or log files. The views, the journal and the tests read these
events.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

Stopped = Literal["done", "target", "patience", "interrupted", "diverged"]


@dataclass(frozen=True)
class RunStarted:
    """The first event of a run, before its first step. It has the facts for the headline."""

    run: Path
    source: str
    tokenizer: str  # "char", "bpe", ...
    vocab_size: int
    arch: str
    parameters: int
    parameters_without_embeddings: int
    train_tokens: int
    val_tokens: int
    max_steps: int  # as planned at the start; Replanned events change it
    tokens_per_step: int
    device: str  # "cpu (2 threads)", "cuda (NVIDIA H200)"
    dtype: str
    compiled: bool
    resumed_from: int | None
    flops_per_token: float = 0.0  # operations per token in training; 0: unknown
    adapter_parameters: int | None = None  # how many parameters LoRA trains; None: no LoRA


@dataclass(frozen=True)
class StepDone:
    """Comes after every step. metrics.jsonl records only the steps that are `logged`."""

    step: int
    tokens: int  # number of tokens that the run has read so far
    seconds: float  # of the run since step 0: with evaluations, but without interruptions
    loss: float  # of this step's batch, in nats per token
    learning_rate: float
    grad_norm: float  # before clipping
    tokens_per_second: float  # since the previous logged step; counts only the time of steps
    logged: bool
    part_norms: tuple[float, ...] = ()  # gradient norms: embeddings, each block, rest; if logged


@dataclass(frozen=True)
class Evaluated:
    """Comes after an evaluation of the whole validation split."""

    step: int
    tokens: int
    seconds: float
    val_loss: float  # nats per token
    best: bool  # whether val_loss is the lowest so far
    by_text: tuple[tuple[str, float], ...] = ()  # for a mixture: name and loss of each text


@dataclass(frozen=True)
class ExtraEvaluation:
    """Comes after an evaluation that the user asked for by pressing a key.

    This evaluation has no effect on the run: not on the best loss, and not on the rules that stop
    the run (patience, stop_at_val_loss). metrics.jsonl does not record it."""

    step: int
    val_loss: float  # nats per token


@dataclass(frozen=True)
class LookedInside:
    """Comes after an evaluation, with the token losses and attention maps of a validation passage.

    The maps cover only the first tokens of the passage. `maps` is () if the user wrote the
    attention or the block. Only the journal uses this event: it records the event for reports."""

    step: int
    ids: tuple[int, ...]  # the tokens of the passage
    losses: tuple[float, ...]  # in nats, of each token except the first
    maps: tuple[tuple[bytes, ...], ...]  # [layer][head]: lower triangle; 255 is the weight 1


@dataclass(frozen=True)
class Replanned:
    """Comes when gptcli has changed the number of steps, so that the run ends in time."""

    step: int  # the last step before the change
    max_steps: int  # the new number of steps of the run
    why: str  # such as "the machine is slower than planned"


@dataclass(frozen=True)
class CheckpointSaved:
    """Comes when a checkpoint is completely on the disk."""

    step: int
    path: Path


@dataclass(frozen=True)
class SampleDrawn:
    """Comes after a sample: a text that the model wrote at this step."""

    step: int
    prompt: str
    text: str  # the continuation


@dataclass(frozen=True)
class Notice:
    """A message for the user, of one line.

    `short` says the same in a few words, and the live view keeps showing it. It is set only for a
    message that stays important for some time."""

    message: str
    short: str = ""


@dataclass(frozen=True)
class Finished:
    """The last event of a run, with its results."""

    step: int
    tokens: int
    seconds: float
    stopped: Stopped
    train_loss: float | None  # loss of the last step
    val_loss: float | None  # loss of the last evaluation
    best_val_loss: float | None
    best_step: int | None
    diagnosis: str | None = None  # the cause, if stopped is "diverged"
    hint: str | None = None
    run: Path | None = None  # None if unknown, for example in `gptcli show`
    first_val_loss: float | None = None  # loss before the first step of a fine-tuning


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
