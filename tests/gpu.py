"""The mark of tests that need an NVIDIA GPU. `benchmarks/gpu.py` runs them on one."""

from __future__ import annotations

import pytest
import torch

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
