"""The page's arithmetic in numpy, which proves a page if the machine has no JavaScript engine.

This file reads the page's payload and computes what runtime/network.js computes, token by token.
Dimensions: C channels, H heads, K heads of keys and values, D head_dim, P channels of a head as
stored, S tokens that a token sees, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gptcli.errors import GptcliError
from gptcli.pages.model_page.payload import read_payload, read_pieces
from gptcli.pages.model_page.programs import Answer
from gptcli.pages.model_page.rounding import GROUP, Floats, dequantised
from gptcli.sampling.streams import window_start
from gptcli.tokenization import Tokenizer
from gptcli.tokenization.utf8_states import INVALID, next_states

_HALF_LOG = np.float32(0.7978845608028654)  # sqrt(2 / pi), for GELU in its tanh form


def ask(payload: str, texts: Sequence[str], steps: int, tokenizer: Tokenizer) -> Answer:
    """The Answer that the page with this payload would give for `texts`.

    Raises GptcliError if the page's tokenizer has other tokens than `tokenizer`."""
    header, sections = read_payload(payload)
    if read_pieces(header, sections) != list(tokenizer.pieces):
        raise GptcliError(
            "the page was not written: the tokenizer in it has other tokens than the run's",
            "this is a fault of gptcli: please report it",
            exit_code=1,
        )
    states = next_states(tokenizer.pieces)
    table = None if states is None else np.asarray(states)
    ids, logits, greedy = [], [], []
    for text in texts:
        ids.append(tokenizer.encode(text))
        network = _Network(header, sections)
        growing = list(ids[-1] or tokenizer.start_ids())
        logits.append(network.logits(growing))
        tokens: list[int] = []
        for _ in range(steps):
            row = network.logits(growing)
            if table is not None:
                row = np.where(table[_state_after(table, growing)] != INVALID, row, -np.inf)
            tokens.append(int(row.argmax()))
            growing.append(tokens[-1])
        greedy.append(tokens)
    return Answer(ids, np.stack(logits), greedy, "numpy")


def _state_after(table: Any, tokens: Sequence[int]) -> int:
    states = set(range(len(table))) if len(tokens) > 4 else {0}
    for token in tokens[-4:]:
        after = {int(table[state, token]) for state in states} - {INVALID}
        states = after or {int(table[0, token])} - {INVALID} or {0}
    return min(states)


