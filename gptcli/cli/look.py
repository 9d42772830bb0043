"""`gptcli look`: attention maps of each head, the logit lens, and the eight steps of attention."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli.cli.option_groups import with_option_groups
from gptcli.cli.options import JsonOption, ModelOptions, RunArgument, load_model
from gptcli.cli.output import note, print_json, stdout_console
from gptcli.errors import GptcliError
from gptcli.plurals import counted
from gptcli.view.waiting import waiting

if TYPE_CHECKING:
    from rich.console import Console

    from gptcli.inspection.learner import LearnerFile
    from gptcli.inspection.looking import Look
    from gptcli.training.loading import Trained

_MAPS = 3  # how many heads are drawn if the user names no layer and no head
_ROWS = 10  # the most rows of the table of heads
_LENS_ROWS = 16


@with_option_groups
def look(
    run: RunArgument = None,
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", metavar="TEXT", help="The text to give to the model.")
    ] = "",
    layer: Annotated[
        int | None,
        typer.Option("--layer", metavar="L", min=1, help="Show only this layer, counted from 1."),
    ] = None,
    head: Annotated[
        int | None,
        typer.Option("--head", metavar="H", min=1, help="Show only this head, counted from 1."),
    ] = None,
    steps: Annotated[
        bool,
        typer.Option(
            "--steps",
            help="Show the eight steps of attention for the last token, with shapes and numbers.",
        ),
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Also write an HTML page with all maps."),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(
            "--png", metavar="FILE", help="Also write the page as a picture (needs Chromium)."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Let --html and --png replace existing files.")
    ] = False,
    as_json: JsonOption = False,
    *,
    options: ModelOptions,
) -> None:
    """Show what each attention head looks at in a text.

    The heads with the clearest habits come first. They look at the previous token, the first token,
    the token itself, or the token after an earlier copy of the token (induction). Then comes the
    logit lens: for each layer, the token that the model would write next if it ended at that layer.
    If the run was trained with your own attention, name it again with --attention FILE."""
    if not prompt:
        raise GptcliError(
            "look needs a text to look at", 'give one: gptcli look --prompt "To be or not to be"'
        )
    places = _places({html: False, png: True}, overwrite=overwrite)
    with waiting("loading the model"):
        trained = load_model(run, options, "look", dtype_of_run=False)
        if str(trained.model.wte.weight.dtype) != "torch.float32":
            trained.model.float()
    _refuse_places(trained, layer, head)
    from gptcli.inspection.looking import look as looked

    with waiting("looking inside"):
        found = looked(trained, prompt, _learner_file(options))
    if found.dropped:
        note(f"note: the model reads only the last {counted(len(found.ids), 'token')} of this text")
    if None in found.maps:
        note(
            "note: a layer's attention weights cannot be shown, because no tensor of its code "
            "holds them"
        )
    for path, is_picture in places:
        with waiting(f"writing {path}"):
            _write(path, trained, found, is_picture=is_picture)
    if as_json:
        print_json(_as_json(trained, found, options, layer, head, steps))
        return
    console = stdout_console()
    if steps:
        _print_steps(console, trained, found, options, layer, head)
        return
    _print_look(console, trained, found, layer, head)


def _refuse_places(trained: Trained, layer: int | None, head: int | None) -> None:
    model = trained.config.model
    for name, value, most in (("layer", layer, model.n_layer), ("head", head, model.n_head)):
        if value is not None and value > most:
            raise GptcliError(
                f"--{name} {value}: the model has {counted(most, name)}",
                f"count from 1 to {most}",
            )


def _places(given: dict[Path | None, bool], *, overwrite: bool) -> list[tuple[Path, bool]]:
    """(path, whether it is a picture) for each file that the user wants to be written.

    Raises GptcliError if a file exists and must not be replaced, or if there is no program that can
    make a picture."""
    from gptcli.files.paths import expanded
    from gptcli.pages.chromium import refuse_without_chromium
    from gptcli.pages.written import refuse_existing

    places = [(expanded(path), is_picture) for path, is_picture in given.items() if path]
    for path, is_picture in places:
        refuse_existing(path, overwrite=overwrite)
        if is_picture:
            refuse_without_chromium()
    return places


def _learner_file(options: ModelOptions) -> LearnerFile | None:
    from gptcli.inspection.learner import LearnerFile

    if options.block is not None:
        return LearnerFile("block", options.block)
    return LearnerFile("attention", options.attention) if options.attention else None


def _chosen(found: Look, layer: int | None, head: int | None) -> list[Any]:
    return [
        one
        for one in found.heads
        if layer in (None, one.layer + 1) and head in (None, one.head + 1)
    ]


def _columns(found: Look) -> list[str]:
    return ["start", *(f"layer {i + 1}" for i in range(len(found.lens) - 1))]


# ---- for a terminal ----------------------------------------------------------------------------


def _print_look(
    console: Console, trained: Trained, found: Look, layer: int | None, head: int | None
) -> None:
    from rich.text import Text

    from gptcli.inspection.head_kinds import KINDS
    from gptcli.view.head_map import head_map, legend, side_by_side
    from gptcli.view.inside_tables import HeadRow, heads_table, lens_table, path_table

    encoding = console.encoding
    unicode = encoding.lower().startswith("utf")
    width = console.width if console.is_terminal else max(80, console.width)
    pieces = [trained.tokenizer.token_bytes(id) for id in found.ids]
    chosen = _chosen(found, layer, head)
    lines: list[Text] = [_headline(trained, len(pieces), unicode), Text()]
    if chosen:
        heading = "Heads, clearest habit first: the share of attention that fits each kind"
        lines.append(Text(heading, style="bold"))
        rows = [HeadRow(one.layer + 1, one.head + 1, one.kind, one.shares) for one in chosen]
        lines += [*heads_table(rows, KINDS, _ROWS, unicode), Text()]
        drawn = chosen if layer or head else chosen[:_MAPS]
        maps = []
        for one in drawn:
            weights = found.maps[one.layer]
            assert weights is not None
            title = Text(f"Layer {one.layer + 1}, head {one.head + 1}", style="bold")
            title.append(f": {one.kind}" + (f", {one.best:.0%}" if one.kind != "mixed" else ""))
            maps.append(head_map(title, pieces, weights[one.head].tolist(), width, encoding))
        lines += side_by_side(maps, width)
        arrow = "↓" if unicode else "down"
        lines += [
            Text(f"each row ({arrow}) is a token that looks, each column a token that it looks at",
                 style="dim"),
            Text("at the right is the token with the largest weight in the row", style="dim"),
            Text(legend(unicode), style="dim"),
            Text(),
        ]  # fmt: skip
    columns = _columns(found)
    top = [[(trained.tokenizer.token_bytes(g[0].id), g[0].probability) for g in row]
           for row in found.lens]  # fmt: skip
    first = max(0, len(pieces) - _LENS_ROWS)
    lines.append(Text("Logit lens: what the model would write next if it ended at that layer",
                      style="bold"))  # fmt: skip
    lines += lens_table(pieces[first:], columns, [row[first:] for row in top], width, encoding)
    if first:
        lines.append(Text(f"(the last {_LENS_ROWS} of {len(pieces)} tokens)", style="dim"))
    lines += [Text(), Text("The path of the last token", style="bold")]
    lines += path_table(
        columns,
        [[(trained.tokenizer.token_bytes(g.id), g.probability) for g in row[-1]]
         for row in found.lens],
        [None, *(_looked_at(one, pieces) for one in found.maps)],
        width,
        encoding,
    )  # fmt: skip
    for line in lines:
        console.print(line, soft_wrap=not console.is_terminal)


def _headline(trained: Trained, tokens: int, unicode: bool) -> Any:
    from rich.text import Text

    from gptcli.view.safe_text import clean

    model, dot = trained.config.model, " · " if unicode else " | "
    return Text.assemble(
        (clean(trained.run.name), "bold"),
        f"{dot}step {trained.step:,}{dot}{counted(model.n_layer, 'layer')} of "
        f"{counted(model.n_head, 'head')}{dot}{counted(tokens, 'token')}",
    )


def _looked_at(weights: Any, pieces: list[bytes]) -> list[tuple[bytes, float]] | None:
    """The two tokens to which the last token attends most, on average over the heads of a layer.

    Returns None if the layer's attention weights are not known."""
    if weights is None:
        return None
    mean = weights[:, -1].mean(0)
    order = mean.argsort(descending=True)[:2].tolist()
    return [(pieces[i], float(mean[i])) for i in order]


