"""A user's sampler instead of the builtin one: a correct sampler gives the same texts, and a wrong
one causes an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptcli.course.exercises import sampling as reference
from gptcli.errors import GptcliError
from gptcli.sampling.backend import Backend, open_streams
from gptcli.sampling.conversation import Conversation
from gptcli.sampling.generate import SampleRequest
from gptcli.sampling.next_token import SamplingParams
from gptcli.sampling.text import Sample, generate_text
from gptcli.sampling.user_sampler import UserSampler
from gptcli.sampling.valid_text import table_of
from gptcli.tokenization import build_tokenizer
from tests.sampling.sampling_models import W, model

BYTE = build_tokenizer("byte", 0, lambda: iter(()))
USER = UserSampler("mine.py", Path("mine.py"), reference.next_token, reference.cut_at_stop)


def sampler(**functions: Callable[..., Any]) -> UserSampler:
    found = {"next_token": reference.next_token, "cut_at_stop": reference.cut_at_stop, **functions}
    return UserSampler("mine.py", Path(__file__), **found)


@pytest.mark.long_series
@pytest.mark.parametrize(
    ("arch", "params"),
    [
        ("modern", SamplingParams(1.0)),
        ("gpt2", SamplingParams(0.0, repetition_penalty=1.3)),
        ("modern", SamplingParams(1e-9)),
        ("gpt2", SamplingParams(1.2, top_k=30, top_p=0.9, min_p=0.02, repetition_penalty=1.2)),
        ("modern", SamplingParams(0.9, top_k=10_000, top_p=0.0)),
    ],
)
def test_a_right_sampler_gives_the_builtin_text(
    arch: str, params: SamplingParams, backend: Backend
) -> None:
    m = model(arch, 1, vocab_size=BYTE.vocab_size)
    requests = [
        SampleRequest(BYTE.encode(prompt), i) for prompt in ("ö", "KING: ab") for i in (0, 1)
    ]

    def samples(user: UserSampler | None, count: int) -> list[tuple[str, int, str]]:
        streams = open_streams(m, count, params, backend, 1, table_of(BYTE), user)
        stop_filter = {} if user is None else {"stop_filter": user.stop_filter}
        found = [
            one
            for one in generate_text(
                streams, BYTE, requests, max_new_tokens=3 * W, seed=1, stops=["e", "xy"],
                **stop_filter,  # type: ignore[arg-type]
            )
            if isinstance(one, Sample)
        ]  # fmt: skip
        return [(one.text, one.tokens, one.stopped) for one in sorted(found, key=lambda s: s.index)]

    builtin = samples(None, 4)
    assert samples(USER, 4) == builtin
    assert samples(USER, 2) == builtin


def test_turns_with_a_users_sampler_give_the_builtin_answers(backend: Backend) -> None:
    m = model("modern", 1, vocab_size=BYTE.vocab_size)
    params = SamplingParams(0.8, repetition_penalty=1.1)

    def answers(user: UserSampler | None) -> list[str]:
        streams = open_streams(m, 1, params, backend, 1, table_of(BYTE), user)
        more = {} if user is None else {"stop_filter": user.stop_filter}
        turns = Conversation(streams, BYTE, seed=4, stops=["qu"], **more)  # type: ignore[arg-type]
        return ["".join(turns.say(text, 12)) for text in ("KING", "What", "")]

    assert answers(USER) == answers(None)


def test_the_sampler_gets_the_text_and_neutral_values_for_what_is_off(backend: Backend) -> None:
    seen: list[tuple[Any, ...]] = []

    def note(logits: Any, *more: Any) -> int:
        seen.append((logits.shape, str(logits.dtype), *more))
        return 5 + len(seen)

    m = model("modern", 1)
    streams = open_streams(m, 1, SamplingParams(0.7), backend, 1, None, sampler(next_token=note))
    found = [
        ids
        for step in _loop(streams, [SampleRequest([1, 2, 1])], 3)
        for _, ids in step
    ]  # fmt: skip
    assert [i for ids in found for i in ids] == [6, 7, 8]
    assert [entry[2] for entry in seen] == [[1, 2, 1], [1, 2, 1, 6], [1, 2, 1, 6, 7]]
    for shape, dtype, _, u, *values in seen:
        assert (shape, dtype, values) == ((13,), "torch.float64", [0.7, 13, 1.0, 0.0, 1.0])
        assert 0 <= u < 1


def _loop(streams: Any, requests: list[SampleRequest], count: int) -> Any:
    from gptcli.sampling.generate import GenerationLoop

    return GenerationLoop(streams, requests, max_new_tokens=count, seed=0)


def _raises(*arguments: Any) -> int:
    raise ValueError("no token\nleft")


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (_raises, r"its next_token raises ValueError: no token left, at line \d+"),
        (lambda *a: None, "its next_token returned None, not an id"),
        (lambda *a: 1.5, "its next_token returned 1.5, not an id"),
        (lambda *a: 13, "its next_token returned 13; ids go from 0 to 12"),
        (lambda *a: -1, "its next_token returned -1; ids go from 0 to 12"),
        (lambda logits: 0, "its next_token raises TypeError"),
    ],
)
def test_a_failing_sampler_is_an_error(
    function: Callable[..., Any], says: str, backend: Backend
) -> None:
    user = sampler(next_token=function)
    streams = open_streams(model("gpt2", 1), 1, SamplingParams(), backend, 1, None, user)
    with pytest.raises(GptcliError, match=says) as caught:
        list(_loop(streams, [SampleRequest([1])], 3))
    assert caught.value.message.startswith("your own sampler mine.py cannot be used: ")
    assert "gptcli check-sampling mine.py" in (caught.value.hint or "")
    assert caught.value.exit_code == 1


def test_a_failing_stop_function_is_an_error() -> None:
    for function, says in (
        (lambda text, stops: text, "its cut_at_stop returned ab, not (show, hold, stopped)"),
        (lambda text, stops: (1, 2, 3), "its cut_at_stop returned (1, 2, 3), not"),
        (_raises, "its cut_at_stop raises ValueError"),
    ):
        with pytest.raises(GptcliError, match=re.escape(says)):
            sampler(cut_at_stop=function).stop_filter(["b"]).push("ab")
    with pytest.raises(GptcliError, match="--stop needs its function `cut_at_stop`"):
        UserSampler("mine.py", Path("mine.py"), reference.next_token).stop_filter(["b"])
    assert UserSampler("mine.py", Path("mine.py"), reference.next_token).stop_filter([])
