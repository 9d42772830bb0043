"""Packs the weights, tokenizer and sizes of a model into a page's payload: compressed, in base64.

Layout before compression (zlib): the size of the header (uint32), the header (JSON), the sections.
The header says where each section begins and how long it is. All numbers are little-endian.

| section | holds |
|---|---|
| NAME.int8 | a matrix, int8 (N, K); K is padded with zeros to a multiple of 32 |
| NAME.scales | its scales, bfloat16 (N, K / 32): all low bytes, then all high bytes |
| NAME | a gain or a bias, float32 |
| merges | the left ids of all merges, uint32: all lowest bytes first; then the right ids |

runtime/payload.js reads the payload. For a proof without a JavaScript engine, arithmetic.py reads
it.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gptcli.config import ModelConfig
from gptcli.errors import GptcliError
from gptcli.model.gpt import GPT
from gptcli.pages.model_page.rounding import GROUP, Floats, dequantised, quantised
from gptcli.tokenization import Tokenizer
from gptcli.tokenization.bpe import RankedTokenizer
from gptcli.tokenization.imported import ImportedTokenizer

_HEAD_UNIT = 16  # the C library pads each head to a multiple of this


def payload(model: GPT, tokenizer: Tokenizer) -> str:
    """The payload of a model, as text.

    The model must be on the CPU in float32, with builtin parts only. Raises GptcliError if the
    tokenizer cannot run in a page."""
    sections: dict[str, bytes] = {}
    matrices: dict[str, tuple[int, int]] = {}
    vectors: list[str] = []
    for name, weights in _parameters(model):
        if weights.ndim == 1:
            sections[name] = _bytes(weights, "<f4")
            vectors.append(name)
            continue
        padded = _padded(name, weights, model.config)
        whole, scales = quantised(padded)
        sections[f"{name}.int8"] = whole.tobytes()
        sections[f"{name}.scales"] = _planes(scales, "<u2")
        matrices[name] = (padded.shape[0], _columns(name, weights, model.config))
    described, merges = _described(tokenizer)
    sections["merges"] = merges
    places: dict[str, tuple[int, int]] = {}
    at = 0
    for name, data in sections.items():
        places[name] = (at, len(data))
        at += -(-len(data) // 4) * 4
    header = json.dumps(
        {
            "model": _sizes(model.config, model.vocab_size),
            "tokenizer": described,
            "matrices": matrices,
            "vectors": vectors,
            "sections": places,
        },
        separators=(",", ":"),
    ).encode()
    header += b" " * (-len(header) % 4)
    body = b"".join(data + bytes(-len(data) % 4) for data in sections.values())
    whole_payload = struct.pack("<I", len(header)) + header + body
    return base64.b64encode(zlib.compress(whole_payload, 9)).decode("ascii")


def read_payload(text: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The header of a payload, and its sections by name."""
    whole = zlib.decompress(base64.b64decode(text))
    (size,) = struct.unpack_from("<I", whole)
    header = json.loads(whole[4 : 4 + size])
    sections = {
        name: whole[4 + size + at : 4 + size + at + length]
        for name, (at, length) in header["sections"].items()
    }
    return header, sections


def read_pieces(header: dict[str, Any], sections: dict[str, bytes]) -> list[bytes]:
    """The bytes of every token, by id, as the payload describes them."""
    described = header["tokenizer"]
    if described["kind"] == "char":
        return [char.encode() for char in described["chars"]]
    special = {int(id): name.encode() for id, name in described["special"].items()}
    if described["kind"] == "byte":
        return [special.get(id, bytes([id % 256])) for id in range(described["size"])]
    planes = np.frombuffer(sections["merges"], dtype=np.uint8).reshape(2, 4, -1)
    pairs = np.ascontiguousarray(planes.transpose(0, 2, 1)).view("<u4")[:, :, 0].T.tolist()
    single = {id: bytes([value]) for value, id in enumerate(described["bytes"])}
    pieces: list[bytes] = []
    merges = iter(pairs)
    for id in range(described["size"]):
        if id in special or id in single:
            pieces.append(special.get(id) or single[id])
        else:
            left, right = next(merges)
            pieces.append(pieces[left] + pieces[right])
    return pieces


@torch.no_grad()
def rounded(model: GPT) -> GPT:
    """A copy of the network in float32, with the matrices rounded as in its page."""
    copy = GPT(model.config, model.vocab_size).eval()
    own = dict(copy.named_parameters())
    for name, weights in _parameters(model):
        if weights.ndim == 1:
            own[name].copy_(torch.from_numpy(weights))
            continue
        back = dequantised(*quantised(_padded(name, weights, model.config)))
        kept = back[:, _column_places(name, weights, model.config)]
        own[name].copy_(torch.from_numpy(np.ascontiguousarray(kept)))
    return copy


