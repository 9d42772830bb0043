"""`gptcli score`: the log-probabilities of a text, as lines and as JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from gptcli.native import library
from gptcli.sampling.backend import Backend, open_decoder
from gptcli.sampling.native_score import native_log_probabilities
from gptcli.sampling.score import log_probabilities
from gptcli.training.loading import load_trained


def objects(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_scores_add_up(cli: Any, trained: Path, tmp_path: Path) -> None:
    text = "KING:\nWhat light is this, that comes by night?\n\nttttt"
    file = tmp_path / "text.txt"
    file.write_text(text, encoding="utf-8")
    (found,) = objects(cli("score", trained, file, "--json").out)
    scores = [one["log_probability"] for one in found["scores"]]
    assert "".join(one["text"] for one in found["scores"]) == text
    assert found["tokens"] == len(scores) == len(text)
    assert found["log_probability"] == pytest.approx(math.fsum(scores))
    assert found["loss"] == pytest.approx(-math.fsum(scores) / len(text))
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["bits_per_byte"] == pytest.approx(found["loss"] / math.log(2))
    # The model was trained on such sentences, so its loss is higher on the reversed text.
    file.write_text(text[::-1], encoding="utf-8")
    (backwards,) = objects(cli("score", trained, file, "--json").out)
    assert backwards["loss"] > found["loss"] + 1
    file.write_text(text, encoding="utf-8")
    lines = cli("score", trained, file).out.splitlines()
    assert [json.loads(line.split("\t", 2)[2]) for line in lines] == list(text)
    assert [float(line.split("\t")[0]) for line in lines] == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize(("dtype", "by"), [("bfloat16", "c"), ("int8", "c"), ("bfloat16", "torch")])
def test_scores_round_as_sampling_does(
    cli: Any,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    by: str,
) -> None:
    text = "KING:\nWhat light is this, that comes by night?\n" * 3
    file = tmp_path / "text.txt"
    file.write_text(text, encoding="utf-8")
    run = load_trained(trained, None, device=torch.device("cpu"), dtype=torch.float32)
    start, ids = run.tokenizer.start_ids(), run.tokenizer.encode(text)
    if by == "c":
        if (search := library.find(library.SAMPLING)).library is None:
            pytest.skip(f"no C decoder on this machine: {search.reason}")
        decoder = open_decoder(run.weights, Backend("native", dtype), 2)
        expected = native_log_probabilities(decoder, run.config.model, start, ids).tolist()
    else:
        none = library.Found(None, "there is no C compiler")
        monkeypatch.setattr(library, "find", lambda source: none)
        expected = log_probabilities(run.model.branches_in(torch.bfloat16), start, ids).tolist()
    (printed,) = objects(cli("score", trained, file, "--dtype", dtype, "--json").out)
    found = [score["log_probability"] for score in printed["scores"]]
    assert found == pytest.approx(expected, abs=1e-6)


def test_score_agrees_with_eval_within_a_window(cli: Any, trained: Path, tmp_path: Path) -> None:
    text = "\nKING:\nWhat hand is this, that"  # the text fits into the context
    file = tmp_path / "text.txt"
    file.write_text(text[1:], encoding="utf-8")
    (scored,) = objects(cli("score", trained, file, "--json").out)
    file.write_text(text, encoding="utf-8")
    (evaluated,) = objects(cli("eval", trained, "--file", file, "--dtype", "float32", "--json").out)
    assert scored["loss"] == pytest.approx(evaluated["loss"], rel=1e-4)


def test_texts_that_cannot_be_scored(cli: Any, trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    for content, message in ((b"", "is empty"), (b"\xff", "not UTF-8"), ("ü".encode(), "ü")):
        file.write_bytes(content)
        outcome = cli("score", trained, file)
        assert outcome.code == 2
        assert message in outcome.err
    outcome = cli("score", trained, tmp_path / "none.txt")
    assert (outcome.code, "cannot be read" in outcome.err) == (2, True)
    outcome = cli("score", trained, file, "more")
    assert (outcome.code, "got 3 words" in outcome.err) == (2, True)


def test_surprising_tokens_are_visible_and_listed_with_what_was_expected(
    cli: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptcli.cli.score import _coloured

    styles = {str(span.style) for span in _coloured(["a", " ", "\n"], [-0.1, -9.0, -9.0]).spans}
    assert {"green", "bold red reverse"} <= styles
    legend = _coloured(["a"], [-0.1]).plain.splitlines()[-1]
    assert "expected (above 1/2), likely" in legend
    assert legend.endswith("surprising")
    assert _coloured(["\n"], [-9.0]).plain.startswith("⏎\n")

    file = tmp_path / "text.txt"
    file.write_text("KING:\nWhat light zzs this, that comes by night?".replace("z", "K"), "utf-8")
    import sys

    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: True, raising=False)
    outcome = cli("score", trained, file)
    assert outcome.code == 0, outcome.err
    assert "most surprising:" in outcome.err
    (line,) = [
        line for line in outcome.err.splitlines() if '"K" after' in line and "light " in line
    ][:1]
    assert 'expected "' in line
