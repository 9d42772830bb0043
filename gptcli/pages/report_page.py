"""The page of `gptcli report`: what happened in a run, what to try next, and how to repeat it."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptcli import __version__
from gptcli.config_files import dump_config
from gptcli.events import StepDone
from gptcli.model.user_parts import parts_of
from gptcli.pages.advice import Advice, advice
from gptcli.pages.inlining import Page, asset, document, json_block
from gptcli.pages.report_inside import maps_record, maps_section, passage_record, passage_section
from gptcli.pages.run_data import RunData, spread, thinned
from gptcli.plurals import counted
from gptcli.tokenization import Tokenizer
from gptcli.training.run_commands import free_folders, is_free, train_again_command
from gptcli.view.number_formats import time_taken
from gptcli.view.safe_text import clean

MOST_BYTES = 1_000_000
_MOMENTS = 8  # the page shows the passage and the maps of at most this many evaluations
_MOST_HEADS = 24
_SAMPLES = 6
_SAMPLE_CHARACTERS = 700

CHARTS_HELP = """<p class="quiet no-print">Point at a chart to read its values. Drag
across it to zoom in, and double-click to see all again. Or use the keyboard: the Tab key moves to a
chart, the left and right keys read its values, and plus and minus zoom.</p>"""
UPLOT_STYLE = "third_party/uPlot.min.css"
UPLOT_SCRIPT = "third_party/uPlot.iife.min.js"


def report_page(run: RunData, tokenizer: Tokenizer | None) -> str:
    """The page as HTML, of at most a megabyte if possible.

    To be small enough, the page shows the passage and the maps of fewer evaluations and fewer
    heads, or leaves out both. Without a tokenizer, the page leaves out both, too."""
    for moments, heads in ((_MOMENTS, _MOST_HEADS), (4, 12), (2, 6), (0, 0)):
        page = _document(run, tokenizer, moments, heads)
        if len(page.encode("utf-8")) <= MOST_BYTES:
            break
    return page


def _document(run: RunData, tokenizer: Tokenizer | None, moments: int, heads: int) -> str:
    inside = spread(run.inside, moments) if tokenizer is not None and moments else []
    used = run.best.step if run.best is not None else None
    passage = passage_record(inside, tokenizer, used) if inside and tokenizer is not None else None
    maps = maps_record(inside, tokenizer, heads, used) if inside and tokenizer is not None else None
    charts = _charts(run)
    found = advice(run)
    missing = _missing(run, passage is not None, maps is not None)
    name = html.escape(clean(run.name))
    body = f"""<main>
