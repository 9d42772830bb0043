"""`gptcli bench`: the keys of its JSON, its output for people, and the limits of its speeds."""

from __future__ import annotations

import json

import pytest
import torch

from gptcli.config import ModelConfig
from gptcli.model.gpt import GPT
from gptcli.training.speed import flops_per_token

SMALL = ("tiny", "run.device=cpu", "run.threads=1")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `gptcli bench` measure for a fraction of its usual time: tests need no exact speeds."""
    monkeypatch.setattr("gptcli.training.speed._SAMPLE_SECONDS", 0.1)
    monkeypatch.setattr("gptcli.training.speed._PEAK_SECONDS", 0.1)
    monkeypatch.setattr("gptcli.training.speed._READ_SECONDS", 0.05)
    monkeypatch.setattr("gptcli.training.estimate._MEASURE_SECONDS", 0.1)


def test_bench_prints_the_keys_of_the_contract(cli) -> None:  # type: ignore[no-untyped-def]
    outcome = cli("bench", *SMALL, "--json")
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    figures = ("train_tokens_per_second", "train_flops_fraction_of_peak", "peak_flops",
               "sample_tokens_per_second", "sample_tokens_per_second_batch",
               "sample_fraction_of_limit", "sample_fraction_of_limit_batch")  # fmt: skip
    assert all(result[name] > 0 for name in figures)
    assert result["batch"] == 64
    assert result["train_flops_fraction_of_peak"] <= 1


@pytest.mark.parametrize("streams", [1, 64])
def test_a_speed_is_never_above_its_limit(streams: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a sampling speed is above the measured limit, bench measures the limit again. If the speed
    is above every measured limit, its share of the limit is 1."""
    from gptcli.sampling.backend import choose_backend
    from gptcli.training import speed

    config = ModelConfig(n_layer=1, n_head=2, n_embd=32, block_size=16)
    model = GPT(config, 50)
    backend = choose_backend(
        "float32", torch.device("cpu"), has_user_parts=False, arch=ModelConfig().traits
    )
    readings = iter([1e3, 1e12, 1e12])
    monkeypatch.setattr(speed, "read_speed", lambda *_: next(readings))
    monkeypatch.setattr(speed, "peak_flops", lambda *_: 1e15)
    share = speed._share_of_limit(model, streams, backend, 1e15, 100.0)
    assert 0 < share < 1
    monkeypatch.setattr(speed, "read_speed", lambda *_: 1e3)
    assert speed._share_of_limit(model, streams, backend, 1e15, 100.0) == 1.0


@pytest.mark.slow
def test_bench_for_people(cli) -> None:  # type: ignore[no-untyped-def]
    outcome = cli("bench", *SMALL)
    assert "of that peak" in outcome.out
    assert "of the estimated limit" in outcome.out
    assert "64 streams together" in outcome.out


def test_bench_refuses_what_train_refuses(cli) -> None:  # type: ignore[no-untyped-def]
    outcome = cli("bench", "model.n_layers=2")
    assert outcome.code == 2
    assert "did you mean" in outcome.err


@pytest.mark.parametrize("arch", ["modern", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_flops_per_token_agrees_with_pytorchs_counter(arch: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    config = ModelConfig(arch=arch, n_layer=2, n_head=2, n_embd=32, block_size=16)  # type: ignore[arg-type]
    model = GPT(config, 50)
    idx = torch.zeros(3, 16, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model.loss(idx, idx).backward()  # type: ignore[no-untyped-call]
    made = counter.get_total_flops() / idx.numel()
    # PyTorch counts the attention products of all pairs of tokens. flops_per_token counts only the
    # half in which a token looks at earlier tokens.
    future = 12 * config.n_layer * config.n_embd * config.block_size / 2
    assert flops_per_token(model) + future == pytest.approx(made, rel=0.1)
