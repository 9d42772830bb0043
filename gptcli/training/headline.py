"""The first event of a run: the facts about its network, text and device."""

from __future__ import annotations

from pathlib import Path

import torch

from gptcli.config import Config
from gptcli.corpus import Corpus
from gptcli.devices import describe_device, dtype_name
from gptcli.events import RunStarted
from gptcli.model.gpt import GPT, count_parameters
from gptcli.training.speed import flops_per_token


def run_started(
    run: Path,
    config: Config,
    corpus: Corpus,
    model: GPT,
    device: torch.device,
    dtype: torch.dtype,
    *,
    threads: int,
    compiled: bool,
    max_steps: int,
    resumed_from: int | None,
    adapter_parameters: int | None,
) -> RunStarted:
    """The first event of a run, with the facts about the run and the number of parameters."""
    count = count_parameters(model)
    return RunStarted(
        run=run,
        source=config.data.described,
        tokenizer=corpus.tokenizer.kind,
        vocab_size=corpus.tokenizer.vocab_size,
        arch=config.model.arch,
        parameters=count.total,
        parameters_without_embeddings=count.without_embeddings,
        train_tokens=len(corpus.train),
        val_tokens=len(corpus.val) if corpus.val else 0,
        max_steps=max_steps,
        tokens_per_step=config.tokens_per_step,
        device=describe_device(device, threads),
        dtype=dtype_name(dtype),
        compiled=compiled,
        resumed_from=resumed_from,
        flops_per_token=flops_per_token(model),
        adapter_parameters=adapter_parameters,
    )
