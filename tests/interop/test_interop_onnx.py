"""onnxruntime runs exported models, and gives the same logits and greedy texts, however the
key/value cache is used."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gptcli.errors import GptcliError
from gptcli.interop import export as exporting
from gptcli.interop import onnx_folder, proof
from gptcli.interop.model_card import proof_sentence
from gptcli.sampling.generate import UniformNumbers
from gptcli.sampling.next_token import SamplingParams
from gptcli.sampling.torch_streams import TorchStreams
from tests.interop.models import KINDS, shape, trained

onnx = pytest.importorskip("onnx", reason="needs the extra `interop`")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra `interop`")
pytestmark = pytest.mark.slow

# These two modules import onnx and onnxruntime, so the packages must be checked first.
from gptcli.interop import onnx_graph, onnx_runtime  # noqa: E402

SMALL: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 12}


def written(model: Any, folder: Path) -> Path:
    folder.mkdir()
    onnx_folder.write_folder(model, folder)
    return folder


def cached(folder: Path) -> Any:
    return onnx_runtime.CachedModel(folder / onnx_folder.WITH_CACHE)


def fed(model: Any, idx: torch.Tensor, sizes: list[int], keep: int | None = None) -> torch.Tensor:
    """The logits (B, T, V) that the model with a cache computes for the texts `idx` (B, T).

    The model reads the texts in pieces of `sizes` tokens. With `keep`, only the newest `keep`
    tokens stay in the cache."""
    model.clear(len(idx))
    found, start = [], 0
    for size in sizes:
        positions = torch.arange(start, start + size).expand(len(idx), -1)
        piece = idx[:, start : start + size]
        found.append(model.feed(piece, positions, torch.ones_like(piece)))
        if keep is not None:
            model.keep(keep)
        start += size
    assert start == idx.shape[1]
    return torch.cat(found, dim=1)


@torch.no_grad()
def ours(model: Any, idx: torch.Tensor) -> torch.Tensor:
    return torch.cat([proof.our_logits(model.model, text[None]) for text in idx])


def texts(model: Any, *size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, model.tokenizer.vocab_size, size, generator=generator)


def close(found: torch.Tensor, wanted: torch.Tensor, most: float = 1e-4) -> bool:
    return found.shape == wanted.shape and float((found - wanted).abs().max()) <= most


@pytest.mark.parametrize("arch", ["modern", "gpt2"])
@pytest.mark.parametrize("seed", range(10))
def test_random_shapes_give_the_same_logits(arch: str, seed: int, tmp_path: Path) -> None:
    model = trained(tmp_path / "run", KINDS[seed % 3], seed, **shape(seed, arch))
    done = exporting.export(model, "onnx", tmp_path / "out")
    assert done.proof.largest_difference is not None
    # This limit is higher than usual, because in some models head_dim is only 2.
    assert done.proof.largest_difference <= 3e-4
    past = max(done.proof.lengths) > model.config.model.block_size
    assert past == (arch == "modern")
    assert f"onnxruntime {onnxruntime.__version__} read" in proof_sentence(done.proof)
    for name in ("onnx/model.onnx", "onnx/model_without_cache.onnx"):
        file = onnx.load(tmp_path / "out" / name)
        onnx.checker.check_model(file, full_check=True)
        assert [(one.domain, one.version) for one in file.opset_import] == [("", 18)]


@pytest.mark.parametrize("arch", ["modern", "gpt2"])
def test_every_length_and_batch_without_a_cache(arch: str, tmp_path: Path) -> None:
    model = trained(tmp_path / "run", "byte", arch=arch, **SMALL)
    file = onnx_runtime.TextModel(written(model, tmp_path / "out") / onnx_folder.WITHOUT_CACHE)
    for length in [1, 2, 5, 11, 12] + ([13, 40] if arch == "modern" else []):
        for batch in (1, 3):
            idx = texts(model, batch, length)
            assert close(file.logits(idx), ours(model, idx)), (length, batch)


@pytest.mark.parametrize("arch", ["modern", "gpt2"])
def test_every_use_of_the_cache(arch: str, tmp_path: Path) -> None:
    model = trained(tmp_path / "run", "char", arch=arch, **SMALL)
    file = cached(written(model, tmp_path / "out"))
    length = 40 if arch == "modern" else 12
    for batch in (1, 3):
        idx = texts(model, batch, length)
        wanted = ours(model, idx)
        for sizes in ([length], [1] * length, [5, length - 5], [7, 1, 1, length - 9]):
            # If the caller keeps 11 tokens, it drops only keys and values that no later token can
            # attend to.
            for keep in (None, 100, 11):
                assert close(fed(file, idx, sizes, keep), wanted), (batch, sizes, keep)
    # 10 tokens are one too few: the caller drops a token to which the next token still attends.
    if arch == "modern":
        assert not close(fed(file, idx, [1] * length, 10), wanted)


@pytest.mark.parametrize("arch", ["modern", "gpt2"])
def test_padding_changes_nothing(arch: str, tmp_path: Path) -> None:
    model = trained(tmp_path / "run", "byte", arch=arch, **SMALL)
    file = cached(written(model, tmp_path / "out"))
    idx = texts(model, 2, 12)
    mask = torch.ones_like(idx)
    mask[1, :5] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    file.clear(2)
    parts = [file.feed(*(part[:, a:b] for part in (idx, positions, mask))) for a, b in
             ((0, 7), (7, 8), (8, 12))]  # fmt: skip
    found = torch.cat(parts, dim=1)
    assert found.isfinite().all()
    assert close(found[:1], ours(model, idx[:1]))
    assert close(found[1:, 5:], ours(model, idx[1:, 5:]))


def test_late_positions_are_as_exact_as_early_ones(tmp_path: Path) -> None:
    model = trained(tmp_path / "run", "byte", arch="modern", **SMALL | {"n_embd": 64})
    file = cached(written(model, tmp_path / "out"))
    idx = texts(model, 1, 12)
    for first in (0, 10_000, 1_000_000, (1 << 25) - 12):
        file.clear(1)
        found = file.feed(idx, torch.arange(first, first + 12)[None], torch.ones_like(idx))
        assert close(found, ours(model, idx), 2e-5), first


def test_learned_positions_end_at_the_context_length(tmp_path: Path) -> None:
    model = trained(tmp_path / "run", "byte", arch="gpt2", **SMALL)
    folder = written(model, tmp_path / "out")
    file = onnx_runtime.TextModel(folder / onnx_folder.WITHOUT_CACHE)
    with pytest.raises(Exception, match="out of data bounds"):
        file.logits(texts(model, 1, 13))


def program(folder: Path, tokens: int, temperature: float) -> str:
    """The Python program in the card of an export, with this number of tokens and temperature."""
    (found,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.S)
    for old, new in (
        ('"THIS FOLDER"', repr(str(folder))),
        ("range(100)", f"range({tokens})"),
        ("temperature = 0.8", f"temperature = {temperature}"),
    ):
        assert found.count(old) == 1
        found = found.replace(old, new)
    return str(found)


def greedy(model: Any, prompt: list[int], tokens: int) -> list[int]:
    streams = TorchStreams(model.model, 1, SamplingParams(0.0))
    streams.feed({0: prompt}, restart=True)
    found: list[int] = streams.run([0], [UniformNumbers(0, 0).take(tokens)])[0]
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", ["modern", "gpt2"])
def test_the_program_of_the_card_writes_the_same_200_tokens(
    kind: str, arch: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The text of 200 tokens is longer than the window of 48 tokens."""
    model = trained(tmp_path / "run", kind, 3, arch=arch, n_layer=2, n_head=2, n_embd=32,
                    block_size=48)  # fmt: skip
    folder = tmp_path / "out"
    exporting.export(model, "onnx", folder)
    found: dict[str, Any] = {}
    exec(program(folder, 200, 1e-6), found)
    (prompt,) = re.findall(r"encode\((.+)\)\.ids", program(folder, 200, 1e-6))
    ids = model.tokenizer.encode(eval(prompt))
    assert found["ids"] == ids + greedy(model, ids, 200)
    assert capsys.readouterr().out


