"""What `gptcli export` writes, refuses and prints. These tests need no other programs such as
transformers."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gptcli.errors import GptcliError
from gptcli.interop import export as exporting
from gptcli.interop import hugging_face, proof
from gptcli.interop.loss_curve import loss_curve
from gptcli.interop.model_card import _prompt, proof_sentence
from gptcli.interop.proof import Proof
from gptcli.tokenization.char import CharTokenizer
from tests.interop.models import KINDS, trained

TINY = (
    "train.max_steps=4", "model.n_layer=1", "model.n_head=2", "model.n_embd=16",
    "model.block_size=8",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let exports skip the proof with transformers, because it takes seconds."""
    nothing = Proof(None, (), "transformers is not installed")
    monkeypatch.setattr(proof, "hugging_face", lambda *_: nothing)


@pytest.mark.parametrize("arch", ["modern", "gpt2"])
def test_the_command_writes_a_folder(
    arch: str, cli: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = f"data.source={text_file}"
    assert cli("train", text, *TINY, f"model.arch={arch}", "--out", "runs/mine").code == 0
    outcome = cli("export", "mine", "--to", "hf")
    assert outcome.code == 0, outcome.err
    folder = tmp_path / "mine-huggingface"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "README.md", "config.json", "generation_config.json", "loss.svg", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert "Nothing was proven: transformers is not installed" in outcome.out
    assert ("raises an error for texts past" in outcome.out) == (arch == "gpt2")
    assert not list(tmp_path.glob(".*tmp"))
    card = (folder / "README.md").read_text("utf-8")
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert str(tmp_path) not in card
    assert f"`{text_file.name}`" in card
    assert "Nothing was proven" in card
    assert load_file(folder / "model.safetensors")
    again = cli("export", "mine", "--to", "hf")
    assert (again.code, "mine-huggingface exists" in again.err) == (2, True)
    told = json.loads(cli("export", "mine", "--out", "other", "--json").out)
    assert told["format"] == "huggingface"
    assert told["proven"] is False
    assert told["largest_difference"] is None
    assert set(told["files"]) == names
    assert bool(told["not_expressible"]) == (arch == "gpt2")


@pytest.mark.parametrize("package", ["gguf", "onnx"])
def test_a_missing_package_is_named(
    package: str, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptcli.cli.export.find_spec", lambda name: None)
    outcome = cli("export", "--to", package)
    assert outcome.code == 2
    assert f"needs the package {package}, which is not installed" in outcome.err
    assert f"hint: pip install {package}\n" in outcome.err


def test_other_formats_are_named(cli: Any) -> None:
    outcome = cli("export", "--to", "hugingface")
    assert outcome.code == 2
    assert "did you mean `huggingface`?" in outcome.err
    assert cli("export", "no-such-run").code == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", ["modern", "gpt2"])
def test_config_and_tokenizer_name_the_same_end_of_text(
    kind: str, arch: str, tmp_path: Path
) -> None:
    model = trained(tmp_path / "run", kind, arch=arch, n_layer=1, n_head=1, n_embd=8, block_size=4)
    folder = tmp_path / "out"
    folder.mkdir()
    hugging_face.write_folder(model, folder)
    config, generation, tokenizer = (
        json.loads((folder / name).read_text("utf-8"))
        for name in ("config.json", "generation_config.json", "tokenizer_config.json")
    )
    for stored in (config, generation):
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            assert stored[key] == model.tokenizer.eot
    assert ("eos_token" in tokenizer) == (model.tokenizer.eot is not None)
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    weights = load_file(folder / "model.safetensors")
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    assert config["vocab_size"] == model.tokenizer.vocab_size


def test_large_weights_are_written_in_shards(tmp_path: Path) -> None:
    model = trained(tmp_path / "run", "char", arch="modern", n_layer=2, n_head=1, n_embd=8)
    for name, limit in (("one", 1 << 30), ("many", 600)):
        (tmp_path / name).mkdir()
        hugging_face.write_folder(model, tmp_path / name, shard_bytes=limit)
    whole = load_file(tmp_path / "one" / "model.safetensors")
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text("utf-8"))
    files = set(index["weight_map"].values())
    assert len(files) > 3
    found: dict[str, torch.Tensor] = {}
    for file in files:
        shard = load_file(tmp_path / "many" / file)
        assert {index["weight_map"][name] for name in shard} == {file}
        found |= shard
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    total = sum(tensor.numel() * 4 for tensor in whole.values())
    assert index["metadata"]["total_size"] == total


def test_an_export_with_other_logits_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained(tmp_path / "run", "char", arch="modern", n_layer=1, n_head=1, n_embd=8)

    def wrong(trained: Any, folder: Path) -> Proof:
        return proof.prove(
            trained, lambda idx: trained.model(idx) + 0.01, "another 1.0", past_window=False
        )

    monkeypatch.setattr(proof, "hugging_face", wrong)
    with pytest.raises(GptcliError, match=r"another 1\.0 computes other logits") as error:
        exporting.export(model, "huggingface", tmp_path / "out")
    assert error.value.exit_code == 1
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_a_proof_compares_past_the_window(tmp_path: Path) -> None:
    model = trained(
        tmp_path / "run", "byte", arch="modern", n_layer=2, n_head=2, n_embd=8, block_size=6
    )

    def ours(idx: torch.Tensor) -> torch.Tensor:
        return proof.our_logits(model.model, idx)

    found = proof.prove(model, ours, "itself", past_window=True)
    assert found.largest_difference == 0.0
    assert max(found.lengths) > 6
    with pytest.raises(GptcliError):
        proof.prove(model, lambda idx: ours(idx) * math.nan, "nan", past_window=False)


def test_other_token_ids_are_refused(tmp_path: Path) -> None:
    tokenizer = trained(tmp_path, "byte", n_layer=1, n_head=1, n_embd=8).tokenizer
    proof.same_ids(tokenizer, lambda text: tokenizer.encode(text, allow_eot=True), "itself")
    with pytest.raises(GptcliError, match="other token ids"):
        proof.same_ids(tokenizer, lambda text: tokenizer.encode(text), "one without end-of-text")


def test_the_sentence_of_a_proof() -> None:
    sentence = proof_sentence(Proof(1.5e-6, (1, 2048), "transformers 9.9"))
    assert "transformers 9.9 read the export back" in sentence
    assert "1, 2,048 tokens" in sentence
    assert "at most 1.5e-06; the tokenizers give the same ids" in sentence


def test_the_sentence_of_a_proof_without_texts_says_nothing_of_tokenizers() -> None:
    sentence = proof_sentence(Proof(1.5e-6, (1,), "peft 9.9", texts=False), "import")
    assert sentence.endswith("at most 1.5e-06.")
    assert "tokenizers" not in sentence


@pytest.mark.parametrize(
    ("text", "prompt"), [("The end", "The"), ("12 ab", "a"), ("你好", "你"), ("1 + 2", " ")]
)
def test_the_card_has_a_prompt_for_every_alphabet(text: str, prompt: str, tmp_path: Path) -> None:
    model = trained(tmp_path, "byte", n_layer=1, n_head=1, n_embd=8)
    assert _prompt(replace(model, tokenizer=CharTokenizer.from_texts([text]))) == prompt


def test_the_curve_is_an_svg_inside_its_frame() -> None:
    train, val = [(1, 4.0), (10, 2.0), (20, 1.0)], [(10, 2.5), (20, 1.5)]
    root = ET.fromstring(loss_curve(train, val))
    lines = [line.attrib["points"] for line in root if line.tag.endswith("polyline")]
    assert [len(line.split()) for line in lines] == [3, 2]
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    for line in lines:
        for point in line.split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height
    assert ET.fromstring(loss_curve([(1, 2.0), (2, 2.0)], [])) is not None


def test_models_with_the_users_parts_are_refused(
    cli: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("from gptcli.model.attention import CausalSelfAttention\n", "utf-8")
    words = (f"data.source={text_file}", *TINY, "model.arch=gpt2", "--out", "runs/mine")
    assert cli("train", *words, "--attention", "mine.py").code == 0
    outcome = cli("export", "mine")
    assert outcome.code == 1
    assert "was trained with your own attention" in outcome.err
    assert not Path("mine-huggingface").exists()


def test_only_a_missing_package_is_to_be_installed() -> None:
    for reader, package in (
        ("transformers is not installed", "transformers"),
        ("llama.cpp (the package xllamacpp) is not installed", "xllamacpp"),
        ("llama.cpp gives no probabilities, because no token consists of ASCII letters", None),
        ("transformers cannot be imported: no module `yaml`", None),
    ):
        words = proof_sentence(Proof(None, (), reader))
        assert words.startswith(f"Nothing was proven: {reader}.")
        assert ("pip install" in words) == (package is not None)
        assert package is None or f"pip install {package};" in words


@pytest.mark.parametrize("format", ["huggingface", "gguf", "onnx"])
def test_a_full_disk_is_an_error_and_leaves_nothing(
    format: exporting.Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    pytest.importorskip("gguf" if format == "gguf" else "onnx" if format == "onnx" else "torch")
    model = trained(tmp_path / "run", "char")

    def full(*_: Any, **__: Any) -> None:
        if format == "huggingface":
            raise SafetensorError('Error while serializing: I/O error: "..." (os error 28)')
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hugging_face, "save_file", full)
    monkeypatch.setattr(exporting.gguf_file, "write_file", full)
    monkeypatch.setattr(exporting.onnx_folder, "write_folder", full)
    with pytest.raises(GptcliError) as raised:
        exporting.export(model, format, tmp_path / "out" / "x")
    assert "No space left on device" in raised.value.message
    assert raised.value.exit_code == 1
    assert "free some space" in raised.value.hint
    assert not (tmp_path / "out").exists()


def test_what_a_killed_export_left_is_deleted(tmp_path: Path) -> None:
    model = trained(tmp_path / "run", "char")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    abandoned = tmp_path / f".x.{ended.pid}.tmp"
    abandoned.mkdir()
    (abandoned / "model.safetensors").write_bytes(b"half")
    of_another = tmp_path / f".y.{ended.pid}.tmp"
    running = tmp_path / f".x.{os.getppid()}.tmp"
    for path in (of_another, running):
        path.write_bytes(b"half")
    exporting.export(model, "huggingface", tmp_path / "x")
    assert not abandoned.exists()
    assert of_another.exists()
    assert running.exists()


@pytest.mark.parametrize(
    ("out", "says"),
    [("file/x", "file is a file, not a folder"), ("/proc/x", "cannot be written")],
)
def test_a_place_that_cannot_be_written_is_no_full_disk(
    out: str, says: str, tmp_path: Path
) -> None:
    if not Path("/proc/self").exists():
        pytest.skip("needs /proc")
    (tmp_path / "file").write_text("")
    with pytest.raises(GptcliError) as raised:
        exporting.export(trained(tmp_path / "run", "char"), "huggingface", tmp_path / out)
    assert says in raised.value.message
    assert "space" not in raised.value.hint
    assert raised.value.exit_code == 2
