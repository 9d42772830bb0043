"""`gptcli sample` and `gptcli eval` from the outside."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest


def objects(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_a_sample_in_json(cli: Any, trained: Path) -> None:
    outcome = cli(
        "sample",
        trained,
        "--prompt",
        "KING",
        "--max-new-tokens",
        30,
        "--num-samples",
        3,
        "--seed",
        1,
        "--json",
    )
    assert outcome.code == 0, outcome.err
    samples = objects(outcome.out)
    assert len(samples) == 3
    for sample in samples:
        assert sample.keys() >= {
            "text",
            "prompt",
            "tokens",
            "seconds",
            "tokens_per_second",
            "stopped",
        }
        assert (sample["prompt"], sample["tokens"], sample["stopped"]) == ("KING", 30, "length")
        assert len(sample["text"]) == 30
        assert sample["tokens_per_second"] == pytest.approx(30 / sample["seconds"])
    assert len({sample["text"] for sample in samples}) == 3


def test_a_seed_repeats_itself_alone_or_in_company(cli: Any, trained: Path) -> None:
    def texts(n: int, seed: int) -> list[str]:
        out = cli(
            "sample", trained, "--num-samples", n, "--seed", seed, "--max-new-tokens", 40, "--json"
        ).out
        return [sample["text"] for sample in objects(out)]

    assert texts(1, 5) == texts(3, 5)[:1]
    assert texts(1, 5) != texts(1, 6)


def test_plain_output_is_prompt_and_continuation(cli: Any, trained: Path) -> None:
    words = ("--prompt", "QUEEN:", "--seed", 3, "--max-new-tokens", 20)
    plain = cli("sample", trained, *words)
    streamed = cli("sample", trained, *words, "--stream")
    (sample,) = objects(cli("sample", trained, *words, "--json").out)
    assert plain.out == streamed.out == "QUEEN:" + sample["text"] + "\n"
    assert cli("sample", trained, *words, "--num-samples", 2).out.count("\n---\n") == 1


def test_stop_strings_and_greedy(cli: Any, trained: Path) -> None:
    greedy = (
        "sample",
        trained,
        "--prompt",
        "KING:\nWhat",
        "--temperature",
        0,
        "--json",
        "--max-new-tokens",
        60,
    )
    (whole,) = objects(cli(*greedy).out)
    assert whole == {
        **objects(cli(*greedy, "--seed", 9).out)[0],
        "seed": whole["seed"],
        "seconds": whole["seconds"],
        "tokens_per_second": whole["tokens_per_second"],
    }
    stop = whole["text"][10:14]
    (cut,) = objects(cli(*greedy, "--stop", stop, "--stop", "not in it at all").out)
    assert cut["stopped"] == "stop"
    assert cut["text"] == whole["text"][: whole["text"].index(stop)]


def test_a_prompt_from_a_file(cli: Any, trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("FOOL:\nWhat\n", encoding="utf-8")
    (sample,) = objects(cli("sample", trained, "--prompt-file", path, "--json").out)
    assert sample["prompt"] == "FOOL:\nWhat"


def test_zero_new_tokens(cli: Any, trained: Path) -> None:
    (sample,) = objects(cli("sample", trained, "--max-new-tokens", 0, "--json").out)
    assert (sample["tokens"], sample["text"]) == (0, "")


def test_evaluation_repeats_the_figure_of_the_training(cli: Any, trained: Path) -> None:
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
    # every character of this text is one byte
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


def test_eval_agrees_with_a_loop_by_hand(cli: Any, trained: Path, text_file: Path) -> None:
    import torch
    import torch.nn.functional as F

    from gptcli.training.loading import load_trained

    user_parts = load_trained(trained, "best", device=torch.device("cpu"), dtype=torch.float64)
    ids = user_parts.tokenizer.encode(text_file.read_text("utf-8"))
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, 32):
            window = torch.tensor([ids[start : start + 33]])
            logits = user_parts.model(window[:, :-1])
            total += F.cross_entropy(logits[0], window[0, 1:], reduction="sum").item()
    (result,) = objects(cli("eval", trained, "--file", text_file, "--json").out)
    assert result["loss"] == pytest.approx(total / (len(ids) - 1), rel=1e-5)


def test_runs_lists_them(cli: Any, trained: Path) -> None:
    outcome = cli("runs", trained.parent)
    assert outcome.code == 0
    assert "small" in outcome.out
    assert "done" in outcome.out
    (row,) = objects(cli("runs", trained.parent, "--json").out)
    assert (row["name"], row["status"], row["step"], row["max_steps"]) == ("small", "done", 40, 40)
    assert row["best_val_loss"] > 0


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
