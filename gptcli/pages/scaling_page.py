"""The page of `gptcli scaling`: losses of small networks, the scaling law, and its prediction."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from gptcli.pages.inlining import Page, asset, document, json_block
from gptcli.pages.report_page import CHARTS_HELP, UPLOT_SCRIPT, UPLOT_STYLE, numbers, words_as_html
from gptcli.view.safe_text import clean

_POINTS = 60  # the number of points with which the page draws the law


@dataclass(frozen=True)
class Network:
    """A network on the page: a small one, or the larger one whose loss the law predicts.

    `size` counts the parameters in the blocks. `loss` is None if the network was not trained. `law`
    is the loss that the law gives for this network, and `interval` its 95 % interval."""

    name: str
    size: int
    compute: float
    loss: float | None
    law: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Law:
    """The law as a formula, and points on its curve: (size, loss, 95 % interval)."""

    formula: str
    points: Sequence[tuple[float, float, tuple[float, float]]]


def sizes_between(first: float, last: float) -> list[float]:
    """The sizes at which the page draws the law: evenly spaced on a logarithmic axis."""
    step = math.log(last / first) / (_POINTS - 1)
    return [first * math.exp(step * i) for i in range(_POINTS)]


def scaling_page(title: str, networks: Sequence[Network], law: Law, said: Sequence[str]) -> str:
    """The page as HTML. The last of `networks` is the larger network, whose loss the law predicts.
    `said` are sentences about this prediction."""
    body = f"""<main>
<header><p>Scaling law of small networks</p><h1>{html.escape(clean(title))}</h1></header>
<section><h2>How good would a larger network be?</h2>
{"".join(f'<p class="prose">{words_as_html(one)}</p>' for one in said)}
<div class="charts one" id="law"></div>
{CHARTS_HELP}
<div class="scroll" tabindex="0" role="region" aria-label="Table of the networks">
{_table(networks)}</div>
<p class="quiet">Size counts the parameters outside embeddings and head. Compute counts 6 operations
for each of these parameters and each training token. The law is
{html.escape(law.formula)}.</p></section>
</main>"""
    return document(
        Page(
            title=title,
            description="Scaling law of small language models.",
            body=body,
            styles=[asset("theme.css"), asset("views.css"), asset(UPLOT_STYLE)],
            scripts=[asset(UPLOT_SCRIPT), asset("charts.js") + asset("scaling.js")],
            data={"scaling": json_block(_chart(networks, law))},
        )
    )


def _chart(networks: Sequence[Network], law: Law) -> dict[str, object]:
    curve = {size: (loss, *interval) for size, loss, interval in law.points}
    small = {float(one.size): one.loss for one in networks[:-1]}
    larger = networks[-1]
    x = sorted({*curve, *small, float(larger.size)})
    nothing = (math.nan, math.nan, math.nan)

    def values(of: dict[float, float | None]) -> list[float | None]:
        found = (of.get(size) for size in x)
        return numbers([math.nan if value is None else value for value in found])

    series: list[dict[str, object]] = [
        {
            "label": label,
            "style": style,
            "values": numbers([curve.get(size, nothing)[at] for size in x]),
        }
        for at, label, style in (  # the law is last, so that the interval's band does not hide it
            (1, "95 % interval, low", 7),
            (2, "95 % interval, high", 7),
            (0, "law", 0),
        )
    ]
    series.append({"label": "small networks", "style": 2, "points": True, "values": values(small)})
    if larger.loss is not None:
        at_larger: dict[float, float | None] = {float(larger.size): larger.loss}
        series.append(
            {"label": "the larger network", "style": 1, "points": True, "values": values(at_larger)}
        )
    return {
        "title": "Validation loss by size (nats per token; lower is better)",
        "xLabel": "parameters in the blocks (logarithmic)",
        "yLabel": "validation loss",
        "logX": True,
        "x": [round(size, 1) for size in x],
        "series": series,
        "bands": [[2, 1]],
        "height": 400,
    }


def _table(networks: Sequence[Network]) -> str:
    heads = ("network", "size", "compute", "validation loss", "law", "95 % interval")
    head = "".join(f'<th scope="col">{one}</th>' for one in heads)
    rows = "".join(
        f'<tr><th scope="row">{html.escape(one.name)}</th><td class="number">{one.size:,}</td>'
        f'<td class="number">{one.compute:.1e}</td>'
        f'<td class="number">{"–" if one.loss is None else f"{one.loss:.4f}"}</td>'
        f'<td class="number">{one.law:.4f}</td>'
        f'<td class="number">{one.interval[0]:.4f} to {one.interval[1]:.4f}</td></tr>'
        for one in networks
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
