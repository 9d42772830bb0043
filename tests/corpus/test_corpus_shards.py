"""Token shards: gptcli reads them in blocks, from a folder or a URL, in an order that depends on
the seed."""

from __future__ import annotations

import json
import os
import threading
import uuid
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptcli.config import DataConfig
from gptcli.corpus import Batches, Corpus, open_corpus, shards
from gptcli.corpus.mixture import MixedTokens
from gptcli.corpus.pooled_order import PooledEpochs, blocks_of
from gptcli.corpus.shard_writing import write_shards_to
from gptcli.corpus.shards import (
    BLOCK_TOKENS,
    INDEX,
    Blocks,
    ReusedBuffers,
    ShardFolder,
    ShardTokens,
    digest_of,
    read_index,
)
from gptcli.errors import GptcliError
from gptcli.files import remote
from gptcli.tokenization import build_tokenizer

BYTE = build_tokenizer("byte", 0, lambda: iter(()))
LENGTH = 1000  # tokens


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block has 50 tokens and a shard 150, so that a short text has many blocks and shards."""
    for module in ("shards", "pooled_order", "shard_writing"):
        monkeypatch.setattr(f"gptcli.corpus.{module}.BLOCK_TOKENS", 50)
    monkeypatch.setattr("gptcli.corpus.shard_writing.SHARD_TOKENS", 150)


def ids_of(length: int, first: int = 0) -> Any:
    return ((np.arange(length) + first) % 250).astype(np.uint16)


def written(out: str, length: int = LENGTH, first: int = 0) -> str:
    return write_shards_to(out, [ids_of(length, first)], BYTE, 3)


@pytest.fixture(params=["folder", "file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The path or the URL of a folder with shards, which hold LENGTH tokens in total."""
    return written(
        {
            "folder": str(tmp_path / "tokens"),
            "file": f"file://{tmp_path}/tokens",
            "memory": f"memory://{uuid.uuid4()}/tokens",
        }[request.param]
    )


def opened(*names: str, kept: int = 8) -> ShardTokens:
    folders = [ShardFolder(name) for name in names]
    return ShardTokens([(folder, read_index(folder)) for folder in folders], kept)


def corpus_of(source: Any, block_size: int = 8, **data: Any) -> Corpus:
    return open_corpus(
        DataConfig(source=source, **data), kind="char", vocab_size=300, block_size=block_size
    )


def test_any_span_is_read_from_any_place(place: str) -> None:
    tokens = opened(place)
    assert len(tokens) == LENGTH
    ids = ids_of(LENGTH)
    for start, count in ((0, 1), (0, LENGTH), (49, 2), (149, 2), (140, 400), (999, 1), (7, 0)):
        assert tokens.read(start, count).tolist() == ids[start : start + count].tolist()
    part = tokens.part(100, 900).part(5, 700)
    assert part.read(0, 695).tolist() == ids[105:800].tolist()


def test_memory_holds_few_blocks(place: str) -> None:
    tokens = opened(place, kept=3)
    for start in range(0, LENGTH - 10, 10):
        tokens.read(start, 10)
        assert len(tokens.blocks._found) <= 3
    tokens.blocks.read_ahead(range(20))
    assert len(tokens.blocks._found) <= 3
    assert tokens.read(0, LENGTH).tolist() == ids_of(LENGTH).tolist()


