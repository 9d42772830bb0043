"""The check of attention quotes the line with the mistake, and says what is wrong in this line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from gptcli.course.attention import quoted_line
from gptcli.course.attention.forward_trace import ForwardTrace, Operation
from gptcli.course.report import FileReport
from tests.conftest import wanted
from tests.course.conftest import Judge
from tests.course.styles import STYLES

HELPERS = """import math

import torch
from torch import nn
from torch.nn import functional as F


def softmax(z):
    z = z - z.max(dim=-1, keepdim=True).values
    e = torch.exp(z)
    return e / e.sum(dim=-1, keepdim=True)


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.dropout = nn.Dropout(config.dropout)
        self.query = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.key = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.value = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def split_heads(self, t):
        t = t.unflatten(-1, (self.n_head, -1))
        return t.transpose(1, 2)

    def project(self, layer, x):
        W = layer.weight.t()
        y = x @ W
        if layer.bias is not None:
            y = y + layer.bias
        return self.split_heads(y)

    def scores(self, q, k):
        raw = q @ k.transpose(-2, -1)
        return raw / math.sqrt(q.shape[-1])

    def forward(self, x):
        B, T, C = x.shape
        p = 0.0
        q = self.project(self.query, x)
        k = self.project(self.key, x)
        v = self.split_heads(self.value(x))
        s = self.scores(q, k)
        mask = torch.full((T, T), float("-inf"), dtype=x.dtype, device=x.device)
        mask = mask.triu(1)
        s = s + mask
        w = softmax(s)
        w = self.dropout(w)
        y = w @ v
        y = y.transpose(1, 2).reshape(B, T, C)
        return self.c_proj(y)
"""
KERNEL = HELPERS.replace(
    HELPERS[HELPERS.index("        s = self") : HELPERS.index("        y = y.tr")],
    "        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)\n",
)
FOLDED = HELPERS.replace(
    "        s = self.scores(q, k)\n", "        q, k = q.flatten(0, 1), k.flatten(0, 1)\n"
).replace(
    "        s = s + mask\n",
    "        s = torch.baddbmm(mask, q, k.mT, alpha=v.shape[-1] ** -0.5).view(B, -1, T, T)\n",
)
BASES = {"helpers": HELPERS, "kernel": KERNEL, "folded": FOLDED, **STYLES}


class Row(NamedTuple):
    """A wrong file: a base in which `new` replaces `old`, and what the report must say."""

    base: str
    old: str
    new: str
    step: int
    slug: str
    quoted: str
    """A part of the quoted line."""
    says: str = ""
    """A part of the message."""

    def text(self) -> str:
        """The text of the file."""
        assert self.old in BASES[self.base], self.old
        return BASES[self.base].replace(self.old, self.new)


HEAD_VIEWS = """        q = q.view(B, T, H, D).transpose(1, 2)
        k = k.view(B, T, H, D).transpose(1, 2)
        v = v.view(B, T, H, D).transpose(1, 2)
