"""`gptcli check-attention`, `check-mlp` and the other check commands: their options and reports."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.cli.output import print_error, print_json, stdout_console
from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from gptcli.course.report import BuiltinReport, FileReport

# For the help of each command: (exercise, what is checked and its steps, what the file must have).
COMMANDS = (
    (
        "layernorm",
        "layer normalisation. The steps: mean, variance, normalise, gain and bias",
        "The file has a class LayerNorm with the constructor LayerNorm(config). config has n_embd "
        "and bias. forward(x) takes and returns (B, T, C). The Parameters are `weight` and `bias`.",
    ),
    (
        "mlp",
        "the feed-forward network. The steps: expand by 4, exact GELU, project back, dropout",
        "The file has a class MLP with the constructor MLP(config). config has n_embd, dropout "
        "and bias. forward(x) takes and returns (B, T, C). The layers are `c_fc` and `c_proj`.",
    ),
    (
        "block",
        "the block. The steps: first norm, attention and residual, second norm, feed-forward and "
        "residual",
        "The file has a class Block with the constructor Block(config). config has n_embd, "
        "n_head, dropout, bias and block_size. forward(x) takes and returns (B, T, C). The "
        "submodules are `ln_1`, `attn`, `ln_2` and `mlp`.",
    ),
    (
        "tokenizer",
        "byte-pair encoding. The steps: count pairs, merge, encode, decode, save and load",
        "The file has a class Tokenizer with the constructor Tokenizer(). The methods are "
        "train(text, num_merges), encode(text), decode(ids), save(path) and load(path). The "
        "attribute `merges` is a dict {pair of ids: new id}.",
    ),
    (
        "training",
        "training. The steps: batches, loss, learning rate, clipping, the step, evaluation",
        "The file has six functions: get_batch(data, block_size, batch_size, generator), "
        "loss_of(logits, targets), "
        "learning_rate(step, max_lr, min_lr, warmup_steps, max_steps), "
        "clip_gradients(parameters, max_norm), "
        "train_step(model, optimizer, batches, lr, max_norm) and evaluate(model, batches).",
    ),
    (
        "sampling",
        "sampling. The steps: temperature, top-k, top-p, min-p, penalty, draw, next token, stop "
        "strings",
        "The file has eight functions: temperature(logits, t), top_k(logits, k), top_p(logits, "
        "p), min_p(logits, p), repetition_penalty(logits, seen_ids, penalty), draw(logits, u), "
        "next_token(logits, seen_ids, u, t, k, p, m, penalty) and cut_at_stop(text, stops). The "
        "shape of logits is (V,).",
    ),
    (
        "cache",
        "the key/value cache. The steps: store, read, positions, full window, mask, equality",
        "The file has two classes. KeyValueCache(block_size) has length, fits(T), clear() and "
        "append(k, v), where k and v are (B, H, T, D). CausalSelfAttention(config) has forward(x, "
        "cache=None), which takes and returns (B, T, C).",
    ),
    (
        "modern",
        "the parts of a GPT of 2025. The parts: RMSNorm, rotary positions, grouped queries",
        "The file has two classes and two functions. config has n_embd, n_head and n_kv_head. "
        "RMSNorm(config) has forward(x) and the Parameter `weight`. GroupedQueryAttention(config) "
        "has forward(x, start=0) and the layers `query`, `key`, `value` and `c_proj`. Both take "
        "and return (B, T, C). The functions are rotary_angles(head_dim, length) -> cos, sin and "
        "rotate(x, cos, sin).",
    ),
)

Hint = Annotated[
    int,
    typer.Option(
        "--hint",
        metavar="1|2|3",
        min=1,
        max=3,
        help="How much the hint tells: 1 asks a question, 2 says what to compare, 3 nearly gives "
        "the solution.",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object per file on stdout, and nothing else.")
]


def check_attention(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE[:CLASS]",
            help="Python files or notebooks with an attention class. Without CLASS, gptcli takes "
            "`CausalSelfAttention`, or else the class that looks most like an attention. gptcli "
            "runs only these files, in a separate process.",
        ),
    ] = None,
    hint: Hint = 1,
    as_json: AsJson = False,
) -> None:
    """Check causal self-attention: your FILE or the builtin.

    gptcli compares your FILE with the reference. If your FILE is wrong, the report names the first
    of the eight steps that is wrong, its line, and the mistake if gptcli knows it. For example:
    `gptcli check-attention my/attention.py --hint 2`.

    In the course, FILE has a class with the constructor Class(config). config has n_embd, n_head,
    dropout, bias and block_size. The class has the layers query, key, value (or one c_attn) and
    c_proj. Its forward(x) takes and returns (B, T, C). gptcli also understands other names,
    constructors and layers, one layer for each head, and the code of LLMs from Scratch, Karpathy's
    lecture, CS336 and ARENA. docs/course/coming-from has the table.

    Without a FILE, the command compares every code path of the builtin attention, and PyTorch's
    attention, with the reference. It does this on all devices of this machine, in three or four
    dtypes on each. The exit code is 1 if anything is wrong.
    """
    if files:
        _check_files(files, "attention", hint, as_json)
    else:
        _check_builtin(as_json)


def check_command(exercise: str) -> Callable[..., None]:
    """The function of the command `check-EXERCISE`, for every exercise except attention."""
    what, interface = next((what, has) for name, what, has in COMMANDS if name == exercise)

    def command(
        files: Annotated[
            list[str],
            typer.Argument(
                metavar="FILE[:CLASS]",
                help="Python files or notebooks. gptcli runs only these files, in a separate "
                "process.",
            ),
        ],
        hint: Hint = 1,
        as_json: AsJson = False,
    ) -> None:
        _check_files(files, exercise, hint, as_json)

    command.__doc__ = (
        f"Check {what}.\n\n{interface}\n\n`gptcli exercise {exercise} --out DIR` writes a file to "
        "fill in. The exit code is 1 if anything is wrong."
    )
    return command


def _check_files(files: list[str], exercise: str, level: int, as_json: bool) -> None:
    """Check files, and print the report of each file as soon as it is checked.

    A file that cannot be used gets an error instead of a report. After all reports, prints these
    errors, except the last one, which is raised. If every file can be used but one is wrong, raises
    typer.Exit(1)."""
    from gptcli.course.checking import check_files

    wrong, unusable = False, []
    for spec, report in zip(files, check_files(files, exercise), strict=True):
        if isinstance(report, GptcliError):
            unusable.append(report)
            if as_json:
                print_json(_unusable_json(spec, report))
            continue
        wrong = wrong or not report.ok
        if as_json:
            print_json(report.to_json(level))
        else:
            show_file(report, stdout_console(), level)
    for error in unusable[:-1]:
        print_error(error)
    if unusable:
        raise unusable[-1]
    if wrong:
        raise typer.Exit(1)


def _unusable_json(spec: str, error: GptcliError) -> dict[str, object]:
    """The JSON object for a file that cannot be checked. With --json, every file gets an object."""
    return {
        "file": spec,
        "ok": False,
        "first_wrong_step": None,
        "mistake": "unusable-file",
        "message": error.message,
        "hint": error.hint,
        "checks": [],
    }


def _check_builtin(as_json: bool) -> None:
    from gptcli.course.checking import check_builtin

    report = check_builtin()
    if as_json:
        print_json(report.to_json())
    else:
        show_builtin(report, stdout_console())
    if not report.ok:
        raise typer.Exit(1)


# ---- reports on a terminal ----


def show_file(report: FileReport, console: Console, level: int = 1) -> None:
    """Print the report of one file: its steps or checks, then the verdict and the hint."""
    from rich.text import Text

    console.print(Text(f"{report.file}: {report.subject[1]}", style="bold"))
    unicode = "utf" in (console.encoding or "").lower()
    if report.ok or report.exercise != "attention":
        _show_steps(report, console, unicode)
    elif report.picture is not None and report.picture.steps:
        _show_picture(report, console, unicode)
    else:
        _show_checks(report, console)
    _show_verdict(console, report.ok, report.message, report.hints, level)
    if report.ok:
        for line in _next_lines(report):
            console.print(Text(line), soft_wrap=True)
        console.print()


def _next_lines(report: FileReport) -> list[str]:
    """Lines with commands to run after a file has passed: use the file, begin the next exercise."""
    from gptcli.course.catalogue import EXERCISES

    names = [each.name for each in EXERCISES]
    at = names.index(report.exercise)
    commands = []
    option = {"cache": "attention"}.get(report.exercise, report.exercise)
    if report.exercise == "sampling":
        commands.append(f"gptcli sample --sampler {shlex.quote(report.file)}")
    elif report.exercise == "modern":
        file = shlex.quote(report.file)
        commands.append(f"gptcli train course --layernorm {file} --attention {file}")
    elif report.exercise != "training":
        usual = EXERCISES[at].target in (report.class_name, "")
        file = report.file if usual else f"{report.file}:{report.class_name}"
        commands.append(f"gptcli train course --{option} {shlex.quote(file)}")
    if report.exercise == "cache":
        commands.append(f"gptcli sample --attention {shlex.quote(file)}")
    if at + 1 < len(names):
        commands.append(f"gptcli exercise {names[at + 1]} --out my")
    return [("next: " if i == 0 else "      ") + command for i, command in enumerate(commands)]


def _show_steps(report: FileReport, console: Console, unicode: bool) -> None:
    """Print one line for each step of the exercise, then the notes of the checks."""
    from rich.text import Text

    from gptcli.course.catalogue import exercise_named

    wrong = report.first_wrong_step
    for number, name in enumerate(exercise_named(report.exercise).steps, 1):
        if report.ok or (wrong is not None and number < wrong):
            state = "right"
        else:
            state = "wrong" if number == wrong else "after"
        console.print(_step_line(number, name, state, unicode))
    for check in report.checks:
        if check.note:
            note = ("note: ", "yellow")
            console.print(Text.assemble("  ", note, f"{check.name}: {check.detail}"))
    if report.ok and report.exercise == "attention":
        names = ", ".join(check.name for check in report.checks if not check.note)
        console.print(Text(f"  also checked: {names}", style="dim"))
    _show_recognised(report, console)


def _show_recognised(report: FileReport, console: Console) -> None:
    """Print which layers of an attention were recognised as its projections."""
    from rich.text import Text

    for check in report.checks:
        if check.name == "projections" and check.ok and report.exercise == "attention":
            console.print(Text(f"  recognised: {check.detail}", style="dim"))


def _step_line(number: int, name: str, state: str, unicode: bool) -> Text:
    from rich.text import Text

    from gptcli.course.attention.picture import mark

    sign, style = mark(state, unicode)
    line = Text(f"  {sign} {number}  ", style=style)
    line.append(name, style="dim" if state == "after" else "")
    return line


def _show_picture(report: FileReport, console: Console, unicode: bool) -> None:
    """Print the steps of a wrong attention, and the layers recognised as projections.

    Each step has its line of code, if this line is known. If there are weights to show, also prints
    heat maps of the learner's attention weights and of the correct ones."""
    from rich.text import Text

    from gptcli.course.attention.picture import heat, steps

    for step in steps(report, console.width, unicode):
        console.print(step, no_wrap=True)
    _show_recognised(report, console)
    if report.picture is not None and (maps := heat(report.picture, unicode)):
        console.print()
        for line in maps:
            console.print(Text(line), no_wrap=True, crop=True)


