"""Scores a text: the log-probability of each token, the loss, perplexity and bits per byte."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gptcli.errors import GptcliError
from gptcli.plurals import counted

if TYPE_CHECKING:
    from gptcli.api.loading import SamplingModel

_SHADES = ((0.5, "#b7e4c7"), (0.1, "transparent"), (0.01, "#ffe8a3"), (0.0, "#f4a6a0"))
"""(lowest probability, colour) of each shade in a notebook."""
_MOST_WORK = 15_000_000_000
"""If the number of tokens times the number of parameters is at most this, the C library scores the
text in less time than the import of PyTorch takes."""


@dataclass(frozen=True)
class Score:
    """How likely a model finds a text. A notebook shows the text with a colour for each token.

    `ids`, `texts` and `log_probabilities` have an entry for each token. A log-probability is in
    nats. If a token is only a part of a character, its text is U+FFFD."""

    text: str
    ids: list[int]
    texts: list[str]
    log_probabilities: list[float]

    @property
    def log_probability(self) -> float:
        """The log-probability of the text, in nats."""
        return math.fsum(self.log_probabilities)

    @property
    def loss(self) -> float:
        """The mean loss, in nats per token."""
        return -self.log_probability / len(self.ids)

    @property
    def perplexity(self) -> float:
        """e to the power of the loss; infinity if the result is too large for a float."""
        return math.inf if self.loss >= 700 else math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """The loss in bits per byte of the UTF-8 text. It is comparable between tokenizers."""
        return -self.log_probability / math.log(2) / len(self.text.encode("utf-8"))

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"<Score: {self.summary()}>"

    def summary(self) -> str:
        """The number of tokens, the loss, the perplexity and the bits per byte, in one line."""
        count = len(self.ids)
        return (
            f"{counted(count, 'token')}: {self.loss:.4f} nats per token, "
            f"perplexity {self.perplexity:.3f}, {self.bits_per_byte:.4f} bits per byte"
        )

    def _repr_html_(self) -> str:
        spans = "".join(
            f'<span title="{_probability(one):.3g}" style="background:{_shade(one)}">'
            f"{html.escape(piece)}</span>"
            for piece, one in zip(self.texts, self.log_probabilities, strict=True)
        )
        return (
            f'<div><div style="white-space:pre-wrap;font-family:monospace">{spans}</div>'
            f"<div>{html.escape(self.summary())}</div></div>"
        )


def _probability(log_probability: float) -> float:
    """The probability; 0 for NaN, which comes from a broken model."""
    return 0.0 if math.isnan(log_probability) else math.exp(min(0.0, log_probability))


def _shade(log_probability: float) -> str:
    probability = _probability(log_probability)
    return next(shade for least, shade in _SHADES if probability >= least)


def score_text(model: SamplingModel, text: str, *, name: str = "") -> Score:
    """The score of a text whose characters the tokenizer knows (see `readable`).

    The engine that samples the model also computes the score: another engine would round
    differently, and give a slightly different score. The exception is a long text in float32:
    PyTorch computes its score, because PyTorch is faster for many tokens at once. Error messages
    use `name` as the name of the text. Raises GptcliError if the text has no tokens."""
    trained = model.trained
    tokenizer = trained.tokenizer
    try:
        ids = tokenizer.encode(text)
    except GptcliError as error:
        raise GptcliError(
            f"{name}: {error.message}" if name else error.message, error.hint
        ) from None
    if not ids:
        of = f" of {name}" if name else ""
        raise GptcliError(f"the text{of} has no tokens", "score another text")
    start = tokenizer.start_ids()
    engine, work = model.backend, len(ids) * trained.weights.count if model.backend.native else 0
    if engine.native and (engine.dtype != "float32" or work <= _MOST_WORK):
        from gptcli.sampling.backend import open_decoder
        from gptcli.sampling.native_score import native_log_probabilities

        decoder = open_decoder(trained.weights, engine, model.threads)
        found = native_log_probabilities(decoder, trained.config.model, start, ids).tolist()
    else:
        from gptcli.devices import choose_threads
        from gptcli.sampling.score import log_probabilities

        if engine.native:
            choose_threads(model.threads)
        found = log_probabilities(trained.model, start, ids).tolist()
    pieces = [tokenizer.token_bytes(id).decode("utf-8", "replace") for id in ids]
    return Score(text, ids, pieces, found)
