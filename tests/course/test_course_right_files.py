"""Right attention files of every style pass the check, with the notes that apply to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptcli.course import check_files
from gptcli.course.report import FileReport
from tests.course.wrong_attention import FILES

OURS = "from gptcli.model.attention import CausalSelfAttention\n"
RIGHT = (
    "course_style",
    "fused_sdpa",
    "einsum:Attention",
    "loop_over_heads",
    "mask_buffer",
    "bare_parameters",
    "plain_mask",
    "ours",
)
VARIANTS = {
    # In this variant, the fused kernel gets a boolean mask and an explicit scale.
    "kept_keys": (
        "fused_sdpa.py",
        "dropout_p=p, is_causal=True",
        "dropout_p=p, attn_mask=torch."
        "ones(x.shape[1], x.shape[1], dtype=torch.bool).tril(), scale=q.shape[-1]**-.5",
    ),
    "smallest_number": ("course_style.py", 'float("-inf")', "torch.finfo(scores.dtype).min"),
    "minus_10000": ("course_style.py", 'float("-inf")', "-1e4"),
    "renormalised": (
        "course_style.py",
        "        if use_dropout:",
        (
            "        weights = weights * mask\n"
            "        weights = weights / weights.sum(-1, keepdim=True)\n        if use_dropout:"
        ),
    ),
    "kept_weights": (
        "plain_mask.py",
        "        y = scores.softmax(dim=-1) @ v",
        "        self.weights = scores.softmax(dim=-1)\n        y = self.weights @ v",
    ),
    "two_tensors": (
        "plain_mask.py",
        "        self.mask = ",
        "        self.scale = torch.tensor(config.n_head)\n        self.mask = ",
    ),
    "no_blocks_config": (
        "mask_buffer.py",
        "config.block_size",
        ("getattr(config, 'block_size', 64)"),
    ),
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FileReport]:
    folder = tmp_path_factory.mktemp("right")
    specs = {}
    for name in RIGHT[:-1]:
        stem, _, cls = name.partition(":")
        specs[name] = f"{FILES / stem}.py" + (f":{cls}" if cls else "")
    written = {"ours": OURS}
    for name, (file, old, new) in VARIANTS.items():
        text = (FILES / file).read_text(encoding="utf-8")
        assert old in text
        written[name] = "import torch\n" + text.replace(old, new)
    for name, text in written.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
        specs[name] = str(folder / f"{name}.py")
    found = {}
    for name, report in zip(specs, check_files(specs.values()), strict=True):
        assert isinstance(report, FileReport), f"{name}: {report}"
        found[name] = report
    return found


@pytest.mark.parametrize("name", [*RIGHT, *VARIANTS])
def test_right_files_pass(reports: dict[str, FileReport], name: str) -> None:
    report = reports[name]
    assert report.ok, report.message
    assert report.mistake is None
    assert report.hints == ()
    assert report.first_wrong_step is None
    assert {c.name for c in report.checks} >= {
        "constructor",
        "projections",
        "shape",
        "input untouched",
        "evaluation",
        "causal",
        "output",
        "several lengths",
        "gradients",
        "float32",
        "training",
        "dropout",
    }
    assert all(check.ok for check in report.checks)


def notes(report: FileReport) -> dict[str, str]:
    return {check.name: check.detail for check in report.checks if check.note}


def test_right_files_get_their_notes(reports: dict[str, FileReport]) -> None:
    """course_style.py gets no note about dropout, because the check finds both of its dropouts.

    They are the attention dropout after `if use_dropout`, and the residual dropout before
    c_proj."""
    for name in ("course_style", "fused_sdpa", "einsum:Attention", "loop_over_heads", "ours"):
        assert notes(reports[name]) == {}
    assert list(notes(reports["mask_buffer"])) == ["block_size"]
    assert notes(reports["no_blocks_config"]) == {}
    plain = notes(reports["plain_mask"])
    assert set(plain) == {"dropout", "mask", "block_size"}
    assert "none acts in training" in plain["dropout"]
    assert "`mask` is a plain tensor" in plain["mask"]
    # forward replaces the attention weights that the module keeps, so they are always on x's device
    assert notes(reports["kept_weights"]) == plain
    assert "`scale` and `mask` are plain tensors" in notes(reports["two_tensors"])["mask"]


DROPOUTS = {
    "attention_alone": (
        "fused_sdpa.py",
        "p, self.training)",
        "0.0, self.training)",
        "acts on the attention weights in training, never on the output",
    ),
    "output_alone": (
        "fused_sdpa.py",
        "dropout_p=p",
        "dropout_p=0.0",
        "acts on the output in training, never on the attention weights",
    ),
    "not_scaled": (
        "fused_sdpa.py",
        "p, self.training)",
        "p, self.training) * (1 - p)",
        "multiplied by 2, expected 4",
    ),
    "values": (
        "fused_sdpa.py",
        "attention(q, k, v,",
        "attention(q, k, F.dropout(v, p),",
        "acts on the values in training",
    ),
    "twice": (
        "fused_sdpa.py",
        "return F.dropout(self.c_proj(y.transpose(1, 2).flatten(2)), p, self.training)",
        "y = F.dropout(y, p)\n"
        "        return F.dropout(self.c_proj(y.transpose(1, 2).flatten(2)), p)",
        "acts in 3 lines in training",
    ),
    "float32_inside": (
        "mask_buffer.py",
        "self.mask[:T, :T]",
        "self.mask[:T, :T].to(torch.promote_types(x.dtype, torch.float32))",
        "does not work in bfloat16",
    ),
}


def test_odd_dropout_and_bfloat16_are_notes(tmp_path: Path) -> None:
    specs = []
    for name, (file, old, new, _) in DROPOUTS.items():
        text = (FILES / file).read_text(encoding="utf-8")
        assert old in text
        (tmp_path / f"{name}.py").write_text(text.replace(old, new), encoding="utf-8")
        specs.append(str(tmp_path / f"{name}.py"))
    for (name, (*_, says)), report in zip(DROPOUTS.items(), check_files(specs), strict=True):
        assert isinstance(report, FileReport), name
        assert report.ok, report.message
        assert any(says in note for note in notes(report).values()), notes(report)
