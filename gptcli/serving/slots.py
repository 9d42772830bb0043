"""Slots: places for texts that are generated together, each with its own sampling parameters.

The C library computes all slots in one call. PyTorch computes the slots one after the other, so
each text is exactly the same as without the others. Dimensions: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor

from gptcli.api.loading import SamplingModel
from gptcli.model.gpt import GPT
from gptcli.sampling import valid_text
from gptcli.sampling.native_streams import NativeStreams
from gptcli.sampling.next_token import SamplingParams, choose_token, choose_valid_token
from gptcli.sampling.streams import Uniform
from gptcli.sampling.torch_streams import Decoder

if TYPE_CHECKING:
    from gptcli.native.decoder import FloatArray


class Slots(Protocol):
    """Texts that are generated together, numbered from 0. No text depends on another."""

    count: int
    """The number of slots."""

    def choose_by(self, slot: int, params: SamplingParams) -> None:
        """Set the sampling parameters for the next text of this slot."""

    def feed(self, texts: Mapping[int, Sequence[int]], *, restart: bool) -> None:
        """Add tokens to the texts of these slots. With `restart`, the tokens begin new texts."""

    def logits(self, slots: Sequence[int]) -> list[FloatArray]:
        """The logits for the next token of each slot: each float32 (V,)."""

    def run(self, slots: Sequence[int], uniform: Uniform) -> list[list[int]]:
        """Generate the next tokens of each slot in `slots`, and return them.

        `uniform` has a random number for each of these tokens."""


def open_slots(model: SamplingModel, count: int) -> Slots:
    """`count` slots of a model.

    If the memory is too small for `count` slots, the native engine opens fewer. Raises GptcliError
    if the memory is too small for one slot of the native engine."""
    if model.backend.native:
        return cast(NativeStreams, model.open_streams(count, SamplingParams()))
    table = valid_text.table_of(model.trained.tokenizer)
    return TorchSlots(model.trained.model, count, table)


class _Text:
    """A text in a slot: its tokens, its decoder, and the tokens that the decoder has not read."""

    def __init__(self, model: GPT, params: SamplingParams) -> None:
        self.decoder, self.params = Decoder(model, 1), params
        self.tokens: list[int] = []
        self.unread: list[int] = []
        self.logits = torch.empty(0)
        self.state = 0  # the UTF-8 state of the text (valid_text.py)
        self.seen: Tensor | None = None
        if params.repetition_penalty != 1.0:
            self.seen = torch.zeros(1, model.vocab_size, dtype=torch.bool)


class TorchSlots:
    """The protocol `Slots` in plain PyTorch: for any device, any dtype, and the user's parts."""

    def __init__(self, model: GPT, count: int, table: valid_text.Table | None) -> None:
        """`table` is made by gptcli/sampling/valid_text.py; None allows every token."""
        self.count = count
        self._model, self._bytes = model, table
        self._table = None if table is None else valid_text.as_tensor(table)
        self._params = [SamplingParams()] * count
        self._texts: dict[int, _Text] = {}

    def choose_by(self, slot: int, params: SamplingParams) -> None:
        """As in Slots."""
        self._params[slot] = params
        self._texts.pop(slot, None)

    def feed(self, texts: Mapping[int, Sequence[int]], *, restart: bool) -> None:
        """As in Slots. The model reads the tokens only when logits are needed."""
        for slot, ids in texts.items():
            if restart:
                self._texts[slot] = _Text(self._model, self._params[slot])
            text = self._texts[slot]
            self._add(text, ids)
            if self._bytes is not None:
                text.state = valid_text.state_after(self._bytes, text.tokens)

    def logits(self, slots: Sequence[int]) -> list[FloatArray]:
        """As in Slots."""
        return [self._read(self._texts[slot])[0].numpy() for slot in slots]

    def run(self, slots: Sequence[int], uniform: Uniform) -> list[list[int]]:
        """As in Slots."""
        out: list[list[int]] = []
        for slot, numbers in zip(slots, torch.tensor(uniform, dtype=torch.float64), strict=True):
            text = self._texts[slot]
            chosen = []
            for number in numbers.split(1):
                token = self._choose(text, number)
                chosen.append(token)
                self._add(text, [token])
            out.append(chosen)
        return out

    @staticmethod
    def _add(text: _Text, ids: Sequence[int]) -> None:
        text.tokens += ids
        text.unread += ids
        if text.seen is not None:
            text.seen[0, list(ids)] = True

    def _read(self, text: _Text) -> Tensor:
        """The logits for the next token of a text: float32 (1, V).

        First, the model reads the unread tokens of the text."""
        if text.unread:
            idx = torch.tensor([text.unread], device=self._model.wte.weight.device)
            text.logits = text.decoder.feed(idx).float().cpu()
            text.unread = []
        return text.logits

    def _choose(self, text: _Text, uniform: Tensor) -> int:
        logits = self._read(text)
        if self._table is None:
            return int(choose_token(logits, text.params, uniform, text.seen))
        state = torch.tensor([text.state])
        allowed = valid_text.allowed(self._table, state)
        token = choose_valid_token(logits, text.params, uniform, allowed, text.seen)
        text.state = int(valid_text.advance(self._table, state, token))
        return int(token)