def test_the_program_of_the_card_needs_neither_gptcli_nor_torch(tmp_path: Path) -> None:
    model = trained(tmp_path / "run", "bpe", arch="modern", **SMALL)
    exporting.export(model, "onnx", tmp_path / "out")
    code = program(tmp_path / "out", 20, 0.8)
    code += "\nimport sys\nprint(len(ids), {'gptcli', 'torch'} & set(sys.modules))\n"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"{len(model.tokenizer.encode('The')) + 20} set()\n")


@pytest.mark.parametrize("arch", ["modern", "gpt2"])
def test_large_weights_are_written_beside_the_graph(arch: str, tmp_path: Path) -> None:
    model = trained(tmp_path / "run", "gpt2", arch=arch, **SMALL)
    folder = tmp_path / "out"
    folder.mkdir()
    onnx_folder.write_folder(model, folder, external_bytes=100_000)
    names = {path.name for path in (folder / "onnx").iterdir()}
    assert names == {
        "model.onnx", "model.onnx_data", "model_without_cache.onnx", "model_without_cache.onnx_data"
    }  # fmt: skip
    assert (folder / "onnx" / "model.onnx").stat().st_size < 100_000
    assert (folder / "onnx" / "model.onnx_data").stat().st_size > 50_000 * 16 * 4
    settings = json.loads((folder / "config.json").read_text("utf-8"))["transformers.js_config"]
    assert settings == {"dtype": "fp32", "use_external_data_format": {"model.onnx": 1}}
    found = proof.onnx(model, folder)
    assert found.largest_difference is not None


