"""`gptcli sample`: continue prompts with a trained model, as text or JSON, live or in turns."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.api.user_files import load_sampler
from gptcli.cli.cache_comparison import compare_without_cache, errors_of_cache
from gptcli.cli.escapes import EscapeOption
from gptcli.cli.option_groups import with_option_groups
from gptcli.cli.options import (
    JsonOption,
    RunArgument,
    SamplingModel,
    SamplingModelOptions,
    load_for_sampling,
)
from gptcli.cli.output import note, print_json
from gptcli.cli.prompts import encoding_of_run, read_prompts, typed
from gptcli.cli.user_files import SamplerOption
from gptcli.errors import GptcliError
from gptcli.view.waiting import waiting

if TYPE_CHECKING:
    from gptcli.cli.cache_comparison import CacheComparison
    from gptcli.sampling.generate import SampleRequest
    from gptcli.sampling.next_token import SamplingParams
    from gptcli.sampling.streams import Streams
    from gptcli.sampling.text import Sample
    from gptcli.sampling.user_sampler import UserSampler


@dataclass(frozen=True)
class PromptOptions:
    """The texts to continue."""

    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="The text to continue.")
    ] = None
    prompt_file: Annotated[
        Path | None,
        typer.Option(
            "--prompt-file",
            metavar="FILE",
            help="A UTF-8 file with the prompt (without the newline at its end).",
        ),
    ] = None
    prompt_lines: Annotated[
        bool,
        typer.Option(
            "--prompt-lines", help="Each line of the prompt file is a prompt; all run together."
        ),
    ] = False
    escape: EscapeOption = False


@dataclass(frozen=True)
class GenerationOptions:
    """How much to generate, how tokens are chosen, and where to stop."""

    max_new_tokens: Annotated[
        int,
        typer.Option(
            "--max-new-tokens", "-n", metavar="N", min=0, help="Tokens to generate, at most."
        ),
    ] = 500
    num_samples: Annotated[
        int,
        typer.Option(
            "--num-samples",
            metavar="K",
            min=1,
            max=100_000,
            help="Continuations of each prompt, generated together.",
        ),
    ] = 1
    temperature: Annotated[
        float,
        typer.Option(
            "--temperature",
            "-t",
            metavar="T",
            min=0.0,
            help="Below 1: safer; above: wilder; 0: greedy.",
        ),
    ] = 0.8
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", metavar="K", min=1, help="Choose among the K likeliest tokens."),
    ] = None
    top_p: Annotated[
        float | None,
        typer.Option(
            "--top-p",
            metavar="P",
            min=0.0,
            max=1.0,
            help="Choose among the fewest tokens whose probabilities reach P.",
        ),
    ] = None
    min_p: Annotated[
        float | None,
        typer.Option(
            "--min-p",
            metavar="P",
            min=0.0,
            max=1.0,
            help="Drop tokens below P times the likeliest.",
        ),
    ] = None
    repetition_penalty: Annotated[
        float,
        typer.Option(
            "--repetition-penalty",
            metavar="R",
            help="Above 1: tokens already in the text become less likely (0.01 to 100).",
        ),
    ] = 1.0
    stop: Annotated[
        list[str] | None,
        typer.Option(
            "--stop", metavar="TEXT", help="Stop before this text; can be given several times."
        ),
    ] = None
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            metavar="S",
            min=0,
            help="The same seed gives the same text. Default: a new one.",
        ),
    ] = None
    sampler: SamplerOption = None

    def check(self) -> None:
        """Raise GptcliError if a value is not finite, or the penalty is out of range."""
        import math

        for name, value, usual in (
            ("--temperature", self.temperature, "0.5 to 1.2"),
            ("--repetition-penalty", self.repetition_penalty, "1 to 1.3"),
            ("--top-p", self.top_p, "0.9 to 0.98"),
            ("--min-p", self.min_p, "0.01 to 0.1"),
        ):
            if value is not None and not math.isfinite(value):
                raise GptcliError(
                    f"{name} must be a finite number; got {value}", f"{usual} is usual"
                )
        if not 0.01 <= self.repetition_penalty <= 100:
            raise GptcliError(
                f"--repetition-penalty must be 0.01 to 100; got {self.repetition_penalty:g}",
                "1 changes nothing, 1.1 to 1.3 is usual",
            )

    def params(self) -> SamplingParams:
        """The sampling parameters."""
        from gptcli.sampling.next_token import SamplingParams

        return SamplingParams(
            self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty
        )

    def seed_or_new(self) -> int:
        """The seed, or a random one."""
        import secrets

        return secrets.randbelow(2**31) if self.seed is None else self.seed


@dataclass(frozen=True)
class OutputOptions:
    """How the text is shown."""

    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream",
            help="Show the text as it comes. Default: for one sample on a terminal.",
        ),
    ] = None
    interactive: Annotated[
        bool,
        typer.Option(
            "--interactive",
            "-i",
            help="Write in turns: type a prompt, see the continuation, type on.",
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

    If the file of --attention has a key/value cache (check-cache), it is used, and the text and
    the speed are compared with those without it.

    `gptcli chat` is short for `gptcli sample --interactive`."""
    generation.check()
    texts = read_prompts(
        prompts.prompt,
        prompts.prompt_file,
        prompts.prompt_lines,
        escape=prompts.escape,
        encoding=lambda: encoding_of_run(run, "sample"),
    )
    stops = [typed(stop, "--stop", escape=prompts.escape) for stop in generation.stop or ()]
    if "" in (generation.stop or ()):
        raise GptcliError("--stop takes a text of at least one character", "leave it out")
    several = generation.num_samples > 1 or len(texts) > 1
    if output.interactive and (several or output.as_json or prompts.prompt_file is not None):
        raise GptcliError(
            "--interactive generates one text, on the terminal",
            "leave out --num-samples, --prompt-file and --json",
        )
    with waiting("loading the model"):
        sampler = load_sampler(generation.sampler)
        if sampler is not None:
            sampler.stop_filter(stops)  # before the model is loaded
        model = load_for_sampling(run, options, "sample")
    generation = replace(generation, seed=generation.seed_or_new(), stop=stops)
    if output.interactive:
        first = texts[0] if prompts.prompt is not None else None
        with errors_of_cache(model.trained.model):
            _converse(model, options, first, generation, sampler, escape=prompts.escape)
        return
    texts = _readable(model, texts, prompts.prompt_file)
    requests = _requests(model, texts, generation.num_samples, prompts.prompt_file)
    stream = sys.stdout.isatty() if output.stream is None else output.stream
    live = stream and not several and not output.as_json
    if live:
        _show(texts[0])
    samples, seconds = _generate(model, requests, generation, sampler, live=live)
    if live:
        _show("\n")
    cache = None
    if model.trained.model.user_parts.cache is not None:
        assert generation.seed is not None
        with waiting("the same without your cache"), redirect_stdout(sys.stderr):
            cache = compare_without_cache(
                model,
                requests,
                samples,
                seconds,
                open_streams=lambda: _open_streams(
                    model, len(requests), generation.params(), sampler
                ),
                seed=generation.seed,
                stops=generation.stop or (),
            )
    for i, one in enumerate(samples):
        text = texts[one.index // generation.num_samples]
        if output.as_json:
            _print_sample(one, text, model, generation.seed, seconds, cache)
        elif not live:
            _show(("---\n" if i else "") + text + one.text + "\n")
    if not output.as_json and sys.stderr.isatty():
        tokens = sum(one.tokens for one in samples)
        note(
            f"({tokens:,} tokens, {tokens / seconds:,.0f} a second; {model.path}, "
            f"step {model.trained.step}; seed {generation.seed})"
        )
    if cache is not None:
        cache.report()


def _readable(model: SamplingModel, texts: list[str], file: Path | None) -> list[str]:
    """The prompts as the model can read them (data.unknown). Prints a note for each change."""
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


def _requests(
    model: SamplingModel, texts: list[str], num_samples: int, file: Path | None
) -> list[SampleRequest]:
    """A request for each sample of each prompt.

    Raises GptcliError, with file and line, if the tokenizer does not know a character."""
    from gptcli.sampling.generate import SampleRequest

    tokenizer = model.trained.tokenizer
    requests = []
    for number, text in enumerate(texts, 1):
        try:
            ids = tokenizer.encode(text) or tokenizer.start_ids()
        except GptcliError as error:
            line = f":{number}" if len(texts) > 1 else ""
            where = f"{file}{line}: " if file else ""
            raise GptcliError(f"{where}{error.message}", error.hint) from None
        requests += [SampleRequest(ids, i) for i in range(num_samples)]
    return requests


def _generate(
    model: SamplingModel,
    requests: list[SampleRequest],
    generation: GenerationOptions,
    sampler: UserSampler | None,
    *,
    live: bool,
) -> tuple[list[Sample], float]:
    """The samples in order, and the seconds that generating all of them took. If `live`, text is
    shown as it comes."""
    import time

    from gptcli.sampling.stop_filter import StopFilter
    from gptcli.sampling.text import NewText, generate_text

    assert generation.seed is not None
    samples = []
    out = sys.stdout
    # A user's module can print; that is not data.
    with redirect_stdout(sys.stderr), errors_of_cache(model.trained.model):
        streams = _open_streams(model, len(requests), generation.params(), sampler)
        start = time.perf_counter()
        for item in generate_text(
            streams,
            model.trained.tokenizer,
            requests,
            max_new_tokens=generation.max_new_tokens,
            seed=generation.seed,
            stops=generation.stop or (),
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
    generation: GenerationOptions,
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
            return _open_streams(loaded, 1, params, sampler)

        conversation = Conversation(
            open_streams(settings.params),
            loaded.trained.tokenizer,
            seed=settings.seed,
            stops=generation.stop or (),
            stop_filter=StopFilter if sampler is None else sampler.stop_filter,
        )
        unknown = loaded.trained.config.data.unknown
        name = f"{loaded.path}, step {loaded.trained.step}"
        return Turns(conversation, open_streams, loaded.trained.tokenizer, unknown, name)

    assert generation.seed is not None
    settings = Settings(generation.params(), generation.max_new_tokens, generation.seed)
    converse(load, settings, _show, first, escape=escape)


def _open_streams(
    model: SamplingModel, count: int, params: SamplingParams, sampler: UserSampler | None
) -> Streams:
    from gptcli.sampling.backend import open_streams
    from gptcli.sampling.valid_text import table_of

    return open_streams(
        model.trained.model,
        count,
        params,
        model.backend,
        model.threads,
        table_of(model.trained.tokenizer),
        sampler,
    )


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
            "dtype": str(model.backend.dtype).removeprefix("torch."),
            **({} if cache is None else cache.to_json()),
        }
    )


def _show(text: str) -> None:
    if sys.stdout.isatty():
        from gptcli.view.safe_text import clean

        text = clean(text)  # escape sequences in the text must not control the terminal
    sys.stdout.write(text)
    sys.stdout.flush()
