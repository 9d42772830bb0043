"""The options of generation: how many tokens, how they are chosen, where to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gptcli.errors import GptcliError, cropped
from gptcli.number_values import real_number, whole_number

if TYPE_CHECKING:
    from gptcli.sampling.generate import SampleRequest
    from gptcli.sampling.params import SamplingParams
    from gptcli.tokenization import Tokenizer

MOST_SAMPLES = 100_000


@dataclass(frozen=True)
class Generation:
    """How much to generate, how tokens are chosen, and where to stop. Holds the default values."""

    max_new_tokens: int = 500
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    stop: Sequence[str] = ()
    seed: int | None = None

    def checked(self, spelt: Callable[[str], str] = str) -> Generation:
        """The same options, with each number as Python's int or float.

        `spelt` returns the name that messages use for a parameter, such as "--top-k" for top_k.
        Raises GptcliError if a value has a wrong type or is out of range."""
        found: dict[str, Any] = {}
        for name, least in (("max_new_tokens", 0), ("top_k", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None or name == "max_new_tokens":
                found[name] = checked_number(spelt(name), value, least)
        for name, usual, most in (
            ("temperature", "0.5 to 1.2", math.inf),
            ("repetition_penalty", "1 to 1.3", math.inf),
            ("top_p", "0.9 to 0.98", 1.0),
            ("min_p", "0.01 to 0.1", 1.0),
        ):
            given = getattr(self, name)
            if given is None and name in ("top_p", "min_p"):
                continue
            value = real_number(given)
            if value is None or not math.isfinite(value):
                raise GptcliError(
                    f"{spelt(name)} must be a finite number; got {cropped(repr(given))}",
                    f"{usual} is usual",
                )
            if not 0.0 <= value <= most:
                limits = "0 or more" if most == math.inf else f"0 to {most:g}"
                raise GptcliError(
                    f"{spelt(name)} must be {limits}; got {value:g}", f"{usual} is usual"
                )
            found[name] = value
        if not 0.01 <= found["repetition_penalty"] <= 100:
            raise GptcliError(
                f"{spelt('repetition_penalty')} must be 0.01 to 100; got "
                f"{found['repetition_penalty']:g}",
                "1 changes nothing, 1.1 to 1.3 is usual",
            )
        if "" in self.stop:
            raise GptcliError(
                f"{spelt('stop')} takes a text of at least one character", "leave it out"
            )
        return replace(self, **found)

    def params(self) -> SamplingParams:
        """The sampling parameters alone: temperature, top-k, top-p, min-p, repetition penalty."""
        from gptcli.sampling.params import SamplingParams

        return SamplingParams(
            self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty
        )

    def seed_or_new(self) -> int:
        """The seed; a random seed if none is set."""
        import secrets

        return secrets.randbelow(2**31) if self.seed is None else self.seed


def stops_of(stop: Any) -> tuple[str, ...]:
    """The stop strings in an argument that is a text or a list of texts.

    Raises GptcliError for other values."""
    stops = (stop,) if isinstance(stop, str) or not isinstance(stop, Iterable) else tuple(stop)
    if not all(isinstance(one, str) for one in stops):
        raise GptcliError(
            f"stop must be a text or a list of texts; got {cropped(repr(stop))}",
            'for example stop="\\n\\n", or leave it out',
        )
    return stops


def checked_number(name: str, value: Any, least: int) -> int:
    """The value as an int. Raises GptcliError if it is no whole number of at least `least`."""
    number = whole_number(value)
    if number is None or number < least:
        raise GptcliError(
            f"{name} must be a whole number, {least} or more; got {cropped(repr(value))}",
            "for example 40",
        )
    return number


def requests_of(
    tokenizer: Tokenizer, texts: Sequence[str], num_samples: int, place: Callable[[int], str]
) -> Iterator[SampleRequest]:
    """A request for each sample of each prompt, in the order of the prompts.

    Raises GptcliError if the tokenizer does not know a character. If this happens
    in prompt n, counted from 1, the error's message begins with the text `place(n)`."""
    from gptcli.sampling.generate import SampleRequest

    for number, text in enumerate(texts, 1):
        try:
            ids = tokenizer.prompt_ids(text)
        except GptcliError as error:
            raise GptcliError(f"{place(number)}{error.message}", error.hint) from None
        yield from (SampleRequest(ids, i) for i in range(num_samples))