<header>
<p>Report of a training run</p>
<h1>{name}</h1>
<p>{_subtitle(run)}</p>
</header>
<section><h2>What happened</h2>
<p class="prose">{words_as_html(found.summary)}</p>
<div class="answers">{_answers(found)}</div>
<h3>What to try next</h3>
<ul class="ideas prose">{_ideas(found)}</ul>
{missing}
</section>
<section><h2>Curves</h2>
{CHARTS_HELP}
<div class="charts one" id="losses"></div><div class="charts" id="others"></div>
{_table(run)}</section>
<section><h2>What it wrote as it learned</h2>{_samples(run)}</section>
{passage_section(passage)}
{maps_section(maps)}
<section><h2>Machine and config</h2>{_machine(run)}
<h3>How to repeat it</h3>
{_repeat(run)}
<details><summary>The full config (config.yaml)</summary>
<div class="panel"><pre>{html.escape(dump_config(run.config))}</pre></div></details>
</section>
</main>"""
    data = {"charts": charts, "passage": passage, "maps": maps}
    return document(
        Page(
            title=f"{run.name}: report",
            description="Report of the training of a small language model.",
            body=body,
            styles=[asset("theme.css"), asset("views.css"), asset(UPLOT_STYLE)],
            scripts=[
                asset(UPLOT_SCRIPT),
                asset("charts.js") + asset("attention_maps.js") + asset("report.js"),
            ],
            data={"report": json_block(data)},
        )
    )


# ---- the curves --------------------------------------------------------------------------------


def _charts(run: RunData) -> list[dict[str, Any]]:
    """The charts for charts.js: losses, learning rate, throughput, gradient norms."""
    charts = []
    steps, evaluations = run.steps, run.evaluations
    if steps or evaluations:
        charts.append(_loss_chart(run))
    if steps:
        x, rates, norms, speeds = thinned(
            [
                [one.step for one in steps],
                [one.learning_rate for one in steps],
                [one.grad_norm for one in steps],
                [one.tokens_per_second for one in steps],
            ]
        )
        charts.append(_chart("Learning rate", "learning rate", x, [("learning rate", rates)]))
        charts.append(
            _chart(
                "Throughput", "tokens per second", x, [("tokens per second", speeds)],
                "The time for evaluations, samples and checkpoints is left out.",
            )
        )  # fmt: skip
        charts.append(
            _chart(
                "Gradient norm", "norm", x, [("all weights, before clipping", norms)],
                f"Gradients with a larger norm than {run.config.train.grad_clip:g} were clipped."
                if run.config.train.grad_clip > 0
                else "",
                log=all(norm > 0 for norm in norms),
            )
        )  # fmt: skip
        charts += _part_norms(steps)
    return charts


def _loss_chart(run: RunData) -> dict[str, Any]:
    """The chart of training and validation loss over the steps."""
    x, losses = (
        thinned([[one.step for one in run.steps], [one.loss for one in run.steps]])
        if run.steps
        else ([], [])
    )
    val: dict[float, float] = {one.step: one.val_loss for one in run.evaluations}
    train: dict[float, float] = dict(zip(x, losses, strict=True))
    every = sorted({*train, *val})
    best = run.best
    note = f"Best validation loss: {best.val_loss:.4f} at step {best.step:,}." if best else ""
    return {
        **_chart(
            "Loss (nats per token; lower is better)",
            "loss",
            every,
            [
                ("training loss", [train.get(step, math.nan) for step in every]),
                ("validation loss", [val.get(step, math.nan) for step in every]),
            ],
            note,
        ),
        "place": "losses",
        "clip": True,
        "height": 340,
    }


def _part_norms(steps: Sequence[StepDone]) -> list[dict[str, Any]]:
    """A list with a chart of the gradient norms of each part; [] if the run recorded none."""
    known = [one for one in steps if one.part_norms]
    if not known:
        return []
    count = len(known[0].part_norms)
    known = [one for one in known if len(one.part_norms) == count]
    x, *parts = thinned(
        [
            [one.step for one in known],
            *([max(one.part_norms[i], 1e-9) for one in known] for i in range(count)),
        ]
    )
    names = ["embeddings", *(f"block {i}" for i in range(1, count - 1)), "last norm and head"]
    pairs = list(zip(names, parts, strict=True))
    if len(pairs) > 8:  # more lines cannot be told apart
        pairs = spread(pairs, 8)
    # If a network starts with weights of zero, its first gradients are 0. A logarithmic axis cannot
    # show these.
    shown = [(name, [v if v > 1e-8 else math.nan for v in values]) for name, values in pairs]
    return [_chart("Gradient norm by part of the network", "norm", x, shown, log=True)]


def _chart(
    title: str,
    y: str,
    x: Sequence[float],
    series: Sequence[tuple[str, Sequence[float]]],
    note: str = "",
    *,
    log: bool = False,
) -> dict[str, Any]:
    return {
        "place": "others",
        "title": title,
        "note": note,
        "yLabel": y,
        "x": [round(step, 1) for step in x],
        "series": [{"label": name, "values": numbers(values)} for name, values in series],
        "sync": "run",
        "log": log,
    }


def numbers(values: Sequence[float]) -> list[float | None]:
    """The values for JSON, with five significant digits; None for a value that is not finite."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]


def _table(run: RunData) -> str:
    """At most 60 evaluations as an HTML table, for readers who cannot see the chart.

    Returns "" if the run has no evaluations."""
    if not run.evaluations:
        return ""
    best = run.best
    rows = "".join(
        f'<tr><td class="number">{one.step:,}</td><td class="number">{one.val_loss:.4f}</td>'
        f'<td class="number">{html.escape(time_taken(one.seconds))}</td>'
        f"<td>{'best' if one is best else ''}</td></tr>"
        for one in spread(run.evaluations, 60)
    )
    return (
        "<details><summary>The evaluations as a table</summary><table><thead><tr>"
        '<th class="number" scope="col">step</th><th class="number" scope="col">validation loss'
        '</th><th class="number" scope="col">after</th><th scope="col">note</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></details>"
    )


# ---- samples --------------------------------------------------------------------


def _samples(run: RunData) -> str:
    if not run.samples:
        return (
            '<p class="prose">The run drew no samples while it trained. Set '
            "<code>train.sample_every</code> to see some.</p>"
        )
    losses = {one.step: one.val_loss for one in run.evaluations}
    panels = []
    for one in spread(run.samples, _SAMPLES):
        text = clean(one.text[:_SAMPLE_CHARACTERS]).lstrip("\n")
        cut = " …" if len(one.text) > _SAMPLE_CHARACTERS else ""
        loss = f", validation loss {losses[one.step]:.3f}" if one.step in losses else ""
        panels.append(
            f'<div class="panel"><h3>Step {one.step:,}{loss}</h3>'
            f"<pre>{html.escape(text)}{cut}</pre></div>"
        )
    return f'<div class="samples">{"".join(panels)}</div>'


def _command(text: str) -> str:
    """A command as HTML. A line can break only between two words, not within an option."""
    return " ".join(f"<span>{html.escape(word)}</span>" for word in clean(text).split(" "))


