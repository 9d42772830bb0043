"""A text that a user and a model write in turns; what was read is not read again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from gptcli.errors import GptcliError
from gptcli.sampling.generate import Uniforms
from gptcli.sampling.streams import Streams
from gptcli.sampling.text import StopFilter
from gptcli.tokenization import Tokenizer


class Conversation:
    """One stream, fed by turns. `new` forgets all that was said."""

    def __init__(
        self, streams: Streams, tokenizer: Tokenizer, *, seed: int, stops: Sequence[str] = ()
    ) -> None:
        self._streams, self._tokenizer, self._stops = streams, tokenizer, stops
        self._uniforms = Uniforms(seed, 0)
        try:
            self._has_newline = bool(tokenizer.encode("\n"))
        except GptcliError:
            self._has_newline = False
        self.new()

    def new(self) -> None:
        """Begin anew; the random numbers go on."""
        self._anew = True
        self._line_is_open = False

    def say(
        self, text: str, max_new_tokens: int, should_stop: Callable[[], bool] = lambda: False
    ) -> Iterator[str]:
        """Add the user's text, on a line of its own, and continue: pieces of text as they come,
        some of them empty.

        An empty text lets the model go on where it is. Ends after `max_new_tokens`, at a stop
        string, at end-of-text, or where `should_stop` says so between two tokens. Raises
        GptcliError for a character that the tokenizer lacks; nothing has changed then."""
        ids = self._tokenizer.encode(text)  # an error names a place in what the user wrote
        if text and self._line_is_open and self._has_newline:
            text = "\n" + text
            ids = self._tokenizer.encode(text)
        if not ids and self._anew:
            ids = self._tokenizer.start_ids()
        try:
            if ids:
                self._streams.feed({0: ids}, anew=self._anew)
                self._anew = False
            if text:
                self._line_is_open = not text.endswith("\n")
            yield from self._answer(max_new_tokens, should_stop)
        except BaseException:
            self.new()  # cut short in the middle of something: what was read is not known
            raise

    def _answer(self, max_new_tokens: int, should_stop: Callable[[], bool]) -> Iterator[str]:
        decoder, stops = self._tokenizer.stream(), StopFilter(self._stops)
        for _ in range(max_new_tokens):
            if should_stop() or stops.stopped:
                break
            token = int(self._streams.run([0], self._uniforms.take(1)[None])[0, 0])
            if token == self._tokenizer.eot:
                self._line_is_open = False
                yield stops.push(decoder.flush()) + stops.flush()
                return
            written = decoder.push(token)
            if written:  # shown or not, it has been written
                self._line_is_open = not written.endswith("\n")
            yield stops.push(written)
        yield stops.push(decoder.flush()) + stops.flush()
