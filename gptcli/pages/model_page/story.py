"""Collects what a page tells about its run: the text's name, facts, losses, samples and config.
Everything comes from the run folder, except the size of the text. The page names the training text
and its size, but never contains the text.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.config import Config
from gptcli.config_files import dump_config
from gptcli.events import Evaluated, StepDone
from gptcli.files.bounded import read_lines
from gptcli.files.shipped import shipped_texts
from gptcli.model.gpt import count_parameters
from gptcli.plurals import agreeing, counted
from gptcli.training.loading import Trained
from gptcli.training.run_folder import read_status
from gptcli.training.training_state import progress_of
from gptcli.view.history import recorded_events
from gptcli.view.number_formats import human_count, loss_text

_MOST_SAMPLE = 1200  # characters of a sample
_MOST_SAMPLES = 12
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 800, 320, 56, 144, 18, 40  # of the curve

Points = list[tuple[int, float]]
"""Pairs (step, loss)."""


@dataclass(frozen=True)
class Story:
    """What a page tells about its run. `samples` are pairs (step, text), sorted by step."""

    name: str
    data: str
    parameters: int
    facts: Sequence[tuple[str, str]]
    train: Points
    val: Points
    samples: Sequence[tuple[int, str]]
    config: str
    began: str = "At first, the numbers of the model were random."
    """The sentence on the weights with which the run started."""
    is_imported: bool = False


def story_of(trained: Trained, text_bytes: int | None) -> Story:
    """The Story of a trained run. `text_bytes` is the size of its text; None if unknown."""
    status = read_status(trained.run)
    losses = _losses(trained)
    return Story(
        name=trained.run.resolve().name,
        data=data_name(trained.config, status),
        parameters=count_parameters(trained.model).total,
        facts=list(_facts(trained, status, text_bytes)),
        train=losses[0],
        val=losses[1],
        samples=samples_of(trained.run, trained.step),
        config="\n".join(_config_lines(trained.config)),
        began=_beginning(status),
        is_imported=isinstance(status.get("imported"), dict),
    )


def _beginning(status: dict[str, Any]) -> str:
    """A sentence that says from which weights the run started."""
    imported, base = status.get("imported"), status.get("started_from")
    if isinstance(imported, dict):
        return "Another program trained this model, and gptcli imported it."
    if isinstance(base, dict) and isinstance(base.get("run"), str):
        return f"At first, the model had the numbers of the run {Path(base['run']).name}."
    return Story.began


def how_it_learned(story: Story) -> str:
    """The HTML of the sentences on how the run began and was trained."""
    began, data = html.escape(story.began), html.escape(story.data)
    if story.is_imported:
        return (
            f"{began} In its training, the model read pieces of text and guessed each next token. "
            "After every step, its numbers moved a little towards better guesses."
        )
    return (
        f'{began} Then the model read pieces of <span class="data">{data}</span> and guessed each '
        "next token. After every step, its numbers moved a little towards better guesses."
    )


def data_name(config: Config, status: dict[str, Any]) -> str:
    """A short name for the training text: the names of at most three of its files, without folders.

    If the config gives each text a share, the name contains the shares. For an imported model, the
    name says where the model comes from."""
    imported = status.get("imported")
    if isinstance(imported, dict):
        return f"{imported.get('from')}, imported"
    if config.data.shares is not None:
        return config.data.described
    names = [Path(source).name or source for source in config.data.sources]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def text_size(config: Config) -> int | None:
    """The size in bytes of the run's text files; None if one is missing or is a folder."""
    shipped, total = shipped_texts(), 0
    for source in config.data.sources:
        path = shipped.get(source, Path(source))
        if path.is_dir() or not path.is_file():
            return None
        total += path.stat().st_size
    return total


def samples_of(run: Path, last_step: int) -> list[tuple[int, str]]:
    """The run's samples up to `last_step`, as (step, text): at most 12, evenly spaced."""
    found: list[tuple[int, str]] = []
    with suppress(OSError):
        for line in read_lines(run / "samples.txt", run):
            text = line.decode("utf-8", "replace")
            heading = re.fullmatch(r"=== step ([0-9]{1,18}) ===\r?\n?", text)
            if heading is not None:
                found.append((int(heading[1]), ""))
            elif found and len(found[-1][1]) < _MOST_SAMPLE:
                found[-1] = (found[-1][0], found[-1][1] + text)
    kept = [(step, _cropped(text)) for step, text in found if step <= last_step and text.strip()]
    if len(kept) <= _MOST_SAMPLES:
        return kept
    last = len(kept) - 1
    return [kept[round(i * last / (_MOST_SAMPLES - 1))] for i in range(_MOST_SAMPLES)]


