"""`gptcli train`, `sample` and `eval` with parts that the user wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.course.conventions import RIGHT

HEAD = "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n"
NORM = (
    HEAD
    + """class LayerNorm(nn.Module):
    def __init__(self, ndim, bias):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, ndim))
        self.beta = nn.Parameter(torch.zeros(ndim)) if bias else None
    def forward(self, x):
        d = x - x.mean(-1, keepdim=True)
        y = d * torch.rsqrt((d * d).mean(-1, keepdim=True) + 1e-5) * self.gamma
        return y if self.beta is None else y + self.beta
"""
)
MLP = (
    HEAD
    + """class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        self.net = nn.Sequential(nn.Linear(C, 4 * C, bias=config.bias), nn.GELU(),
                                 nn.Linear(4 * C, C, bias=config.bias),
                                 nn.Dropout(config.dropout))
    def forward(self, x):
        return self.net(x)
"""
)
ATTENTION = "from gptcli.model.attention import CausalSelfAttention\n"
BLOCK = "from gptcli.course.parts import Block\n"
SMALL = ("model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.block_size=16",
         "train.batch_size=4", "train.max_steps=6", "run.threads=1", "run.dtype=float32",
         "train.sample_every=0", "train.eval_every=6", "run.device=cpu")  # fmt: skip


@pytest.fixture(scope="module")
def my(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("my")
    for name, text in (("layernorm", NORM), ("mlp", MLP), ("attention", ATTENTION),
                       ("block", BLOCK)):  # fmt: skip
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return folder


def train(cli, out: Path, text: Path, *more: object):  # type: ignore[no-untyped-def]
    outcome = cli("train", "course", f"data.source={text}", *SMALL, "--out", out, "--json", *more)
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def meta_of(run: Path) -> dict[str, object]:
    (path,) = run.glob("checkpoints/step-*/meta.json")
    found: dict[str, object] = json.loads(path.read_text("utf-8"))
    return found


def test_user_layer_norm_and_attention_train_to_the_builtin_loss(
    my: Path,
    text_file: Path,
    tmp_path: Path,
    cli,  # type: ignore[no-untyped-def]
) -> None:
    builtin = train(cli, tmp_path / "builtin", text_file)
    user = train(
        cli, tmp_path / "user", text_file,
        "--layernorm", my / "layernorm.py", "--attention", my / "attention.py",
    )  # fmt: skip
    assert user["val_loss"] == pytest.approx(builtin["val_loss"], rel=1e-4)
    assert user["parameters"] == builtin["parameters"]
    meta = meta_of(tmp_path / "user")
    assert meta["own_parts"] == ["attention", "layernorm"]
    assert meta["own_attention"] is True
    assert meta_of(tmp_path / "builtin")["own_parts"] == []


@pytest.mark.slow
def test_all_parts_together_and_sampled_with_the_same_files(
    my: Path,
    text_file: Path,
    tmp_path: Path,
    cli,  # type: ignore[no-untyped-def]
) -> None:
    files = [word for name in ("mlp", "block", "layernorm", "attention")
             for word in (f"--{name}", my / f"{name}.py")]  # fmt: skip
    run = tmp_path / "all"
    result = train(cli, run, text_file, *files)
    names = _names(run)
    assert any("gamma" in name for name in names)
    assert any(".mlp.net." in name for name in names)
    outcome = cli("sample", run, *files, "--max-new-tokens", "5", "--seed", "1")
    assert outcome.code == 0, outcome.err
    outcome = cli("eval", run, *files, "--json")
    assert json.loads(outcome.out)["loss"] == pytest.approx(result["val_loss"], rel=1e-5)
    for words in (["sample", run], ["sample", run, *files[:4]]):
        outcome = cli(*words)
        assert outcome.code == 2
        assert "was trained with" in outcome.err
        files_needed = "--attention FILE --layernorm FILE --mlp FILE --block FILE"
        assert f"hint: the command needs {files_needed}" in outcome.err


def _names(run: Path) -> list[str]:
    from safetensors import safe_open

    (path,) = run.glob("checkpoints/step-*/model.safetensors")
    with safe_open(path, "pt") as file:
        return list(file.keys())


@pytest.mark.slow
def test_a_run_with_a_user_mlp_needs_it_to_resume(
    my: Path,
    text_file: Path,
    tmp_path: Path,
    cli,  # type: ignore[no-untyped-def]
) -> None:
    run = tmp_path / "mlp"
    train(cli, run, text_file, "--mlp", my / "mlp.py")
    outcome = cli("train", "train.max_steps=8", "--resume", "--extend", "--out", run)
    assert outcome.code == 2
    assert "was trained with your mlp file" in outcome.err
    outcome = cli("sample", run, "--mlp", my / "mlp.py", "--layernorm", my / "layernorm.py")
    assert "was trained with the built-in layernorm" in outcome.err
    outcome = cli(
        "train", "train.max_steps=8", "--resume", "--extend", "--out", run, "--json",
        "--mlp", my / "mlp.py",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["steps"] == 8


def test_a_part_that_fails_its_check_needs_force(
    my: Path, text_file: Path, tmp_path: Path, cli
) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "mlp.py"
    path.write_text(MLP.replace("GELU", "ReLU"), encoding="utf-8")
    words = ["train", "course", f"data.source={text_file}", *SMALL, "--mlp", path]
    outcome = cli(*words, "--out", tmp_path / "run")
    assert outcome.code == 1
    assert "does not pass its check: your 24 channels go through ReLU" in outcome.err
    assert "check-mlp" in outcome.err
    assert not (tmp_path / "run").exists()
    outcome = cli(*words, "--out", tmp_path / "run", "--force")
    assert outcome.code == 0
    assert "warning: " in outcome.err


def test_a_part_that_the_block_would_not_use_is_refused(
    my: Path,
    text_file: Path,
    tmp_path: Path,
    cli,  # type: ignore[no-untyped-def]
) -> None:
    path = tmp_path / "block.py"
    path.write_text(
        "from gptcli.course import parts\nclass Block(parts.Block):\n"
        "    def __init__(self, config):\n        super().__init__(config)\n",
        encoding="utf-8",
    )
    outcome = cli(
        "train", "course", *SMALL, "--block", path, "--mlp", my / "mlp.py", "--out", tmp_path / "r"
    )
    assert outcome.code == 2
    assert "makes its own mlp" in outcome.err
    outcome = cli("train", "model.arch=modern", "--mlp", my / "mlp.py", "--out", tmp_path / "r")
    assert outcome.code == 2
    assert "--mlp needs `arch: gpt2`" in outcome.err


TOKENIZER = "from gptcli.course.exercises.tokenizer import Tokenizer\n"


def test_a_user_tokenizer_trains_resumes_samples_and_is_required(
    my: Path,
    text_file: Path,
    tmp_path: Path,
    cli,  # type: ignore[no-untyped-def]
) -> None:
    path = tmp_path / "tokenizer.py"
    path.write_text(TOKENIZER, encoding="utf-8")
    run = tmp_path / "run"
    words = ("--tokenizer", path, "--mlp", my / "mlp.py")
    result = train(cli, run, text_file, "tokenizer.vocab_size=280", *words)
    assert meta_of(run)["own_parts"] == ["mlp", "tokenizer"]
    assert meta_of(run)["vocab_size"] == 280
    outcome = cli("eval", run, *words, "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["loss"] == pytest.approx(result["val_loss"], rel=1e-5)
    outcome = cli("sample", run, *words, "--max-new-tokens", "5", "--prompt", "ab")
    assert outcome.code == 0, outcome.err
    outcome = cli("sample", run, "--mlp", my / "mlp.py")
    assert outcome.code == 2
    assert "the command needs --mlp FILE --tokenizer FILE" in outcome.err
    outcome = cli("tokenizer", "show", "ab", "--tokenizer", run)
    assert outcome.code == 2
    assert "your own tokenizer" in outcome.err
    outcome = cli("train", "course", f"data.source={text_file}", *SMALL,
                  "tokenizer.vocab_size=280", "train.max_steps=8",
                  "--resume", "--extend", "--out", run, *words)  # fmt: skip
    assert outcome.code == 0, outcome.err
    outcome = cli("train", "--from", run, "--out", tmp_path / "tuned")
    assert outcome.code == 2
    assert "was trained with your own parts (mlp, tokenizer)" in outcome.err


@pytest.mark.slow
def test_a_user_tokenizer_works_with_any_arch_but_no_other_kind(
    text_file: Path,
    tmp_path: Path,
    cli,  # type: ignore[no-untyped-def]
) -> None:
    path = tmp_path / "tokenizer.py"
    path.write_text(TOKENIZER, encoding="utf-8")
    words = ("--tokenizer", path, "--out", tmp_path / "run", "tokenizer.vocab_size=270")
    train(cli, tmp_path / "run", text_file, "model.arch=modern", "model.bias=false", *words)
    outcome = cli("train", "course", *SMALL, "tokenizer.kind=char", *words)
    assert outcome.code == 2
    assert "cannot be used together" in outcome.err
    outcome = cli("train", text_file, *SMALL, "--dry-run", "--json", *words)
    assert json.loads(outcome.out)["vocab_size"] == 270
    path.write_text(TOKENIZER + "Tokenizer = 5\n", encoding="utf-8")
    outcome = cli("train", "course", *SMALL, *words)
    assert outcome.code != 0
    assert "Tokenizer" in outcome.err


def test_a_user_tokenizer_that_fails_its_check_needs_force(
    text_file: Path,
    tmp_path: Path,
    cli,  # type: ignore[no-untyped-def]
) -> None:
    path = tmp_path / "tokenizer.py"
    path.write_text(
        TOKENIZER + "class Tokenizer(Tokenizer):\n"
        "    def encode(self, text):\n        return list(text.encode())\n",
        encoding="utf-8",
    )
    words = ("train", "course", f"data.source={text_file}", *SMALL, "tokenizer.vocab_size=270",
             "--tokenizer", path, "--out", tmp_path / "run")  # fmt: skip
    outcome = cli(*words)
    assert outcome.code == 1
    assert "does not pass its check" in outcome.err
    outcome = cli(*words, "--force")
    assert outcome.code == 0, outcome.err


@pytest.mark.long_series
@pytest.mark.parametrize(
    "name",
    [
        "fused_sdpa",
        "bare_parameters",
        "loop_over_heads",
        "einsum:Attention",
        "mask_buffer",
    ],
)
def test_an_unusual_attention_trains_to_the_builtin_loss(
    name: str,
    text_file: Path,
    tmp_path: Path,
    cli,  # type: ignore[no-untyped-def]
) -> None:
    file, _, cls = name.partition(":")
    path = Path(__file__).parent.parent / "course" / "files" / f"{file}.py"
    more = ("model.n_embd=32", "train.max_steps=20", "train.eval_every=20")
    builtin = train(cli, tmp_path / "builtin", text_file, *more)
    spec = f"{path}:{cls}" if cls else path
    user = train(cli, tmp_path / "user", text_file, "--attention", spec, *more)
    assert user["val_loss"] == pytest.approx(builtin["val_loss"], rel=1e-4)
    assert user["train_loss"] == pytest.approx(builtin["train_loss"], rel=1e-4)


@pytest.mark.long_series
@pytest.mark.parametrize("name", ["lecture", "annotated_transformer", "arena", "conv1d"])
def test_attention_of_other_conventions_trains_and_samples(
    name: str, cli: Any, text_file: Path, tmp_path: Path
) -> None:
    """These files do not follow gptcli's conventions. They read other names from the config, use
    variables of the module, take q, k, v and a mask, or return a tuple."""
    path, run = tmp_path / f"{name}.py", tmp_path / "run"
    path.write_text(RIGHT[name], encoding="utf-8")
    words = (
        *("model.arch=gpt2", "model.n_layer=1", "model.n_head=2", "model.n_embd=16"),
        *("model.block_size=16", "train.batch_size=4", "train.max_steps=5", "run.threads=1"),
    )
    done = cli("train", text_file, *words, "--attention", path, "--out", run, "--json")
    assert done.code == 0, done.err
    done = cli("sample", run, "--attention", path, "--max-new-tokens", "5", "--json")
    assert done.code == 0, done.err
