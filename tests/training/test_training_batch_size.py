"""`train.batch_size: auto`: the largest micro-batch that fits. A resume keeps this number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptcli.config_files import parse_config
from gptcli.errors import GptcliError
from gptcli.events import Event
from gptcli.training import batch_size, run_folder
from gptcli.training.batch_size import largest_that_fits, with_fitting_batch_size
from gptcli.training.loop import Setup
from gptcli.training.setup import Prepared, prepare_resume
from tests.training.conftest import BASE

Drive = Callable[..., list[Event]]
WORDS = [word for word in BASE if "batch_size" not in word]


@pytest.mark.parametrize(
    ("sequences", "limit", "ranks", "found"),
    [
        (64, 1000, 1, 64),
        (64, 64, 1, 64),
        (64, 63, 1, 32),
        (64, 1, 1, 1),
        (64, 0, 1, None),
        (48, 40, 1, 24),  # 32 sequences would fit, but 32 does not divide 48
        (1, 1, 1, 1),
        # Four processes share the 64 sequences, so each takes one micro-batch of 16.
        (64, 1000, 4, 16),
        (64, 10, 4, 8),
        # Four processes cannot share 6 sequences. Share.of raises an error, the search does not.
        (6, 100, 4, 6),
    ],
)
def test_the_largest_number_that_fits_and_divides(
    sequences: int, limit: int, ranks: int, found: int | None
) -> None:
    asked: list[int] = []

    def fits(rows: int) -> bool:
        asked.append(rows)
        return rows <= limit

    assert largest_that_fits(sequences, ranks, fits) == found
    assert asked == sorted(set(asked))
    # The search ends at the first size that does not fit.
    assert sum(rows > limit for rows in asked) <= 1


def config_of(*overrides: str) -> Any:
    return parse_config("", ["train.batch_size=auto", "train.grad_accum=4", *WORDS, *overrides])


def limited(monkeypatch: pytest.MonkeyPatch, rows: int, config: Any = None) -> None:
    """Let the machine have just the memory for training with micro-batches of `rows` sequences."""
    config = config or config_of()
    sized = config.model_copy(
        update={"train": config.train.model_copy(update={"batch_size": rows})}
    )
    need: list[int] = []
    real = batch_size.training_bytes
    monkeypatch.setattr(batch_size, "memory_for_training", lambda device: 1e15)
    monkeypatch.setattr(batch_size, "training_bytes", lambda *a: need.append(real(*a)) or need[-1])
    batch_size._fits_in_memory(sized, 65, batch_size.choose_device("cpu"), None, 1)
    available = need[-1] / batch_size.USABLE_SHARE + 1
    monkeypatch.setattr(batch_size, "memory_for_training", lambda device: available)
    monkeypatch.setattr(batch_size, "training_bytes", real)


@pytest.mark.parametrize(("rows", "found"), [(64, (64, 1)), (40, (32, 2)), (3, (2, 32))])
def test_memory_decides_and_the_step_stays_as_large(
    rows: int, found: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch, rows)
    config, notes = with_fitting_batch_size(config_of(), 65)
    assert (config.train.batch_size, config.train.grad_accum) == found
    assert config.train.sequences == 64 == config_of().train.sequences
    assert notes == [
        f"train.batch_size: auto is {found[0]}, with train.grad_accum {found[1]}: a step has 64 "
        "sequences"
    ]


def test_processes_share_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, 64)
    alone, _ = with_fitting_batch_size(config_of(), 65)
    shared, _ = with_fitting_batch_size(config_of(), 65, ranks=2)
    assert alone.train.rows == 64
    assert shared.train.rows < 32
    assert shared.train.grad_accum % 2 == 0


def test_a_number_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, 1)
    config = parse_config("", ["train.batch_size=64", *WORDS])
    assert with_fitting_batch_size(config, 65) == (config, [])


def test_a_network_that_does_not_fit_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size, "memory_for_training", lambda device: 1000.0)
    with pytest.raises(GptcliError, match="not even one sequence fits") as raised:
        with_fitting_batch_size(config_of(), 65)
    assert "model.block_size (now 16)" in raised.value.hint


def test_fsdp_in_several_processes_is_refused() -> None:
    config = config_of("run.parallel=fsdp")
    # In a single process, run.parallel: fsdp is allowed.
    assert with_fitting_batch_size(config, 65)[0].train.batch_size == 64
    with pytest.raises(GptcliError, match=r"does not work with run\.parallel: fsdp"):
        with_fitting_batch_size(config, 65, ranks=2)


def test_a_gpu_tries_steps_until_its_memory_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions that would use a GPU are replaced.

    A step with more than 8 sequences raises an out-of-memory error."""
    device = batch_size.torch.device("cuda")
    tried: list[int] = []

    def one_step(config: Any, *rest: Any) -> None:
        tried.append(config.train.rows)
        if config.train.rows > 8:
            raise batch_size.torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(batch_size, "choose_device", lambda name: device)
    monkeypatch.setattr(batch_size, "memory_for_training", lambda device: 100.0)
    monkeypatch.setattr(batch_size, "_one_step", one_step)
    cuda = batch_size.torch.cuda
    monkeypatch.setattr(cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(cuda, "max_memory_allocated", lambda device: 50)
    monkeypatch.setattr(cuda, "empty_cache", lambda: None)
    config, _ = with_fitting_batch_size(config_of(), 65)
    assert tried == [1, 2, 4, 8, 16]
    assert (config.train.rows, config.train.grad_accum) == (8, 8)
    # If a step uses 95 of 100 bytes, it leaves too little memory in reserve.
    monkeypatch.setattr(cuda, "max_memory_allocated", lambda device: 95)
    with pytest.raises(GptcliError, match="not even one sequence"):
        with_fitting_batch_size(config_of(), 65)
    monkeypatch.setattr(batch_size, "_one_step", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        with_fitting_batch_size(config_of(), 65)


def at_most(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Let only micro-batches of at most `rows` sequences fit into the memory."""
    monkeypatch.setattr(batch_size, "_fits_in_memory", lambda config, *_: config.train.rows <= rows)


def test_a_run_keeps_the_number(
    new: Callable[..., Setup], drive: Drive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_most(monkeypatch, 8)
    setup = new("r", "train.batch_size=auto", "train.grad_accum=2")
    assert (setup.config.train.batch_size, setup.config.train.grad_accum) == (8, 4)
    assert run_folder.read_config(setup.run).train.batch_size == 8
    drive(setup, stop_at=5)
    at_most(monkeypatch, 32)  # from now on, there is more memory
    stored = run_folder.read_config(setup.run)
    asked = stored.train.model_copy(update={"batch_size": "auto", "grad_accum": 2})
    wanted = stored.model_copy(update={"train": asked})
    prepared = prepare_resume(setup.run, wanted, explicit={"train.batch_size"})
    assert isinstance(prepared, Prepared)
    assert prepared.setup.config.train.batch_size == 8
    other = wanted.model_copy(update={"train": asked.model_copy(update={"grad_accum": 3})})
    with pytest.raises(GptcliError, match=r"train\.grad_accum: 4 -> 3"):
        prepare_resume(setup.run, other)


def test_micro_batches_of_any_size_learn_the_same(
    new: Callable[..., Setup], drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With different micro-batches, the losses are not equal bit by bit, because floating-point
    sums depend on their order."""
    losses = []
    for name, rows in (("small", 4), ("large", 32)):
        at_most(monkeypatch, rows)
        words = ("train.batch_size=auto", "train.grad_accum=2", "train.optimizer=adamw")
        setup = new(name, *words)
        assert setup.config.train.rows == rows
        finished: Any = drive(setup)[-1]
        losses.append(finished.val_loss)
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