def _print_steps(
    console: Console,
    trained: Trained,
    found: Look,
    options: ModelOptions,
    layer: int | None,
    head: int | None,
) -> None:
    from rich.text import Text

    from gptcli.view.inside_tables import StepLines, steps_lines
    from gptcli.view.token_labels import token_label

    steps = _steps(trained, found, options, layer, head)
    encoding = console.encoding
    width = console.width if console.is_terminal else max(80, console.width)
    pieces = [trained.tokenizer.token_bytes(id) for id in found.ids]
    title = Text(
        f"The eight steps of attention: layer {steps.layer + 1}, head {steps.head + 1}, for the "
        f"last token {token_label(pieces[steps.position], encoding)}",
        style="bold",
    )
    shown = [StepLines(s.step, s.name, s.shapes, s.numbers, s.line) for s in steps.steps]
    for line in [title, Text(), *steps_lines(shown, pieces, width, encoding)]:
        console.print(line, soft_wrap=not console.is_terminal)


def _steps(
    trained: Trained, found: Look, options: ModelOptions, layer: int | None, head: int | None
) -> Any:
    """The eight steps of attention in one head.

    It is the head with the clearest habit among the heads that the user's `layer` and `head`
    allow."""
    from gptcli.inspection.eight_steps import eight_steps

    chosen = _chosen(found, layer, head)
    if chosen:
        layer, head = chosen[0].layer + 1, chosen[0].head + 1
    return eight_steps(
        trained.model,
        found.inside,
        (layer or 1) - 1,
        (head or 1) - 1,
        len(found.ids) - 1,
        _learner_file(options),
    )