def test_a_tied_head_is_stored_once(tmp_path: Path) -> None:
    model = trained(tmp_path / "run", "gpt2", arch="gpt2", **SMALL)
    folder = written(model, tmp_path / "out")
    assert (folder / onnx_folder.WITH_CACHE).stat().st_size < 50_257 * 16 * 4 * 1.2


@pytest.mark.parametrize(("name", "value"), [("_TURN", 1 << 8), ("_NEVER", 0.0)])
def test_a_wrong_export_is_not_kept(
    name: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained(tmp_path / "run", "byte", arch="modern", **SMALL)
    monkeypatch.setattr(onnx_graph, name, value)
    with pytest.raises(GptcliError, match="computes other logits") as error:
        exporting.export(model, "onnx", tmp_path / "out")
    assert error.value.exit_code == 1
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


@pytest.mark.parametrize("way", ["in_one_call", "in_pieces", "in_batch"])
def test_the_proof_compares_each_use_of_the_cache(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained(tmp_path / "run", "byte", arch="modern", **SMALL)
    right = getattr(onnx_runtime.CachedModel, way)
    monkeypatch.setattr(onnx_runtime.CachedModel, way, lambda *words: right(*words) + 0.01)
    with pytest.raises(GptcliError, match="computes other logits"):
        proof.onnx(model, written(model, tmp_path / "out"))


def test_a_file_that_breaks_the_rules_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained(tmp_path / "run", "byte", arch="gpt2", **SMALL)
    monkeypatch.setattr(onnx_graph, "OPSET", 9)  # opset 9 has no LayerNormalization
    with pytest.raises(GptcliError, match="breaks a rule of ONNX") as error:
        exporting.export(model, "onnx", tmp_path / "out")
    assert "\n" not in error.value.message
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_a_file_that_onnxruntime_cannot_load_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained(tmp_path / "run", "byte", arch="gpt2", **SMALL)
    monkeypatch.setattr(onnx_graph, "OPSET", 9)
    monkeypatch.setattr(proof, "_valid_onnx", lambda folder: None)
    with pytest.raises(GptcliError, match=r"onnxruntime .* cannot load it: .*Range") as error:
        exporting.export(model, "onnx", tmp_path / "out")
    assert "\n" not in error.value.message
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_without_onnxruntime_nothing_is_proven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained(tmp_path / "run", "byte", arch="modern", **SMALL)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    done = exporting.export(model, "onnx", tmp_path / "out")
    assert done.proof.largest_difference is None
    assert proof_sentence(done.proof) == (
        "Nothing was proven: onnxruntime is not installed. For a proof: pip install onnxruntime; "
        "export again."
    )
    assert "Nothing was proven" in (tmp_path / "out" / "README.md").read_text("utf-8")


def test_an_export_leaves_the_process_as_it_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = trained(tmp_path / "run", "byte", arch="modern", **SMALL)
    before = {name: weight.clone() for name, weight in model.model.named_parameters()}
    threads = torch.get_num_threads()
    exporting.export(model, "onnx", tmp_path / "out")
    assert capfd.readouterr() == ("", "")
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()
    assert not model.model.training
    assert all(weight.requires_grad for weight in model.model.parameters())
    assert all(torch.equal(before[name], one) for name, one in model.model.named_parameters())


def test_inputs_and_outputs_have_the_names_of_optimum(tmp_path: Path) -> None:
    model = trained(tmp_path / "run", "byte", arch="modern", **SMALL)
    folder = written(model, tmp_path / "out")
    session = onnx_runtime.session(folder / onnx_folder.WITH_CACHE)
    inputs = {put.name: put.shape for put in session.get_inputs()}
    assert list(inputs)[:3] == ["input_ids", "attention_mask", "position_ids"]
    assert inputs["past_key_values.1.value"] == ["batch_size", 2, "past_sequence_length", 8]
    names = [out.name for out in session.get_outputs()]
    assert names == [
        "logits", "present.0.key", "present.0.value", "present.1.key", "present.1.value"
    ]  # fmt: skip
    session = onnx_runtime.session(folder / onnx_folder.WITHOUT_CACHE)
    (put,), (out,) = session.get_inputs(), session.get_outputs()
    assert (put.name, put.shape) == ("input_ids", ["batch_size", "sequence_length"])
    assert (out.name, out.shape) == ("logits", ["batch_size", "sequence_length", 257])
    assert (put.type, out.type) == ("tensor(int64)", "tensor(float)")


def test_the_command(
    cli: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("train.max_steps=4", "model.n_layer=1", "model.n_head=2", "model.n_embd=16")
    assert cli("train", f"data.source={text_file}", *words, "--out", "runs/mine").code == 0
    outcome = cli("export", "mine", "--to", "onnx")
    assert outcome.code == 0, outcome.err
    first, second, third = outcome.out.splitlines()
    assert first == (
        "wrote mine-onnx: README.md, config.json, generation_config.json, loss.svg, "
        "onnx/model.onnx, onnx/model_without_cache.onnx, tokenizer.json, tokenizer_config.json"
    )
    assert "read the export back" in second
    assert third == (
        "The ONNX files compute logits. The program that runs them chooses the next token."
    )
    card = (tmp_path / "mine-onnx" / "README.md").read_text("utf-8")
    assert card.startswith("---\nlibrary_name: transformers.js\n")
    assert second in card
    assert third in card
    assert str(tmp_path) not in card
    told = json.loads(cli("export", "mine", "--to", "onnxruntime", "--out", "b", "--json").out)
    assert told["format"] == "onnx"
    assert told["proven"] is True
    assert told["largest_difference"] < 1e-3
    assert told["not_expressible"] == [third]
    assert "onnx/model.onnx" in told["files"]
    assert cli("export", "mine", "--to", "onnx", "--type", "f16").code == 2
    assert not list(tmp_path.glob(".*tmp"))
