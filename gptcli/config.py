"""The whole YAML schema: every key, its type, default, bounds and meaning. No torch.

`gptcli schema` prints it as JSON Schema; gptcli.config_files reads YAML into it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Auto = Literal["auto"]
DEFAULT_CONFIG = "shakespeare"
DEFAULT_CONFIG_GPU = "shakespeare-gpu"


Number = Annotated[float, Field(allow_inf_nan=False)]
# Bounds on sizes are far above what fits in a machine's memory; they catch slips of the keyboard.
Count = Annotated[int, Field(ge=1, le=10**9)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)


class DataConfig(_Section):
    """The text."""

    source: str = Field("shakespeare", min_length=1)
    """A shipped text by name, or a path: a text file, a folder (read recursively), or .jsonl."""
    val_fraction: Annotated[Number, Field(ge=0.0, lt=1.0)] = 0.1
    """The last part of the text that is kept for validation, from 0 to below 1."""


class TokenizerConfig(_Section):
    """How text becomes tokens."""

    kind: Literal["char", "byte", "bpe", "gpt2"] = "char"
    """char: one token per character of the text; byte: 256 bytes; bpe: byte-level BPE trained on
    the data; gpt2: GPT-2's own 50,257 tokens."""
    vocab_size: Annotated[int, Field(ge=257, le=1_000_000)] = 1024
    """bpe only: tokens in all, the 256 bytes and end-of-text among them."""


class ModelConfig(_Section):
    """The network."""

    arch: Literal["modern", "gpt2"] = "modern"
    """modern: Qwen3's layout (RMSNorm, rotary positions, QK-norm, SwiGLU); gpt2: GPT-2 exactly."""
    n_layer: Annotated[int, Field(ge=1, le=1000)] = 4
    """Blocks."""
    n_head: Annotated[int, Field(ge=1, le=10_000)] = 4
    """Attention heads in each block; must divide n_embd."""
    n_embd: Annotated[int, Field(ge=1, le=1_000_000)] = 128
    """Channels of the residual stream."""
    block_size: Annotated[int, Field(ge=1, le=10_000_000)] = 128
    """Context length, in tokens."""
    dropout: Annotated[Number, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of activations dropped in training, from 0 to below 1."""
    bias: bool = False
    """Biases in linear layers and norms (gpt2 only; modern has none)."""

    @model_validator(mode="after")
    def _fits_together(self) -> ModelConfig:
        if self.n_embd % self.n_head:
            below = self.n_embd - self.n_embd % self.n_head
            choices = sorted({c for c in (below, below + self.n_head) if c > 0})
            raise PydanticCustomError(
                "n_head",
                "n_embd {n_embd} is not divisible by n_head {n_head}",
                {
                    "n_embd": self.n_embd,
                    "n_head": self.n_head,
                    "key": "n_head",
                    "hint": "n_embd could be " + " or ".join(map(str, choices)),
                },
            )
        if self.arch == "modern" and self.n_embd // self.n_head % 2:
            raise PydanticCustomError(
                "head_dim",
                "n_embd / n_head is {head_dim}, an odd number: rotary positions turn "
                "pairs of channels",
                {
                    "head_dim": self.n_embd // self.n_head,
                    "key": "n_head",
                    "hint": "choose an even n_embd / n_head, or `arch: gpt2`",
                },
            )
        if self.arch == "modern" and self.bias:
            raise PydanticCustomError(
                "bias",
                "`arch: modern` has no biases",
                {"key": "bias", "hint": "set `bias: false`, or `arch: gpt2`"},
            )
        return self

    @property
    def head_dim(self) -> int:
        """Channels of each head."""
        return self.n_embd // self.n_head


class TrainConfig(_Section):
    """The training loop."""

    max_steps: Count = 1000
    """Optimizer steps."""
    batch_size: Count = 16
    """Sequences per step and device, before grad_accum."""
    grad_accum: Count = 1
    """Batches whose gradients are averaged into one step."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: Muon for the matrices of the blocks, AdamW for the rest; adamw: AdamW for all."""
    learning_rate: Annotated[Number, Field(gt=0.0, le=100.0)] | Auto = "auto"
    """Peak rate: of Muon (AdamW's is then a fifth of it), or of AdamW. auto: 0.02 for muon;
    0.4 / n_embd, at most 0.003, for adamw."""
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)] | Auto = "auto"
    """Steps in which the rate rises from 0. auto: a tenth of max_steps for adamw, at most 100;
    a twentieth for muon, at most 50."""
    decay_fraction: Annotated[Number, Field(ge=0.0, le=1.0)] = 0.6
    """The last share of the steps, over which the rate falls to 0 in a straight line."""
    weight_decay: Annotated[Number, Field(ge=0.0, le=100.0)] = 0.1
    """Decay of matrices, per step and unit of learning rate; gains and biases do not decay, nor do
    embeddings and head under muon."""
    grad_clip: Annotated[Number, Field(ge=0.0)] = 1.0
    """Largest global gradient norm; longer gradients are scaled down to it. 0: no clipping."""
    eval_every: Count | Auto = "auto"
    """Steps between evaluations of the whole validation split; the last step is always evaluated.
    auto: as many as cost 2 % of the time, at most twenty."""
    checkpoint_every: Count | Auto = "auto"
    """Steps between checkpoints. auto: once a minute, at most 1 % of the time."""
    keep_checkpoints: Annotated[int, Field(ge=2, le=10**6)] = 2
    """How many of the newest checkpoints stay (the best one stays beside them)."""
    sample_every: Annotated[int, Field(ge=0, le=10**9)] = 0
    """Steps between samples shown while training; 0: none."""
    log_every: Count | Auto = "auto"
    """Steps between logged steps. auto: a hundredth of max_steps."""
    stop_at_val_loss: Number | None = None
    """Stop as soon as the full validation loss is at or under this (nats per token)."""
    patience: Count | None = None
    """Stop after this many evaluations in a row without a new best."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1337
    """Seed of the weights, of the order of the text and of dropout."""


class RunConfig(_Section):
    """The machine."""

    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """auto: cuda, else mps, else cpu."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """What the forward and backward passes compute in; weights are kept in float32 beside it.
    auto: bfloat16 where the machine multiplies it quickly, else float32."""
    compile: bool | Auto = "auto"
    """torch.compile the model. auto: on a GPU, for runs long enough to earn the compilation."""
    engine: Literal["auto", "native", "torch"] = "auto"
    """What computes the passes. native: a C library, built once for this processor, 1.5 to 3
    times as quick as PyTorch for bfloat16 on a CPU; torch: PyTorch. auto: native where there is
    one."""
    threads: Annotated[int, Field(ge=1, le=4096)] | Auto = "auto"
    """CPU threads. auto: as many as there are cores."""


class Config(_Section):
    """A training run, from the text to the machine it runs on."""

    data: DataConfig = DataConfig()
    """The text."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """How text becomes tokens."""
    model: ModelConfig = ModelConfig()
    """The network."""
    train: TrainConfig = TrainConfig()
    """The training loop."""
    run: RunConfig = RunConfig()
    """The machine."""
