"""Pages that are a single file: what is inlined into the file, and the Content-Security-Policy that
forbids requests."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from gptcli.pages.inlining import Page, asset, document, json_block

PAGE = Page(
    title="A & B",
    description='says "hello"',
    body="<p>Hello</p>",
    styles=["p { margin: 0; }"],
    scripts=["let a = 1;"],
    data={"facts": json_block({"text": "</script><!-- x"})},
)


def policy(text: str) -> dict[str, str]:
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert found is not None
    return {rule.split()[0]: rule.partition(" ")[2] for rule in found[1].split("; ")}


def inside(text: str, tag: str) -> list[str]:
    """The contents of all elements with this tag and without attributes."""
    return re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)


def digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def test_the_policy_allows_the_scripts_and_styles_of_the_file_and_nothing_else() -> None:
    text = document(PAGE)
    rules = policy(text)
    assert rules["default-src"] == "'none'"
    assert [rules["script-src"]] == [f"'sha256-{digest(s)}'" for s in inside(text, "script")]
    assert [rules["style-src"]] == [f"'sha256-{digest(s)}'" for s in inside(text, "style")]
    assert "worker-src" not in rules
    assert "unsafe" not in str(rules)
    assert "http" not in str(rules)


def test_data_cannot_end_its_block() -> None:
    """Data can contain `</script>`.

    A parser still sees only two script elements: one that holds the data, and one that holds the
    script."""
    blocks = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag == "script":
                blocks.append(dict(attrs))  # type: ignore[call-overload]

        def handle_comment(self, data: str) -> None:
            raise AssertionError(data)

    Reader().feed(document(PAGE))
    assert blocks == [{"type": "text/plain", "id": "facts"}, {}]


def test_a_script_that_would_end_too_early_is_refused() -> None:
    with pytest.raises(AssertionError, match="end too early"):
        document(Page("a", "b", "", [], ['let a = "</SCRIPT>";']))


def test_title_and_description_are_escaped() -> None:
    text = document(PAGE)
    assert "<title>A &amp; B</title>" in text
    assert 'content="says &quot;hello&quot;"' in text


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours (#rrggbb), as WCAG 2.2 defines it."""

    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_and_marks_stand_out_in_both_themes(theme: str) -> None:
    """WCAG 2.2 asks for a contrast of 4.5 for text (1.4.3) and of 3 for marks (1.4.11)."""
    light, dark = asset("theme.css").split("@media (prefers-color-scheme: dark)")
    found = dict(re.findall(r"--([\w-]+): (#\w{6})", light if theme == "light" else dark))
    for paper in ("paper", "panel", "faint"):
        for ink in ("ink", "quiet", "blue", "orange"):
            least = 4.5 if paper != "faint" or ink in ("ink", "quiet") else 3
            assert contrast(found[ink], found[paper]) >= least, (ink, paper)
    assert contrast(found["on-blue"], found["blue"]) >= 4.5
