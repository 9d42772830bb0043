"""`gptcli bench`: measures training and sampling speed against the machine's limits."""

from __future__ import annotations

from typing import Annotated

import typer

from gptcli.cli.options import JsonOption
from gptcli.cli.output import print_json
from gptcli.plurals import counted
from gptcli.view.waiting import waiting


def bench(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG] [KEY=VALUE ...]",
            help="A config, and changes to it as KEY=VALUE. Default: shakespeare, or on a GPU "
            "shakespeare-gpu.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure training and sampling speed on this machine.

    First, bench measures the machine's peak speed in matrix products. The figure for training says
    which share of this peak a training step reaches. The limit for sampling is an estimate: for
    each token, the machine must at least read and multiply all weights, and the keys and values of
    a full context. The command takes about ten seconds and leaves no run folder. Run nothing else
    at the same time."""
    from gptcli.cli.train_arguments import config_of_arguments

    config = config_of_arguments(arguments or [])

    with waiting("measuring this machine; it takes about ten seconds"):
        from gptcli.devices import choose_device, choose_dtype, choose_threads, dtype_name
        from gptcli.training.opening_text import open_text
        from gptcli.training.other_machine import refuse_other_machine
        from gptcli.training.speed import measure

        refuse_other_machine(config)
        device = choose_device(config.run.device)
        dtype = choose_dtype(config.run.dtype, device)
        threads = choose_threads(config.run.threads)
        speed = measure(config, open_text(config).tokenizer.vocab_size, dtype, device)
    result = {
        "train_tokens_per_second": speed.train_tokens_per_second,
        "train_flops_fraction_of_peak": speed.train_flops_fraction_of_peak,
        "sample_tokens_per_second": speed.sample_tokens_per_second,
        "sample_fraction_of_limit": speed.sample_fraction_of_limit,
        "sample_tokens_per_second_batch": speed.sample_tokens_per_second_batch,
        "sample_fraction_of_limit_batch": speed.sample_fraction_of_limit_batch,
        "sample_dtype": dtype_name(speed.sample_dtype),
        "batch": speed.batch,
        "peak_flops": speed.peak_flops,
        "parameters": speed.parameters,
        "device": device.type,
        "dtype": dtype_name(dtype),
        "threads": threads,
    }
    if as_json:
        print_json(result)
        return
    where = f"{device.type}, {counted(threads, 'thread')}" if device.type == "cpu" else device.type
    for name, value in (
        ("model", f"{speed.parameters:,} parameters"),
        ("machine", f"{where}, {dtype_name(dtype)} products at {speed.peak_flops / 1e9:,.0f} GF/s"),
        (
            "training",
            f"{counted(round(speed.train_tokens_per_second), 'token')} per second, "
            f"{speed.train_flops_fraction_of_peak:.0%} of that peak",
        ),
        (
            "sampling",
            f"{counted(round(speed.sample_tokens_per_second), 'token')} per second, one stream: "
            f"{speed.sample_fraction_of_limit:.0%} of the estimated limit "
            f"({dtype_name(speed.sample_dtype)})",
        ),
        (
            "",
            f"{counted(round(speed.sample_tokens_per_second_batch), 'token')} per second, "
            f"{counted(speed.batch, 'stream')} together: "
            f"{speed.sample_fraction_of_limit_batch:.0%} of the estimated limit",
        ),
    ):
        typer.echo(f"{name:<10}{value}")
