"""Answers questions about a run in plain words and with figures, and says what to try next."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gptcli.events import Evaluated, StepDone
from gptcli.files.paths import shell_word
from gptcli.model.user_parts import parts_of
from gptcli.pages.run_data import RunData
from gptcli.plurals import agreeing, counted
from gptcli.training.run_commands import base_of, free_folders, train_again_command
from gptcli.training.schedule import resolve_rate
from gptcli.view.number_formats import human_count, time_taken

_LEAST_RISE = 0.01
"""A run overfits only if its last validation loss is above the best one by at least this share."""
_WORTH = 0.02
"""Twice as many steps are worth it if they lower the loss by at least this many nats."""
_MANY_EPOCHS = 30
_CLOSE = 0.1
"""The training loss is close to the validation loss if the training loss is higher, or lower by
less than this share of the validation loss."""
_MOST_DROPOUT = 0.4
_SPIKE = 8.0
"""A spike is a gradient norm of more than this many times the median."""
_LEAST_NORMS = 10


@dataclass(frozen=True)
class Answer:
    """An answer to a question about a run. `verdict` is the short answer, such as "Yes"."""

    question: str
    verdict: str
    sentence: str


@dataclass(frozen=True)
class Advice:
    """The answers about a run, and what to try next.

    `next` has pairs of an idea and its command ("" if the idea has no command)."""

    summary: str
    answers: list[Answer]
    next: list[tuple[str, str]]


def advice(run: RunData) -> Advice:
    """The answers and ideas for a run, from its losses, gradient norms, config and status."""
    overfit, improvement = overfitting(run.evaluations), doubled(_points(run))
    answers = [_overfitting(run, overfit), _more_time(run, overfit, improvement), _stable(run)]
    return Advice(_summary(run), answers, _next(run, overfit, improvement))


# ---- measuring ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overfit:
    """How far the last validation loss is above the best one, and whether that is overfitting."""

    best: Evaluated
    last: Evaluated
    later: int  # number of evaluations after the best one
    is_overfit: bool

    @property
    def rise(self) -> float:
        """How far the last validation loss is above the best one, in nats."""
        return self.last.val_loss - self.best.val_loss


def overfitting(evaluations: Sequence[Evaluated]) -> Overfit | None:
    """The best and the last evaluation, and whether the run overfits; None without two evaluations.

    A run overfits if two evaluations or more follow the best one, and the last loss is at least 1 %
    above the best."""
    if len(evaluations) < 2:
        return None
    place = min(range(len(evaluations)), key=lambda i: evaluations[i].val_loss)
    best, last = evaluations[place], evaluations[-1]
    later = len(evaluations) - 1 - place
    rises = last.val_loss - best.val_loss >= _LEAST_RISE * best.val_loss
    return Overfit(best, last, later, later >= 2 and rises)


def doubled(points: Sequence[tuple[int, float]]) -> float | None:
    """How much lower, in nats, the loss would be after twice as many steps.

    `points` are pairs (step, loss). Fits a least-squares line to the loss as a function of the
    logarithm of the step. Uses the second half of the points, but at least three. Points at step 0
    do not count. Returns None if there are fewer than three points, or if all have the same step. A
    falling learning rate makes the line too steep, so the result is an upper estimate."""
    half = [(step, loss) for step, loss in points if step > 0]
    half = half[-max(3, len(half) // 2) :]
    if len(half) < 3:
        return None
    xs = [math.log(step) for step, _ in half]
    if max(xs) - min(xs) < 1e-9:
        return None
    slope, _ = statistics.linear_regression(xs, [loss for _, loss in half])
    return -slope * math.log(2)


def _points(run: RunData) -> list[tuple[int, float]]:
    """The points for `doubled`: pairs (step, validation loss), or pairs (step, training loss).

    They have the training loss if the run has fewer than three evaluations, and either it read its
    text at most once or the two losses are close. Otherwise they have the validation loss."""
    often = epochs(run)
    if len(run.evaluations) < 3 and ((often is not None and often <= 1) or _is_close(run)):
        return [(one.step, one.loss) for one in run.steps]
    return [(one.step, one.val_loss) for one in run.evaluations]


def _is_close(run: RunData) -> bool:
    """Whether the training loss is near the last validation loss, or above it."""
    now = mean_loss_at(run.steps, run.last_step)
    last = run.evaluations[-1].val_loss if run.evaluations else None
    return now is not None and last is not None and last - now < _CLOSE * last


def mean_loss_at(steps: Sequence[StepDone], step: int) -> float | None:
    """The mean training loss near `step`; None without logged steps.

    The mean is over a twentieth of the logged steps on each side of `step`, but over at least one
    step on each side."""
    if not steps:
        return None
    width = max(1, len(steps) // 20)
    place = min(range(len(steps)), key=lambda i: abs(steps[i].step - step))
    around = steps[max(0, place - width) : place + width + 1]
    return statistics.fmean(one.loss for one in around)


@dataclass(frozen=True)
class Norms:
    """The median gradient norm of the judged steps, and the steps whose norm is a spike.

    The judged steps are the logged steps with a finite norm, without the first tenth of the
    logged steps: large gradients are normal there."""

    judged: int
    median: float
    spikes: list[StepDone]


def norms_of(steps: Sequence[StepDone]) -> Norms | None:
    """The gradient norms of a run. None if fewer than `_LEAST_NORMS` steps can be judged."""
    later = [one for one in _after_the_start(steps) if math.isfinite(one.grad_norm)]
    if len(later) < _LEAST_NORMS:
        return None
    usual = statistics.median(one.grad_norm for one in later)
    return Norms(len(later), usual, [one for one in later if one.grad_norm > _SPIKE * usual])


def _after_the_start(steps: Sequence[StepDone]) -> Sequence[StepDone]:
    return steps[len(steps) // 10 :]


def epochs(run: RunData) -> float | None:
    """How many times the run read its text; None if the run does not record the text's length."""
    tokens, read = run.count("train_tokens"), run.config.tokens_per_step * run.last_step
    return read / tokens if tokens else None


