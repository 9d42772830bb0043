"""Every way to sample writes the same: tests that ask for `way` are run with each."""

from __future__ import annotations

import pytest
import torch

from gptcli.sampling.backend import Way, choose_way


@pytest.fixture(params=["c", "steps", "torch"])
def way(request: pytest.FixtureRequest) -> Way:
    if request.param != "c":
        return Way(request.param, torch.float32)
    found = choose_way("float32", torch.device("cpu"), own_parts=False)
    if not found.native:
        pytest.skip("no C decoder on this machine")
    return found
