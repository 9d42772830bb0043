"""The choice of the sampling engine, and the number of streams that fit into the free memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gptcli.errors import GptcliError
from gptcli.model.arch import arch_named
from gptcli.sampling.backend import Backend, choose_backend, free_memory, open_streams
from gptcli.sampling.next_token import SamplingParams
from tests.sampling.sampling_models import model

CPU = torch.device("cpu")


def test_free_memory_is_a_plausible_number() -> None:
    assert 2**24 < free_memory(None) < 2**44


def test_free_memory_respects_the_limit_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"/proc/meminfo": "MemTotal: 9\nMemAvailable:  5000 kB\n",
            "/sys/fs/cgroup/memory.max": "3000000\n",
            "/sys/fs/cgroup/memory.current": "1000000\n"}  # fmt: skip

    def read_text(path: Path, *_: object) -> str:
        if str(path) not in told:
            raise FileNotFoundError(str(path))
        return told[str(path)]

    monkeypatch.setattr(Path, "read_text", read_text)
    assert free_memory(None) == 2_000_000
    told["/sys/fs/cgroup/memory.max"] = "max\n"
    assert free_memory(None) == 5000 * 1024


@pytest.mark.parametrize("native", [True, False])
def test_fewer_streams_if_memory_is_short(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = (
        choose_backend("float32", "cpu", has_user_parts=False, arch=arch_named("modern"))
        if native
        else Backend("torch", "float32")
    )
    if native and not backend.native:
        pytest.skip("no C decoder on this machine")
    m = model("gpt2", 2, 64, n_embd=64)
    assert open_streams(m, 40, SamplingParams(), backend, 1).count == 40
    one = 2 * 2 * 64 * 64 * 4
    free = 8_000_000 if native else 20 * one
    monkeypatch.setattr("gptcli.sampling.backend.free_memory", lambda device: free)
    assert 1 <= open_streams(m, 256, SamplingParams(), backend, 1).count < 256


def test_no_memory_for_one_stream_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = choose_backend("float32", "cpu", has_user_parts=False, arch=arch_named("modern"))
    if not backend.native:
        pytest.skip("no C decoder on this machine")
    monkeypatch.setattr("gptcli.sampling.backend.free_memory", lambda device: 1000)
    with pytest.raises(GptcliError, match="GiB in addition to the model") as failed:
        open_streams(model("modern"), 1, SamplingParams(), backend, 1)
    assert failed.value.exit_code == 1
