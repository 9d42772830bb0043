"""`gptcli score`: how likely a model finds each token of a text, in colour, as lines or as JSON."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.cli.option_groups import with_option_groups
from gptcli.cli.options import (
    JsonOption,
    SamplingModelOptions,
    load_for_sampling,
    load_model,
)
from gptcli.cli.output import note, print_json, stdout_console
from gptcli.cli.prompts import read_text
from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from rich.text import Text

    from gptcli.training.loading import Trained

_LEVELS = (  # lowest probability, style of the tokens from there on, its name in the legend
    (0.5, "", "above 1/2"),
    (0.1, "green", "above 1/10"),
    (0.01, "yellow", "above 1/100"),
    (0.0, "bold red", "below"),
)


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

    On a terminal, the colour of a token shows its probability. In a file or a pipe, each token gets
    a line: its log-probability in nats, its id, its text. A token is predicted from the tokens that
    `sample` would look at."""
    if len(words) > 2:
        raise GptcliError(f"score takes a run and a file; got {len(words)} words", "RUN FILE")
    run, file = (None, words[0]) if len(words) == 1 else words
    text = read_text(Path(file), "score")
    if not text:
        raise GptcliError(f"{file} is empty", "score a text of at least one character")
    scores = _scores(run, file, text, options)
    if as_json:
        _print_json(scores)
        return
    if sys.stdout.isatty() and stdout_console().color_system and not os.environ.get("NO_COLOR"):
        # A character that spans several tokens is shown with the last of them.
        decoder = scores.trained.tokenizer.stream()
        pieces = [decoder.push(id) for id in scores.ids]
        stdout_console().print(_coloured(pieces, scores.log_probabilities), soft_wrap=True)
    else:
        _print_lines(scores)
    count = len(scores.ids)
    note(
        f"{count:,} token{'s' if count != 1 else ''}: {scores.loss:.4f} nats per token, "
        f"perplexity {scores.perplexity:.3f}, {scores.bits_per_byte:.4f} bits per byte"
    )


@dataclass(frozen=True)
class _Scores:
    """The log-probabilities (nats) of the tokens of a text of `bytes` bytes."""

    trained: Trained
    bytes: int
    ids: list[int]
    log_probabilities: list[float]

    @property
    def total(self) -> float:
        import math

        return math.fsum(self.log_probabilities)

    @property
    def loss(self) -> float:
        return -self.total / len(self.ids)

    @property
    def perplexity(self) -> float:
        import math

        return math.inf if self.loss >= 700 else math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        import math

        return -self.total / math.log(2) / self.bytes

    def texts(self) -> list[str]:
        """The text of each token; U+FFFD for incomplete characters."""
        tokenizer = self.trained.tokenizer
        return [tokenizer.token_bytes(id).decode("utf-8", "replace") for id in self.ids]


def _scores(run: str | None, file: str, text: str, options: SamplingModelOptions) -> _Scores:
    """Load the model and score the text. Raises GptcliError if the text has no tokens."""
    sampling = None
    if options.dtype in ("auto", "float32"):
        trained = load_model(run, options, dtype_of_run=False)
    else:  # with the engine of `sample`, because engines round differently
        sampling = load_for_sampling(run, options)
        trained = sampling.trained
    from gptcli.sampling.backend import open_decoder
    from gptcli.sampling.score import log_probabilities, native_log_probabilities

    try:
        ids = trained.tokenizer.encode(text)
    except GptcliError as error:
        raise GptcliError(f"{file}: {error.message}", error.hint) from None
    if not ids:
        raise GptcliError(f"the text of {file} has no tokens", "score another text")
    with redirect_stdout(sys.stderr):  # a user's module can print; that is not data
        start = trained.tokenizer.start_ids()
        if sampling is not None and sampling.backend.native:
            decoder = open_decoder(trained.model, sampling.backend, sampling.threads)
            found = native_log_probabilities(decoder, trained.config.model, start, ids)
        else:
            found = log_probabilities(trained.model, start, ids)
    return _Scores(trained, len(text.encode("utf-8")), ids, found.tolist())


def _print_json(scores: _Scores) -> None:
    rows = zip(scores.ids, scores.texts(), scores.log_probabilities, strict=True)
    print_json(
        {
            "log_probability": scores.total,
            "loss": scores.loss,
            "perplexity": scores.perplexity,
            "bits_per_byte": scores.bits_per_byte,
            "tokens": len(scores.ids),
            "checkpoint": scores.trained.step,
            "scores": [
                {"id": id, "text": piece, "log_probability": one} for id, piece, one in rows
            ],
        }
    )


def _print_lines(scores: _Scores) -> None:
    import json

    for id, piece, one in zip(scores.ids, scores.texts(), scores.log_probabilities, strict=True):
        sys.stdout.write(f"{one:.4f}\t{id}\t{json.dumps(piece, ensure_ascii=False)}\n")
    sys.stdout.flush()


def _coloured(pieces: list[str], log_probabilities: list[float]) -> Text:
    """The text with a colour for each token's probability, and a legend."""
    import math

    from rich.text import Text

    from gptcli.view.safe_text import clean

    shown = Text()
    for piece, one in zip(pieces, log_probabilities, strict=True):
        # NaN gets the colour of the least likely tokens.
        probability = 0.0 if math.isnan(one) else math.exp(min(0.0, one))
        style = next(style for least, style, _ in _LEVELS if probability >= least)
        # A newline shows no colour, so an unlikely one gets a visible sign.
        marked = piece.replace("\r", "␍")
        shown.append(clean(marked.replace("\n", "⏎\n") if style else marked), style)
    if not shown.plain.endswith("\n"):
        shown.append("\n")
    shown.append("\nprobability: ", "dim")
    for _, style, meaning in _LEVELS:
        shown.append(meaning, style)
        shown.append("  ")
    return shown
