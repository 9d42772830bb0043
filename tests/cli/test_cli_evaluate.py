"""`gptcli eval`: the loss over a split or another text, for any context length."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest


def objects(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_evaluation_repeats_the_loss_of_the_training(cli: Any, trained: Path) -> None:
    from gptcli.training.checkpoint import best_step

    (result,) = objects(cli("eval", trained, "--json").out)
    assert result.keys() >= {
        "loss",
        "perplexity",
        "bits_per_byte",
        "tokens",
        "context",
        "checkpoint",
    }
    logged = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    losses = {r["step"]: r["val_loss"] for r in logged if r["kind"] == "eval"}
    assert result["checkpoint"] == best_step(trained)
    assert result["loss"] == pytest.approx(losses[result["checkpoint"]], rel=1e-6)
    assert result["perplexity"] == pytest.approx(math.exp(result["loss"]))
    # Each character of this text is one byte, so loss per byte is loss per character.
    assert result["bits_per_byte"] == pytest.approx(result["loss"] / math.log(2))
    assert result["context"] == 32
    (last,) = objects(cli("eval", trained, "--checkpoint", "last", "--json").out)
    assert last["loss"] == pytest.approx(losses[40], rel=1e-6)


def test_every_token_is_predicted_once_in_any_window(
    cli: Any, trained: Path, text_file: Path
) -> None:
    length = len(text_file.read_text("utf-8"))
    for context in (1, 7, 32):
        (result,) = objects(
            cli("eval", trained, "--file", text_file, "--context", context, "--json").out
        )
        assert (result["tokens"], result["context"]) == (length - 1, context)
    train_tokens = objects(cli("eval", trained, "--split", "train", "--json").out)[0]["tokens"]
    val_tokens = objects(cli("eval", trained, "--split", "val", "--json").out)[0]["tokens"]
    assert train_tokens + val_tokens + 2 == length


def test_eval_agrees_with_a_plain_loop(cli: Any, trained: Path, text_file: Path) -> None:
    import torch
    import torch.nn.functional as F

    from gptcli.training.loading import load_trained

    loaded = load_trained(trained, "best", device=torch.device("cpu"), dtype=torch.float64)
    ids = loaded.tokenizer.encode(text_file.read_text("utf-8"))
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, 32):
            window = torch.tensor([ids[start : start + 33]])
            logits = loaded.model(window[:, :-1])
            total += F.cross_entropy(logits[0], window[0, 1:], reduction="sum").item()
    (result,) = objects(cli("eval", trained, "--file", text_file, "--json").out)
    assert result["loss"] == pytest.approx(total / (len(ids) - 1), rel=1e-5)
