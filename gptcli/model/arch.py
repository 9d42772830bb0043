"""The archs (layouts of the network) as data: norms, positions, feed-forward, head, initialisation.

The rest of gptcli asks an arch for a trait and never compares its name. A new arch needs:

1. a description here, and its name in `ArchName`;
2. the layers that no other arch has (layers.py, rotary.py), and code in gpt.py that chooses them
   (`norm_layer`, `attention_layer`, `feed_forward_layer`);
3. a row in parameters.py for each parameter with a new name.

With these, PyTorch can train and sample the new arch. The C library refuses a layout that it does
not know (`has_layout` in native/decoder.py).

This file imports only the standard library, so that gptcli.config can check a config against an
arch.

First reading: the two descriptions at the end show how GPT-2 and Qwen3 differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

ArchName = Literal["modern", "gpt2"]
ROPE_THETA = 10_000.0
"""The usual base theta of the rotation frequencies. Source: Su et al. 2021, "RoFormer"."""


@dataclass(frozen=True)
class Arch:
    """The traits of a network's layout."""

    norm: Literal["rms", "layer"]
    """rms: RMSNorm, which has a gain only. layer: LayerNorm, which also subtracts the mean."""
    positions: Literal["rotary", "learned"]
    """rotary: each attention rotates queries and keys by an angle that grows with the position.
    So a network can sample texts longer than block_size: the window of its key/value cache
    (model/cache.py) slides over the text.
    learned: a table of block_size vectors is added to the embedding."""
    qk_norm: bool
    """Whether RMSNorm normalises the queries and keys of each head (see rotary.py)."""
    gated: bool
    """Whether the feed-forward network is gated: three matrices (SwiGLU) instead of two (MLP)."""
    hidden_ratio: tuple[int, int]
    """The feed-forward network's hidden width divided by n_embd, as (numerator, denominator)."""
    hidden_multiple: int
    """The hidden width is rounded up to a multiple of this number."""
    tied_head: bool
    """Whether the head's matrix is the token embedding itself."""
    can_have_biases: bool
    """Whether `model.bias: true` is allowed."""
    can_have_user_parts: bool
    """Whether the user's attention, layer norm, MLP or block can replace the builtin one."""
    norm_eps: float
    """The epsilon that every norm adds to the mean square (RMSNorm) or to the variance
    (LayerNorm)."""
    model_type: Literal["qwen3", "llama", "gpt2"]
    """The layout's name in Hugging Face's config.json and in GGUF files, for gptcli.interop."""
    initialisation: Literal["fixed_std", "fan_in"]
    """The standard deviation with which gptcli.model.gpt.initialise draws a matrix.

    | matrix | fixed_std | fan_in |
    |---|---|---|
    | embedding | 0.02 | 1, or 0.02 if it is also the head |
    | head | 0.02 | 0 |
    | matrix that ends a residual branch | 0.02 / sqrt(2 n_layer) | 0 |
    | any other matrix | 0.02 | 1 / sqrt(number of inputs) |"""
    rope_theta: float = ROPE_THETA
    """The base theta of the rotation frequencies."""
    fixed_hidden_width: int | None = None
    """The hidden width, or None if it follows from n_embd."""

    def hidden_width(self, n_embd: int) -> int:
        """The width F of the feed-forward network's hidden layer."""
        if self.fixed_hidden_width is not None:
            return self.fixed_hidden_width
        over, under = self.hidden_ratio
        return -(-over * n_embd // (under * self.hidden_multiple)) * self.hidden_multiple

    @property
    def projections(self) -> dict[str, tuple[str, ...]]:
        """The names of a block's matrices, in two groups: "attention" and "feed_forward".

        The names are short: "attn.query" means "h.0.attn.query.weight" in block 0."""
        feed_forward = ("gate_proj", "up_proj", "down_proj") if self.gated else ("c_fc", "c_proj")
        return {
            "attention": tuple(f"attn.{name}" for name in ("query", "key", "value", "c_proj")),
            "feed_forward": tuple(f"mlp.{name}" for name in feed_forward),
        }

    @property
    def feed_forward_matrices(self) -> int:
        """How many feed-forward matrices a block has. Each has n_embd * hidden_width numbers."""
        return 3 if self.gated else 2


ARCHS: dict[ArchName, Arch] = {
    # The dense Qwen3 layout. With a hidden width of 8/3 n_embd, its three feed-forward matrices
    # together are as large as GPT-2's two. The width is a multiple of 32, because AMX tiles are 32
    # inputs deep.
    "modern": Arch(
        norm="rms",
        positions="rotary",
        qk_norm=True,
        gated=True,
        hidden_ratio=(8, 3),
        hidden_multiple=32,
        tied_head=False,
        can_have_biases=False,
        can_have_user_parts=False,
        norm_eps=1e-6,
        model_type="qwen3",
        initialisation="fan_in",
    ),
    # GPT-2 (Radford et al. 2019).
    "gpt2": Arch(
        norm="layer",
        positions="learned",
        qk_norm=False,
        gated=False,
        hidden_ratio=(4, 1),
        hidden_multiple=1,
        tied_head=True,
        can_have_biases=True,
        can_have_user_parts=True,
        norm_eps=1e-5,
        model_type="gpt2",
        initialisation="fixed_std",
    ),
}


def arch_named(name: ArchName) -> Arch:
    """The description of the arch called `name`."""
    return ARCHS[name]


def archs_that(fit: Callable[[Arch], bool]) -> str:
    """The archs for which `fit` returns true, as text for a hint, such as "`arch: gpt2`"."""
    return " or ".join(f"`arch: {name}`" for name, arch in ARCHS.items() if fit(arch))
