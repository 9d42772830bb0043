"""`gptcli plan`: predicts memory, traffic and time of a config on many GPUs."""

from __future__ import annotations

from typing import Annotated

import typer

from gptcli.cli.options import JsonOption
from gptcli.cli.output import note, print_json
from gptcli.errors import GptcliError, nearest
from gptcli.plurals import counted

_CHARACTERS = 96  # the assumed vocab_size of a char tokenizer, because plan reads no text


def plan(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG] [KEY=VALUE ...]",
            help="A config, and changes to it as KEY=VALUE. Default: shakespeare, or on a GPU "
            "shakespeare-gpu.",
        ),
    ] = None,
    gpus: Annotated[
        int, typer.Option("--gpus", metavar="N", min=1, max=100_000, help="Number of GPUs.")
    ] = 8,
    gpu: Annotated[
        str,
        typer.Option(
            "--gpu", metavar="KIND", help="The kind: a100, h100, h200, or zen4 for cores of a CPU."
        ),
    ] = "h100",
    as_json: JsonOption = False,
) -> None:
    """Predict how a config would train on N GPUs.

    Each machine has 8 GPUs. With `--gpu zen4`, the N ranks are processes on a CPU, with one thread
    each. gptcli measures nothing and reads no text. docs/scaling.md shows the arithmetic."""
    from gptcli.cli.train_arguments import config_of_arguments

    config = config_of_arguments(arguments or [])
    import torch

    from gptcli.distributed.plan import GPUS, as_dict, predict
    from gptcli.model.gpt import GPT, count_parameters

    if gpu.lower() not in GPUS:
        close = nearest(gpu.lower(), GPUS)
        raise GptcliError(
            f"--gpu `{gpu}` is not known",
            f"did you mean {close}?" if close else f"one of: {', '.join(GPUS)}",
        )
    kind, tokenizer = GPUS[gpu.lower()], config.tokenizer
    vocab_size = {
        "gpt2": 50_257, "bpe": tokenizer.vocab_size, "byte": 257, "char": _CHARACTERS
    }[tokenizer.kind]  # fmt: skip
    with torch.device("meta"):
        parameters = count_parameters(GPT(config.model, vocab_size)).total
    counts = sorted({1, min(kind.cores or kind.of_a_machine, gpus), gpus})
    plans = [
        predict(config, vocab_size, parameters, count, kind, parallel)
        for count in counts
        for parallel in ("ddp", "fsdp")
        if count > 1 or parallel == "ddp"
    ]
    if as_json:
        print_json(
            {
                "parameters": parameters,
                "tokens_per_step": config.tokens_per_step,
                "gpu": kind.name,
                "plans": [as_dict(each) for each in plans],
            }
        )
        return
    note(
        f"{parameters:,} parameters, {counted(config.tokens_per_step, 'token')} per step, "
        f"{kind.name}; "
        + (f"machines of {kind.of_a_machine} GPUs" if kind.cores is None else "one thread a rank")
    )
    what = "GPUs" if kind.cores is None else "ranks"
    head = (what, "", "memory", "sent inside", "between", "step", "waiting", "tokens/s", "MFU",
            "checkpoint", "failure each", "lost")  # fmt: skip
    lines = [head]
    for each in plans:
        lines.append(
            (
                f"{each.gpus:,}",
                each.parallel,
                _size(each.memory_bytes) + ("" if each.fits else " (too much)"),
                _size(each.inside_bytes),
                _size(each.between_bytes),
                _time(each.step_seconds),
                _time(each.exposed_seconds),
                f"{each.tokens_per_second:,.0f}",
                f"{100 * each.mfu:.1f} %",
                f"{_size(each.checkpoint_bytes)}, {each.checkpoint_seconds:.2g} s",
                f"{each.hours_per_failure:,.0f} h",
                f"{100 * each.lost_share:.2g} %",
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        typer.echo("  ".join(f"{word:>{n}}" for word, n in zip(line, widths, strict=True)))
    if max(counts) > config.train.sequences:
        note(
            f"a step has only {counted(config.train.sequences, 'sequence')}: raise "
            "train.grad_accum for more GPUs"
        )


def _time(seconds: float) -> str:
    """A time in words: seconds, or milliseconds if it is below one second."""
    return f"{seconds:,.3g} s" if seconds >= 1 else f"{1e3 * seconds:,.3g} ms"


def _size(count: float) -> str:
    """A number of bytes as text: in GB, or in MB if it is below one GB."""
    return f"{count / 1e9:,.3g} GB" if count >= 1e9 else f"{count / 1e6:,.3g} MB"
