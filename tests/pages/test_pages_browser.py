"""The page of a model in Chromium: its controls work, it writes the correct texts, logs no error,
makes no request, and axe-core finds no fault.

Needs playwright (extra `interop`), a browser (Chromium or Chrome), and axe-core in build/axe (`make
browser`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from gptcli.pages.chromium import find_chromium
from gptcli.pages.model_page import page as pages
from gptcli.pages.model_page import proof
from tests.conftest import Once
from tests.interop.models import trained

playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra `interop`")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
AXE = ROOT / "build" / "axe" / "node_modules" / "axe-core" / "axe.min.js"
MODELS: dict[str, dict[str, Any]] = {
    "char": {"arch": "modern", "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32},
    "byte": {"arch": "modern", "n_layer": 2, "n_head": 4, "n_kv_head": 2, "head_dim": 10,
             "n_embd": 30, "block_size": 16, "qk_norm": False, "tied_head": True},
    "bpe": {"arch": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16,
            "bias": True},
    "gpt2": {"arch": "gpt2", "n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 16},
}  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = find_chromium()
    if path is None:
        pytest.skip("neither Chromium nor Chrome is installed")
    flags = ["--disable-gpu", "--disable-background-networking"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        flags.append("--no-sandbox")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=path, args=flags)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def written(once: Once) -> Any:
    """written(kind) returns the path of a model's page, which has samples and losses.

    Only the first call for a kind writes the page."""

    def build(kind: str) -> Path:
        def write(folder: Path) -> None:
            run = folder / "run"
            model = trained(run, kind, 1, **MODELS[kind])
            run.mkdir(exist_ok=True)
            samples = "".join(f"=== step {n} ===\nto be {n}\n\n" for n in (3, 5, 7))
            (run / "samples.txt").write_text(samples, encoding="utf-8")
            record = {"kind": "step", "tokens": 1, "seconds": 1.0, "learning_rate": 0.1,
                      "grad_norm": 1.0, "tokens_per_second": 1.0}  # fmt: skip
            lines = [{**record, "step": n, "loss": 4 / n} for n in range(1, 8)]
            lines.append({"kind": "eval", "step": 7, "tokens": 1, "seconds": 1, "val_loss": 2.0})
            (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(proof, "PROMPTS", 12)
                patch.setattr(proof, "GREEDY_TOKENS", 10)
                pages.write_page(model, folder / "page.html", None, lambda _: None)

        return once(f"page-{kind}", write) / "page.html"

    return build


class Opened:
    """A page in a browser tab.

    The test fails if the page writes to the console, has an error, or requests something."""

    def __init__(self, browser: Any, path: Path, address: str = "", **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(120_000)  # for a busy machine
        self.problems: list[str] = []
        self.tab.on("console", lambda message: self.problems.append(message.text))
        self.tab.on("pageerror", lambda error: self.problems.append(str(error)))
        self.tab.on("request", self.asked)
        self.file = path.as_uri()
        self.tab.goto(self.file + address)
        self.tab.wait_for_selector("html[data-looked]")

    def asked(self, request: Any) -> None:
        """Note a request as a problem, unless it is for the page's file or the worker's script.

        The worker's script is a Blob of the page."""
        if request.url.partition("#")[0] != self.file and not request.url.startswith("blob:null/"):
            self.problems.append(f"request: {request.url}")

    def text(self, selector: str) -> str:
        return str(self.tab.text_content(selector))

    def settle(self) -> None:
        """Wait until the page shows the text, its attention and the followed token's steps."""
        self.tab.wait_for_selector("html[data-looked]:not([data-changing])")

    def close(self) -> None:
        self.context.close()
        assert self.problems == []


