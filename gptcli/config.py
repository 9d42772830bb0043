"""The complete YAML schema: the type, default, bounds and meaning of every config key.

`gptcli schema` prints this schema as JSON Schema, with the docstrings of this file
(config_schema.py). gptcli.config_files reads YAML files into these classes. This file does not
import torch.
"""

from __future__ import annotations

import codecs
import math
from dataclasses import replace
from pathlib import PurePath
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from gptcli.errors import cropped, nearest
from gptcli.model.arch import ARCHS, Arch, ArchName, arch_named, archs_that
from gptcli.plurals import counted

Auto = Literal["auto"]
DEFAULT_CONFIG = "shakespeare"
DEFAULT_CONFIG_GPU = "shakespeare-gpu"

Number = Annotated[float, Field(allow_inf_nan=False)]
# The bounds of numbers in this file are far above what fits in a machine's memory. They only catch
# typos.
Count = Annotated[int, Field(ge=1, le=10**9)]
MOST_HEADS = 10_000


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True)


Text = Annotated[str, Field(min_length=1)]
Texts = Text | Annotated[list[Text], Field(min_length=1, max_length=500)]

LEAST_SHARE = 1e-5
"""A weight in data.weights is 0, or at least this share of the sum of the weights."""


def _weights(value: object) -> object:
    """The value of data.weights as a list of numbers; None for null.

    `value` can be a list, a number or a text such as `0.7,0.3`. Raises PydanticCustomError if a
    weight is not a number of at least 0, if all weights are 0, or if a weight above 0 is less than
    LEAST_SHARE of the sum."""
    if value is None:
        return None
    given: Any = value.split(",") if isinstance(value, str) else value
    given = list(given) if isinstance(given, (list, tuple)) else [given]
    found: list[float] = []
    for one in given:
        try:
            found.append(math.nan if isinstance(one, bool) else float(one))
        except (TypeError, ValueError, OverflowError):
            found.append(math.nan)
        if not 0 <= found[-1] < 1e100:
            raise _weights_error(f"a weight is a number of at least 0; got `{cropped(str(one))}`")
    if sum(found) <= 0:
        raise _weights_error("data.weights has no weight above 0, so nothing is left to train on")
    small = min((weight for weight in found if weight > 0), default=0.0)
    if small < LEAST_SHARE * sum(found):
        raise _weights_error(
            f"the weight {small:g} is less than 1/100,000 of the sum of the weights"
        )
    return found


def _weights_error(message: str) -> PydanticCustomError:
    return PydanticCustomError(
        "weights",
        "{message}",
        {
            "message": message,
            "keys": ("weights",),
            "hint": "give one weight for each text of data.source, such as data.weights=0.7,0.3",
        },
    )


