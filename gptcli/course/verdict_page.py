"""The verdict of a check as HTML for notebooks, readable on light and dark backgrounds."""

from __future__ import annotations

from html import escape

from gptcli.course.report import FileReport, StepMark

_SIGNS = {"right": "✓", "wrong": "✗", "unseen": "?", "after": "·"}
_COLOURS = {"right": "#2e9e4f", "wrong": "#e0524d", "unseen": "#8a8a8a", "after": "#8a8a8a"}
_MONO = "font-family:monospace;font-size:0.9em"


def as_html(report: FileReport, marks: list[StepMark]) -> str:
    """HTML without external files: the verdict, the steps with their marks, and the hints.

    The word "ok" or "wrong" and the marks of the steps are coloured. All other text has the
    notebook's own colour. A click opens a hint."""
    colour = _COLOURS["right" if report.ok else "wrong"]
    word = "ok" if report.ok else "wrong"
    rows = "".join(map(_row, marks))
    notes = "".join(
        f"<div><b>note:</b> {escape(check.name)}: {escape(check.detail)}</div>"
        for check in report.checks
        if check.note
    )
    hints = "".join(
        f'<details style="margin-top:0.3em"><summary style="cursor:pointer">hint {number}</summary>'
        f'<div style="padding-left:1.2em">{escape(hint)}</div></details>'
        for number, hint in enumerate(dict.fromkeys(report.hints), 1)
    )
    return (
        f'<div style="border-left:4px solid {colour};padding:0.2em 0.8em;max-width:60em">'
        f'<div><b style="color:{colour}">{word}</b> <b>{escape(report.class_name)}</b>: '
        f"{escape(report.message)}</div>"
        f'<table style="border:0;margin:0.4em 0;border-collapse:collapse">{rows}</table>'
        f"{notes}{hints}</div>"
    )


def _row(mark: StepMark) -> str:
    colour = _COLOURS[mark.state]
    dim = ";opacity:0.6" if mark.state in ("unseen", "after") else ""
    cell = "border:0;padding:0.1em 0.6em;text-align:left;background:transparent"
    line = "" if mark.line is None else str(mark.line)
    return (
        f'<tr style="background:transparent{dim}">'
        f'<td style="{cell};color:{colour}"><b>{_SIGNS[mark.state]}</b></td>'
        f'<td style="{cell}">{mark.step}</td><td style="{cell}">{escape(mark.name)}</td>'
        f'<td style="{cell};{_MONO}">{line}</td>'
        f'<td style="{cell};{_MONO}">{escape(mark.code)}</td></tr>'
    )
