"""find_projections maps the parameters of a learner's module, as views that can be written."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from gptcli.course import load_attention
from gptcli.course.attention.projections import ProjectionError, find_projections, is_ambiguous
from tests.course.wrong_attention import FILES

CONFIG = SimpleNamespace(n_embd=6, n_head=2, dropout=0.0, bias=True, block_size=4)


@pytest.mark.parametrize(
    "spec", ["course_style.py", "fused_sdpa.py", "einsum.py:Attention", "loop_over_heads.py"]
)
def test_writing_into_projections_changes_the_module(spec: str) -> None:
    module = load_attention(str(FILES / spec))(CONFIG)
    x = torch.randn(2, 3, 6)
    before = module.eval()(x)
    with torch.no_grad():
        for _, part in find_projections(module, 6).items():
            assert part.weight.shape == (6, 6)
            assert part.bias is not None
            part.weight.mul_(2.0)
            part.bias.add_(1.0)
    assert not torch.allclose(module(x), before)
    assert not is_ambiguous(module, 6)


def test_bare_matrices_can_be_rows_or_columns() -> None:
    module = load_attention(str(FILES / "bare_parameters.py"))(CONFIG)
    rows, columns = find_projections(module, 6), find_projections(module, 6, columns=True)
    assert is_ambiguous(module, 6)
    assert torch.equal(rows.query.weight, columns.query.weight.T)
    assert torch.equal(rows.output.weight, columns.output.weight.T)


def test_fused_columns_are_unambiguous() -> None:
    module = nn.Module()
    module.c_attn = nn.Parameter(torch.randn(6, 18))
    module.c_proj = nn.Linear(6, 6)
    assert torch.equal(find_projections(module, 6).key.weight, module.c_attn[:, 6:12].T)


def test_unknown_and_missing_names() -> None:
    module = nn.Module()
    module.query, module.key, module.value = (nn.Linear(6, 6) for _ in range(3))
    module.proj = nn.Linear(6, 6)
    with pytest.raises(ProjectionError, match="`proj`") as caught:
        find_projections(module, 6)
    assert caught.value.unnamed
    del module.proj
    with pytest.raises(ProjectionError, match="no c_proj") as caught:
        find_projections(module, 6)
    assert not caught.value.unnamed
    assert caught.value.missing == "output"
