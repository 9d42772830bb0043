"""`gptcli score`: how likely a model finds each token of a text, in colour, as lines or as JSON."""

from __future__ import annotations

import json
import math
import os
import shlex
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
from gptcli.cli.prompts import encoding_of_run, read_text
from gptcli.errors import GptcliError, cropped
from gptcli.view.waiting import waiting

if TYPE_CHECKING:
    from rich.text import Text

    from gptcli.training.loading import Trained

_LEVELS = (  # lowest probability, style of the tokens from there on, its name in the legend
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

    On a terminal, the colour of a token shows its probability, and a list names the most surprising
    tokens with what the model expected instead. In a file or a pipe, each token gets
    a line: its log-probability in nats, its id, its text. The model predicts each token from
    the earlier tokens that `sample` would use."""
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
    if (surprises := _surprises(scores)) and sys.stderr.isatty():
        note("most surprising:")
        for line in surprises:
            note(f"  {line}")
    count = len(scores.ids)
    note(
        f"{count:,} token{'s' if count != 1 else ''}: {scores.loss:.4f} nats per token, "
        f"perplexity {scores.perplexity:.3f}, {scores.bits_per_byte:.4f} bits per byte"
    )


def _refuse_run_without_file(words: list[str]) -> None:
    """Raise GptcliError if the only word is a run, or names no file."""
    from gptcli.training.run_folder import list_runs

    if len(words) == 1 and not os.path.exists(words[0]):  # noqa: PTH110
        runs = [run.name for run in list_runs(Path("runs"))]
        hint = (
            f"give a file, too: gptcli score {shlex.quote(words[0])} FILE"
            if words[0] in runs
            else "score reads the text from a UTF-8 file"
        )
        raise GptcliError(f"no file named `{cropped(words[0])}`", hint)
    if len(words) == 1 and Path(words[0]).is_dir():
        raise GptcliError(
            f"{words[0]} is a folder, not a text",
            f"give a file, too: gptcli score {shlex.quote(words[0])} FILE",
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
        return math.fsum(self.log_probabilities)

    @property
    def loss(self) -> float:
        return -self.total / len(self.ids)

    @property
    def perplexity(self) -> float:
        return math.inf if self.loss >= 700 else math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        return -self.total / math.log(2) / self.bytes

    def texts(self) -> list[str]:
        """The text of each token; U+FFFD for incomplete characters."""
        tokenizer = self.trained.tokenizer
        return [tokenizer.token_bytes(id).decode("utf-8", "replace") for id in self.ids]


def _scores(run: str | None, file: str, text: str, options: SamplingModelOptions) -> _Scores:
    """Load the model and score the text. Raises GptcliError if the text has no tokens."""
    sampling = None
    if options.dtype in ("auto", "float32"):
        trained = load_model(run, options, "score", dtype_of_run=False)
    else:  # with the engine of `sample`, because engines round differently
        sampling = load_for_sampling(run, options, "score")
        trained = sampling.trained
    from gptcli.sampling.backend import open_decoder
    from gptcli.sampling.score import log_probabilities, native_log_probabilities
    from gptcli.tokenization.unknown_characters import readable

    rule = trained.config.data.unknown
    text, changed = readable(trained.tokenizer, rule, text)
    if changed is not None:
        note(f"note: {file}: {changed}")
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
    for id, piece, one in zip(scores.ids, scores.texts(), scores.log_probabilities, strict=True):
        sys.stdout.write(f"{one:.4f}\t{id}\t{json.dumps(piece, ensure_ascii=False)}\n")
    sys.stdout.flush()


def _coloured(pieces: list[str], log_probabilities: list[float]) -> Text:
    """The text with a colour for each token's probability, and a legend."""
    from rich.text import Text

    from gptcli.view.safe_text import clean

    shown = Text()
    for piece, one in zip(pieces, log_probabilities, strict=True):
        # NaN gets the colour of the least likely tokens.
        probability = 0.0 if math.isnan(one) else math.exp(min(0.0, one))
        style = next(style for least, style, _ in _LEVELS if probability >= least)
        # A blank shows no colour: an unlikely one gets a background, and a newline a visible sign.
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


def _surprises(scores: _Scores) -> list[str]:
    """A line for each of the least likely tokens: where it is, and what the model expected."""
    import torch

    order = sorted(range(len(scores.ids)), key=lambda i: scores.log_probabilities[i])
    model, tokenizer = scores.trained.model, scores.trained.tokenizer
    ids = [*tokenizer.start_ids(), *scores.ids]
    before = len(ids) - len(scores.ids)
    lines = []
    for at in sorted(order[:_SURPRISES]):
        probability = math.exp(min(0.0, scores.log_probabilities[at]))
        if probability >= _LEVELS[2][0]:
            continue
        window = ids[: before + at][-model.config.block_size :]
        idx = torch.tensor([window], device=model.wte.weight.device)
        with torch.no_grad(), redirect_stdout(sys.stderr):
            best = int(model(idx)[0, -1].argmax())
        text = tokenizer.decode(scores.ids[max(0, at - 20) : at])[-20:]
        found, expected = (tokenizer.decode([id]) for id in (scores.ids[at], best))
        lines.append(
            f"{_quoted(found)} after {_quoted(text)} (probability {probability:.1g}); "
            f"expected {_quoted(expected)}"
        )
    return lines


def _quoted(text: str) -> str:
    """A text in quotes on one line, with \\n for a newline."""
    return json.dumps(text, ensure_ascii=False)