# ---- wording ----------------------------------------------------------------------------------


def _summary(run: RunData) -> str:
    """Sentences that describe the run: its size, text, steps, time and best loss."""
    model, parameters = run.config.model, run.count("parameters")
    size = f" of {human_count(parameters)} parameters" if parameters else ""
    heads = f"{counted(model.n_layer, 'layer')}{', each' if model.n_layer > 1 else ''}"
    heads += f" with {counted(model.n_head, 'attention head')}"
    words = [
        f"A {model.arch} network{size} ({heads}) "
        f"was trained for {counted(run.last_step, 'step')} in {time_taken(run.seconds)}."
    ]
    read, often = run.config.tokens_per_step * run.last_step, epochs(run)
    if often:
        text = f"its text of {counted(run.count('train_tokens') or 0, 'token')}"
        words.append(
            f"It read {counted(read, 'token')}: "
            + (
                f"{100 * often:.0f} % of {text}."
                if often < 0.995
                else f"{text}, once."
                if f"{often:.1f}" == "1.0"
                else f"{often:.1f} times {text}."
                if often < 10
                else f"{often:,.0f} times {text}."
            )
        )
    if run.best:
        perplexity = math.exp(min(50.0, run.best.val_loss))
        words.append(
            "Its best validation loss, which is the loss on text that it never trains on, is "
            f"{run.best.val_loss:.3f} nats per token, at step {run.best.step:,}. On average, the "
            f"network is as unsure about the next token as if it chose among {perplexity:.1f} "
            "equally likely tokens."
        )
    return " ".join(words)


