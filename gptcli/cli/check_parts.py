"""`gptcli check-layernorm|check-mlp|check-block|check-tokenizer|check-training`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.cli.verdicts import give, verdict

if TYPE_CHECKING:
    from rich.console import Console

    from gptcli.course.lesson import PartReport

# What a file must have, for the help of its command: (exercise, what it holds, interface).
PARTS = (
    (
        "layernorm",
        "layer normalisation: mean, variance, normalise, gain and bias",
        "The file has a class LayerNorm, built as LayerNorm(config) with config.n_embd and "
        "config.bias; forward(x) takes and returns (B, T, C); Parameters `weight` and `bias`.",
    ),
    (
        "mlp",
        "the feed-forward network: expand by 4, exact GELU, project back, dropout",
        "The file has a class MLP, built as MLP(config) with config.n_embd, config.dropout and "
        "config.bias; forward(x) takes and returns (B, T, C); layers `c_fc` and `c_proj`.",
    ),
    (
        "block",
        "the block: first norm, attention, second norm, feed-forward, two residuals",
        "The file has a class Block, built as Block(config) with n_embd, n_head, dropout, bias and "
        "block_size; forward(x) takes and returns (B, T, C); submodules `ln_1`, `attn`, `ln_2` "
        "and `mlp`.",
    ),
    (
        "tokenizer",
        "byte-pair encoding: count pairs, merge, encode, decode, save and load",
        "The file has a class Tokenizer, built as Tokenizer(), with train(text, num_merges), "
        "encode(text), decode(ids), save(path), load(path), and `merges` {pair of ids: new id}.",
    ),
    (
        "training",
        "training: batches, loss, learning rate, clipping, the step, evaluation",
        "The file has six functions: get_batch(data, block_size, batch_size, generator), "
        "loss_of(logits, targets), "
        "learning_rate(step, max_lr, min_lr, warmup_steps, max_steps), "
        "clip_gradients(parameters, max_norm), "
        "train_step(model, optimizer, batches, lr, max_norm) and evaluate(model, batches).",
    ),
)


def check_command(exercise: str, what: str, interface: str) -> Callable[..., None]:
    """The function of one check-* command."""

    def command(
        files: Annotated[
            list[str],
            typer.Argument(
                metavar="FILE[:CLASS]",
                help="Python files. They are run, in a process of their own; nothing else is.",
            ),
        ],
        hint: Annotated[
            int, typer.Option("--hint", min=1, max=3, help="How much the hint says: 1, 2 or 3.")
        ] = 1,
        as_json: Annotated[
            bool,
            typer.Option("--json", help="Print one JSON object per file on stdout, and no more."),
        ] = False,
    ) -> None:
        check(exercise, files, hint, as_json)

    command.__doc__ = (
        f"Check {what}.\n\n{interface}\n\n`gptcli exercise {exercise} --out DIR` writes one to "
        "fill in. Exit code 1 if anything is wrong."
    )
    return command


def check(exercise: str, files: list[str], level: int, as_json: bool) -> None:
    """Check the files and print each verdict. Raises typer.Exit(1) where one is wrong."""
    from gptcli.course.exercises.part_checking import check_parts

    reports = check_parts((exercise, spec) for spec in files)
    give(files, reports, show, level=level, as_json=as_json)


def show(report: PartReport, console: Console, level: int) -> None:
    """The steps, one line each, then the verdict and the hint."""
    from rich.text import Text

    from gptcli.course.attention.picture import mark
    from gptcli.course.catalogue import exercise_named

    steps = exercise_named(report.exercise).steps
    console.print(Text(f"{report.file}: {report.exercise}", style="bold"))
    unicode = "utf" in (console.encoding or "").lower()
    wrong = report.first_wrong_step
    for number, name in enumerate(steps, 1):
        if report.ok or (wrong is not None and number < wrong):
            state = "right"
        else:
            state = "wrong" if number == wrong else "after"
        sign, style = mark(state, unicode)
        line = Text(f"  {sign} {number}  ", style=style)
        line.append(name, style="dim" if state == "after" else "")
        console.print(line)
    for check in report.checks:
        if check.note:
            console.print(
                Text.assemble("  ", ("note: ", "yellow"), f"{check.name}: {check.detail}")
            )
    verdict(console, report.ok, report.message, report.hints, level)
