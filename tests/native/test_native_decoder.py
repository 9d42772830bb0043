"""The C decoder gives PyTorch's logits, for one text or several at once, and chooses the same
tokens."""

from __future__ import annotations

import ctypes
import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptcli.model.gpt import GPT
from gptcli.model.weights import Weights
from gptcli.native import library
from gptcli.native.decoder import Decoder, bytes_needed
from gptcli.native.library import SamplingParamsStruct
from gptcli.sampling.next_token import (
    SamplingParams,
    choose_token,
    choose_valid_token,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise,
)
from tests.sampling.sampling_models import DRAWS, NEARLY_ONE, banded, model

SHAPES: list[dict[str, Any]] = [
    {"arch": "modern", "n_layer": 2, "width": 24, "n_head": 2, "n_embd": 32, "vocab_size": 40},
    {"arch": "modern", "n_layer": 1, "width": 7, "n_head": 5, "n_embd": 30, "vocab_size": 3},
    {"arch": "modern", "n_layer": 2, "width": 300, "n_head": 3, "n_embd": 192, "vocab_size": 65},
    {"arch": "modern", "n_layer": 1, "width": 20, "n_head": 1, "n_embd": 80, "vocab_size": 1000},
    {"arch": "gpt2", "n_layer": 2, "width": 40, "n_head": 4, "n_embd": 64, "vocab_size": 65},
    {
        "arch": "modern", "n_layer": 2, "width": 24, "n_head": 4, "n_embd": 48, "vocab_size": 40,
        "n_kv_head": 2, "head_dim": 20, "hidden_width": 50, "rope_theta": 1e6, "norm_eps": 1e-3,
    },
    {
        "arch": "modern", "n_layer": 2, "width": 40, "n_head": 6, "n_embd": 30, "vocab_size": 90,
        "n_kv_head": 1, "head_dim": 34, "qk_norm": False, "tied_head": True, "rope_theta": 500.0,
    },
    {
        "arch": "gpt2", "n_layer": 1, "width": 12, "n_head": 2, "n_embd": 20, "vocab_size": 30,
        "bias": True, "hidden_width": 33, "tied_head": False, "norm_eps": 0.01,
    },
    {
        "arch": "gpt2", "n_layer": 2, "width": 20, "n_head": 3, "n_embd": 21, "vocab_size": 300,
        "bias": True,
    },
    {
        "arch": "gpt2", "n_layer": 1, "width": 1, "n_head": 1, "n_embd": 1, "vocab_size": 2,
        "bias": True,
    },
]  # fmt: skip
FEW_SHAPES = pytest.mark.parametrize(
    "shape",
    [shape if i in (1, 5, 8) else pytest.param(shape, marks=pytest.mark.slow)
     for i, shape in enumerate(SHAPES)],
    ids=str,
)  # fmt: skip
DTYPES = ["float32", "bfloat16", "int8"]


def made(shape: dict[str, Any]) -> GPT:
    shape = dict(shape)
    return model(shape.pop("arch"), shape.pop("n_layer"), shape.pop("width"), **shape)


def text(m: GPT, length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, m.vocab_size, (length,), generator=generator).tolist()


def decoder(
    found: ctypes.CDLL,
    m: GPT,
    dtype: str = "float32",
    *,
    streams: int = 1,
    threads: int = 2,
) -> Decoder:
    return Decoder(found, Weights.of(m), dtype=dtype, streams=streams, threads=threads)


def logits_of(one: Decoder, stream: int) -> torch.Tensor:
    return torch.from_numpy(one.logits(stream))


