"""possible_layouts finds the projections in a learner's module.

Values that are written into these projections change the module.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from gptcli.course import load_attention
from gptcli.course.attention.conventions.layout import Sizes
from gptcli.course.attention.conventions.possible_layouts import possible_layouts
from gptcli.course.attention.conventions.weights import role_of
from gptcli.course.attention.projections import ProjectionError, Projections
from tests.course.wrong_attention import FILES

CONFIG = SimpleNamespace(n_embd=10, n_head=2, dropout=0.0, bias=True, block_size=4)
SIZES = Sizes(C=10, H=2)


def first(module: nn.Module) -> Projections:
    return possible_layouts(module, SIZES, needs_output=True)[0].projections(module, SIZES)


@pytest.mark.parametrize(
    "spec", ["course_style.py", "fused_sdpa.py", "einsum.py:Attention", "loop_over_heads.py"]
)
def test_writing_into_projections_changes_the_module(spec: str) -> None:
    module = load_attention(str(FILES / spec))(CONFIG)
    x = torch.randn(2, 3, 10)
    before = module.eval()(x)
    with torch.no_grad():
        for _, part in first(module).items():
            assert part.weight.shape == (10, 10)
            assert part.bias is not None
            part.weight.mul_(2.0)
            part.bias.add_(1.0)
    assert not torch.allclose(module(x), before)


def test_bare_matrices_can_be_rows_or_columns() -> None:
    module = load_attention(str(FILES / "bare_parameters.py"))(CONFIG)
    layouts = possible_layouts(module, SIZES, needs_output=True)
    assert [layout.columns for layout in layouts] == [False, True]
    rows, columns = (layout.projections(module, SIZES) for layout in layouts)
    assert torch.equal(rows.query.weight, columns.query.weight.T)
    assert torch.equal(rows.output.weight, columns.output.weight.T)


def test_fused_columns_are_unambiguous() -> None:
    module = nn.Module()
    module.c_attn = nn.Parameter(torch.randn(10, 30))
    module.c_proj = nn.Linear(10, 10)
    assert torch.equal(first(module).key.weight, module.c_attn[:, 10:20].T)


NAMES_OF_BIASES = (
    *("c_attn_w c_attn_b c_proj_w c_proj_b", "att_W att_B ff_W ff_B", "qkvWeight qkvBias oW oB"),
    *("w_qkv b_qkv w_out b_out", "wqkv bqkv wo bo", "in_weight in_bias out_weight out_bias"),
    "attn_kernel first proj_kernel second",
)


@pytest.mark.parametrize("names", NAMES_OF_BIASES)
def test_each_matrix_gets_its_own_bias(names: str) -> None:
    fused, fused_bias, out, out_bias = names.split()
    module = nn.Module()
    for name, shape in ((out_bias, (10,)), (fused_bias, (30,)), (fused, (30, 10)), (out, (10, 10))):
        module.register_parameter(name, nn.Parameter(torch.randn(shape)))
    found = first(module)
    assert found.key.bias is not None
    assert found.output.bias is not None
    assert torch.equal(found.key.bias, module.get_parameter(fused_bias)[10:20])
    assert torch.equal(found.output.bias, module.get_parameter(out_bias))


def test_a_list_of_heads_is_stacked_and_can_be_scaled() -> None:
    module = nn.Module()
    module.heads = nn.ModuleList(nn.ModuleDict({n: nn.Linear(10, 5) for n in "qkv"}) for _ in "ab")
    found = first(module)
    second = module.heads[1]["k"]
    assert torch.equal(found.key.weight[5:], second.weight)
    assert torch.equal(found.output.weight, torch.eye(10))
    found.key.scale(3.0)
    assert torch.equal(second.weight, 3.0 * found.key.weight[5:])


def test_unknown_and_missing_names() -> None:
    module = nn.Module()
    module.a, module.b = nn.Linear(10, 70), nn.Linear(70, 10)
    with pytest.raises(ProjectionError, match="`a`, `b`") as caught:
        first(module)
    assert caught.value.unnamed
    module = nn.Module()
    module.query, module.key, module.value = (nn.Linear(10, 10) for _ in range(3))
    with pytest.raises(ProjectionError, match="no c_proj") as caught:
        first(module)
    assert not caught.value.unnamed
    assert caught.value.missing == "output"


ROLES = {
    "q": "query W_query wq w_q W_Q Wq q_proj to_q q_linear queries fc_q query_layer toqueries w_qs",
    "k": "key W_key wk k_proj to_k keys tokeys heads.*.key linear_k key_projection k_lin",
    "v": "value W_value wv v_proj values tovalues heads.*.W_value linear_values v_net",
    "o": "c_proj o_proj out_proj proj wo W_o fc_out out output_linear unifyheads w_concat to_out.0",
    "qkv": "qkv c_attn to_qkv Wqkv in_proj in_proj_weight kqv query_key_value qkv_layer att_proj",
    "kv": "kv_proj to_kv W_KV key_value",
}


@pytest.mark.parametrize(("role", "names"), ROLES.items())
def test_names_of_other_conventions_have_a_role(role: str, names: str) -> None:
    assert {name: role_of(name) for name in names.split()} == dict.fromkeys(names.split(), role)


def test_names_without_a_role() -> None:
    assert [role_of(name) for name in ("linear", "fc", "linears.*", "layer")] == [None] * 4
