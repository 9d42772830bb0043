"""The peak speed of the machine (FLOPS) is measured once, and later read from the cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gptcli.training import peak


def test_the_peak_is_measured_once_and_draws_no_random_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTCLI_CACHE", str(tmp_path / "cache"))
    before = torch.random.get_rng_state()
    first = peak.known_peak(torch.float32, torch.device("cpu"), 1)
    assert first > 1e8
    assert torch.equal(torch.random.get_rng_state(), before)
    monkeypatch.setattr(peak, "peak_flops", lambda *_, **__: 1.0)
    assert peak.known_peak(torch.float32, torch.device("cpu"), 1) == first
    # With another number of threads, gptcli measures the peak again.
    assert peak.known_peak(torch.float32, torch.device("cpu"), 2) == 1.0


@pytest.mark.parametrize("content", ["", "[]", "nonsense", '{"x": 1}', "[" * 5000])
def test_a_damaged_cache_is_measured_again(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTCLI_CACHE", str(tmp_path))
    (tmp_path / "peaks.json").write_text(content)
    monkeypatch.setattr(peak, "peak_flops", lambda *_, **__: 2e9)
    assert peak.known_peak(torch.float32, torch.device("cpu"), 1) == 2e9
    assert 2e9 in json.loads((tmp_path / "peaks.json").read_text()).values()


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GPTCLI_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(peak, "peak_flops", lambda *_, **__: 2e9)
    assert peak.known_peak(torch.float32, torch.device("cpu"), 1) == 2e9
