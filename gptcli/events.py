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
    """Comes before the first step. It has the facts for the headline."""

    run: Path
    source: str
    tokenizer: str  # "char", "bpe", ...
    vocab_size: int
    arch: str
    parameters: int
    parameters_without_embeddings: int
    train_tokens: int
    val_tokens: int
    max_steps: int  # as planned at the start; Replanned changes it
    tokens_per_step: int
    device: str  # "cpu (2 threads)", "cuda (NVIDIA H200)"
    dtype: str
    compiled: bool
    resumed_from: int | None
    flops_per_token: float = 0.0  # of a training step; 0: unknown
    adapter_parameters: int | None = None  # trained by LoRA; None: all parameters are trained


@dataclass(frozen=True)
class StepDone:
    """Comes after every step. metrics.jsonl records only the steps that are `logged`."""

    step: int
    tokens: int  # that the run has trained on so far
    seconds: float  # of training since step 0, without pauses
    loss: float  # nats per token, of this step's batch
    learning_rate: float
    grad_norm: float  # before clipping
    tokens_per_second: float  # since the last logged step, without evaluations
    logged: bool
    part_norms: tuple[float, ...] = ()  # embeddings, each block, rest; only if logged


@dataclass(frozen=True)
class Evaluated:
    """Comes after an evaluation of the whole validation split."""

    step: int
    tokens: int
    seconds: float
    val_loss: float  # nats per token
    best: bool  # whether val_loss is the lowest so far
    by_text: tuple[tuple[str, float], ...] = ()  # of a mixture: each text's name and loss


@dataclass(frozen=True)
class ExtraEvaluation:
    """Comes after an evaluation that the user asked for by a key.

    This evaluation changes nothing in the run: neither the best loss nor patience nor target.
    metrics.jsonl does not hold it."""

    step: int
    val_loss: float  # nats per token


@dataclass(frozen=True)
class LookedInside:
    """Comes after an evaluation: how the network reads a passage of the validation split.

    Only the journal records this event, for reports."""

    step: int
    ids: tuple[int, ...]  # the tokens of the passage
    losses: tuple[float, ...]  # nats, for each token except the first
    maps: tuple[tuple[bytes, ...], ...]  # [layer][head]: lower triangle, 255 is weight 1


@dataclass(frozen=True)
class Replanned:
    """Comes after gptcli planned the number of steps again, to end the run at the promised time."""

    step: int  # the last step before this plan
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

    `short` says the same in a few words. It is set if the message stays important for some time.
    Then the live view keeps showing it."""

    message: str
    short: str = ""


@dataclass(frozen=True)
class Finished:
    """The last event of a run, with its results."""

    step: int
    tokens: int
    seconds: float
    stopped: Stopped
    train_loss: float | None  # of the last step
    val_loss: float | None  # of the last evaluation
    best_val_loss: float | None
    best_step: int | None
    diagnosis: str | None = None  # if stopped is "diverged"
    hint: str | None = None
    run: Path | None = None  # None if unknown, as in `gptcli show`
    first_val_loss: float | None = None  # of a fine-tune, before its first step


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