def _overfitting(run: RunData, found: Overfit | None) -> Answer:
    question = "Did it overfit?"
    often = epochs(run)
    if found is None and often is not None and often <= 1:
        return Answer(
            question,
            "No",
            f"It read {100 * often:.0f} % of its text, so it had little chance to learn the text "
            "by heart.",
        )
    if found is None and run.evaluations:
        return _one_evaluation(run, question)
    if found is None:
        why = (
            "has no validation text (data.val_fraction is 0)"
            if run.config.data.val_fraction == 0
            else "was never evaluated"
        )
        return Answer(
            question, "Unknown", f"The run {why}, so nothing shows how well it predicts new text."
        )
    best, last = found.best, found.last
    then, now = mean_loss_at(run.steps, best.step), mean_loss_at(run.steps, last.step)
    training = (
        f" Meanwhile the training loss fell from {then:.3f} to {now:.3f}."
        if then is not None and now is not None and now < then
        else ""
    )
    if found.is_overfit:
        return Answer(
            question,
            "Yes",
            f"The validation loss was best at step {best.step:,} ({best.val_loss:.3f}) and rose "
            f"to {last.val_loss:.3f} at step {last.step:,}.{training} After step {best.step:,} "
            "the network learned its text by heart, and became worse at predicting new text. "
            f"`gptcli sample` uses step {best.step:,}.",
        )
    if found.later:
        rise = f"{100 * found.rise / best.val_loss:.1f} %"
        if found.rise >= _LEAST_RISE * best.val_loss:
            return Answer(
                question,
                "Too early to tell",
                f"The last validation loss, {last.val_loss:.3f}, is {rise} above the best one, "
                f"{best.val_loss:.3f} at step {best.step:,}. One such evaluation can be chance. "
                "Two would mean overfitting.",
            )
        return Answer(
            question,
            "No",
            f"The last validation loss, {last.val_loss:.3f}, is within "
            f"{100 * _LEAST_RISE:.0f} % of the best one, {best.val_loss:.3f} at step "
            f"{best.step:,}." + (" The loss no longer falls." if found.later >= 2 else ""),
        )
    gap = "" if now is None else f" The training loss is {now:.3f} at that step."
    return Answer(
        question,
        "No",
        f"The last of {len(run.evaluations)} evaluations is the best one: {last.val_loss:.3f} at "
        f"step {last.step:,}.{gap}",
    )


def _one_evaluation(run: RunData, question: str) -> Answer:
    """The answer for a run with one evaluation. It compares the validation and training losses."""
    last, now = run.evaluations[-1], mean_loss_at(run.steps, run.last_step)
    only = (
        "The run has one evaluation, but only two can show whether the validation loss rose. "
        f"This validation loss is {last.val_loss:.3f}"
    )
    if now is None:
        return Answer(question, "Unknown", f"{only}.")
    if _is_close(run):
        return Answer(
            question,
            "No sign of it",
            f"{only}, near the training loss of {now:.3f}. What the network learned also holds "
            "for new text.",
        )
    return Answer(
        question,
        "Unknown",
        f"{only}, and the training loss is {now:.3f}. If the distance between the two grows from "
        "evaluation to evaluation, the network overfits.",
    )


def _more_time(run: RunData, found: Overfit | None, improvement: float | None) -> Answer:
    question = "Would more time help?"
    if run.status.get("stopped") == "diverged":
        return Answer(
            question, "No", "The training diverged. Change a setting first, as described below."
        )
    if run.is_training:
        return Answer(
            question,
            "Still training",
            f"The run is at step {run.last_step:,} of {run.max_steps:,}.",
        )
    if found is not None and found.later >= 2:
        none = f"None of the {found.later} evaluations after step {found.best.step:,} was better."
        if found.is_overfit:
            return Answer(
                question,
                "No",
                f"{none} More steps on the same text would make the network worse at new text.",
            )
        patience = run.config.train.patience
        end = f" So train.patience={patience} ended the run."
        return Answer(question, "Hardly", none + end * (run.status.get("stopped") == "patience"))
    if improvement is None:
        return Answer(
            question,
            "Unknown",
            "It takes three evaluations to see how fast the validation loss falls. Train longer, "
            "or set a smaller train.eval_every.",
        )
    if improvement < _WORTH:
        return Answer(
            question,
            "Hardly",
            "The loss has almost stopped falling. If this continues, twice as many steps would "
            f"lower it by {max(0.0, improvement):.3f} nats.",
        )
    what = "validation loss" if len(run.evaluations) >= 3 else "training loss"
    less = ", or by less, because the falling learning rate helped"
    return Answer(
        question,
        "Yes",
        f"The {what} was still falling at the end. If this continues, twice as many steps would "
        f"lower it by about {improvement:.2f} nats" + less * (run.last_step >= run.max_steps) + ".",
    )


