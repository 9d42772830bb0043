"""The models of a server: names, token ids of prompts, and the answer to `/v1/models`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gptcli.api.loading import SamplingModel
from gptcli.errors import GptcliError, nearest
from gptcli.model.gpt import count_parameters
from gptcli.serving.refusal import Refusal
from gptcli.tokenization.unknown_characters import readable


@dataclass
class ServedModel:
    """A model and the name by which requests ask for it."""

    name: str
    loaded: SamplingModel
    since: int = field(default_factory=lambda: int(time.time()))

    @property
    def fingerprint(self) -> str:
        """Step, engine and dtype. With the request and its seed, they determine the text."""
        dtype = self.loaded.backend.dtype
        return f"step-{self.loaded.trained.step}-{self.loaded.backend.engine}-{dtype}"

    def description(self) -> dict[str, Any]:
        """The model's object in OpenAI's list of models. `meta` is as in llama.cpp's server."""
        trained = self.loaded.trained
        return {
            "id": self.name,
            "object": "model",
            "created": self.since,
            "owned_by": "gptcli",
            "meta": {
                "n_params": count_parameters(trained.model).total,
                "n_ctx_train": trained.config.model.block_size,
                "n_embd": trained.config.model.n_embd,
                "n_vocab": trained.tokenizer.vocab_size,
                "vocab_type": trained.tokenizer.kind,
                "step": trained.step,
            },
        }

    def ids(self, prompt: str | Sequence[int]) -> tuple[list[int], int]:
        """The ids that the model reads, and how many of these it reads before the prompt's ids.

        Raises Refusal (400) if the model cannot read the prompt."""
        tokenizer = self.loaded.trained.tokenizer
        if not isinstance(prompt, str):
            for id in prompt:
                if not 0 <= id < tokenizer.vocab_size:
                    raise Refusal(
                        400,
                        f"Token id {id} is outside the vocabulary of {tokenizer.vocab_size}.",
                        param="prompt",
                    )
            return (list(prompt), 0) if prompt else self._start()
        rule = self.loaded.trained.config.data.unknown
        text = readable(tokenizer, rule, prompt)[0]
        try:
            return (tokenizer.prompt_ids(text), len(tokenizer.prefix)) if text else self._start()
        except GptcliError as error:
            raise Refusal(400, f"{error.message} ({error.hint})", param="prompt") from None

    def _start(self) -> tuple[list[int], int]:
        ids = self.loaded.trained.tokenizer.start_ids()
        return ids, len(ids)


class ServedModels:
    """All models of a server. Requests without a model get the first model."""

    def __init__(self, loaded: Sequence[SamplingModel]) -> None:
        self._models: dict[str, ServedModel] = {}
        for one in loaded:
            name, number = one.path.resolve().name, 2
            while name in self._models:
                name, number = f"{one.path.resolve().name}-{number}", number + 1
            self._models[name] = ServedModel(name, one)

    def __iter__(self) -> Any:
        return iter(self._models.values())

    def named(self, name: str | None) -> ServedModel:
        """The model called `name`; None means the first. Raises Refusal (404) for unknown names."""
        if name is None:
            return next(iter(self._models.values()))
        if name not in self._models:
            close = nearest(name, self._models)
            guess = f"did you mean `{close}`?" if close else f"there are: {', '.join(self._models)}"
            raise Refusal(
                404,
                f"The model `{name[:80]}` does not exist; {guess}",
                param="model",
                code="model_not_found",
            )
        return self._models[name]
