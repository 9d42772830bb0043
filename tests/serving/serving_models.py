"""A small model that can be served, and a Batch that runs without a thread."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptcli.api.loading import SamplingModel
from gptcli.config import Config
from gptcli.sampling.backend import Backend
from gptcli.sampling.next_token import SamplingParams
from gptcli.sampling.text import Sample, generate_text
from gptcli.serving.batching import Batch, Piece, Text
from gptcli.serving.prompt_scores import PromptScorer
from gptcli.serving.slots import open_slots
from gptcli.tokenization import Tokenizer, build_tokenizer
from gptcli.training.loading import Trained
from tests.sampling.sampling_models import model

TEXT = "the quick brown fox jumps over the lazy dog.\n"


def served(
    backend: Backend,
    arch: str = "modern",
    kind: str = "char",
    *,
    width: int = 16,
    folder: str = "m",
) -> SamplingModel:
    """A small random network with its tokenizer, ready for sampling with `backend`."""
    tokenizer = build_tokenizer(kind, 300, lambda: iter([TEXT]))
    network = model(arch, 2, width, vocab_size=tokenizer.vocab_size)
    config = Config.model_validate({"model": network.config.model_dump()})
    trained = Trained(Path(folder), network, tokenizer, config, 7, {}, [])
    return SamplingModel(Path(folder), trained, backend, 1)


def alone(
    loaded: SamplingModel,
    prompt: Sequence[int],
    params: SamplingParams,
    *,
    seed: int,
    sample: int,
    count: int,
    stops: Sequence[str] = (),
) -> Sample:
    """A sample that is generated alone, as `gptcli sample` generates it for a single prompt."""
    from gptcli.sampling.generate import SampleRequest

    streams = loaded.open_streams(1, params)
    requests = [SampleRequest(prompt, sample)]
    for item in generate_text(
        streams, loaded.trained.tokenizer, requests, max_new_tokens=count, seed=seed, stops=stops
    ):
        if isinstance(item, Sample):
            return item
    raise AssertionError("no sample")


class Driven:
    """A Batch without a thread: the test calls `step`.

    `pieces` holds the pieces of text that the batch has delivered."""

    def __init__(self, loaded: SamplingModel, slots: int) -> None:
        tokenizer: Tokenizer = loaded.trained.tokenizer
        self.batch = Batch(open_slots(loaded, slots), tokenizer, PromptScorer(loaded))
        self.pieces: dict[Text, list[Piece]] = {}

    def add(self, prompt: Sequence[int], count: int, **more: Any) -> Text:
        """Add a text with this prompt to the batch's queue."""
        text = Text(
            prompt=prompt,
            sample=more.pop("sample", 0),
            seed=more.pop("seed", 0),
            params=more.pop("params", SamplingParams()),
            max_tokens=count,
            stops=more.pop("stops", ()),
            scores=more.pop("scores", None),
            score_prompt_from=more.pop("score_prompt_from", None),
            client=more.pop("client", "someone"),
            deliver=lambda piece: None,
        )
        assert not more
        self.pieces[text] = []
        self.batch.queue.add(text.client, text)
        return text

    def step(self) -> None:
        """Move texts from the queue into free slots, then make one step."""
        self.batch.admit()
        for text, piece in self.batch.step():
            self.pieces[text].append(piece)

    def finish(self) -> None:
        """Make steps until all texts are complete."""
        while self.batch.is_busy or self.batch.queue:
            self.step()

    def text(self, text: Text) -> str:
        """All pieces of a text that the batch has delivered so far, joined."""
        return "".join(piece.text for piece in self.pieces[text])