@pytest.mark.parametrize("kind", MODELS)
def test_every_control_works_without_an_error_or_a_request(
    kind: str, browser: Any, written: Any
) -> None:
    opened = Opened(browser, written(kind))
    tab = opened.tab
    opened.settle()
    first = opened.text("#output")
    assert first
    # The page shows ten bars, the most probable token first. A click on a bar appends the token of
    # the bar to the text.
    shares = [bar.inner_text() for bar in tab.query_selector_all("#bars .chance")]
    assert len(shares) == 10
    tab.click("#bars li:nth-child(2) button")
    opened.settle()
    assert opened.text("#output").startswith(first.removesuffix("\ufffd"))
    assert tab.query_selector("#output .chosen") is not None
    tab.click("#undo")
    opened.settle()
    assert opened.text("#output") == first
    tab.click("#step")
    opened.settle()
    if "Wrote 1 token." in opened.text("#status"):  # otherwise the model chose the end of the text
        tab.click("#undo")
        opened.settle()
    assert opened.text("#output") == first
    # If the reader types in the prompt, the page starts a new text.
    tab.fill("#prompt", "e")
    opened.settle()
    assert opened.text("#echo") == "e"
    assert opened.text("#output") == ""
    tab.click("details.settings summary")
    for slider, value in (
        ("temperature", "1.5"),
        ("top-k", "7"),
        ("top-p", "0.9"),
        ("count", "40"),
    ):
        tab.fill(f"#{slider}", value)
    assert opened.text("#temperature-value") == "1.50"
    assert opened.text("#top-k-value") == "the 7 likeliest"
    assert opened.text("#top-p-value") == "90 %"
    tab.wait_for_selector(".bar.cut")
    tab.click("#write-button")
    opened.settle()
    assert "Wrote 40 tokens" in opened.text("#status") or "ended" in opened.text("#status")
    written_first = opened.text("#output")
    tab.click("#new-seed")
    tab.fill("#seed", "5")
    tab.fill("#prompt", "")
    opened.settle()
    assert opened.text("#echo") == ""
    tab.fill("#prompt", "e")
    opened.settle()
    tab.press("#prompt", "Control+Enter")
    opened.settle()
    after_a_pause = opened.text("#output")
    assert after_a_pause not in ("", written_first)
    # The reader types a prompt, and presses Ctrl+Enter without a pause. The page must write after
    # this prompt.
    tab.fill("#prompt", "o")
    opened.settle()
    tab.fill("#prompt", "e")
    tab.press("#prompt", "Control+Enter")
    opened.settle()
    assert opened.text("#echo") == "e"
    assert opened.text("#output") == after_a_pause
    # The tokens react to the mouse pointer and to keys.
    tokens = tab.query_selector_all("#strip .token")
    # The last token is selected. No token comes after it, so the note on later tokens is hidden.
    assert tab.is_hidden("#later-help")
    tokens[0].hover()
    assert tab.is_visible("#later-help")
    tokens[min(3, len(tokens) - 1)].click()
    opened.settle()
    followed = opened.text("#steps-subject")
    tab.keyboard.press("ArrowRight")
    opened.settle()
    assert opened.text("#steps-subject") != followed
    for key in ("Home", "End", "ArrowLeft"):
        tab.keyboard.press(key)
    # Every head and the large map react to clicks.
    heads = tab.query_selector_all("#heads button")
    assert len(heads) == MODELS[kind]["n_layer"] * MODELS[kind]["n_head"]
    for head in heads:
        head.click()
        assert head.get_attribute("aria-pressed") == "true"
    for button in tab.query_selector_all("#standing-out button"):
        button.click()
    tab.hover("#map", position={"x": 20, "y": 150})
    opened.settle()
    assert tab.locator("#step-list > li").count() == 8
    assert tab.locator("#lens-table tbody tr").count() == MODELS[kind]["n_layer"] + 1
    # The story of the training: a slider chooses a sample, and a chart shows the losses.
    tab.fill("#sample", "0")
    assert opened.text("#sample-text") == "to be 3"
    assert tab.locator("svg.curve").count() == 1
    tab.click("details.config summary")
    for link in tab.query_selector_all("nav a, .skip"):
        assert tab.query_selector(str(link.get_attribute("href"))) is not None
    tab.emulate_media(color_scheme="dark")
    opened.close()


