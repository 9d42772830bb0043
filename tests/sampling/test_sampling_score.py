"""The log-probability of each token is what sampling would have drawn it with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from gptcli.sampling.choose import Choice
from gptcli.sampling.score import log_probabilities, native_log_probabilities
from gptcli.sampling.streams import window_start
from gptcli.sampling.ways import Way, choose_way, open_decoder, open_streams

sys.path.insert(0, str(Path(__file__).parent))
from sampling_models import V, W, banded, model


def text(length: int) -> list[int]:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(0, V, (length,), generator=generator).tolist()


@pytest.mark.parametrize("length", [1, W - 1, W, W + 1, 5 * W + 3])
@pytest.mark.parametrize("start", [1, 3])
def test_modern_over_the_whole_text(length: int, start: int) -> None:
    m, ids = model("modern"), text(length + start)
    found = log_probabilities(m, ids[:start], ids[start:])
    whole = banded(m, torch.tensor([ids])).detach()[0].log_softmax(-1)
    expected = [whole[at - 1, ids[at]] for at in range(start, len(ids))]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [1, 2, 3, 8])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 30, 1500])
def test_gpt2_in_the_windows_of_sampling(width: int, length: int) -> None:
    m, ids = model("gpt2", width=width), text(length + 1)
    found = log_probabilities(m, ids[:1], ids[1:])
    assert len(found) == length
    for at in {1, min(width, length), length // 2 + 1, length}:
        logits = m(torch.tensor([ids[window_start(at, width) : at]])).detach()[0, -1]
        assert float(found[at - 1]) == pytest.approx(float(logits.log_softmax(-1)[ids[at]]), 1e-4)


@pytest.fixture
def decoded() -> None:
    if not choose_way("float32", torch.device("cpu"), own_parts=False).native:
        pytest.skip("no C decoder on this machine")


@pytest.mark.usefixtures("decoded")
@pytest.mark.parametrize("arch", ["gpt2", "modern"])
@pytest.mark.parametrize("width", [1, 3, 8, 40])
@pytest.mark.parametrize("length", [0, 1, 7, 33, 500])
def test_the_c_library_finds_the_same(arch: str, width: int, length: int) -> None:
    m, ids = model(arch, width=width), text(length + 2)
    decoder = open_decoder(m, Way("c", torch.float32), 2)
    found = native_log_probabilities(decoder, m.config, ids[:2], ids[2:])
    expected = log_probabilities(m, ids[:2], ids[2:])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.usefixtures("decoded")
@pytest.mark.parametrize("arch", ["gpt2", "modern"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_half_scores_are_those_of_sampling(arch: str, dtype: torch.dtype) -> None:
    m, ids = model(arch), text(60)
    way = Way("c", dtype)
    found = native_log_probabilities(open_decoder(m, way, 2), m.config, ids[:1], ids[1:])
    exact = log_probabilities(m, ids[:1], ids[1:])
    assert not torch.equal(found, exact)  # it is rounded
    # What is greedily written has the highest of them: each token in turn is the likeliest.
    room = open_streams(m, 1, Choice(temperature=0.0), way, 2)
    room.feed({0: ids[:3]}, anew=True)
    written = room.run([0], torch.zeros(1, 40, dtype=torch.float64))[:, 0].tolist()
    every = torch.stack(
        [
            native_log_probabilities(
                open_decoder(m, way, 2), m.config, [*ids[:3], *written[:-1]], [token]
            )
            for token in range(V)
        ]
    )
    assert int(every.argmax()) == written[-1]
    assert float(every.exp().sum()) == pytest.approx(1.0, 1e-3)


def test_nothing_costs_nothing() -> None:
    assert len(log_probabilities(model("modern"), [1], [])) == 0
