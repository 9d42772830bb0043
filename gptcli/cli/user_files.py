"""The options for the user's parts: --attention, --layernorm, --mlp, --block, and others."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def _option(name: str, what: str) -> Any:
    return typer.Option(
        f"--{name}",
        metavar="FILE[:CLASS]",
        help=f"Use your own {what} instead of the built-in one. gptcli runs the file.",
    )


AttentionOption = Annotated[str | None, _option("attention", "attention")]
LayerNormOption = Annotated[str | None, _option("layernorm", "layer norm")]
MlpOption = Annotated[str | None, _option("mlp", "feed-forward network")]
BlockOption = Annotated[str | None, _option("block", "block")]
TokenizerOption = Annotated[str | None, _option("tokenizer", "byte-pair encoding")]
SamplerOption = Annotated[
    str | None,
    typer.Option(
        "--sampler",
        metavar="FILE",
        help="Use your own next_token and cut_at_stop instead of the built-in ones. gptcli runs "
        "the file.",
    ),
]
AnyTokenizerOption = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        metavar="TOKENIZER",
        help="Use this tokenizer: a tokenizer.json or a RUN (the same as "
        "tokenizer.from=TOKENIZER). Or "
        "FILE.py[:CLASS], your own byte-pair encoding (gptcli runs the file).",
    ),
]
