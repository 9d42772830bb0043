"""`gptcli.load`, and the class Model, which can generate, stream, score and give logits."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from gptcli.api.generation import (
    MOST_SAMPLES,
    Generation,
    checked_number,
    requests_of,
    stops_of,
)
from gptcli.api.loading import (
    DEVICES,
    DTYPES,
    is_foreign,
    load_for_sampling,
    path_text,
    refuse_unknown,
)
from gptcli.api.named_run import named_run
from gptcli.api.user_files import UserFiles
from gptcli.errors import GptcliError, cropped
from gptcli.files.paths import expanded
from gptcli.number_values import whole_number
from gptcli.openmp import spin_briefly
from gptcli.plurals import counted

if TYPE_CHECKING:
    import torch

    from gptcli.api.loading import SamplingModel
    from gptcli.api.scoring import Score
    from gptcli.config import Config
    from gptcli.model.gpt import GPT
    from gptcli.sampling.generate import SampleRequest
    from gptcli.tokenization import Tokenizer

_SHOWN_TOKENS = 200  # in the sample that a notebook shows


def load(
    run: str | os.PathLike[str] | None = None,
    *,
    checkpoint: str | int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    attention: str | None = None,
    layernorm: str | None = None,
    mlp: str | None = None,
    block: str | None = None,
    tokenizer: str | None = None,
) -> Model:
    """The trained model of a run, ready to generate.

    `run` is a run folder or the name of a run under runs/; None means the newest run. `run` can
    also be a folder with a model in Hugging Face's format, such as an export. `checkpoint` is
    "best", "last" or a step. The default is "best", or "last" if the run has no evaluations.
    `device` is "auto", "cuda", "mps" or "cpu". `dtype` is the number format of generation: "auto",
    "bfloat16", "float16", "float32", or on a CPU "int8". "auto" is bfloat16 if the C library
    generates and the processor multiplies bfloat16, else float32. If the run was trained with the
    user's parts, the arguments from `attention` to `tokenizer` name the files of these parts as
    `FILE` or `FILE:CLASS`. `load` runs these files.

    Raises GptcliError if there is no such run or the run cannot be loaded. Notes, for example about
    a damaged checkpoint, are Python warnings."""
    spin_briefly()
    refuse_unknown("device", device, DEVICES)
    refuse_unknown("dtype", dtype, (*DTYPES, "int8"))
    if threads is not None:
        threads = checked_number("threads", threads, 1)
    name = path_text("run", run)
    path = expanded(name) if name is not None else Path()
    if name is None or not is_foreign(path):
        path = named_run(name, "sample")
    step = whole_number(checkpoint)
    if step is not None:
        checkpoint = step
    loaded = load_for_sampling(
        path,
        None if checkpoint is None else str(checkpoint),
        device=device,
        dtype=dtype,
        threads=threads,
        files=UserFiles(
            path_text("attention", attention),
            path_text("layernorm", layernorm),
            path_text("mlp", mlp),
            path_text("block", block),
            path_text("tokenizer", tokenizer),
        ),
    )
    for message in loaded.trained.notes:
        warnings.warn(message, stacklevel=2)
    return Model(loaded, scores_with_engine=dtype not in ("auto", "float32"))


class Model:
    """A trained model. `gptcli.load` makes it.

    `run` is the folder of the model, `step` is the step of its checkpoint, and `config` is its
    config. `tokenizer` turns text into ids and back. A notebook shows the model's size, its loss
    curve and a sample."""

    run: Path
    step: int
    config: Config
    tokenizer: Tokenizer

    def __init__(self, loaded: SamplingModel, *, scores_with_engine: bool) -> None:
        trained = loaded.trained
        self._loaded = loaded
        self._scores_with_engine = scores_with_engine
        self.run, self.step, self.config = loaded.path, trained.step, trained.config
        self.tokenizer = trained.tokenizer

    # ---- generating ----------------------------------------------------------------------

    @overload
    def generate(
        self,
        prompt: str = ...,
        *,
        n: None = ...,
        max_new_tokens: int = ...,
        temperature: float = ...,
        top_k: int | None = ...,
        top_p: float | None = ...,
        min_p: float | None = ...,
        repetition_penalty: float = ...,
        stop: str | Sequence[str] = ...,
        seed: int | None = ...,
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: str = ...,
        *,
        n: int,
        max_new_tokens: int = ...,
        temperature: float = ...,
        top_k: int | None = ...,
        top_p: float | None = ...,
        min_p: float | None = ...,
        repetition_penalty: float = ...,
        stop: str | Sequence[str] = ...,
        seed: int | None = ...,
    ) -> list[str]: ...

    @overload
    def generate(
        self,
        prompt: list[str],
        *,
        n: int | None = ...,
        max_new_tokens: int = ...,
        temperature: float = ...,
        top_k: int | None = ...,
        top_p: float | None = ...,
        min_p: float | None = ...,
        repetition_penalty: float = ...,
        stop: str | Sequence[str] = ...,
        seed: int | None = ...,
    ) -> list[str]: ...

    def generate(
        self,
        prompt: str | list[str] = "",
        *,
        n: int | None = None,
        max_new_tokens: int = Generation.max_new_tokens,
        temperature: float = Generation.temperature,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = Generation.repetition_penalty,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
    ) -> str | list[str]:
        """The continuation of a prompt, without the prompt: the text that `gptcli sample` writes.

        With `n`, or for a list of prompts, returns a list: `n` texts for each prompt, or one text
        for each prompt if `n` is not given. All texts are generated together. For an empty prompt,
        generation starts from end-of-text if the tokenizer has it, else usually from a newline. A
        text ends before the first of the strings in `stop`. The same seed gives the same text.
        Without a seed, each call uses a new seed.

        Raises GptcliError if a value is out of range or the tokenizer does not know a character."""
        from gptcli.sampling.text import Sample, generate_text

        wanted = Generation(
            max_new_tokens,
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            stops_of(stop),
            seed,
        ).checked()
        prompts = list(prompt) if isinstance(prompt, (list, tuple)) else [prompt]
        requests = self._requests(prompts, _count(n))
        if not requests:
            return []
        texts = [""] * len(requests)
        for item in generate_text(
            self._loaded.open_streams(len(requests), wanted.params()),
            self.tokenizer,
            requests,
            max_new_tokens=wanted.max_new_tokens,
            seed=wanted.seed_or_new(),
            stops=wanted.stop,
        ):
            if isinstance(item, Sample):
                texts[item.index] = item.text
        return texts[0] if n is None and isinstance(prompt, str) else texts

    def stream(
        self,
        prompt: str = "",
        *,
        max_new_tokens: int = Generation.max_new_tokens,
        temperature: float = Generation.temperature,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = Generation.repetition_penalty,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
    ) -> Iterator[str]:
        """The text that `generate` returns, in pieces: each piece comes as soon as it is ready.

        A piece has one or more whole characters. Text that could be the beginning of a stop string
        is held back until the following text shows whether it is one. Raises GptcliError at once if
        a value is wrong."""
        wanted = Generation(
            max_new_tokens,
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            stops_of(stop),
            seed,
        ).checked()
        return self._pieces(self._requests([prompt], 1), wanted)

    def _pieces(self, requests: list[SampleRequest], wanted: Generation) -> Iterator[str]:
        from gptcli.sampling.text import NewText, generate_text

        for item in generate_text(
            self._loaded.open_streams(1, wanted.params()),
            self.tokenizer,
            requests,
            max_new_tokens=wanted.max_new_tokens,
            seed=wanted.seed_or_new(),
            stops=wanted.stop,
        ):
            if isinstance(item, NewText):
                yield item.text

    def _requests(self, prompts: list[str], count: int) -> list[SampleRequest]:
        """`count` requests for each prompt."""
        texts = [self._readable(prompt, "a prompt") for prompt in prompts]
        place = "prompt {}: ".format if len(texts) > 1 else lambda number: ""
        return list(requests_of(self.tokenizer, texts, count, place))

    def _readable(self, text: str, what: str) -> str:
        """The text, with unknown characters changed as data.unknown says. Warns if there were
        any."""
        from gptcli.tokenization.unknown_characters import readable

        if not isinstance(text, str):
            raise GptcliError(f"{what} must be a text; got {type(text).__name__}", "give a str")
        changed, message = readable(self.tokenizer, self.config.data.unknown, text)
        if message is not None:
            warnings.warn(message, stacklevel=4)
        return changed

    # ---- what the model computes ---------------------------------------------------------

    def score(self, text: str) -> Score:
        """How likely the model finds a text: nats per token, bits per byte, and each token.

        The figures are computed in float32 and equal those of `gptcli score`. If `load` got the
        dtype bfloat16, float16 or int8, they are computed in this dtype. Raises GptcliError if the
        text is empty or has characters that the tokenizer does not know."""
        from gptcli.api.scoring import score_text

        loaded = self._loaded
        if not self._scores_with_engine and loaded.backend.native:
            loaded = replace(loaded, backend=replace(loaded.backend, dtype="float32"))
        return score_text(loaded, self._readable(text, "the text"))

    def logits(
        self, ids: str | Sequence[int] | Sequence[Sequence[int]] | torch.Tensor
    ) -> torch.Tensor:
        """The logits for the next token at each position: float32 (T, V), or (B, T, V) for a batch.

        `ids` is a text, or token ids (T,) or (B, T). PyTorch computes the logits on the model's
        device, without gradients. To get gradients, call `module(ids)` instead.

        Raises GptcliError for an id outside the vocabulary, and for more tokens than
        `config.model.block_size`."""
        import torch

        text = self._readable(ids, "ids") if isinstance(ids, str) else None
        idx = self._checked_ids(ids if text is None else self.tokenizer.encode(text))
        with torch.no_grad():
            logits: torch.Tensor = self.module(idx if idx.dim() == 2 else idx[None]).float()
        return logits if idx.dim() == 2 else logits[0]

    def _checked_ids(self, ids: Any) -> torch.Tensor:
        """The ids as an int64 tensor (T,) or (B, T) on the model's device."""
        import torch

        try:
            idx = torch.as_tensor(ids)
        except (TypeError, ValueError, RuntimeError):
            raise GptcliError(
                "ids must be whole numbers, in rows of the same length",
                "for example model.tokenizer.encode(text)",
            ) from None
        whole = not (idx.is_floating_point() or idx.is_complex() or idx.dtype == torch.bool)
        if not whole or idx.dim() not in (1, 2) or idx.numel() == 0:
            dtype = str(idx.dtype).removeprefix("torch.")
            raise GptcliError(
                f"ids must be whole numbers, (T,) or (B, T); got {tuple(idx.shape)} of {dtype}",
                "for example model.tokenizer.encode(text)",
            )
        most = self.config.model.block_size
        if idx.shape[-1] > most:
            raise GptcliError(
                f"{idx.shape[-1]:,} tokens are more than the context length of {most:,}",
                f"give only the last {counted(most, 'token')}",
            )
        # PyTorch has no minimum of uint16, which is the dtype of `tokenizer.encode_array`.
        idx = idx.to(self.module.wte.weight.device, torch.int64)
        for bad in (int(idx.min()), int(idx.max())):
            self.tokenizer.token_bytes(bad)  # raises if an id is outside the vocabulary
        return idx

    # ---- facts ---------------------------------------------------------------------------

    @property
    def module(self) -> GPT:
        """The PyTorch module, in evaluation mode. The first access creates it."""
        return self._loaded.trained.model

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        if self._loaded.backend.native:
            return self._loaded.trained.weights.count
        from gptcli.model.gpt import count_parameters

        return count_parameters(self.module).total

    @property
    def val_loss(self) -> float | None:
        """The validation loss at this checkpoint, in nats per token; None if unknown."""
        from gptcli.training.training_state import progress_of

        meta = self._loaded.trained.meta
        return progress_of(meta).val_loss if "progress" in meta else None

    @property
    def device(self) -> str:
        """The type of the device: "cpu", "cuda" or "mps"."""
        return "cpu" if self._loaded.backend.native else str(self.module.wte.weight.device.type)

    @property
    def dtype(self) -> str:
        """The number format in which the model generates, such as "bfloat16"."""
        return self._loaded.backend.dtype

    def __repr__(self) -> str:
        loss = f", val loss {self.val_loss:.4f}" if self.val_loss is not None else ""
        return (
            f"<Model {self.run}: {self.parameters:,} parameters, {self.config.model.arch}, "
            f"{self.tokenizer.kind} tokens, step {self.step:,}{loss}; "
            f"{self.dtype} on {self.device}>"
        )

    def _repr_html_(self) -> str:
        from gptcli.api.notebook import model_page

        config, tokenizer = self.config.model, self.tokenizer
        loss = f", val loss {self.val_loss:.4f}" if self.val_loss is not None else ""
        facts = (
            f"{self.parameters:,} parameters; {config.arch}: "
            f"{counted(config.n_layer, 'layer')} of width {config.n_embd}, "
            f"{counted(config.n_head, 'head')}",
            f"context of {counted(config.block_size, 'token')} ({tokenizer.kind}, "
            f"{tokenizer.vocab_size:,} in the vocabulary)",
            f"step {self.step:,}{loss}; {self.dtype} on {self.device}",
        )
        sample = self.generate(max_new_tokens=_SHOWN_TOKENS, seed=0)
        return model_page(self.run, facts, sample)


def _count(n: int | None) -> int:
    """How many samples to make for each prompt: `n`, or 1 if it is None.

    Raises GptcliError if `n` is out of range."""
    if n is None:
        return 1
    count = whole_number(n)
    if count is None or not 1 <= count <= MOST_SAMPLES:
        raise GptcliError(
            f"n must be 1 to {MOST_SAMPLES:,}; got {cropped(repr(n))}", "for example n=3"
        )
    return count
