"""Exports for llama.cpp: the log-probabilities that llama.cpp computes, the perplexity with weights
in f16, bf16 and q8_0, the tensors in the files, and escaped tokens."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from gptcli.errors import GptcliError
from gptcli.interop import export as exporting
from gptcli.interop import gguf_file, llama_cpp, proof
from gptcli.interop.model_card import proof_sentence
from tests.conftest import TEXT
from tests.interop.models import KINDS, shape, trained

gguf = pytest.importorskip("gguf", reason="needs the extra `gguf`")
needs_llama_cpp = pytest.mark.skipif(
    not llama_cpp.is_installed(), reason="needs the extra `interop`"
)
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@needs_llama_cpp
@pytest.mark.parametrize("arch", ["modern", "gpt2"])
@pytest.mark.parametrize("seed", range(10))
def test_random_shapes_give_the_same_log_probabilities(
    arch: str, seed: int, tmp_path: Path
) -> None:
    kind = KINDS[seed % 4]
    model = trained(tmp_path / "run", kind, seed, **shape(seed, arch))
    done = exporting.export(model, "gguf", tmp_path / "out.gguf")
    assert done.files == ("out.gguf",)
    assert done.proof.largest_difference is not None
    # The limit of gpt2 is larger, because llama.cpp computes GELU with a table of 16-bit numbers.
    limit = 1e-4 if arch == "modern" else 0.02
    assert done.proof.largest_difference <= limit
    assert "xllamacpp" in proof_sentence(done.proof)
    assert done.not_expressible


@needs_llama_cpp
@pytest.mark.parametrize("arch", ["modern", "gpt2"])
@pytest.mark.parametrize(("type_name", "most"), [("f16", 0.005), ("bf16", 0.03), ("q8_0", 0.02)])
def test_perplexity_in_shorter_types(
    arch: str, type_name: str, most: float, tmp_path: Path
) -> None:
    """The last tokens of many windows have about the same perplexity in llama.cpp as in gptcli."""
    model = trained(
        tmp_path / "run", "byte", 2, arch=arch, n_layer=2, n_head=2, n_embd=64, block_size=32
    )
    path = tmp_path / "m.gguf"
    gguf_file.write_file(model, path, type_name)
    ids = model.tokenizer.encode(TEXT)
    windows = [ids[i : i + 25] for i in range(0, 60 * 20, 20)]
    letter = ord("a")
    answer = llama_cpp.ask(path, [w[:-1] for w in windows], [], 257, letter)
    assert answer is not None
    theirs = ours = 0.0
    for window, found in zip(windows, answer.log_probabilities, strict=True):
        logits = proof.our_logits(model.model, torch.tensor([window[:-1]]))[0, -1]
        ours -= float(torch.log_softmax(logits.double(), -1)[window[-1]])
        theirs -= found[window[-1]]
    assert math.exp((theirs - ours) / len(windows)) == pytest.approx(1.0, abs=most)


@pytest.mark.parametrize("type_name", gguf_file.TYPES)
@pytest.mark.parametrize("arch", ["modern", "gpt2"])
def test_all_tensors_read_back(arch: str, type_name: str, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"n_layer": 2, "n_head": 3, "n_embd": 36, "block_size": 8}
    model = trained(tmp_path / "run", "char", arch=arch, **sizes)
    path = tmp_path / "m.gguf"
    gguf_file.write_file(model, path, type_name)
    proof._same_tensors(model, path, type_name)
    with torch.no_grad():
        model.model.h[1].ln_1.weight[0] += 1.0
    with pytest.raises(GptcliError, match="reads back with an error"):
        proof._same_tensors(model, path, type_name)


@pytest.mark.parametrize(
    ("piece", "text"),
    [
        (b"a", "a"), (b"\n", "\\n"), (b"\\", "\\\\"), (b"\x00", "\\x00"), (b"\xff", "\\xff"),
        ("é".encode(), "é"), ("🙂".encode(), "🙂"),
    ],
)  # fmt: skip
def test_tokens_of_characters_and_bytes_are_escaped(piece: bytes, text: str) -> None:
    assert gguf_file._escaped(piece) == text
