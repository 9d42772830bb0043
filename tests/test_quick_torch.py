"""import_torch leaves out parts of PyTorch, which are imported as soon as a program uses them."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = (
    "import torch._prims",
    "import torch._inductor",
    "import torch._refs",
    "import torch._decomp.decompositions",
    "import torch._export.utils",
    "import torch.export; torch.export.Dim; from torch.export._tree_utils import reorder_kwargs",
    "import torch.export._tree_utils as t; assert t is sys.modules['torch.export._tree_utils']",
    "from torch import export; export.export",
    "assert torch.compile(lambda x: x * 2, backend='eager')(torch.ones(2))[0] == 2",
    "torch.vmap(lambda a: a @ torch.ones(3))(torch.ones(2, 4, 3))",
    "from torch.utils.flop_counter import FlopCounterMode",
    "from torch.fx.experimental import proxy_tensor as p; p.make_fx(lambda a: -a)(torch.ones(2))",
    "torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])",
    "from torch.nn.attention.flex_attention import flex_attention",
    "import torch.distributed.fsdp",
    "torch.autograd.gradcheck(torch.sin, torch.ones(2, dtype=torch.double, requires_grad=True))",
    "assert (torch.empty(2, device='meta') + 1).softmax(0).shape == (2,)",
    "import copy; copy.deepcopy(torch.nn.MultiheadAttention(4, 2))(*[torch.ones(3, 2, 4)] * 3)",
    "assert len(dir(torch._meta_registrations)) > 100",
)


def python(code: str) -> str:
    start = (
        "import sys\nfrom gptcli.quick_torch import import_torch\nimport_torch()\nimport torch\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", start + code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_tensors_modules_and_generators_need_no_more() -> None:
    code = (
        "torch.manual_seed(3)\n"
        "layer = torch.nn.Linear(2, 3)\n"
        "layer(torch.rand(4, 2)).softmax(-1).sum().backward()\n"
        "torch.nn.functional.scaled_dot_product_attention(*[torch.ones(1, 2, 3, 4)] * 3)\n"
        "print('torch._prims' in sys.modules)\n"
    )
    assert python(code) == "False\n"


@pytest.mark.slow
@pytest.mark.parametrize("code", CODE)
def test_everything_else_is_imported_when_it_is_used(code: str) -> None:
    python(code)
