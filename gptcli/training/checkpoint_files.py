"""The tensor files of a checkpoint: whole files, or shards with each rank's rows.

A shard holds some rows of every tensor, under the tensor's name. The rows of all shards, in the
order of the shards' numbers, make the whole tensor. A tensor without dimensions (AdamW's step
count) is only in the first shard. First reading: WholeFiles. Skip the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gptcli.files import durable
from gptcli.files.direct_io import DIRECT_IO_BYTES
from gptcli.training.meta_file import PARTS
from gptcli.training.tensor_file import HashedPieces, tensor_pieces

if TYPE_CHECKING:  # `gptcli runs` must not wait for the import of torch
    from torch import Tensor


class TensorFiles(Protocol):
    """The tensors that a checkpoint will hold, and methods that write them into files."""

    @property
    def size(self) -> int:
        """The number of bytes that this process writes."""

    def copied(self) -> TensorFiles:
        """These files with copies of the tensors. Later steps do not change the copies."""

    def temporary(self, goal: Path) -> Path:
        """The temporary path of the folder that will be renamed to `goal`."""

    def write(self, folder: Path) -> dict[str, Any]:
        """Write all files into a folder and wait until they are on the disk.

        Returns the index for meta.json: the size and the SHA-256 of each file, by its name."""

    def close(self) -> None:
        """Release resources. The caller calls this once, whether the files were written or not."""


class WholeFiles:
    """One file of weights and one file of state, which one process writes."""

    def __init__(self, model: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        self._parts = (model, state)

    @property
    def size(self) -> int:
        """The number of bytes in all tensors."""
        return sum(bytes_of(part) for part in self._parts)

    def copied(self) -> WholeFiles:
        """These files with copies of the tensors. The copies are on the CPU."""
        return type(self)(*(copies_of(part) for part in self._parts))

    def temporary(self, goal: Path) -> Path:
        """A temporary name for `goal` that only this process uses."""
        return durable.temporary_path(goal)

    def write(self, folder: Path) -> dict[str, Any]:
        """Write model.safetensors and state.safetensors; return their index."""
        names = (f"{part}.safetensors" for part in PARTS)
        return {
            name: write_tensors(folder / name, tensors)
            for name, tensors in zip(names, self._parts, strict=True)
        }

    def close(self) -> None:
        """Do nothing: this class holds no resources."""


def bytes_of(tensors: Mapping[str, Tensor]) -> int:
    """The number of bytes in all these tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def copies_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of these tensors, on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write a file of tensors and wait until it is on the disk; return its size and SHA-256."""
    pieces = HashedPieces(tensor_pieces(tensors))
    durable.write_file(path, pieces, large=bytes_of(tensors) >= DIRECT_IO_BYTES)
    return {"size": pieces.size, "sha256": pieces.digest.hexdigest()}


def joined(shards: list[dict[str, Any]]) -> dict[str, Any]:
    """The complete tensors by name: joins the parts that the shards hold, in the order of `shards`.

    Empties `shards`. Each tensor is a PyTorch tensor or a memoryview of float32, as in the shards.
    Raises ValueError if the shards do not fit together."""
    first, *others = shards
    whole = {}
    for name in sorted(first):
        begin = first.pop(name)
        has_rows = len(begin.shape) > 0
        if any((name in shard) != has_rows for shard in others):
            where = "is not in all shards" if has_rows else "is a number, but in several shards"
            raise ValueError(f"`{name[:80]}` {where}")
        rows = [begin, *(shard.pop(name) for shard in others if has_rows)]
        try:
            whole[name] = _memory(rows) if isinstance(begin, memoryview) else _tensor(rows)
        except (ValueError, TypeError, RuntimeError):
            raise ValueError(
                f"the rows of `{name[:80]}` in the shards do not fit together"
            ) from None
    if left := next((name for shard in others for name in shard), None):
        raise ValueError(f"`{left[:80]}` is not in the first shard")
    return whole


def _tensor(rows: list[Tensor]) -> Tensor:
    import torch

    if len({each.dtype for each in rows}) > 1:
        raise ValueError
    return torch.cat(rows) if len(rows) > 1 else rows[0]


def _memory(rows: list[memoryview[float]]) -> memoryview[float]:
    full = [each for each in rows if each.nbytes]
    if len(full) < 2:
        return full[0] if full else rows[0]
    shapes = [each.shape or () for each in full]
    if len({shape[1:] for shape in shapes}) > 1:
        raise ValueError
    numbers = bytearray().join(each.cast("B") for each in full)
    shape = [sum(shape[0] for shape in shapes), *shapes[0][1:]]
    return memoryview(numbers).cast("f").cast("B").cast("f", shape)
