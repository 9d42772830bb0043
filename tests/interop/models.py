"""Models with random weights, also with random shapes, for the tests of exports, imports, pages and
`gptcli look`."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from gptcli.config_files import parse_config
from gptcli.model.gpt import GPT
from gptcli.tokenization import Tokenizer
from gptcli.tokenization.bpe import BpeTokenizer
from gptcli.tokenization.bpe_training import train_bpe
from gptcli.tokenization.byte import ByteTokenizer
from gptcli.tokenization.char import CharTokenizer
from gptcli.tokenization.gpt2 import gpt2_tokenizer
from gptcli.training.loading import Trained
from tests.conftest import TEXT

KINDS = ("char", "byte", "bpe", "gpt2")


def tokenizer_of(kind: str) -> Tokenizer:
    if kind == "char":
        return CharTokenizer.from_texts([TEXT, "naïve 你好 🙂\t"])
    if kind == "byte":
        return ByteTokenizer()
    return gpt2_tokenizer() if kind == "gpt2" else bpe()


def bpe() -> BpeTokenizer:
    found = train_bpe([TEXT], 300)
    assert isinstance(found, BpeTokenizer)
    return found


def shape(seed: int, arch: str) -> dict[str, Any]:
    """Random `model` keys of a small network. They depend only on the seed and the arch."""
    rng = random.Random(f"{seed} {arch}")
    n_head = rng.choice([1, 2, 3, 4])
    head_dim = rng.choice([2, 4, 6, 8, 16])
    found: dict[str, Any] = {
        "arch": arch,
        "n_layer": rng.randint(1, 4),
        "n_head": n_head,
        "n_embd": n_head * head_dim,
        "block_size": rng.choice([4, 7, 16, 33]),
    }
    if arch == "gpt2":
        found["bias"] = rng.choice([True, False])
        return found
    if seed % 2:  # every second model also has the keys that real models have
        shared = rng.choice([n for n in range(1, n_head + 1) if n_head % n == 0])
        found |= {
            "n_kv_head": shared,
            "head_dim": rng.choice([2, 8, 18]),
            "rope_theta": rng.choice([500.0, 1e6]),
            "hidden_width": rng.choice([16, 33, 70]),
            "tied_head": rng.choice([True, False]),
            "qk_norm": seed % 4 == 1,
            "norm_eps": rng.choice([1e-6, 1e-5, 1e-3]),
        }
    return found


def trained(run: Path, kind: str, seed: int = 0, **model: Any) -> Trained:
    """A Trained (a loaded model) with random weights, as if loaded from the run folder `run`."""
    words = [f"model.{key}={str(value).lower()}" for key, value in model.items()]
    config = parse_config("", [f"tokenizer.kind={kind}", *words])
    tokenizer = tokenizer_of(kind)
    gpt = GPT(config.model, tokenizer.vocab_size).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in gpt.parameters():
            spread = 0.3 if parameter.dim() == 1 else 1.5 / parameter.shape[-1] ** 0.5
            noise = spread * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise + (1.0 if parameter.dim() == 1 else 0.0))
    meta = {"progress": {"step": 7, "tokens": 1234, "val_loss": 2.5}}
    run.mkdir(parents=True, exist_ok=True)
    return Trained(run, gpt, tokenizer, config, 7, meta, [])