def _cropped(text: str) -> str:
    text = text.strip("\n")
    return text if len(text) <= _MOST_SAMPLE else text[:_MOST_SAMPLE].rstrip() + " ..."


def _losses(trained: Trained) -> tuple[Points, Points]:
    train: Points = []
    val: Points = []
    for event in recorded_events(trained.run):
        if isinstance(event, StepDone) and event.loss == event.loss:
            train.append((event.step, event.loss))
        elif isinstance(event, Evaluated) and event.val_loss == event.val_loss:
            val.append((event.step, event.val_loss))
    return train, val


def _facts(
    trained: Trained, status: dict[str, Any], text_bytes: int | None
) -> Iterator[tuple[str, str]]:
    config, progress = trained.config.model, progress_of(trained.meta)
    size = f", {file_size(text_bytes)}" if text_bytes else ""
    yield "Trained on", data_name(trained.config, status) + size
    yield "Parameters", f"{count_parameters(trained.model).total:,}"
    layout = {"qwen3": "Qwen3", "llama": "Llama", "gpt2": "GPT-2"}[config.traits.model_type]
    yield (
        "Network",
        f"{layout}'s layout: {counted(config.n_layer, 'layer')} of "
        f"{counted(config.n_head, 'head')}, {config.n_embd} channels",
    )
    yield "Looks back", counted(config.block_size, "token")
    kinds = {
        "char": "characters",
        "byte": "bytes",
        "bpe": "pieces of words learned from the text",
        "gpt2": "GPT-2's pieces of words",
    }
    kind = trained.tokenizer.kind
    yield "Tokens", f"{trained.tokenizer.vocab_size:,} {kinds.get(kind, kind)}"
    if progress.tokens:
        read = human_count(progress.tokens, short=True)
        yield "Has read", f"{read} {agreeing(progress.tokens, 'token')} in training"
        yield "Learned in", f"{_time(progress.seconds)}, {counted(trained.step, 'step')}"
    machine = status.get("machine")
    if isinstance(machine, dict) and machine.get("device"):
        cores = machine.get("cores")
        device = {"cpu": "processor", "cuda": "NVIDIA GPU", "mps": "Apple GPU"}.get(
            str(machine["device"]), str(machine["device"])
        )
        on_cores = f", {counted(cores, 'core')}" if isinstance(cores, int) else ""
        yield "Machine", f"{device}{on_cores}, {trained.config.run.dtype}"
    if progress.val_loss is not None:
        yield "Loss on unseen text", _loss_in_words(progress.val_loss)


def _loss_in_words(loss: float) -> str:
    """A sentence that gives `loss` in nats and as a probability of the correct next token.

    This probability is the geometric mean over all tokens."""
    return (
        f"{loss_text(loss)} nats per token: the correct next token had a probability of "
        f"{100 * math.exp(-loss):.2g} % (geometric mean)"
    )


def _time(seconds: float) -> str:
    """A time in words: "42 seconds", "17 minutes", "2 hours 5 minutes"."""
    if seconds < 90:
        return counted(round(seconds), "second")
    hours, minutes = divmod(round(seconds / 60), 60)
    if not hours:
        return counted(minutes, "minute")
    return counted(hours, "hour") + (f" {counted(minutes, 'minute')}" if minutes else "")


def file_size(size: int) -> str:
    """A size in bytes as text: "812 bytes", "1.1 MB"."""
    if size < 1000:
        return counted(size, "byte")
    return f"{size / 1e3:.0f} KB" if size < 999_500 else f"{size / 1e6:.1f} MB"


def _config_lines(config: Config) -> Iterator[str]:
    """The lines of the config's sections `tokenizer`, `model` and `train`, without null values.

    Leaves out the section `run` and what can name private paths: `data` and `tokenizer.from`."""
    inside = False
    tokenizer = config.tokenizer.model_copy(update={"from_": None})
    for line in dump_config(config.model_copy(update={"tokenizer": tokenizer})).splitlines():
        if line and not line.startswith((" ", "#")):
            inside = line.split(":")[0] in ("tokenizer", "model", "train")
        if inside and not line.endswith("null"):
            yield line


