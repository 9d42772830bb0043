"""transformers loads exported models, and computes the same logits, greedy texts and token ids as
gptcli."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from gptcli.interop import export as exporting
from gptcli.interop import hugging_face, proof
from gptcli.sampling.generate import UniformNumbers
from gptcli.sampling.next_token import SamplingParams
from gptcli.sampling.torch_streams import TorchStreams
from tests.interop.models import KINDS, shape, trained

transformers = pytest.importorskip("transformers", reason="needs the extra `interop`")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # transformers causes warnings about its own code
]


def written(model: Any, folder: Path) -> Path:
    folder.mkdir()
    hugging_face.write_folder(model, folder)
    return folder


@pytest.mark.parametrize("arch", ["modern", "gpt2"])
@pytest.mark.parametrize("seed", range(10))
def test_random_shapes_give_the_same_logits(arch: str, seed: int, tmp_path: Path) -> None:
    model = trained(tmp_path / "run", KINDS[seed % 3], seed, **shape(seed, arch))
    done = exporting.export(model, "huggingface", tmp_path / "out")
    assert done.proof.largest_difference is not None
    assert done.proof.largest_difference <= 1e-4
    past = max(done.proof.lengths) > model.config.model.block_size
    assert past == (model.config.model.traits.model_type == "qwen3")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", ["modern", "gpt2"])
def test_greedy_texts_of_200_tokens_are_equal(kind: str, arch: str, tmp_path: Path) -> None:
    # The text of 200 tokens is longer than the window of `modern`.
    window = 48 if arch == "modern" else 256
    model = trained(
        tmp_path / "run", kind, 3, arch=arch, n_layer=2, n_head=2, n_embd=32, block_size=window
    )
    folder = written(model, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = model.tokenizer.encode("What is")
    idx = torch.tensor([prompt])
    found = theirs.generate(
        idx, attention_mask=torch.ones_like(idx), max_new_tokens=200, min_new_tokens=200,
        do_sample=False, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    streams = TorchStreams(model.model, 1, SamplingParams(0.0))
    streams.feed({0: prompt}, restart=True)
    ours = streams.run([0], [UniformNumbers(0, 0).take(200)])[0]
    assert found[0, len(prompt) :].tolist() == ours


SCRIPTS = (
    (0x20, 0x7E), (0xA0, 0x17F), (0x370, 0x3FF), (0x400, 0x4FF), (0x5D0, 0x5EA), (0x620, 0x64A),
    (0x900, 0x97F), (0xE01, 0xE3A), (0x3041, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3),
    (0x1F300, 0x1F64F),
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_token_ids_of_5000_strings_are_equal(kind: str, tmp_path: Path) -> None:
    model = trained(tmp_path / "run", kind, n_layer=1, n_head=1, n_embd=8, block_size=8)
    tokenizer = model.tokenizer
    theirs = transformers.AutoTokenizer.from_pretrained(written(model, tmp_path / "out"))
    rng = random.Random(5)
    letters = "".join(piece.decode("utf-8", "ignore") for piece in tokenizer.pieces[:400])
    texts = []
    for i in range(5000):
        low, high = SCRIPTS[i % len(SCRIPTS)]
        length = rng.randint(0, 30)
        if kind == "char":
            texts.append("".join(rng.choices(letters, k=length)))
        else:
            mixed = [*"  \n\t'sdon0123.,-", *(chr(rng.randint(low, high)) for _ in range(20))]
            texts.append("".join(rng.choices(mixed, k=length)))
    found = theirs(texts)["input_ids"]
    for text, ids in zip(texts, found, strict=True):
        assert list(ids) == tokenizer.encode(text, allow_eot=True), text
        assert theirs.decode(ids) == text


def test_the_proof_itself(tmp_path: Path) -> None:
    model = trained(tmp_path / "run", "char", n_layer=1, n_head=2, n_embd=16, block_size=8)
    found = proof.hugging_face(model, written(model, tmp_path / "out"))
    assert found.reader == f"transformers {transformers.__version__}"
