"""Builds the ONNX graph of a model from its parameters, with a key/value cache or without.

The graph is built node by node with the package onnx. torch.onnx would trace the forward pass for
one T, and everything that depends on T would then be constant: the length of the rotary table and
the choice of the fused kernel.

Dimensions: B batch, T new tokens, P past tokens (in the cache), S = P + T tokens in all, H heads, K
heads of keys and values, D head_dim, C channels, V vocabulary, W window (block_size).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from gptcli import __version__
from gptcli.model.gpt import GPT

OPSET = 18
"""The version of ONNX's operators (December 2022), which onnxruntime 1.14 and later can run."""
_IR_VERSION = 8  # the version of the file format that belongs to OPSET

_TURN = 1 << 40  # the number of parts of a full turn; 64 bits suffice for positions below 2^25
_NEVER = float(np.finfo(np.float32).min)  # the score of a key that is masked

# The names of dimensions that Optimum and transformers.js use. transformers.js looks for the name
# `batch_size` when it makes an empty cache.
_BATCH, _TIME, _PAST, _ALL = (
    "batch_size",
    "sequence_length",
    "past_sequence_length",
    "past_sequence_length + sequence_length",
)


def build(model: GPT, *, cache: bool) -> Any:
    """The model as an onnx.ModelProto in float32. The model must have only builtin parts.

    The input is `input_ids` int64 (B, T), and the output is `logits` (B, T, V). If `cache` is true,
    there are more inputs: `attention_mask` int64 (B, S), which is 0 for padding; `position_ids`
    int64 (B, T); `past_key_values.i.key` and `.value` (B, K, P, D) for each layer i. Then there are
    also more outputs: `present.i.key` and `.value` (B, K, S, D), the cache for the next call. P can
    be 0. Between two calls, a program may keep only the last W - 1 tokens of the cache, because a
    query attends to no earlier token."""
    return _Builder(model, cache).model()


