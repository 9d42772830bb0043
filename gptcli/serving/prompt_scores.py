"""Scores the tokens of a prompt, part by part: for requests with `echo` and `logprobs`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from gptcli.api.loading import SamplingModel
from gptcli.native.decoder import Decoder
from gptcli.sampling.backend import open_decoder
from gptcli.sampling.score import native_prompt_logits, prompt_logits
from gptcli.serving.token_scores import TokenScore, scores_of


class PromptScorer:
    """Scores prompts by the engine that samples. It opens a decoder for its first prompt."""

    def __init__(self, model: SamplingModel) -> None:
        self._model = model
        self._decoder: Decoder | None = None

    @torch.no_grad()
    def scores(self, prompt: Sequence[int], first: int, count: int) -> Iterator[list[TokenScore]]:
        """The scores of the prompt's tokens from `first` on, in parts, each with the `count`
        likeliest tokens.

        Token 0 has no log-probability, because nothing precedes it."""
        if first == 0:
            yield [TokenScore(prompt[0], None)]
        model = self._model.trained.model
        if self._model.backend.native:
            if self._decoder is None:
                self._decoder = open_decoder(model, self._model.backend, self._model.threads)
            parts = native_prompt_logits(self._decoder, model.config, prompt)
        else:
            parts = prompt_logits(model, torch.tensor(prompt, device=model.wte.weight.device))
        at = 1
        for logits, targets in parts:
            skip = min(len(targets), max(0, first - at))
            at += len(targets)
            yield scores_of(logits[skip:], targets[skip:].tolist(), count)
