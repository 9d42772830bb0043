"""What happened in a run, in plain language, each answer with the figures behind it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from gptcli.events import Evaluated, StepDone
from gptcli.files.paths import shell_word
from gptcli.pages.run_data import RunData
from gptcli.view.number_formats import human_count, time_taken

_LEAST_RISE = 0.01
"""The share of the best loss that a later loss must be above it to count as overfitting."""
_WORTH = 0.02
"""Nats of validation loss for which a doubled training is worth it."""
_MANY_EPOCHS = 30
_SPIKE = 8.0
"""A gradient norm of so many times the median is a spike."""


@dataclass(frozen=True)
class Answer:
    """An answer to a question about a run. `verdict` is its first word or two."""

    question: str
    verdict: str
    sentence: str


@dataclass(frozen=True)
class Advice:
    """The answers about a run, and what to try next: sentences, and commands that do it."""

    summary: str
    answers: list[Answer]
    next: list[tuple[str, str]]


def advice(run: RunData) -> Advice:
    """The advice for a run, from its losses alone."""
    overfit, improvement = overfitting(run.evaluations), doubled(run.evaluations)
    answers = [_overfitting(run, overfit), _more_time(run, overfit, improvement), _stable(run)]
    return Advice(_summary(run), answers, _next(run, overfit, improvement))


# ---- measuring ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overfit:
    """How far the last validation loss is above the best one, and whether that is overfitting."""

    best: Evaluated
    last: Evaluated
    later: int  # evaluations after the best one
    is_overfit: bool

    @property
    def rise(self) -> float:
        """Nats between the last and the best loss."""
        return self.last.val_loss - self.best.val_loss


def overfitting(evaluations: Sequence[Evaluated]) -> Overfit | None:
    """Whether the validation loss rose after its best value; None without two evaluations.

    It counts from two evaluations after the best one, and a rise of 1 %."""
    if len(evaluations) < 2:
        return None
    place = min(range(len(evaluations)), key=lambda i: evaluations[i].val_loss)
    best, last = evaluations[place], evaluations[-1]
    later = len(evaluations) - 1 - place
    rises = last.val_loss - best.val_loss >= _LEAST_RISE * best.val_loss
    return Overfit(best, last, later, later >= 2 and rises)


def doubled(evaluations: Sequence[Evaluated]) -> float | None:
    """How much lower the validation loss would be after twice as many steps, in nats.

    From the least-squares line of the loss over the logarithm of the step, through the second half
    of the evaluations (at least three); None if there are fewer. A falling learning rate makes the
    line too steep, so this is an upper estimate."""
    half = [one for one in evaluations if one.step > 0]
    half = half[-max(3, len(half) // 2) :]
    if len(half) < 3:
        return None
    xs = [math.log(one.step) for one in half]
    if max(xs) - min(xs) < 1e-9:
        return None
    slope, _ = statistics.linear_regression(xs, [one.val_loss for one in half])
    return -slope * math.log(2)


def mean_loss_at(steps: Sequence[StepDone], step: int) -> float | None:
    """The mean training loss of the logged steps around `step`: a tenth of them."""
    if not steps:
        return None
    width = max(1, len(steps) // 20)
    place = min(range(len(steps)), key=lambda i: abs(steps[i].step - step))
    around = steps[max(0, place - width) : place + width + 1]
    return statistics.fmean(one.loss for one in around)


def spikes(steps: Sequence[StepDone]) -> list[StepDone]:
    """The logged steps after the first tenth whose gradient norm is far above the median."""
    later = [one for one in steps[len(steps) // 10 :] if math.isfinite(one.grad_norm)]
    if len(later) < 10:
        return []
    usual = statistics.median(one.grad_norm for one in later)
    return [one for one in later if one.grad_norm > _SPIKE * usual]


def epochs(run: RunData) -> float | None:
    """How often the run read its text; None for a run that does not say how long the text is."""
    tokens, read = run.count("train_tokens"), run.config.tokens_per_step * run.last_step
    return read / tokens if tokens else None


# ---- saying it ---------------------------------------------------------------------------------


def _summary(run: RunData) -> str:
    """What the run is: size, text, steps, time and best loss, in two or three sentences."""
    model, parameters = run.config.model, run.count("parameters")
    size = f"{human_count(parameters)} parameters, " if parameters else ""
    words = [
        f"A network of {size}{model.n_layer} layers and {model.n_head} heads ({model.arch}) "
        f"trained {run.last_step:,} steps in {time_taken(run.seconds)}."
    ]
    read, often = run.config.tokens_per_step * run.last_step, epochs(run)
    if often:
        times = f"{often:.1f} times" if often < 10 else f"{often:,.0f} times"
        words.append(
            f"It read {human_count(read)} tokens: its text of "
            f"{human_count(run.count('train_tokens') or 0)} tokens {times}."
        )
    if run.best:
        perplexity = math.exp(min(50.0, run.best.val_loss))
        words.append(
            f"Its best validation loss is {run.best.val_loss:.3f} nats per token, at step "
            f"{run.best.step:,}: it is as unsure as if it chose among {perplexity:.1f} equally "
            "likely tokens."
        )
    return " ".join(words)


def _overfitting(run: RunData, found: Overfit | None) -> Answer:
    question = "Did it overfit?"
    if found is None:
        return Answer(
            question,
            "Unknown",
            f"The run has {len(run.evaluations)} evaluations of a validation text; it takes two.",
        )
    best, last = found.best, found.last
    then, now = mean_loss_at(run.steps, best.step), mean_loss_at(run.steps, last.step)
    training = (
        f" Meanwhile the training loss went from {then:.3f} to {now:.3f}."
        if then is not None and now is not None and then != now
        else ""
    )
    if found.is_overfit:
        return Answer(
            question,
            "Yes",
            f"The validation loss was best at step {best.step:,} ({best.val_loss:.3f}) and rose to "
            f"{last.val_loss:.3f} at step {last.step:,}.{training} Since then the network has "
            "learned its text by heart instead of the language. `gptcli sample` uses the best "
            "step.",
        )
    if found.later:
        return Answer(
            question,
            "Not yet" if found.rise > 0 else "No",
            f"The best validation loss ({best.val_loss:.3f}) was at step {best.step:,}; the last, "
            f"{last.val_loss:.3f}, is {found.rise / best.val_loss:.1%} above it. That is little, "
            f"or only {found.later} evaluation{'s' if found.later > 1 else ''} long.{training}",
        )
    gap = "" if now is None else f" The training loss is {now:.3f} at the same time."
    return Answer(
        question,
        "No",
        f"The last of {len(run.evaluations)} evaluations is the best one: {last.val_loss:.3f} at "
        f"step {last.step:,}.{gap}",
    )


def _more_time(run: RunData, found: Overfit | None, improvement: float | None) -> Answer:
    question = "Would more time help?"
    if found is not None and found.is_overfit:
        return Answer(
            question,
            "No",
            f"The validation loss has risen over the last {found.later} evaluations. More steps on "
            "the same text would raise it further.",
        )
    if improvement is None:
        return Answer(
            question,
            "Unknown",
            "It takes at least three evaluations: train longer, or set a smaller train.eval_every.",
        )
    line = (
        "The line through the last evaluations, over the logarithm of the step, says: twice as "
        f"many steps lower the validation loss by about {max(0.0, improvement):.3f} nats."
    )
    if run.last_step >= run.max_steps:
        line += " It is an upper estimate, because the learning rate fell meanwhile."
    verdict = "Yes" if improvement >= _WORTH else "Hardly"
    return Answer(question, verdict, line)


def _stable(run: RunData) -> Answer:
    question = "Was the training stable?"
    if run.status.get("stopped") == "diverged":
        return Answer(
            question,
            "No",
            f"It stopped at step {run.last_step:,}, because a number was no longer finite. The "
            f"learning rate was {float(run.config.train.learning_rate):g}.",
        )
    found = spikes(run.steps)
    if len(run.steps) < 20:
        return Answer(question, "Unknown", f"Only {len(run.steps)} steps were logged.")
    usual = statistics.median(one.grad_norm for one in run.steps)
    if found:
        worst = max(found, key=lambda one: one.grad_norm)
        return Answer(
            question,
            "Mostly",
            f"{len(found)} of {len(run.steps)} logged steps had a gradient norm of over "
            f"{_SPIKE:.0f} times the median ({usual:.2f}); the largest was {worst.grad_norm:.2f} "
            f"at step {worst.step:,}.",
        )
    return Answer(
        question,
        "Yes",
        f"No gradient norm was over {_SPIKE:.0f} times the median of {usual:.2f} after the start.",
    )


def _next(run: RunData, found: Overfit | None, improvement: float | None) -> list[tuple[str, str]]:
    """(sentence, command) of what to try, the most promising first."""
    config = shell_word(run.path / "config.yaml")
    ideas: list[tuple[str, str]] = []
    train = f"gptcli train {config} --out {shell_word(f'{run.path}-2')}"
    is_overfit = found is not None and found.is_overfit
    unfinished = run.status.get("stopped") == "interrupted" and run.last_step < run.max_steps
    if unfinished and not is_overfit:
        ideas.append(
            (
                f"The run was interrupted at step {run.last_step:,} of {run.max_steps:,}: "
                "finish it.",
                f"gptcli train --resume --out {shell_word(run.path)}",
            )
        )
    if run.status.get("stopped") == "diverged":
        rate = float(run.config.train.learning_rate) / 4
        ideas.append(
            (
                "Train with a quarter of the learning rate.",
                f"{train} train.learning_rate={rate:.1g}",
            )
        )
    if found is not None and found.is_overfit:
        often = epochs(run)
        why = f" This text was read {often:,.0f} times." if often and often > _MANY_EPOCHS else ""
        ideas.append((f"Use more text: nothing helps against overfitting as much.{why}", ""))
        ideas.append(
            (
                "Stop early: end the run when three evaluations bring no better loss.",
                f"{train} train.patience=3",
            )
        )
        dropout = 0.2 if run.config.model.dropout < 0.1 else 0.4
        ideas.append(
            (
                f"Let the network forget a share of its numbers in each step: dropout {dropout}.",
                f"{train} model.dropout={dropout} train.patience=3",
            )
        )
        return ideas
    if improvement is not None and improvement >= _WORTH and not ideas:
        steps = 2 * run.max_steps
        ideas.append((f"Train twice as long, {steps:,} steps.", f"{train} train.max_steps={steps}"))
    now = mean_loss_at(run.steps, run.last_step)
    last = run.evaluations[-1] if run.evaluations else None
    if now is not None and last is not None and last.val_loss - now < 0.1 * last.val_loss:
        layers = run.config.model.n_layer + 2
        ideas.append(
            (
                f"Train a larger network: training loss ({now:.3f}) and validation loss "
                f"({last.val_loss:.3f}) are close, so a larger one does not overfit soon.",
                f"{train} model.n_layer={layers}",
            )
        )
    if not ideas:
        ideas.append(
            (
                "Change one setting, and compare both runs.",
                f"gptcli compare {shell_word(run.path)} B",
            )
        )
    return ideas
