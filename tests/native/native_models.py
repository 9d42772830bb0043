"""Networks for the tests of the C passes. Also the same networks as PyTorch models in any dtype."""

from __future__ import annotations

import copy
import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from gptcli.config import ModelConfig
from gptcli.model.gpt import GPT
from gptcli.native.engine import Engine
from gptcli.training.master_weights import MasterWeights
from gptcli.training.training_state import build_model


@dataclass
class Network:
    """A GPT in which no weight is 0, together with the engine that computes its passes in C."""

    model: GPT
    weights: MasterWeights
    engine: Engine
    dtype: torch.dtype

    def gradients(self) -> dict[str, Tensor]:
        """A copy of the gradients of the most recent C pass: parameter name -> gradient."""
        self.weights.use_gradients()
        return {name: p.grad.clone() for name, p in self.weights.masters if p.grad is not None}

    def reference(self, dtype: torch.dtype) -> GPT:
        """A PyTorch model whose weights are the master weights, rounded to `dtype`."""
        model = copy.deepcopy(self.model).to(dtype)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(self.weights.named()[name])
        return model.eval()


def dtype_of(library: ctypes.CDLL) -> torch.dtype:
    """The dtype in which a training library computes."""
    return torch.float32 if library.number_bytes() == 4 else torch.bfloat16


def network(
    library: ctypes.CDLL,
    arch: str,
    *,
    vocab_size: int = 11,
    most_tokens: int = 256,
    threads: int = 1,
    noise: float = 0.05,
    seed: int = 0,
    **sizes: object,
) -> Network:
    """A random GPT with its C passes, by default with two blocks.

    Noise is added to its weights, because weights of 0 hide gradients."""
    values = {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 64, "bias": arch == "gpt2"}
    config = ModelConfig.model_validate({"arch": arch, **values, **sizes})
    model = build_model(config, vocab_size, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += noise * torch.randn(parameter.shape, generator=generator)
    weights = MasterWeights(model, dtype_of(library))
    engine = Engine(
        library, config, vocab_size, *weights.flat(), most_tokens=most_tokens, threads=threads
    )
    engine.pack()
    return Network(model, weights, engine, dtype_of(library))


def batch(B: int, T: int, vocab_size: int = 11, seed: int = 2) -> tuple[Tensor, Tensor]:
    """(token ids, targets), both random, each of shape (B, T)."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocab_size, (2, B, T), generator=generator)
    return ids[0], ids[1]


def loss_and_gradients(model: GPT, idx: Tensor, targets: Tensor) -> tuple[float, dict[str, Tensor]]:
    """The mean loss that PyTorch computes, and its gradients: name -> float64 gradient."""
    loss = model.loss(idx, targets)
    loss.backward()
    found = {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}
    return loss.item(), found
