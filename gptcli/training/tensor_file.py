"""A safetensors file: written tensor by tensor, proven whole before a tensor is made of it.

The format is 8 bytes with the length of the header, the header (a JSON object that gives each
tensor its dtype, shape and place), and the numbers. Nothing that the header claims is believed
before it agrees with the size of the file.
Source: the safetensors repository, README, "Format".
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.files.bounded import read_bounded
from gptcli.memory import total_memory

if TYPE_CHECKING:
    from torch import Tensor

_MOST_HEADER = 1 << 24  # a thousand layers need an eighth of it
_MOST_DIMENSIONS = 8
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "U8": 8, "BOOL": 8}


def read_tensors(path: Path, size: int, sha256: str, inside: Path) -> dict[str, Tensor]:
    """The tensors of a file that must have this size and hash and lie in the folder `inside`.

    Raises ValueError, which says what is wrong with it, and OSError where it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    memory = total_memory()
    if memory is not None and size > memory:
        raise ValueError(f"{size:,} bytes, more than the {memory:,} of this machine's memory")
    found = path.stat().st_size
    if found != size:
        raise ValueError(f"{found:,} bytes, meta.json says {size:,}")
    data = read_bounded(path, size, inside)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError("its SHA-256 is not the one in meta.json")
    check_header(data)
    try:
        return dict(from_bytes(data))
    except (SafetensorError, ValueError, KeyError, RuntimeError, OverflowError) as error:
        words = " ".join(str(error).split())[:100]
        raise ValueError(f"it is not a safetensors file ({words})") from None


def tensor_pieces(tensors: dict[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The file of these tensors in pieces: its header, then one tensor after another, none of them
    copied where it lies on the CPU. The bytes are those of safetensors.torch.save."""
    import torch

    if sys.byteorder != "little" or any(t.dtype != torch.float32 for t in tensors.values()):
        from safetensors.torch import save as whole  # it knows every dtype, and holds all at once

        yield whole({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
        return
    header, end = {}, 0
    for name, tensor in sorted(tensors.items()):
        begin, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # so that the numbers stand at multiples of 8
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in sorted(tensors.items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().data


class HashedPieces:
    """Pieces as they come, with their `size` in bytes and their SHA-256 `digest` so far."""

    def __init__(self, pieces: Iterable[bytes | memoryview]) -> None:
        self._pieces = pieces
        self.size, self.digest = 0, hashlib.sha256()

    def __iter__(self) -> Iterator[bytes | memoryview]:
        for piece in self._pieces:
            self.size += len(piece)
            self.digest.update(piece)
            yield piece


def check_header(data: bytes) -> None:
    """Raise ValueError where the header claims what the file does not have."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise ValueError(
            f"it is not a safetensors file: a header of {length:,} bytes in a file of {len(data):,}"
        )
    if length > _MOST_HEADER:
        raise ValueError(f"its header has {length:,} bytes; at most {_MOST_HEADER:,} are read")
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
            raise ValueError(f"its header gives `{name[:80]}` a shape or a place it cannot have")
        ends += entry["data_offsets"][1] - entry["data_offsets"][0]
    if ends != len(data) - 8 - length:
        raise ValueError(f"its header describes {ends:,} bytes of {len(data) - 8 - length:,}")


def _fits(entry: Any, room: int) -> bool:
    """Whether dtype, shape and place of a tensor agree, and lie within `room` bytes."""
    if not isinstance(entry, dict):
        return False
    bits = _BITS.get(str(entry.get("dtype")))
    shape = _numbers(entry.get("shape"), _MOST_DIMENSIONS, room)
    place = _numbers(entry.get("data_offsets"), 2, room)
    if bits is None or shape is None or place is None or len(place) != 2:
        return False
    return place[0] <= place[1] and math.prod(shape) * bits == (place[1] - place[0]) * 8


def _numbers(value: Any, most: int, room: int) -> list[int] | None:
    """`value` where it is a list of at most `most` whole numbers from 0 to `room`."""
    if not isinstance(value, list) or len(value) > most:
        return None
    return value if all(type(n) is int and 0 <= n <= room for n in value) else None
