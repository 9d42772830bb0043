"""The export of a run with low-rank adapters: its files, and what peft computes from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gptcli.config import Config, LoraConfig, ModelConfig, TrainConfig
from gptcli.interop import adapter_folder, proof
from gptcli.interop.layouts import to_hugging_face
from gptcli.interop.proof import Proof
from gptcli.model.gpt import GPT
from gptcli.training import checkpoint

ARCHS = ("modern", "gpt2")
SMALL = (
    "model.n_layer=2", "model.n_head=2", "model.n_embd=32", "model.block_size=32",
    "train.batch_size=4", "run.dtype=float32", "train.eval_every=30",
)  # fmt: skip
# The base's words in another order, so that fine-tuning clearly changes the weights.
OTHER = "comes this night by what light, that voice is burns " * 60


@pytest.fixture
def tuned(cli: Any, text_file: Path, tmp_path: Path) -> Any:
    """tuned("gpt2", "train.lora.rank=4") returns the path of a fine-tuned run.

    Trains a base, and fine-tunes it with adapters."""

    def make(arch: str, *overrides: str) -> Path:
        base, run, text = tmp_path / "base", tmp_path / "tuned", tmp_path / "other.txt"
        text.write_text(OTHER, encoding="utf-8")
        words = (f"model.arch={arch}", "train.max_steps=30", f"data.source={text_file}")
        assert cli("train", "tiny", *SMALL, *words, "--out", base).code == 0
        outcome = cli(
            "train", text, "--from", base, "train.max_steps=30",
            "train.keep_checkpoints=2", *overrides, "--out", run,
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
        return run

    return make


# ---- without peft ------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("arch", ARCHS)
def test_the_files_hold_a_trained_embedding_and_head(arch: Any, tied: bool) -> None:
    """peft stores the trained embedding and the trained head separately, even if the head is tied
    to the embedding."""
    model = ModelConfig(
        arch=arch, n_layer=1, n_head=2, n_embd=16, block_size=8,
        tied_head=None if arch == "gpt2" else tied,
    )  # fmt: skip
    config = Config(model=model, train=TrainConfig(lora=LoraConfig(rank=2, embeddings=True)))
    weights = dict(GPT(model, 11).named_parameters())
    adapters = {
        name: weights[name].detach() for name in ("wte.weight", "lm_head.weight") if name in weights
    }
    layer = "h.0.attn.query"
    adapters |= {f"{layer}.lora_A": torch.ones(2, 16), f"{layer}.lora_B": torch.ones(16, 2)}
    embed = "transformer.wte" if arch == "gpt2" else "model.embed_tokens"
    settings = adapter_folder.peft_config(config, adapters)
    assert settings["modules_to_save"] == [embed.rpartition(".")[2], "lm_head"]
    tensors = adapter_folder.peft_tensors(config, adapters)
    theirs = to_hugging_face(model, weights)
    for name in (f"{embed}.weight", "lm_head.weight"):
        found = tensors.pop(f"base_model.model.{name}")
        assert torch.equal(found, theirs.get(name, theirs[f"{embed}.weight"]))
    assert len(tensors) == 2  # only A and B of the adapted layer remain
    assert len({tensor.data_ptr() for tensor in tensors.values()}) == 2


@pytest.mark.parametrize(
    "targets", [["all"], ["attention"], ["attn.key"], ["attn.query", "attn.value", "mlp.c_proj"]]
)
@pytest.mark.parametrize("arch", ARCHS)
def test_the_files_hold_exactly_the_change_of_each_matrix(arch: Any, targets: list[str]) -> None:
    if arch == "modern":
        targets = [name.replace("mlp.c_proj", "mlp.down_proj") for name in targets]
    shared = {"n_kv_head": 2} if arch == "modern" else {}
    model = ModelConfig(arch=arch, n_layer=2, n_head=4, n_embd=16, block_size=8, **shared)
    config = Config(
        model=model, train=TrainConfig(lora=LoraConfig(rank=2, alpha=6.0, targets=targets))
    )
    assert config.train.lora is not None
    wanted = config.train.lora.names(model.traits)
    generator = torch.Generator().manual_seed(1)
    adapters: dict[str, Tensor] = {}
    changes: dict[str, Tensor] = {}
    for name, weight in GPT(model, 11).named_parameters():
        changes[name] = torch.zeros_like(weight)
        layer = name.removesuffix(".weight")
        if layer.split(".", 2)[-1] in wanted:
            B = torch.randn(weight.shape[0], 2, generator=generator)
            A = torch.randn(2, weight.shape[1], generator=generator)
            adapters |= {f"{layer}.lora_B": B, f"{layer}.lora_A": A}
            changes[name] = 3.0 * B @ A
    theirs = to_hugging_face(model, changes)
    tensors = adapter_folder.peft_tensors(config, adapters)
    settings = adapter_folder.peft_config(config, adapters)
    for name, change in theirs.items():
        layer = name.removesuffix(".weight")
        A = tensors.pop(f"base_model.model.{layer}.lora_A.weight", None)
        if A is None:
            assert not change.any()
            continue
        B = tensors.pop(f"base_model.model.{layer}.lora_B.weight")
        short = next(target for target in settings["target_modules"] if layer.endswith(target))
        rank = settings["rank_pattern"].get(short, settings["r"])
        alpha = settings["alpha_pattern"].get(short, settings["lora_alpha"])
        assert A.shape[0] == B.shape[1] == rank
        found = alpha / rank * B @ A
        torch.testing.assert_close(found.T if settings["fan_in_fan_out"] else found, change)
    assert not tensors


def test_the_command_writes_base_and_adapter_or_merges(
    cli: Any, tuned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = Proof(None, (), "transformers is not installed")
    monkeypatch.setattr(proof, "hugging_face", lambda *_: nothing)
    run, out, merged = tuned("gpt2", "train.lora.rank=4"), tmp_path / "out", tmp_path / "merged"
    outcome = cli("export", run, "--out", out, "--json")
    assert outcome.code == 0, outcome.err
    written = json.loads(outcome.out)
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} < {
        *written["files"]
    }
    assert written["proven"] is False
    assert cli("export", run, "--merge", "--out", merged).code == 0
    assert not (merged / "adapter").exists()
    base, _ = checkpoint.best_valid(tmp_path / "base")
    name = "transformer.h.0.attn.c_proj.weight"
    stored = load_file(out / "model.safetensors")[name]
    assert torch.equal(stored, base.model["h.0.attn.c_proj.weight"].T)
    assert not torch.equal(load_file(merged / "model.safetensors")[name], stored)
    card = (out / "README.md").read_text("utf-8")
    assert 'PeftModel.from_pretrained(model, f"{folder}/adapter")' in card
    text = (out / "adapter" / "adapter_config.json").read_text("utf-8")
    assert str(tmp_path) not in text + card
    refused = cli("export", tmp_path / "base", "--merge", "--out", tmp_path / "no")
    assert refused.code == 2
    assert "has no adapters" in refused.err


# ---- with peft ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # transformers and peft cause warnings about their own code
@pytest.mark.parametrize(
    "overrides",
    [
        ("train.lora.rank=4",),
        (
            "train.lora.rank=3", "train.lora.alpha=7", "train.lora.targets=attn.query,attn.value",
            "train.lora.embeddings=false",
        ),
        ("train.lora.rank=4", "train.lora.embeddings=true"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("arch", ARCHS)
def test_peft_computes_what_the_merged_model_computes(
    arch: str, overrides: tuple[str, ...], cli: Any, tuned: Any, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="needs the extra `interop`")
    transformers = pytest.importorskip("transformers")
    run, out, merged = tuned(arch, *overrides), tmp_path / "out", tmp_path / "merged"
    outcome = cli("export", run, "--out", out, "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["proven"] is True
    assert cli("export", run, "--merge", "--out", merged).code == 0

    def load(folder: Path) -> Any:
        found = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return found.eval()

    base, whole = load(out), load(merged)
    idx = torch.randint(0, base.config.vocab_size, (2, 32), generator=torch.Generator())
    with torch.no_grad():
        alone = base(idx).logits
        adapted = peft.PeftModel.from_pretrained(base, out / "adapter").eval()
        found, wanted = adapted(idx).logits, whole(idx).logits
    assert (alone - wanted).abs().max() > 0.1  # the adapter changes the logits of the base
    assert (found - wanted).abs().max() <= 1e-5

    def greedy(model: Any) -> list[int]:
        prompt = idx[:1, :4]
        found = model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24,
            min_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        return list(found[0].tolist())

    assert greedy(adapted) == greedy(whole)
    merged_by_peft = adapted.merge_and_unload()
    with torch.no_grad():
        assert (merged_by_peft(idx).logits - wanted).abs().max() <= 1e-5
