"""Builds answers in the form of OpenAI's completions: objects, and the events of a stream."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable
from typing import Any

from gptcli.sampling.text import StoppedBy
from gptcli.serving.token_scores import TokenScore
from gptcli.tokenization import Tokenizer

END = b"data: [DONE]\n\n"
_REASONS = {"length": "length", "stop": "stop", "end": "stop"}


class Logprobs:
    """Collects the tokens of one text, and makes OpenAI's `logprobs` for those that are sent."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._decoder = tokenizer, tokenizer.stream()
        self._at = 0  # the number of characters before the next token
        self._waiting: list[tuple[int, TokenScore]] = []
        self.sum, self.count = 0.0, 0
        """The sum of all log-probabilities, and their number; `best_of` compares sum / count."""

    def add(self, scores: Iterable[TokenScore]) -> None:
        """Add the scores of the next tokens."""
        for score in scores:
            self._waiting.append((self._at, score))
            self._at += len(self._decoder.push(score.token))
            if score.logprob is not None:
                self.sum += score.logprob
                self.count += 1

    def take(self, length: int) -> dict[str, Any]:
        """OpenAI's `logprobs` for the tokens that begin in the text's first `length` characters.

        Each token is returned once. Tokens after the end of the text, such as those of a stop
        string, are never returned."""
        ready = [(at, score) for at, score in self._waiting if at < length]
        self._waiting = self._waiting[len(ready) :]
        return {
            "tokens": [self._name(score.token) for _, score in ready],
            "token_logprobs": [score.logprob for _, score in ready],
            "top_logprobs": [
                None if score.logprob is None else
                {self._name(token): value for token, value in score.likeliest}
                for _, score in ready
            ],
            "text_offset": [at for at, _ in ready],
        }  # fmt: skip

    def _name(self, token: int) -> str:
        """A token as text; `bytes:\\xe2\\x80` for a part of a character, as in OpenAI's answers."""
        piece = self._tokenizer.token_bytes(token)
        try:
            return piece.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


class Answer:
    """Builds the objects of one answer, which share an id, a time and a model."""

    def __init__(self, model: str, fingerprint: str) -> None:
        self._same = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._start = b"data: " + _json(self._same)[:-1] + b',"choices":['
        self._usage = b""

    def complete(self, choices: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        """The object of a complete answer, which is not streamed."""
        return {**self._same, "choices": choices, "usage": usage}

    def with_usage(self) -> None:
        """Give all later events the field `usage`, which is null until the last event."""
        self._usage = b',"usage":null'

    def event(
        self, index: int, text: str, logprobs: dict[str, Any] | None, stopped: StoppedBy | None
    ) -> bytes:
        """An event of a stream: the next text of one choice."""
        scores = b"null" if logprobs is None else _json(logprobs)
        reason = b"null" if stopped is None else b'"%s"' % _REASONS[stopped].encode()
        return b'%s{"text":%s,"index":%d,"logprobs":%s,"finish_reason":%s}]%s}\n\n' % (
            self._start,
            _json(text),
            index,
            scores,
            reason,
            self._usage,
        )

    def usage_event(self, usage: dict[str, int]) -> bytes:
        """The event that holds `usage`, the numbers of tokens. It has no choices."""
        return b'%s],"usage":%s}\n\n' % (self._start, _json(usage))


def choice(
    index: int, text: str, logprobs: dict[str, Any] | None, stopped: StoppedBy
) -> dict[str, Any]:
    """A choice: one text of an answer that is not streamed."""
    return {
        "text": text,
        "index": index,
        "logprobs": logprobs,
        "finish_reason": _REASONS[stopped],
    }


def usage(prompt_tokens: int, new_tokens: int) -> dict[str, int]:
    """OpenAI's `usage`: how many tokens the prompts have, how many were generated, and the sum."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": new_tokens,
        "total_tokens": prompt_tokens + new_tokens,
    }


def error_event(body: dict[str, Any]) -> bytes:
    """The event that ends a stream after an error."""
    return b"data: " + _json(body) + b"\n\n"


def _json(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")
