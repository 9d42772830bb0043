"""`gptcli sample`."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from gptcli.cli.options import (
    CheckpointOption,
    DeviceOption,
    DTypeOption,
    JsonOption,
    Machine,
    RunArgument,
    ThreadsOption,
    load,
)
from gptcli.cli.output import note, print_json
from gptcli.cli.own_files import (
    AttentionOption,
    BlockOption,
    LayerNormOption,
    MlpOption,
    OwnFiles,
    TokenizerOption,
)
from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from gptcli.sampling.text import Sample


def sample(
    run: RunArgument = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="The text to continue.")] = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option(
            "--prompt-file",
            help="A UTF-8 file that holds the prompt (one line end at its end is not part of it).",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=0, help="Tokens to write, at most.")
    ] = 500,
    num_samples: Annotated[
        int,
        typer.Option("--num-samples", min=1, help="How many continuations, drawn in one batch."),
    ] = 1,
    temperature: Annotated[
        float,
        typer.Option("--temperature", min=0.0, help="Below 1: safer; above: wilder; 0: greedy."),
    ] = 0.8,
    top_k: Annotated[
        int | None, typer.Option("--top-k", min=1, help="Choose among the K likeliest tokens.")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            "--top-p", min=0.0, max=1.0, help="Choose among the fewest tokens that reach P."
        ),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option("--min-p", min=0.0, max=1.0, help="Drop tokens below P times the likeliest."),
    ] = None,
    repetition_penalty: Annotated[
        float, typer.Option("--repetition-penalty", help="Above 1: tokens seen become less likely.")
    ] = 1.0,
    stop: Annotated[
        list[str] | None,
        typer.Option("--stop", help="Stop before this text; may be given several times."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", min=0, help="The same seed writes the same text. Default: a new one."
        ),
    ] = None,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream",
            help="Show the text as it comes. Default: for one sample on a terminal.",
        ),
    ] = None,
    as_json: JsonOption = False,
    checkpoint: CheckpointOption = None,
    device: DeviceOption = "auto",
    dtype: DTypeOption = "auto",
    threads: ThreadsOption = None,
    attention: AttentionOption = None,
    layernorm: LayerNormOption = None,
    mlp: MlpOption = None,
    block: BlockOption = None,
    tokenizer: TokenizerOption = None,
) -> None:
    """Let a model write."""
    import math
    import secrets
    import time

    for name, value in (
        ("--temperature", temperature),
        ("--repetition-penalty", repetition_penalty),
    ):
        if not math.isfinite(value):
            raise GptcliError(f"{name} must be a finite number; got {value}", "0.5 to 1.2 is usual")
    if repetition_penalty <= 0:
        raise GptcliError(
            f"--repetition-penalty must be above 0; got {repetition_penalty:g}",
            "1 changes nothing, 1.1 to 1.3 is usual",
        )
    text = _prompt(prompt, prompt_file)
    files = OwnFiles(attention, layernorm, mlp, block, tokenizer)
    path, trained = load(
        run, checkpoint, Machine(device, dtype, threads), files, dtype_of_run=False
    )
    from gptcli.sampling.choose import Choice
    from gptcli.sampling.text import Piece, write

    ids = trained.tokenizer.encode(text) or trained.tokenizer.start_ids()
    if seed is None:
        seed = secrets.randbelow(2**31)
    if stream is None:
        stream = sys.stdout.isatty() and num_samples == 1
    live = stream and num_samples == 1 and not as_json
    how = Choice(temperature, top_k, top_p, min_p, repetition_penalty)
    start = time.perf_counter()
    done: list[Sample] = []
    out = sys.stdout
    if live:
        _show(out, text)
    with redirect_stdout(sys.stderr):  # what a learner's module prints is not data
        for item in write(
            trained.model,
            trained.tokenizer,
            ids,
            streams=num_samples,
            max_new_tokens=max_new_tokens,
            how=how,
            seed=seed,
            stops=stop or (),
        ):
            if not isinstance(item, Piece):
                done.append(item)
            elif live:
                _show(out, item.text)
    seconds = time.perf_counter() - start
    if live:
        _show(out, "\n")
    for i, one in enumerate(sorted(done, key=lambda sample: sample.index)):
        if as_json:
            print_json(
                {
                    "text": one.text,
                    "prompt": text,
                    "tokens": one.tokens,
                    "seconds": seconds,
                    "tokens_per_second": one.tokens / seconds,
                    "stopped": one.stopped,
                    "seed": seed,
                    "run": str(path),
                    "checkpoint": trained.step,
                }
            )
        elif not live:
            _show(out, ("---\n" if i else "") + text + one.text + "\n")
    if not as_json and sys.stderr.isatty():
        tokens = sum(one.tokens for one in done)
        note(
            f"({tokens:,} tokens, {tokens / seconds:,.0f} a second; {path}, step {trained.step}; "
            f"seed {seed})"
        )


def _show(out: TextIO, text: str) -> None:
    if out.isatty():
        from gptcli.view.safe_text import clean

        text = clean(text)  # what a model writes must not steer the terminal
    out.write(text)
    out.flush()


def _prompt(prompt: str | None, file: Path | None) -> str:
    if file is None:
        return prompt or ""
    if prompt is not None:
        raise GptcliError("--prompt and --prompt-file cannot both be given", "leave one out")
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise GptcliError(
            f"{file}: cannot be read ({error.strerror})", "--prompt-file takes a UTF-8 text file"
        ) from None
    except UnicodeDecodeError as error:
        raise GptcliError(
            f"{file}: not UTF-8 text (byte {error.start})", "save it as UTF-8"
        ) from None
    return text.removesuffix("\n").removesuffix("\r")
