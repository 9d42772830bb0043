"""`gptcli tokenizer train|encode|decode|show`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def objects(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_tokenizer_commands(cli: Any, trained: Path, tmp_path: Path, text_file: Path) -> None:
    assert cli("tokenizer", "encode", "Hello world").out == "15496 995\n"
    assert cli("tokenizer", "decode", "15496", "995").out == "Hello world\n"
    assert objects(cli("tokenizer", "encode", "KING", "--tokenizer", trained, "--json").out)
    out = tmp_path / "t.json"
    assert cli("tokenizer", "train", text_file, "--vocab-size", 280, "--out", out).code == 0
    ids = cli("tokenizer", "encode", "What light", "--tokenizer", out).out.split()
    assert cli("tokenizer", "decode", *ids, "--tokenizer", out).out == "What light\n"
    assert len(cli("tokenizer", "show", "What light", "--tokenizer", out).out.splitlines()) == len(
        ids
    )
    assert cli("tokenizer", "train", text_file, "--out", out).code == 2
    assert cli("tokenizer", "decode", "99999", "--tokenizer", out).code == 2
    assert cli("tokenizer", "encode", "x", "--tokenizer", "no-such").code == 2