def _stable(run: RunData) -> Answer:
    question = "Was the training stable?"
    if run.status.get("stopped") == "diverged":
        return Answer(
            question,
            "No",
            f"It stopped at step {run.last_step:,} because the training diverged: a number was no "
            f"longer finite. The learning rate was {float(run.config.train.learning_rate):g}.",
        )
    if len(run.steps) < 20:
        return Answer(
            question,
            "Unknown",
            f"The run logged only {counted(len(run.steps), 'step')}. An answer needs 20.",
        )
    norms = norms_of(run.steps)
    if norms is None:
        later = _after_the_start(run.steps)
        finite = sum(math.isfinite(one.grad_norm) for one in later)
        return Answer(
            question,
            "Unknown",
            f"After the start, {finite} of {len(later)} logged steps had a finite gradient norm. "
            f"An answer needs {_LEAST_NORMS}.",
        )
    norm = "gradient norm (how steeply the loss changes with the weights)"
    if norms.spikes:
        worst = max(norms.spikes, key=lambda one: one.grad_norm)
        return Answer(
            question,
            "Mostly",
            f"After the start, {len(norms.spikes)} of {norms.judged} logged steps had a {norm} of "
            f"over {_SPIKE:.0f} times the median ({norms.median:.2f}); the largest was "
            f"{worst.grad_norm:.2f} at step {worst.step:,}.",
        )
    return Answer(
        question,
        "Yes",
        f"After the start, no logged step had a {norm} of over {_SPIKE:.0f} times the median "
        f"({norms.median:.2f}).",
    )


def _next(run: RunData, found: Overfit | None, improvement: float | None) -> list[tuple[str, str]]:
    """What to try next: pairs (sentence, command), the most promising first."""
    run_word = shell_word(run.path)
    parts = "".join(f" --{part} FILE" for part in parts_of(run.status))
    # Each idea takes the next command, so that no two ideas have the same folder.
    train = (
        train_again_command(run.path, folder, run.status)
        for folder in free_folders(run.path, run.status)
    )
    stopped = run.status.get("stopped")
    if run.is_training:
        return [
            ("The run is still training. Write this report again when it has ended.",
             f"gptcli report {run_word} --overwrite")
        ]  # fmt: skip
    if stopped == "diverged":
        return [_calmer(run, train)]
    if found is not None and found.is_overfit:
        return _against_overfitting(run, train)
    ideas: list[tuple[str, str]] = []
    if stopped in (None, "interrupted") and run.last_step < run.max_steps:
        return [
            (
                f"The run was interrupted at step {run.last_step:,} of {run.max_steps:,}. "
                "Finish it.",
                f"gptcli train --resume --out {run_word}{parts}",
            )
        ]
    if run.config.data.val_fraction == 0:
        ideas.append(
            (
                "Keep a tenth of the text for validation: only text that the network never saw "
                "shows what it learned.",
                f"{next(train)} data.val_fraction=0.1",
            )
        )
    falls = improvement is not None and improvement >= _WORTH
    stands_still = found is not None and found.later >= 2
    if falls and not stands_still and not ideas:
        ideas.append(_longer(run, train))
    if len(run.evaluations) == 1 and run.last_step >= 10 and (epochs(run) or 2) > 1:
        ideas.append(
            (
                "Evaluate more often: several validation losses show when they begin to rise.",
                f"{next(train)} train.eval_every={run.last_step // 10}",
            )
        )
    often = epochs(run)
    if often and often > _MANY_EPOCHS:
        ideas.append(
            (f"Use more text: the run read its text {often:,.0f} times, so little is left to "
             "learn from it. `gptcli train` takes several files, and folders.", "")
        )  # fmt: skip
    elif _is_close(run) and base_of(run.status) is None:  # a fine-tune keeps its base's network
        layers = run.config.model.n_layer + 2
        now = mean_loss_at(run.steps, run.last_step)
        ideas.append(
            (
                f"Train a larger network: training loss ({now:.3f}) and validation loss "
                f"({run.evaluations[-1].val_loss:.3f}) are close, so a larger network would not "
                "overfit soon.",
                f"{next(train)} model.n_layer={layers}",
            )
        )
    if not ideas:
        rate = float(run.config.train.learning_rate)
        values = f"train.learning_rate={rate / 2:g},{rate:g},{2 * rate:g}"
        ideas.append(
            (
                "Try other settings, one at a time, for example half and twice the learning rate.",
                # `gptcli sweep` does not train with the user's parts
                f"{next(train)} train.learning_rate={rate / 2:g}"
                if parts
                else f"gptcli sweep {run_word} {values}",
            )
        )
    return ideas


