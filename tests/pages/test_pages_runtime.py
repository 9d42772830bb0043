"""Runs the JavaScript of a page in Node.js: tokenizers, networks, windows, undo, sampler, random
numbers."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptcli.course.attention import STEP_NAMES
from gptcli.errors import GptcliError
from gptcli.pages.inlining import asset
from gptcli.pages.model_page import proof
from gptcli.pages.model_page.payload import payload, rounded
from gptcli.pages.model_page.proof import prompts
from gptcli.sampling.generate import UniformNumbers
from gptcli.sampling.next_token import SamplingParams, choose_valid_token
from gptcli.sampling.streams import window_start
from gptcli.sampling.text import generate_one
from gptcli.sampling.torch_streams import TorchStreams
from gptcli.tokenization.bpe import RankedTokenizer
from gptcli.tokenization.utf8_states import next_states
from tests.conftest import some
from tests.interop.models import KINDS, shape, tokenizer_of, trained
from tests.pages import javascript

OPEN = """
const payload = await readPayload(asked.payload);
const tokenizer = new Tokenizer(payload.header.tokenizer, payload.section("merges"));
const network = new Network(payload, asked.simd ?? true);
const growing = new GrowingText(network);
"""

TEXTS = (
    "  two  spaces, a tab\tand\r\nline ends\n\n ",
    "naïve façade, größer, 你好, привет, 🙂🙃",
    "<|endoftext|> is text; don't, I'LL, we've 3.14159 \ufeff\x85\x1c\u2028\u3000 end",
    "\n \n  \n",
    "",
)


@pytest.mark.parametrize(
    "kind", [k if k != "gpt2" else pytest.param(k, marks=pytest.mark.slow) for k in KINDS]
)
def test_the_tokenizer_gives_the_same_ids_and_bytes(kind: str, tmp_path: Path) -> None:
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 2, "block_size": 4}
    model = trained(tmp_path / "run", kind, **sizes)
    texts = ["naïve 你好 🙂\t"] if kind == "char" else [*TEXTS, *prompts(model.tokenizer, 40)]
    asked = {"payload": payload(model.model, model.tokenizer), "texts": texts}
    found = javascript.run(
        OPEN
        + """return {
            ids: asked.texts.map((text) => tokenizer.encode(text).ids),
            back: asked.texts.map((text) => tokenizer.decode(tokenizer.encode(text).ids)),
            states: tokenizer.states?.map((row) => Array.from(row)),
        };""",
        asked,
        tmp_path,
    )
    assert found["ids"] == [model.tokenizer.encode(text) for text in texts]
    assert found["back"] == texts
    table = next_states(model.tokenizer.pieces)
    assert found.get("states") == (None if table is None else table.tolist())


def test_unknown_characters_are_named_and_left_out(tmp_path: Path) -> None:
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 2, "block_size": 4}
    model = trained(tmp_path / "run", "char", **sizes)
    asked = {"payload": payload(model.model, model.tokenizer)}
    found = javascript.run(OPEN + 'return tokenizer.encode("na€ï€v♥e");', asked, tmp_path)
    assert found == {"ids": model.tokenizer.encode("naïve"), "unknown": ["€", "♥"]}


def test_special_tokens_between_the_others(tmp_path: Path) -> None:
    """An imported tokenizer can have special tokens at any ids, and its bytes in any order."""
    usual = tokenizer_of("bpe")
    assert isinstance(usual, RankedTokenizer)
    ranked = [*usual.pieces[255::-1], *usual.pieces[256:-1]]
    odd = RankedTokenizer("bpe", ranked, {0: "<s>", 7: "</s>", 260: "<pad>"})
    model = trained(tmp_path / "run", "byte", n_layer=1, n_head=1, n_embd=2, block_size=4)
    found = javascript.run(
        OPEN + "return [tokenizer.encode(asked.text).ids, tokenizer.eot];",
        {"payload": payload(model.model, odd), "text": "<s> to be or not </s>"},
        tmp_path,
    )
    assert found == [odd.encode("<s> to be or not </s>"), 7]


SHAPES = [(arch, seed) for arch in ("modern", "gpt2") for seed in range(8)]


@pytest.mark.long_series
@pytest.mark.parametrize(("arch", "seed"), SHAPES)
def test_the_network_gives_the_same_logits_also_past_the_window_and_after_undo(
    arch: str, seed: int, tmp_path: Path
) -> None:
    """The text grows token by token, is given at once, or loses tokens.

    The network computes once with WebAssembly, and once without it."""
    model = trained(tmp_path / "run", "byte", seed, **shape(seed, arch))
    network, width = rounded(model.model), model.config.model.block_size
    rng = random.Random(seed)
    tokens = [rng.randrange(257) for _ in range(2 * width + 3)]
    orders = [[*range(1, len(tokens) + 1)], [len(tokens), len(tokens) - 2, 2, width + 1, 1]]
    wanted = proof.network_logits(network, tokens, first=0).detach()
    for simd in (True, False):
        found = javascript.run(
            OPEN
            + """return asked.orders.map((lengths) => lengths.map((length) => {
                growing.set(asked.tokens.slice(0, length));
                return Array.from(growing.logits().subarray(0, network.V));
            }));""",
            {
                "payload": payload(model.model, model.tokenizer),
                "tokens": tokens,
                "orders": orders,
                "simd": simd,
            },
            tmp_path,
        )
        for lengths, logits in zip(orders, found, strict=True):
            expected = wanted[[length - 1 for length in lengths]]
            assert (torch.tensor(logits) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("arch", ["modern", "gpt2"])
def test_the_reference_of_the_proof_is_what_sampling_computes(arch: str, tmp_path: Path) -> None:
    """`network_logits`, to which a page is compared, reads a text at once.

    TorchStreams, which samples, reads the same text token by token. Both give the same greedy
    text."""
    model = trained(tmp_path / "run", "char", 1, **shape(1, arch)).model
    streams = TorchStreams(model, 1, SamplingParams(temperature=0))
    start = [1, 2, 3]
    streams.feed({0: start}, restart=True)
    count = 3 * model.config.block_size
    greedy = streams.run([0], [[0.0] * count])[0]
    logits = proof.network_logits(model, [*start, *greedy[:-1]], first=len(start) - 1)
    assert logits.argmax(dim=1).tolist() == greedy


def test_the_window_moves_as_in_sampling(tmp_path: Path) -> None:
    cases = [(length, width) for length in range(1, 60) for width in (1, 3, 8, 13)]
    found = javascript.run(
        "return asked.map(([length, width]) => windowStart(length, width));", cases, tmp_path
    )
    assert found == [window_start(*case) for case in cases]


def test_the_random_numbers_are_those_of_sample_seed(tmp_path: Path) -> None:
    seeds = [0, 1, 1337, 2**32 + 5, 2**53 - 1]
    found = javascript.run(
        """return asked.map((seed) => {
            const numbers = new UniformNumbers(seed);
            return Array.from({ length: 700 }, (_, i) => numbers.get(i));
        });""",
        seeds,
        tmp_path,
    )
    for seed, numbers in zip(seeds, found, strict=True):
        assert numbers == UniformNumbers(seed, 0).take(700)


def test_the_sampler_chooses_the_same_tokens(tmp_path: Path, slow: bool) -> None:
    """The logits and the uniform numbers are random.

    Each case has its own sampling parameters. In some cases, some tokens are not allowed."""
    generator = torch.Generator().manual_seed(5)
    cases, wanted = [], []
    for number in some(range(300), 100, slow):
        size = 5 + number % 40
        logits = (torch.randn(1, size, generator=generator) * 3).round(decimals=number % 3)
        params = SamplingParams(
            temperature=[0.0, 0.5, 0.8, 1.0, 2.0][number % 5],
            top_k=[None, 1, 3, 10][number % 4],
            top_p=[None, 0.3, 0.9, 1.0][number // 4 % 4],
        )
        uniform = torch.rand(1, generator=generator, dtype=torch.float64)
        may = torch.rand(1, size, generator=generator) < 0.7
        may[0, number % size] = True
        wanted.append(int(choose_valid_token(logits, params, uniform, may)))
        cases.append(
            {
                "logits": logits[0].tolist(),
                "params": {
                    "temperature": params.temperature, "topK": params.top_k, "topP": params.top_p,
                },
                "uniform": float(uniform),
                "may": may[0].tolist(),
            }
        )  # fmt: skip
    found = javascript.run(
        """return asked.map(({ logits, params, uniform, may }) => {
            const row = Float32Array.from(logits);
            return chooseToken(row, row.length, params, uniform, (id) => may[id]);
        });""",
        cases,
        tmp_path,
    )
    assert found == wanted


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_a_seed_gives_the_text_of_gptcli_sample(kind: str, tmp_path: Path) -> None:
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16}
    model = trained(tmp_path / "run", kind, 2, **sizes)
    params = SamplingParams(temperature=0.9, top_k=20)
    wanted = generate_one(
        rounded(model.model), model.tokenizer, "e", max_new_tokens=60, params=params, seed=7
    )
    found = javascript.run(
        OPEN
        + """
        const numbers = new UniformNumbers(7);
        growing.set(tokenizer.encode("e").ids);
        const made = [];
        for (let i = 0; i < 60; i++) {
            const row = tokenizer.states?.[utf8StateAfter(tokenizer.states, growing.tokens)];
            const id = chooseToken(growing.logits(), network.V, { temperature: 0.9, topK: 20 },
                                   numbers.get(i), row && ((id) => row[id] !== INVALID));
            if (id === tokenizer.eot) break;
            made.push(id);
            growing.push(id);
        }
        return tokenizer.decode(made);""",
        {"payload": payload(model.model, model.tokenizer)},
        tmp_path,
    )
    assert found == wanted


@pytest.mark.parametrize(("arch", "seed"), [("modern", 1), ("modern", 2), ("gpt2", 1)])
def test_the_numbers_of_the_eight_steps_are_the_networks(
    arch: str, seed: int, tmp_path: Path
) -> None:
    """The page shows the numbers of one head and one token.

    The attention's input, the query, the outputs of the heads and the projection equal those in
    PyTorch, where hooks record them."""
    model = trained(tmp_path / "run", "byte", seed, **shape(seed, arch))
    network, config = rounded(model.model), model.config.model
    tokens = [5, 80, 3, 200, 7][: config.block_size]
    layer, head = config.n_layer - 1, config.n_head - 1
    seen: dict[str, torch.Tensor] = {}
    attention = network.h[layer].attn
    attention.register_forward_hook(lambda _, args, out: seen.update(x=args[0], out=out))
    attention.c_proj.register_forward_hook(lambda _, args, out: seen.update(mixed=args[0]))
    with torch.no_grad():
        network(torch.tensor([tokens]))
    found = javascript.run(
        OPEN
        + """
        growing.set(asked.tokens);
        growing.logits();
        const at = asked.tokens.length - 1;
        const steps = attentionSteps(network, asked.layer, asked.head, at);
        const lens = logitLens(network, at, 3);
        const { maps } = attentionMaps(network, 0);
        return { steps, lens, map: Array.from(maps[asked.layer * network.H + asked.head]) };""",
        {
            "payload": payload(model.model, model.tokenizer),
            "tokens": tokens,
            "layer": layer,
            "head": head,
        },
        tmp_path,
        asset("model_page/runtime/inspect.js"),
    )
    steps, D = found["steps"], config.head_dim

    def near(one: Any, two: torch.Tensor) -> None:
        assert (torch.tensor(one) - two).abs().max() < 1e-4

    near(steps["normed"], seen["x"][0, -1])
    near(steps["query"], attention.query(seen["x"])[0, -1].detach())
    near(steps["mixed"], seen["mixed"][0, -1, head * D : (head + 1) * D])
    near(np.concatenate(steps["all"]).tolist(), seen["mixed"][0, -1])
    near(steps["projected"], seen["out"][0, -1])
    assert sum(steps["weights"]) == pytest.approx(1)
    dot = sum(q * k for q, k in zip(steps["headQuery"], steps["mostKey"], strict=True))
    most = steps["most"] - steps["first"]
    assert dot == pytest.approx(steps["products"][most], abs=1e-4)
    assert steps["scaled"][most] == pytest.approx(dot / math.sqrt(D), abs=1e-4)
    assert found["map"][-len(tokens) :] == pytest.approx(steps["weights"], abs=1e-6)
    answer = network(torch.tensor([tokens]))[0, -1].softmax(-1)
    assert found["lens"][-1][0][0] == int(answer.argmax())
    assert found["lens"][-1][0][1] == pytest.approx(float(answer.max().detach()), abs=1e-5)
    assert len(found["lens"]) == config.n_layer + 1


def test_the_steps_have_the_names_of_the_course() -> None:
    script = asset("model_page/view/steps.js")
    places = [script.lower().find(f'"{name}",') for name in STEP_NAMES.values()]
    assert -1 not in places
    assert places == sorted(places)


def test_the_prompts_of_a_proof_fill_the_window(tmp_path: Path) -> None:
    for kind in KINDS:
        tokenizer = tokenizer_of(kind)
        texts = list(prompts(tokenizer, 16))
        lengths = [len(tokenizer.encode(text)) for text in texts]
        assert len(texts) == proof.PROMPTS
        assert max(lengths) > 16
        assert min(lengths) <= 1
        assert texts == list(prompts(tokenizer, 16))


def test_a_user_tokenizer_is_refused() -> None:
    from gptcli.pages.model_page.payload import _described
    from gptcli.tokenization.tokenizer import Tokenizer

    class Own(Tokenizer):
        kind, eot, pieces = "own", 0, [b"a"]  # type: ignore[assignment]
        encode = encode_array = to_json = None  # type: ignore[assignment]

    with pytest.raises(GptcliError, match="your own tokenizer"):
        _described(Own())  # type: ignore[abstract]


def test_a_tokenizer_with_another_split_is_refused() -> None:
    """A page splits texts by GPT-2's pattern.

    For a tokenizer with another pattern, the page would give wrong ids."""
    from gptcli.pages.model_page.payload import _described
    from tests.tokenization.test_tokenization_imported import ours

    with pytest.raises(GptcliError, match="does not split texts as GPT-2's does"):
        _described(ours("qwen3"))
