"""Large files have the correct bytes, whether the system accepts O_DIRECT or refuses it."""

from __future__ import annotations

import errno
import io
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from gptcli.files import direct_io, durable

BUFFER = direct_io._BUFFER


def pieces(*sizes: int) -> list[bytes]:
    chance = random.Random(0)
    return [chance.randbytes(size) for size in sizes]


@pytest.mark.parametrize(
    "sizes",
    [(), (0,), (5,), (BUFFER,), (BUFFER - 1, 2), (3, BUFFER, 4096), (2 * BUFFER + 17, 1, 0, 99)],
)
def test_the_file_has_the_given_bytes(sizes: tuple[int, ...], tmp_path: Path) -> None:
    data = pieces(*sizes)
    durable.write_file(tmp_path / "file", data, large=True)
    assert (tmp_path / "file").read_bytes() == b"".join(data)


class Refusing(durable.Disk):
    """A disk that refuses O_DIRECT with EINVAL after it has written `first` bytes."""

    def __init__(self, first: int) -> None:
        self.first, self.refused = first, 0

    def write(self, file: io.FileIO, data: memoryview) -> int:
        import fcntl

        if not fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT:
            return super().write(file, data)
        if self.first and not self.refused:
            self.refused += 1
            return super().write(file, data[: self.first])
        self.refused += 1
        raise OSError(errno.EINVAL, "no")


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="no O_DIRECT on this system")
@pytest.mark.parametrize("first", [0, 4096])
def test_a_disk_without_o_direct(
    first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Refusing(first)
    monkeypatch.setattr(durable, "disk", disk)
    data = pieces(BUFFER + 4096, BUFFER, 7)
    durable.write_file(tmp_path / "file", data, large=True)
    assert (tmp_path / "file").read_bytes() == b"".join(data)
    assert disk.refused == (2 if first else 1)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_other_errors_are_raised(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write: Callable[..., int] = durable.Disk.write
    calls: list[int] = []

    def refuse(self: durable.Disk, file: io.FileIO, data: memoryview) -> int:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(number, os.strerror(number))
        return write(self, file, data)

    monkeypatch.setattr(durable.Disk, "write", refuse)
    with pytest.raises(OSError, match=os.strerror(number)):
        durable.write_file(tmp_path / "file", pieces(3 * BUFFER), large=True)


def test_a_checkpoint_is_the_same_with_and_without_o_direct(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from gptcli.training import checkpoint, checkpoint_files
    from gptcli.training.training_state import Progress

    tensors = {"a": torch.arange(3_000_001.0), "b": torch.ones(7, 3), "c": torch.zeros(0)}
    meta = {"progress": vars(Progress(step=1))}
    for name, least in (("small", 1 << 60), ("large", 0)):
        monkeypatch.setattr(checkpoint_files, "DIRECT_IO_BYTES", least)
        checkpoint.save(make(tmp_path / name), 1, tensors, {"d": torch.ones(5)}, meta)
    for file in ("model.safetensors", "state.safetensors", "meta.json"):
        small, large = (
            (tmp_path / name / "checkpoints" / "step-00000001" / file).read_bytes()
            for name in ("small", "large")
        )
        assert small == large
    assert torch.equal(checkpoint.load(tmp_path / "large", 1).model["a"], tensors["a"])


def make(run: Path) -> Path:
    run.mkdir()
    return run