def _calmer(run: RunData, train: Iterator[str]) -> tuple[str, str]:
    """What to try after a training diverged: the usual learning rate.

    If the run's learning rate was not higher than the usual one, a quarter of the run's."""
    rate = float(run.config.train.learning_rate)
    automatic = run.config.train.model_copy(update={"learning_rate": "auto"})
    usual = resolve_rate(automatic, run.config.model.n_embd)
    if rate > usual:
        return (
            f"Train with the usual learning rate, {usual:g}, instead of {rate:g}.",
            f"{next(train)} train.learning_rate=auto",
        )
    return (
        "Train with a quarter of the learning rate.",
        f"{next(train)} train.learning_rate={rate / 4:g}",
    )


def _against_overfitting(run: RunData, train: Iterator[str]) -> list[tuple[str, str]]:
    often, model = epochs(run), run.config.model
    why = f" The run read its text {often:,.0f} times." if often and often >= 2 else ""
    ideas = [
        (
            f"Use more text: nothing else helps as much against overfitting.{why} `gptcli train` "
            "takes several files, and folders.",
            "",
        )
    ]
    patience = "" if run.config.train.patience else " train.patience=3"
    if patience:
        ideas.append(
            (
                "Stop early: end the run after three evaluations without a better loss.",
                f"{next(train)}{patience}",
            )
        )
    if model.dropout < _MOST_DROPOUT:
        dropout = 0.2 if model.dropout < 0.1 else _MOST_DROPOUT
        ideas.append(
            (
                f"Use dropout: each step leaves out a share of {dropout} of the network's "
                "activations.",
                f"{next(train)} model.dropout={dropout}{patience}",
            )
        )
    elif model.n_layer > 1 and base_of(run.status) is None:
        layers = max(1, model.n_layer // 2)
        ideas.append(
            (
                f"Train a smaller network, of {counted(layers, 'layer')}: it can learn less by "
                "heart.",
                f"{next(train)} model.n_layer={layers}{patience}",
            )
        )
    return ideas


def _longer(run: RunData, train: Iterator[str]) -> tuple[str, str]:
    """The idea to train twice as long: in minutes if the run has a time limit, else in steps."""
    minutes = run.config.train.minutes
    if minutes is not None:
        return (
            f"Train twice as long, {2 * minutes:g} {agreeing(2 * minutes, 'minute')}.",
            f"{next(train)} --minutes {2 * minutes:g}",
        )
    steps = 2 * run.max_steps
    return (
        f"Train twice as long, {counted(steps, 'step')}.",
        f"{next(train)} train.max_steps={steps}",
    )