@pytest.mark.long_series
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_logits_are_pytorchs(decoding: ctypes.CDLL, shape: dict[str, Any]) -> None:
    m = made(shape)
    ids = text(m, m.config.block_size)
    with torch.no_grad():
        expected = m(torch.tensor([ids]))[0]
    one, piece = decoder(decoding, m), max(1, len(ids) // 3)
    for at in range(0, len(ids), piece):
        one.feed([(0, at, ids[at : at + piece])])
        last = min(at + piece, len(ids)) - 1
        torch.testing.assert_close(logits_of(one, 0), expected[last], rtol=1e-4, atol=2e-5)


@pytest.mark.long_series
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bfloat16_logits_are_close_to_pytorchs(
    decoding: ctypes.CDLL, shape: dict[str, Any]
) -> None:
    m = made(shape)
    ids = text(m, m.config.block_size)
    with torch.no_grad():
        expected = m(torch.tensor([ids]))[0, -1].log_softmax(-1)
        plain = m.to(torch.bfloat16)(torch.tensor([ids]))[0, -1].float().log_softmax(-1)
    # The weights become float32 again, with values rounded to bfloat16. The decoder gets these
    # float32 weights.
    m.to(torch.float32)
    half = decoder(decoding, m, "bfloat16")
    half.feed([(0, 0, ids)])
    error = (logits_of(half, 0).log_softmax(-1) - expected).abs().max()
    # The decoder's error may be a little larger than that of PyTorch in bfloat16, which rounds
    # after every operation.
    assert error <= 1.5 * (plain - expected).abs().max() + 0.01


def in_bytes(weight: torch.Tensor) -> torch.Tensor:
    """A weight matrix rounded to int8, as float32.

    Each group of 32 inputs has a scale (a bfloat16, rounded up), and each weight is this scale
    times a whole number from -127 to 127."""
    N, K = weight.shape
    groups = torch.nn.functional.pad(weight, (0, -K % 32)).view(N, -1, 32)
    exact = groups.abs().amax(-1, keepdim=True) / 127
    scale = exact.bfloat16()
    above = torch.nextafter(scale, torch.tensor(float("inf"), dtype=torch.bfloat16))
    scale = torch.where(scale.float() < exact, above, scale).float()
    whole = torch.where(scale > 0, groups / scale, 0).round()
    assert whole.abs().max() <= 127
    return (whole * scale).view(N, -1)[:, :K]


@pytest.mark.long_series
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2], SHAPES[3], SHAPES[4]], ids=str)
def test_int8_logits_are_those_of_rounded_weights(
    decoding: ctypes.CDLL, shape: dict[str, Any]
) -> None:
    """The logits are close to those of PyTorch with weights that are rounded to int8.

    The decoder also rounds activations to 15 bits, and keys and values to bfloat16, but these
    errors are far smaller than the errors of the rounded weights."""
    m = made(shape)
    ids = text(m, m.config.block_size)
    one = decoder(decoding, m, "int8")
    one.feed([(0, 0, ids)])
    with torch.no_grad():
        exact = m(torch.tensor([ids]))[0, -1]
        for name, weight in m.named_parameters():
            if weight.dim() == 2 and name.split(".")[0] not in ("wte", "wpe"):
                weight.copy_(in_bytes(weight))
        # In the arch gpt2, one matrix is both embedding and head. The decoder rounds it for the
        # head, but not for the embedding.
        if m.config.arch == "gpt2":
            hidden: list[torch.Tensor] = []
            m.lm_head.register_forward_pre_hook(lambda _, given: hidden.append(given[0]))
            m(torch.tensor([ids]))
            rounded = (hidden[0] @ in_bytes(m.wte.weight).t())[0, -1]
        else:
            rounded = m(torch.tensor([ids]))[0, -1]
    far = (exact - rounded).abs().mean()
    near = (logits_of(one, 0) - rounded).abs().mean()
    assert near < 0.3 * far
    slope = float(logits_of(one, 0) @ rounded / (rounded @ rounded))
    assert slope == pytest.approx(1.0, abs=1e-3)


@pytest.mark.long_series
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_weights_that_are_not_finite_show_in_the_logits(
    decoding: ctypes.CDLL, dtype: str, value: float
) -> None:
    m = made(SHAPES[0])
    with torch.no_grad():
        m.wte.weight[3, 17] = value
    one = decoder(decoding, m, dtype)
    one.feed([(0, 0, [1])])
    assert logits_of(one, 0).isfinite().all()
    one.feed([(0, 1, [3])])
    assert logits_of(one, 0).isnan().all()


