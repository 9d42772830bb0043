"""`gptcli plan`: its figures follow from the numbers in docs/scaling.md."""

from __future__ import annotations

import json
from typing import Any

import pytest

WORDS = ("plan", "gpt2-124m", "train.optimizer=adamw", "--json")


def plans(cli: Any, *words: str) -> tuple[dict[str, Any], dict[tuple[int, str], dict[str, Any]]]:
    outcome = cli(*WORDS, *words)
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    return found, {(each["gpus"], each["parallel"]): each for each in found["plans"]}


def test_the_figures_follow_from_the_arithmetic(cli: Any) -> None:
    found, by_count = plans(cli, "--gpus", "64")
    P = found["parameters"]
    assert P == 124_439_808
    one, eight, many = by_count[1, "ddp"], by_count[8, "ddp"], by_count[64, "ddp"]
    operations = 6 * found["tokens_per_step"] * (12 * 12 * 768**2 + 50257 * 768 + 12 * 768 * 1024)
    assert one["step_seconds"] == pytest.approx(operations / (989.4e12 * 0.485))
    assert one["inside_bytes"] == one["between_bytes"] == 0
    # The gradients of P parameters have 4 P bytes. In an all-reduce of S bytes, each of eight GPUs
    # sends 2 S * 7 / 8 bytes.
    assert eight["inside_bytes"] == pytest.approx(8 * P * 7 / 8)
    assert eight["between_bytes"] == 0
    # The 64 GPUs are in eight machines. Each GPU all-reduces an eighth of the gradients with the
    # other seven machines.
    assert many["between_bytes"] == pytest.approx(8 * P / 8 * 7 / 8)
    assert by_count[64, "fsdp"]["memory_bytes"] < many["memory_bytes"]
    assert many["checkpoint_bytes"] == 12 * P
    assert many["hours_per_failure"] == pytest.approx(one["hours_per_failure"] / 64)
    assert many["mfu"] <= 0.485


def test_a_slow_network_shows(cli: Any) -> None:
    """Each of 1,024 GPUs computes one sequence. Sending the gradients takes longer than this
    computation, so the GPUs wait for the network."""
    _, many = plans(cli, "--gpus", "1024", "train.batch_size=1", "train.grad_accum=1024")
    plan = many[1024, "ddp"]
    assert plan["exposed_seconds"] > 0
    assert plan["mfu"] < 0.485


def test_ranks_on_a_cpu_take_turns_on_its_cores_and_send_while_they_do_not_compute(
    cli: Any,
) -> None:
    _, plans_of = plans(cli, "--gpus", "4", "--gpu", "zen4")
    one, two, four = (plans_of[count, "ddp"] for count in (1, 2, 4))
    assert one["compute_seconds"] == pytest.approx(2 * two["compute_seconds"])
    assert four["compute_seconds"] == pytest.approx(two["compute_seconds"])
    assert one["exposed_seconds"] == 0
    assert two["exposed_seconds"] > 0
    # With four ranks, each rank sends 3 / 2 times as many bytes as with two ranks, and two of the
    # four ranks wait for a core.
    assert four["exposed_seconds"] == pytest.approx(3 * two["exposed_seconds"])
    assert four["between_bytes"] == 0


def test_the_ranks_of_all_machines_write_a_sharded_checkpoint(cli: Any) -> None:
    _, many = plans(cli, "--gpus", "64")
    assert many[64, "ddp"]["checkpoint_seconds"] == pytest.approx(
        8 * many[64, "fsdp"]["checkpoint_seconds"]
    )


def test_an_unknown_gpu_is_refused(cli: Any) -> None:
    outcome = cli("plan", "tiny", "--gpu", "h1000")
    assert outcome.code == 2
    assert "did you mean h100?" in outcome.err
