"""Tables of all parameters: name, role, place in the C library, names in GPT-2 and Qwen3.

The optimizers, the initialisation, the parameter counts and the C library's engine read the tables.
First reading: the two tables. Skip the functions below them.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Literal

Role = Literal["embedding", "head", "matrix", "gain", "bias", "other"]
"""What a parameter is for.

| role | shape | what |
|---|---|---|
| embedding | 2 dimensions | a row for each token or position; also the head, if the head is tied |
| head | 2 dimensions | turns the residual stream into logits; only if the head is not tied |
| matrix | 2 dimensions | multiplies the activations inside a block |
| gain | 1 dimension | a factor per channel |
| bias | 1 dimension | a term per channel |
| other | 2 or more dimensions | a tensor of a user's part that is none of these |"""


@dataclass(frozen=True)
class Parameter:
    """A parameter: one row of the tables below.

    `gpt2` is None if GPT-2 has no such parameter, and `qwen3` is None if Qwen3 has none.

    Matrices are (outputs, inputs), as in nn.Linear and Qwen3. GPT-2 stores the matrices of its
    blocks transposed. GPT-2 also concatenates query, key and value along the outputs: their
    matrices into one matrix, their biases into one vector. For query, key and value, `gpt2_part` is
    their place in this matrix or vector: 0, 1 or 2. For all other parameters it is None."""

    name: str
    role: Role
    place: str
    """The name in the enums of native/parameters.h. The enums list the names in the order of these
    tables."""
    gpt2: str | None
    """The name in Hugging Face's GPT2LMHeadModel."""
    qwen3: str | None
    """The name in Hugging Face's Qwen3ForCausalLM."""
    ends_branch: bool = False
    """Whether this matrix ends a residual branch, so that its output is added to the residual
    stream."""
    gpt2_part: int | None = None


# fmt: off
OUTSIDE_BLOCKS = (
    Parameter("wte.weight", "embedding", "WTE",
              "transformer.wte.weight", "model.embed_tokens.weight"),
    Parameter("wpe.weight", "embedding", "WPE", "transformer.wpe.weight", None),
    Parameter("ln_f.weight", "gain", "LNF", "transformer.ln_f.weight", "model.norm.weight"),
    Parameter("ln_f.bias", "bias", "LNF_BIAS", "transformer.ln_f.bias", None),
    Parameter("lm_head.weight", "head", "HEAD", "lm_head.weight", "lm_head.weight"),
)

# The parameters of block i. The prefix of their names is "h.i." here, "transformer.h.i." in GPT-2
# and "model.layers.i." in Qwen3.
IN_BLOCK = (
    Parameter("ln_1.weight", "gain", "LN1", "ln_1.weight", "input_layernorm.weight"),
    Parameter("ln_1.bias", "bias", "LN1_BIAS", "ln_1.bias", None),
    Parameter("attn.query.weight", "matrix", "QUERY",
              "attn.c_attn.weight", "self_attn.q_proj.weight", gpt2_part=0),
    Parameter("attn.key.weight", "matrix", "KEY",
              "attn.c_attn.weight", "self_attn.k_proj.weight", gpt2_part=1),
    Parameter("attn.value.weight", "matrix", "VALUE",
              "attn.c_attn.weight", "self_attn.v_proj.weight", gpt2_part=2),
    Parameter("attn.query.bias", "bias", "QUERY_BIAS", "attn.c_attn.bias", None, gpt2_part=0),
    Parameter("attn.key.bias", "bias", "KEY_BIAS", "attn.c_attn.bias", None, gpt2_part=1),
    Parameter("attn.value.bias", "bias", "VALUE_BIAS", "attn.c_attn.bias", None, gpt2_part=2),
    Parameter("attn.c_proj.weight", "matrix", "OUT",
              "attn.c_proj.weight", "self_attn.o_proj.weight", ends_branch=True),
    Parameter("attn.c_proj.bias", "bias", "OUT_BIAS", "attn.c_proj.bias", None),
    Parameter("attn.q_norm.weight", "gain", "Q_NORM", None, "self_attn.q_norm.weight"),
    Parameter("attn.k_norm.weight", "gain", "K_NORM", None, "self_attn.k_norm.weight"),
    Parameter("ln_2.weight", "gain", "LN2", "ln_2.weight", "post_attention_layernorm.weight"),
    Parameter("ln_2.bias", "bias", "LN2_BIAS", "ln_2.bias", None),
    Parameter("mlp.c_fc.weight", "matrix", "UP", "mlp.c_fc.weight", None),
    Parameter("mlp.up_proj.weight", "matrix", "UP", None, "mlp.up_proj.weight"),
    Parameter("mlp.gate_proj.weight", "matrix", "GATE", None, "mlp.gate_proj.weight"),
    Parameter("mlp.c_fc.bias", "bias", "UP_BIAS", "mlp.c_fc.bias", None),
    Parameter("mlp.c_proj.weight", "matrix", "DOWN", "mlp.c_proj.weight", None, ends_branch=True),
    Parameter("mlp.down_proj.weight", "matrix", "DOWN",
              None, "mlp.down_proj.weight", ends_branch=True),
    Parameter("mlp.c_proj.bias", "bias", "DOWN_BIAS", "mlp.c_proj.bias", None),
)
# fmt: on

_OUTSIDE = {row.name: row for row in OUTSIDE_BLOCKS}
_INSIDE = {row.name: row for row in IN_BLOCK}


def is_in_block(name: str) -> bool:
    """Whether the parameter called `name` in the model belongs to a block."""
    return name.startswith("h.")


def row_of(name: str) -> Parameter | None:
    """The row of the tables for the model's parameter `name`, such as "h.3.ln_1.weight".

    None if the parameter is not in the tables, because it belongs to a user's part."""
    if is_in_block(name):
        return _INSIDE.get(name.split(".", 2)[-1])
    return _OUTSIDE.get(name)


def role_of(name: str, dimensions: int) -> Role:
    """The role of a model's parameter, from its name and its number of dimensions.

    A user's part can have a parameter that is not in the tables, or whose number of
    dimensions does not fit the role in its row. Then the number of dimensions decides. With fewer
    than two dimensions, a parameter is a bias if its name ends with "bias", else a gain. With two
    dimensions, a parameter inside a block is a matrix. Any other parameter has the role "other"."""
    row = row_of(name)
    if row is not None and dimensions == (1 if row.role in ("gain", "bias") else 2):
        return row.role
    if dimensions < 2:
        return "bias" if name.endswith("bias") else "gain"
    return "matrix" if dimensions == 2 and is_in_block(name) else "other"


def names_by_place(n_layer: int, there: Container[str]) -> list[str | None]:
    """Parameter names in the order of native/parameters.h: outside the blocks, then block by block.

    `there` holds the names of the model's parameters. An entry is None if the model has no such
    parameter. If the head is tied, its entry is the name of the token embedding."""
    names = [_first(rows, "", there) for rows in _by_place(OUTSIDE_BLOCKS)]
    if names[-1] is None:
        names[-1] = "wte.weight"
    for i in range(n_layer):
        names += [_first(rows, f"h.{i}.", there) for rows in _by_place(IN_BLOCK)]
    return names


def _by_place(rows: tuple[Parameter, ...]) -> list[list[Parameter]]:
    places: dict[str, list[Parameter]] = {}
    for row in rows:
        places.setdefault(row.place, []).append(row)
    return list(places.values())


def _first(rows: list[Parameter], prefix: str, there: Container[str]) -> str | None:
    return next((prefix + row.name for row in rows if prefix + row.name in there), None)
