"""`gptcli score`."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.cli.options import (
    CheckpointOption,
    DeviceOption,
    JsonOption,
    Machine,
    ThreadsOption,
    WriterDTypeOption,
    load,
    load_writer,
)
from gptcli.cli.output import note, print_json, stdout_console
from gptcli.cli.prompts import read_text
from gptcli.cli.user_files import (
    AttentionOption,
    BlockOption,
    LayerNormOption,
    MlpOption,
    TokenizerOption,
    UserFiles,
)
from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from rich.text import Text

_LEVELS = (  # the least probability, the style of what has it
    (0.5, "", "above 1/2"),
    (0.1, "green", "above 1/10"),
    (0.01, "yellow", "above 1/100"),
    (0.0, "bold red", "below"),
)


def score(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN] FILE", help="A run (default: the newest), and a UTF-8 text file."
        ),
    ],
    as_json: JsonOption = False,
    checkpoint: CheckpointOption = None,
    device: DeviceOption = "auto",
    dtype: WriterDTypeOption = "auto",
    threads: ThreadsOption = None,
    attention: AttentionOption = None,
    layernorm: LayerNormOption = None,
    mlp: MlpOption = None,
    block: BlockOption = None,
    tokenizer: TokenizerOption = None,
) -> None:
    """Show how likely a model finds each token of a text.

    On a terminal the text is coloured by it; into a file goes a line for each token: its
    log-probability in nats, its number, its text. What a token is predicted from is what `sample`
    would have looked at."""
    import math

    if len(words) > 2:
        raise GptcliError(f"score takes a run and a file; got {len(words)} words", "RUN FILE")
    run, file = (None, words[0]) if len(words) == 1 else words
    text = read_text(Path(file), "score")
    if not text:
        raise GptcliError(f"{file} is empty", "score a text of at least one character")
    files = UserFiles(attention, layernorm, mlp, block, tokenizer)
    machine, backend = Machine(device, dtype, threads), None
    if dtype in ("auto", "float32"):
        _, trained = load(run, checkpoint, machine, files, dtype_of_run=False)
    else:  # as `sample` computes in it
        writer = load_writer(run, checkpoint, machine, files)
        trained, backend = writer.trained, writer.backend
    from gptcli.sampling.backend import open_decoder
    from gptcli.sampling.score import log_probabilities, native_log_probabilities

    try:
        ids = trained.tokenizer.encode(text)
    except GptcliError as error:
        raise GptcliError(f"{file}: {error.message}", error.hint) from None
    if not ids:
        raise GptcliError(f"the tokenizer makes no token of {file}", "score another text")
    with redirect_stdout(sys.stderr):  # what a learner's module prints is not data
        start = trained.tokenizer.start_ids()
        if backend is not None and backend.native:
            decoder = open_decoder(trained.model, backend, writer.threads)
            found = native_log_probabilities(decoder, trained.config.model, start, ids).tolist()
        else:
            found = log_probabilities(trained.model, start, ids).tolist()
    pieces = [trained.tokenizer.token_bytes(id).decode("utf-8", "replace") for id in ids]
    total = math.fsum(found)
    loss = -total / len(ids)
    perplexity = math.inf if loss >= 700 else math.exp(loss)
    bits_per_byte = -total / math.log(2) / len(text.encode("utf-8"))
    if as_json:
        print_json(
            {
                "log_probability": total,
                "loss": loss,
                "perplexity": perplexity,
                "bits_per_byte": bits_per_byte,
                "tokens": len(ids),
                "checkpoint": trained.step,
                "scores": [
                    {"id": id, "text": piece, "log_probability": one}
                    for id, piece, one in zip(ids, pieces, found, strict=True)
                ],
            }
        )
        return
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        stream = trained.tokenizer.stream()  # whole characters, with the last of their tokens
        whole = [stream.push(id) for id in ids]
        stdout_console().print(_coloured(whole, found), soft_wrap=True)
    else:
        import json

        for id, piece, one in zip(ids, pieces, found, strict=True):
            sys.stdout.write(f"{one:.4f}\t{id}\t{json.dumps(piece, ensure_ascii=False)}\n")
        sys.stdout.flush()
    note(
        f"{len(ids):,} token{'s' if len(ids) != 1 else ''}: {loss:.4f} nats per token, "
        f"perplexity {perplexity:.3f}, {bits_per_byte:.4f} bits per byte"
    )


def _coloured(pieces: list[str], found: list[float]) -> Text:
    import math

    from rich.text import Text

    from gptcli.view.safe_text import clean

    shown = Text()
    for piece, one in zip(pieces, found, strict=True):
        # What is not a number is as surprising as can be.
        probability = 0.0 if math.isnan(one) else math.exp(min(0.0, one))
        style = next(style for least, style, _ in _LEVELS if probability >= least)
        # An end of a line has no colour to see: where it was not expected, a sign stands for it.
        marked = piece.replace("\r", "␍")
        shown.append(clean(marked.replace("\n", "⏎\n") if style else marked), style)
    if not shown.plain.endswith("\n"):
        shown.append("\n")
    shown.append("\nprobability: ", "dim")
    for _, style, meaning in _LEVELS:
        shown.append(meaning, style)
        shown.append("  ")
    return shown