# ---- for programs and pages --------------------------------------------------------------------


def _as_json(
    trained: Trained,
    found: Look,
    options: ModelOptions,
    layer: int | None,
    head: int | None,
    steps: bool,
) -> dict[str, Any]:
    from gptcli.inspection.head_kinds import KINDS

    decode = trained.tokenizer.decode
    value: dict[str, Any] = {
        "run": str(trained.run),
        "checkpoint": trained.step,
        "tokens": [{"id": id, "text": decode([id])} for id in found.ids],
        "heads": [
            {
                "layer": one.layer + 1,
                "head": one.head + 1,
                "kind": one.kind,
                "shares": dict(zip(KINDS, (round(s, 4) for s in one.shares), strict=True)),
                "weights": _rounded(found, one),
            }
            for one in _chosen(found, layer, head)
        ],
        "lens": [
            {
                "after_layer": number,
                "guesses": [
                    [{"id": g.id, "text": decode([g.id]), "probability": round(g.probability, 5)}
                     for g in guesses]
                    for guesses in row
                ],
            }
            for number, row in enumerate(found.lens)
        ],
    }  # fmt: skip
    if steps:
        shown = _steps(trained, found, options, layer, head)
        value["steps"] = {
            "layer": shown.layer + 1,
            "head": shown.head + 1,
            "token": shown.position + 1,
            "steps": [
                {
                    "step": s.step,
                    "name": s.name,
                    "shapes": s.shapes,
                    "numbers": s.numbers,
                    "line": s.line[0] if s.line else None,
                }
                for s in shown.steps
            ],
        }
    return value


def _rounded(found: Look, one: Any) -> list[list[float]]:
    weights = found.maps[one.layer]
    assert weights is not None
    return [[round(w, 4) for w in row[: t + 1]] for t, row in enumerate(weights[one.head].tolist())]


def _write(path: Path, trained: Trained, found: Look, *, is_picture: bool) -> None:
    """Write the HTML page with all maps, or a picture of this page."""
    from gptcli.pages.chromium import picture
    from gptcli.pages.look_page import look_page
    from gptcli.pages.written import write

    page = look_page(trained, found)
    write(path, picture(page) if is_picture else page)
    note(f"wrote {path}")