class DataConfig(_Section):
    """The text: where it is, how to read it, and what part is for validation."""

    source: Texts = "shakespeare"
    """The text, or a list of texts. A text is the name of a shipped text, the path of a file, or
    the path of a folder. In a folder and its subfolders, gptcli reads all files except hidden
    files, binary files, editors' backups and runs. A file is plain text, .jsonl, .json, .csv, .tsv
    or .parquet. Each kind except .parquet can be compressed as .gz, .bz2 or .xz. `-` is standard
    input. A text can also be a folder or URL of token shards that `gptcli tokenizer shards`
    wrote."""
    weights: Annotated[list[Annotated[Number, Field(ge=0.0)]] | None, BeforeValidator(_weights)] = (
        None
    )
    """The weights of the texts of `source` in a mixture, in the same order: a list, or numbers with
    commas, such as 0.7,0.3. The share of a text in the training sequences is its weight divided by
    the sum of the weights. A text with weight 0 is only for validation. null: all texts together
    count as one text, and each of its parts is read equally often."""
    field: Text | None = None
    """The field or column that holds the text of a .jsonl, .json, .csv, .tsv or .parquet file.
    null: the field `text`; a record without this field is read as a chat from its field `messages`
    or `conversations`."""
    documents: Literal["auto", "file", "line"] = "auto"
    """What one document is. auto: a whole file of plain text, a line of a .jsonl, an entry of a
    .json list, or a row of a .csv, .tsv or .parquet; `<|endoftext|>` also ends a document. line: as
    auto, but in a file of plain text each line is a document. file: every file is read as plain
    text and is one document, even a .csv or .json. There are two exceptions: in a .jsonl, each line
    is a document; and a .parquet cannot be read."""
    encoding: str | None = None
    """The encoding of the files that are not UTF-8, such as cp1252 or utf-16. The names are
    Python's."""
    skip_undecodable: bool = False
    """Whether to skip files that both UTF-8 and `encoding` fail to decode. false: such a file is an
    error."""
    val_fraction: Annotated[Number, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of the text that is kept for validation: at least 0, below 1."""
    val_source: Texts | None = None
    """Your own validation text, or a list of texts. If it is set, training uses all of `source`,
    and val_fraction has no effect."""
    val_split: Literal["auto", "tail", "documents"] = "auto"
    """Which part of the text is kept for validation. tail: the end of the text. documents: whole
    documents, which a fixed shuffle chooses, and also the end of each long document. auto:
    `documents` if the text has several documents, else `tail`."""
    unknown: Literal["error", "drop", "replace"] = "error"
    """What to do with characters of the text that are missing in the vocabulary of a char tokenizer
    from another run (tokenizer.from, --from). error: refuse the text. drop: leave these characters
    out. replace: replace each of them by the most similar known characters (é by e), or by a space
    if none are similar. This key also decides what happens to such characters in the prompts of
    `sample` and `serve`, and in the texts of `score` and `eval --file`."""

    @field_validator("encoding")
    @classmethod
    def _is_known(cls, encoding: str | None) -> str | None:
        try:
            known = encoding is None or codecs.lookup(encoding)._is_text_encoding
        except (LookupError, ValueError):
            known = False
        if not known:
            wanted = {"wanted": "the name of an encoding, such as cp1252 or utf-16"}
            raise PydanticCustomError("encoding", "unknown encoding", wanted)
        utf8 = encoding is not None and codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")
        return None if utf8 else encoding

    @model_validator(mode="after")
    def _has_a_weight_for_each_text(self) -> DataConfig:
        if self.weights is not None and len(self.weights) != len(self.sources):
            texts, weights = len(self.sources), len(self.weights)
            raise PydanticCustomError(
                "weights",
                "data.weights has {weights}, and data.source names {texts}",
                {
                    "weights": counted(weights, "weight"),
                    "texts": counted(texts, "text"),
                    "keys": ("weights", "source"),
                    "hint": "give one weight for each text, such as data.weights=0.7,0.3; or set "
                    "data.weights=null to read every part of all texts equally often",
                },
            )
        return self

    @property
    def sources(self) -> list[str]:
        """The texts of `source`, as a list even if `source` is a single text."""
        return [self.source] if isinstance(self.source, str) else self.source

    @property
    def shares(self) -> list[float] | None:
        """The share of each text in a mixture, from 0 to 1; None if the texts are not mixed."""
        if self.weights is None or len(self.weights) == 1:
            return None
        return [weight / sum(self.weights) for weight in self.weights]

    @property
    def short_names(self) -> list[str]:
        """The texts of `source` without folders; with folders if two file names are equal."""
        short = [PurePath(name).name or name for name in self.sources]
        return short if len(set(short)) == len(short) else self.sources

    @property
    def described(self) -> str:
        """`name`. For a mixture: its texts (at most three) and shares: `a.txt 70 %, b.txt 30 %`."""
        if self.shares is None:
            return self.name
        texts = zip(self.short_names, self.shares, strict=True)
        listed = [f"{name} {100 * share:.3g} %" for name, share in texts]
        return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")

    @property
    def val_sources(self) -> list[str]:
        """The texts of `val_source`; [] if there are none."""
        return [self.val_source] if isinstance(self.val_source, str) else self.val_source or []

    @property
    def name(self) -> str:
        """The texts of `source` on one line: the first three, and how many more there are."""
        more = f" and {len(self.sources) - 3} more" if len(self.sources) > 3 else ""
        return ", ".join(self.sources[:3]) + more

    @property
    def held_out(self) -> float:
        """The share of `source` that is kept for validation; 0 if val_source is set."""
        return 0.0 if self.val_source is not None else self.val_fraction

    @property
    def validates(self) -> bool:
        """Whether the run has a validation split."""
        return self.val_source is not None or self.val_fraction > 0


class TokenizerConfig(_Section):
    """How text becomes tokens."""

    kind: Literal["char", "byte", "bpe", "gpt2"] = "char"
    """What a token is. char: a character. byte: a byte. bpe: a subword, from byte-level BPE that is
    trained on the text. gpt2: one of GPT-2's 50,257 tokens."""
    vocab_size: Annotated[int, Field(ge=257, le=1_000_000)] = 1024
    """Number of tokens, for bpe only. It includes the 256 bytes and end-of-text."""
    from_: Annotated[str, Field(min_length=1)] | None = Field(None, alias="from")
    """An existing tokenizer to use: a run's name, a run folder or a tokenizer.json. Its kind and
    its vocabulary size replace `kind` and `vocab_size` of the config. null: make a new tokenizer of
    the given kind. The vocabulary of char and bpe comes from the text."""


def width_unit(arch: ArchName, n_head: int) -> int:
    """The number that must divide n_embd if head_dim is not set.

    It is n_head, or 2 n_head with rotary positions, because they rotate pairs of channels."""
    return n_head * (2 if arch_named(arch).positions == "rotary" else 1)


def heads_that_fit(arch: ArchName, n_embd: int) -> list[int]:
    """Every n_head up to 10,000 that is allowed with this n_embd, in ascending order."""
    most = min(n_embd, MOST_HEADS)
    return [heads for heads in range(1, most + 1) if n_embd % width_unit(arch, heads) == 0]


class ModelConfig(_Section):
    """The network: its layout and its sizes."""

    arch: ArchName = "modern"
    """modern: Qwen3's layout (RMSNorm, rotary positions, QK-norm, SwiGLU). gpt2: GPT-2's layout.
    With `bias: true`, it is exactly GPT-2's."""
    n_layer: Annotated[int, Field(ge=1, le=1000)] = 4
    """Number of blocks."""
    n_head: Annotated[int, Field(ge=1, le=MOST_HEADS)] = 4
    """Number of attention heads in each block. For gpt2, n_embd must be a multiple of n_head. For
    modern, n_embd must be a multiple of 2 n_head, unless head_dim is set."""
    n_embd: Annotated[int, Field(ge=1, le=1_000_000)] = 128
    """Number of channels of the residual stream."""
    block_size: Annotated[int, Field(ge=1, le=10_000_000)] = 128
    """Context length, in tokens."""
    dropout: Annotated[Number, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the activations that training sets to 0 at random: at least 0, below 1."""
    bias: bool = False
    """Whether the norms and the linear layers of the blocks have biases. Only arch gpt2 can have
    biases."""
    n_kv_head: Annotated[int, Field(ge=1, le=MOST_HEADS)] | None = None
    """Number of key and value heads (grouped-query attention). n_head must be a multiple of
    n_kv_head. Only arch modern can have fewer key and value heads than n_head. null: n_head."""
    rope_theta: Annotated[Number, Field(gt=1.0, le=1e12)] | None = None
    """Base of the frequencies of rotary positions, for arch modern only. null: 10000."""
    head_dim_: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(None, alias="head_dim")
    """Number of channels of each head, for arch modern only. null: n_embd / n_head."""
    hidden_width: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Width of the feed-forward network's hidden layer. null: 4 n_embd for gpt2; 8/3 n_embd,
    rounded up to a multiple of 32, for modern."""
    qk_norm: bool | None = None
    """Whether the attention of arch modern normalises queries and keys: true as in Qwen3, false as
    in Llama. null: true."""
    tied_head: bool | None = None
    """Whether the output head and the token embedding share one matrix. null: true for gpt2, false
    for modern."""
    norm_eps: Annotated[Number, Field(gt=0.0, le=0.1)] | None = None
    """The number that a layer norm adds to the variance (RMSNorm: to the mean square), so that it
    never divides by 0. null: 1e-5 for gpt2, 1e-6 for modern."""

    @model_validator(mode="after")
    def _fits_together(self) -> ModelConfig:
        rotary = self.traits.positions == "rotary"
        if not rotary:
            self._refuse_rotary_keys()
        if rotary and self.head_dim_ is not None:
            if self.head_dim_ % 2:
                raise PydanticCustomError(
                    "head_dim",
                    "head_dim {head_dim} is odd: rotary positions turn pairs of channels",
                    {"head_dim": self.head_dim_, "keys": ("head_dim",)},
                )
        elif self.n_embd % width_unit(self.arch, self.n_head):
            context = {
                "n_embd": self.n_embd,
                "n_head": self.n_head,
                "head_dim": self.n_embd // self.n_head,
                "keys": ("n_head", "n_embd"),
                "hint": self._values_that_fit(),
            }
            if rotary and self.n_embd % 2:
                message = "n_embd {n_embd} is odd: rotary positions turn pairs of channels"
                context["keys"] = ("n_embd",)
            elif self.n_embd % self.n_head:
                message = "n_embd {n_embd} is not divisible by n_head {n_head}"
            else:
                message = (
                    "n_embd {n_embd} / n_head {n_head} is {head_dim}, an odd number: "
                    "rotary positions turn pairs of channels"
                )
            raise PydanticCustomError("n_head", message, context)
        if self.n_head % (self.n_kv_head or self.n_head):
            divisors = [n for n in range(1, self.n_head + 1) if self.n_head % n == 0]
            raise PydanticCustomError(
                "n_kv_head",
                "n_head {n_head} is not divisible by n_kv_head {n_kv_head}",
                {
                    "n_head": self.n_head,
                    "n_kv_head": self.n_kv_head,
                    "keys": ("n_kv_head", "n_head"),
                    "hint": "n_kv_head could be " + ", ".join(map(str, divisors[-8:])),
                },
            )
        if self.bias and not self.traits.can_have_biases:
            raise PydanticCustomError(
                "bias",
                "`arch: {arch}` has no biases",
                {
                    "arch": self.arch,
                    "keys": ("bias", "arch"),
                    "hint": "set `bias: false`, or " + archs_that(lambda a: a.can_have_biases),
                },
            )
        return self

    def _values_that_fit(self) -> str:
        """A hint: the nearest n_head for this n_embd, and the nearest n_embd for this n_head."""
        heads = heads_that_fit(self.arch, self.n_embd)
        fewer = [count for count in heads if count < self.n_head][-1:]
        more = [count for count in heads if count > self.n_head][:1]
        unit = width_unit(self.arch, self.n_head)
        below = self.n_embd - self.n_embd % unit
        choices = [
            f"{name} could be " + " or ".join(map(str, values))
            for name, values in (
                ("n_head", fewer + more),
                ("n_embd", [width for width in (below, below + unit) if width > 0]),
            )
            if values
        ]
        if self.n_embd % self.n_head == 0:
            choices.append(archs_that(lambda arch: arch.positions == "learned"))
        return ", or ".join(choices)

    def _refuse_rotary_keys(self) -> None:
        """Raise PydanticCustomError if a key has a value that only rotary positions can have."""
        usual = {"n_kv_head": (None, self.n_head), "qk_norm": (None, False)}
        for key in ("n_kv_head", "rope_theta", "head_dim", "qk_norm"):
            if self.model_dump()[key] not in usual.get(key, (None,)):
                raise PydanticCustomError(
                    "rotary_only",
                    "`arch: {arch}` has no {key}",
                    {
                        "arch": self.arch,
                        "key": key,
                        "keys": (key, "arch"),
                        "hint": f"set `{key}: null`, or "
                        + archs_that(lambda arch: arch.positions == "rotary"),
                    },
                )

    @property
    def head_dim(self) -> int:
        """Number of channels of each head."""
        return self.head_dim_ or self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads. Each of them serves n_head / kv_heads query heads."""
        return self.n_kv_head or self.n_head

    @property
    def attention_width(self) -> int:
        """Number of channels of all query heads together: n_head * head_dim."""
        return self.n_head * self.head_dim

    @property
    def traits(self) -> Arch:
        """The description of the arch: norms, positions, feed-forward network, head.

        If this config sets a key such as `norm_eps`, its value replaces that of the arch."""
        arch = arch_named(self.arch)
        changes: dict[str, object] = {
            trait: value
            for trait, value in (
                ("rope_theta", self.rope_theta),
                ("fixed_hidden_width", self.hidden_width),
                ("qk_norm", self.qk_norm),
                ("tied_head", self.tied_head),
                ("norm_eps", self.norm_eps),
            )
            if value is not None
        }
        if arch.qk_norm and self.qk_norm is False:
            changes["model_type"] = "llama"
        return replace(arch, **changes) if changes else arch  # type: ignore[arg-type]


_DEFAULT_ROWS = 16
TARGET_GROUPS = ("attention", "feed_forward", "all")
_TARGETS = tuple(dict.fromkeys(
    name for arch in ARCHS.values() for names in arch.projections.values() for name in names
))  # fmt: skip
# Names of projections in peft and other programs -> gptcli's names.
_OTHER_TARGETS = {
    "q_proj": "attn.query",
    "k_proj": "attn.key",
    "v_proj": "attn.value",
    "o_proj": "attn.c_proj",
    "out_proj": "attn.c_proj",
    "c_attn": "attn.query,attn.key,attn.value",
    "qkv": "attn.query,attn.key,attn.value",
    "all-linear": "all",
    "linear": "all",
    "attn": "attention",
    "mlp": "feed_forward",
    "ffn": "feed_forward",
}


def _target_names(value: object) -> list[str]:
    """The value of train.lora.targets as a list without duplicates.

    The value can be a list or a text such as `attn.query,attn.value`. The short name `query` means
    `attn.query`, if no other full name ends in `.query`. Raises PydanticCustomError, with the
    nearest name, if a name is unknown or ambiguous."""
    names = value.split(",") if isinstance(value, str) else value
    wanted = {"wanted": "`attention`, `feed_forward`, `all`, or a list of " + ", ".join(_TARGETS)}
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise PydanticCustomError("targets", "no targets", wanted)
    found = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not found:
        raise PydanticCustomError("targets", "no targets", wanted)
    return [name if name in TARGET_GROUPS else _one_target(name) for name in found]


def _one_target(name: str) -> str:
    meant = [full for full in _TARGETS if name in (full, full.partition(".")[2])]
    if len(meant) == 1:
        return meant[0]
    word = name.lower().removeprefix("self_attn.").removeprefix("attn.").removeprefix("mlp.")
    close = _OTHER_TARGETS.get(name.lower()) or _OTHER_TARGETS.get(word)
    close = close or nearest(name, [*TARGET_GROUPS, *_TARGETS])
    raise PydanticCustomError(
        "targets",
        "`{name}` is no projection" if not meant else "`{name}` means several projections",
        {
            "name": cropped(name),
            "keys": ("targets",),
            "hint": "write " + " or ".join(f"`{full}`" for full in meant)
            if meant
            else f"did you mean `{close}`?"
            if close
            else "the projections are: " + ", ".join((*TARGET_GROUPS, *_TARGETS)),
        },
    )


class LoraConfig(_Section):
    """Low-rank adapters. Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation"."""

    rank: Annotated[int, Field(ge=1, le=4096)] = 8
    """Rank of the matrix that an adapter adds to a weight matrix. For a weight matrix of the shape
    (outputs, inputs), the adapter has rank * (outputs + inputs) trainable parameters."""
    alpha: Annotated[Number, Field(gt=0.0, le=1e6)] = 16.0
    """The product of an adapter's two matrices is multiplied by alpha / rank. Therefore about the
    same learning rate suits every rank."""
    dropout: Annotated[Number, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the inputs of an adapter that training sets to 0 at random: at least 0, below 1."""
    targets: Annotated[list[str], BeforeValidator(_target_names)] = ["all"]
    """Which matrices of the blocks get an adapter: attention, feed_forward, all, or a list of
    names. The names in both archs are attn.query, attn.key, attn.value and attn.c_proj. Arch modern
    also has mlp.gate_proj, mlp.up_proj and mlp.down_proj; arch gpt2 also has mlp.c_fc and
    mlp.c_proj."""
    embeddings: bool | Auto = "auto"
    """Whether all parameters of the token embedding and the head are trained, in addition to the
    adapters. This costs little if the vocabulary is small. auto: true if the embedding and the head
    have no more parameters than the adapters."""

    def names(self, arch: Arch) -> tuple[str, ...]:
        """The matrices that `targets` selects, such as "attn.query", in the order of `arch`."""
        groups = arch.projections
        return tuple(
            name
            for group, names in groups.items()
            for name in names
            if {"all", group, name} & set(self.targets)
        )


class TrainConfig(_Section):
    """The training loop: steps, optimizer, evaluations, checkpoints."""

    max_steps: Count = 1000
    """Number of optimizer steps of the run. If `minutes` is set, gptcli plans this number at the
    start."""
    minutes: Annotated[Number, Field(ge=0.1, le=100_000.0)] | None = None
    """Time limit in minutes, start-up included. gptcli plans as many steps as fit in this time, and
    changes the plan if the speed changes during the run. null: no time limit."""
    max_epochs: Annotated[Number, Field(gt=0.0, le=1e9)] | None = None
    """How often the run may read its text. This limit lowers max_steps, and also each new plan if
    `minutes` is set. `--resume --extend` removes the limit. null: no limit."""
    batch_size: Count | Auto = _DEFAULT_ROWS
    """Sequences in one forward pass. A step has batch_size * grad_accum sequences. auto: a step has
    16 * grad_accum sequences. gptcli splits them into equal micro-batches that are as large as
    memory allows. The run's config records the batch_size and grad_accum that were found."""
    grad_accum: Count = 1
    """Micro-batches in a step (gradient accumulation). The step averages their gradients."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: Muon updates the matrices of the blocks, and AdamW updates all other parameters. adamw:
    AdamW updates all parameters."""
    learning_rate: Annotated[Number, Field(gt=0.0, le=100.0)] | Auto = "auto"
    """Highest learning rate of the schedule. If the optimizer is muon, the parameters that AdamW
    updates get a fifth of this rate. auto: 0.01 if `lora` is set. Without `lora`: for muon, 0.02;
    for adamw, 0.4 / n_embd, but at most 0.003."""
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)] | Auto = "auto"
    """Number of steps at the start of the run over which the learning rate rises from 0. auto: for
    adamw, a tenth of max_steps, but at most 100; for muon, a twentieth of max_steps, but at most
    50."""
    decay_fraction: Annotated[Number, Field(ge=0.0, le=1.0)] = 0.6
    """Share of the steps, at the end of the run, in which the learning rate falls linearly to 0."""
    weight_decay: Annotated[Number, Field(ge=0.0, le=100.0)] = 0.1
    """Weight decay of the matrices: each step multiplies them by 1 - learning rate * weight_decay.
    Gains and biases do not decay. If the optimizer is muon, the embeddings and the head do not
    decay either."""
    average: Annotated[Number, Field(ge=0.0, le=1.0)] = 0.0
    """Averages the weights over the steps (exponential moving average). The value is the time
    constant as a share of max_steps. With 0.2, the influence of weights falls by a factor of e in
    0.2 * max_steps steps. Evaluations, samples and checkpoints use the averaged weights, which
    often predict better if the text is read many times. 0: no average."""
    grad_clip: Annotated[Number, Field(ge=0.0)] = 1.0
    """Largest norm of the gradient of all parameters together. A gradient with a larger norm is
    scaled down to this norm. 0: no clipping."""
    eval_every: Count | Auto = "auto"
    """Steps between evaluations. Each evaluation reads the whole validation split. The run also
    evaluates after its last step. auto: a twentieth of max_steps, or more if the evaluations would
    take more than about 2 % of the training time."""
    checkpoint_every: Count | Auto = "auto"
    """Steps between checkpoints. The run also saves a checkpoint after each evaluation with a new
    best loss, and at its end unless it diverged. auto: about one checkpoint per minute, or fewer if
    saving would take more than 1 % of the training time."""
    keep_checkpoints: Annotated[int, Field(ge=2, le=10**6)] = 2
    """How many of the newest checkpoints the run keeps. It also keeps the best checkpoint."""
    sample_every: Annotated[int, Field(ge=0, le=10**9)] = 0
    """Steps between two samples that the model writes during training. 0: no samples."""
    log_every: Count | Auto = "auto"
    """Steps from one logged loss to the next. auto: a hundredth of max_steps."""
    stop_at_val_loss: Number | None = None
    """Stop as soon as the validation loss (nats per token) is this value or lower."""
    patience: Count | None = None
    """Stop after this many evaluations in a row without a new best validation loss."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1337
    """Seed of the random numbers: for the initial weights, the order of the training text, and
    dropout."""
    lora: LoraConfig | None = None
    """Low-rank adapters (LoRA), for `--from RUN`. An adapter is two small matrices whose product is
    added to a weight matrix of a block. Training changes only the adapters, and with `embeddings`
    also the token embedding and the head. The optimizer is adamw, unless you set train.optimizer or
    name a CONFIG. null: all weights are trained."""

    def tokens_per_step(self, block_size: int) -> int:
        """The number of tokens in one optimizer step if windows have `block_size` tokens."""
        return self.sequences * block_size

    @property
    def rows(self) -> int:
        """Sequences in one forward pass: batch_size, or 16 as long as batch_size is `auto`."""
        return _DEFAULT_ROWS if self.batch_size == "auto" else self.batch_size

    @property
    def sequences(self) -> int:
        """Sequences of one optimizer step."""
        return self.rows * self.grad_accum


LoggerName = Literal["csv", "tensorboard", "trackio", "wandb"]


def _logger_names(value: object) -> list[str]:
    """The value of run.loggers as a list without duplicates; [] for null.

    The value can be a list or a text such as `csv,wandb`. Raises PydanticCustomError, with the
    nearest name, if a name is unknown."""
    known = get_args(LoggerName)
    names = value.split(",") if isinstance(value, str) else [] if value is None else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        wanted = "a list of loggers: " + ", ".join(known)
        raise PydanticCustomError("loggers", "no loggers", {"wanted": wanted})
    found = list(dict.fromkeys(name.strip().lower() for name in names if name.strip()))
    for name in found:
        if name not in known:
            close = nearest(name, known)
            raise PydanticCustomError(
                "loggers",
                "no logger is named `{name}`",
                {
                    "name": cropped(name),
                    "keys": ("loggers",),
                    "hint": f"did you mean `{close}`?"
                    if close
                    else "the loggers are: " + ", ".join(known),
                },
            )
    return found


class RunConfig(_Section):
    """The machine: device, number format, engine, processes, loggers."""

    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """Where to compute. auto: on a CUDA GPU if this machine has one, else on Apple's GPU (mps) if
    this machine has one, else on the CPU."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Number format of the forward and backward passes. The optimizer always updates float32 master
    weights. auto: bfloat16 if the device multiplies bfloat16 matrices faster than float32 matrices,
    else float32."""
    compile: bool | Auto = "auto"
    """Whether to use torch.compile. auto: true on a CUDA GPU with Triton, if the run is long enough
    to gain from the compilation and uses no parts that the user wrote."""
    engine: Literal["auto", "native", "torch"] = "auto"
    """What computes the forward and backward passes. native: a C library, only for float32 and
    bfloat16 on a CPU. gptcli compiles this library once for this processor. The library is faster
    than PyTorch. torch: PyTorch. auto: native if it can compute this run, else torch."""
    threads: Annotated[int, Field(ge=1, le=4096)] | Auto = "auto"
    """Number of CPU threads. auto: $OMP_NUM_THREADS if it is set, else one for each physical core.
    A container's limit on cores also limits both of these numbers."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several processes (ranks) train together. ddp: each rank has all weights, and the ranks
    average their gradients. fsdp: each rank holds a part of the weights and of the optimizer's
    state, for networks that do not fit in one GPU. With a single process, this key has no
    effect."""
    rank_timeout: Annotated[Number, Field(ge=1.0, le=1e6)] = 600.0
    """Seconds that the ranks wait for a rank that does not answer. After this time, gptcli assumes
    that this rank hangs."""
    loggers: Annotated[list[LoggerName], BeforeValidator(_logger_names)] = []
    """Loggers, which write the numbers of metrics.jsonl in other formats: csv (a table),
    tensorboard, trackio, wandb (offline). A list, or names with commas between them. Each logger
    except csv needs the package that has its name."""


class Config(_Section):
    """Everything that defines a training run: text, tokenizer, network, training, machine."""

    data: DataConfig = DataConfig()
    """The text: where it is, how to read it, and what part is for validation."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """How text becomes tokens."""
    model: ModelConfig = ModelConfig()
    """The network: its layout and its sizes."""
    train: TrainConfig = TrainConfig()
    """The training loop: steps, optimizer, evaluations, checkpoints."""
    run: RunConfig = RunConfig()
    """The machine: device, number format, engine, processes, loggers."""

    @model_validator(mode="after")
    def _has_targets(self) -> Config:
        """Raise PydanticCustomError if train.lora does not suit the arch or train.average."""
        if self.train.lora is None:
            return self
        if self.train.average > 0.0:
            raise PydanticCustomError(
                "lora_average",
                "train.average: low-rank adapters (train.lora) cannot be averaged",
                {
                    "keys": ("train.average", "train.lora"),
                    "hint": "train.average=0, or train.lora=null",
                },
            )
        there = [name for names in self.model.traits.projections.values() for name in names]
        for name in self.train.lora.targets:
            if name not in (*TARGET_GROUPS, *there):
                raise PydanticCustomError(
                    "lora_targets",
                    "train.lora.targets: `arch: {arch}` has no {name}",
                    {
                        "arch": self.model.arch,
                        "name": name,
                        "keys": ("train.lora.targets", "model.arch"),
                        "hint": "it has " + ", ".join(there),
                    },
                )
        return self

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step."""
        return self.train.tokens_per_step(self.model.block_size)