# ---- the curve -----------------------------------------------------------------------------------


def curve(story: Story) -> str:
    """An SVG of the training loss and the validation loss over the steps, in the page's colours.
    Returns "" if the training loss has fewer than two points.

    The first losses are often so high that they would flatten the rest of the curve. So the scale
    ends slightly above the 95th percentile of the losses. If the training loss starts
    above the scale, its line leaves the chart at the top, and a label says where it starts."""
    if len(story.train) < 2:
        return ""
    last = max(step for step, _ in (*story.train, *story.val))
    losses = sorted(loss for _, loss in (*story.train, *story.val))
    low, high = losses[0], losses[int(0.95 * (len(losses) - 1))]
    high = max(high, low + 1e-3)
    start = story.train[0][1]
    low, high = low - 0.05 * (high - low), high + 0.08 * (high - low)
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(step: int, loss: float) -> tuple[float, float]:
        share = (high - loss) / (high - low)
        return _LEFT + width * step / last, _TOP + height * share

    def path(points: Points) -> str:
        places = (place(*point) for point in points)
        return "M" + " ".join(f"{x:.1f},{y:.1f}" for x, y in places)

    parts = [
        f'<svg class="curve" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{html.escape(curve_words(story))}">',
        f'<clipPath id="inside"><rect x="{_LEFT}" y="{_TOP - 4}" width="{width + 8}" '
        f'height="{height + 8}"/></clipPath>',
    ]
    for loss in _ticks(low, high):
        y = place(0, loss)[1]
        parts.append(f'<path class="grid" d="M{_LEFT},{y:.1f} H{_LEFT + width}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 5:.1f}" text-anchor="end">{loss:g}</text>')
    base = _HEIGHT - 12
    parts.append(f'<text x="{_LEFT}" y="{base}">step 0</text>')
    parts.append(f'<text x="{_LEFT + width}" y="{base}" text-anchor="end">step {last:,}</text>')
    if start > high:
        x = place(*next(point for point in story.train if point[1] <= high))[0] + 10
        parts.append(f'<text x="{x:.1f}" y="{_TOP + 10}">&#8593; starts at {start:.2f}</text>')
    parts.append('<g clip-path="url(#inside)">')
    parts.append(f'<path class="train" d="{path(_thinned(story.train))}"/>')
    ends = [("training", "train", place(*story.train[-1])[1])]
    if story.val:
        parts.append(f'<path class="val" d="{path(story.val)}"/>')
        for point in story.val:
            x, y = place(*point)
            if y >= _TOP:
                parts.append(f'<circle class="val" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>')
        ends.append(("unseen text", "val", place(*story.val[-1])[1]))
    parts.append("</g>")
    if len(ends) == 2 and abs(ends[0][2] - ends[1][2]) < 26:  # keeps the two labels apart
        upper = 0 if ends[0][2] < ends[1][2] else 1
        middle = (ends[0][2] + ends[1][2]) / 2
        for number in (0, 1):
            words, name, _ = ends[number]
            ends[number] = (words, name, middle - 13 if number == upper else middle + 13)
    for words, name, y in ends:
        y = min(max(y + 5, _TOP + 10), _HEIGHT - _BOTTOM)
        parts.append(f'<text class="{name}" x="{_LEFT + width + 8}" y="{y:.1f}">{words}</text>')
    return "".join((*parts, "</svg>"))


def curve_words(story: Story) -> str:
    """A description of the curve, for readers who cannot see it."""
    first, last = story.train[0], story.train[-1]
    words = (
        f"The loss over the training steps. On the training text it goes from {first[1]:.2f} at "
        f"step {first[0]:,} to {last[1]:.2f} at step {last[0]:,}."
    )
    if story.val:
        best = min(story.val, key=lambda point: point[1])
        words += f" On unseen text it is lowest, {best[1]:.2f}, at step {best[0]:,}."
    return words


def _thinned(points: Points) -> Points:
    """At most about 400 of the points, evenly spaced."""
    every = max(1, len(points) // 200)
    return [*points[::every], *([points[-1]] if (len(points) - 1) % every else [])]


def _ticks(low: float, high: float) -> list[float]:
    """Three to nine round numbers between two losses; only `low` if the losses are too close."""
    for step in (5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001):
        first = -(-low // step)
        found = [round((first + i) * step, 6) for i in range(9) if (first + i) * step <= high]
        if len(found) >= 3:
            return found
    return [round(low, 3)]
