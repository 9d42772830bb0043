"""`train --dry-run`: parameters, tokens, memory and estimated time, without training."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import torch

from gptcli.config import Config
from gptcli.corpus.mixture import MixedTokens, times_read
from gptcli.devices import choose_device, choose_dtype
from gptcli.memory import total_memory
from gptcli.model.gpt import GPT, count_parameters
from gptcli.model.user_parts import UserParts
from gptcli.tokenization import Tokenizer
from gptcli.training.batch_size import with_fitting_batch_size
from gptcli.training.estimate import adapter_parameters, seconds_per_step, training_bytes
from gptcli.training.fine_tuning import with_few_steps
from gptcli.training.opening_text import open_text
from gptcli.training.other_machine import refuse_other_machine
from gptcli.training.setting_notes import setting_notes
from gptcli.training.setup import resolve


def dry_run_figures(
    config: Config,
    user_parts: UserParts | None = None,
    tokenizer: Tokenizer | None = None,
    *,
    is_short: bool = False,
) -> dict[str, Any]:
    """The object that `train --dry-run --json` prints. Writes no run folder.

    The tokens go to a temporary folder. If the C library is not compiled yet, it is compiled into
    the cache folder. `tokenizer` is the base run's tokenizer (--from). `is_short` is true for a
    fine-tune whose number of steps depends on the text.

    `seconds_estimate` includes evaluations. It comes from about two seconds of training on this
    machine, without torch.compile, because compiling can take a minute. It is None if the run does
    not fit in memory. `notes` are about the text and the settings."""
    has_user_parts = user_parts is not None and user_parts.in_network()
    refuse_other_machine(config, has_user_parts=has_user_parts)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        corpus = open_text(config, tokenizer, user_parts, cache=Path(folder))
        train_tokens = len(corpus.train)
        val_tokens = len(corpus.val) if corpus.val else 0
        vocab_size = corpus.tokenizer.vocab_size
        if is_short:
            config = with_few_steps(config, train_tokens)
        config = resolve(config, corpus, has_user_parts=has_user_parts)
        config, sized = with_fitting_batch_size(config, vocab_size, user_parts)
        epochs = times_read(corpus.train, config.tokens_per_step * config.train.max_steps)
        notes = [*corpus.notes, *sized, *setting_notes(config, corpus)]
        texts = [
            {"name": text.name, "share": text.share, "tokens": len(text.tokens)}
            for text in (corpus.train.texts if isinstance(corpus.train, MixedTokens) else ())
        ]
        del corpus
    device = choose_device(config.run.device)
    dtype = choose_dtype(config.run.dtype, device)
    with torch.device("meta"):
        count = count_parameters(GPT(config.model, vocab_size, user_parts=user_parts))
    assert config.run.engine != "auto"
    memory = training_bytes(
        config, vocab_size, count.total, torch.finfo(dtype).bits // 8, config.run.engine
    )
    step_seconds = None
    if memory < _memory_of(device):
        step_seconds = seconds_per_step(
            config, vocab_size, dtype, device, config.run.engine, user_parts
        )
        if config.run.compile:
            notes.append(
                "the time is an estimate for steps without torch.compile, because compiling takes "
                "too long for a dry run"
            )
    train = config.train
    tokens_per_step = config.tokens_per_step
    evaluations = -(-train.max_steps // int(train.eval_every)) if val_tokens else 0
    steps = train.max_steps + evaluations * val_tokens / 3 / tokens_per_step
    return {
        "parameters": count.total,
        "parameters_without_embeddings": count.without_embeddings,
        "adapter_parameters": adapter_parameters(config, vocab_size),
        "vocab_size": vocab_size,
        "train_tokens": train_tokens,
        **({"texts": texts} if texts else {}),
        "val_tokens": val_tokens,
        "tokens_per_step": tokens_per_step,
        "total_tokens": tokens_per_step * train.max_steps,
        "epochs": epochs,
        "memory_bytes": memory,
        "seconds_estimate": None if step_seconds is None else step_seconds * steps,
        "device": device.type,
        "dtype": config.run.dtype,
        "compile": config.run.compile,
        "notes": notes,
    }


def _memory_of(device: torch.device) -> float:
    """The size of the device's memory in bytes; infinite if the system does not say it."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return total_memory() or math.inf