class _Builder:
    """Builds a graph: collects its nodes, weights, inputs and outputs."""

    def __init__(self, model: GPT, cache: bool) -> None:
        config = model.config
        self._gpt, self._cache = model, cache
        self._traits = config.traits
        self._window = config.block_size
        self._heads, self._head_dim = config.n_head, config.head_dim
        self._kv_heads = config.kv_heads
        self._epsilon = self._traits.norm_eps
        self._nodes: list[Any] = []
        self._weights: dict[str, np.ndarray[Any, Any]] = {}
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._count = 0

    def model(self) -> Any:
        """The complete model, as an onnx.ModelProto."""
        gpt = self._gpt
        ids = self._input("input_ids", TensorProto.INT64, (_BATCH, _TIME))
        time = self._size(ids, 1)
        past: Sequence[tuple[str, str]] = ()
        if self._cache:
            mask = self._input("attention_mask", TensorProto.INT64, (_BATCH, _ALL))
            positions = self._input("position_ids", TensorProto.INT64, (_BATCH, _TIME))
            past = [
                (
                    self._input(f"past_key_values.{i}.key", TensorProto.FLOAT, self._kept(_PAST)),
                    self._input(f"past_key_values.{i}.value", TensorProto.FLOAT, self._kept(_PAST)),
                )
                for i in range(len(gpt.h))
            ]
            forbidden = self._forbidden(self._size(past[0][0], 2), time, mask)
        else:
            zero = self._integers([0])
            positions = self._op("Unsqueeze", self._range(zero, time), zero)  # (1, T)
            forbidden = self._forbidden(zero, time, None)
        embedding = self._weight("wte.weight", gpt.wte.weight)
        x = self._op("Gather", embedding, ids)  # (B, T, C)
        rotation = None
        if gpt.wpe is not None:
            table = self._weight("wpe.weight", gpt.wpe.weight)
            x = self._op("Add", x, self._op("Gather", table, positions))
        else:
            rotation = self._rotation(positions)
        for i, block in enumerate(gpt.h):
            name = f"h.{i}."
            normed = self._norm(x, block.ln_1, name + "ln_1")
            here = past[i] if past else None
            x = self._op(
                "Add", x, self._attention(normed, block.attn, i, here, forbidden, rotation)
            )
            normed = self._norm(x, block.ln_2, name + "ln_2")
            x = self._op("Add", x, self._feed_forward(normed, block.mlp, name + "mlp"))
        x = self._norm(x, gpt.ln_f, "ln_f")
        if gpt.lm_head.weight is gpt.wte.weight:
            head = self._op("Transpose", embedding, perm=[1, 0])
        else:
            head = self._weight("lm_head.weight", gpt.lm_head.weight.T)
        self._op("MatMul", x, head, output="logits")
        vocab_size = gpt.lm_head.weight.shape[0]
        logits = helper.make_tensor_value_info(
            "logits", TensorProto.FLOAT, (_BATCH, _TIME, vocab_size)
        )
        model = helper.make_model(
            helper.make_graph(self._nodes, "gpt", self._inputs, [logits, *self._outputs]),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=_IR_VERSION,
            producer_name="gptcli",
            producer_version=__version__,
        )
        for name, value in self._weights.items():  # not by make_graph, which would copy all weights
            model.graph.initializer.append(numpy_helper.from_array(value, name))
        return model

    # ---- the parts of the model ------------------------------------------------------------

    def _attention(
        self,
        x: str,
        attention: Any,
        layer: int,
        past: tuple[str, str] | None,
        forbidden: str,
        rotation: tuple[str, str] | None,
    ) -> str:
        """The attention of layer number `layer`: (B, T, C) -> (B, T, C)."""
        name, layers = f"h.{layer}.attn.", [attention.query, attention.key, attention.value]
        qkv = self._linear(x, layers, name + "qkv")
        sizes = self._integers([part.weight.shape[0] for part in layers])
        q, k, v = (
            self._op("Reshape", part, self._integers([0, 0, -1, self._head_dim]))
            for part in self._ops("Split", 3, qkv, sizes, axis=-1)
        )  # q (B, T, H, D), k and v (B, T, K, D)
        if self._traits.qk_norm:
            q = self._norm(q, attention.q_norm, name + "q_norm")
            k = self._norm(k, attention.k_norm, name + "k_norm")
        q, k, v = (self._op("Transpose", part, perm=[0, 2, 1, 3]) for part in (q, k, v))
        if rotation is not None:
            q, k = self._rotate(q, *rotation), self._rotate(k, *rotation)
        if past is not None:
            k = self._present(f"present.{layer}.key", past[0], k)
            v = self._present(f"present.{layer}.value", past[1], v)
        k, v = self._repeated(k), self._repeated(v)
        scores = self._op("MatMul", q, self._op("Transpose", k, perm=[0, 1, 3, 2]))
        scores = self._op("Mul", scores, self._number(1.0 / math.sqrt(self._head_dim)))
        weights = self._op("Softmax", self._op("Add", scores, forbidden), axis=-1)  # (B, H, T, S)
        mixed = self._op("Transpose", self._op("MatMul", weights, v), perm=[0, 2, 1, 3])
        mixed = self._op("Reshape", mixed, self._integers([0, 0, -1]))
        return self._linear(mixed, [attention.c_proj], name + "c_proj")

    def _repeated(self, x: str) -> str:
        """Keys or values for all query heads that share them: (B, K, S, D) -> (B, H, S, D)."""
        if self._kv_heads == self._heads:
            return x
        groups = self._heads // self._kv_heads
        x = self._op("Unsqueeze", x, self._integers([2]))
        x = self._op("Expand", x, self._integers([1, 1, groups, 1, 1]))  # (B, K, G, S, D)
        return self._op("Reshape", x, self._integers([0, self._heads, -1, self._head_dim]))

    def _present(self, name: str, past: str, new: str) -> str:
        """Joins past and new keys or values. The result `name` is also an output of the graph."""
        info = helper.make_tensor_value_info(name, TensorProto.FLOAT, self._kept(_ALL))
        self._outputs.append(info)
        return self._op("Concat", past, new, axis=2, output=name)

    def _kept(self, tokens: str) -> tuple[str, int, str, int]:
        """The shape of a layer's keys or values for `tokens` tokens: (B, K, tokens, D)."""
        return _BATCH, self._kv_heads, tokens, self._head_dim

    def _feed_forward(self, x: str, layer: Any, name: str) -> str:
        """SwiGLU if the arch is gated, else MLP: (B, T, C) -> (B, T, C)."""
        if self._traits.gated:
            gate = self._linear(x, [layer.gate_proj], name + ".gate_proj")
            gate = self._op("Mul", gate, self._op("Sigmoid", gate))  # SiLU
            up = self._linear(x, [layer.up_proj], name + ".up_proj")
            return self._linear(self._op("Mul", gate, up), [layer.down_proj], name + ".down_proj")
        x = self._linear(x, [layer.c_fc], name + ".c_fc")
        return self._linear(self._gelu(x), [layer.c_proj], name + ".c_proj")

    def _gelu(self, x: str) -> str:
        """The tanh form of GELU: x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))."""
        cube = self._op("Mul", x, self._op("Mul", x, x))
        inner = self._op("Add", x, self._op("Mul", cube, self._number(0.044715)))
        tanh = self._op("Tanh", self._op("Mul", inner, self._number(math.sqrt(2 / math.pi))))
        gate = self._op("Mul", self._op("Add", tanh, self._number(1.0)), self._number(0.5))
        return self._op("Mul", x, gate)

    def _norm(self, x: str, layer: Any, name: str) -> str:
        """LayerNorm if the arch has it, else RMSNorm, over the last dimension."""
        gain = self._weight(name + ".weight", layer.weight)
        if self._traits.norm == "layer":
            bias = getattr(layer, "bias", None)
            inputs = [gain] if bias is None else [gain, self._weight(name + ".bias", bias)]
            return self._op("LayerNormalization", x, *inputs, axis=-1, epsilon=self._epsilon)
        square = self._op("ReduceMean", self._op("Mul", x, x), self._integers([-1]), keepdims=1)
        root = self._op("Sqrt", self._op("Add", square, self._number(self._epsilon)))
        return self._op("Mul", self._op("Div", x, root), gain)

    def _linear(self, x: str, layers: Sequence[Any], name: str) -> str:
        """The outputs of all `layers` for `x`, concatenated. One matrix product computes them.

        The matrix in the graph is (inputs, outputs), the transposed matrix of nn.Linear."""
        weight = torch.cat([layer.weight for layer in layers]).T
        x = self._op("MatMul", x, self._weight(name + ".weight", weight))
        if layers[0].bias is None:
            return x
        bias = torch.cat([layer.bias for layer in layers])
        return self._op("Add", x, self._weight(name + ".bias", bias))

    def _rotation(self, positions: str) -> tuple[str, str]:
        """The cosines and sines of positions: int64 (B, T) -> two tensors (B, 1, T, D).

        As in gptcli.model.rotary, the first half of the sines is negated. gptcli.model.rotary
        computes the angles in float64, but few runtimes have float64. With angles in float32,
        logits were wrong by 0.001 at position 10,000. So an angle is an integer here: a number
        of small parts of a turn. Complete turns are subtracted."""
        half = np.arange(self._head_dim // 2)
        turns = self._traits.rope_theta ** (-2.0 * half / self._head_dim) / (
            2 * math.pi
        )  # how far each pair of channels turns from one position to the following one
        parts = self._constant("turns", np.round(turns * _TURN).astype(np.int64))
        at = self._op("Unsqueeze", positions, self._integers([1, 3]))  # (B, 1, T, 1)
        half_turn = self._integers([_TURN // 2])
        angle = self._op("Add", self._op("Mul", at, parts), half_turn)
        angle = self._op("Sub", self._op("Mod", angle, self._integers([_TURN])), half_turn)
        angle = self._op("Cast", angle, to=TensorProto.FLOAT)  # -0.5 to 0.5 turns, counted in parts
        angle = self._op("Mul", angle, self._number(2 * math.pi / _TURN))
        cos, sin = self._op("Cos", angle), self._op("Sin", angle)  # (B, 1, T, D/2)
        return (
            self._op("Concat", cos, cos, axis=-1),
            self._op("Concat", self._op("Neg", sin), sin, axis=-1),
        )

    def _rotate(self, x: str, cos: str, sin: str) -> str:
        """Queries (B, H, T, D) or keys (B, K, T, D), rotated by the angles of their positions."""
        half = self._head_dim // 2
        first, second = self._ops("Split", 2, x, self._integers([half, half]), axis=-1)
        swapped = self._op("Concat", second, first, axis=-1)
        return self._op("Add", self._op("Mul", x, cos), self._op("Mul", swapped, sin))

    def _forbidden(self, past: str, time: str, mask: str | None) -> str:
        """The causal mask with a sliding window: (T, S), or (B, 1, T, S) if `mask` is given.

        `mask` is 0 for padding. The result is added to the scores. It is 0 for a key that the query
        can attend to, and the lowest float32 number for all other keys."""
        total = self._op("Add", past, time)
        query = self._op("Unsqueeze", self._range(past, total), self._integers([1]))
        key = self._op("Unsqueeze", self._range(self._integers([0]), total), self._integers([0]))
        distance = self._op("Sub", query, key)
        allowed = self._op(
            "And",
            self._op("GreaterOrEqual", distance, self._integers([0])),
            self._op("Less", distance, self._integers([self._window])),
        )
        if mask is not None:
            there = self._op("Cast", mask, to=TensorProto.BOOL)
            there = self._op("Unsqueeze", there, self._integers([1, 2]))  # (B, 1, 1, S)
            allowed = self._op("And", allowed, there)
        return self._op("Where", allowed, self._number(0.0), self._number(_NEVER))

    # ---- nodes, inputs and weights ---------------------------------------------------------

    def _op(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add a node to the graph, and return the name of its output: `output`, or a new name."""
        (found,) = self._ops(kind, 1, *inputs, output=output, **attributes)
        return found

    def _ops(
        self, kind: str, outputs: int, *inputs: str, output: str | None = None, **attributes: Any
    ) -> list[str]:
        """Add a node to the graph, and return the names of its outputs."""
        self._count += 1
        name = f"{kind}_{self._count}"
        names = [output or f"{name}_{i}" for i in range(outputs)]
        self._nodes.append(helper.make_node(kind, inputs, names, name=name, **attributes))
        return names

    def _input(self, name: str, kind: int, shape: Sequence[str | int]) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def _size(self, tensor: str, dimension: int) -> str:
        """The name of an int64 (1,) tensor that holds the size of `tensor` in `dimension`."""
        shape = self._op("Shape", tensor)
        return self._op("Gather", shape, self._integers([dimension]))

    def _range(self, first: str, end: str) -> str:
        """The integers from `first` to `end` - 1.

        Both arguments are names of int64 (1,) tensors."""
        scalar = self._constant("scalar", np.zeros(0, np.int64))
        first, end = self._op("Reshape", first, scalar), self._op("Reshape", end, scalar)
        return self._op("Range", first, end, self._constant("one", np.array(1, np.int64)))

    def _integers(self, values: Sequence[int]) -> str:
        name = "integers_" + "_".join(map(str, values))
        return self._constant(name, np.array(values, np.int64))

    def _number(self, value: float) -> str:
        return self._constant(f"number_{value!r}", np.array(value, np.float32))

    def _weight(self, name: str, tensor: Tensor) -> str:
        return self._constant(name, tensor.detach().contiguous().float().cpu().numpy())

    def _constant(self, name: str, value: np.ndarray[Any, Any]) -> str:
        self._weights.setdefault(name, value)
        return name
