"""Compares sampling with the learner's key/value cache and without it: the texts and the speeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gptcli.cli.output import note
from gptcli.errors import GptcliError
from gptcli.files.paths import shell_word
from gptcli.plurals import counted

if TYPE_CHECKING:
    from gptcli.api.loading import SamplingModel
    from gptcli.model.gpt import GPT
    from gptcli.model.user_parts import UserParts
    from gptcli.sampling.generate import SampleRequest
    from gptcli.sampling.streams import Streams, Uniform
    from gptcli.sampling.text import Sample

LIMIT_S = 20.0  # seconds after which sampling without the cache is cut off


@dataclass(frozen=True)
class CacheComparison:
    """How the learner's cache changes the speed and the text. Speeds are in tokens per second."""

    file: str
    with_cache: float
    without: float
    difference: str | None  # how the texts differ, in words; None if they are equal
    whole: bool  # False if the text without the cache was cut off (LIMIT_S)
    dtype: str

    def to_json(self) -> dict[str, Any]:
        """The keys that `gptcli sample --json` adds to its output."""
        return {
            "tokens_per_second_without_cache": self.without,
            "same_text_without_cache": self.difference is None,
        }

    def report(self) -> None:
        """Print how much faster sampling is with the cache, and whether the text is the same.

        Raises GptcliError if the texts differ and the dtype is float32."""
        if self.difference is not None and self.dtype == "float32":
            raise GptcliError(
                f"your cache changes the text: {self.difference}",
                f"see gptcli check-cache {shell_word(self.file)}",
                exit_code=1,
            )
        text = "the same text"
        if not self.whole:
            text += f", as far as sampling without the cache came in {LIMIT_S:.0f} seconds"
        if self.difference is not None:
            text = f"another text, perhaps because {self.dtype} rounds; try --dtype float32"
        note(
            f"your cache: {counted(round(self.with_cache), 'token')} a second; without it "
            f"{self.without:,.0f}: {self.with_cache / self.without:.1f} times as fast, and {text}"
        )


def compare_without_cache(
    model: SamplingModel,
    requests: Sequence[SampleRequest],
    samples: Sequence[Sample],
    seconds: float,
    *,
    open_streams: Callable[[], Streams],
    seed: int,
    stops: Sequence[str],
) -> CacheComparison | None:
    """Generate the samples again without the learner's cache, and compare them with `samples`.

    Generates for at most LIMIT_S seconds. `seconds` is the time that generating `samples` took.
    Returns None if `samples` have no tokens."""
    from gptcli.sampling.text import NewText, generate_text

    longest = max((one.tokens for one in samples), default=0)
    if longest == 0:
        return None
    trained = model.trained
    cache: Any = trained.model.user_parts.cache
    texts = dict.fromkeys(range(len(requests)), "")
    ended: set[int] = set()
    with _without_cache(trained.model):
        streams = _Counted(open_streams())
        start = time.perf_counter()
        for item in generate_text(
            streams,
            trained.tokenizer,
            requests,
            max_new_tokens=longest,
            seed=seed,
            stops=stops,
        ):
            if isinstance(item, NewText):
                texts[item.index] += item.text
            else:
                ended.add(item.index)
            if time.perf_counter() - start > LIMIT_S:
                break
        elapsed = time.perf_counter() - start
    difference = None
    for index, one in enumerate(samples):
        text = texts[index]
        if not (one.text == text if index in ended else one.text.startswith(text)):
            difference = difference or _difference(one.text, text)
    return CacheComparison(
        cache.file.name,
        sum(one.tokens for one in samples) / seconds,
        streams.tokens / elapsed,
        difference,
        len(ended) == len(requests),
        model.backend.dtype,
    )


def _difference(cached: str, plain: str) -> str:
    """The first difference between the text with the cache and the text without it, in words."""
    at = next((i for i, (a, b) in enumerate(zip(cached, plain, strict=False)) if a != b), 0)
    return (
        f"from character {at + 1} on, it is {cached[at : at + 20]!r}; without the cache it is "
        f"{plain[at : at + 20]!r}"
    )


@contextmanager
def _without_cache(model: GPT) -> Iterator[None]:
    model.has_cache = False
    try:
        yield
    finally:
        model.has_cache = True


@contextmanager
def errors_of_cache(user_parts: UserParts | None) -> Iterator[None]:
    """Turn an exception in the learner's cache or attention into a GptcliError with the line."""
    try:
        yield
    except Exception as error:
        cache: Any = None if user_parts is None else user_parts.cache
        if cache is None or (failure := cache.failure(error)) is None:
            raise
        raise failure from error


class _Counted:
    """Passes all calls on to `streams`, and counts the tokens that they generate."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self.count, self.refills = streams.count, streams.refills
        self.tokens = 0

    def feed(self, texts: Mapping[int, Sequence[int]], *, restart: bool) -> None:
        """As in Streams."""
        self._streams.feed(texts, restart=restart)

    def run(self, streams: Sequence[int], uniform: Uniform) -> list[list[int]]:
        """As in Streams."""
        out = self._streams.run(streams, uniform)
        self.tokens += sum(map(len, out))
        return out