# ---- words -------------------------------------------------------------------------------------


def _subtitle(run: RunData) -> str:
    stopped = {
        "done": "all steps done",
        "target": "stopped at the target loss",
        "patience": "stopped because the validation loss did not improve",
        "interrupted": "interrupted",
        "diverged": "diverged: a number was no longer finite",
    }.get(str(run.status.get("stopped")), "still training, or killed")
    words = [
        f"{run.last_step:,} of {counted(run.max_steps, 'step')}, {stopped}",
        _text_name(run),
        f"{run.config.tokenizer.kind} tokens",
    ]
    return html.escape(" · ".join(words))


def _text_name(run: RunData) -> str:
    """The training text's name without its folder: the folder tells other people nothing."""
    name = re.split(r"[/\\]", str(run.config.data.source).strip("/\\'[]\""))[-1]
    return clean(name.replace("\n", " "))[-80:]


def _answers(found: Advice) -> str:
    return "".join(
        f"<div><h3>{html.escape(one.question)}</h3><strong>{html.escape(one.verdict)}</strong>"
        f"<p>{words_as_html(one.sentence)}</p></div>"
        for one in found.answers
    )


def words_as_html(text: str) -> str:
    """A sentence as HTML. Text between backticks becomes code."""
    return re.sub(r"`([^`]+)`", r'<code class="inline">\1</code>', html.escape(clean(text)))


def _ideas(found: Advice) -> str:
    return "".join(
        f"<li>{words_as_html(sentence)}"
        + (f"<code>{_command(command)}</code>" if command else "")
        + "</li>"
        for sentence, command in found.next
    )


def _missing(run: RunData, has_passage: bool, has_maps: bool) -> str:
    """A paragraph on what this report lacks, and why; "" if it lacks nothing."""
    lacks = []
    if not run.evaluations:
        lacks.append("a validation curve: the run was never evaluated")
    if run.steps and not any(one.part_norms for one in run.steps):
        lacks.append("gradient norms by part: an earlier version of gptcli trained the run")
    if not run.count("train_tokens"):
        lacks.append("how often the run read its text: the length of the text is not recorded")
    if not has_passage:
        lacks.append(
            "the passage coloured by loss: the run was not evaluated, an earlier version of gptcli "
            "trained it, its tokenizer could not be read, or the page would be too large"
        )
    if not has_maps and has_passage:
        lacks.append("attention maps: the run has your own attention")
    elif not has_maps:
        lacks.append("attention maps, for the same reason (<code>gptcli look</code> can show them)")
    if not lacks:
        return ""
    return f'<p class="quiet">This report lacks {"; ".join(lacks)}.</p>'


def _machine(run: RunData) -> str:
    config, machine = run.config, run.status.get("machine")
    machine = machine if isinstance(machine, dict) else {}
    parameters, threads = run.count("parameters"), config.run.threads
    rows = [
        ("parameters", f"{parameters:,}" if parameters else ""),
        ("trained for", time_taken(run.seconds)),
        ("began", str(run.status.get("began_at") or "")[:19].replace("T", " ")),
        ("device", f"{config.run.device}, {config.run.dtype}"),
        ("threads", str(threads)),
        ("cores", str(machine.get("cores") or "")),
        ("engine", str(config.run.engine)),
        ("text", _text_name(run)),
        ("text, tokens", f"{run.count('train_tokens'):,} for training, "
         f"{run.count('val_tokens') or 0:,} for validation" if run.count("train_tokens") else ""),
        ("your own parts", ", ".join(parts_of(run.status))),
        ("this report", f"gptcli {__version__}"),
    ]  # fmt: skip
    return (
        "<table><tbody>"
        + "".join(
            f'<tr><th scope="row">{key}</th><td>{html.escape(value)}</td></tr>'
            for key, value in rows
            if value
        )
        + "</tbody></table>"
    )


def _repeat(run: RunData) -> str:
    again = Path(f"{run.path}-again")
    if not is_free(again, run.status):
        again = next(free_folders(again, run.status))
    command = train_again_command(run.path, again, run.status)
    origin = run.status.get("started_from")
    start = origin.get("step") if isinstance(origin, dict) else None
    return (
        '<p class="prose">The config below has every setting, also those that gptcli chose, and '
        f"the seed {run.config.train.seed}. On the same machine with the same number of threads "
        "and of processes, this command gives exactly the same weights"
        + (
            ", but a run with a time limit also depends on the speed of the machine"
            if run.config.train.minutes is not None
            else ""
        )
        + (
            "; the run is a fine-tune, so the best checkpoint of the run that "
            f'<code class="inline">--from</code> names must still be that of step {start:,}'
            if isinstance(start, int)
            else ""
        )
        + f'.</p><code class="command">{_command(command)}</code>'
    )
