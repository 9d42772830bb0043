"""The fixture `backend`: a test that uses it runs once with each sampling engine (native, graph,
torch)."""

from __future__ import annotations

import pytest

from gptcli.model.arch import arch_named
from gptcli.sampling.backend import Backend, choose_backend


@pytest.fixture(params=["native", "graph", "torch"])
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param != "native":
        return Backend(request.param, "float32")
    found = choose_backend("float32", "cpu", has_user_parts=False, arch=arch_named("modern"))
    if not found.native:
        pytest.skip("no C decoder on this machine")
    return found
