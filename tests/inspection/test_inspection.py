"""What `gptcli look` computes: attention weights, the kind of each head, the logit lens, the eight
steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gptcli.api.user_files import UserFiles, load_user_parts
from gptcli.errors import GptcliError
from gptcli.inspection.eight_steps import eight_steps
from gptcli.inspection.head_kinds import KINDS, head_kinds
from gptcli.inspection.learner import LearnerFile
from gptcli.inspection.looking import ids_of_prompt, look, weights_of_layers
from gptcli.model.gpt import GPT
from gptcli.model.inside import attention_maps, look_inside, part_with_attention
from gptcli.training.loading import Trained
from tests.interop.models import trained

COURSE = Path(__file__).parent.parent / "old_runs" / "gpt2-user-parts" / "attention.py"
SHAPES = {
    "gpt2": {"n_head": 4, "bias": "true"},
    "modern": {"n_head": 4},
    "grouped": {"n_head": 4, "n_kv_head": 2},
    "plain": {"n_head": 2, "qk_norm": "false"},
}
PART_BY_PART = """
import torch
from torch import nn

class Head(nn.Module):
    def __init__(self, C, D):
        super().__init__()
        self.key, self.query, self.value = (nn.Linear(C, D, bias=False) for _ in range(3))

    def forward(self, x):
        T = x.shape[1]
        w = self.query(x) @ self.key(x).transpose(-2, -1) * self.key.out_features ** -0.5
        w = w.masked_fill(torch.tril(torch.ones(T, T)) == 0, float("-inf")).softmax(-1)
        return w @ self.value(x)

