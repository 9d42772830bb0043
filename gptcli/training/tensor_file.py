"""Safetensors files: written tensor by tensor, verified by size, SHA-256 and header when read.

The format: 8 bytes with the length of the header; then the header, a JSON object with the
dtype, shape and offsets of each tensor; then the numbers. This module checks the header against
the file's size, because anybody may have made the file.
Source: the safetensors repository, README, "Format".
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.files.bounded import read_bounded
from gptcli.files.leftovers import LARGEST_POINTER, POINTER_HINT, is_lfs_pointer
from gptcli.memory import total_memory
from gptcli.plurals import counted

if TYPE_CHECKING:
    from torch import Tensor

_MAX_HEADER_BYTES = 1 << 24  # a network with a thousand layers needs an eighth of this
_MAX_DIMENSIONS = 8
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "U8": 8, "BOOL": 8}
_NUMPY_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8",
                "I32": "<i4", "U8": "u1", "BOOL": "?"}  # fmt: skip


def read_tensors(path: Path, size: int, sha256: str, inside: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name, on the CPU.

    Raises ValueError if the file has another size or SHA-256, has an invalid header, or is larger
    than this machine's memory. The error says what is wrong. Raises OSError if the file cannot be
    read or lies outside the folder `inside`."""
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    data = _verified(path, size, sha256, inside)
    try:
        return dict(from_bytes(data))
    except (SafetensorError, ValueError, KeyError, RuntimeError, OverflowError) as error:
        raise _not_safetensors(error) from None


def read_arrays(path: Path, size: int, sha256: str, inside: Path) -> dict[str, memoryview[float]]:
    """The tensors of a file by name, as float32 memory. Does not import PyTorch.

    Each memoryview has the shape of its tensor, and is writable. Raises the errors of
    read_tensors."""
    from safetensors import SafetensorError, deserialize

    data = _verified(path, size, sha256, inside)
    arrays = {}
    try:
        for name, entry in deserialize(data):  # type: ignore[no-untyped-call]
            numbers = _float32(entry["data"], entry["dtype"])
            flat = memoryview(numbers).cast("f")  # an empty tensor keeps the shape (0,)
            arrays[name] = flat.cast("B").cast("f", entry["shape"]) if numbers else flat
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise _not_safetensors(error) from None
    return arrays


