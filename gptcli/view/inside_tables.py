"""Draws tables of a network's inside: heads with scores, the logit lens, the eight steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

from gptcli.plurals import counted
from gptcli.view.token_labels import padded, short_label, token_label

_CELL = 13  # width of one guess by the logit lens: a token, a blank and a percentage
_NUMBER = 8  # "   -0.12"


@dataclass(frozen=True)
class HeadRow:
    """A row of the table of heads. `layer` and `head` are counted from 1."""

    layer: int
    head: int
    kind: str
    shares: Sequence[float]


def heads_table(
    rows: Sequence[HeadRow], kinds: Sequence[str], height: int, unicode: bool
) -> list[Text]:
    """A table of the first `height` heads.

    A head's row has the head's kind, and a percentage for each of `kinds`."""
    widths = [max(6, len(kind)) for kind in kinds]
    head = "  ".join(f"{kind:>{wide}}" for kind, wide in zip(kinds, widths, strict=True))
    lines = [Text(f"{'layer':>5}  {'head':>4}  {'kind':<14}  {head}", style="dim")]
    for row in rows[:height]:
        line = Text(f"{row.layer:>5}  {row.head:>4}  ")
        line.append(f"{row.kind:<14}", "bold" if row.kind != "mixed" else "dim")
        best = max(row.shares)
        for share, wide in zip(row.shares, widths, strict=True):
            text = f"{max(0.0, share):.0%}"
            line.append(f"  {text:>{wide}}", "cyan" if share == best else "dim")
        lines.append(line)
    if len(rows) > height:
        ellipsis = "…" if unicode else "..."
        lines.append(
            Text(f"{ellipsis} and {counted(len(rows) - height, 'more head')}", style="dim")
        )
    return lines


def lens_table(
    pieces: Sequence[bytes],
    columns: Sequence[str],
    guesses: Sequence[Sequence[tuple[bytes, float]]],
    width: int,
    encoding: str,
) -> list[Text]:
    """A table of each layer's guesses: the likeliest next token after each token of the text.

    `guesses[column][t]` is a token and its probability. If not all columns fit, the table has the
    first column and the last ones."""
    label = min(10, max(cell_len(token_label(piece, encoding)) for piece in pieces))
    label = max(5, label)
    fits = max(1, (width - label - 2) // _CELL)
    shown = list(range(len(columns)))
    if len(shown) > fits:
        shown = [0, *shown[len(shown) - fits + 1 :]] if fits > 1 else shown[-1:]
    head = "".join(padded(columns[c], _CELL) for c in shown)
    lines = [Text(padded("after", label, right=True) + "  " + head, style="dim")]
    for t, piece in enumerate(pieces):
        name = padded(short_label(piece, label, encoding), label, right=True)
        line = Text(name + "  ", style="dim")
        for c in shown:
            token, probability = guesses[c][t]
            text = short_label(token, _CELL - 6, encoding)
            line.append(padded(text, _CELL - 6), "bold" if probability >= 0.5 else "")
            line.append(f"{probability:>4.0%}  ", "dim")
        line.rstrip()
        lines.append(line)
    return lines


def path_table(
    columns: Sequence[str],
    guesses: Sequence[Sequence[tuple[bytes, float]]],
    looked_at: Sequence[Sequence[tuple[bytes, float]] | None],
    width: int,
    encoding: str,
) -> list[Text]:
    """A table for one token: what the heads looked at, and what the model would write next.

    There is a row for the state before the first block, and a row for each layer. `looked_at[i]`
    has the tokens at which the heads of row i looked, and their shares. It is None for the row
    before the first block, and for a layer whose attention weights are unknown."""

    def items(pairs: Sequence[tuple[bytes, float]]) -> str:
        return "".join(
            padded(f"{short_label(piece, 8, encoding)} {share:.0%}", 13) for piece, share in pairs
        )

    first = max(map(len, columns)) + 2
    lines = [Text(f"{'':{first}}{'its heads looked at':<28}it would write next", style="dim")]
    for column, guess, looked in zip(columns, guesses, looked_at, strict=True):
        line = Text(f"{column:<{first}}", style="dim")
        line.append(padded(items(looked[:2]) if looked is not None else "-", 28), "cyan")
        line.append(items(guess[: max(1, min(5, (width - first - 28) // 13))]))
        line.rstrip()
        line.truncate(width, overflow="crop")
        lines.append(line)
    return lines


@dataclass(frozen=True)
class StepLines:
    """One of the eight steps: the numbers to show, and the line of the learner's file if known."""

    step: int
    name: str
    shapes: str
    numbers: Mapping[str, Sequence[float]]
    line: tuple[int, str] | None = None


def steps_lines(
    steps: Sequence[StepLines], pieces: Sequence[bytes], width: int, encoding: str
) -> list[Text]:
    """The lines of the eight steps: names, shapes and numbers.

    Scores and weights have a column for each token. Of long vectors, only the first numbers are
    shown."""
    unicode = encoding.lower().startswith("utf")
    lines: list[Text] = []
    for step in steps:
        head = Text(f"{step.step}  ", style="bold cyan")
        head.append(step.name, "bold")
        head.append("   " + (step.shapes.replace("->", "→") if unicode else step.shapes), "dim")
        lines += _wrapped(head, width)
        if step.line is not None:
            code = Text(f"   line {step.line[0]}: {step.line[1]}", style="yellow")
            code.truncate(width, overflow="ellipsis" if unicode else "crop")
            lines.append(code)
        by_token = {name: v for name, v in step.numbers.items() if name in ("scores", "weights")}
        for name, values in step.numbers.items():
            if name not in by_token:
                lines.append(_vector(name, values, width, unicode))
        for name, values in by_token.items():
            lines += _by_token(name, values, pieces, width, encoding)
    return lines


def _wrapped(text: Text, width: int) -> list[Text]:
    from rich.console import Console

    lines = list(text.wrap(Console(width=width), width))
    for number, line in enumerate(lines):
        line.rstrip()
        if number:
            lines[number] = Text("   ") + line
    return lines


def _vector(name: str, values: Sequence[float], width: int, unicode: bool) -> Text:
    fits = max(1, (width - 12 - 14) // _NUMBER)
    shown = "".join(f"{value:>{_NUMBER}.2f}" for value in values[:fits])
    rest = len(values) - fits
    more = f"  {'…' if unicode else '...'} {rest} more" if rest > 0 else ""
    return Text.assemble((f"   {name:<8}", "dim"), shown, (more, "dim"))


def _by_token(
    name: str, values: Sequence[float], pieces: Sequence[bytes], width: int, encoding: str
) -> list[Text]:
    """The tokens with a number below each, wrapped into as many rows as the width requires."""
    percent = name == "weights"
    wide = max(6, *(min(9, cell_len(token_label(piece, encoding)) + 1) for piece in pieces))
    fits = max(1, (width - 11) // wide)
    largest = max(values)
    lines: list[Text] = []
    for first in range(0, len(values), fits):
        part = range(first, min(first + fits, len(values)))
        labels = "".join(
            padded(short_label(pieces[i], wide - 1, encoding), wide, right=True) for i in part
        )
        lines.append(Text(f"   {'':8}" + labels, style="dim"))
        line = Text(f"   {name if first == 0 else '':<8}", style="dim")
        for i in part:
            text = f"{values[i]:.0%}" if percent else f"{values[i]:.2f}"
            line.append(f"{text:>{wide}}", "bold cyan" if values[i] == largest else "")
        lines.append(line)
    return lines
