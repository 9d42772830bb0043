"""Conversations: in each turn, the model continues the text as if the whole text before were the
prompt."""

from __future__ import annotations

import pytest

from gptcli.errors import GptcliError
from gptcli.model.gpt import GPT
from gptcli.sampling.backend import Backend, open_streams
from gptcli.sampling.conversation import Conversation
from gptcli.sampling.generate import SampleRequest
from gptcli.sampling.next_token import SamplingParams
from gptcli.sampling.text import Sample, generate_text
from gptcli.tokenization import Tokenizer, build_tokenizer
from tests.sampling.sampling_models import model

GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture(params=["modern", "gpt2"])
def m(request: pytest.FixtureRequest) -> GPT:
    return model(request.param, vocab_size=13)


@pytest.fixture
def tokenizer() -> Tokenizer:
    return build_tokenizer("char", 0, lambda: iter(["\nabcdefghijkl"]))


def talk(m: GPT, backend: Backend, tokenizer: Tokenizer, *stops: str) -> Conversation:
    return Conversation(open_streams(m, 1, GREEDY, backend, 1), tokenizer, seed=0, stops=stops)


def continued(m: GPT, backend: Backend, tokenizer: Tokenizer, prompt: str, n: int) -> str:
    streams = open_streams(m, 1, GREEDY, backend, 1)
    requests = [SampleRequest(tokenizer.encode(prompt) or tokenizer.start_ids())]
    for item in generate_text(streams, tokenizer, requests, max_new_tokens=n, seed=0):
        if isinstance(item, Sample):
            return item.text
    raise AssertionError


def test_turns_continue_one_text(m: GPT, backend: Backend, tokenizer: Tokenizer) -> None:
    conversation = talk(m, backend, tokenizer)
    text = ""
    for line in ("abc", "dd", "", "kl"):
        if line and text and not text.endswith("\n"):
            text += "\n"
        text += line
        answer = "".join(conversation.say(line, 12))
        assert answer == continued(m, backend, tokenizer, text, 12)
        text += answer


def test_a_conversation_can_start_without_a_prompt(
    m: GPT, backend: Backend, tokenizer: Tokenizer
) -> None:
    assert "".join(talk(m, backend, tokenizer).say("", 9)) == continued(
        m, backend, tokenizer, "", 9
    )


def test_a_stop_string_ends_a_turn_and_stays_in_the_text(
    m: GPT, backend: Backend, tokenizer: Tokenizer
) -> None:
    whole = continued(m, backend, tokenizer, "ab", 20)
    stop = whole[4:6]
    conversation = talk(m, backend, tokenizer, stop)
    first = "".join(conversation.say("ab", 20))
    at = whole.index(stop)
    assert first == whole[:at]
    # The answer ends before the stop string, but the conversation's text keeps the stop string:
    # the model continues after it.
    answer = "".join(conversation.say("", 5))
    follows = continued(m, backend, tokenizer, "ab" + whole[: at + 2], 5)
    assert follows.startswith(answer)


def test_should_stop_ends_a_turn_between_two_tokens(
    m: GPT, backend: Backend, tokenizer: Tokenizer
) -> None:
    conversation, count = talk(m, backend, tokenizer), 0

    def enough() -> bool:
        nonlocal count
        count += 1
        return count > 3

    first = "".join(conversation.say("ab", 100, enough))
    assert first == continued(m, backend, tokenizer, "ab", 3)
    assert "".join(conversation.say("", 7)) == continued(m, backend, tokenizer, "ab" + first, 7)


def test_a_text_with_an_unknown_character_changes_nothing(
    m: GPT, backend: Backend, tokenizer: Tokenizer
) -> None:
    conversation = talk(m, backend, tokenizer)
    first = "".join(conversation.say("ab", 6))
    # The position in the error is counted in the new text, not in the whole conversation.
    with pytest.raises(GptcliError, match="position 3"):
        list(conversation.say("abü", 6))
    assert "".join(conversation.say("", 6)) == continued(m, backend, tokenizer, "ab" + first, 6)


