"""`gptcli sample`: continues prompts with a trained model, as text, as JSON or interactively."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.api.generation import MOST_SAMPLES, Generation, requests_of
from gptcli.api.loading import SamplingModel
from gptcli.api.user_files import load_sampler
from gptcli.cli.cache_comparison import compare_without_cache, errors_of_cache
from gptcli.cli.escapes import EscapeOption
from gptcli.cli.option_groups import with_option_groups
from gptcli.cli.options import (
    JsonOption,
    RunArgument,
    SamplingModelOptions,
    load_for_sampling,
)
from gptcli.cli.output import note, print_json
from gptcli.cli.prompts import encoding_of_run, read_prompts, typed
from gptcli.cli.user_files import SamplerOption
from gptcli.errors import GptcliError
from gptcli.plurals import counted
from gptcli.view.waiting import waiting

if TYPE_CHECKING:
    from gptcli.cli.cache_comparison import CacheComparison
    from gptcli.sampling.generate import SampleRequest
    from gptcli.sampling.params import SamplingParams
    from gptcli.sampling.streams import Streams
    from gptcli.sampling.text import Sample
    from gptcli.sampling.user_sampler import UserSampler


@dataclass(frozen=True)
class PromptOptions:
    """The options that give the prompts."""

    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="The text to continue.")
    ] = None
    prompt_file: Annotated[
        Path | None,
        typer.Option(
            "--prompt-file",
            metavar="FILE",
            help="A UTF-8 file with the prompt. A newline at its end is left out.",
        ),
    ] = None
    prompt_lines: Annotated[
        bool,
        typer.Option(
            "--prompt-lines", help="Read each line of --prompt-file as a prompt of its own."
        ),
    ] = False
    escape: EscapeOption = False


@dataclass(frozen=True)
class GenerationOptions:
    """The options of generation: how many tokens, how they are chosen, and where to stop."""

    max_new_tokens: Annotated[
        int,
        typer.Option(
            "--max-new-tokens", "-n", metavar="N", min=0, help="Generate at most N tokens."
        ),
    ] = Generation.max_new_tokens
    num_samples: Annotated[
        int,
        typer.Option(
            "--num-samples",
            metavar="K",
            min=1,
            max=MOST_SAMPLES,
            help="Generate K continuations of each prompt.",
        ),
    ] = 1
    temperature: Annotated[
        float,
        typer.Option(
            "--temperature",
            "-t",
            metavar="T",
            min=0.0,
            help="Below 1: more predictable text. Above 1: more surprising text. 0: always the "
            "likeliest token.",
        ),
    ] = Generation.temperature
    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k", metavar="K", min=1, help="Choose only among the K likeliest tokens."
        ),
    ] = None
    top_p: Annotated[
        float | None,
        typer.Option(
            "--top-p",
            metavar="P",
            min=0.0,
            max=1.0,
            help="Choose only among the likeliest tokens that together have probability P.",
        ),
    ] = None
    min_p: Annotated[
        float | None,
        typer.Option(
            "--min-p",
            metavar="P",
            min=0.0,
            max=1.0,
            help="Drop tokens that are less likely than P times the likeliest token.",
        ),
    ] = None
    repetition_penalty: Annotated[
        float,
        typer.Option(
            "--repetition-penalty",
            metavar="R",
            help="Above 1: tokens that are already in the text become less likely (0.01 to 100).",
        ),
    ] = Generation.repetition_penalty
    stop: Annotated[
        list[str] | None,
        typer.Option(
            "--stop", metavar="TEXT", help="Stop before TEXT. You can repeat this option."
        ),
    ] = None
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            metavar="S",
            min=0,
            help="The same seed gives the same text. Default: a new seed.",
        ),
    ] = None
    sampler: SamplerOption = None

    def checked(self) -> Generation:
        """A Generation with the values of these options, except the number of samples.

        Raises GptcliError if a value is out of range."""
        return Generation(
            self.max_new_tokens,
            self.temperature,
            self.top_k,
            self.top_p,
            self.min_p,
            self.repetition_penalty,
            self.stop or (),
            self.seed,
        ).checked(lambda name: "--" + name.replace("_", "-"))


@dataclass(frozen=True)
class OutputOptions:
    """The options that say how the text is shown."""

    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream",
            help="Show the text of a single sample while it is generated. Default: only on a "
            "terminal.",
        ),
    ] = None
    interactive: Annotated[
        bool,
        typer.Option(
            "--interactive",
            "-i",
            help="Take turns with the model: you type, it continues, you type on.",
        ),
    ] = False
    as_json: JsonOption = False


@with_option_groups
def sample(
    run: RunArgument = None,
    *,
    prompts: PromptOptions,
    generation: GenerationOptions,
    output: OutputOptions,
    options: SamplingModelOptions,
) -> None:
    """Generate text with a trained model.

    If the file of --attention has a key/value cache (check-cache), gptcli uses this cache. Unless
    --interactive is given, gptcli then also samples without the cache, and compares text and speed.

    `gptcli chat` is short for `gptcli sample --interactive`."""
    wanted = generation.checked()
    texts = read_prompts(
        prompts.prompt,
        prompts.prompt_file,
        prompts.prompt_lines,
        escape=prompts.escape,
        encoding=lambda: encoding_of_run(run, "sample"),
    )
    stops = [typed(stop, "--stop", escape=prompts.escape) for stop in wanted.stop]
    several = generation.num_samples > 1 or len(texts) > 1
    if output.interactive and (several or output.as_json or prompts.prompt_file is not None):
        raise GptcliError(
            "--interactive generates one text, on the terminal",
            "leave out --num-samples, --prompt-file and --json",
        )
    with waiting("loading the model"):
        sampler = load_sampler(generation.sampler)
        if sampler is not None:
            sampler.stop_filter(stops)  # raises if --stop and the sampler do not fit together
        model = load_for_sampling(run, options, "sample")
    seed = wanted.seed_or_new()
    wanted = replace(wanted, stop=stops)
    if output.interactive:
        first = texts[0] if prompts.prompt is not None else None
        with errors_of_cache(model.trained.user_parts):
            _converse(model, options, first, wanted, seed, sampler, escape=prompts.escape)
        return
    texts = _readable(model, texts, prompts.prompt_file)
    requests = list(
        requests_of(
            model.trained.tokenizer,
            texts,
            generation.num_samples,
            lambda number: _place(prompts.prompt_file, number, len(texts)),
        )
    )
    stream = sys.stdout.isatty() if output.stream is None else output.stream
    live = stream and not several and not output.as_json
    if live:
        _show(texts[0])
    samples, seconds = _generate(model, requests, wanted, seed, sampler, live=live)
    if live:
        _show("\n")
    cache = None
    user_parts = model.trained.user_parts
    if user_parts is not None and user_parts.cache is not None:
        with waiting("generating the same text without your cache"), redirect_stdout(sys.stderr):
            cache = compare_without_cache(
                model,
                requests,
                samples,
                seconds,
                open_streams=lambda: model.open_streams(len(requests), wanted.params(), sampler),
                seed=seed,
                stops=stops,
            )
    for i, one in enumerate(samples):
        text = texts[one.index // generation.num_samples]
        if output.as_json:
            _print_sample(one, text, model, seed, seconds, cache)
        elif not live:
            _show(("---\n" if i else "") + text + one.text + "\n")
    if not output.as_json and sys.stderr.isatty():
        tokens = sum(one.tokens for one in samples)
        note(
            f"({counted(tokens, 'token')}, {tokens / seconds:,.0f} a second; {model.path}, "
            f"step {model.trained.step}; seed {seed})"
        )
    if cache is not None:
        cache.report()


def _place(file: Path | None, number: int, count: int) -> str:
    """The file and line of a prompt, to begin an error message. "" if the prompt was typed."""
    line = f":{number}" if count > 1 else ""
    return f"{file}{line}: " if file else ""


def _readable(model: SamplingModel, texts: list[str], file: Path | None) -> list[str]:
    """Apply data.unknown to the characters of the prompts that the tokenizer does not know.

    Returns the new prompts. Prints a note for each changed prompt."""
    from gptcli.tokenization.unknown_characters import readable

    found = []
    for number, text in enumerate(texts, 1):
        changed, message = readable(
            model.trained.tokenizer, model.trained.config.data.unknown, text
        )
        found.append(changed)
        if message is not None:
            where = file or "--prompt"
            note(f"note: {where}{f':{number}' if len(texts) > 1 else ''}: {message}")
    return found


def _generate(
    model: SamplingModel,
    requests: list[SampleRequest],
    wanted: Generation,
    seed: int,
    sampler: UserSampler | None,
    *,
    live: bool,
) -> tuple[list[Sample], float]:
    """The samples in order, and how many seconds it took to generate all of them.

    If `live` is true, the text is shown while it is generated."""
    import time

    from gptcli.sampling.stop_filter import StopFilter
    from gptcli.sampling.text import NewText, generate_text

    samples = []
    out = sys.stdout
    # The code of the user's parts can print, but stdout is for data.
    with redirect_stdout(sys.stderr), errors_of_cache(model.trained.user_parts):
        streams = model.open_streams(len(requests), wanted.params(), sampler)
        start = time.perf_counter()
        for item in generate_text(
            streams,
            model.trained.tokenizer,
            requests,
            max_new_tokens=wanted.max_new_tokens,
            seed=seed,
            stops=wanted.stop,
            stop_filter=StopFilter if sampler is None else sampler.stop_filter,
        ):
            if not isinstance(item, NewText):
                samples.append(item)
            elif live:
                with redirect_stdout(out):
                    _show(item.text)
    seconds = time.perf_counter() - start
    return sorted(samples, key=lambda one: one.index), seconds


def _converse(
    model: SamplingModel,
    options: SamplingModelOptions,
    first: str | None,
    wanted: Generation,
    seed: int,
    sampler: UserSampler | None,
    *,
    escape: bool,
) -> None:
    from gptcli.cli.interactive import Settings, Turns, converse
    from gptcli.sampling.conversation import Conversation
    from gptcli.sampling.stop_filter import StopFilter

    def load(run: str | None, settings: Settings) -> Turns:
        loaded = model if run is None else load_for_sampling(run, options, "sample")

        def open_streams(params: SamplingParams) -> Streams:
            return loaded.open_streams(1, params, sampler)

        conversation = Conversation(
            open_streams(settings.params),
            loaded.trained.tokenizer,
            seed=settings.seed,
            stops=wanted.stop,
            stop_filter=StopFilter if sampler is None else sampler.stop_filter,
        )
        unknown = loaded.trained.config.data.unknown
        name = f"{loaded.path}, step {loaded.trained.step}"
        return Turns(conversation, open_streams, loaded.trained.tokenizer, unknown, name)

    settings = Settings(wanted.params(), wanted.max_new_tokens, seed)
    converse(load, settings, _show, first, escape=escape)


def _print_sample(
    sample: Sample,
    prompt: str,
    model: SamplingModel,
    seed: int | None,
    seconds: float,
    cache: CacheComparison | None,
) -> None:
    print_json(
        {
            "text": sample.text,
            "prompt": prompt,
            "tokens": sample.tokens,
            "seconds": seconds,
            "tokens_per_second": sample.tokens / seconds,
            "stopped": sample.stopped,
            "seed": seed,
            "run": str(model.path),
            "checkpoint": model.trained.step,
            "dtype": model.backend.dtype,
            **({} if cache is None else cache.to_json()),
        }
    )


def _show(text: str) -> None:
    if sys.stdout.isatty():
        from gptcli.view.safe_text import clean

        text = clean(text)  # the text must not control the terminal by escape sequences
    sys.stdout.write(text)
    sys.stdout.flush()
