"""Loads a model from a run or from another program's files, with the engine that samples it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.errors import GptcliError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gptcli.api.user_files import UserFiles
    from gptcli.sampling.backend import Backend
    from gptcli.sampling.next_token import SamplingParams
    from gptcli.sampling.streams import Streams
    from gptcli.sampling.user_sampler import UserSampler
    from gptcli.training.loading import Trained

DEVICES = ("auto", "cuda", "mps", "cpu")
DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass(frozen=True)
class SamplingModel:
    """A model that is ready for sampling, and the engine that samples it."""

    path: Path
    trained: Trained
    backend: Backend
    threads: int

    def open_streams(
        self, count: int, params: SamplingParams, sampler: UserSampler | None = None
    ) -> Streams:
        """`count` streams of this model; fewer if the memory cannot hold so many."""
        from gptcli.sampling.backend import open_streams
        from gptcli.sampling.valid_text import table_of

        return open_streams(
            self.trained.weights if self.backend.native else self.trained.model,
            count,
            params,
            self.backend,
            self.threads,
            table_of(self.trained.tokenizer),
            sampler,
        )

    def likeliest(self, texts: Sequence[Sequence[int]]) -> list[int]:
        """The likeliest next token after each text. Each text must fit in the context."""
        from gptcli.sampling.backend import open_streams
        from gptcli.sampling.params import SamplingParams

        model = self.trained.weights if self.backend.native else self.trained.model
        streams = open_streams(model, 1, SamplingParams(0.0), self.backend, self.threads)
        found = []
        for ids in texts:
            streams.feed({0: ids}, restart=True)
            found.append(streams.run([0], [[0.0]])[0][0])
        return found


def load_for_sampling(
    path: Path,
    checkpoint: str | None,
    *,
    device: str,
    dtype: str,
    threads: int | None,
    files: UserFiles,
) -> SamplingModel:
    """The model in the folder `path`, which is a run or holds another program's model.

    `checkpoint` is "best", "last" or a step. The dtype `auto` is chosen as in `choose_backend`.
    Raises GptcliError if the model, the device or the dtype cannot be used."""
    from gptcli.devices import is_surely_cpu
    from gptcli.native import library

    surely_cpu = is_surely_cpu(device)
    if device in ("auto", "cpu"):
        library.start_building(library.SAMPLING)  # in the background, while PyTorch is imported
    if surely_cpu and not files.given() and not is_foreign(path):
        found = _load_without_torch(path, checkpoint, dtype, threads)
        if found is not None:
            return found
    import torch

    from gptcli.api.user_files import load_user_parts
    from gptcli.devices import choose_device, choose_threads
    from gptcli.sampling.backend import choose_backend
    from gptcli.training.loading import load_trained
    from gptcli.training.run_folder import read_config

    place = choose_device(device)
    count = choose_threads(threads or "auto")
    user_parts = load_user_parts(files, with_cache=True)
    foreign = open_foreign(path) if is_foreign(path) else None
    config = foreign.config if foreign is not None else read_config(path)
    backend = choose_backend(
        dtype,
        place.type,
        has_user_parts=user_parts is not None and user_parts.in_network(),
        arch=config.model.traits,
    )
    trained = foreign or load_trained(
        path, checkpoint, device=place, dtype=torch.float32, user_parts=user_parts
    )
    if foreign is not None:
        trained.model.to(place)
    if not backend.native and backend.dtype != "float32":
        trained.model.branches_in(backend.torch_dtype)
    return SamplingModel(path, trained, backend, count)


def _load_without_torch(
    path: Path, checkpoint: str | None, dtype: str, threads: int | None
) -> SamplingModel | None:
    """The model of a run for the C library; None if only PyTorch can sample it.

    Does not import PyTorch, because the import takes longer than sampling a short text."""
    from gptcli.devices import threads_without_torch
    from gptcli.sampling.backend import choose_backend
    from gptcli.training.loading import read_trained
    from gptcli.training.run_folder import read_config

    count = threads_without_torch(threads or "auto")
    config = read_config(path)
    backend = choose_backend(dtype, "cpu", has_user_parts=False, arch=config.model.traits)
    if not backend.native:
        return None
    return SamplingModel(path, read_trained(path, checkpoint, config=config), backend, count)


def is_foreign(path: Path) -> bool:
    """Whether a folder holds another program's model: it is no run, but has a config.json."""
    return not (path / "config.yaml").is_file() and (path / "config.json").is_file()


def open_foreign(path: Path) -> Trained:
    """The model in another program's folder, in float32 on the CPU and in evaluation mode.

    Raises GptcliError if a file is missing or damaged, or if gptcli cannot compute this model
    exactly."""
    from gptcli.interop.imports import read_foreign

    return read_foreign(path)[0]


def refuse_unknown(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise GptcliError if the option `name` has a value that is not in `choices`."""
    if value not in choices:
        close = nearest(str(value), choices)
        guess = f"did you mean `{close}`? " if close else ""
        raise GptcliError(f"{name} `{value}` is not known", f"{guess}one of {', '.join(choices)}")


def path_text(name: str, value: Any) -> str | None:
    """The path in the argument `name` as text; None for None.

    Raises GptcliError if the value is no text and no path, or if no file can have this path."""
    if value is None:
        return None
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str):
        raise GptcliError(
            f"{name} must be a text or a path; got {type(value).__name__}",
            f"give {name} as a str or a Path",
        )
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise GptcliError(f"{name}: no file can have the name {path!r}", "correct it") from None
    return path