def test_a_new_text_does_not_depend_on_the_old(
    m: GPT, backend: Backend, tokenizer: Tokenizer
) -> None:
    conversation = talk(m, backend, tokenizer)
    list(conversation.say("abcabc", 20))
    conversation.new()
    assert "".join(conversation.say("de", 8)) == continued(m, backend, tokenizer, "de", 8)


def test_a_stop_at_a_newline_adds_no_second_newline(
    m: GPT, backend: Backend, tokenizer: Tokenizer
) -> None:
    newline = tokenizer.encode("\n")[0]  # the changed model below writes only newlines
    conversation = talk(m, backend, tokenizer, "\n")
    fed: list[list[int]] = []
    feed = conversation._streams.feed

    def watched(texts: dict[int, list[int]], *, restart: bool) -> None:
        fed.append(texts[0])
        feed(texts, restart=restart)

    conversation._streams.feed = watched  # type: ignore[method-assign]
    run = conversation._streams.run
    conversation._streams.run = lambda streams, uniform: (  # type: ignore[method-assign]
        [[newline] * len(tokens) for tokens in run(streams, uniform)]
    )
    assert "".join(conversation.say("ab", 5)) == ""
    list(conversation.say("cd", 5))
    assert [tokenizer.decode(ids) for ids in fed] == ["ab", "cd"]


def test_turns_without_a_newline_in_the_vocabulary(m: GPT, backend: Backend) -> None:
    letters = build_tokenizer("char", 0, lambda: iter(["abcdefghijklm"]))
    conversation = talk(m, backend, letters)
    first = "".join(conversation.say("ab", 4))
    second = "".join(conversation.say("cd", 4))
    assert second == continued(m, backend, letters, "ab" + first + "cd", 4)


def test_after_an_interruption_a_new_text_begins(
    m: GPT, backend: Backend, tokenizer: Tokenizer
) -> None:
    conversation = talk(m, backend, tokenizer)
    list(conversation.say("abc", 4))

    def interrupted() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(conversation.say("de", 4, interrupted))
    assert "".join(conversation.say("fg", 6)) == continued(m, backend, tokenizer, "fg", 6)


def test_other_streams_continue_the_same_text(
    m: GPT, backend: Backend, tokenizer: Tokenizer
) -> None:
    conversation = talk(m, backend, tokenizer)
    first = "".join(conversation.say("ab", 20))
    conversation.continue_with(open_streams(m, 1, GREEDY, backend, 1))
    assert "".join(conversation.say("", 9)) == continued(m, backend, tokenizer, "ab" + first, 9)


def test_a_seed_repeats_its_answer(m: GPT, backend: Backend, tokenizer: Tokenizer) -> None:
    streams = open_streams(m, 1, SamplingParams(1.0), backend, 1)
    conversation = Conversation(streams, tokenizer, seed=1)
    answers = []
    for _ in range(2):
        conversation.new()
        conversation.reseed(7)
        answers.append("".join(conversation.say("ab", 30)))
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("written", "limit", "length"),
    [
        ("a" * 30 + "\n" + "b" * 50, 20, 31),  # the answer ends at the end of its line
        ("a\nb\n" + "c" * 90, 4, 4),  # the line ends exactly at the limit
        # The end of the line is too far away, so the answer ends at the end of a word.
        ("a" * 210 + " " + "b" * 900, 5, 211),
        ("a" * 900, 5, 405),  # a word that is too long is cut off
        ("a" * 900, 0, 0),
    ],
)
def test_an_answer_ends_with_its_line(
    written: str, limit: int, length: int, m: GPT, backend: Backend
) -> None:
    tokenizer = build_tokenizer("char", 0, lambda: iter(["\n abcdefghijk"]))
    conversation = talk(m, backend, tokenizer)
    tokens = iter(tokenizer.encode(written))
    conversation._streams.run = lambda streams, uniform: (  # type: ignore[method-assign]
        [[next(tokens)]]
    )
    answer = "".join(conversation.say("k", limit, to_line_end=True))
    assert answer == written[:length]
