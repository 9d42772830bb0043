"""The training loop: steps, evaluations, samples and checkpoints, as a generator of events.

    for event in train(setup): ...

gptcli.training.step has the mathematics of a step; this file decides what happens between steps.
The loop prints nothing. The command line passes each event to the view and the journal.

First reading: `events`, `steps`, `after_step` and `one_step`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptcli.config import Config
from gptcli.corpus import Batches, Corpus, TokenStore
from gptcli.corpus.device_batches import DeviceBatches
from gptcli.events import Evaluated, Event, Finished, Notice, SampleDrawn, StepDone, Stopped
from gptcli.model.user_parts import UserParts
from gptcli.sampling.next_token import SamplingParams
from gptcli.sampling.text import generate_one
from gptcli.training import checkpoint
from gptcli.training.evaluate import loss_by_text
from gptcli.training.final_sample import final_sample
from gptcli.training.headline import run_started
from gptcli.training.loss_spikes import SpikeDetector, spike_notice
from gptcli.training.passage import Passage
from gptcli.training.passes import EngineName
from gptcli.training.planner import NO_PLANS, PlanHistory, StepPlan, TimeLimit
from gptcli.training.saving import Saver
from gptcli.training.schedule import most_steps
from gptcli.training.step import Diverged, Updated, diverged_in_evaluation, take_step
from gptcli.training.training_state import TrainingState
from gptcli.training.wishes import Wishes, extra_evaluation, no_wishes
from gptcli.training.zero_gradients import ZeroGradients, still

_SAMPLE_TOKENS = 200


@dataclass(frozen=True)
class Setup:
    """Everything that a run needs. In `config`, only documents and checkpoint_every can be auto."""

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
    time_limit: TimeLimit | None = None
    plan_history: PlanHistory = NO_PLANS
    new_state: Callable[..., TrainingState] = TrainingState
    """Builds the state. A test or gptcli.distributed can replace this function."""


def train(
    setup: Setup, should_stop: Callable[[], bool] = lambda: False, wishes: Wishes = no_wishes
) -> Generator[Event, None, None]:
    """Train and yield events; the last event is always Finished.

    The loop calls `should_stop` after every step, between the batches of an evaluation and during a
    sample. If `should_stop` returns True, the run saves a checkpoint and finishes as "interrupted".
    The loop calls `wishes` after every step and fulfils the wishes before the next step. This
    changes no weights. If a loss or gradient is not finite, the run finishes as "diverged" before
    the next update. In float16, if only the gradient is not finite, the run first tries smaller
    loss scales. Raises GptcliError if the last checkpoint, or the first of a fine-tune, cannot be
    written. After the generator has ended, been closed or raised an error, no thread begins to
    change the run's checkpoints."""
    loop = _Loop(setup, should_stop, wishes)
    try:
        yield from loop.events()
    finally:
        loop.saver.abandon()
        loop.batches.close()


