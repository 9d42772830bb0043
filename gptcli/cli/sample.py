"""`gptcli sample`."""

from __future__ import annotations

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
    RunArgument,
    ThreadsOption,
    Writer,
    WriterDTypeOption,
    load_writer,
)
from gptcli.cli.output import note, print_json
from gptcli.cli.prompts import read_prompts
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
    from gptcli.sampling.next_token import SamplingParams
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
    prompt_lines: Annotated[
        bool,
        typer.Option(
            "--prompt-lines", help="Each line of the prompt file is a prompt; written together."
        ),
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=0, help="Tokens to write, at most.")
    ] = 500,
    num_samples: Annotated[
        int,
        typer.Option(
            "--num-samples",
            min=1,
            max=100_000,
            help="Continuations of each prompt, written together.",
        ),
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
        float,
        typer.Option(
            "--repetition-penalty",
            help="Above 1: tokens seen become less likely (0.01 to 100).",
        ),
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
    interactive: Annotated[
        bool,
        typer.Option(
            "--interactive",
            "-i",
            help="Write in turns: type a prompt, see the continuation, type on.",
        ),
    ] = False,
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
    """Let a model write."""
    import secrets

    _check(temperature, repetition_penalty, top_p, min_p)
    prompts = read_prompts(prompt, prompt_file, prompt_lines)
    if "" in (stop or ()):
        raise GptcliError("--stop takes a text of at least one character", "leave it out")
    several = num_samples > 1 or len(prompts) > 1
    if interactive and (several or as_json or prompt_file is not None):
        raise GptcliError(
            "--interactive writes one text, on the terminal",
            "leave out --num-samples, --prompt-file and --json",
        )
    files = UserFiles(attention, layernorm, mlp, block, tokenizer)
    writer = load_writer(run, checkpoint, Machine(device, dtype, threads), files)
    from gptcli.sampling.next_token import SamplingParams

    how = SamplingParams(temperature, top_k, top_p, min_p, repetition_penalty)
    if seed is None:
        seed = secrets.randbelow(2**31)
    stops = stop or []
    if interactive:
        _talk(writer, prompt, how, max_new_tokens, seed, stops)
        return
    if stream is None:
        stream = sys.stdout.isatty()
    live = stream and not several and not as_json
    samples, seconds = _write(
        writer,
        prompts,
        num_samples,
        how,
        max_new_tokens,
        seed,
        stops,
        live=live,
        prompt_file=prompt_file,
    )
    for i, one in enumerate(samples):
        text = prompts[one.index // num_samples]
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
                    "run": str(writer.path),
                    "checkpoint": writer.trained.step,
                    "dtype": str(writer.backend.dtype).removeprefix("torch."),
                }
            )
        elif not live:
            _show(("---\n" if i else "") + text + one.text + "\n")
    if not as_json and sys.stderr.isatty():
        tokens = sum(one.tokens for one in samples)
        note(
            f"({tokens:,} tokens, {tokens / seconds:,.0f} a second; {writer.path}, "
            f"step {writer.trained.step}; seed {seed})"
        )


def _check(
    temperature: float, repetition_penalty: float, top_p: float | None, min_p: float | None
) -> None:
    import math

    for name, value, usual in (
        ("--temperature", temperature, "0.5 to 1.2"),
        ("--repetition-penalty", repetition_penalty, "1 to 1.3"),
        ("--top-p", top_p, "0.9 to 0.98"),
        ("--min-p", min_p, "0.01 to 0.1"),
    ):
        if value is not None and not math.isfinite(value):
            raise GptcliError(f"{name} must be a finite number; got {value}", f"{usual} is usual")
    if not 0.01 <= repetition_penalty <= 100:
        raise GptcliError(
            f"--repetition-penalty must be 0.01 to 100; got {repetition_penalty:g}",
            "1 changes nothing, 1.1 to 1.3 is usual",
        )


def _write(
    writer: Writer,
    prompts: list[str],
    num_samples: int,
    how: SamplingParams,
    max_new_tokens: int,
    seed: int,
    stops: list[str],
    *,
    live: bool,
    prompt_file: Path | None,
) -> tuple[list[Sample], float]:
    """The samples, in order, and the seconds that they took together; shown as they come where
    that is asked for."""
    import time

    from gptcli.sampling.backend import open_streams
    from gptcli.sampling.generate import Job
    from gptcli.sampling.text import Piece, write

    trained = writer.trained
    jobs = []
    for number, text in enumerate(prompts, 1):
        try:
            ids = trained.tokenizer.encode(text) or trained.tokenizer.start_ids()
        except GptcliError as error:
            line = f":{number}" if len(prompts) > 1 else ""
            where = f"{prompt_file}{line}: " if prompt_file else ""
            raise GptcliError(f"{where}{error.message}", error.hint) from None
        jobs += [Job(ids, i) for i in range(num_samples)]
    done = []
    if live:
        _show(prompts[0])
    out = sys.stdout
    with redirect_stdout(sys.stderr):  # what a learner's module prints is not data
        streams = open_streams(trained.model, len(jobs), how, writer.backend, writer.threads)
        start = time.perf_counter()
        for item in write(
            streams, trained.tokenizer, jobs, max_new_tokens=max_new_tokens, seed=seed, stops=stops
        ):
            if not isinstance(item, Piece):
                done.append(item)
            elif live:
                with redirect_stdout(out):
                    _show(item.text)
    seconds = time.perf_counter() - start
    if live:
        _show("\n")
    return sorted(done, key=lambda one: one.index), seconds


def _talk(
    writer: Writer,
    prompt: str | None,
    how: SamplingParams,
    max_new_tokens: int,
    seed: int,
    stops: list[str],
) -> None:
    from gptcli.cli.interactive import talk
    from gptcli.sampling.backend import open_streams
    from gptcli.sampling.conversation import Conversation

    streams = open_streams(writer.trained.model, 1, how, writer.backend, writer.threads)
    conversation = Conversation(streams, writer.trained.tokenizer, seed=seed, stops=stops)
    talk(conversation, max_new_tokens, _show, prompt)


def _show(text: str) -> None:
    if sys.stdout.isatty():
        from gptcli.view.safe_text import clean

        text = clean(text)  # what a model writes must not steer the terminal
    sys.stdout.write(text)
    sys.stdout.flush()
