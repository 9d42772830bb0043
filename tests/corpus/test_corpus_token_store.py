"""A TokenStore reads several shards as if they were one sequence of token ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptcli.corpus import TokenStore
from gptcli.corpus.token_store import ShardWriter, dtype_for, map_shard
from gptcli.tokenization import build_tokenizer

quick = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@quick
@given(
    lengths=st.lists(st.integers(0, 9), max_size=6),
    wide=st.booleans(),
    shard_tokens=st.integers(1, 7),
    data=st.data(),
)
def test_written_tokens_are_read_back(
    lengths: list[int], wide: bool, shard_tokens: int, data: st.DataObject, tmp_path: Path
) -> None:
    dtype = dtype_for(70_000 if wide else 65_536)
    folder = tmp_path / f"shards-{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    writer = ShardWriter(folder, dtype, shard_tokens)
    everything = np.arange(sum(lengths)) + (65_536 - 3 if wide else 65_536 - sum(lengths))
    rest = everything.astype(dtype)
    for length in lengths:
        writer.write(rest[:length])
        rest = rest[length:]
    shards = writer.finish()
    assert writer.tokens == len(everything)
    assert [shard.bytes // dtype.itemsize for shard in shards] == [
        min(shard_tokens, len(everything) - first)
        for first in range(0, len(everything), shard_tokens)
    ]
    maps = [map_shard(folder, shard, dtype) for shard in shards]
    store = TokenStore([shard for shard in maps if shard is not None])
    assert len(store) == len(everything)
    start = data.draw(st.integers(0, len(store)))
    count = data.draw(st.integers(0, len(store) - start))
    found = store.read(start, count)
    assert found.tolist() == everything[start : start + count].tolist()
    part = store.part(start, start + count)
    assert len(part) == count
    assert part.read(0, count).tolist() == found.tolist()
    assert np.concatenate([found[:0], *part.chunks()]).tolist() == found.tolist()
    assert count == 0 or found.dtype == dtype


@given(
    pieces=st.lists(st.integers(0, 6), min_size=1, max_size=6),
    data=st.data(),
)
def test_a_part_of_several_ranges(pieces: list[int], data: st.DataObject) -> None:
    """A part can consist of several ranges. The validation split is such a part, because documents
    for training lie between the documents for validation."""
    shards = [np.arange(0, 40, dtype="<u2"), np.arange(40, 100, dtype="<u2")]
    ranges, at = [], 35  # position 35 is shortly before the end of the first shard
    for size in pieces:
        ranges.append((at, at + size))
        at += size + 2
    store = TokenStore(shards).parts(ranges)
    everything = store.read(0, len(store)).tolist()
    assert everything == [id for a, b in ranges for id in range(a, b)]
    start = data.draw(st.integers(0, len(store)))
    stop = data.draw(st.integers(start, len(store)))
    part = store.part(start, stop)
    assert part.read(0, len(part)).tolist() == everything[start:stop]
    again = part.parts([(0, len(part) // 2), (len(part) // 2, len(part))])
    assert again.read(0, len(again)).tolist() == everything[start:stop]


def test_many_short_arrays_are_buffered(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, dtype_for(257), 1 << 26)
    writer.write(np.array([1, 2], dtype="<u2"))
    assert list(tmp_path.glob("tokens-*")) == []
    writer.write(np.zeros(1 << 20, dtype="<u2"))
    (path,) = tmp_path.glob("tokens-*")
    assert path.stat().st_size == 2 * ((1 << 20) + 2)


def test_tokens_are_read_only(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, dtype_for(257), 100)
    writer.write(np.arange(5, dtype="<u2"))
    (shard,) = writer.finish()
    ids = map_shard(tmp_path, shard, dtype_for(257))
    assert ids is not None
    with pytest.raises(ValueError, match="read-only"):
        TokenStore([ids]).read(0, 2)[0] = 1


def test_byte_count_equals_the_bytes_of_the_text() -> None:
    text = "naïve 🙂 text, and more of it\n"
    for kind in ("char", "byte", "gpt2"):
        tokenizer = build_tokenizer(kind, 300, lambda: iter([text]))
        ids = tokenizer.encode_array(text)
        store = TokenStore([ids[:3], ids[3:]])
        assert store.byte_count(tokenizer) == len(text.encode("utf-8"))
        first = len(tokenizer.token_bytes(int(ids[0])))
        assert store.byte_count(tokenizer, 1) == len(text.encode("utf-8")) - first
        assert store.byte_count(tokenizer, len(store)) == 0
        if tokenizer.eot is not None:
            with_eot = TokenStore([np.array([tokenizer.eot], dtype=ids.dtype), ids])
            assert with_eot.byte_count(tokenizer) == len(text.encode("utf-8"))
