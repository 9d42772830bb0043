"""Models with tokenizers like those of Qwen3 and Llama 3: they can be imported, scored and exported
again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gptcli import load
from gptcli.interop import export as exporting
from gptcli.interop import llama_cpp
from gptcli.interop.imports import Import, import_model
from tests.tokenization.test_tokenization_imported import KINDS, strings, theirs

transformers = pytest.importorskip("transformers", reason="needs the extra `interop`")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def written(kind: str, folder: Path) -> Path:
    """Write a transformers model with random weights and a tokenizer like that of `kind`.

    Return its folder. The embedding has more rows than there are tokens."""
    tokenizer = theirs(kind)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    names: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if kind == "llama3":
        names["bos_token"] = "<|begin_of_text|>"
    (folder / "tokenizer_config.json").write_text(json.dumps(names), "utf-8")
    torch.manual_seed(3)
    sizes: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size() + 5,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 64,
    }
    config = (transformers.Qwen3Config if kind == "qwen3" else transformers.LlamaConfig)(**sizes)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 5  # with smaller weights, a greedy text would repeat a single token
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def imported(kind: str, tmp_path: Path) -> Import:
    return import_model(written(kind, tmp_path / "theirs"), tmp_path / "run")


@pytest.mark.parametrize("kind", KINDS)
def test_the_import_is_proven_and_scores_a_text_alike(
    kind: str, imported: Import, tmp_path: Path
) -> None:
    assert imported.proof.largest_difference is not None
    assert imported.proof.largest_difference <= 1e-4
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    ids = tokenizer("KING 12:\n What's").input_ids
    if kind != "llama3":  # the tokenizer of llama3 adds the begin-of-text token itself
        ids = [imported.trained.tokenizer.eot, *ids]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    expected = logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]]
    score = load(tmp_path / "run").score("KING 12:\n What's")
    assert score.ids == ids[1:]
    assert score.log_probabilities == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_exports_have_the_same_ids(kind: str, imported: Import, tmp_path: Path) -> None:
    done = exporting.export(imported.trained, "huggingface", tmp_path / "hf")
    assert done.proof.largest_difference is not None
    again = import_model(tmp_path / "hf", tmp_path / "again")
    for name in ("tokenizer.json", "config.yaml"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    for text in strings(1000):
        ids = tokenizer(text)["input_ids"]
        assert ids == [*again.trained.tokenizer.prefix, *again.trained.tokenizer.encode(text)]
    if llama_cpp.is_installed():
        done = exporting.export(imported.trained, "gguf", tmp_path / "out.gguf")
        assert done.proof.largest_difference is not None
    pytest.importorskip("onnxruntime", reason="needs the extra `interop`")
    done = exporting.export(imported.trained, "onnx", tmp_path / "onnx")
    assert done.proof.largest_difference is not None
