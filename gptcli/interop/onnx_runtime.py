"""Runs exported ONNX files in onnxruntime, with a key/value cache or without, for the proof.

Dimensions: B batch, T tokens, P tokens in the cache, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def session(path: Path) -> Any:
    """An InferenceSession on the CPU, with as many threads as PyTorch. It logs only errors.

    The package onnxruntime must be installed."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class TextModel:
    """Runs the ONNX file that has no cache (model_without_cache.onnx)."""

    def __init__(self, path: Path) -> None:
        self._session = session(path)

    def logits(self, idx: Tensor) -> Tensor:
        """The logits of complete texts: int64 (B, T) -> float32 (B, T, V)."""
        (found,) = self._session.run(None, {"input_ids": idx.numpy()})
        return torch.from_numpy(found)


class CachedModel:
    """Runs the ONNX file that has a cache (model.onnx), and keeps the cache between the calls."""

    def __init__(self, path: Path) -> None:
        self._session = session(path)
        self._past: dict[str, Any] = {}
        self._mask = np.ones((1, 0), np.int64)

    def clear(self, batch: int) -> None:
        """Remove all tokens from the cache, and begin a batch of `batch` new texts."""
        self._mask = np.ones((batch, 0), np.int64)
        self._past = {
            put.name: np.zeros((batch, put.shape[1], 0, put.shape[3]), np.float32)
            for put in self._session.get_inputs()
            if put.name.startswith("past_key_values.")
        }

    def feed(self, idx: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """The logits of T new tokens: int64 (B, T) -> float32 (B, T, V).

        `mask` is 0 for padding."""
        self._mask = np.concatenate((self._mask, mask.numpy()), axis=1)
        inputs = {
            "input_ids": idx.numpy(),
            "position_ids": positions.numpy(),
            "attention_mask": self._mask,
            **self._past,
        }
        logits, *present = self._session.run(None, inputs)
        self._past = dict(zip(self._past, present, strict=True))
        return torch.from_numpy(logits)

    def keep(self, tokens: int) -> None:
        """Remove all tokens from the cache, except the last `tokens` tokens."""
        first = max(0, self._mask.shape[1] - tokens)
        self._mask = self._mask[:, first:]
        self._past = {name: kept[:, :, first:] for name, kept in self._past.items()}

    def in_one_call(self, idx: Tensor) -> Tensor:
        """The logits of a text that is read in one call: int64 (1, T) -> float32 (1, T, V)."""
        self.clear(1)
        return self.feed(idx, torch.arange(idx.shape[1])[None], torch.ones_like(idx))

    def in_pieces(self, idx: Tensor, window: int) -> Tensor:
        """The logits of a text that is read in pieces: half of it, 32 single tokens, what remains.

        Between two calls, the cache keeps only the tokens to which the next token can attend."""
        half = idx.shape[1] // 2
        singles = min(32, idx.shape[1] - half)
        sizes = [half, *[1] * singles, idx.shape[1] - half - singles]
        self.clear(1)
        found, start = [], 0
        for size in filter(None, sizes):
            end = start + size
            piece = idx[:, start:end]
            found.append(self.feed(piece, torch.arange(start, end)[None], torch.ones_like(piece)))
            self.keep(window - 1)
            start = end
        return torch.cat(found, dim=1)

    def in_batch(self, idx: Tensor) -> Tensor:
        """The logits of `idx`, read as the second text of a batch, after two tokens of padding."""
        two = torch.zeros(2, idx.shape[1] + 2, dtype=torch.int64)
        mask = torch.ones_like(two)
        two[1, 2:], mask[1, :2] = idx[0], 0
        positions = torch.arange(two.shape[1]) - torch.tensor([[0], [2]])
        self.clear(2)
        # The first text has two tokens more than `idx`, and may be too long for the model. So the
        # last positions of this text are clamped. Its logits are not compared.
        return self.feed(two, positions.clamp(0, idx.shape[1] - 1), mask)[1:, 2:]
