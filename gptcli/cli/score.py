"""`gptcli score`: shows how likely a model finds each token of a text: colours, lines or JSON."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.api.scoring import Score, score_text
from gptcli.cli.option_groups import with_option_groups
from gptcli.cli.options import (
    JsonOption,
    SamplingModelOptions,
    load_for_sampling,
)
from gptcli.cli.output import note, print_json, stdout_console
from gptcli.cli.prompts import encoding_of_run, read_text
from gptcli.errors import GptcliError, cropped
from gptcli.view.waiting import waiting

if TYPE_CHECKING:
    from rich.text import Text

    from gptcli.api.loading import SamplingModel

_LEVELS = (  # (lowest probability, style of the tokens, name in the legend)
    (0.5, "green", "expected (above 1/2)"),
    (0.1, "", "likely (above 1/10)"),
    (0.01, "yellow", "unlikely (above 1/100)"),
    (0.0, "bold red", "surprising"),
)
_SURPRISES = 5


@with_option_groups
def score(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN] FILE", help="A run (default: the newest), and a UTF-8 text file."
        ),
    ],
    as_json: JsonOption = False,
    *,
    options: SamplingModelOptions,
) -> None:
    """Show how likely a model finds each token of a text.

    On a terminal, the colour of a token shows its probability. A list below the text has the most
    surprising tokens, and for each the token that the model expected. In a file, in a pipe or
    without colours, each token gets a line with its log-probability in nats, its id and its text.
    The model predicts each token from the same earlier tokens as in `sample`."""
    if len(words) > 2:
        raise GptcliError(
            f"score takes a run and a file; got {len(words)} words",
            "write gptcli score RUN FILE; put a name with blanks into quotes",
        )
    run, file = (None, words[0]) if len(words) == 1 else words
    _refuse_run_without_file(words)
    text = read_text(Path(file), "score", lambda: encoding_of_run(run, "score"))
    if not text:
        raise GptcliError(f"{file} is empty", "score a text of at least one character")
    with waiting("loading the model and reading the text"):
        model, scores = _scores(run, file, text, options)
    if as_json:
        _print_json(model, scores)
        return
    if sys.stdout.isatty() and stdout_console().color_system and not os.environ.get("NO_COLOR"):
        # A character that consists of several tokens is shown with the last of them.
        decoder = model.trained.tokenizer.stream()
        pieces = [decoder.push(id) for id in scores.ids]
        stdout_console().print(_coloured(pieces, scores.log_probabilities), soft_wrap=True)
    else:
        _print_lines(scores)
    if sys.stderr.isatty() and (surprises := _surprises(model, scores)):
        note("most surprising:")
        for line in surprises:
            note(f"  {line}")
    note(scores.summary())


def _refuse_run_without_file(words: list[str]) -> None:
    """Raise GptcliError if the only word is not a file. For a run, the hint says to add a file."""
    from gptcli.training.run_folder import list_runs

    if len(words) == 1 and not os.path.exists(words[0]):  # noqa: PTH110
        runs = [run.name for run in list_runs(Path("runs"))]
        hint = (
            f"give a file, too: gptcli score {shlex.quote(words[0])} FILE"
            if words[0] in runs
            else "score reads the text from a file"
        )
        raise GptcliError(f"no file named `{cropped(words[0])}`", hint)
    if len(words) == 1 and Path(words[0]).is_dir():
        raise GptcliError(
            f"{words[0]} is a folder, not a text",
            f"give a file, too: gptcli score {shlex.quote(words[0])} FILE",
        )


def _scores(
    run: str | None, file: str, text: str, options: SamplingModelOptions
) -> tuple[SamplingModel, Score]:
    """Load the model and score the text, by default in float32.

    Raises GptcliError if the text has no tokens."""
    if options.dtype == "auto":
        options = replace(options, dtype="float32")
    model = load_for_sampling(run, options, "score")
    trained = model.trained
    from gptcli.tokenization.unknown_characters import readable

    rule = trained.config.data.unknown
    text, changed = readable(trained.tokenizer, rule, text)
    if changed is not None:
        note(f"note: {file}: {changed}")
    with redirect_stdout(sys.stderr):  # the user's parts can print, but stdout is for data
        return model, score_text(model, text, name=file)


def _print_json(model: SamplingModel, scores: Score) -> None:
    rows = zip(scores.ids, scores.texts, scores.log_probabilities, strict=True)
    print_json(
        {
            "log_probability": scores.log_probability,
            "loss": scores.loss,
            "perplexity": scores.perplexity,
            "bits_per_byte": scores.bits_per_byte,
            "tokens": len(scores.ids),
            "checkpoint": model.trained.step,
            "scores": [
                {"id": id, "text": piece, "log_probability": one} for id, piece, one in rows
            ],
        }
    )


def _print_lines(scores: Score) -> None:
    for id, piece, one in zip(scores.ids, scores.texts, scores.log_probabilities, strict=True):
        sys.stdout.write(f"{one:.4f}\t{id}\t{json.dumps(piece, ensure_ascii=False)}\n")
    sys.stdout.flush()


def _coloured(pieces: list[str], log_probabilities: list[float]) -> Text:
    """The text, with the probabilities of its tokens as colours, and a legend of the colours."""
    from rich.text import Text

    from gptcli.view.safe_text import clean

    shown = Text()
    for piece, one in zip(pieces, log_probabilities, strict=True):
        # NaN gets the colour of the least likely tokens
        probability = 0.0 if math.isnan(one) else math.exp(min(0.0, one))
        style = next(style for least, style, _ in _LEVELS if probability >= least)
        # White space has no visible colour. So an unlikely blank gets a background, and an unlikely
        # newline gets a sign.
        marked = piece.replace("\r", "␍")
        if probability < _LEVELS[1][0]:
            marked = marked.replace("\n", "⏎\n")
            style += " reverse" if piece.isspace() else ""
        shown.append(clean(marked), style)
    if not shown.plain.endswith("\n"):
        shown.append("\n")
    shown.append("\nthe model found a token ", "dim")
    for number, (_, style, meaning) in enumerate(_LEVELS):
        shown.append(", " if number else "", "dim")
        shown.append(meaning, style)
    return shown


def _surprises(model: SamplingModel, scores: Score) -> list[str]:
    """A line for each of the five least likely tokens: the text before it, and the expected token.

    The lines have the order of the text. Tokens with a probability of 1/100 or more are left
    out."""
    trained, tokenizer = model.trained, model.trained.tokenizer
    order = sorted(range(len(scores.ids)), key=lambda i: scores.log_probabilities[i])
    places = [
        at
        for at in sorted(order[:_SURPRISES])
        if math.exp(min(0.0, scores.log_probabilities[at])) < _LEVELS[2][0]
    ]
    ids = [*tokenizer.start_ids(), *scores.ids]
    before, width = len(ids) - len(scores.ids), trained.config.model.block_size
    with redirect_stdout(sys.stderr):
        expected = model.likeliest([ids[: before + at][-width:] for at in places])
    lines = []
    for at, best in zip(places, expected, strict=True):
        text = tokenizer.decode(scores.ids[max(0, at - 20) : at])[-20:]
        probability = math.exp(min(0.0, scores.log_probabilities[at]))
        found, likeliest = (tokenizer.decode([id]) for id in (scores.ids[at], best))
        lines.append(
            f"{_quoted(found)} after {_quoted(text)} (probability {probability:.1g}); "
            f"expected {_quoted(likeliest)}"
        )
    return lines


def _quoted(text: str) -> str:
    """A text in quotes on one line, with \\n for a newline."""
    return json.dumps(text, ensure_ascii=False)
