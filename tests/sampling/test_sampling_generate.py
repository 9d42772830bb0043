"""The cache changes nothing: greedy output equals plain recomputation, in and past the window."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from gptcli.config import ModelConfig
from gptcli.model.attention import banded_mask
from gptcli.model.gpt import GPT, initialise
from gptcli.model.rotary import rotary_table, rotate
from gptcli.sampling.choose import Choice
from gptcli.sampling.generate import Decoder, generate, window_start

W = 8
V = 13


def model(arch: Any, n_layer: int = 2, width: int = W, attention: Any = None) -> GPT:
    built = GPT(
        ModelConfig(arch=arch, n_layer=n_layer, n_head=2, n_embd=16, block_size=width), V, attention
    )
    initialise(built, torch.Generator().manual_seed(3))
    with torch.no_grad():  # a head and branches of zeros would make every token equal
        for p in built.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.3)
    return built.eval()


def greedy(m: GPT, prompt: list[int], n: int) -> list[int]:
    steps = generate(m, prompt, streams=1, max_new_tokens=n, how=Choice(temperature=0.0), seed=0)
    return [tokens[0] for tokens in steps]


def banded(m: GPT, idx: Tensor) -> Tensor:
    """The modern arch over the whole text under a banded mask, spelled out: (1, T) -> (1, T, V)."""
    T = idx.shape[1]
    at = torch.arange(T)
    allowed = banded_mask(at, at, m.config.block_size)
    cos, sin = rotary_table(T, m.config.head_dim, torch.float32, torch.device("cpu"))
    x = m.wte(idx)
    for block in m.h:
        y, a = block.ln_1(x), block.attn
        q, k, v = (
            f(y).view(1, T, m.config.n_head, -1).transpose(1, 2) for f in (a.query, a.key, a.value)
        )
        q, k = rotate(a.q_norm(q), cos, sin), rotate(a.k_norm(k), cos, sin)
        scores = (q @ k.transpose(2, 3)) / m.config.head_dim**0.5
        mixed = scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ v
        x = x + a.c_proj(mixed.transpose(1, 2).reshape(1, T, -1))
        x = x + block.mlp(block.ln_2(x))
    return m.lm_head(m.ln_f(x))


@pytest.mark.parametrize("prompt", [1, 3, W, W + 1, 3 * W + 5])
@pytest.mark.parametrize("n_layer", [1, 3])
def test_modern_equals_the_whole_text_under_a_banded_mask(prompt: int, n_layer: int) -> None:
    m = model("modern", n_layer)
    text = [i * 5 % V for i in range(prompt)]
    got = greedy(m, text, 30)
    for token in got:
        logits = banded(m, torch.tensor([text]))[0, -1]
        assert token == int(logits.argmax())
        text.append(token)


def test_up_to_block_size_both_archs_equal_plain_forward() -> None:
    for arch in ("modern", "gpt2"):
        m = model(arch)
        text = [1, 5]
        for token in greedy(m, text, W - 2):
            assert token == int(m(torch.tensor([text]))[0, -1].argmax())
            text.append(token)


@pytest.mark.parametrize("width", [1, 2, 3, 8])
@pytest.mark.parametrize("prompt", [1, 7, 20])
def test_gpt2_equals_the_window_that_the_docs_define(width: int, prompt: int) -> None:
    m = model("gpt2", width=width)
    text = [i * 5 % V for i in range(prompt)]
    for token in greedy(m, text, 25):
        start = window_start(len(text), width)
        assert 0 < len(text) - start <= width
        assert token == int(m(torch.tensor([text[start:]]))[0, -1].argmax())
        text.append(token)


def test_window_starts() -> None:
    assert [window_start(n, 8) for n in (1, 8, 9, 10, 11, 12, 13)] == [0, 0, 2, 2, 4, 4, 6]
    assert window_start(100, 1) == 99


def test_logits_of_the_cache_are_those_of_the_forward_pass() -> None:
    m = model("modern")
    idx = torch.randint(0, V, (3, 20), generator=torch.Generator().manual_seed(0))
    decoder = Decoder(m, 3)
    decoder.feed(idx[:, :5])
    for t in range(5, 20):
        logits = decoder.feed(idx[:, t : t + 1])
        expected = torch.cat([banded(m, row[None, : t + 1])[:, -1] for row in idx])
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_a_learners_attention_samples_without_a_cache() -> None:
    from gptcli.model.attention import CausalSelfAttention

    class Own(torch.nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.inner = CausalSelfAttention(config)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    own, built_in = model("gpt2", attention=Own), model("gpt2")
    built_in.load_state_dict({k.replace(".inner", ""): v for k, v in own.state_dict().items()})
    assert greedy(own, [1, 2], 20) == greedy(built_in, [1, 2], 20)


def test_a_stream_does_not_depend_on_its_neighbours() -> None:
    m = model("modern")

    def draw(streams: int, seed: int) -> list[tuple[int, ...]]:
        steps = generate(m, [1], streams=streams, max_new_tokens=100, how=Choice(1.0), seed=seed)
        return list(zip(*steps, strict=True))

    four = draw(4, 7)
    assert draw(1, 7)[0] == four[0]
    assert draw(2, 7) == four[:2]
    assert len(set(four)) == 4
    assert draw(1, 8)[0] != four[0]


def test_repetition_penalty_counts_prompt_and_output() -> None:
    m = model("modern")
    steps = generate(
        m,
        [1, 2, 3],
        streams=1,
        max_new_tokens=20,
        seed=0,
        how=Choice(temperature=0.0, repetition_penalty=1.7),
    )
    text = [1, 2, 3]
    for (token,) in steps:
        logits = banded(m, torch.tensor([text]))[0, -1]
        for seen in set(text):
            logits[seen] = logits[seen] / 1.7 if logits[seen] > 0 else logits[seen] * 1.7
        assert token == int(logits.argmax())
        text.append(token)
    assert text[3:] != greedy(m, [1, 2, 3], 20)


def test_no_new_tokens_cost_nothing() -> None:
    steps = generate(model("modern"), [1], streams=2, max_new_tokens=0, how=Choice(), seed=0)
    assert list(islice(steps, 1)) == []