def test_a_block_is_read_once_while_it_is_kept() -> None:
    read: Counter[int] = Counter()

    def place(number: int) -> Any:
        def reader() -> Any:
            read[number] += 1
            return np.full(50, number)

        return reader

    blocks = Blocks([place(number) for number in range(6)], kept=6)
    blocks.read_ahead([3, 4])
    threads = [threading.Thread(target=lambda: [blocks.get(n) for n in range(6)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(read.values()) == {1}


def test_reading_ahead_does_not_wait() -> None:
    gate, opened = threading.Event(), []

    def slow() -> Any:
        opened.append(gate.wait(60))  # False if the gate is still closed after 60 seconds
        return np.zeros(50)

    blocks = Blocks([slow] * 4, kept=4)
    blocks.read_ahead(range(4))
    gate.set()
    assert len(blocks.get(2)) == 50
    assert all(opened)


# ---- the order ---------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", [1, 3, 16, 100])
def test_an_epoch_predicts_no_token_twice_and_leaves_few_out(place: str, pool: int) -> None:
    tokens = opened(place, kept=2 * pool + 4)
    sequences = PooledEpochs("7", tokens, 8, pool)
    assert sequences.count == 20 * (50 // 8 - 1)
    for epoch in range(3):
        starts = sequences.starts(epoch * sequences.count, sequences.count)
        predicted = Counter(n for start in starts for n in range(start + 1, start + 9))
        assert set(predicted.values()) == {1}
        # No window crosses the border of a block.
        assert all(start // 50 == (start + 8) // 50 for start in starts)
        assert starts != sorted(starts)
    offsets = {start % 50 % 8 for start in starts}
    assert len(offsets) > 3


def test_the_order_depends_on_the_seed_alone(place: str, tmp_path: Path) -> None:
    tokens = opened(place)
    whole = PooledEpochs("7", tokens, 8, 4).starts(0, 400)
    # A new object gives the same windows, wherever it starts.
    for first, count in ((0, 1), (99, 3), (137, 200), (399, 1)):
        assert PooledEpochs("7", tokens, 8, 4).starts(first, count) == whole[first : first + count]
    other = opened(written(str(tmp_path / "other")), kept=4)
    assert PooledEpochs("7", other, 8, 4).starts(0, 400) == whole
    assert PooledEpochs("8", tokens, 8, 4).starts(0, 400) != whole
    # Later versions of gptcli must read the windows in this order, too.
    assert whole[:8] == [215, 117, 470, 320, 223, 454, 486, 109]


def test_a_pool_is_read_ahead() -> None:
    """A pool is a group of blocks that are shuffled together.

    While one pool is read, the blocks of the pool after it are loaded."""
    name = written(f"memory://{uuid.uuid4()}/tokens")
    tokens = opened(name, kept=12)
    sequences = PooledEpochs("7", tokens, 8, 4)
    sequences.starts(0, 1)
    this, after = sequences._blocks(0, 0), sequences._blocks(0, 1)
    assert set(tokens.blocks._found) == {*this.tolist(), *after.tolist()}


def test_batches_of_shards(place: str) -> None:
    corpus = corpus_of(place, val_fraction=0.2)
    assert corpus.tokenizer.kind == "byte"
    assert corpus.documents == 3
    batches = Batches(corpus.train, 8, 5, 1337)
    for k in (0, 3, 17, 60):
        inputs, targets = batches.batch(k)
        for start, idx, target in zip(batches.starts(k), inputs, targets, strict=True):
            assert idx.tolist() == ids_of(8, start).tolist()
            assert target.tolist() == ids_of(8, start + 1).tolist()
            assert start + 8 < 800
    assert corpus.val is not None
    assert corpus.val.read(0, 200).tolist() == ids_of(200, 800).tolist()


def test_several_shards_are_one_text_or_a_mixture(tmp_path: Path) -> None:
    names = [written(str(tmp_path / name), length) for name, length in (("a", 500), ("b", 300))]
    one = corpus_of(names, val_fraction=0.1)
    assert len(one.train) == 720
    mixed = corpus_of(names, val_fraction=0.1, weights=[1, 3])
    assert isinstance(mixed.train, MixedTokens)
    assert isinstance(mixed.val, MixedTokens)
    assert [len(text.tokens) for text in mixed.train.texts] == [450, 270]
    assert [text.share for text in mixed.val.texts] == [0.25, 0.75]
    batches = Batches(mixed.train, 8, 10, 3)
    for k in range(20):
        inputs, _ = batches.batch(k)
        for text, start, idx in zip(batches.texts_of(k), batches.starts(k), inputs, strict=True):
            inside = start - (450 if text else 0)
            assert idx.tolist() == ids_of(8, inside).tolist()
    val = corpus_of(names[0], val_source=names[1])
    assert val.val is not None
    assert len(val.train) == 500
    assert val.val.read(0, 300).tolist() == ids_of(300).tolist()


def test_content_decides_and_not_the_place(place: str, tmp_path: Path) -> None:
    key = corpus_of(place).content_key
    copy = written(str(tmp_path / "copy"))
    assert corpus_of(copy).content_key == key
    other = written(str(tmp_path / "x"), first=1)
    assert corpus_of(other).content_key != key
    assert corpus_of(place, val_source=other).content_key != key
    with pytest.raises(GptcliError, match="is the validation text"):
        corpus_of(place, val_source=copy)


def test_blocks_of_a_part(place: str) -> None:
    tokens = opened(place).part(120, 310)
    _, starts, lengths, numbers, begins = blocks_of(tokens)
    assert starts.tolist() == [0, 30, 80, 130, 180]
    assert lengths.tolist() == [30, 50, 50, 50, 10]
    assert numbers.tolist() == [2, 3, 4, 5, 6]
    assert begins.tolist() == [20, 0, 0, 0, 0]


# ---- what can be wrong -------------------------------------------------------------------------


def test_a_damaged_block_is_found_when_it_is_read(tmp_path: Path) -> None:
    name = written(str(tmp_path / "tokens"))
    path = tmp_path / "tokens" / "tokens-00002.bin"
    content = bytearray(path.read_bytes())
    content[130] ^= 1  # change a byte in the second block
    path.write_bytes(content)
    tokens = opened(name)
    assert tokens.read(0, 350).tolist() == ids_of(350).tolist()
    with pytest.raises(GptcliError, match=r"tokens-00002\.bin is damaged: the block of bytes 100"):
        tokens.read(350, 10)
    content[130] ^= 1
    path.write_bytes(content)  # repair the file
    assert tokens.read(350, 10).tolist() == ids_of(10, 350).tolist()
    path.write_bytes(content[:-2])
    with pytest.raises(GptcliError, match="damaged"):
        opened(name).read(440, 10)
    path.unlink()
    with pytest.raises(GptcliError, match=r"cannot read .*tokens-00002"):
        opened(name).read(440, 10)


def test_memory_is_used_again_only_if_nothing_refers_to_it() -> None:
    buffers = ReusedBuffers()
    first = buffers.take(100)
    part = first.view(np.uint16)[3:9]
    del first
    first_at = part.__array_interface__["data"][0] - 6
    second = buffers.take(80)
    assert second.__array_interface__["data"][0] != first_at
    words = memoryview(part)
    del part
    assert buffers.take(100).__array_interface__["data"][0] != first_at
    words.release()
    assert buffers.take(100).__array_interface__["data"][0] == first_at


@pytest.mark.parametrize("size", [0, 1, 15, 16, 255, 4096, 1 << 20])
def test_the_fast_checksum_is_that_of_zlib(size: int) -> None:
    """shards.py takes the checksum function of the package isal if it is installed, and otherwise
    that of zlib."""
    content = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    assert shards.crc32(content) == zlib.crc32(content.tobytes())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_in_place_of_a_shard_blocks_nothing(tmp_path: Path) -> None:
    name = written(str(tmp_path / "tokens"))
    path = tmp_path / "tokens" / "tokens-00001.bin"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(GptcliError, match=r"cannot read .*tokens-00001"):
        opened(name).read(160, 10)


def test_an_id_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    """With an id outside the vocabulary, the C library would read outside its memory."""
    name = write_shards_to(str(tmp_path / "tokens"), [ids_of(100), np.array([300], "<u2")], BYTE, 1)
    with pytest.raises(GptcliError, match="not below the vocabulary's size 257"):
        opened(name).read(99, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"block_tokens": 7},
        {"vocab_size": 0},
        {"shards": []},
        {"shards": [{"name": "../x.bin", "tokens": 10, "sha256": "", "crc32": [1]}]},
        {"shards": [{"name": "x.bin", "tokens": 10, "sha256": "", "crc32": []}]},
        {"shards": [{"name": "x.bin", "tokens": -1, "sha256": "", "crc32": []}]},
        {"shards": [{"name": "x.bin", "tokens": 1.5, "sha256": "", "crc32": [1]}]},
        {"shards": None},
    ],
)
def test_an_index_that_gptcli_did_not_write(change: dict[str, Any], tmp_path: Path) -> None:
    name = written(str(tmp_path / "tokens"))
    index = json.loads((tmp_path / "tokens" / INDEX).read_text()) | change
    del index["sha256"]
    index["sha256"] = digest_of(index)
    (tmp_path / "tokens" / INDEX).write_text(json.dumps(index))
    with pytest.raises(GptcliError, match=r"tokens\.json is damaged"):
        read_index(ShardFolder(name))


def test_an_index_that_was_changed(tmp_path: Path) -> None:
    name = written(str(tmp_path / "tokens"))
    path = tmp_path / "tokens" / INDEX
    path.write_text(path.read_text().replace('"documents": 3', '"documents": 4'))
    with pytest.raises(GptcliError, match="is damaged"):
        read_index(ShardFolder(name))


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    name = written(str(tmp_path / "tokens"))
    other = build_tokenizer("char", 0, lambda: iter(["abc"]))
    with pytest.raises(GptcliError, match="encoded by another tokenizer"):
        open_corpus(name, kind="char", vocab_size=0, block_size=8, tokenizer=other)
    (tmp_path / "tokens" / "tokenizer.json").write_text("{}")
    with pytest.raises(GptcliError, match="not the tokenizer that made the shards"):
        corpus_of(name)


def test_shards_and_texts_do_not_mix(tmp_path: Path) -> None:
    name = written(str(tmp_path / "tokens"))
    (tmp_path / "text.txt").write_text("a text")
    with pytest.raises(GptcliError, match=r"mix token shards with a text, .*text\.txt"):
        corpus_of([name, str(tmp_path / "text.txt")])
    with pytest.raises(GptcliError, match="val_split: documents does not work"):
        corpus_of(name, val_split="documents")


def test_a_context_longer_than_a_block_is_refused(tmp_path: Path) -> None:
    corpus = corpus_of(written(str(tmp_path / "tokens")), block_size=60)
    with pytest.raises(GptcliError, match="too long for the token shards"):
        Batches(corpus.train, 60, 2, 0)
    assert Batches(corpus.train, 49, 2, 0).batch(0)[0].shape == (2, 49)


def test_a_folder_that_holds_something_is_not_written_to(place: str) -> None:
    with pytest.raises(GptcliError, match=r"exists already|holds files already"):
        written(place)


def test_writing_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fails() -> Any:
        yield ids_of(100)
        raise OSError(28, "No space left on device")

    with pytest.raises(GptcliError, match="No space left"):
        write_shards_to(str(tmp_path / "tokens"), fails(), BYTE, 1)
    assert not list(tmp_path.glob("*tokens*"))
    assert not list(tmp_path.glob(".*"))


# ---- URLs --------------------------------------------------------------------------------------


def test_a_network_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    name = written(f"memory://{uuid.uuid4()}/tokens")
    pauses: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", pauses.append)
    folder = remote.RemoteFolder(name)
    real, failures = folder._fs.cat_file, [ConnectionError("reset"), TimeoutError("late")]

    def cat_file(*args: Any, **more: Any) -> Any:
        if failures:
            raise failures.pop()
        return real(*args, **more)

    monkeypatch.setattr(folder._fs, "cat_file", cat_file)
    assert len(folder.read("tokens-00000.bin", 0, 10)) == 10
    assert pauses == [0.5, 2.0]
    failures += [ConnectionError("reset")] * 4
    with pytest.raises(GptcliError, match=r"cannot read memory://.*: ConnectionError: reset"):
        folder.read("tokens-00000.bin", 0, 10)


@pytest.mark.parametrize(
    "url",
    ["reference://x", "simplecache::memory://x", "zip://a::memory://b", "ssh://host/x", "S4://x"],
)
def test_other_protocols_are_refused(url: str) -> None:
    with pytest.raises(GptcliError, match="no URL of this form"):
        remote.RemoteFolder(url)


def test_a_package_that_is_missing_is_named() -> None:
    pytest.importorskip("fsspec")
    try:
        import s3fs  # noqa: F401
    except ImportError:
        with pytest.raises(GptcliError, match="needs the package s3fs") as raised:
            remote.RemoteFolder("s3://bucket/tokens")
        assert raised.value.hint == "pip install s3fs"


def test_a_url_without_shards() -> None:
    with pytest.raises(GptcliError, match=r"cannot read memory://.*/tokens\.json: there is no"):
        corpus_of(f"memory://{uuid.uuid4()}/nothing")


def test_a_file_that_is_too_large_is_not_read() -> None:
    folder = remote.RemoteFolder(f"memory://{uuid.uuid4()}")
    folder.write("x", b"12345")
    assert folder.read_small("x", 5) == b"12345"
    with pytest.raises(GptcliError, match="more than 4 bytes"):
        folder.read_small("x", 4)


def test_names_are_urls_or_paths() -> None:
    assert remote.is_url("s3://bucket/x")
    assert not any(map(remote.is_url, ("C:/texts", "C:\\texts", "folder/x.txt", "a:b", "//x")))
    # With another BLOCK_TOKENS, every run that reads shards would get its batches in another order.
    assert BLOCK_TOKENS == 1 << 21
