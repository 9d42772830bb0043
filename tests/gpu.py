"""`gpu` marks tests that need an NVIDIA GPU. `benchmarks/gpu.py` runs these tests on a GPU."""

from __future__ import annotations

import pytest
import torch

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