"""
SLICES = "h * D : (h + 1) * D"
ROOT = "/ math.sqrt(D)"
MORE = "        w = softmax(s)\n"
ROWS = {
    # the helper is correct, but the line that calls it is wrong
    "call_of_split": Row(
        "helpers", "self.value(x)", "self.query(x)", 1, "value-is-query", "v = self.split_heads("
    ),
    "call_of_project": Row(
        "helpers", "project(self.key", "project(self.query", 1, "key-is-query", "k = self.project("
    ),
    # the helper itself is wrong
    "weight_in_helper": Row(
        "helpers", "layer.weight.t()", "layer.weight", 1, "weight-transposed", "y = x @ W"
    ),
    # steps 1 and 2
    "relu_before_cut": Row(
        "fused", "q, k, v = self.c_attn(x).chunk(3, dim=-1)",
        "fused = torch.relu(self.c_attn(x))\n        q, k, v = fused.chunk(3, dim=-1)",
        1, "activation-on-projections", "fused = torch.relu(",
    ),
    "output_layer_on_values": Row(
        "sdpa_masked", "v = self.value(x)", "v = self.c_proj(self.value(x))", 1,
        "output-projection-on-values", "v = self.c_proj(", "to the values",
    ),
    "output_layer_on_keys": Row(
        "scaled_query", "k = self.key(x)", "k = self.c_proj(self.key(x))", 1,
        "projections-changed", "k = self.c_proj(",
    ),
    "pieces_of_heads": Row(
        "einsum", "part.view(B, T, H, D)", "torch.stack(part.split(H, dim=-1), dim=2)", 2,
        "heads-and-channels-swapped", "part.split(H", "8 heads of 3 channels",
    ),
    "stacked_pieces": Row(
        "heads_first", "self.c_attn(x).view(B, T, 3, H, D).permute(2, 3, 0, 1, 4)",
        "(torch.stack(part.split(H, -1)) for part in self.c_attn(x).chunk(3, dim=-1))", 2,
        "heads-and-channels-swapped", "part.split(H", "8 heads of 3 channels",
    ),
    "pieces_in_loop": Row(
        "head_loop", SLICES, "h * H : (h + 1) * H", 2, "heads-of-wrong-size", "qh = q[",
        "have 3 channels each",
    ),
    "slices_overlap": Row(
        "head_loop", SLICES, "h : h + D", 2, "heads-overlap", "qh = q[", "channels 1 to 8",
    ),
    "values_overlap": Row(
        "head_loop", "v[:, :, h * D : (h + 1) * D]", "v[:, :, h : h + D]", 2, "heads-overlap",
        "vh = v[", "of the values takes channels 1 to 8",
    ),
    "first_values": Row(
        "head_loop", "v[:, :, h * D : (h + 1) * D]", "v[:, :, :D]", 2, "first-head-only", "vh = v[",
    ),
    "slice_object": Row(
        "head_loop", "            qh = q[:, :, h * D : (h + 1) * D]",
        "            block = slice(h, h + D)\n            qh = q[:, :, block]", 2,
        "heads-overlap", "block = slice(",
    ),
    "not_transposed": Row(
        "sdpa", "view(B, T, H, D).transpose(1, 2)", "view(B, T, H, D)", 2, "heads-not-transposed",
        "q = q.view(", "(2, 5, 3, 8)",
    ),
    "scaled_not_transposed": Row(
        "scaled_query", "view(B, T, H, D).transpose(1, 2)", "view(B, T, H, D)", 2,
        "heads-not-transposed", "k = k.view(", "time before the heads",
    ),
    # step 4
    "kernel_scale": Row(
        "kernel", "is_causal=True", "is_causal=True, scale=C**-0.5", 4, "scale-sqrt-n-embd",
        "F.scaled_dot_product_attention",
    ),
    "late_scale": Row(
        "helpers", "return raw / math.sqrt(q.shape[-1])\n", "return raw\n", 4,
        "scale-missing", "raw = q @ k",
    ),
    "einsum_transposed": Row(
        "einsum", "->bhts\", q, k)", "->bhst\", q, k)", 4, "scores-transposed", "scores = torch.ein"
    ),
    "twice_on_one_line": Row("fused", ROOT, f"{ROOT} {ROOT}", 4, "scale-twice", "scores = q"),
    "twice_in_kernel": Row(
        "sdpa", "        y = F.", "        q = q / math.sqrt(D)\n        y = F.", 4, "scale-twice",
        "q = q / math.sqrt(D)", "twice, in lines 24 and 25",
    ),
    "twice_in_loop": Row(
        "head_loop", "scores = qh @", "scores = (qh / math.sqrt(D)) @", 4, "scale-twice",
        "scores = (qh / math.sqrt(D))", "divided by sqrt(8) = 2.83 twice",
    ),
    "by_head_dim": Row("head_loop", "math.sqrt(D)", "D", 4, "scale-without-root", "scores = qh @"),
    "half_scores": Row(
        "bmm3d", " / math.sqrt(D)\n", " / math.sqrt(D)\n        scores = scores.half().double()\n",
        4, "scores-changed", "scores = scores.half()", "it rounds them to float16",
    ),
    # step 5
    "product_with_mask": Row(
        "folded", "mask.triu(1)", "mask.triu()", 5, "mask-hides-diagonal", "mask = mask.triu()"
    ),
    "subtracts_1": Row(
        "helpers", 'float("-inf")', "-1.0", 5, "mask-added-too-weak", "mask = torch.full(",
        "subtract 1",
    ),
    "fill_in_variable": Row(
        "fused", "        scores = scores.masked_fill(mask == 0, float(\"-inf\"))",
        "        low = torch.tensor(0.0)\n        scores = torch.where(mask == 0, low, scores)", 5,
        "mask-filled-with-0", "low = torch.tensor(0.0)",
    ),
    # step 1 again
    "weights_swapped": Row(
        "fused", "q, k, v = self.c_attn(x).chunk(3, dim=-1)",
        "q, v, k = (x @ w.T for w in self.c_attn.weight.chunk(3))\n"
        "        b = self.c_attn.bias\n"
        "        if b is not None:\n"
        "            q, k, v = q + b[:C], k + b[C : 2 * C], v + b[2 * C :]",
        1, "weights-swapped", "q, k, v = q + b[:C]",
    ),
    # step 5 again
    "adds_1": Row(
        "helpers", "s = s + mask", "s = s + (mask == 0)", 5, "mask-added-as-0-and-1",
        "s = s + (mask",
    ),
    # steps 6 to 8
    "log_softmax": Row(
        "helpers", MORE, "        w = F.log_softmax(s, dim=-1)\n", 6, "log-softmax", "F.log_softmax"
    ),
    "over_batch_in_loop": Row(
        "token_loop", "F.softmax(scores, dim=-1)", "F.softmax(scores, dim=0)", 6,
        "softmax-over-batch", "F.softmax(scores, dim=0)", "the sequences of the batch",
    ),
    "over_heads_in_loop": Row(
        "token_loop", "F.softmax(scores, dim=-1)", "F.softmax(scores, dim=1)", 6,
        "softmax-over-heads", "F.softmax(scores, dim=1)",
    ),
    "no_division": Row(
        "helpers", "return e / e.sum(dim=-1, keepdim=True)", "return e", 6,
        "softmax-not-normalised", "e = torch.exp(z)",
    ),
    "no_exp": Row("helpers", "torch.exp(z)", "z", 6, "softmax-without-exp", "return e / e.sum"),
    "no_keepdim": Row(
        "helpers", "e.sum(dim=-1, keepdim=True)", "e.sum(dim=-1)", 6,
        "softmax-divided-by-wrong-sums", "return e / e.sum(dim=-1)", "after that, the file stops",
    ),
    "keys_in_loop": Row(
        "token_loop", "weights[..., None] * past_v", "weights[..., None] * past_k", 7,
        "weights-times-keys", "y[:, :, t] = (weights",
    ),
    "heads_summed": Row(
        "head_loop", "torch.cat(heads, dim=-1)", "sum(heads)", 8, "heads-averaged",
        "y = sum(heads)", "average or add the 3 heads",
    ),
    "wrong_shape": Row(
        "fused", "        return self.resid_dropout(self.c_proj(y))",
        "        y = self.resid_dropout(self.c_proj(y))\n        return y.view(B, T, H, D)", 8,
        "output-shape", "return y.view(B, T, H, D)",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def reports(judge: Judge, request: pytest.FixtureRequest) -> dict[str, FileReport]:
    names = wanted(request, "name")
    texts = {f"{name}.py": row.text() for name, row in ROWS.items() if name in names}
    found = {}
    for file, report in judge("quoted-lines", texts).items():
        assert isinstance(report, FileReport), f"{file}: {report}"
        found[Path(file).stem] = report
    return found


@pytest.mark.long_series
@pytest.mark.parametrize("name", ROWS)
def test_the_wrong_line_is_quoted(reports: dict[str, FileReport], name: str) -> None:
    row, report = ROWS[name], reports[name]
    assert not report.ok
    assert (report.first_wrong_step, report.mistake) == (row.step, row.slug), report.message
    assert row.quoted in report.message.split("`: ")[0], report.message
    assert row.says in report.message


def test_hints_are_about_the_code(judge: Judge) -> None:
    """A loop over the visible keys has no mask, so the first hint is not about a mask's ones."""
    text = (
        STYLES["token_loop"]
        .replace(": t + 1], v", "t:], v")
        .replace("v[:, :, : t + 1]", "v[:, :, t:]")
    )
    report = judge("loop-without-mask", {"loop.py": text})["loop.py"]
    assert isinstance(report, FileReport)
    assert report.mistake == "mask-inverted"
    assert not any("ones" in hint for hint in report.hints[:1])


def test_the_bases_are_right(judge: Judge) -> None:
    for name, report in judge(
        "bases", {"helpers.py": HELPERS, "kernel.py": KERNEL, "folded.py": FOLDED}
    ).items():
        assert isinstance(report, FileReport)
        assert report.ok, f"{name}: {report.message}"


@pytest.mark.parametrize("earlier", [0, 1])
def test_the_line_of_a_transpose_before_contiguous_is_quoted(
    earlier: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line is also quoted if the transpose is the first operation of the trace (index 0)."""
    x = torch.zeros(2, 3)
    names = ["linear"] * earlier + ["transpose", "contiguous", "view"]
    operations = [Operation(i, name, i, [x], [x]) for i, name in enumerate(names)]
    for i, operation in enumerate(operations):
        operation.sources = [i - 1 if i else None]
    forward = SimpleNamespace(
        trace=ForwardTrace(operations),
        found=SimpleNamespace(
            tables={"mixed": None}, values_of_output={(earlier + 2, 0): ["mixed"]}
        ),
    )
    monkeypatch.setattr(quoted_line, "has_layout_of_step", lambda *_: False)
    found = quoted_line._wrong_merge(forward)  # type: ignore[arg-type]
    assert found is operations[earlier]