def test_stop_ends_a_long_text(browser: Any, written: Any) -> None:
    opened = Opened(browser, written("char"))
    opened.settle()
    opened.tab.evaluate(
        """() => {
            const count = document.getElementById("count");
            count.max = 50000; // first: a value is cut to the maximum
            count.value = 50000;
        }"""
    )
    opened.settle()
    opened.tab.evaluate(
        """async () => {
            document.getElementById("write-button").click();
            // The page begins to write only after the promise of the last prompt is resolved.
            const stop = document.getElementById("stop");
            for (let i = 0; stop.disabled && i < 1000; i++) await null;
            stop.click();
        }"""
    )
    opened.settle()
    assert opened.text("#status").endswith("Stopped.")
    opened.close()


@pytest.mark.parametrize("kind", MODELS)
def test_the_address_writes_what_the_network_writes(kind: str, browser: Any, written: Any) -> None:
    """A page that is opened as page.html#prompt=P&n=40&temperature=0 writes the text that PyTorch
    writes with the page's rounded weights."""
    from gptcli.pages.model_page.payload import rounded
    from gptcli.sampling.next_token import SamplingParams
    from gptcli.sampling.text import generate_one

    path = written(kind)
    model = trained(path.parent / "run", kind, 1, **MODELS[kind])
    prompt = "naïve" if kind == "char" else "To be,  or\nnaïve 🙂"
    opened = Opened(browser, path, f"#prompt={quote(prompt)}&n=40&temperature=0")
    opened.settle()
    wanted = generate_one(
        rounded(model.model),
        model.tokenizer,
        prompt,
        max_new_tokens=40,
        params=SamplingParams(temperature=0),
        seed=0,
    )
    assert opened.text("#output") == wanted
    assert opened.text("#echo") == prompt
    opened.close()


def test_unknown_characters_are_said_and_left_out(browser: Any, written: Any) -> None:
    opened = Opened(browser, written("char"), f"#prompt={quote('na€ïve')}&n=5&temperature=0")
    opened.settle()
    assert opened.text("#echo") == "naïve"
    assert opened.text("#prompt-note") == "Left out: “€”. This model never saw it."
    opened.close()


def test_the_policy_stops_a_request(browser: Any, written: Any) -> None:
    """The Content-Security-Policy in the file forbids all requests, even those of a script that
    somebody adds to the file."""
    opened = Opened(browser, written("char"))
    refused = opened.tab.evaluate(
        """async () => {
            try { await fetch("data:,x"); return "fetched"; } catch { return "refused"; }
        }"""
    )
    assert refused == "refused"
    assert opened.problems
    opened.problems.clear()
    opened.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("kind", ["char", "gpt2"])
def test_axe_finds_nothing(kind: str, width: int, scheme: str, browser: Any, written: Any) -> None:
    if not AXE.is_file():
        pytest.skip("axe-core is not in build/axe: make browser installs it")
    opened = Opened(
        browser,
        written(kind),
        viewport={"width": width, "height": 900},
        color_scheme=scheme,
        bypass_csp=True,
        reduced_motion="reduce",
    )
    opened.settle()
    tab = opened.tab
    tab.evaluate("document.querySelectorAll('details').forEach((details) => details.open = true)")
    tab.evaluate(AXE.read_text("utf-8"))
    found = tab.evaluate("axe.run()")["violations"]
    assert [(v["id"], v["impact"], v["nodes"][0]["html"][:200]) for v in found] == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    opened.close()


def test_it_works_without_webassembly(browser: Any, written: Any) -> None:
    """If the browser has no WebAssembly, the page computes in JavaScript, and writes the same
    text."""
    texts = []
    for kernels in ("WebAssembly SIMD", "JavaScript"):
        path = written("char")
        if kernels == "JavaScript":
            whole = path.read_text("utf-8").replace("new WebAssembly.Memory(", "new Nothing(")
            path = path.with_name("plain.html")
            path.write_text(whole, encoding="utf-8")
        opened = Opened(browser, path, "#prompt=e&n=30&temperature=0")
        opened.settle()
        texts.append(opened.text("#output"))
        assert opened.text("#kernels") == kernels
        opened.close()
    assert texts[0] == texts[1]
