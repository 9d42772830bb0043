"""The passage that a run records at each evaluation (LookedInside): the loss of each token, and the
attention maps."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from gptcli.config import ModelConfig
from gptcli.events import LookedInside
from gptcli.model.gpt import GPT
from gptcli.model.inside import attention_maps
from gptcli.model.user_parts import UserParts
from gptcli.training.passage import PASSAGE, Passage
from gptcli.view.metrics import passage_record


class Store:
    """A token store that takes the place of the validation split.

    Its ids repeat in a fixed pattern."""

    def __init__(self, length: int, vocab_size: int = 20) -> None:
        self._ids = torch.arange(length) * 7 % vocab_size

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, start: int, stop: int) -> Any:
        return self._ids[start:stop]


def a_model(n_layer: int = 2, n_head: int = 2, block_size: int = 40, **more: Any) -> GPT:
    torch.manual_seed(0)
    config = ModelConfig(
        arch="gpt2", n_layer=n_layer, n_head=n_head, n_embd=8 * n_head, block_size=block_size
    )
    model = GPT(config, 20, **more).eval()
    # Add noise. Otherwise all heads would be alike, and the loss of each token would be that of a
    # uniform guess.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


def looked(store: Any, model: GPT, step: int = 5) -> list[LookedInside]:
    return list(Passage(store, model.config.block_size, lambda: model).look(step))


def test_the_losses_are_those_of_the_network() -> None:
    model = a_model()
    (found,) = looked(Store(500), model)
    ids = torch.tensor(found.ids)
    assert (found.step, len(ids), len(found.losses)) == (5, 41, 40)
    with torch.no_grad():
        logits = model(ids[None, :-1])
        logits = logits[0] if isinstance(logits, tuple) else logits
    wanted = F.cross_entropy(logits.reshape(-1, 20).float(), ids[1:], reduction="none")
    assert found.losses == pytest.approx(wanted.tolist(), abs=2e-3)


def test_the_maps_are_those_of_the_first_tokens() -> None:
    """Each map holds the lower triangle of the attention weights, a byte for each weight.

    The weight 1 is the byte 255."""
    model = a_model()
    (found,) = looked(Store(500), model)
    T = 24
    maps = attention_maps(model, list(found.ids[:T]))
    assert maps is not None
    assert [len(layer) for layer in found.maps] == [2, 2]
    for layer, heads in enumerate(found.maps):
        for head, triangle in enumerate(heads):
            assert len(triangle) == T * (T + 1) // 2
            start = 0
            for t in range(T):
                row = triangle[start : start + t + 1]
                start += t + 1
                wanted = (255 * maps[layer][head, t, : t + 1]).round().tolist()
                assert all(abs(a - b) <= 1 for a, b in zip(row, wanted, strict=True))


def test_a_longer_context_does_not_make_the_passage_longer() -> None:
    (found,) = looked(Store(5000), a_model(block_size=400))
    assert len(found.ids) == PASSAGE + 1


def test_many_heads_get_maps_of_fewer_tokens() -> None:
    model = a_model(n_layer=12, n_head=16, block_size=24)
    (found,) = looked(Store(500), model)
    cells = len(found.maps) * len(found.maps[0]) * 2 * len(found.maps[0][0])
    assert cells < 1.3 * 40 * 24 * 24
    assert len(found.maps[0][0]) >= 8 * 9 // 2


@pytest.mark.parametrize("store", [None, Store(0), Store(1)])
def test_without_a_validation_text_there_is_no_passage(store: Any) -> None:
    assert looked(store, a_model()) == []


def test_a_short_validation_text_is_read_whole() -> None:
    (found,) = looked(Store(3), a_model())
    assert len(found.ids) == 3
    assert len(found.losses) == 2
    assert len(found.maps[0][0]) == 3


def test_the_user_s_attention_has_losses_and_no_maps() -> None:
    class Mean(torch.nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.c_proj = torch.nn.Linear(config.n_embd, config.n_embd, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            count = torch.arange(1, x.shape[1] + 1)[None, :, None]
            return self.c_proj(x.cumsum(1) / count)  # type: ignore[no-any-return]

    (found,) = looked(Store(500), a_model(user_parts=UserParts(attention=Mean)))
    assert found.maps == ()
    assert all(math.isfinite(loss) for loss in found.losses)


def test_looking_draws_no_random_number_and_changes_no_weight() -> None:
    model = a_model()
    before = [parameter.clone() for parameter in model.parameters()]
    state = torch.get_rng_state()
    looked(Store(500), model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_record_gives_back_the_event_and_knows_no_nan() -> None:
    event = LookedInside(3, (1, 2, 3), (0.5, math.nan), ((bytes([255, 0, 255]),),))
    record = json.loads(json.dumps(passage_record(event), allow_nan=False))
    assert record["losses"] == [0.5, None]
    assert (record["step"], record["ids"]) == (3, [1, 2, 3])
    assert base64.b64decode(record["maps"][0][0]) == bytes([255, 0, 255])


def test_a_run_has_one_record_for_each_evaluation(trained: Path) -> None:
    records = [
        json.loads(line) for line in (trained / "attention.jsonl").read_text("utf-8").splitlines()
    ]
    metrics = [
        json.loads(line) for line in (trained / "metrics.jsonl").read_text("utf-8").splitlines()
    ]
    assert [one["step"] for one in records] == [
        one["step"] for one in metrics if one["kind"] == "eval"
    ]
