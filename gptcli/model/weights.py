"""The weights of a network as float32 memory, without PyTorch; the name and shape of each weight.

The C libraries compute with this memory, so gptcli can sample a run without PyTorch or numpy.

Dimensions: C channels (n_embd), D head_dim, F hidden width, H heads, K heads of keys and values,
T block_size, V vocabulary.

First reading: `parameter_shapes` lists all parameters of a network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gptcli.config import ModelConfig
from gptcli.model.parameters import IN_BLOCK, OUTSIDE_BLOCKS, Parameter

if TYPE_CHECKING:
    from gptcli.model.gpt import GPT

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Weights:
    """A network of builtin parts: its config, and its weights in row-major order (format `f`)."""

    config: ModelConfig
    vocab_size: int
    arrays: dict[str, memoryview[float]]

    @classmethod
    def of(cls, model: GPT) -> Weights:
        """The weights of a float32 model on the CPU. They share the model's memory."""
        assert not model.user_parts.in_network()
        arrays: dict[str, Any] = {
            name: parameter.detach().contiguous().numpy().data
            for name, parameter in model.named_parameters()
        }
        return cls(model.config, model.vocab_size, arrays)

    @property
    def count(self) -> int:
        """The number of parameters. A tied head counts once."""
        return sum(array.nbytes // array.itemsize for array in self.arrays.values())


def parameter_shapes(config: ModelConfig, vocab_size: int) -> Shapes:
    """The name and the shape of every parameter of a network without user's parts.

    A tied head appears once, as wte. Allocates no memory for weights, and needs no PyTorch."""
    names = [row.name for row in OUTSIDE_BLOCKS if _is_there(row, config)]
    shapes: Shapes = {name: _shape(name, config, vocab_size) for name in names}
    in_block = {
        row.name: _shape(row.name, config, vocab_size) for row in IN_BLOCK if _is_there(row, config)
    }
    for layer in range(config.n_layer):
        shapes |= {f"h.{layer}.{name}": shape for name, shape in in_block.items()}
    return shapes


def _is_there(row: Parameter, config: ModelConfig) -> bool:
    """Whether a network of this config has the parameter."""
    arch, part = config.traits, row.name.rpartition(".")[0]
    if row.role == "bias":
        norm = part.startswith("ln_")
        return config.bias and (not norm or arch.norm == "layer")
    if part.startswith("mlp."):
        return part in (_GATED if arch.gated else _NOT_GATED)
    return {
        "wpe": arch.positions == "learned",
        "lm_head": not arch.tied_head,
        "attn.q_norm": arch.qk_norm,
        "attn.k_norm": arch.qk_norm,
    }.get(part, True)


_GATED = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_NOT_GATED = ("mlp.c_fc", "mlp.c_proj")


def _shape(name: str, config: ModelConfig, vocab_size: int) -> tuple[int, ...]:
    """The shape of a parameter: linear layers (outputs, inputs), tables (entries, C)."""
    C, F = config.n_embd, config.traits.hidden_width(config.n_embd)
    D, H, K = config.head_dim, config.n_head, config.kv_heads
    part, _, kind = name.rpartition(".")
    shape = {
        "wte": (vocab_size, C),
        "wpe": (config.block_size, C),
        "lm_head": (vocab_size, C),
        "attn.query": (H * D, C),
        "attn.key": (K * D, C),
        "attn.value": (K * D, C),
        "attn.c_proj": (C, H * D),
        "attn.q_norm": (D,),
        "attn.k_norm": (D,),
        "mlp.c_fc": (F, C),
        "mlp.up_proj": (F, C),
        "mlp.gate_proj": (F, C),
        "mlp.c_proj": (C, F),
        "mlp.down_proj": (C, F),
    }.get(part, (C,))
    return shape[:1] if kind == "bias" else shape