class _Loop:
    def __init__(
        self, setup: Setup, should_stop: Callable[[], bool], wishes: Wishes = no_wishes
    ) -> None:
        self.setup, self.should_stop, self.wishes = setup, should_stop, wishes
        self.config = setup.config.train
        corpus = setup.corpus
        self.state = setup.new_state(
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
            # A kill can come between saving and marking the best checkpoint.
            best = self.state.progress.best_step
            if best in checkpoint.steps_of(setup.run):
                checkpoint.mark_best(setup.run, best)
        saved = setup.resume
        for read in (setup.start_from, *((saved.model, saved.state) if saved else ())):
            if read:
                read.clear()  # free the loaded tensors: the model has copies
        self.progress = self.state.progress
        # Only a fine-tune has a checkpoint of step 0.
        self.fine_tune = setup.start_from is not None or (saved is not None and saved.step == 0)
        block_size, size = setup.config.model.block_size, self.config.rows
        self.batches = DeviceBatches(
            Batches(corpus.train, block_size, size, self.config.seed), setup.device
        )
        self.saver = Saver(
            setup.run,
            self.config.keep_checkpoints,
            self.config.checkpoint_every,
            setup.resume.step if setup.resume else None,
        )
        self.spikes = SpikeDetector()
        self.plan = StepPlan(
            setup.config, setup.time_limit, setup.plan_history, self.progress.step,
            len(corpus.val) if corpus.val else 0,
            most_steps(setup.config, corpus.train),
        )  # fmt: skip
        self.passage = Passage(corpus.val, block_size, self.state.passes.model)
        self.zero_gradients = ZeroGradients()
        # Only a user's part can have buffers.
        self.buffers = {name: b.clone() for name, b in self.state.model.named_buffers()}

    # ---- the run -------------------------------------------------------------------------

    def events(self) -> Iterator[Event]:
        """Train; yield all events of the run, from RunStarted to Finished."""
        yield self.headline()
        self.state.model.train()
        self.started = time.perf_counter() - self.progress.seconds
        if self.fine_tune:
            # A run that is killed in its first minute needs the weights that it started from.
            yield from self.saver.save_or_raise(self.state, self.meta())
        stopped = yield from self.steps()
        diagnosis = hint = None
        if isinstance(stopped, Diverged):
            diagnosis, hint = stopped.diagnosis, stopped.hint
            yield from self.saver.collect(wait=True)
        else:
            self.progress.seconds = self.clock()
            yield from self.saver.save_or_raise(self.state, self.meta())
        p, seconds = self.progress, self.clock()
        for name, buffer in self.state.model.named_buffers():
            if not torch.equal(buffer, self.buffers[name]):
                yield Notice(
                    f"your module changed its buffer `{name}`; checkpoints do not save buffers, so "
                    "`sample` and `--resume` start from its initial value"
                )
        if stopped in ("done", "target", "patience"):
            yield from final_sample(
                self.setup.run,
                p,
                config=self.setup.config.model,
                tokenizer=self.setup.corpus.tokenizer,
                user_parts=self.setup.user_parts,
                device=self.setup.device,
                threads=self.setup.threads,
                seed=self.config.seed,
                should_stop=self.should_stop,
            )
        yield Finished(
            step=p.step,
            tokens=p.tokens,
            seconds=seconds,
            stopped="diverged" if isinstance(stopped, Diverged) else stopped,
            train_loss=p.train_loss,
            val_loss=p.val_loss,
            best_val_loss=p.best_val_loss,
            best_step=p.best_step,
            first_val_loss=p.first_val_loss,
            diagnosis=diagnosis,
            hint=hint,
            run=self.setup.run,
        )

    def steps(self) -> Generator[Event, None, Stopped | Diverged]:
        """Do steps until the run ends; return why it stopped."""
        p = self.progress
        # A resumed run may have been interrupted before this step's evaluation or sample.
        stopped: Stopped | Diverged | None = yield from self.evaluate_if_due()
        if stopped is None:
            yield from self.sample_if_due()
        window_start, window_tokens = time.perf_counter(), p.tokens
        while stopped is None and p.step < self.plan.max_steps:
            begun = time.perf_counter()
            done = self.one_step()
            if isinstance(done, Diverged):
                return done
            logged = self.is_logged(p.step)
            now = time.perf_counter()
            self.plan.stepped(now - begun)
            passed = now - window_start
            speed = (p.tokens - window_tokens) / passed if passed > 0 else 0.0
            did = (done.loss, done.rate, done.norm, speed, logged, done.part_norms)
            yield StepDone(p.step, p.tokens, self.clock(), *did)
            if (usual := self.spikes.excess(done.loss)) is not None:
                yield spike_notice(self.setup.run, p.step, done.loss, usual)
            if self.zero_gradients.begin(done.norm):
                yield Notice(still(p.step, self.config.learning_rate))
            if logged:
                window_start, window_tokens = time.perf_counter(), p.tokens
            # Tokens per second leave out the time of evaluations, samples and checkpoints.
            paused = time.perf_counter()
            stopped = yield from self.after_step()
            window_start += time.perf_counter() - paused
        return stopped or "done"

    def after_step(self) -> Generator[Event, None, Stopped | Diverged | None]:
        """Evaluate, sample and save, each if it is due; return why the run must stop, or None."""
        if self.should_stop():
            return "interrupted"
        replanned = self.plan.again(self.progress.step)
        if replanned is not None:
            yield replanned
        self.plan.time_evaluation(self.progress.step, self.setup.corpus.val, self.loss_on)
        yield from self.saver.collect(wait=False)
        stopped: Stopped | Diverged | None = yield from self.evaluate_if_due()
        begun = time.perf_counter()
        if stopped is None:
            yield from self.sample_if_due()
        if stopped is None and self.saver.due(self.progress.step):
            yield from self.save()
        self.plan.paused(time.perf_counter() - begun)
        if stopped is None:
            yield from self.grant_wishes()
        return stopped or ("interrupted" if self.should_stop() else None)

    def is_logged(self, step: int) -> bool:
        """Whether the run logs this step in metrics.jsonl."""
        return step % int(self.config.log_every) == 0 or step in (1, self.plan.max_steps)

    def one_step(self) -> Updated | Diverged:
        """Do the next step and count it, or return why no update was made."""
        p, state, count = self.progress, self.state, self.config.grad_accum
        first = p.step * count
        done = take_step(
            p.step,
            lambda: (self.batches.batch(first + i) for i in range(count)),
            state.passes,
            state.trained,
            state.optimizers,
            self.config,
            self.setup.dtype,
            p.loss_scale,
            self.plan.plans,
            part_norms=self.is_logged(p.step + 1),
        )
        if isinstance(done, Updated):
            p.step += 1
            p.tokens += self.setup.config.tokens_per_step
            p.train_loss, p.loss_scale = done.loss, done.loss_scale
        return done

    # ---- evaluations, samples, checkpoints -----------------------------------------------

    def evaluate_if_due(self) -> Generator[Event, None, Stopped | Diverged | None]:
        """Evaluate if it is due and not yet done; return why the run must stop, or None."""
        p, config, val = self.progress, self.config, self.setup.corpus.val
        due = p.step % int(config.eval_every) == 0 or p.step == self.plan.max_steps
        due = due if p.step > 0 else self.fine_tune
        if val is None or not due:
            return None
        if p.evaluated_at == p.step:
            return self.reason_to_stop()
        begun = time.perf_counter()
        with self.state.averaged():
            loss, by_text = loss_by_text(val, self.loss_on)
            if loss is not None and not math.isfinite(loss):
                model, batches = self.state.passes.model(), [self.batches.batch(0)]
                return diverged_in_evaluation(p.step, loss, model, batches, self.config)
        if loss is None and not self.should_stop():
            yield Notice(f"step {p.step}: the time is over, so this step is not evaluated")
            return None
        if loss is None:
            return "interrupted"
        p.val_loss, p.evaluated_at = loss, p.step
        best = p.best_val_loss is None or loss < p.best_val_loss
        p.evaluations_without_best = 0 if best else p.evaluations_without_best + 1
        if best:
            p.best_val_loss, p.best_step = loss, p.step
        if p.step == 0:
            p.first_val_loss = loss
        yield Evaluated(p.step, p.tokens, self.clock(), loss, best, by_text)
        with self.state.averaged():
            yield from self.passage.look(p.step)
        if best or self.saver.saved_at == p.step:  # this step's checkpoint lacks the new loss
            yield from self.save()
        self.plan.evaluated(time.perf_counter() - begun)
        return self.reason_to_stop()

    def loss_on(self, tokens: TokenStore) -> float | None:
        """The mean loss on `tokens`; None if the run is interrupted or lasts much too long."""

        def give_up() -> bool:
            return self.should_stop() or self.plan.is_far_too_late()

        block_size = self.setup.config.model.block_size
        return self.state.passes.evaluate(tokens, block_size, give_up)

    def reason_to_stop(self) -> Stopped | None:
        """Why this step's evaluation ends the run, or None."""
        p, config = self.progress, self.config
        assert p.val_loss is not None
        if config.stop_at_val_loss is not None and p.val_loss <= config.stop_at_val_loss:
            return "target"
        if config.patience is not None and p.evaluations_without_best >= config.patience:
            return "patience"
        return None

    def sample_if_due(self) -> Iterator[Event]:
        """Draw a sample if one is due and not yet drawn."""
        p, every = self.progress, self.config.sample_every
        if every and p.step > 0 and p.step % every == 0 and p.sampled_at != p.step:
            yield from self.sample()

    def sample(self) -> Iterator[Event]:
        """Draw a sample. If this step has a checkpoint, record there that it was drawn."""
        p = self.progress
        with self.state.averaged():
            text = generate_one(
                self.state.passes.model(), self.setup.corpus.tokenizer, "",
                max_new_tokens=_SAMPLE_TOKENS, params=SamplingParams(),
                seed=self.config.seed, should_stop=self.should_stop,
            )  # fmt: skip
        if text is None:  # interrupted
            return
        p.sampled_at = p.step
        yield SampleDrawn(p.step, "", text)
        if self.saver.saved_at == p.step:  # this step's checkpoint does not record the sample
            yield from self.save()

    def grant_wishes(self) -> Iterator[Event]:
        """Do what the user asked for. Neither the weights nor later decisions of the run change."""
        p, val = self.progress, self.setup.corpus.val
        for wish in self.wishes():
            if wish == "sample":
                yield from self.sample()
            elif wish == "evaluate":
                with self.state.averaged():
                    yield from extra_evaluation(p.step, val, self.loss_on, self.should_stop)
            elif self.saver.saved_at != p.step:
                yield from self.save()

    def save(self) -> Iterator[Event]:
        """Save a checkpoint, mark the best one, delete old ones."""
        self.progress.seconds = self.clock()
        yield from self.saver.save(self.state, self.meta())

    def meta(self) -> dict[str, Any]:
        """What meta.json says about the run."""
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
            "plans": [list(plan) for plan in self.plan.plans],
        }

    # ---- small things --------------------------------------------------------------------

    def clock(self) -> float:
        """The seconds of training so far, including those before an interruption."""
        return time.perf_counter() - self.started

    def headline(self) -> Event:
        """The first event: the network, the text and the device of the run."""
        setup = self.setup
        return run_started(
            setup.run, setup.config, setup.corpus, self.state.model, setup.device, setup.dtype,
            threads=setup.threads,
            compiled=setup.compile,
            max_steps=self.plan.max_steps,
            resumed_from=setup.resume.step if setup.resume else None,
            adapter_parameters=None if self.state.adapters is None else self.state.adapters.count,
        )  # fmt: skip