@pytest.mark.long_series
@pytest.mark.parametrize("dtype", DTYPES)
@FEW_SHAPES
def test_a_row_does_not_depend_on_its_neighbours(
    decoding: ctypes.CDLL, shape: dict[str, Any], dtype: str
) -> None:
    m = made(shape)
    texts = [text(m, 1 + i * 7 % m.config.block_size, seed=i) for i in range(41)]
    many = decoder(decoding, m, dtype, streams=41)
    many.feed([(i, 0, ids) for i, ids in enumerate(texts)])
    alone = decoder(decoding, m, dtype, threads=1)
    for i, ids in enumerate(texts):
        for position, token in enumerate(ids):
            alone.feed([(0, position, [token])])
        assert torch.equal(logits_of(alone, 0), logits_of(many, i)), i


@pytest.mark.long_series
@pytest.mark.parametrize("shape", [{}, SHAPES[5], SHAPES[6]], ids=["usual", "grouped", "llama"])
@pytest.mark.parametrize("width", [5, 16, 33, 64, 70])
def test_logits_far_past_the_window_are_pytorchs(
    decoding: ctypes.CDLL, width: int, shape: dict[str, Any]
) -> None:
    m = made({"arch": "modern", "n_layer": 2, **shape, "width": width})
    ids = text(m, 6 * width + 3)
    expected = banded(m, torch.tensor([ids]))[0]
    one = decoder(decoding, m)
    one.feed([(0, 0, ids[: 2 * width])])
    for at in range(2 * width, len(ids)):
        torch.testing.assert_close(logits_of(one, 0), expected[at - 1], rtol=1e-3, atol=1e-4)
        one.feed([(0, at, [ids[at]])])


@pytest.mark.long_series
@pytest.mark.parametrize("far", [1000, 1024 * 255, 1024 * 256 - 5, 10_000_000])
def test_only_distances_between_positions_matter(decoding: ctypes.CDLL, far: int) -> None:
    m = model("modern", 2, 16)
    ids = text(m, 10)
    here, there = decoder(decoding, m), decoder(decoding, m)
    here.feed([(0, 0, ids)])
    # Near position 0, the empty slots of the window are masked. At position `far`, they are not.
    # So fill the window first.
    there.feed([(0, far - 32, text(m, 32, 1))])
    here.feed([(0, 10, text(m, 32, 1))])
    here.feed([(0, 42, ids)])
    there.feed([(0, far, ids)])
    torch.testing.assert_close(logits_of(here, 0), logits_of(there, 0), rtol=1e-3, atol=1e-3)


