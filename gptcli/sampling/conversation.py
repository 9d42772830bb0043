"""A text that the user and the model write in turns, with a KV cache that stays between turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from gptcli.errors import GptcliError
from gptcli.sampling.generate import UniformNumbers
from gptcli.sampling.stop_filter import StopFilter
from gptcli.sampling.streams import Streams
from gptcli.tokenization import Tokenizer

_OVERTIME = 200
"""With `to_line_end`, an answer may have up to this many tokens more than `max_new_tokens` to reach
the end of its line. After these tokens, it may have as many again to reach the end of a word."""


class Conversation:
    """One stream that the user and the model extend in turns. `new` starts an empty text."""

    def __init__(
        self,
        streams: Streams,
        tokenizer: Tokenizer,
        *,
        seed: int,
        stops: Sequence[str] = (),
        stop_filter: Callable[[Sequence[str]], StopFilter] = StopFilter,
    ) -> None:
        self._streams, self._tokenizer = streams, tokenizer
        self._stops, self._stop_filter = stops, stop_filter
        self._uniforms = UniformNumbers(seed, 0)
        try:
            self._has_newline = bool(tokenizer.encode("\n"))
        except GptcliError:
            self._has_newline = False
        self.new()

    def new(self) -> None:
        """Start an empty text. The sequence of random numbers continues."""
        self._restart = True
        self._text: list[int] = []
        self._line_is_open = False

    def reseed(self, seed: int) -> None:
        """Restart the sequence of random numbers from `seed`."""
        self._uniforms = UniformNumbers(seed, 0)

    def continue_with(self, streams: Streams) -> None:
        """From now on, use other streams of the same model, with other sampling parameters."""
        self._streams, self._restart = streams, True

    def say(
        self,
        text: str,
        max_new_tokens: int,
        should_stop: Callable[[], bool] = lambda: False,
        *,
        to_line_end: bool = False,
    ) -> Iterator[str]:
        """Add the user's text (on a new line, if the tokenizer has newlines); continue the stream.

        Yields the pieces of the answer as soon as they are ready; some are empty. If `text` is
        empty, the model continues its last answer. The answer ends after `max_new_tokens`, at a
        stop string, at end-of-text, or if `should_stop` returns true before a token. With
        `to_line_end`, an answer that reaches `max_new_tokens` gets some more tokens to complete its
        line (see _OVERTIME). Raises GptcliError, and changes nothing, if the tokenizer does not
        know a character of the text."""
        # First encode the text without the newline. So if it cannot be encoded, the error names
        # positions in the user's text.
        ids = self._tokenizer.encode(text)
        if text and self._line_is_open and self._has_newline:
            text = "\n" + text
            ids = self._tokenizer.encode(text)
        if not self._text:
            ids = [*self._tokenizer.prefix, *ids] if ids else self._tokenizer.start_ids()
        try:
            if self._restart:
                ids = self._text + ids
                self._text = []
            if ids:
                self._streams.feed({0: ids}, restart=self._restart)
                self._text += ids
                self._restart = False
            if text:
                self._line_is_open = not text.endswith("\n")
            yield from self._answer(max_new_tokens, should_stop, to_line_end)
        except BaseException:
            self.new()  # the stream may have read only some of the tokens
            raise

    def _answer(
        self, max_new_tokens: int, should_stop: Callable[[], bool], to_line_end: bool
    ) -> Iterator[str]:
        decoder, stops = self._tokenizer.stream(), self._stop_filter(self._stops)
        count, end = 0, max_new_tokens == 0
        while not (end or should_stop() or stops.stopped):
            token = int(self._streams.run([0], [self._uniforms.take(1)])[0][0])
            self._text.append(token)
            count += 1
            if token == self._tokenizer.eot:
                self._line_is_open = False
                break
            text = decoder.push(token)
            if text:  # also text that the stop filter holds back
                self._line_is_open = not text.endswith("\n")
            yield stops.push(text)
            over = count - max_new_tokens
            end = over >= 0 and (
                not to_line_end
                or not self._line_is_open
                or (over >= _OVERTIME and text[-1:].isspace())
                or over >= 2 * _OVERTIME
            )
        yield stops.push(decoder.flush()) + stops.flush()
