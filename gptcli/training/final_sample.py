"""Draws a sample from the best or last checkpoint at the end of a run, in about half a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from gptcli.config import ModelConfig
from gptcli.events import Event, Notice, SampleDrawn
from gptcli.model.gpt import GPT
from gptcli.model.user_parts import UserParts
from gptcli.native import library
from gptcli.sampling.backend import Backend, choose_backend, open_streams
from gptcli.sampling.generate import SampleRequest
from gptcli.sampling.next_token import SamplingParams
from gptcli.sampling.streams import Streams
from gptcli.sampling.text import NewText, generate_text
from gptcli.tokenization import Tokenizer
from gptcli.training import checkpoint
from gptcli.training.meta_file import names_of
from gptcli.training.training_state import Progress, build_model

_SECONDS = 0.4  # including loading; --minutes reserves this time
_TOKENS = 200
_MAX_PARAMETERS = 20_000_000  # a larger checkpoint takes too long to read and verify


def final_sample(
    run: Path,
    progress: Progress,
    *,
    config: ModelConfig,
    tokenizer: Tokenizer,
    user_parts: UserParts | None,
    device: torch.device,
    threads: int,
    seed: int,
    should_stop: Callable[[], bool],
) -> Iterator[Event]:
    """Yield a sample of the checkpoint that `gptcli sample` uses: the best, or else the last.

    Builds another model from the checkpoint on the disk, so the run's own model does not change.
    Yields nothing if the checkpoint's step is 0, if the checkpoint is too large to be read in time,
    or if the run drew its last sample at this step. Turns an error into a notice, because the run
    itself is complete."""
    begun = time.perf_counter()
    step = progress.step if progress.best_step is None else progress.best_step
    if step == 0 or progress.sampled_at == step:
        return
    try:
        # The weights have four bytes each.
        files = checkpoint.read_meta(run, step)["files"]
        if sum(files[name]["size"] for name in names_of(files, "model")) > 4 * _MAX_PARAMETERS:
            return
        weights = checkpoint.load(run, step).model
        model = build_model(config, tokenizer.vocab_size, user_parts, weights).to(device).eval()
        own = user_parts is not None and user_parts.in_network()
        text = _draw(
            _streams(model, device, own, threads),
            tokenizer,
            seed,
            lambda: should_stop() or time.perf_counter() - begun > _SECONDS,
        )
    except Exception as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        yield Notice(f"no sample was drawn at the end ({what})")
        return
    if text:
        yield SampleDrawn(step, "", text)


def _streams(model: GPT, device: torch.device, own_parts: bool, threads: int) -> Streams:
    """A stream that samples with the C library if that is possible at once, else with PyTorch.

    It is possible if the library is already compiled, the device is a CPU, the library supports the
    arch, and the model has no user's parts."""
    backend = Backend("torch", "float32")
    if device.type == "cpu" and not own_parts and library.is_compiled(library.SAMPLING):
        backend = choose_backend("auto", "cpu", has_user_parts=False, arch=model.config.traits)
    return open_streams(model, 1, SamplingParams(), backend, threads)


def _draw(
    streams: Streams, tokenizer: Tokenizer, seed: int, should_stop: Callable[[], bool]
) -> str:
    """A text that the model writes. Ends after _TOKENS tokens, or if `should_stop` returns true."""
    text = ""
    for item in generate_text(
        streams,
        tokenizer,
        [SampleRequest(tokenizer.start_ids())],
        max_new_tokens=_TOKENS,
        seed=seed,
    ):
        if isinstance(item, NewText):
            text += item.text
        if should_stop():
            break
    return text