class _Network:
    """Computes the network in a page's payload, with a key/value cache for one growing text."""

    def __init__(self, header: dict[str, Any], sections: dict[str, bytes]) -> None:
        self.m = header["model"]
        self.weights: dict[str, Floats] = {}
        for name, (rows, columns) in header["matrices"].items():
            width = -(-columns // GROUP) * GROUP
            whole = np.frombuffer(sections[f"{name}.int8"], dtype=np.int8).reshape(rows, width)
            planes = np.frombuffer(sections[f"{name}.scales"], dtype=np.uint8).reshape(2, rows, -1)
            scales = planes[0].astype(np.uint16) | planes[1].astype(np.uint16) << 8
            self.weights[name] = dequantised(whole, scales)[:, :columns]
        for name in header["vectors"]:
            self.weights[name] = np.frombuffer(sections[name], dtype="<f4")
        self.weights.setdefault("lm_head.weight", self.weights["wte.weight"])
        self.start = 0
        self.clear()

    def clear(self) -> None:
        """Forget all tokens."""
        shape = (0, self.m["n_kv_head"], self.m["head_dim"])
        self.keys = [np.zeros(shape, dtype=np.float32) for _ in range(self.m["n_layer"])]
        self.values = [np.zeros(shape, dtype=np.float32) for _ in range(self.m["n_layer"])]
        self.read = 0
        self.last: Floats = np.zeros(self.m["vocab_size"], dtype=np.float32)

    def logits(self, tokens: Sequence[int]) -> Floats:
        """The logits after a text. The text must continue the text of the last call."""
        learned = self.m["positions"] == "learned"
        start = window_start(len(tokens), self.m["block_size"]) if learned else 0
        if start != self.start:
            self.start = start
            self.clear()
        for token in tokens[self.start + self.read :]:
            self.last = self._feed(token)
        return self.last

    def _feed(self, token: int) -> Floats:
        at, w = self.read, self.weights
        x: Floats = w["wte.weight"][token]
        if "wpe.weight" in w:
            x = x + w["wpe.weight"][at]
        for layer in range(self.m["n_layer"]):
            x = x + self._attention(layer, at, self._norm(x, f"h.{layer}.ln_1"))
            x = x + self._feed_forward(layer, self._norm(x, f"h.{layer}.ln_2"))
        self.read += 1
        out: Floats = w["lm_head.weight"] @ self._norm(x, "ln_f")
        return out

    def _norm(self, x: Floats, name: str) -> Floats:
        centred = x - x.mean() if self.m["norm"] == "layer" else x
        scale = 1 / np.sqrt((centred * centred).mean() + np.float32(self.m["norm_eps"]))
        out: Floats = centred * scale * self.weights[f"{name}.weight"]
        return out + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else out

    def _linear(self, x: Floats, name: str) -> Floats:
        out: Floats = self.weights[f"{name}.weight"] @ x
        return out + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else out

    def _attention(self, layer: int, at: int, x: Floats) -> Floats:
        H, K, D = self.m["n_head"], self.m["n_kv_head"], self.m["head_dim"]
        name = f"h.{layer}.attn"
        q = self._linear(x, f"{name}.query").reshape(H, D)
        k = self._linear(x, f"{name}.key").reshape(K, D)
        v = self._linear(x, f"{name}.value").reshape(K, D)
        if self.m["positions"] == "rotary":
            q = self._norm_rotate(q, f"{name}.q_norm.weight", at)
            k = self._norm_rotate(k, f"{name}.k_norm.weight", at)
        width = self.m["block_size"]
        self.keys[layer] = np.concatenate((self.keys[layer], k[None]))[-width:]
        self.values[layer] = np.concatenate((self.values[layer], v[None]))[-width:]
        keys = self.keys[layer].repeat(H // K, axis=1)  # (S, H, D)
        values = self.values[layer].repeat(H // K, axis=1)
        scores = np.einsum("hd,shd->hs", q, keys) / np.float32(D**0.5)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        P = self.weights[f"{name}.c_proj.weight"].shape[1] // H
        mixed = np.zeros((H, P), dtype=np.float32)
        mixed[:, :D] = np.einsum("hs,shd->hd", weights, values)
        return self._linear(mixed.reshape(-1), f"{name}.c_proj")

    def _norm_rotate(self, x: Floats, gain: str, at: int) -> Floats:
        D = self.m["head_dim"]
        if gain in self.weights:
            squares = (x * x).mean(axis=1, keepdims=True) + np.float32(self.m["norm_eps"])
            x = x / np.sqrt(squares) * self.weights[gain]
        angle = at * self.m["rope_theta"] ** (-2.0 * np.arange(D // 2) / D)
        cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        a, b = x[:, : D // 2], x[:, D // 2 :]
        return np.concatenate((a * cos - b * sin, b * cos + a * sin), axis=1)

    def _feed_forward(self, layer: int, x: Floats) -> Floats:
        name = f"h.{layer}.mlp"
        if self.m["gated"]:
            gate = self._linear(x, f"{name}.gate_proj")
            hidden = gate / (1 + np.exp(-gate)) * self._linear(x, f"{name}.up_proj")
            return self._linear(hidden, f"{name}.down_proj")
        z = self._linear(x, f"{name}.c_fc")
        inner = _HALF_LOG * (z + np.float32(0.044715) * z * z * z)
        return self._linear(np.float32(0.5) * z * (1 + np.tanh(inner)), f"{name}.c_proj")
