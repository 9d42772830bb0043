"""The import of peft's LoRA adapters: exported adapters can be imported again, and refused ones get
an error with the reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gptcli.errors import GptcliError
from gptcli.interop import proof
from gptcli.interop.adapter_folder import SETTINGS, WEIGHTS
from gptcli.interop.adapter_import import import_adapter
from gptcli.interop.proof import Proof
from gptcli.training import checkpoint

SMALL = (
    "model.n_layer=2", "model.n_head=2", "model.n_embd=32", "model.block_size=32",
    "train.batch_size=4", "run.dtype=float32", "train.eval_every=30",
)  # fmt: skip
PREFIX = "base_model.model."


@pytest.fixture
def unproven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let import and export skip their proof, as on a machine without transformers and peft."""
    nothing = Proof(None, (), "transformers is not installed")
    for name in ("hugging_face", "adapter"):
        monkeypatch.setattr(proof, name, lambda *_, **__: nothing)


@pytest.fixture
def base(cli: Any, text_file: Path, tmp_path: Path) -> Any:
    """base("gpt2") trains a run with this arch, as the base of fine-tuning. Returns its path."""

    def make(arch: str) -> Path:
        run = tmp_path / "base"
        words = (f"model.arch={arch}", "train.max_steps=10", f"data.source={text_file}")
        assert cli("train", "tiny", *SMALL, *words, "--out", run).code == 0
        return run

    return make


@pytest.fixture
def exported(cli: Any, base: Any, text_file: Path, tmp_path: Path) -> Any:
    """exported("gpt2", "train.lora.rank=4") returns the folders of a base and of an export.

    Trains the base, fine-tunes it with these overrides, and exports the fine-tuned run."""

    def make(arch: str, *overrides: str) -> tuple[Path, Path]:
        origin, run, out = base(arch), tmp_path / "tuned", tmp_path / "export"
        words = ("--from", origin, "train.max_steps=4", *overrides, "--out", run)
        tuned = cli("train", text_file, *words)
        assert tuned.code == 0, tuned.err
        assert cli("export", run, "--checkpoint", "4", "--out", out).code == 0
        return origin, out

    return make


@pytest.mark.usefixtures("unproven")
@pytest.mark.parametrize(
    ("arch", "overrides"),
    [
        ("modern", ("train.lora={rank: 3, alpha: 7.5, dropout: 0.25}",)),
        ("modern", ("train.lora.targets=attn.key,mlp.up_proj", "train.lora.embeddings=false")),
        ("gpt2", ("train.lora={rank: 2, embeddings: true}",)),
        ("gpt2", ("train.lora={rank: 2, targets: [attn.query, attn.value], embeddings: false}",)),
        ("gpt2", ("train.lora={rank: 2, targets: [attn.key, mlp.c_fc]}",)),
    ],
)
def test_an_export_of_an_import_gives_the_same_files(
    arch: str, overrides: tuple[str, ...], cli: Any, exported: Any, tmp_path: Path
) -> None:
    origin, out = exported(arch, *overrides)
    run, again = tmp_path / "imported", tmp_path / "again"
    outcome = cli("import", out / "adapter", "--base", origin, "--out", run)
    assert outcome.code == 0, outcome.err
    assert f"imported {run}: " in outcome.out
    assert cli("export", run, "--out", again).code == 0
    for name in ("model.safetensors", f"adapter/{SETTINGS}", f"adapter/{WEIGHTS}"):
        assert (again / name).read_bytes() == (out / name).read_bytes()
    # The imported run has the weights of the fine-tuned run, and commands use it like any other
    # run.
    ours, _ = checkpoint.best_valid(run)
    tuned = checkpoint.load(tmp_path / "tuned", 4)
    assert all(torch.equal(weight, ours.model[name]) for name, weight in tuned.model.items())
    assert cli("sample", run, "-n", "4").code == 0
    assert cli("export", run, "--merge", "--out", tmp_path / "merged").code == 0
    refused = cli("import", out / "adapter", "--base", origin, "--out", run)
    assert refused.code == 2
    assert "exists already" in refused.err


@pytest.mark.usefixtures("unproven")
def test_a_layer_that_peft_trained_as_one_is_taken_apart(base: Any, tmp_path: Path) -> None:
    """peft adapts GPT-2's c_attn as one layer: query, key and value share one matrix A.

    The scale in this adapter is that of rank-stabilised LoRA."""
    origin, folder = base("gpt2"), tmp_path / "adapter"
    generator = torch.Generator().manual_seed(1)
    folder.mkdir()
    tensors: dict[str, Tensor] = {}
    changes = []
    for block in range(2):
        A, B = (torch.randn(shape, generator=generator) for shape in ((4, 32), (96, 4)))
        layer = f"{PREFIX}transformer.h.{block}.attn.c_attn"
        tensors |= {f"{layer}.lora_A.weight": A, f"{layer}.lora_B.weight": B}
        changes.append(3.0 / 4**0.5 * B @ A)
    save_file(tensors, folder / WEIGHTS)
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 3, "use_rslora": True, "bias": "none"}
    (folder / SETTINGS).write_text(json.dumps(settings))
    import_adapter(folder, origin, tmp_path / "run")
    before, _ = checkpoint.best_valid(origin)
    after, _ = checkpoint.best_valid(tmp_path / "run")
    for block, change in enumerate(changes):
        for part, rows in zip(("query", "key", "value"), change.chunk(3), strict=True):
            name = f"h.{block}.attn.{part}.weight"
            torch.testing.assert_close(after.model[name], before.model[name] + rows)
    same = [name for name in before.model if ".attn." not in name or "c_proj" in name]
    assert all(torch.equal(before.model[name], after.model[name]) for name in same)


