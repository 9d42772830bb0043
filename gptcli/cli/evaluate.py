"""`gptcli eval`: loss, perplexity and bits per byte over a split or another text."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.cli.option_groups import with_option_groups
from gptcli.cli.options import JsonOption, ModelOptions, RunArgument, load_model
from gptcli.cli.output import print_json
from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from gptcli.corpus import TokenStore
    from gptcli.training.loading import Trained


@with_option_groups
def evaluate(
    run: RunArgument = None,
    split: Annotated[
        str, typer.Option("--split", help="The split to evaluate: train or val.")
    ] = "val",
    file: Annotated[
        Path | None, typer.Option("--file", help="Evaluate on this text instead of the run's text.")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            "--context",
            min=1,
            help="Length of a window in tokens (default: the model's block_size).",
        ),
    ] = None,
    as_json: JsonOption = False,
    *,
    options: ModelOptions,
) -> None:
    """Measure the loss over a whole split or another text."""
    import math

    if split not in ("train", "val"):
        raise GptcliError(f"--split `{split}` is neither train nor val", "val is the default")
    trained = load_model(run, options, dtype_of_run=True)
    from gptcli.training.evaluate import evaluate as mean_loss

    block_size = trained.config.model.block_size
    context = context or block_size
    if context > block_size:
        raise GptcliError(
            f"--context {context} is longer than the model's block_size {block_size}",
            f"use at most {block_size}",
        )
    tokens = _tokens(trained, split, file)
    with redirect_stdout(sys.stderr):  # the user's module can print
        loss = mean_loss(trained.model, tokens, context)
    assert loss is not None
    count = len(tokens) - 1
    text_bytes = tokens.byte_count(trained.tokenizer, start=1)
    bits = loss * count / math.log(2) / text_bytes if text_bytes else math.nan
    perplexity = math.exp(loss) if loss < 700 else math.inf
    result = {
        "loss": loss,
        "perplexity": perplexity,
        "bits_per_byte": bits,
        "tokens": count,
        "context": context,
        "checkpoint": trained.step,
        "split": None if file else split,
    }
    if as_json:
        print_json(result)
        return
    sys.stdout.write(
        f"loss           {loss:.4f} nats per token\n"
        f"perplexity     {perplexity:.3f}\n"
        f"bits per byte  {bits:.4f}\n"
        f"tokens         {count:,} predicted, in windows of {context}\n"
        f"checkpoint     step {trained.step}\n"
    )


def _tokens(trained: Trained, split: str, file: Path | None) -> TokenStore:
    """The tokens to evaluate on. Raises GptcliError if the run's text has changed."""
    from gptcli.corpus import open_corpus
    from gptcli.training.setup import open_text_of_run

    config = trained.config
    if file is not None:
        corpus = open_corpus(
            str(file),
            kind=config.tokenizer.kind,
            vocab_size=config.tokenizer.vocab_size,
            val_fraction=0.0,
            block_size=1,
            tokenizer=trained.tokenizer,
        )
        return corpus.train
    corpus = open_text_of_run(
        trained.run,
        config,
        trained.tokenizer,
        trained.meta.get("data", ""),
        "restore the old text, or name another text with --file",
    )
    if split == "train":
        return corpus.train
    if corpus.val is None:
        raise GptcliError(
            "the run has no validation split (data.val_fraction is 0)",
            "use --split train, or --file TEXT",
        )
    return corpus.val