def _parameters(model: GPT) -> Iterator[tuple[str, Floats]]:
    """All parameters by name, as float32 arrays. A tied head is left out."""
    for name, parameter in model.named_parameters():
        yield name, parameter.detach().float().numpy()


def _columns(name: str, weights: Floats, config: ModelConfig) -> int:
    """How many columns a matrix needs in the payload, before padding to a multiple of 32.

    Each column is for one input. The inputs of attention's output projection are the results of
    all heads, one after the other. The result of each head is padded to a multiple of
    _HEAD_UNIT."""
    if not name.endswith("attn.c_proj.weight"):
        return int(weights.shape[1])
    return config.n_head * (-(-config.head_dim // _HEAD_UNIT) * _HEAD_UNIT)


def _column_places(name: str, weights: Floats, config: ModelConfig) -> npt.NDArray[np.int64]:
    """For each input of a matrix, its column in the payload."""
    inputs = np.arange(weights.shape[1])
    if not name.endswith("attn.c_proj.weight"):
        return inputs
    wide = _columns(name, weights, config) // config.n_head
    return inputs // config.head_dim * wide + inputs % config.head_dim


def _padded(name: str, weights: Floats, config: ModelConfig) -> Floats:
    """A matrix as the payload stores it: (N, K) with K padded to a multiple of 32."""
    width = -(-_columns(name, weights, config) // GROUP) * GROUP
    padded = np.zeros((weights.shape[0], width), dtype=np.float32)
    padded[:, _column_places(name, weights, config)] = weights
    return padded


def _sizes(config: ModelConfig, vocab_size: int) -> dict[str, Any]:
    traits = config.traits
    return {
        "arch": config.arch,
        "n_layer": config.n_layer,
        "n_embd": config.n_embd,
        "n_head": config.n_head,
        "n_kv_head": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_width": traits.hidden_width(config.n_embd),
        "block_size": config.block_size,
        "vocab_size": vocab_size,
        "norm": traits.norm,
        "norm_eps": traits.norm_eps,
        "positions": traits.positions,
        "rope_theta": traits.rope_theta,
        "qk_norm": traits.qk_norm,
        "gated": traits.gated,
        "tied_head": traits.tied_head,
    }


def _described(tokenizer: Tokenizer) -> tuple[dict[str, Any], bytes]:
    """The header's entry for the tokenizer, and the section `merges`."""
    found: dict[str, Any] = {
        "kind": tokenizer.kind,
        "size": tokenizer.vocab_size,
        "eot": tokenizer.eot,
        "start": tokenizer.start_ids(),
        "special": {},
    }
    if tokenizer.kind == "char":
        return found | {"chars": b"".join(tokenizer.pieces).decode("utf-8")}, b""
    if tokenizer.kind == "byte":
        assert tokenizer.eot is not None
        name = tokenizer.pieces[tokenizer.eot].decode("utf-8")
        return found | {"special": {str(tokenizer.eot): name}}, b""
    if isinstance(tokenizer, ImportedTokenizer):
        raise GptcliError(
            "the tokenizer of this imported run does not split texts as GPT-2's does, so it cannot "
            "run in a page",
            "share the model with gptcli export",
            exit_code=1,
        )
    if not isinstance(tokenizer, RankedTokenizer):
        raise GptcliError(
            "the run was trained with your own tokenizer, which cannot run in a page",
            "train with tokenizer.kind=bpe to get a page",
            exit_code=1,
        )
    ids = {p: i for i, p in enumerate(tokenizer.pieces) if i not in tokenizer.special}
    pairs = np.array([(ids[left], ids[right]) for left, right in tokenizer.merges], dtype="<u4")
    pairs = pairs.reshape(-1, 2)
    found["special"] = {str(id): name for id, name in tokenizer.special.items()}
    found["bytes"] = [ids[bytes([value])] for value in range(256)]
    return found, _planes(pairs[:, 0], "<u4") + _planes(pairs[:, 1], "<u4")


def _bytes(numbers: npt.NDArray[Any], dtype: str) -> bytes:
    return np.ascontiguousarray(numbers).astype(dtype).tobytes()


def _planes(numbers: npt.NDArray[Any], dtype: str) -> bytes:
    """The lowest bytes of all numbers, then their second bytes, and so on.

    In this order, the bytes compress better than number by number."""
    octets = np.frombuffer(_bytes(numbers, dtype), dtype=np.uint8)
    planes: bytes = octets.reshape(-1, np.dtype(dtype).itemsize).T.tobytes()
    return planes
