"""Small modules for the tests of the model. `randomise` gives them random weights, biases and
gains, so that no term of a formula is 0."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from gptcli.config import ModelConfig
from gptcli.model.attention import CausalSelfAttention
from gptcli.model.gpt import GPT, initialise
from gptcli.model.rotary import RotaryCausalSelfAttention


def randomise(module: nn.Module, seed: int) -> None:
    """Give all parameters normally distributed values.

    The standard deviation is 1 / sqrt(inputs) for matrices, and 0.5 for biases and gains."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def attention(
    H: int,
    D: int,
    *,
    bias: bool = True,
    dropout: float = 0.0,
    rotary: bool = False,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> CausalSelfAttention:
    """A random attention in evaluation mode.

    Its config has only the fields that a learner's attention may read."""
    config = SimpleNamespace(n_embd=H * D, n_head=H, dropout=dropout, bias=bias)
    module = (RotaryCausalSelfAttention if rotary else CausalSelfAttention)(config)
    randomise(module, seed)
    return module.to(dtype).eval()


def inputs(B: int, T: int, C: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    """Random inputs x (B, T, C), normally distributed with standard deviation 1."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, T, C, generator=generator, dtype=torch.float64).to(dtype)


def gpt(
    arch: str,
    *,
    vocab_size: int = 11,
    seed: int = 0,
    random: bool = False,
    dtype: torch.dtype = torch.float32,
    **sizes: object,
) -> GPT:
    """A small GPT in evaluation mode, by default with two blocks. `initialise` sets its parameters.
    If `random` is true, `randomise` then makes all of them random, also the biases and gains."""
    values = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8, "bias": arch == "gpt2"}
    model = GPT(ModelConfig.model_validate({"arch": arch, **values, **sizes}), vocab_size)
    initialise(model, torch.Generator().manual_seed(seed))
    if random:
        randomise(model, seed)
    return model.to(dtype).eval()


def tokens(B: int, T: int, vocab_size: int = 11, seed: int = 2) -> Tensor:
    """Random token ids, int64 (B, T)."""
    return torch.randint(vocab_size, (B, T), generator=torch.Generator().manual_seed(seed))