def without_block(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if "layers.1.self_attn.q" not in name}


def with_tensor(name: str, *shape: int) -> Any:
    return lambda tensors: {**tensors, f"{PREFIX}{name}": torch.ones(shape)}


def first_wider(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    name = f"{PREFIX}model.layers.0.self_attn.q_proj.lora_A.weight"
    return {**tensors, name: torch.cat([tensors[name], tensors[name]], dim=1)}


@pytest.mark.usefixtures("unproven")
def test_what_cannot_be_held_is_refused_by_name(cli: Any, exported: Any, tmp_path: Path) -> None:
    origin, out = exported("modern", "train.lora={rank: 2, embeddings: false}")
    folder, run = tmp_path / "changed", tmp_path / "no"
    cases: list[tuple[dict[str, Any], Any, str]] = [
        ({"use_dora": True}, None, "`use_dora: true` (DoRA)"),
        ({"bias": "all"}, None, "`bias: all` trains biases"),
        ({"bias": "lora_only"}, None, "`bias: lora_only`"),
        ({"lora_bias": True}, None, "`lora_bias` is set"),
        ({"peft_type": "IA3"}, None, "`peft_type` is IA3"),
        ({"init_lora_weights": "pissa"}, None, "`init_lora_weights: pissa` changes the base"),
        ({"target_parameters": ["x"]}, None, "`target_parameters` is set"),
        ({"a_key_of_tomorrow": 3}, None, "`a_key_of_tomorrow` is set"),
        ({"r": 0}, None, "`r` is not a number above 0"),
        ({"lora_alpha": "16"}, None, "`lora_alpha` is not a number above 0"),
        ({"lora_dropout": 1}, None, "`lora_dropout` is not a number"),
        ({"r": 3}, None, "q_proj has rank 2, and adapter_config.json says 3"),
        ({"alpha_pattern": {"self_attn.q_proj": 5}}, None, "several ranks or scales"),
        ({"rank_pattern": {"^model.*": 5}}, None, "`rank_pattern` holds regular expressions"),
        ({}, without_block, "it changes attn.query in some blocks only"),
        ({}, with_tensor("lm_head.lora_A.weight", 2, 32), "`lm_head.lora_A.weight` is not an"),
        ({}, with_tensor("lm_head.weight", 3, 32), "lm_head has another shape"),
        ({}, first_wider, "is for a matrix of another shape"),
        (
            {},
            with_tensor("model.layers.0.self_attn.q_proj.lora_magnitude_vector.weight", 32),
            "lora_magnitude_vector.weight` is not an adapter",
        ),
    ]  # fmt: skip
    for settings, change, said in cases:
        shutil.copytree(out / "adapter", folder)
        path = folder / SETTINGS
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
        if change is not None:
            save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)
        with pytest.raises(GptcliError) as refused:
            import_adapter(folder, origin, run)
        assert said in refused.value.message, said
        assert "merge_and_unload" in refused.value.hint
        assert not run.exists()
        shutil.rmtree(folder)


@pytest.mark.usefixtures("unproven")
def test_wrong_files_and_wrong_bases(
    cli: Any, exported: Any, text_file: Path, tmp_path: Path
) -> None:
    origin, out = exported("modern", "train.lora.rank=2")
    adapter, run = out / "adapter", tmp_path / "no"

    def refused(*words: Any) -> str:
        outcome = cli("import", *words, "--out", run)
        assert outcome.code == 2
        assert not run.exists()
        return str(outcome.err)

    assert f"gptcli import {adapter} --base RUN" in refused(adapter)
    assert "leave --tokenizer" in refused(adapter, "--base", origin, "--block-size", "8")
    assert "has no adapter_config.json" in refused(out, "--base", origin)
    assert "was trained on another model than" in refused(adapter, "--base", tmp_path / "tuned")
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    assert "has no adapter_model.safetensors" in refused(adapter, "--base", origin)
    (adapter / WEIGHTS).write_bytes(b"\x10" * 64)
    assert "cannot be read" in refused(adapter, "--base", origin)
    (adapter / SETTINGS).write_text("[1]")
    assert "is not a JSON object" in refused(adapter, "--base", origin)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # transformers and peft cause warnings about their own code
@pytest.mark.parametrize("arch", ["modern", "gpt2"])
def test_an_adapter_that_peft_saved_computes_the_same(
    arch: str, cli: Any, base: Any, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="needs the extra `interop`")
    transformers = pytest.importorskip("transformers")
    origin, out, folder = base(arch), tmp_path / "hf", tmp_path / "saved"
    assert cli("export", origin, "--out", out).code == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    layers = ["c_attn"] if arch == "gpt2" else ["q_proj", "v_proj", "down_proj"]
    settings = peft.LoraConfig(r=4, lora_alpha=10, target_modules=layers, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, settings).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(folder)
    run, merged = tmp_path / "run", tmp_path / "merged"
    outcome = cli("import", folder, "--base", origin, "--out", run, "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["proven"] is True
    assert cli("export", run, "--merge", "--out", merged).code == 0
    ours = transformers.AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    idx = torch.randint(0, model.config.vocab_size, (2, 32), generator=torch.Generator())
    with torch.no_grad():
        assert (ours(idx).logits - adapted(idx).logits).abs().max() <= 1e-5