class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        C, H = config.n_embd, config.n_head
        self.heads = nn.ModuleList(Head(C, C // H) for _ in range(H))
        self.proj = nn.Linear(C, C, bias=False)

    def forward(self, x):
        return self.proj(torch.cat([head(x) for head in self.heads], dim=-1))
"""
FUSED = """
import torch.nn.functional as F
from torch import nn

class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (t.view(B, T, self.n_head, -1).transpose(1, 2)
                   for t in self.c_attn(x).split(C, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))
"""


def model_of(tmp_path: Path, shape: str, kind: str = "char") -> Trained:
    arch = "gpt2" if shape == "gpt2" else "modern"
    sizes = {"n_layer": 2, "n_embd": 32, "block_size": 24, **SHAPES[shape]}
    return trained(tmp_path / "run", kind, arch=arch, **sizes)


def with_user_attention(tmp_path: Path, file: Path) -> Trained:
    """A gpt2 model with random weights, and with the user's attention that `file` defines."""
    base = trained(
        tmp_path / "run", "char", arch="gpt2", n_layer=2, n_head=2, n_embd=16, block_size=24
    )
    parts = load_user_parts(UserFiles(attention=str(file)))
    torch.manual_seed(0)
    model = GPT(base.config.model, base.tokenizer.vocab_size, user_parts=parts).eval()
    return Trained(base.run, model, base.tokenizer, base.config, 7, {}, [])


@pytest.mark.parametrize("shape", SHAPES)
def test_the_weights_are_those_that_the_attention_uses(shape: str, tmp_path: Path) -> None:
    """If the attention weights that `look` finds are multiplied by the values and projected, the
    result is the module's output, up to float32's rounding."""
    model = model_of(tmp_path, shape).model
    ids = torch.randint(model.vocab_size, (20,)).tolist()
    inside = look_inside(model, ids)
    for layer, weights in enumerate(weights_of_layers(model, inside, None)):
        assert weights is not None
        assert (weights.sum(-1) - 1).abs().max() < 1e-6
        assert weights.triu(diagonal=1).abs().max() == 0
        part: Any = part_with_attention(model, layer)
        x = inside.inputs[layer]
        with torch.no_grad():
            v = part.project(x[None])[0, :, -part.n_kv_head :]  # (T, K, D)
            v = v.repeat_interleave(part.n_head // part.n_kv_head, dim=1)
            mixed = torch.einsum("hts,shd->thd", weights, v).flatten(1)
            assert (part.c_proj(mixed) - part(x[None])[0]).abs().max() < 1e-5
    maps = attention_maps(model, ids)
    assert maps is not None
    assert all(
        torch.equal(a, b)
        for a, b in zip(maps, weights_of_layers(model, inside, None), strict=True)
        if b is not None
    )


def test_looking_inside_leaves_a_training_as_it_was(tmp_path: Path) -> None:
    model = model_of(tmp_path, "gpt2").model.train()
    state = torch.get_rng_state()
    attention_maps(model, [1, 2, 3])
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("shape", ["gpt2", "grouped"])
def test_the_last_row_of_the_lens_is_what_the_model_writes(shape: str, tmp_path: Path) -> None:
    model = model_of(tmp_path, shape)
    text = "KING what light"
    found = look(model, text)
    with torch.no_grad():
        logits = model.model(torch.tensor([model.tokenizer.encode(text)]))[0]
    probabilities = logits.softmax(-1)
    assert len(found.lens) == 3
    for t, guesses in enumerate(found.lens[-1]):
        assert guesses[0].id == int(probabilities[t].argmax())
        for guess in guesses:
            assert guess.probability == pytest.approx(float(probabilities[t, guess.id]), abs=1e-5)


def test_a_long_prompt_keeps_its_end(tmp_path: Path) -> None:
    model = model_of(tmp_path, "modern")
    found = look(model, "light " * 10)
    assert (len(found.ids), found.dropped) == (24, 36)
    assert model.tokenizer.decode(found.ids) == ("light " * 10)[-24:]
    with pytest.raises(GptcliError, match="empty"):
        look(model, "")


def test_a_prompt_begins_with_begin_of_text_if_the_tokenizer_asks_for_it(tmp_path: Path) -> None:
    from tests.tokenization.test_tokenization_imported import ours

    tokenizer = ours("llama3")
    model = replace(model_of(tmp_path, "modern"), tokenizer=tokenizer)
    assert ids_of_prompt(model, "a b")[0] == tokenizer.prompt_ids("a b")


def test_the_kinds_are_those_of_heads_that_were_made_so(tmp_path: Path) -> None:
    """Five made-up heads: the first attends to the previous token, the second to the first token,
    the third to the token itself. The fourth is an induction head, and the fifth attends to all
    tokens equally (mixed)."""
    model = model_of(tmp_path, "modern").model

    def made(ids: list[int]) -> list[torch.Tensor | None]:
        T = len(ids)
        rows = torch.arange(T)
        heads = torch.zeros(5, T, T)
        heads[0, rows, (rows - 1).clamp(min=0)] = 1
        heads[1, :, 0] = 1
        heads[2, rows, rows] = 1
        for t in range(T):
            earlier = [s + 1 for s in range(t - 1) if ids[s] == ids[t]]
            heads[3, t, earlier[-1] if earlier else 0] = 1
        heads[4] = torch.ones(T, T).tril() / (rows + 1)[:, None]
        return [heads]

    # In this text no token repeats, so only head_kinds' own probe text can show induction.
    maps = made(list(range(20)))
    found = {one.head: one for one in head_kinds(model, maps, made)}
    assert [found[head].kind for head in range(3)] == list(KINDS[:3])
    assert found[0].shares[0] == pytest.approx(1)
    assert found[3].shares[3] > 0.99
    assert found[4].kind == "mixed"
    assert max(map(abs, found[4].shares)) < 1e-6


@pytest.mark.parametrize("source", ["course", PART_BY_PART, FUSED], ids=["course", "parts", "sdpa"])
def test_a_learners_weights_are_found_in_the_trace(source: str, tmp_path: Path) -> None:
    """The attention weights in the learner's trace are those that `look` shows, and the output of
    step 8 is what the module returns."""
    file = COURSE
    if source != "course":
        file = tmp_path / "mine.py"
        file.write_text(source, "utf-8")
    run = with_user_attention(tmp_path, file)
    learner = LearnerFile("attention", str(file))
    found = look(run, "KING what light", learner)
    assert len(found.heads) == 4
    steps = eight_steps(run.model, found.inside, 1, 1, 10, learner)
    weights = found.maps[1]
    assert weights is not None
    assert torch.allclose(
        torch.tensor(steps.steps[5].numbers["weights"]).float(), weights[1, 10, :11], atol=1e-5
    )
    with torch.no_grad():
        out: Any = run.model.h[1].get_submodule("attn")(found.inside.inputs[1][None])[0, 10]
    assert torch.allclose(torch.tensor(steps.steps[7].numbers["out"]).float(), out, atol=1e-5)
    line = steps.steps[7].line
    assert line is not None
    assert "proj" in line[1]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_eighth_step_is_what_the_attention_returns(shape: str, tmp_path: Path) -> None:
    run = model_of(tmp_path, shape)
    found = look(run, "KING what light")
    steps = eight_steps(run.model, found.inside, 1, 1, 9).steps
    part = part_with_attention(run.model, 1)
    with torch.no_grad():
        out = part(found.inside.inputs[1][None])[0, 9]
    assert torch.allclose(torch.tensor(steps[7].numbers["out"]), out, atol=1e-5)
    weights = found.maps[1]
    assert weights is not None
    assert torch.allclose(torch.tensor(steps[5].numbers["weights"]), weights[1, 9, :10], atol=1e-5)
    assert len(steps[3].numbers["scores"]) == 10


def test_a_count_of_one_has_its_noun_in_the_singular(tmp_path: Path) -> None:
    run = trained(
        tmp_path / "run", "char", arch="gpt2", n_layer=1, n_head=1, n_embd=8, block_size=4
    )
    shapes = [s.shapes for s in eight_steps(run.model, look(run, "KI").inside, 0, 0, 0).steps]
    assert shapes[2].endswith("so 1 pair of matrices")
    assert shapes[4] == (
        "1 of 4 scores of each head is in the future: -inf; this token sees 1 of 2 tokens"
    )


def test_a_module_without_visible_weights_is_said_so(tmp_path: Path) -> None:
    file = tmp_path / "mean.py"
    file.write_text(
        "import torch\nfrom torch import nn\n"
        "class CausalSelfAttention(nn.Module):\n"
        "    def __init__(self, config):\n"
        "        super().__init__()\n"
        "        self.c_proj = nn.Linear(config.n_embd, config.n_embd)\n"
        "    def forward(self, x):\n"
        "        n = torch.arange(1, x.shape[1] + 1)[:, None]\n"
        "        return self.c_proj(x.cumsum(1) / n)\n",
        "utf-8",
    )
    run = with_user_attention(tmp_path, file)
    learner = LearnerFile("attention", str(file))
    found = look(run, "KING", learner)
    assert found.maps == [None, None]
    assert found.heads == []
    with pytest.raises(GptcliError, match="cannot follow"):
        eight_steps(run.model, found.inside, 0, 0, 3, learner)
