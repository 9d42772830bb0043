"""What the page of a model tells about its run."""

from __future__ import annotations

from gptcli.config_files import parse_config
from gptcli.pages.model_page.story import _config_lines


def test_the_config_of_the_page_has_no_private_path() -> None:
    text = "data: {source: /home/ada/text.txt}\ntokenizer: {from: /home/ada/runs/base, kind: bpe}\n"
    lines = list(_config_lines(parse_config(text)))
    assert "tokenizer:" in lines
    assert "  kind: bpe" in lines
    assert "model:" in lines
    assert not any("ada" in line or "from" in line for line in lines)
