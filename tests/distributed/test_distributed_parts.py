"""The parts of a run with several ranks that one process can test: the ranks' shares, batches,
dropout masks."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import Tensor

from gptcli.config import ModelConfig, TrainConfig
from gptcli.corpus import Batches, TokenStore
from gptcli.distributed import shards
from gptcli.distributed.dropout import Draws
from gptcli.distributed.passes import RankBatches
from gptcli.distributed.share import Share
from gptcli.errors import GptcliError
from gptcli.model.gpt import GPT
from gptcli.training.step import seed_dropout


@pytest.fixture
def tokens(tmp_path: object) -> TokenStore:
    import numpy as np

    return TokenStore([np.arange(997, dtype=np.uint16)])


def order(rows: list[Tensor]) -> str:
    """A hash of sequences. It depends on the order of the sequences, too."""
    return hashlib.sha256(torch.cat(rows).numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("accum", [4, 1])
@pytest.mark.parametrize("ranks", [2, 4])
def test_the_ranks_read_the_order_of_one_process(
    ranks: int, accum: int, tokens: TokenStore
) -> None:
    train = TrainConfig(batch_size=8, grad_accum=accum)
    one = Batches(tokens, 8, 8, seed=3)
    share = Share.of(train, ranks)
    each = [RankBatches(tokens, 8, 3, share, rank) for rank in range(ranks)]
    steps = 40  # several epochs
    alone = [one.batch(k)[0] for k in range(steps * accum)]
    shared = [each[r].batch(k)[0] for k in range(steps * share.count) for r in range(ranks)]
    assert order(shared) == order(alone)


def test_an_uneven_share_is_refused_with_the_nearest_values() -> None:
    with pytest.raises(GptcliError) as refused:
        Share.of(TrainConfig(batch_size=7, grad_accum=6), 4)
    assert "grad_accum 6 nor train.batch_size 7 is a multiple of 4" in refused.value.message
    assert refused.value.hint == (
        "train.batch_size could be 4 or 8, or train.grad_accum 4 or 8, or train with 3 processes"
    )


def losses(accum: int, ranks: int, rank: int, model: GPT, tokens: TokenStore) -> list[float]:
    """The losses of all forward passes that one rank computes in a step with dropout.

    `ranks` is the number of ranks."""
    share = Share.of(TrainConfig(batch_size=8, grad_accum=accum), ranks)
    batches = RankBatches(tokens, 8, 3, share, rank)
    draws = Draws(torch.device("cpu"))
    draws.record(lambda: model.loss(*batches.batch(0)))
    seed_dropout(11, torch.device("cpu"))
    found = []
    for k in range(share.count):
        if share.splits:
            with draws.part(rank, ranks):
                found.append(model.loss(*batches.batch(k)).item())
        else:
            draws.skip(rank if k == 0 else ranks - 1)
            found.append(model.loss(*batches.batch(k)).item())
    return found


@pytest.mark.parametrize("accum", [4, 1])
@pytest.mark.parametrize("arch", ["modern", "gpt2"])
def test_dropout_depends_on_the_place_in_the_step(
    arch: str, accum: int, tokens: TokenStore
) -> None:
    config = ModelConfig(
        arch=arch,
        n_layer=2,
        n_head=2,
        n_embd=16,
        block_size=8,
        dropout=0.3,  # type: ignore[arg-type]
    )
    torch.manual_seed(0)
    model = GPT(config, 1000)
    alone = losses(accum, 1, 0, model, tokens)
    for ranks in (2, 4):
        shared = [losses(accum, ranks, rank, model, tokens) for rank in range(ranks)]
        if accum == 4:
            together = [shared[k % ranks][k // ranks] for k in range(4)]
            assert together == alone
        else:
            assert sum(each[0] for each in shared) / ranks == pytest.approx(alone[0], abs=2e-6)
    assert losses(accum, 2, 1, model, tokens) != losses(accum, 2, 0, model, tokens)


def test_the_masks_of_a_users_dropout_are_split_too() -> None:
    part = torch.nn.Dropout(0.4)
    x = torch.ones(4, 6)
    draws = Draws(torch.device("cpu"))
    draws.record(lambda: part(x))
    seed_dropout(5, torch.device("cpu"))
    whole = part(torch.ones(8, 6))
    for rank in range(2):
        seed_dropout(5, torch.device("cpu"))
        with draws.part(rank, 2):
            assert torch.equal(part(x), whole[4 * rank : 4 * rank + 4])


def test_an_error_of_500_emoji_fits_into_a_message_between_ranks() -> None:
    record = {"error": "\U0001f600" * shards._LONGEST_REASON, "free": 2**60}
    assert shards._unpacked(shards._packed(record)) == record