@pytest.mark.long_series
@pytest.mark.parametrize(("streams", "threads"), [(1, 1), (1, 2), (3, 2), (40, 2), (40, 3)])
@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_threads_writes_the_same(
    decoding: ctypes.CDLL, streams: int, threads: int, alone: bool, dtype: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    m = made(SHAPES[0])
    uniform = torch.rand(streams, 30, generator=torch.Generator().manual_seed(1)).double()
    how = SamplingParamsStruct(temperature=1.0, top_p=1.0, penalty=1.0)

    def run(chosen: list[int]) -> list[list[int]]:
        one = decoder(decoding, m, dtype, streams=streams, threads=threads)
        monkeypatch.setattr(one, "_team", lambda n: (threads if n > 1 or not alone else 1, alone))
        one.feed([(i, 0, [i % m.vocab_size, 1, 2 + i % 5][: 2 + i % 2]) for i in chosen])
        return one.run(chosen, [2 + i % 2 for i in chosen], uniform[chosen].tolist(), how)

    together = run(list(range(streams)))
    found = set(itertools.chain(*together))
    assert 0 <= min(found) <= max(found) < m.vocab_size
    assert len(found) > 10
    for i in {0, streams // 2, streams - 1}:
        assert run([i]) == [together[i]]


def test_a_copied_stream_continues_the_same(decoding: ctypes.CDLL) -> None:
    for m in (model("modern", 2, 20), model("gpt2", 2, 20)):
        one = decoder(decoding, m, streams=3)
        ids = text(m, 18)
        one.feed([(1, 0, ids)])
        one.copy(1, 2, len(ids))
        assert torch.equal(logits_of(one, 1), logits_of(one, 2))
        one.feed([(1, 18, [3]), (2, 18, [3])])
        assert torch.equal(logits_of(one, 1), logits_of(one, 2))


def test_bytes_needed_grows_with_streams_and_dtype(decoding: ctypes.CDLL) -> None:
    m = model("gpt2", 2, 64, n_embd=64)
    sizes = [
        bytes_needed(decoding, m.config, 13, dtype=dtype, streams=n, threads=2)
        for dtype, n in (
            ("float32", 1),
            ("float32", 1000),
            ("bfloat16", 1000),
            ("int8", 1000),
        )
    ]
    of_a_stream = 2 * 2 * 64 * 64 * 4  # layers * (keys and values) * tokens * channels * bytes
    assert sizes[1] - sizes[0] == pytest.approx(999 * of_a_stream, rel=0.3)
    assert sizes[2] < 0.7 * sizes[1]
    assert sizes[3] < 0.7 * sizes[1]
    config = m.config.model_copy(update={"block_size": 10**9})
    huge = replace(Weights.of(m), config=config)
    with pytest.raises(MemoryError):
        Decoder(decoding, huge, dtype="float32", streams=2**20, threads=1)


# ---- the choice ----------------------------------------------------------------------------------


def chosen(
    found: ctypes.CDLL, logits: torch.Tensor, how: SamplingParamsStruct, uniform: float, seen: Any,
    after: Any = None,
) -> int:  # fmt: skip
    """The id of the token that the C library chooses for these logits."""
    function = found.dec_choose
    function.restype = ctypes.c_int
    place = None if seen is None else seen.data_ptr()
    return int(
        function(
            ctypes.c_void_p(logits.data_ptr()), len(logits), ctypes.byref(how),
            ctypes.c_double(uniform), ctypes.c_void_p(place),
            ctypes.c_void_p(None if after is None else after.data_ptr()),
        )
    )  # fmt: skip


@pytest.mark.parametrize(("logits", "temperature", "uniform", "token"), DRAWS)
def test_extreme_uniform_numbers_draw_the_exact_token(
    decoding: ctypes.CDLL, logits: list[float], temperature: float, uniform: float, token: int
) -> None:
    """Another test, in tests/sampling, proves that PyTorch draws the same tokens for DRAWS."""
    params = SamplingParamsStruct(temperature=temperature, top_p=1.0, penalty=1.0)
    assert (
        chosen(decoding, torch.tensor(logits, dtype=torch.float32), params, uniform, None) == token
    )


@settings(max_examples=60, deadline=None)
@example(32, 0, NEARLY_ONE, None, None, None, 0.1, 1.0)  # see DRAWS
@example(32, 0, 0.0, None, None, None, 0.1, 1.0)
@given(
    st.integers(1, 3000),
    st.integers(0, 2**31),
    st.floats(0, 1, exclude_max=True),
    st.one_of(st.none(), st.integers(1, 3000)),
    st.one_of(st.none(), st.floats(0, 1)),
    st.one_of(st.none(), st.floats(0, 1)),
    st.sampled_from([0.0, 0.1, 0.8, 3.0]),
    st.sampled_from([1.0, 0.7, 1.6]),
)
def test_the_choice_is_pytorchs(
    decoding: ctypes.CDLL, size: int, seed: int, uniform: float, top_k: int | None,
    top_p: float | None, min_p: float | None, temperature: float, penalty: float,
) -> None:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(size, generator=generator)
    if seed % 3 == 0:
        logits = logits.round()  # some logits are equal
    seen = torch.rand(size, generator=generator) < 0.3
    native = SamplingParamsStruct(
        temperature=temperature,
        top_p=1.0 if top_p is None else top_p,
        min_p=min_p or 0.0,
        penalty=penalty,
        top_k=top_k or 0,
    )
    token = chosen(decoding, logits, native, uniform, seen.to(torch.uint8))
    if temperature == 0.0:
        penalised = logits
        if penalty != 1.0:
            divided = torch.where(logits > 0, logits / penalty, logits * penalty)
            penalised = torch.where(seen, divided, logits)
        assert penalised[token] == penalised.max()
        return
    # If a token is near the limit of top-p or min-p, rounding decides whether it is kept. So
    # also accept a token that a slightly larger or smaller limit would choose.
    for off in (0.0, 1e-5, -1e-5):
        params = SamplingParams(
            temperature, top_k, None if top_p is None else min(1.0, max(0.0, top_p + off)),
            None if min_p is None else min(1.0, max(0.0, min_p - off)), penalty,
        )  # fmt: skip
        number = torch.tensor([uniform], dtype=torch.float64)
        if int(choose_token(logits[None], params, number, seen[None])) == token:
            return
        probability, before, after = share_of(token, logits, params, seen)
        # A token can be drawn only if its probability changes the rounded cumulative sum.
        counts = probability >= 2**-55 * after > 0
        if counts and before - 1e-5 <= uniform <= after + 1e-5:
            return
    raise AssertionError(token)


def share_of(
    token: int, logits: torch.Tensor, params: SamplingParams, seen: torch.Tensor
) -> tuple[float, float, float]:
    """The probability of `token`, and the sums of the probabilities before it and up to it.

    All three follow PyTorch's formulas."""
    kept = logits[None]
    if params.repetition_penalty != 1.0:
        kept = penalise(kept, seen[None], params.repetition_penalty)
    kept = kept / params.temperature
    if params.top_k is not None:
        kept = keep_top_k(kept, params.top_k)
    if params.top_p is not None:
        kept = keep_top_p(kept, params.top_p)
    if params.min_p is not None:
        kept = keep_min_p(kept, params.min_p)
    probabilities = torch.softmax(kept[0], -1, dtype=torch.float64)
    after = float(probabilities[: token + 1].sum())
    return float(probabilities[token]), after - float(probabilities[token]), after


def test_tokens_that_would_not_be_utf8_are_chosen_as_pytorch_does(decoding: ctypes.CDLL) -> None:
    generator = torch.Generator().manual_seed(4)
    others = 0
    for number in range(200):
        logits = torch.randn(70, generator=generator)
        valid = torch.rand(70, generator=generator) < 0.5
        after = torch.where(valid, 0, 255).to(torch.uint8)
        uniform = torch.rand(1, generator=generator, dtype=torch.float64)
        params = SamplingParams(0.0 if number % 5 == 0 else 1.0, 40 if number % 2 else None)
        native = SamplingParamsStruct(
            temperature=params.temperature, top_p=1.0, penalty=1.0, top_k=params.top_k or 0
        )
        token = chosen(decoding, logits, native, float(uniform), None, after)
        assert valid[token]
        assert token == int(choose_valid_token(logits[None], params, uniform, valid[None]))
        others += token != chosen(decoding, logits, native, float(uniform), None)
    assert 50 < others < 150


def test_nan_logits_still_choose_a_token(decoding: ctypes.CDLL) -> None:
    for value in (float("nan"), float("inf"), float("-inf")):
        logits = torch.full((70,), value)
        for how in (
            SamplingParamsStruct(temperature=0.0, top_p=1.0, penalty=1.0),
            SamplingParamsStruct(temperature=1.0, top_p=0.5, min_p=0.1, penalty=1.0, top_k=5),
        ):
            assert 0 <= chosen(decoding, logits, how, 0.5, None) < 70


def test_sampling_needs_no_special_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    assert library.SAMPLING.required_features == frozenset()
    monkeypatch.setattr(library, "usable_processor", lambda: None)
    library.find.cache_clear()
    try:
        assert library.find(library.SAMPLING).reason == "this is not Linux or macOS"
    finally:
        library.find.cache_clear()
