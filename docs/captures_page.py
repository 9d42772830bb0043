"""Screenshots of the pages that `page`, `report`, `compare`, `scaling` and `look` write."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pictures import Workshop
from PIL import Image
from playwright.sync_api import sync_playwright

from gptcli.pages.chromium import find_chromium

DOCS = Path(__file__).resolve().parent
COLOURS = 128  # the most colours in a picture; few colours make a small file
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
GPT2 = "model={arch: gpt2, n_layer: 3, n_head: 2, n_embd: 64, block_size: 64, dropout: 0.0}"
ONE_THREAD = "run.threads=1"


def model(shop: Workshop) -> None:
    """Write page.png, page-attention.png and page-steps.png: three parts of a page of `gptcli
    page`."""
    shop.train("shakespeare", "shakespeare", "train.max_steps=1200", "train.sample_every=100")
    path = shop.folder / "page.html"
    if not path.is_file():
        shop.gptcli("page", "runs/shakespeare", "--out", path.name)
    for name, width, theme, parts in (
        ("page.png", 1280, "light", [".top", "#write"]),
        ("page-attention.png", 1280, "dark", [".look"]),
        ("page-steps.png", 1280, "light", ["#step-list"]),
    ):
        with tab(path, width, theme) as page:
            page.wait_for_selector("html[data-looked]")
            shoot(page, name, parts)


def report(shop: Workshop) -> None:
    """Write report.png from a run that overfits, and report-heads.png from a run with clear kinds
    of heads."""
    text = shop.some_shakespeare("play.txt", 60_000)
    words = ("tokenizer.kind=bpe", "tokenizer.vocab_size=512", GPT2, "train.max_steps=900",
             "train.eval_every=50", "train.sample_every=100", "train.patience=null",
             ONE_THREAD)  # fmt: skip
    shop.train("overfit", text, *words)
    shop.gptcli("report", "overfit", "--out", "report.html", "--overwrite")
    with tab(shop.folder / "report.html", 1100) as page:
        shoot(page, "pictures/report.png", ["header", "#losses"])
    train_char(shop)
    shop.gptcli("report", "char", "--out", "heads.html", "--overwrite")
    with tab(shop.folder / "heads.html", 1100) as page:
        shoot(page, "pictures/report-heads.png", ["section:has(#maps)"])


def compare(shop: Workshop) -> None:
    """Write compare.png: two learning rates with three seeds each."""
    for name, rate in (("a", 0.02), ("b", 0.005)):
        words = ("train.max_steps=300", "train.eval_every=100", f"train.learning_rate={rate}")
        shop.train(name, "tiny", *words, ONE_THREAD)
    words = ("--seeds", "3", "-p", "KING", "--html", "compare.html", "--overwrite")
    shop.gptcli("compare", "a", "b", *words)
    with tab(shop.folder / "compare.html", 1100) as page:
        shoot(page, "pictures/compare.png", ["header", "#losses .chart:first-child"])


def scaling(shop: Workshop) -> None:
    """Write scaling.png: six small networks, the law, and its prediction for a larger network."""
    words = ("--minutes", "6", "--train", "--html", "scaling.html", "--overwrite")
    shop.gptcli("scaling", "shakespeare", *words)
    with tab(shop.folder / "scaling.html", 1100) as page:
        shoot(page, "pictures/scaling.png", ["header", "#law"])


def look(shop: Workshop) -> None:
    """Write look.png: the attention maps of a small network for a text."""
    train_char(shop)
    words = ("--prompt", "To be, or not to be", "--html", "look.html", "--overwrite")
    shop.gptcli("look", "char", *words)
    with tab(shop.folder / "look.html", 1100) as page:
        shoot(page, "pictures/look.png", ["header", "#maps"])


def train_char(shop: Workshop) -> None:
    """Train the run `char`. Two pictures show the attention heads of this run."""
    words = ("train.max_steps=1500", "train.eval_every=100", "train.sample_every=300")
    shop.train("char", "tiny", *words, ONE_THREAD)


@contextmanager
def tab(path: Path, width: int, theme: str = "light") -> Iterator[Any]:
    """A context manager whose value is a page that is open in Chromium, without animations."""
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, reduced_motion="reduce"
        )
        page = context.new_page()
        page.goto(path.as_uri())
        yield page
        browser.close()


def shoot(page: Any, name: str, parts: Sequence[str]) -> None:
    """Write docs/NAME: a picture of the page that shows all `parts`, from the highest to the
    lowest."""
    page.wait_for_timeout(500)
    boxes = [page.locator(part).first.bounding_box() for part in parts]
    top = min(box["y"] for box in boxes) - 12
    bottom = max(box["y"] + box["height"] for box in boxes) + 12
    clip = {"x": 0, "y": max(0, top), "width": page.viewport_size["width"], "height": bottom - top}
    picture = Image.open(io.BytesIO(page.screenshot(full_page=True, clip=clip))).convert("RGB")
    few = picture.quantize(COLOURS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    few.save(DOCS / name, optimize=True)
