"""`gptcli eval`: measures loss, perplexity and bits per byte on a split or another text."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli.cli.option_groups import with_option_groups
from gptcli.cli.options import (
    RUN_AND_SOURCE,
    JsonOption,
    ModelOptions,
    load_for_evaluation,
    run_and_overrides,
    with_overrides,
)
from gptcli.cli.output import note, print_json
from gptcli.errors import GptcliError
from gptcli.files.paths import shell_word
from gptcli.view.waiting import waiting

if TYPE_CHECKING:
    from gptcli.corpus import TokenStore
    from gptcli.training.loading import Trained


@with_option_groups
def evaluate(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar=RUN_AND_SOURCE,
            help="A run folder, or its name under runs/. Default: the newest. If the run's text "
            "has moved, add data.source=NEW.",
        ),
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            "--split", metavar="train|val", help="The part of the run's text to evaluate on."
        ),
    ] = "val",
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", metavar="TEXTFILE", help="Evaluate on this file instead of the run's text."
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            "--context",
            metavar="N",
            min=1,
            help="Length of each window, in tokens. Default: the model's block_size.",
        ),
    ] = None,
    as_json: JsonOption = False,
    *,
    options: ModelOptions,
) -> None:
    """Measure the loss on a whole split or on another text."""
    import math

    from gptcli.corpus.mixture import MixedTokens
    from gptcli.view.safe_text import clean

    if split not in ("train", "val"):
        raise GptcliError(f"--split `{split}` is neither train nor val", "val is the default")
    run, overrides = run_and_overrides(words)
    with waiting("loading the model"):
        trained, threads = load_for_evaluation(run, options, "eval")
    block_size = trained.config.model.block_size
    context = context or block_size
    if context > block_size:
        raise GptcliError(
            f"--context {context} is longer than the model's block_size {block_size}",
            f"use at most {block_size}",
        )
    tokens = _tokens(trained, split, file, overrides)
    # The code of the user's parts can print, but stdout is for data.
    with redirect_stdout(sys.stderr), waiting("evaluating"):
        by_text = _figures(tokens, lambda text: _mean_loss(trained, text, context, threads))
    loss = sum(each.share * each.loss for each in by_text if each.share > 0)
    count = sum(each.tokens for each in by_text)
    # The bytes of the predicted tokens. The end-of-text token has no bytes.
    text_bytes = sum(
        each.share * each.store.byte_count(trained.tokenizer, start=1) / each.tokens
        for each in by_text
    )
    bits = loss / math.log(2) / text_bytes if text_bytes else math.nan
    perplexity = math.exp(loss) if loss < 700 else math.inf
    result: dict[str, Any] = {
        "loss": loss,
        "perplexity": perplexity,
        "bits_per_byte": bits,
        "tokens": count,
        "context": context,
        "checkpoint": trained.step,
        "split": None if file else split,
    }
    if isinstance(tokens, MixedTokens):
        result["texts"] = [
            {"name": each.name, "share": each.share, "loss": each.loss, "tokens": each.tokens}
            for each in by_text
        ]
    if as_json:
        print_json(result)
        return
    if isinstance(tokens, MixedTokens):
        width = max(len(each.name) for each in by_text)
        for each in by_text:
            sys.stdout.write(
                f"{clean(each.name, sys.stdout.encoding or 'utf-8'):{width}}  "
                f"loss {each.loss:.4f}  {100 * each.share:.3g} % of the training\n"
            )
    sys.stdout.write(
        f"loss           {loss:.4f} nats per token\n"
        f"perplexity     {perplexity:.3f}\n"
        f"bits per byte  {bits:.4f}\n"
        f"tokens         {count:,} predicted, in windows of {context}\n"
        f"checkpoint     step {trained.step}\n"
    )


@dataclass(frozen=True)
class _Figures:
    """One text of a mixture, or the whole split if there is no mixture, with the loss on it."""

    name: str
    share: float
    store: TokenStore
    tokens: int  # number of predicted tokens
    loss: float


def _figures(tokens: TokenStore, loss_on: Callable[[TokenStore], float]) -> list[_Figures]:
    """One _Figures for each text of a mixture, or for the whole split if there is no mixture."""
    from gptcli.corpus.mixture import MixedText, MixedTokens

    texts = tokens.texts if isinstance(tokens, MixedTokens) else [MixedText("", 1.0, tokens)]
    return [
        _Figures(text.name, text.share, text.tokens, len(text.tokens) - 1, loss_on(text.tokens))
        for text in texts
    ]


def _mean_loss(trained: Trained, tokens: TokenStore, context: int, threads: int | None) -> float:
    """The mean loss in nats per token.

    If `threads` is set, the C library computes the loss. PyTorch computes it if `threads` is None,
    or if the C library cannot."""
    if threads is not None:
        from gptcli.training.native_evaluate import evaluate_natively

        found = evaluate_natively(trained.weights, tokens, context, threads)
        if found is not None:
            return found
    from gptcli.training.evaluate import evaluate as mean_loss

    loss = mean_loss(trained.model, tokens, context)
    assert loss is not None
    return loss


def _tokens(trained: Trained, split: str, file: Path | None, overrides: list[str]) -> TokenStore:
    """The tokens to evaluate on: those of the file, or of a split of the run's text.

    Raises GptcliError if the file cannot be read with the run's tokenizer and data settings, if
    the run's text has changed, or if the run has no such split."""
    from gptcli.config_files import values_set
    from gptcli.corpus import open_corpus
    from gptcli.corpus.records import NoSuchFieldError
    from gptcli.corpus.sources import section_of
    from gptcli.corpus.undecodable import UndecodableFilesError
    from gptcli.tokenization.unknown_characters import UnknownCharactersError
    from gptcli.training.opening_text import open_text_of_run
    from gptcli.training.text_of_run import (
        TEXT_KEYS,
        WantedText,
        content_key_of,
        remember_source,
    )

    config = trained.config
    if file is not None:
        if overrides:
            raise GptcliError(
                "--file and a text of the run cannot both be given",
                "leave out --file, or data.source and data.val_source, which name texts of the run",
            )
        # Read the file as the run reads its text: with the run's data.field, data.documents and
        # data.encoding.
        source = section_of(str(file)).source
        other = {
            "source": source,
            "weights": None,
            "val_source": None,
            "skip_undecodable": False,
        }
        try:
            corpus = open_corpus(
                config.data.model_copy(update=other),
                kind=config.tokenizer.kind,
                vocab_size=config.tokenizer.vocab_size,
                val_fraction=0.0,
                block_size=1,
                tokenizer=trained.tokenizer,
                unknown=config.data.unknown,
            )
        except UnknownCharactersError as error:
            raise GptcliError(
                error.message,
                "remove these characters from the file: the model never saw them in its training "
                "text",
            ) from None
        except UndecodableFilesError as error:
            read = f"UTF-8 and {config.data.encoding}" if config.data.encoding else "UTF-8"
            raise GptcliError(
                error.message, f"the run reads {read} (data.encoding): save the file as UTF-8"
            ) from None
        except NoSuchFieldError as error:
            raise GptcliError(
                error.message,
                f"the run reads the field `{config.data.field or 'text'}` (data.field): rename the "
                "field in the file, or save its texts as a plain text file",
            ) from None
        for line in corpus.notes:
            note(f"note: {line}")
        return corpus.train
    command = f"gptcli eval {shell_word(trained.run)}"
    corpus, config = open_text_of_run(
        WantedText(
            trained.run,
            content_key_of(trained.run, trained.meta),
            named=TEXT_KEYS & set(values_set(overrides)),
            command=command,
            other_text=f"another text: {command} --file FILE",
        ),
        with_overrides(trained.run, config, overrides),
        trained.tokenizer,
    )
    if overrides and (remembered := remember_source(trained.run, trained.config, config.data)):
        note(remembered)
    if split == "train":
        return corpus.train
    if corpus.val is None:
        raise GptcliError(
            "the run has no validation split (data.val_fraction is 0)",
            "use --split train, or --file TEXT",
        )
    return corpus.val
