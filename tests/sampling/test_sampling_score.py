"""Scores of a text: the log-probability with which sampling would draw each of its tokens."""

from __future__ import annotations

import pytest
import torch

from gptcli.model.arch import arch_named
from gptcli.sampling.backend import Backend, choose_backend, open_decoder
from gptcli.sampling.native_score import native_log_probabilities
from gptcli.sampling.score import log_probabilities
from gptcli.sampling.streams import window_start
from tests.sampling.sampling_models import V, W, banded, model


def text(length: int) -> list[int]:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(0, V, (length,), generator=generator).tolist()


@pytest.mark.parametrize("length", [1, W - 1, W, W + 1, 5 * W + 3])
@pytest.mark.parametrize("start", [1, 3])
def test_modern_equals_the_whole_text_under_a_banded_mask(length: int, start: int) -> None:
    m, ids = model("modern"), text(length + start)
    found = log_probabilities(m, ids[:start], ids[start:])
    whole = banded(m, torch.tensor([ids])).detach()[0].log_softmax(-1)
    expected = [whole[at - 1, ids[at]] for at in range(start, len(ids))]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [1, 2, 3, 8])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 30, 1500])
def test_gpt2_uses_the_windows_of_sampling(width: int, length: int) -> None:
    m, ids = model("gpt2", width=width), text(length + 1)
    found = log_probabilities(m, ids[:1], ids[1:])
    assert len(found) == length
    for at in {1, min(width, length), length // 2 + 1, length}:
        logits = m(torch.tensor([ids[window_start(at, width) : at]])).detach()[0, -1]
        assert float(found[at - 1]) == pytest.approx(float(logits.log_softmax(-1)[ids[at]]), 1e-4)


@pytest.fixture
def c_decoder() -> None:
    modern = arch_named("modern")
    if not choose_backend("float32", "cpu", has_user_parts=False, arch=modern).native:
        pytest.skip("no C decoder on this machine")


@pytest.mark.long_series
@pytest.mark.usefixtures("c_decoder")
@pytest.mark.parametrize("arch", ["gpt2", "modern"])
@pytest.mark.parametrize("width", [1, 3, 8, 40])
@pytest.mark.parametrize("length", [0, 1, 7, 33, 500])
def test_the_c_library_gives_pytorchs_scores(arch: str, width: int, length: int) -> None:
    m, ids = model(arch, width=width), text(length + 2)
    decoder = open_decoder(m, Backend("native", "float32"), 2)
    found = torch.from_numpy(native_log_probabilities(decoder, m.config, ids[:2], ids[2:]))
    expected = log_probabilities(m, ids[:2], ids[2:]).double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.usefixtures("c_decoder")
@pytest.mark.parametrize("arch", ["gpt2", "modern"])
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_rounded_scores_equal_those_of_sampling(arch: str, dtype: str) -> None:
    """With rounded weights, the scores equal the log-probabilities that sampling gets when it reads
    the text token by token."""
    m, ids = model(arch), text(60)
    backend = Backend("native", dtype)
    found = native_log_probabilities(open_decoder(m, backend, 2), m.config, ids[:1], ids[1:])
    decoder = open_decoder(m, backend, 2)
    for at in range(1, len(ids)):
        if arch == "modern":
            decoder.feed([(0, at - 1, ids[at - 1 : at])])
        else:
            decoder.feed([(0, 0, ids[window_start(at, W) : at])])
        expected = float(torch.from_numpy(decoder.logits(0)).log_softmax(-1)[ids[at]])
        assert float(found[at - 1]) == pytest.approx(expected, abs=1e-5)
    assert float(abs(found - log_probabilities(m, ids[:1], ids[1:]).numpy()).mean()) > 1e-3


def test_an_empty_text_has_no_scores() -> None:
    assert len(log_probabilities(model("modern"), [1], [])) == 0
