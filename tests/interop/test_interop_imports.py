"""Imports of models: exported models, configs of other programs, what is refused, damaged and
hostile files, the commands."""

from __future__ import annotations

import json
import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from gptcli.errors import GptcliError
from gptcli.files import durable
from gptcli.interop import hugging_face, proof
from gptcli.interop.foreign import read_model
from gptcli.interop.imports import import_model, read_foreign
from gptcli.tokenization.gpt2 import gpt2_tokenizer
from gptcli.training.loading import Trained, load_trained
from tests.conftest import TEXT, Cli
from tests.interop.models import KINDS, shape, trained


@pytest.fixture(autouse=True)
def without_transformers(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Let imports skip the comparison with transformers in tests that are not marked slow.

    Loading transformers takes seconds."""
    if request.node.get_closest_marker("slow") is None:
        from gptcli.interop import proof

        nothing = proof.Proof(None, (), "transformers is not installed")
        monkeypatch.setattr(proof, "hugging_face", lambda *given, **more: nothing)


def written(model: Trained, folder: Path, **more: Any) -> Path:
    folder.mkdir()
    hugging_face.write_folder(model, folder, **more)
    return folder


def changed(folder: Path, **values: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **values}), "utf-8")
    return folder


def qwen3(tmp_path: Path, **more: Any) -> Path:
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 16, "n_kv_head": 2}
    return written(
        trained(tmp_path / "run", "bpe", arch="modern", **sizes, **more), tmp_path / "hf"
    )


def gpt2(tmp_path: Path, **more: Any) -> Path:
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 16, "bias": "true"}
    return written(trained(tmp_path / "run", "gpt2", arch="gpt2", **sizes, **more), tmp_path / "hf")


@pytest.mark.long_series
@pytest.mark.parametrize("arch", ["modern", "gpt2"])
@pytest.mark.parametrize("seed", range(10))
def test_an_export_comes_back_as_the_same_model(arch: str, seed: int, tmp_path: Path) -> None:
    model = trained(tmp_path / "run", KINDS[seed % 4], seed, **shape(seed, arch))
    folder = written(model, tmp_path / "out", shard_bytes=5000 if seed % 2 else 1 << 30)
    found, _ = read_foreign(folder)
    ours = dict(model.model.named_parameters())
    assert {name: p.shape for name, p in ours.items()} == {
        name: p.shape for name, p in found.model.named_parameters()
    }
    for name, parameter in found.model.named_parameters():
        assert torch.equal(parameter, ours[name]), name
    assert found.tokenizer.to_json() == model.tokenizer.to_json()
    assert found.config.model.traits == model.config.model.traits
    again = written(found, tmp_path / "again", shard_bytes=5000 if seed % 2 else 1 << 30)
    for path in folder.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


def test_an_imported_run_imports_again_to_the_same_bytes(tmp_path: Path) -> None:
    first = import_model(qwen3(tmp_path), tmp_path / "a").run
    config = next(iter([load(first)]))
    second = import_model(written(config, tmp_path / "out"), tmp_path / "b").run
    for path in first.rglob("*"):
        if path.is_file() and path.name not in ("run.json", ".lock"):
            assert (second / path.relative_to(first)).read_bytes() == path.read_bytes(), path


def load(run: Path) -> Trained:
    return load_trained(run, None, device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"model_type": "qwen3_moe"}, "mixture of experts"),
        ({"model_type": "mixtral"}, "mixture of experts"),
        ({"model_type": "qwen2"}, "biases"),
        ({"model_type": "gemma3"}, "'gemma3'"),
        ({"model_type": None}, "`model_type` is None"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "`rope_type: llama3`"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "`rope_type: linear`"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "`rope_type: yarn`"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "x"}}, "rope_theta"),
        ({"attention_bias": True}, "`attention_bias` is True"),
        ({"hidden_act": "gelu"}, "`hidden_act` is 'gelu'"),
        ({"max_window_layers": 1, "layer_types": None, "sliding_window": 8}, "only some of its"),
        (
            {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 8},
            "sliding window of 8 tokens",
        ),
        ({"num_attention_heads": 0}, "`num_attention_heads` is 0"),
        ({"num_hidden_layers": "two"}, "`num_hidden_layers` is 'two'"),
        ({"num_key_value_heads": 3}, "not divisible"),
    ],
)
def test_what_the_layout_cannot_hold_is_refused_by_name(
    values: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(GptcliError) as raised:
        read_model(changed(qwen3(tmp_path), **values))
    assert says in raised.value.message
    assert raised.value.exit_code == 1


@pytest.mark.parametrize(
    "key",
    [
        "hidden_size", "num_attention_heads", "num_hidden_layers", "max_position_embeddings",
        "intermediate_size", "vocab_size",
    ],
)  # fmt: skip
def test_a_size_that_is_absent_is_named(key: str, tmp_path: Path) -> None:
    folder = changed(qwen3(tmp_path), **{key: None})
    with pytest.raises(GptcliError) as raised:
        read_model(folder)
    assert f"{folder}: config.json does not give `{key}`" in raised.value.message


@pytest.mark.parametrize(
    ("values", "weight"),
    [
        ({"num_key_value_heads": None}, "model.layers.0.self_attn.k_proj.weight"),
        ({"hidden_size": 64, "head_dim": 8}, "model.embed_tokens.weight"),
        ({"intermediate_size": 32}, "model.layers.0.mlp."),
    ],
)
def test_a_size_that_does_not_fit_the_weights_names_the_folders_weight(
    values: dict[str, Any], weight: str, tmp_path: Path
) -> None:
    folder = changed(qwen3(tmp_path), **values)
    with pytest.raises(GptcliError) as raised:
        read_model(folder)
    assert f"{folder}: the weight `{weight}" in raised.value.message
    assert "config.json" in raised.value.hint


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"activation_function": "gelu"}, "`activation_function` is 'gelu'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"scale_attn_weights": False}, "scale_attn_weights"),
        ({"n_head": 3}, "not divisible"),
    ],
)
def test_other_forms_of_gpt2_are_refused(values: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(GptcliError) as raised:
        read_model(changed(gpt2(tmp_path), **values))
    assert says in raised.value.message


@pytest.mark.parametrize(
    ("values", "block_size"),
    [
        ({"sliding_window": 5}, 5),
        ({"use_sliding_window": False, "layer_types": None, "sliding_window": None}, 16),
        ({"sliding_window": 400}, 16),
        ({"model_type": "mistral", "layer_types": None, "sliding_window": 6}, 6),
        ({"model_type": "llama", "sliding_window": None}, 16),
    ],
)
def test_the_window_becomes_the_context(
    values: dict[str, Any], block_size: int, tmp_path: Path
) -> None:
    more = {"qk_norm": "false"} if values.get("model_type") in ("mistral", "llama") else {}
    folder = changed(qwen3(tmp_path, **more), **values)
    assert read_model(folder).config.block_size == block_size
    assert read_model(folder, 3).config.block_size == 3
    with pytest.raises(GptcliError, match="longer than the model's context"):
        read_model(folder, block_size + 1)


@pytest.mark.slow
def test_tokens_of_vocab_and_merges_are_gpt2s(tmp_path: Path) -> None:
    folder = gpt2(tmp_path)
    stored = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(stored["vocab"]), "utf-8")
    lines = [m if isinstance(m, str) else " ".join(m) for m in stored["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n", "utf-8")
    found, _ = read_foreign(folder)
    assert found.tokenizer.kind == "gpt2"
    assert found.tokenizer.encode(TEXT) == gpt2_tokenizer().encode(TEXT)
    (folder / "merges.txt").unlink()
    with pytest.raises(GptcliError, match=r"no tokenizer\.json"):
        read_foreign(folder)


def test_names_of_the_inner_model_and_old_buffers(tmp_path: Path) -> None:
    """read_model reads GPT-2's first files, in which names lack the prefix "transformer.".

    These files also have buffers for the causal mask."""
    from safetensors.torch import load_file, save_file

    folder = gpt2(tmp_path)
    path = folder / "model.safetensors"
    weights = {name.removeprefix("transformer."): t for name, t in load_file(path).items()}
    weights["h.0.attn.bias"] = torch.ones(1, 1, 16, 16, dtype=torch.uint8).tril()
    weights["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    weights = {name: t.half() if t.dim() == 2 else t for name, t in weights.items()}
    save_file(weights, path)
    found = read_model(folder).weights
    assert found["wte.weight"].dtype == torch.float32
    assert torch.equal(found["wte.weight"].half(), weights["wte.weight"])
    assert torch.equal(found["h.0.attn.value.bias"], weights["h.0.attn.c_attn.bias"][32:].float())


def spoil(folder: Path, how: str) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "no safetensors":
        path.rename(folder / "pytorch_model.bin")
    elif how == "a pipe":
        path.unlink()
        os.mkfifo(path)
    elif how == "not JSON":
        (folder / "config.json").write_text("{")
    elif how == "a huge config":
        (folder / "config.json").write_text(" " * (2 << 20))
    elif how == "a list":
        (folder / "config.json").write_text("[]")
    elif how == "a path in the index":
        path.unlink()
        index = {"weight_map": {"x": "../../secret.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        weights = load_file(path)
        if how == "a missing weight":
            del weights["model.norm.weight"]
        elif how == "another weight":
            weights["model.extra.weight"] = torch.ones(1)
        elif how == "not finite":
            weights["model.norm.weight"][0] = float("nan")
        elif how == "quantized":
            weights["model.norm.weight"] = weights["model.norm.weight"].to(torch.int8)
        elif how == "another shape":
            weights["model.norm.weight"] = torch.ones(5)
        elif how == "too few rows":
            for name in ("model.embed_tokens.weight", "lm_head.weight"):
                weights[name] = weights[name][:-1].clone()
        save_file(weights, path)


@pytest.mark.skipif(os.name != "posix", reason="pipes")
@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("truncated", "cannot be read"), ("no safetensors", "pytorch_model.bin can run code"),
        ("a pipe", "Not a regular file"), ("not JSON", "is not JSON"),
        ("a huge config", "the limit is"), ("a list", "not a JSON object"),
        ("a path in the index", "no table of files"),
        ("a missing weight", "no weight `model.norm.weight`"),
        ("another weight", "`model.extra.weight`"), ("not finite", "not finite"),
        ("quantized", "quantized"), ("another shape", "`model.norm.weight` is 5, but"),
        ("too few rows", "its embedding has 299 rows"),
    ],
)  # fmt: skip
def test_damaged_folders_are_errors_and_leave_nothing(how: str, says: str, tmp_path: Path) -> None:
    folder = qwen3(tmp_path)
    spoil(folder, how)
    with pytest.raises(GptcliError) as raised:
        import_model(folder, tmp_path / "runs" / "new")
    assert says in raised.value.message
    assert not (tmp_path / "runs" / "new").exists()


def test_a_taken_folder_gets_no_advice_for_trainings(cli: Cli, tmp_path: Path) -> None:
    folder, taken = qwen3(tmp_path), tmp_path / "taken"
    taken.mkdir()
    (taken / "config.yaml").write_text("mine")
    outcome = cli("import", folder, "--out", taken)
    assert outcome.code == 2
    assert "exists already" in outcome.err
    assert "--resume" not in outcome.err
    assert (taken / "config.yaml").read_text() == "mine"


def test_a_full_disk_is_reported_without_advice_for_trainings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = qwen3(tmp_path), tmp_path / "runs" / "new"

    def full(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(durable, "write_file", full)
    monkeypatch.setattr(proof, "hugging_face", lambda *_, **__: proof.Proof(None, (), ""))
    with pytest.raises(GptcliError) as raised:
        import_model(folder, out)
    assert "No space left on device" in raised.value.message
    assert "--resume" not in raised.value.hint
    assert not out.parent.exists()


def test_gpt2s_tokenizer_needs_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = gpt2(tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(GptcliError) as raised:
        read_foreign(folder)
    assert "--tokenizer gpt2" in raised.value.hint
    found, _ = read_foreign(folder, tokenizer=Path("gpt2"))
    assert found.tokenizer.encode(TEXT) == gpt2_tokenizer().encode(TEXT)


def test_rows_without_a_token_get_one(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = changed(qwen3(tmp_path), vocab_size=310)
    path = folder / "model.safetensors"
    weights = load_file(path)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = torch.cat((weights[name], torch.ones(10, 32)))
    save_file(weights, path)
    done = import_model(folder, tmp_path / "new")
    assert done.trained.tokenizer.vocab_size == 310
    assert "10 rows of its embedding have no token" in done.notes[0]
    assert load(tmp_path / "new").tokenizer.encode(TEXT) == load_ids(folder)


def load_ids(folder: Path) -> list[int]:
    from gptcli.tokenization import load_tokenizer

    return load_tokenizer(folder / "tokenizer.json").encode(TEXT)


# ---- nanoGPT -----------------------------------------------------------------------------------


def nanogpt(tmp_path: Path, kind: str, prefix: str = "", **more: Any) -> tuple[Path, Trained]:
    """Write a checkpoint with nanoGPT's names and shapes.

    Return its path, and the model with the same weights."""
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 16, "bias": "true"}
    model = trained(tmp_path / "run", kind, arch="gpt2", **sizes)
    weights: dict[str, torch.Tensor] = {}
    ours = dict(model.model.named_parameters())
    for name, parameter in ours.items():
        layer, _, rest = name.partition(".attn.")
        if rest.startswith(("query", "key", "value")):
            parts = [
                ours[f"{layer}.attn.{p}.{rest.split('.')[1]}"] for p in ("query", "key", "value")
            ]
            weights[f"transformer.{layer}.attn.c_attn.{rest.split('.')[1]}"] = torch.cat(parts)
        else:
            weights["transformer." + name] = parameter
    weights["lm_head.weight"] = ours["wte.weight"]
    arguments = {
        "n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 16, "bias": True, "dropout": 0.2,
        "vocab_size": model.tokenizer.vocab_size,
    }  # fmt: skip
    stored = {
        "model": {prefix + name: t.detach().clone() for name, t in weights.items()},
        "optimizer": {}, "model_args": arguments, "iter_num": 5, "config": {"dataset": "x"}, **more,
    }  # fmt: skip
    folder = tmp_path / "out-nano"
    folder.mkdir()
    torch.save(stored, folder / "ckpt.pt")
    return folder / "ckpt.pt", model


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_nanogpts_checkpoint(prefix: str, tmp_path: Path) -> None:
    path, model = nanogpt(tmp_path, "gpt2", prefix)
    done = import_model(path, tmp_path / "new")
    idx = torch.randint(0, 50257, (1, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "new").model(idx), model.model(idx))
    assert done.trained.config.model.dropout == 0.2
    assert "GELU" in done.notes[0]
    assert done.model_type == "nanogpt"


def test_nanogpts_characters_come_from_its_text(tmp_path: Path) -> None:
    path, model = nanogpt(tmp_path, "char")
    with pytest.raises(GptcliError) as raised:
        read_foreign(path)
    assert "no tokenizer" in raised.value.message
    text = tmp_path / "input.txt"
    text.write_text(TEXT + "naïve 你好 🙂\t", "utf-8", newline="\n")
    found, _ = read_foreign(path, tokenizer=text)
    assert found.tokenizer.pieces == model.tokenizer.pieces
    text.write_text(TEXT, "utf-8")
    with pytest.raises(GptcliError, match="but the tokenizer has"):
        read_foreign(path, tokenizer=text)


class Hostile:
    def __reduce__(self) -> Any:
        return os.mkdir, ("was-here",)


@pytest.mark.parametrize("what", ["code", "pickle", "text", "a list", "no tensors"])
def test_a_hostile_ckpt_runs_nothing(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "ckpt.pt"
    if what == "code":
        torch.save({"model": Hostile(), "model_args": {}}, path)
    elif what == "pickle":
        path.write_bytes(pickle.dumps(Hostile()))
    elif what == "text":
        path.write_text("hello")
    elif what == "a list":
        torch.save([1, 2], path)
    else:
        sizes = {"n_layer": 1, "n_head": 1, "n_embd": 2, "block_size": 2}
        torch.save({"model": {"x": 3}, "model_args": sizes}, path)
    with pytest.raises(GptcliError):
        read_foreign(path)
    assert not (tmp_path / "was-here").exists()


# ---- the commands ------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_command_takes_the_imported_run(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text_file: Path
) -> None:
    folder = qwen3(tmp_path)
    monkeypatch.chdir(tmp_path)
    done = cli("import", folder, "--json")
    assert done.code == 0, done.err
    answer = json.loads(done.out)
    assert answer["run"] == str(Path("runs", "hf"))
    assert answer.keys() == {
        "run", "model_type", "parameters", "vocab_size", "proven", "largest_difference", "notes",
    }  # fmt: skip
    assert cli("sample", "hf", "--max-new-tokens", "5", "--prompt", "What").code == 0
    assert cli("score", "hf", text_file).code == 0
    assert cli("eval", "hf", "--file", text_file).code == 0
    row = next(line for line in cli("runs").out.splitlines() if line.startswith("hf"))
    assert "imported" in row
    for words in (["eval", "hf"], ["train", "--resume", "--out", "runs/hf"]):
        refused = cli(*words)
        assert refused.code in (1, 2)
        assert "is an imported model" in refused.err
    tuned = cli(
        "train", text_file, "--from", "hf", "train.max_steps=2", "run.engine=torch", "--out", "ft"
    )
    assert tuned.code == 0, tuned.err
    assert cli("sample", "ft", "--max-new-tokens", "3").code == 0
    assert cli("export", "ft", "--out", "back").code == 0
    assert cli("import", "back").code == 0
    again = cli("import", folder)
    assert again.code == 0
    assert (tmp_path / "runs" / "hf-2").is_dir()
    taken = cli("import", folder, "--out", "runs/hf")
    assert taken.code == 2
    assert "exists already" in taken.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nothing-here"], "no file or folder"),
        (["."], "no config.json"),
        (["runs/mine"], "no file or folder"),
        ([".", "--tokenizer", "x.json"], "no file or folder x.json"),
    ],
)
def test_wrong_paths(
    words: list[str], says: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = cli("import", *words)
    assert done.code in (1, 2)
    assert says in done.err


# ---- with transformers -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "llama", "mistral"])
@pytest.mark.parametrize("seed", range(5))
def test_models_of_transformers_give_the_same_logits(kind: str, seed: int, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `interop`")
    rng = random.Random(f"{kind} {seed}")
    torch.manual_seed(seed)
    n_head = rng.choice([2, 4])
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=50257, n_layer=2, n_head=n_head, n_embd=32, n_positions=rng.choice([8, 40]),
            n_inner=rng.choice([None, 50]), layer_norm_epsilon=rng.choice([1e-5, 1e-3]),
        )  # fmt: skip
    else:
        sizes: dict[str, Any] = {
            "vocab_size": 50257, "hidden_size": 32, "num_hidden_layers": 2,
            "intermediate_size": rng.choice([40, 64]), "num_attention_heads": n_head,
            "num_key_value_heads": rng.choice([1, n_head]), "head_dim": rng.choice([8, 16, 20]),
            "max_position_embeddings": rng.choice([8, 40]),
            "rms_norm_eps": rng.choice([1e-6, 1e-3]),
            "rope_parameters": {"rope_type": "default", "rope_theta": rng.choice([1e4, 1e6])},
            "tie_word_embeddings": rng.choice([True, False]),
        }  # fmt: skip
        sizes |= {"sliding_window": rng.choice([None, 6])} if kind == "mistral" else {}
        config = transformers.AutoConfig.for_model(kind, **sizes)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    folder = tmp_path / "hf"
    model.save_pretrained(folder, max_shard_size="2MB" if seed % 2 else "1GB")
    (folder / "tokenizer.json").write_text(gpt2_tokenizer().to_json(), "utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    done = import_model(folder, tmp_path / "new")
    assert done.proof.largest_difference is not None
    assert done.proof.largest_difference <= 1e-4
    if getattr(config, "sliding_window", None) is not None:
        # The proof also compared texts that are longer than the sliding window.
        assert max(done.proof.lengths) > config.sliding_window
