# ruff: noqa: E501 -- the replaced lines are written as people write them
"""The check names mistakes that people really make.

Examples are a wrong scale after the mask, and heads that are not transposed before a fused kernel.
"""

from __future__ import annotations

import pytest

from gptcli.course.report import FileReport
from gptcli.course.sandbox.prints import few_prints
from gptcli.errors import GptcliError
from tests.conftest import wanted
from tests.course.conftest import Judge

HEAD = """import math

import torch
import torch.nn.functional as F
from torch import nn


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        bias = config.bias
        self.query = nn.Linear(config.n_embd, config.n_embd, bias=bias)
        self.key = nn.Linear(config.n_embd, config.n_embd, bias=bias)
        self.value = nn.Linear(config.n_embd, config.n_embd, bias=bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=bias)

    def forward(self, x):
        B, T, C = x.shape
        H, D = self.n_head, C // self.n_head
        q = self.query(x).view(B, T, H, D).transpose(1, 2)
        k = self.key(x).view(B, T, H, D).transpose(1, 2)
        v = self.value(x).view(B, T, H, D).transpose(1, 2)
"""
LATE = """        s = q @ k.transpose(-2, -1)
        hidden = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
        s = s.masked_fill(hidden, -torch.inf)
        w = F.softmax(s / D**0.5, dim=-1)
"""
USUAL = """        s = q @ k.transpose(-2, -1) / math.sqrt(D)
        s = s.masked_fill(torch.ones(T, T).tril() == 0, float("-inf"))
        w = F.softmax(s, dim=-1)
"""
END = """        y = (w @ v).transpose(1, 2).reshape(B, T, C)
        return self.c_proj(y)
"""
KERNEL = """        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))
"""
VIEWS = HEAD[HEAD.index("        q = ") :]
START = HEAD.removesuffix(VIEWS)
NOT_TURNED = VIEWS.replace(".transpose(1, 2)", "")
FUSED = (
    START.replace(
        "        self.query = nn.Linear(config.n_embd, config.n_embd, bias=bias)\n",
        "        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=bias)\n",
    )
    .replace("        self.key = nn.Linear(config.n_embd, config.n_embd, bias=bias)\n", "")
    .replace("        self.value = nn.Linear(config.n_embd, config.n_embd, bias=bias)\n", "")
)
IN_A_LIST = HEAD.replace(
    "        self.query", "        self.norms = [nn.Identity()]\n        self.query"
)
# A fused layer whose name does not say in which order it holds queries, keys and values.
ANY_ORDER = (
    FUSED.replace("c_attn", "att_proj")
    + """        v, k, q = (
            t.view(B, T, H, D).transpose(1, 2) for t in self.att_proj(x).chunk(3, dim=-1)
        )
"""
)
NO_NAMES = ANY_ORDER.replace("v, k, q", "third, second, first") + USUAL.replace(
    "q @ k", "first @ second"
)
NEEDS_MASK = (
    HEAD.replace("forward(self, x)", "forward(self, x, mask)")
    + """        s = q @ k.transpose(-2, -1) / math.sqrt(D)
        w = F.softmax(s + mask, dim=-1)
"""
)
LATE_SCALE = "F.softmax(s / D**0.5"
# File name -> the text of the file, the step that the report must name (None: no step), the slug of
# the mistake (None: any slug), and a part of the message.
WRONG: dict[str, tuple[str, int | None, str | None, str]] = {
    "late-sqrt-c": (
        HEAD + LATE.replace("D**0.5", "math.sqrt(C)") + END, 4, "scale-sqrt-n-embd", "math.sqrt(C)",
    ),
    "late-d": (HEAD + LATE.replace("D**0.5", "D") + END, 4, "scale-without-root", "s / D, dim"),
    "late-sqrt-t": (HEAD + LATE.replace("D**0.5", "T ** .5") + END, 4, None, "s / T ** .5"),
    "late-times": (HEAD + LATE.replace("/ D**0.5", "* math.sqrt(D)") + END, 4, None, "* math.sqrt"),
    "late-typo": (HEAD + LATE.replace("D**0.5", "D ** 0/5") + END, 4, None, "D ** 0/5"),
    "late-missing": (HEAD + LATE.replace(" / D**0.5", "") + END, 4, "scale-missing", ""),
    "late-inverted": (HEAD + LATE.replace("triu(1)", "tril(-1)") + END, 5, None, ""),
    "late-diagonal": (HEAD + LATE.replace("triu(1)", "triu(2)") + END, 5, None, "triu(2)"),
    "not-turned": (START + NOT_TURNED + KERNEL.replace(".transpose(1, 2)", ""), 2, None, ".view("),
    "one-not-turned": (
        START + VIEWS.replace("q = self.query(x).view(B, T, H, D).transpose(1, 2)",
                              "q = self.query(x).view(B, H, T, D)") + KERNEL, 2, None, "q = ",
    ),
    "fused-view": (
        FUSED + "        q, k, v = self.c_attn(x).view(B, H, T, 3 * D).chunk(3, dim=-1)\n" + KERNEL,
        1, None, "",
    ),
    "by-value": (
        HEAD + USUAL.replace("s = s.masked_fill(torch.ones(T, T).tril() == 0",
                             "s = torch.tril(s)\n        s = s.masked_fill(s == 0") + END,
        5, "mask-by-value", "masked_fill(s == 0",
    ),
    "by-product": (
        HEAD + USUAL.replace("s = s.masked_fill(torch.ones(T, T).tril() == 0, float(\"-inf\"))",
                             "s = s * torch.ones(T, T).tril()\n        s[s == 0] = -1e9") + END,
        5, "mask-by-value", "",
    ),
    "all-turned": (HEAD + USUAL.replace("k.transpose(-2, -1)", "k.T") + END, 4, "raises", "k.T"),
    "list": (
        IN_A_LIST + USUAL + END, 1, "plain-list", "`norms` is a plain Python list, tuple or dict of modules",
    ),
    "bias-and-scale": (
        (HEAD + USUAL + END).replace("bias = config.bias", "bias = True").replace("sqrt(D)", "sqrt(C)"),
        4, "scale-sqrt-n-embd", "sqrt(C)",
    ),
    "rotary": (
        (HEAD + USUAL + END).replace("        s = q @", "        q = rotate_half(q)\n        s = q @")
        .replace("class Causal", "def rotate_half(x):\n    return x.flip(-1)\n\n\nclass Causal"),
        None, "rotary-positions", "rotary positions are no part of the attention",
    ),
    "normalised": (
        (HEAD + USUAL + END).replace("        self.c_proj", "        self.q_norm = nn.LayerNorm("
                                     "config.n_embd // config.n_head)\n        self.c_proj")
        .replace("        s = q @", "        q = self.q_norm(q)\n        s = q @"),
        None, "normalises", "(`q_norm`)",
    ),
    "additive-after-softmax": (
        HEAD + "        s = q @ k.mT / math.sqrt(D)\n"
        "        w = s.softmax(-1) + torch.full((T, T), -torch.inf).triu(1)\n" + END,
        5, "mask-after-softmax", "your mask comes after the softmax",
    ),
    "any-order-scale": (
        ANY_ORDER + USUAL.replace("sqrt(D)", "sqrt(C)") + END, 4, "scale-sqrt-n-embd", "sqrt(C)",
    ),
    "any-order-mask": (
        ANY_ORDER + USUAL.replace("== 0", "== 1") + END, 5, "mask-inverted", "upside down",
    ),
    "any-order-split": (
        ANY_ORDER + "        k = k.transpose(1, 2).reshape(B, T, D, H).permute(0, 3, 1, 2)\n" + USUAL + END,
        2, "heads-interleaved", "reshape(B, T, D, H)",
    ),
    "any-order-no-names": (
        NO_NAMES.replace("sqrt(D)", "sqrt(C)") + END.replace("w @ v", "w @ third"),
        4, "scale-sqrt-n-embd", "sqrt(C)",
    ),
    "added-mask-merge": (
        NEEDS_MASK + END.replace(".transpose(1, 2)", ""), 8, "merge-without-transpose", "time",
    ),
    "added-mask-softmax": (
        NEEDS_MASK.replace("dim=-1", "dim=-2") + END, 6, "softmax-over-queries", "dim=-2",
    ),
    "mask-of-layer": (
        HEAD[: HEAD.index("        self.n_head")]
        + "        self.layer = nn.MultiheadAttention(config.n_embd, config.n_head, batch_first=True)\n\n"
        "    def forward(self, x):\n"
        "        T = x.shape[1]\n"
        "        mask = torch.ones(T, T, dtype=torch.bool).tril()\n"
        "        return self.layer(x, x, x, attn_mask=mask)[0]\n",
        5, "mask-inverted", "`mask = torch.ones(T, T, dtype=torch.bool).tril()`",
    ),
    "names": (
        (HEAD + USUAL + END).replace("self.value(x)", "self.valeu(x)"), 1, "raises", "valeu",
    ),
}  # fmt: skip
NOTES = {
    "late": (HEAD + LATE + END, None, ""),
    "float-scale": (
        HEAD + USUAL.replace("math.sqrt(D)", "torch.sqrt(torch.FloatTensor([D]))") + END,
        "precision", "step 4: line ",
    ),
    "float-softmax": (
        HEAD + USUAL.replace("dim=-1)", "dim=-1, dtype=torch.float32)") + END,
        "float64", "works only in float32",
    ),
    "bias": ((HEAD + USUAL + END).replace("bias = config.bias", "bias = True"), "bias", "follow"),
    "tuple": (
        (HEAD + USUAL + END).replace("return self.c_proj(y)", "return self.c_proj(y), w"),
        "forward", "several things",
    ),
}  # fmt: skip
ERRORS = {
    "einops": (
        ("import einops\n" + HEAD + USUAL + END).replace(
            "(w @ v).transpose", "einops.rearrange(w @ v, 'b h t d -> b h t d').transpose"
        ),
        "No module named 'einops'", "pip install einops",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def reports(judge: Judge, request: pytest.FixtureRequest) -> dict[str, FileReport | GptcliError]:
    names = wanted(request, "name", "by-value")
    texts = {
        f"{name}.py": text
        for group in (WRONG, NOTES, ERRORS)
        for name, (text, *_) in group.items()
        if name in names
    }
    found = judge("real-mistakes", texts)
    return {file.removesuffix(".py"): result for file, result in found.items()}


@pytest.mark.long_series
@pytest.mark.parametrize("name", WRONG)
def test_wrong_files(reports: dict[str, FileReport], name: str) -> None:
    _, step, mistake, says = WRONG[name]
    report = reports[name]
    assert isinstance(report, FileReport), report
    assert not report.ok
    assert report.first_wrong_step == step, report.message
    assert mistake is None or report.mistake == mistake, report.message
    assert says in report.message


@pytest.mark.long_series
@pytest.mark.parametrize("name", NOTES)
def test_right_files_with_notes(reports: dict[str, FileReport], name: str) -> None:
    _, note, says = NOTES[name]
    report = reports[name]
    assert isinstance(report, FileReport), report
    assert report.ok, report.message
    if note is not None:
        (detail,) = [c.detail for c in report.checks if c.note and c.name == note]
        assert says in detail


@pytest.mark.parametrize("name", ERRORS)
def test_files_that_need_something_else(reports: dict[str, GptcliError], name: str) -> None:
    pytest.importorskip("torch")
    _, says, hint = ERRORS[name]
    error = reports[name]
    if isinstance(error, FileReport):
        pytest.skip("the package is installed here")
    assert says in error.message
    assert hint in (error.hint or "")


def test_no_step_is_ticked_whose_numbers_were_not_seen(reports: dict[str, FileReport]) -> None:
    for name, report in reports.items():
        if name not in WRONG:
            continue
        assert isinstance(report, FileReport), report
        _, step, *_ = WRONG[name]
        picture = report.picture
        if step is None or picture is None:
            continue
        states = {mark.step: mark.state for mark in picture.steps}
        assert states.get(step) == "wrong", name
        assert all(states[n] in ("right", "unseen") for n in states if n < step), name
    states = [mark.state for mark in reports["by-value"].picture.steps]  # type: ignore[union-attr]
    assert "right" in states[:4]


def test_many_prints_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with few_prints():
        for number in range(1234):
            print("line", number)
    printed = capsys.readouterr().err
    assert printed.count("line") == 20 + 1
    assert printed.endswith("line 19\n... and 1,214 more lines printed by this file\n")
    with few_prints():
        print("line\n" * 21, end="")
    assert capsys.readouterr().err.endswith("... and 1 more line printed by this file\n")
    with few_prints():
        print("once")
    assert capsys.readouterr().err == "once\n"


def test_forward_can_take_a_positional_only_mask(judge: Judge) -> None:
    text = (NEEDS_MASK + END).replace("(self, x, mask)", "(self, x, mask, /)")
    (report,) = judge("positional-only", {"only.py": text}).values()
    assert isinstance(report, FileReport), report
    assert report.ok, report.message
