"""Draws the eight steps of a wrong file for a terminal, and heat maps of its attention weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

    from gptcli.course.report import FileReport, Picture

MARKS = {
    "right": ("✓", "green"),
    "wrong": ("✗", "bold red"),
    "unseen": ("?", "dim"),
    "after": ("·", "dim"),
}
PLAIN = {"right": "+", "wrong": "x", "unseen": "?", "after": "."}
SHADES = " ░▒▓█"
PLAIN_SHADES = " .:*#"


def mark(state: str, unicode: bool) -> tuple[str, str]:
    """The sign for a step that is "right", "wrong", "unseen" or "after", and the sign's style."""
    sign, style = MARKS[state]
    return (sign if unicode else PLAIN[state]), style


def steps(report: FileReport, width: int, unicode: bool = True) -> list[Text]:
    """A line of text for each step: the step's mark, its name and, if known, its line of code."""
    from rich.text import Text

    if report.picture is None:
        return []
    lines = []
    for step in report.picture.steps:
        sign, style = mark(step.state, unicode)
        line = Text(f"  {sign} {step.step}  ", style=style)
        line.append(f"{step.name:<30}", style="dim" if step.state in ("unseen", "after") else "")
        if step.line is not None:
            line.append(f"{step.line:>4}  ", style="dim")
            line.append(step.code, style="red" if step.state == "wrong" else "dim")
        line.rstrip()
        line.truncate(width, overflow="ellipsis" if unicode else "crop")
        lines.append(line)
    return lines


def heat(picture: Picture, unicode: bool = True) -> list[str]:
    """The learner's and the correct attention weights of one head, side by side.

    Rows are queries, columns are keys. Returns [] if the picture has no weights."""
    if picture.learner_weights is None or picture.right_weights is None:
        return []
    T = len(picture.right_weights)
    wide = max(4 * T, 16)  # at least as wide as a heading
    lines = [f"      {'your weights':<{wide}}    {'right weights':<{wide}}".rstrip()]
    for t, (theirs, right) in enumerate(
        zip(picture.learner_weights, picture.right_weights, strict=True)
    ):
        cells = ["".join(_cell(w, unicode) for w in row) for row in (theirs, right)]
        lines.append(f"  {t:>3} {cells[0]:<{wide}}    {cells[1]:<{wide}}".rstrip())
    lines.append("      (head 0 of sequence 0; queries down, keys across, in percent)")
    return lines


def _cell(weight: float, unicode: bool) -> str:
    """A weight as four characters: a shade and the percentage; "?" if the weight is negative.

    A weight that is not finite is -1 here (finding.with_weights)."""
    shades = SHADES if unicode else PLAIN_SHADES
    if weight < 0:
        return " ?  "
    shade = shades[min(4, int(weight * 4 + 0.98))]
    percent = f"{min(999, round(100 * weight))}" if weight > 0.005 else "·" if unicode else "-"
    return f"{shade}{percent:>3}"