def _show_checks(report: FileReport, console: Console) -> None:
    """Print one line for each check of an attention."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in report.checks:
        word, style = ("note", "yellow") if check.note else ("ok", "green")
        # A failed check has no detail here, because the verdict below says what is wrong.
        detail = check.detail if check.ok else ""
        if not check.ok:
            word, style = "wrong", "bold red"
        table.add_row("  " + check.name, Text(word, style=style), Text(detail))
    console.print(table)


def _show_verdict(
    console: Console, ok: bool, message: str, hints: Iterable[str] = (), level: int = 1
) -> None:
    """Print the last lines of a report: ok or wrong, and the hint that --hint `level` asks for."""
    from rich.text import Text

    console.print()
    console.print(Text.assemble(("ok: ", "bold green") if ok else ("wrong: ", "bold red"), message))
    if hints := tuple(hints):
        hint = hints[min(level, len(hints)) - 1]
        console.print()
        console.print(Text.assemble(("hint: ", "bold cyan"), hint))
        if level < len(hints) and hints[level] != hint:
            console.print(Text(f"      (--hint {level + 1} says more)", style="dim"))
    console.print()


def show_builtin(report: BuiltinReport, console: Console) -> None:
    """Print a table of the largest errors for each device, then the verdict.

    A table has a row for each code path and a column for each dtype."""
    from rich import box
    from rich.table import Table

    for device in dict.fromkeys(result.device for result in report.results):
        here = [result for result in report.results if result.device == device]
        dtypes = {result.dtype: result.tolerance for result in here}
        table = Table(
            box=box.SIMPLE_HEAD,
            title=f"largest error on {device}",
            show_footer=True,
            title_justify="left",
            title_style="bold",
        )
        table.add_column("path", "tolerance", no_wrap=True)
        table.add_column("cases", justify="right")
        for dtype, tolerance in dtypes.items():
            table.add_column(dtype, f"{tolerance:.0e}", justify="right", no_wrap=True)
        for path in dict.fromkeys(result.path for result in here):
            cells = {result.dtype: result for result in here if result.path == path}
            shown = []
            for dtype in dtypes:
                cell = cells.get(dtype)
                style = "" if cell is None else "green" if cell.ok else "bold red"
                text = "-" if cell is None else f"{cell.largest_error:.1e}"
                shown.append(f"[{style}]{text}[/]" if style else text)
            table.add_row(path, str(sum(cell.cases for cell in cells.values())), *shown)
        console.print(table)
    _show_verdict(console, report.ok, report.message)
