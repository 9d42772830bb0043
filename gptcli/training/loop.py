"""The training loop: a generator of events. It knows nothing of screens.

for event in train(setup): ...
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptcli.config import Config
from gptcli.corpus import Batches, Corpus
from gptcli.devices import describe_device, dtype_name
from gptcli.events import (
    Evaluated,
    Event,
    Finished,
    Notice,
    RunStarted,
    SampleDrawn,
    StepDone,
    Stopped,
)
from gptcli.model.gpt import count_parameters
from gptcli.model.user_parts import UserParts
from gptcli.sampling.next_token import SamplingParams
from gptcli.sampling.text import write_one
from gptcli.training import checkpoint
from gptcli.training.loss_spikes import SpikeDetector
from gptcli.training.not_finite import first_not_finite
from gptcli.training.passes import EngineName
from gptcli.training.saving import Saver
from gptcli.training.schedule import lr_at
from gptcli.training.training_state import TrainingState

_SAMPLE_TOKENS = 200


@dataclass(frozen=True)
class Setup:
    """All that a run needs. `config` is resolved: no `auto` but checkpoint_every is left."""

    run: Path
    config: Config
    corpus: Corpus
    device: torch.device
    dtype: torch.dtype
    threads: int
    compile: bool
    engine: EngineName = "torch"
    user_parts: UserParts | None = None
    resume: checkpoint.Checkpoint | None = None
    start_from: dict[str, Tensor] | None = None


def train(
    setup: Setup, should_stop: Callable[[], bool] = lambda: False
) -> Generator[Event, None, None]:
    """Train and yield what happens; the last event is always Finished.

    `should_stop` is asked after every step and between the batches of an evaluation; when it
    says so, the run saves and finishes as "interrupted". A loss or gradient that is not finite
    finishes it as "diverged" before the update. Raises GptcliError where the disk refuses.
    Once it has ended, was closed or has raised, nothing of it touches the run folder any more."""
    loop = _Loop(setup, should_stop)
    try:
        yield from loop.events()
    finally:
        loop.saver.abandon()


class _Loop:
    def __init__(self, setup: Setup, should_stop: Callable[[], bool]) -> None:
        self.setup = setup
        self.should_stop = should_stop
        self.config = setup.config.train
        corpus = setup.corpus
        self.state = TrainingState(
            setup.config.model,
            self.config,
            corpus.tokenizer.vocab_size,
            dtype=setup.dtype,
            device=setup.device,
            user_parts=setup.user_parts,
            weights=setup.resume.model if setup.resume else setup.start_from,
            engine=setup.engine,
            threads=setup.threads,
            compiled=setup.compile,
        )
        if setup.resume:
            self.state.restore(setup.resume)
            # A kill between a checkpoint and its mark is made good.
            best = self.state.progress.best_step
            if best in checkpoint.steps_of(setup.run):
                checkpoint.mark_best(setup.run, best)
        for read in (setup.start_from, setup.resume and setup.resume.model,
                     setup.resume and setup.resume.state):  # fmt: skip
            if read:
                read.clear()  # copied; not to be held twice for the length of a run
        self.progress = self.state.progress
        self.fine_tune = setup.start_from is not None
        self.batches = Batches(
            corpus.train, setup.config.model.block_size, self.config.batch_size, self.config.seed
        )
        self.tokens_per_step = (
            self.config.batch_size * self.config.grad_accum * setup.config.model.block_size
        )
        self.saver = Saver(
            setup.run,
            self.config.keep_checkpoints,
            self.config.checkpoint_every,
            setup.resume.step if setup.resume else None,
        )
        self.spikes = SpikeDetector()
        # Of a learner's parts; the built-in ones have none.
        self.buffers = {name: b.clone() for name, b in self.state.model.named_buffers()}

    # ---- the run -------------------------------------------------------------------------

    def events(self) -> Iterator[Event]:
        yield self.headline()
        self.state.model.train()
        self.started = time.perf_counter() - self.progress.seconds
        if self.fine_tune:
            # A kill in the first minute must not lose where it began.
            yield from self.saver.save_or_raise(self.state, self.meta())
        stopped = yield from self.steps()
        diagnosis = hint = None
        if isinstance(stopped, _Diverged):
            diagnosis, hint = stopped.diagnosis, stopped.hint
            yield from self.saver.collect(wait=True)
        else:
            self.progress.seconds = self.clock()
            yield from self.saver.save_or_raise(self.state, self.meta())
        for name, buffer in self.state.model.named_buffers():
            if not torch.equal(buffer, self.buffers[name]):
                yield Notice(
                    f"the buffer `{name}` of a part of yours has changed; checkpoints keep "
                    "parameters alone: sampled or resumed, it is as its constructor makes it"
                )
        p = self.progress
        yield Finished(
            step=p.step,
            tokens=p.tokens,
            seconds=self.clock(),
            stopped="diverged" if isinstance(stopped, _Diverged) else stopped,
            train_loss=p.train_loss,
            val_loss=p.val_loss,
            best_val_loss=p.best_val_loss,
            best_step=p.best_step,
            diagnosis=diagnosis,
            hint=hint,
        )

    def steps(self) -> Generator[Event, None, Stopped | _Diverged]:
        p, config = self.progress, self.config
        # An evaluation that an interruption cut short is made up for.
        stopped: Stopped | _Diverged | None = yield from self.due_evaluation()
        if stopped is None:  # and so is a sample
            yield from self.due_sample()
        window_start, window_tokens = time.perf_counter(), p.tokens
        while stopped is None and p.step < config.max_steps:
            done = self.one_step()
            if isinstance(done, _Diverged):
                return done
            logged = p.step % int(config.log_every) == 0 or p.step in (1, config.max_steps)
            now = time.perf_counter()
            passed = now - window_start
            speed = (p.tokens - window_tokens) / passed if passed > 0 else 0.0
            yield StepDone(
                p.step, p.tokens, self.clock(), done.loss, done.rate, done.norm, speed, logged
            )
            if (usual := self.spikes.excess(done.loss)) is not None:
                yield self.spike(done.loss, usual)
            if logged:
                window_start, window_tokens = time.perf_counter(), p.tokens
            away = time.perf_counter()
            stopped = yield from self.after_step()
            window_start += time.perf_counter() - away
        return stopped or "done"

    def after_step(self) -> Generator[Event, None, Stopped | _Diverged | None]:
        if self.should_stop():
            return "interrupted"
        yield from self.saver.collect(wait=False)
        stopped: Stopped | _Diverged | None = yield from self.due_evaluation()
        if stopped is None:
            yield from self.due_sample()
        if stopped is None and self.saver.due(self.progress.step):
            yield from self.save()
        return stopped or ("interrupted" if self.should_stop() else None)

    def one_step(self) -> _Step | _Diverged:
        """Forward, backward, clip, update; or the reason why no update was made."""
        p, config, weights = self.progress, self.config, self.state.weights
        rate = lr_at(
            p.step,
            peak=float(config.learning_rate),
            max_steps=config.max_steps,
            warmup_steps=int(config.warmup_steps),
            decay_fraction=config.decay_fraction,
        )
        while True:
            loss = self.backward()
            norm = float(weights.norm())
            if math.isfinite(norm) or p.loss_scale <= 1.0 or not math.isfinite(loss):
                break
            p.loss_scale /= 2.0  # float16: the scaled gradients overflowed; the same step again
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return self.diverged(loss, rate, norm)
        if config.grad_clip > 0:
            weights.clip(norm, config.grad_clip)
        self.state.optimizers.step(rate)
        self.state.passes.publish()
        weights.clear_grads()
        p.step += 1
        p.tokens += self.tokens_per_step
        p.train_loss = loss
        if self.setup.dtype == torch.float16 and p.step % 1000 == 0:
            p.loss_scale *= 2.0
        return _Step(loss, rate, norm)

    def dropout_seed(self) -> int:
        """Dropout's masks are a function of (seed, step), so that a resumed run draws the same."""
        return (self.config.seed * 1_000_003 + self.progress.step) % 2**63

    def backward(self) -> float:
        """Gradients of one step into the masters; returns the mean loss."""
        p, count = self.progress, self.config.grad_accum
        first = p.step * count
        return self.state.passes.gradients(
            (self.batch(first + part) for part in range(count)),
            count,
            self.dropout_seed(),
            p.loss_scale,
        )

    def batch(self, k: int) -> tuple[Tensor, Tensor]:
        idx, targets = self.batches.batch(k)
        device = self.setup.device
        return idx.to(device), targets.to(device)

    def diverged(self, loss: float, rate: float, norm: float) -> _Diverged:
        step = self.progress.step
        count = self.config.grad_accum
        first = step * count
        torch.manual_seed(self.dropout_seed())
        where = first_not_finite(
            self.state.passes.model(), (self.batch(first + i) for i in range(count))
        )
        return _Diverged(
            f"step {step}: the loss is {loss:g} and the gradient norm {norm:g} at learning rate "
            f"{rate:g}; not finite first in {where}; nothing was updated",
            f"try a lower rate, train.learning_rate={rate / 4:.1g}, a longer warm-up, "
            f"train.warmup_steps={max(100, 2 * int(self.config.warmup_steps))}"
            + ("" if self.setup.dtype == torch.float32 else ", or run.dtype=float32"),
        )

    # ---- evaluations, samples, checkpoints -----------------------------------------------

    def due_evaluation(self) -> Generator[Event, None, Stopped | _Diverged | None]:
        """Evaluate where this step is to be evaluated and was not; why to stop, or None."""
        p, config, val = self.progress, self.config, self.setup.corpus.val
        due = p.step > 0 and (p.step % int(config.eval_every) == 0 or p.step == config.max_steps)
        if val is None or not due:
            return None
        if p.evaluated_at == p.step:
            return self.enough()
        loss = self.state.passes.evaluate(val, self.setup.config.model.block_size, self.should_stop)
        if loss is None:
            return "interrupted"
        if not math.isfinite(loss):
            where = first_not_finite(self.state.passes.model(), [self.batch(0)])
            return _Diverged(
                f"step {p.step}: the validation loss is {loss:g}; not finite first in {where}",
                f"try a lower rate, train.learning_rate={float(config.learning_rate) / 4:.1g}",
            )
        p.val_loss, p.evaluated_at = loss, p.step
        best = p.best_val_loss is None or loss < p.best_val_loss
        p.evaluations_without_best = 0 if best else p.evaluations_without_best + 1
        if best:
            p.best_val_loss, p.best_step = loss, p.step
        yield Evaluated(p.step, p.tokens, self.clock(), loss, best)
        if best or self.saver.saved_at == p.step:  # a checkpoint of this step does not know it yet
            yield from self.save()
        return self.enough()

    def enough(self) -> Stopped | None:
        """Why the evaluation of this step ends the run, or None."""
        p, config = self.progress, self.config
        assert p.val_loss is not None
        if config.stop_at_val_loss is not None and p.val_loss <= config.stop_at_val_loss:
            return "target"
        if config.patience is not None and p.evaluations_without_best >= config.patience:
            return "patience"
        return None

    def due_sample(self) -> Iterator[Event]:
        """Draw a sample where one is to be drawn at this step and was not."""
        p, every = self.progress, self.config.sample_every
        if not every or p.step == 0 or p.step % every or p.sampled_at == p.step:
            return
        tokenizer = self.setup.corpus.tokenizer
        text = write_one(
            self.state.passes.model(),
            tokenizer,
            "",
            max_new_tokens=_SAMPLE_TOKENS,
            how=SamplingParams(),
            seed=self.config.seed,
            should_stop=self.should_stop,
        )
        if text is None:  # interrupted
            return
        p.sampled_at = p.step
        yield SampleDrawn(p.step, "", text)
        if self.saver.saved_at == p.step:  # a checkpoint of this step does not know it yet
            yield from self.save()

    def save(self) -> Iterator[Event]:
        """A checkpoint of this moment; the best one is marked, those that are no longer kept go."""
        self.progress.seconds = self.clock()
        yield from self.saver.save(self.state, self.meta())

    def meta(self) -> dict[str, Any]:
        corpus = self.setup.corpus
        user_parts = self.setup.user_parts.names() if self.setup.user_parts else ()
        return {
            "vocab_size": corpus.tokenizer.vocab_size,
            "tokenizer": corpus.tokenizer.fingerprint(),
            "data": corpus.content_key,
            "model": self.setup.config.model.model_dump(),
            "config": self.setup.config.model_dump(),
            "own_attention": "attention" in user_parts,
            "own_parts": list(user_parts),
        }

    # ---- small things --------------------------------------------------------------------

    def spike(self, loss: float, usual: float) -> Event:
        step, run = self.progress.step, shlex.quote(str(self.setup.run))
        return Notice(
            f"step {step}: loss {loss:.4g}, far above the recent {usual:.4g}; "
            f"its batch: gptcli inspect-batch {run} {step}"
        )

    def clock(self) -> float:
        return time.perf_counter() - self.started

    def headline(self) -> Event:
        setup, corpus = self.setup, self.setup.corpus
        count = count_parameters(self.state.model)
        return RunStarted(
            run=setup.run,
            source=setup.config.data.source,
            tokenizer=corpus.tokenizer.kind,
            vocab_size=corpus.tokenizer.vocab_size,
            arch=setup.config.model.arch,
            parameters=count.total,
            parameters_without_embeddings=count.without_embeddings,
            train_tokens=len(corpus.train),
            val_tokens=len(corpus.val) if corpus.val else 0,
            max_steps=self.config.max_steps,
            tokens_per_step=self.tokens_per_step,
            device=describe_device(setup.device, setup.threads),
            dtype=dtype_name(setup.dtype),
            compiled=setup.compile,
            resumed_from=setup.resume.step if setup.resume else None,
        )


@dataclass(frozen=True)
class _Step:
    loss: float
    rate: float
    norm: float


@dataclass(frozen=True)
class _Diverged:
    diagnosis: str
    hint: str