def _float32(data: bytearray, kind: str) -> bytearray:
    """The numbers of a tensor, converted to float32 if they have another dtype."""
    if kind == "F32" and sys.byteorder == "little":
        return data
    import numpy as np

    array = np.frombuffer(data, dtype=_NUMPY_TYPES[kind])
    if kind == "BF16":  # the upper half of a float32
        array = (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return bytearray(array.astype(np.float32).tobytes())


def is_finite(array: memoryview[float]) -> bool:
    """Whether the sum of float32 numbers is finite. If so, no number is NaN or infinite.

    The sum is also infinite if the numbers are absurdly large. If the highest byte of every number
    shows that the number is small, no sum is computed."""
    numbers = array.cast("B")
    last = bytes(numbers)[3::4] if sys.byteorder == "little" else bytes(numbers)[::4]
    if not last.translate(None, delete=_SMALL):
        return True
    import numpy as np

    with np.errstate(all="ignore"):
        return bool(np.isfinite(np.frombuffer(numbers, dtype=np.float32).sum()))


_SMALL = bytes(byte for byte in range(256) if byte & 0x7F < 0x60)
"""The values that the highest byte of a float32 number has if its magnitude is below 2^65."""


def _not_safetensors(error: Exception) -> ValueError:
    words = " ".join(str(error).split())[:100]
    return ValueError(f"it is not a safetensors file ({words})")


def _verified(path: Path, size: int, sha256: str, inside: Path) -> bytes:
    """The content of a file of tensors, after a check of its size, SHA-256 and header."""
    refuse_larger_than_memory(size)
    found = path.stat().st_size
    if found <= LARGEST_POINTER and is_lfs_pointer(read_bounded(path, LARGEST_POINTER, inside)):
        raise ValueError(f"it is a git-lfs pointer, not the file itself; {POINTER_HINT}")
    if found != size:
        raise ValueError(f"it has {counted(found, 'byte')}, but meta.json says {size:,}")
    data = read_bounded(path, size, inside)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError("its SHA-256 differs from the SHA-256 in meta.json")
    check_header(data)
    return data


def refuse_larger_than_memory(size: int) -> None:
    """Raise ValueError if `size` bytes are more than this machine's memory."""
    memory = total_memory()
    if memory is not None and size > memory:
        raise ValueError(f"it has {size:,} bytes, more than this machine's memory ({memory:,})")


def tensor_pieces(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes that safetensors.torch.save would write, in pieces: the header, then each tensor.

    Does not copy float32 tensors on the CPU. If any tensor has another dtype, all
    bytes are one piece."""
    import torch

    if sys.byteorder != "little" or any(t.dtype != torch.float32 for t in tensors.values()):
        from safetensors.torch import save as save_all  # takes every dtype, but copies all tensors

        yield save_all({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
        return
    header, end = {}, 0
    for name, tensor in sorted(tensors.items()):
        begin, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # the format aligns the numbers to 8 bytes
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in sorted(tensors.items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().data


class HashedPieces:
    """Yields `pieces`, and computes their total `size` in bytes and their SHA-256 `digest`."""

    def __init__(self, pieces: Iterable[bytes | memoryview]) -> None:
        self._pieces = pieces
        self.size, self.digest = 0, hashlib.sha256()

    def __iter__(self) -> Iterator[bytes | memoryview]:
        for piece in self._pieces:
            self.size += len(piece)
            self.digest.update(piece)
            yield piece


def check_header(data: bytes) -> None:
    """Raise ValueError if the header of a safetensors file does not fit the size of the file."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise ValueError(
            f"it is not a safetensors file: a header of {counted(length, 'byte')} in a file of "
            f"{len(data):,}"
        )
    if length > _MAX_HEADER_BYTES:
        raise ValueError(f"its header has {length:,} bytes; the limit is {_MAX_HEADER_BYTES:,}")
    try:
        header = json.loads(data[8 : 8 + length].decode("utf-8"))
    except (ValueError, RecursionError):
        raise ValueError("it is not a safetensors file: its header is not JSON") from None
    if not isinstance(header, dict):
        raise ValueError("it is not a safetensors file: its header is not an object")
    ends = 0
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    for name, entry in tensors.items():
        if not _fits(entry, len(data) - 8 - length):
            raise ValueError(f"its header gives `{name[:80]}` an impossible shape or position")
        ends += entry["data_offsets"][1] - entry["data_offsets"][0]
    if ends != len(data) - 8 - length:
        raise ValueError(
            f"its header describes {counted(ends, 'byte')} of {len(data) - 8 - length:,}"
        )


def _fits(entry: Any, room: int) -> bool:
    """Whether the dtype, shape and offsets of a tensor agree, and lie within `room` bytes."""
    if not isinstance(entry, dict):
        return False
    bits = _BITS.get(str(entry.get("dtype")))
    shape = _numbers(entry.get("shape"), _MAX_DIMENSIONS, room)
    offsets = _numbers(entry.get("data_offsets"), 2, room)
    if bits is None or shape is None or offsets is None or len(offsets) != 2:
        return False
    return offsets[0] <= offsets[1] and math.prod(shape) * bits == (offsets[1] - offsets[0]) * 8


def _numbers(value: Any, most: int, room: int) -> list[int] | None:
    """`value` if it is a list of at most `most` whole numbers from 0 to `room`, else None."""
    if not isinstance(value, list) or len(value) > most:
        return None
    return value if all(type(n) is int and 0 <= n <= room for n in value) else None
