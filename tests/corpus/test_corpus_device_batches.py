"""The batches that are copied to a device equal those of Batches, even if a thread reads them in
advance."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from gptcli.corpus import Batches, TokenStore
from gptcli.corpus.device_batches import DeviceBatches


@pytest.mark.parametrize("ahead", [False, True])
def test_batches_are_the_same_in_any_order(ahead: bool) -> None:
    store = TokenStore([np.arange(300, dtype=np.uint16)])
    plain = Batches(store, 8, 4, seed=1)
    batches = DeviceBatches(Batches(store, 8, 4, seed=1), torch.device("cpu"))
    if ahead:
        batches._reader = ThreadPoolExecutor(1)
    for k in (0, 1, 2, 2, 7, 8, 40, 3):
        for ours, theirs in zip(batches.batch(k), plain.batch(k), strict=True):
            assert torch.equal(ours, theirs)
    batches.close()


def test_a_read_error_reaches_the_caller() -> None:
    class Broken:
        def batch(self, k: int) -> None:
            raise OSError(f"batch {k}")

    batches = DeviceBatches(Broken(), torch.device("cpu"))  # type: ignore[arg-type]
    batches._reader = ThreadPoolExecutor(1)
    with pytest.raises(OSError, match="batch 4"):
        batches.batch(4)
    batches.close()
