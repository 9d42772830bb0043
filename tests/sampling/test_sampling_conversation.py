"""Turns: each goes on where the last ended, as if the text had been given whole."""

from __future__ import annotations

import pytest
import torch

from gptcli.errors import GptcliError
from gptcli.model.gpt import GPT
from gptcli.sampling.backend import Backend, open_streams
from gptcli.sampling.conversation import Conversation
from gptcli.sampling.generate import Job
from gptcli.sampling.next_token import SamplingParams
from gptcli.sampling.text import Sample, write
from gptcli.tokenization import Tokenizer, build_tokenizer
from tests.sampling.sampling_models import model

GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture(params=["modern", "gpt2"])
def m(request: pytest.FixtureRequest) -> GPT:
    return model(request.param, vocab_size=13)


@pytest.fixture
def tokenizer() -> Tokenizer:
    return build_tokenizer("char", 0, lambda: iter(["\nabcdefghijkl"]))


def talk(m: GPT, way: Backend, tokenizer: Tokenizer, *stops: str) -> Conversation:
    return Conversation(open_streams(m, 1, GREEDY, way, 1), tokenizer, seed=0, stops=stops)


def continued(m: GPT, way: Backend, tokenizer: Tokenizer, prompt: str, n: int) -> str:
    streams = open_streams(m, 1, GREEDY, way, 1)
    jobs = [Job(tokenizer.encode(prompt) or tokenizer.start_ids())]
    for item in write(streams, tokenizer, jobs, max_new_tokens=n, seed=0):
        if isinstance(item, Sample):
            return item.text
    raise AssertionError


def test_turns_are_one_text(m: GPT, way: Backend, tokenizer: Tokenizer) -> None:
    conversation = talk(m, way, tokenizer)
    text = ""
    for said in ("abc", "dd", "", "kl"):
        if said and text and not text.endswith("\n"):
            text += "\n"
        text += said
        answer = "".join(conversation.say(said, 12))
        assert answer == continued(m, way, tokenizer, text, 12)
        text += answer


def test_it_starts_without_a_prompt(m: GPT, way: Backend, tokenizer: Tokenizer) -> None:
    assert "".join(talk(m, way, tokenizer).say("", 9)) == continued(m, way, tokenizer, "", 9)


def test_a_stop_string_ends_a_turn_and_belongs_to_the_text(
    m: GPT, way: Backend, tokenizer: Tokenizer
) -> None:
    whole = continued(m, way, tokenizer, "ab", 20)
    stop = whole[4:6]
    conversation = talk(m, way, tokenizer, stop)
    first = "".join(conversation.say("ab", 20))
    at = whole.index(stop)
    assert first == whole[:at]
    # What it wrote of the stop string it has written.
    answer = "".join(conversation.say("", 5))
    follows = continued(m, way, tokenizer, "ab" + whole[: at + 2], 5)
    assert follows.startswith(answer)


def test_a_wish_ends_a_turn_between_two_tokens(m: GPT, way: Backend, tokenizer: Tokenizer) -> None:
    conversation, count = talk(m, way, tokenizer), 0

    def enough() -> bool:
        nonlocal count
        count += 1
        return count > 3

    first = "".join(conversation.say("ab", 100, enough))
    assert first == continued(m, way, tokenizer, "ab", 3)
    assert "".join(conversation.say("", 7)) == continued(m, way, tokenizer, "ab" + first, 7)


def test_what_cannot_be_encoded_changes_nothing(m: GPT, way: Backend, tokenizer: Tokenizer) -> None:
    conversation = talk(m, way, tokenizer)
    first = "".join(conversation.say("ab", 6))
    with pytest.raises(GptcliError, match="position 3"):  # of what was said, whatever was before
        list(conversation.say("abü", 6))
    assert "".join(conversation.say("", 6)) == continued(m, way, tokenizer, "ab" + first, 6)


def test_a_new_text_knows_nothing_of_the_old(m: GPT, way: Backend, tokenizer: Tokenizer) -> None:
    conversation = talk(m, way, tokenizer)
    list(conversation.say("abcabc", 20))
    conversation.new()
    assert "".join(conversation.say("de", 8)) == continued(m, way, tokenizer, "de", 8)


def test_a_stop_at_the_end_of_a_line_opens_no_other(
    m: GPT, way: Backend, tokenizer: Tokenizer
) -> None:
    newline = tokenizer.encode("\n")[0]  # all that it writes
    conversation = talk(m, way, tokenizer, "\n")
    fed: list[list[int]] = []
    feed = conversation._streams.feed

    def watched(texts: dict[int, list[int]], *, anew: bool) -> None:
        fed.append(texts[0])
        feed(texts, anew=anew)

    conversation._streams.feed = watched  # type: ignore[method-assign]
    run = conversation._streams.run
    conversation._streams.run = lambda streams, uniform: (  # type: ignore[method-assign]
        torch.full_like(run(streams, uniform), newline)
    )
    assert "".join(conversation.say("ab", 5)) == ""
    list(conversation.say("cd", 5))
    assert [tokenizer.decode(ids) for ids in fed] == ["ab", "cd"]


def test_turns_without_a_newline_in_the_vocabulary(m: GPT, way: Backend) -> None:
    letters = build_tokenizer("char", 0, lambda: iter(["abcdefghijklm"]))
    conversation = talk(m, way, letters)
    first = "".join(conversation.say("ab", 4))
    second = "".join(conversation.say("cd", 4))
    assert second == continued(m, way, letters, "ab" + first + "cd", 4)


def test_after_an_accident_a_new_text_begins(m: GPT, way: Backend, tokenizer: Tokenizer) -> None:
    conversation = talk(m, way, tokenizer)
    list(conversation.say("abc", 4))

    def interrupted() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(conversation.say("de", 4, interrupted))
    assert "".join(conversation.say("fg", 6)) == continued(m, way, tokenizer, "fg", 6)
