"""The KV cache changes no token: greedy texts equal those without a cache, also if they are longer
than the window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from gptcli.errors import GptcliError
from gptcli.model.arch import arch_named
from gptcli.model.gpt import GPT
from gptcli.sampling.backend import Backend, choose_backend, open_streams
from gptcli.sampling.generate import GenerationLoop, SampleRequest, UniformNumbers
from gptcli.sampling.next_token import SamplingParams
from gptcli.sampling.streams import window_start
from gptcli.sampling.torch_streams import Decoder, TorchStreams
from tests.sampling.sampling_models import V, W, banded, model

MODERN = arch_named("modern")
CPU = "cpu"
GREEDY = SamplingParams(temperature=0.0)


def write(
    m: GPT,
    backend: Backend,
    prompts: Sequence[list[int]],
    n: int,
    *,
    params: SamplingParams = GREEDY,
    seed: int = 0,
    samples: int = 1,
    streams: int | None = None,
    threads: int = 2,
) -> list[list[int]]:
    """The token ids of all samples: first those of the first prompt, then of the second, ..."""
    requests = [SampleRequest(prompt, i) for prompt in prompts for i in range(samples)]
    opened = open_streams(m, streams or len(requests), params, backend, threads)
    texts: list[list[int]] = [[] for _ in requests]
    for written in GenerationLoop(opened, requests, max_new_tokens=n, seed=seed):
        for request, tokens in written:
            texts[request] += tokens
    return texts


def greedy(m: GPT, backend: Backend, prompt: list[int], n: int) -> list[int]:
    return write(m, backend, [prompt], n)[0]


@pytest.mark.long_series
@pytest.mark.parametrize("prompt", [1, 3, W, W + 1, 3 * W + 5])
@pytest.mark.parametrize("n_layer", [1, 3])
def test_modern_equals_recomputation_under_a_banded_mask(
    prompt: int, n_layer: int, backend: Backend
) -> None:
    m = model("modern", n_layer)
    text = [i * 5 % V for i in range(prompt)]
    got = greedy(m, backend, text, 30)
    for token in got:
        logits = banded(m, torch.tensor([text]))[0, -1]
        assert token == int(logits.argmax())
        text.append(token)


def test_up_to_block_size_both_archs_equal_the_forward_pass(backend: Backend) -> None:
    for arch in ("modern", "gpt2"):
        m = model(arch)
        text = [1, 5]
        for token in greedy(m, backend, text, W - 2):
            assert token == int(m(torch.tensor([text]))[0, -1].argmax())
            text.append(token)


@pytest.mark.long_series
@pytest.mark.parametrize("width", [1, 2, 3, 8])
@pytest.mark.parametrize("prompt", [1, 7, 20])
def test_gpt2_equals_recomputation_of_its_window(width: int, prompt: int, backend: Backend) -> None:
    m = model("gpt2", width=width)
    text = [i * 5 % V for i in range(prompt)]
    for token in greedy(m, backend, text, 25):
        start = window_start(len(text), width)
        assert 0 < len(text) - start <= width
        assert token == int(m(torch.tensor([text[start:]]))[0, -1].argmax())
        text.append(token)


def test_window_starts() -> None:
    assert [window_start(n, 8) for n in (1, 8, 9, 10, 11, 12, 13)] == [0, 0, 4, 4, 4, 4, 8]
    assert window_start(100, 1) == 99


def test_logits_with_the_cache_equal_the_forward_pass() -> None:
    m = model("modern")
    idx = torch.randint(0, V, (3, 20), generator=torch.Generator().manual_seed(0))
    decoder = Decoder(m, 3)
    decoder.feed(idx[:, :5])
    for t in range(5, 20):
        logits = decoder.feed(idx[:, t : t + 1])
        expected = torch.cat([banded(m, row[None, : t + 1])[:, -1] for row in idx])
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_the_users_attention_samples_without_a_cache() -> None:
    from gptcli.model.attention import CausalSelfAttention

    class UserAttention(torch.nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.inner = CausalSelfAttention(config)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    with_user_part, builtin = model("gpt2", attention=UserAttention), model("gpt2")
    builtin.load_state_dict(
        {k.replace(".inner", ""): v for k, v in with_user_part.state_dict().items()}
    )
    backend = Backend("torch", "float32")
    assert greedy(with_user_part, backend, [1, 2], 20) == greedy(builtin, backend, [1, 2], 20)


@pytest.mark.long_series
@pytest.mark.parametrize("arch", ["modern", "gpt2"])
def test_a_stream_does_not_depend_on_the_others(arch: str, backend: Backend) -> None:
    m = model(arch)

    def draw(samples: int, seed: int) -> list[list[int]]:
        return write(m, backend, [[1]], 100, params=SamplingParams(1.0), seed=seed, samples=samples)

    four = draw(4, 7)
    assert draw(1, 7)[0] == four[0]
    assert draw(2, 7) == four[:2]
    assert len(set(map(tuple, four))) == 4
    assert draw(1, 8)[0] != four[0]


@pytest.mark.long_series
@pytest.mark.parametrize("arch", ["modern", "gpt2"])
@pytest.mark.parametrize("threads", [1, 2])
def test_prompts_of_any_lengths_give_the_same_together_as_one_by_one(
    arch: str, threads: int, backend: Backend
) -> None:
    m = model(arch)
    prompts = [[(3 * i + j * j) % V for j in range(1 + 5 * i % 23)] for i in range(9)]
    params = SamplingParams(0.9, top_k=7, repetition_penalty=1.2)
    alone = [
        text
        for prompt in prompts
        for text in write(m, backend, [prompt], 21, params=params, seed=5, samples=2)
    ]
    together = write(m, backend, prompts, 21, params=params, seed=5, samples=2, threads=threads)
    assert together == alone
    assert write(m, backend, prompts, 21, params=params, seed=5, samples=2, streams=4) == alone


@pytest.mark.slow
@pytest.mark.long_series
@pytest.mark.parametrize("steps", [1, 3, 70])
def test_the_number_of_steps_per_call_does_not_matter(steps: int, backend: Backend) -> None:
    m = model("gpt2")
    streams = open_streams(m, 1, SamplingParams(1.0), backend, 1)
    streams.feed({0: [1, 2]}, restart=True)
    numbers, got = UniformNumbers(3, 0), []
    while len(got) < 140:
        got += streams.run([0], [numbers.take(steps)])[0]
    assert got[:140] == write(m, backend, [[1, 2]], 140, params=SamplingParams(1.0), seed=3)[0]


def test_tokens_fed_later_continue_the_text(backend: Backend) -> None:
    for arch in ("modern", "gpt2"):
        m = model(arch)
        streams = open_streams(m, 1, GREEDY, backend, 1)
        streams.feed({0: [1, 2]}, restart=True)
        first = streams.run([0], [[0.0] * 5])[0]
        streams.feed({0: [4, 5, 6]}, restart=False)
        second = streams.run([0], [[0.0] * 9])[0]
        assert second == greedy(m, backend, [1, 2, *first, 4, 5, 6], 9)


def test_a_request_that_ended_frees_its_stream() -> None:
    for backend in (
        Backend("torch", "float32"),
        Backend("graph", "float32"),
        choose_backend("float32", CPU, has_user_parts=False, arch=MODERN),
    ):
        m = model("modern")
        requests = [SampleRequest([1], i) for i in range(5)]
        loop = GenerationLoop(
            open_streams(m, 2, SamplingParams(1.0), backend, 1), requests, max_new_tokens=40, seed=0
        )
        counts = [0] * 5
        for written in loop:
            for request, tokens in written:
                counts[request] += len(tokens)
                if request != 2:
                    loop.end(request)
        assert counts[2] == 40
        assert all(0 < count < 40 for i, count in enumerate(counts) if i != 2)


def test_repetition_penalty_counts_prompt_and_output(backend: Backend) -> None:
    m = model("modern")
    params = SamplingParams(temperature=0.0, repetition_penalty=1.7)
    text = [1, 2, 3]
    for token in write(m, backend, [text], 20, params=params)[0]:
        logits = banded(m, torch.tensor([text]))[0, -1]
        for seen in set(text):
            logits[seen] = logits[seen] / 1.7 if logits[seen] > 0 else logits[seen] * 1.7
        assert token == int(logits.argmax())
        text.append(token)
    assert text[3:] != greedy(m, backend, [1, 2, 3], 20)


def test_zero_new_tokens_yield_nothing() -> None:
    streams = TorchStreams(model("modern"), 2, SamplingParams())
    assert list(GenerationLoop(streams, [SampleRequest([1], 0)], max_new_tokens=0, seed=0)) == []


def test_user_parts_and_gpus_are_sampled_by_pytorch() -> None:
    assert not choose_backend("auto", CPU, has_user_parts=True, arch=MODERN).native
    assert choose_backend("float32", CPU, has_user_parts=True, arch=MODERN).dtype == "float32"
    cuda = "cuda"
    assert choose_backend("auto", cuda, has_user_parts=False, arch=MODERN) == Backend(
        "graph", "float32"
    )
    assert choose_backend("auto", cuda, has_user_parts=True, arch=MODERN) == Backend(
        "torch", "float32"
    )
    assert choose_backend("auto", CPU, has_user_parts=True, arch=MODERN).dtype == "float32"
    for device, has_user_parts in ((CPU, True), (cuda, False)):
        with pytest.raises(GptcliError, match="int8"):
            choose_backend("int8", device, has_user_parts=has_user_parts, arch=MODERN)
