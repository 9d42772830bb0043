"""The pages of report, compare, scaling and look in Chromium: every control works with the mouse
and with keys.

No page logs an error or makes a request. axe-core finds no fault in the light and the dark theme,
on a phone and on a wide screen. Needs playwright and Chromium (`make browser`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptcli.pages.scaling_page import Law, Network, scaling_page, sizes_between
from tests.conftest import Once
from tests.pages.browser import opened

pytest.importorskip("playwright.sync_api", reason="needs the extra `interop`")
pytestmark = pytest.mark.slow

AXE = Path(__file__).resolve().parents[2] / "build" / "axe/node_modules/axe-core/axe.min.js"
KINDS = {
    "char": ("model={arch: modern, n_layer: 2, n_head: 2, n_embd: 32, block_size: 32}",),
    "bpe": ("tokenizer.kind=bpe", "tokenizer.vocab_size=300",
            "model={arch: gpt2, n_layer: 2, n_head: 2, n_embd: 32, block_size: 32, bias: true}"),
    "gpt2": ("tokenizer.kind=gpt2",
             "model={arch: gpt2, n_layer: 1, n_head: 1, n_embd: 8, block_size: 16}"),
}  # fmt: skip
PAGES = ("report char", "report bpe", "report gpt2", "look bpe", "compare", "scaling")
SMALLEST_TYPE = """() => Math.min(...[...document.querySelectorAll("main *")]
    .filter((one) => [...one.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
    .map((one) => parseFloat(getComputedStyle(one).fontSize)))"""
Written = Callable[[str], Path]


@pytest.fixture
def written(once: Once, cli: Any, text_file: Path) -> Written:
    """written("report char") writes a report of the run `char`, and returns the path of this page.
    Later calls with the same name return the same page. The pages show real runs. Only the figures
    in the page of `scaling` are made up."""

    def run(kind: str, rate: float = 0.02) -> Path:
        def train(folder: Path) -> None:
            words = ("train.max_steps=40", "train.batch_size=8", "train.eval_every=10",
                     "train.log_every=1", "train.sample_every=20", "run.threads=1",
                     f"train.learning_rate={rate}")  # fmt: skip
            outcome = cli("train", text_file, *KINDS[kind], *words, "--out", folder / "run")
            assert outcome.code == 0, outcome.err

        return once(f"views-{kind}-{rate}", train) / "run"

    def write(folder: Path, name: str) -> None:
        path = folder / "page.html"
        what, _, kind = name.partition(" ")
        if what == "report":
            outcome = cli("report", run(kind), "--out", path)
        elif what == "look":
            outcome = cli("look", run(kind), "-p", "What light is this? What light", "--html", path)
        elif what == "compare":
            outcome = cli("compare", run("char"), run("char", 0.005), "-p", "KING", "--html", path)
        else:
            path.write_text(a_scaling_page(), encoding="utf-8")
            return
        assert outcome.code == 0, outcome.err

    def page(name: str) -> Path:
        return (
            once(f"view-{name.replace(' ', '-')}", lambda folder: write(folder, name)) / "page.html"
        )

    return page


def a_scaling_page() -> str:
    def law(size: float) -> tuple[float, tuple[float, float]]:
        loss = 1.2 + 30 * size**-0.35
        return loss, (loss - 0.05, loss + 0.05)

    sizes = (12_288, 24_576, 98_304, 442_368)
    networks = [
        Network(f"net-{size}", size, 6e5 * size, law(size)[0], *law(size)) for size in sizes
    ]
    larger = 8 * sizes[-1]
    networks.append(Network("larger", larger, 6e5 * larger, 1.4, *law(larger)))
    points = [(size, *law(size)) for size in sizes_between(sizes[0], larger)]
    return scaling_page("Scaling on <text>", networks, Law("loss = ...", points), ["It is `so`."])


def clicked_charts(page: Any) -> int:
    """Use each chart of the page: point at it, drag, reset the zoom, hide lines, and press keys.
    Return the number of charts."""
    charts = page.locator(".chart").all()
    for chart in charts:
        chart.scroll_into_view_if_needed()
        plot, reset = chart.locator(".plot"), chart.locator("figcaption button")
        box = chart.locator(".u-over").bounding_box()
        middle = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + box["width"] / 2, middle)
        assert chart.locator(".at").inner_text() != ""
        assert [one for one in chart.locator(".value").all_inner_texts() if one]
        assert reset.is_hidden()
        page.mouse.move(box["x"] + box["width"] * 0.3, middle)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.8, middle, steps=4)
        page.mouse.up()
        assert reset.is_visible()
        reset.click()
        assert reset.is_hidden()
        for line in chart.locator("button.series").all():
            for pressed in ("false", "true"):
                line.click()
                assert line.get_attribute("aria-pressed") == pressed
        plot.focus()
        page.keyboard.press("Home")
        first = chart.locator(".at").inner_text()
        page.keyboard.press("ArrowRight")
        assert chart.locator(".at").inner_text() != first
        assert chart.locator(".at").inner_text() in chart.locator("[aria-live]").inner_text()
        page.keyboard.press("End")
        page.keyboard.press("+")
        assert reset.is_visible()
        page.keyboard.press("Escape")
        assert reset.is_hidden()
    return len(charts)


def clicked_maps(page: Any) -> None:
    """Use the attention maps of the page with the mouse and with keys.

    Clicks each head and each token, presses a key to go back one token, and points at the large
    map."""
    heads = page.locator(".head")
    for head in heads.all():
        head.click()
        assert head.get_attribute("aria-pressed") == "true"
        name = head.locator("span").first.inner_text()
        assert page.locator(".large h3").inner_text().lower().startswith(name)
        assert page.locator(".habit").inner_text().startswith("This head ")
    tokens = page.locator(".token")
    for at in range(tokens.count()):
        tokens.nth(at).click()
        assert f"(token {at + 1}) looked most at" in page.locator(".sentence").inner_text()
    page.keyboard.press("Shift+Tab")
    assert f"(token {tokens.count() - 1})" in page.locator(".sentence").inner_text()
    canvas = page.locator("canvas.map")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    canvas.hover(position={"x": box["width"] / 2, "y": box["height"] - 4})
    assert f"(token {tokens.count()})" in page.locator(".sentence").inner_text()


@pytest.mark.parametrize("kind", KINDS)
def test_every_control_of_a_report(kind: str, written: Written) -> None:
    with opened(written(f"report {kind}")) as page:
        cut = "The first values are above the chart. The highest is"
        assert cut in page.locator("#losses .chart").inner_text()
        assert clicked_charts(page) == 5
        assert cut in page.locator("#losses .chart").inner_text()
        slider = page.locator("#passage-step")
        end = page.locator("#passage-words").inner_text()
        slider.focus()
        page.keyboard.press("Home")
        assert page.locator("#passage-words").inner_text() != end
        assert slider.get_attribute("aria-valuetext") == "step 10"
        page.locator("#passage").focus()
        page.keyboard.press("ArrowRight")
        assert "(token 2)" in page.locator("#passage-token").inner_text()
        page.keyboard.press("ArrowLeft")
        assert "is the first token" in page.locator("#passage-token").inner_text()
        page.locator("#passage .piece").nth(3).hover()
        assert "(token 4)" in page.locator("#passage-token").inner_text()
        page.locator("#maps-step").fill("0")
        assert page.locator("#maps-words").inner_text() == "Step 10"
        clicked_maps(page)
        for detail in page.locator("summary").all():
            detail.click()
        assert page.locator("details[open]").count() == 2
        page.emulate_media(color_scheme="dark")
        page.set_viewport_size({"width": 500, "height": 800})
        page.wait_for_timeout(200)
        assert page.locator(".u-over").count() == 5


def test_a_loss_that_is_not_finite_is_said(cli: Any, trained: Path, tmp_path: Path) -> None:
    """A loss that is not finite is null in attention.jsonl. The first token has no loss, and no
    place in the list of losses."""
    shutil.copytree(trained, run := tmp_path / "run")
    records = [
        json.loads(line) for line in (run / "attention.jsonl").read_text("utf-8").split("\n")[:-1]
    ]
    for number, record in enumerate(records):
        record["losses"] = [
            None if i == 0 or number == 0 else x for i, x in enumerate(record["losses"])
        ]
    (run / "attention.jsonl").write_text(
        "".join(json.dumps(one) + "\n" for one in records), "utf-8"
    )
    assert cli("report", run, "--out", tmp_path / "page.html").code == 0
    with opened(tmp_path / "page.html") as page:
        page.locator("#passage").focus()
        page.keyboard.press("ArrowRight")
        assert "(token 2): the loss was not a finite" in page.locator("#passage-token").inner_text()
        page.keyboard.press("ArrowRight")
        assert "(token 3): loss " in page.locator("#passage-token").inner_text()
        assert ", 1 without a finite loss." in page.locator("#passage-words").inner_text()
        page.locator("#passage-step").fill("0")
        assert "NaN" not in page.locator("#passage-words").inner_text()


def test_every_control_of_a_look(written: Written) -> None:
    with opened(written("look bpe")) as page:
        clicked_maps(page)
        assert page.locator(".lens tbody tr").count() == page.locator(".token").count()


def test_every_control_of_a_comparison(written: Written) -> None:
    with opened(written("compare")) as page:
        assert clicked_charts(page) == 2
        assert page.locator("tbody tr").count() == 2
        assert page.locator(".samples .panel").count() == 2
        assert "train.learning_rate" in page.locator("thead").inner_text()


def test_every_control_of_a_scaling(written: Written) -> None:
    with opened(written("scaling")) as page:
        assert clicked_charts(page) == 1
        assert page.locator("tbody tr").count() == 5
        assert page.locator("h1").inner_text() == "Scaling on <text>"


@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_and_nothing_is_too_wide_or_tiny(name: str, written: Written) -> None:
    if not AXE.is_file():
        pytest.skip("axe-core is not in build/axe: make browser installs it")
    with opened(written(name), bypass_csp=True) as page:
        page.evaluate("document.querySelectorAll('details').forEach((d) => d.open = true)")
        page.evaluate(AXE.read_text("utf-8"))
        for width in (390, 1280, 1920):
            page.set_viewport_size({"width": width, "height": 900})
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                page.wait_for_timeout(150)
                found = page.evaluate("axe.run()")["violations"]
                said = [(v["id"], v["impact"], v["nodes"][0]["html"][:160]) for v in found]
                assert said == [], (width, scheme)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(SMALLEST_TYPE) >= 11  # pixels


@pytest.mark.parametrize("name", ["report char", "compare", "scaling"])
def test_the_lines_of_a_chart_differ_without_their_colours(name: str, written: Written) -> None:
    """In a chart's legend, any two lines differ in dashes or marks. Only the two bounds of an
    interval look the same."""
    with opened(written(name)) as page:
        charts = page.evaluate(
            """() => [...document.querySelectorAll(".chart")].map((chart) =>
                [...chart.querySelectorAll(".series")].map((series) =>
                    [series.textContent, series.querySelector("svg").innerHTML]))"""
        )
        assert charts
        for lines in charts:
            pictures = {"interval" if "interval" in label else label: svg for label, svg in lines}
            assert len(set(pictures.values())) == len(pictures), lines


def test_no_chart_has_two_styles_that_differ_only_in_colour(written: Written) -> None:
    with opened(written("report char")) as page:
        styles = page.evaluate(
            "STYLES.map((one) => JSON.stringify([one.dash, one.mark, one.isFilled]))"
        )
    assert len(set(styles)) == len(styles) == 8


def test_a_chart_of_two_configs_has_at_most_eight_lines(written: Written) -> None:
    data = json.loads(
        written("compare").read_text("utf-8").split('id="compare">')[1].split("</script>")[0]
    )
    assert all(len(chart["series"]) <= 8 for chart in data)
