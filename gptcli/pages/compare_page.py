"""The page of `gptcli compare` and `sweep`: a table, charts of the loss curves, and samples."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from gptcli.pages.inlining import Page, asset, document, json_block
from gptcli.pages.report_page import CHARTS_HELP, UPLOT_SCRIPT, UPLOT_STYLE, numbers, words_as_html
from gptcli.pages.run_data import spread
from gptcli.view.number_formats import human_count, time_taken
from gptcli.view.safe_text import clean

_MOST_LINES = 8


@dataclass(frozen=True)
class ComparedArm:
    """What the page says about one config.

    `points` is the curve of validation losses, averaged over the seeds. `training` is the curve of
    training losses of the first seed. `loss` is the mean of the seeds' best validation losses, and
    `interval` is its 95 % interval."""

    name: str
    points: Sequence[tuple[int, float]]
    training: Sequence[tuple[int, float]]
    loss: float | None
    interval: tuple[float, float] | None
    seeds: int
    seconds: float
    parameters: int | None
    settings: dict[str, str]
    sample: str


def compare_page(title: str, arms: Sequence[ComparedArm], verdicts: Sequence[str]) -> str:
    """The page as HTML. `verdicts` are sentences that say which config is better."""
    said = "".join(f"<li>{words_as_html(one)}</li>" for one in verdicts)
    samples = "".join(
        f'<div class="panel"><h3>{html.escape(clean(arm.name))}</h3>'
        f"<pre>{html.escape(clean(arm.sample)[:900])}</pre></div>"
        for arm in arms[:_MOST_LINES]
        if arm.sample
    )
    body = f"""<main>
<header><p>Comparison of training runs</p><h1>{html.escape(clean(title))}</h1></header>
<section><h2>Which is better?</h2><ul class="prose">{said}</ul>
<div class="scroll" tabindex="0" role="region" aria-label="Table of the configs">
{_table(arms)}</div></section>
<section><h2>Curves</h2>
{CHARTS_HELP}
<div class="charts one" id="losses"></div></section>
{f'<section><h2>What they write</h2><div class="samples">{samples}</div></section>' * bool(samples)}
</main>"""
    charts = [
        _chart("Validation loss (nats per token)", [(arm.name, arm.points) for arm in arms]),
        _chart("Training loss (nats per token)", [(arm.name, arm.training) for arm in arms]),
    ]
    return document(
        Page(
            title=title,
            description="Comparison of training runs of small language models.",
            body=body,
            styles=[asset("theme.css"), asset("views.css"), asset(UPLOT_STYLE)],
            scripts=[asset(UPLOT_SCRIPT), asset("charts.js") + asset("compare.js")],
            data={"compare": json_block([one for one in charts if one["x"]])},
        )
    )


def _chart(
    title: str, curves: Sequence[tuple[str, Sequence[tuple[int, float]]]]
) -> dict[str, object]:
    curves = [(name, spread(points, 500)) for name, points in curves if points][:_MOST_LINES]
    steps = sorted({step for _, points in curves for step, _ in points})
    values = [(name, dict(points)) for name, points in curves]
    return {
        "title": title,
        "yLabel": "loss",
        "x": steps,
        "clip": True,
        "sync": "runs",
        "height": 320,
        "series": [
            {"label": clean(name), "values": numbers([of.get(step, math.nan) for step in steps])}
            for name, of in values
        ],
    }


def _table(arms: Sequence[ComparedArm]) -> str:
    keys = list(arms[0].settings)
    heads = ["run", "best validation loss", "95 % interval", "runs", "time", "parameters", *keys]
    head = "".join(f'<th scope="col">{html.escape(one)}</th>' for one in heads)
    rows = []
    for arm in arms:
        low_high = f"{arm.interval[0]:.4f} to {arm.interval[1]:.4f}" if arm.interval else "–"
        cells = [
            "–" if arm.loss is None else f"{arm.loss:.4f}",
            low_high,
            str(arm.seeds),
            time_taken(arm.seconds),
            human_count(arm.parameters) if arm.parameters else "–",
            *arm.settings.values(),
        ]
        rows.append(
            f'<tr><th scope="row">{html.escape(clean(arm.name))}</th>'
            + "".join(f"<td>{html.escape(clean(cell))}</td>" for cell in cells)
            + "</tr>"
        )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
