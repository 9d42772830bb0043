"""Scores the tokens of a prompt, part by part, for requests with `echo` and `logprobs`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from gptcli.api.loading import SamplingModel
from gptcli.native.decoder import Decoder
from gptcli.sampling.backend import open_decoder
from gptcli.sampling.native_score import native_prompt_logits
from gptcli.sampling.score import prompt_logits
from gptcli.serving.token_scores import TokenScore, scores_of


class PromptScorer:
    """Scores prompts with the engine that samples.

    With the native engine, the first prompt opens a decoder, which later prompts use again."""

    def __init__(self, model: SamplingModel) -> None:
        self._model = model
        self._decoder: Decoder | None = None

    @torch.no_grad()
    def scores(self, prompt: Sequence[int], first: int, count: int) -> Iterator[list[TokenScore]]:
        """Yield the scores of the prompt's tokens from `first` on, in parts.

        Each score lists the `count` likeliest tokens at its position. The token at position 0 has
        no log-probability and no likeliest tokens, because nothing precedes it."""
        if first == 0:
            yield [TokenScore(prompt[0], None)]
        at = 1
        for logits, targets in self._parts(prompt):
            skip = min(len(targets), max(0, first - at))
            at += len(targets)
            yield scores_of(logits[skip:], targets[skip:], count)

    def _parts(self, prompt: Sequence[int]) -> Iterator[tuple[torch.Tensor, Sequence[int]]]:
        trained, backend = self._model.trained, self._model.backend
        if not backend.native:
            device = trained.model.wte.weight.device
            for logits, targets in prompt_logits(
                trained.model, torch.tensor(prompt, device=device)
            ):
                yield logits, targets.tolist()
            return
        if self._decoder is None:
            self._decoder = open_decoder(trained.weights, backend, self._model.threads)
        for array, tokens in native_prompt_logits(self._decoder, trained.config.model, prompt):
            yield torch.from_numpy(array), tokens
