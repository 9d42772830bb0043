"""The cache of encoded texts: gptcli finds a text in it again and verifies the entry. Several
processes can safely build the same entry."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gptcli.corpus import Corpus, cache_folder, open_corpus, preparation
from gptcli.corpus.cache import entry_key
from gptcli.corpus.encoding import encode_all
from gptcli.errors import GptcliError
from gptcli.tokenization import Tokenizer, build_tokenizer

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n" * 5


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text(TEXT, encoding="utf-8", newline="")
    return path


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows by one item each time gptcli encodes a text.

    Also sets the size of a shard to 100 tokens."""
    found: list[str] = []
    real = encode_all

    def counted(*arguments: object) -> int:
        found.append(str(arguments[2]))
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(preparation, "encode_all", counted)
    monkeypatch.setattr(preparation, "SHARD_TOKENS", 100)
    return found


def open_it(path: Path, kind: str = "byte", **changed: object) -> Corpus:
    options: dict[str, object] = {
        "kind": kind, "vocab_size": 270, "val_fraction": 0.1, "block_size": 8
    }  # fmt: skip
    return open_corpus(str(path), **(options | changed))  # type: ignore[arg-type]


def ids_of(corpus: Corpus) -> list[int]:
    assert corpus.val is not None
    ids: list[int] = []
    for part in (corpus.train, corpus.val):
        ids += part.read(0, len(part)).tolist()
    return ids


def only_entry(cache: Path) -> Path:
    (entry,) = (cache / "corpus").iterdir()
    return entry


@pytest.mark.parametrize("kind", ["char", "byte", "bpe", "gpt2"])
def test_a_text_is_encoded_once(kind: str, text: Path, builds: list[str], cache: Path) -> None:
    first = open_it(text, kind)
    entry = only_entry(cache)
    second = open_it(text, kind)
    assert len(builds) == 1
    assert only_entry(cache) == entry
    assert ids_of(second) == ids_of(first)
    assert second.tokenizer.fingerprint() == first.tokenizer.fingerprint()
    assert (second.documents, second.source_bytes, second.content_key, second.notes) == (
        first.documents, first.source_bytes, first.content_key, []
    )  # fmt: skip


def test_another_split_or_file_name_uses_the_same_entry(
    text: Path, builds: list[str], tmp_path: Path
) -> None:
    open_it(text)
    open_it(text, val_fraction=0.3, block_size=50)
    text.rename(tmp_path / "b.txt")
    open_it(tmp_path / "b.txt")
    assert len(builds) == 1


def test_another_text_kind_or_vocabulary_is_encoded_again(text: Path, builds: list[str]) -> None:
    open_it(text, "bpe")
    open_it(text, "bpe", vocab_size=280)
    open_it(text, "char")
    # The char tokenizer ignores vocab_size, so the cached text is still correct.
    open_it(text, "char", vocab_size=5)
    open_it(text, "byte")
    assert len(builds) == 4
    before = ids_of(open_it(text))
    text.write_text(TEXT.replace("speak", "speaK"), encoding="utf-8", newline="")
    after = ids_of(open_it(text))
    assert len(builds) == 5
    assert [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]] == [
        (ord("k"), ord("K"))
    ] * 5


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_the_tokenizer_of_a_run_finds_its_entry(
    kind: str, text: Path, builds: list[str], tmp_path: Path
) -> None:
    trained = open_it(text, kind).tokenizer
    assert ids_of(open_it(text, kind, tokenizer=trained)) == ids_of(open_it(text, kind))
    assert len(builds) == 1
    other = build_tokenizer(kind, 270, lambda: iter([TEXT, "more words, more words, more: +!"]))
    for _ in range(2):
        found = open_it(text, kind, tokenizer=other)
        assert found.tokenizer is other
        assert found.tokenizer.decode(ids_of(found)[found.tokenizer.eot is not None :]) == TEXT
    assert len(builds) == 2
    assert open_it(text, kind).tokenizer.fingerprint() == trained.fingerprint()
    assert len(builds) == 2


def damages(entry: Path) -> Iterator[str]:
    """Damage a cache entry in many ways, one after the other.

    After each yield, the caller has gptcli repair the entry. Yields a description of the
    damage, such as "meta.json empty"."""
    good = {path.name: path.read_bytes() for path in entry.iterdir()}
    assert len(good) == 6, "four shards, tokenizer.json and meta.json"
    for name, content in good.items():
        middle = len(content) // 2
        flipped = bytearray(content)
        flipped[middle] ^= 1
        for what, damaged in (
            ("missing", None),
            ("empty", b""),
            ("short", content[:middle]),
            ("shorter by one", content[:-1]),
            ("longer by one token", content + b"aa"),
            ("one bit flipped", bytes(flipped)),
        ):
            if damaged is None:
                (entry / name).unlink()
            else:
                (entry / name).write_bytes(damaged)
            yield f"{name} {what}"
    shards = sorted(name for name in good if name.startswith("tokens"))
    (entry / shards[0]).write_bytes(good[shards[1]])
    (entry / shards[1]).write_bytes(good[shards[0]])
    yield "two shards exchanged"
    meta = json.loads(good["meta.json"])
    meta["documents"] = 7
    (entry / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    yield "meta.json edited"
    (entry / "meta.json").write_text("[1]", encoding="utf-8")
    yield "meta.json of something else"
    meta["key"] = entry_key("0", "0")
    (entry / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    yield "an entry of another key"


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_a_damaged_entry_is_rebuilt(kind: str, text: Path, builds: list[str], cache: Path) -> None:
    reference = open_it(text, kind)
    ids = ids_of(reference)
    entry = only_entry(cache)
    good = {path.name: path.read_bytes() for path in entry.iterdir()}
    for count, damage in enumerate(damages(entry), start=2):
        found = open_it(text, kind)
        file = entry / damage.partition(" ")[0]
        if file.name in good:
            assert found.notes == [f"{file} is missing or damaged; the text is encoded again"]
        assert len(found.notes) == 1, damage
        assert len(builds) == count, damage
        assert ids_of(found) == ids, damage
        assert found.documents == 1, damage
        assert {path.name: path.read_bytes() for path in entry.iterdir()} == good, damage
        assert only_entry(cache) == entry, damage
    assert ids_of(reference) == ids, "what was open stays readable"


def test_an_entry_under_a_wrong_name_is_not_used(
    text: Path, builds: list[str], cache: Path, tmp_path: Path
) -> None:
    open_it(text)
    entry = only_entry(cache)
    other = tmp_path / "b.txt"
    other.write_text(TEXT.upper(), encoding="utf-8", newline="")
    expected = ids_of(open_it(other))
    (theirs,) = set((cache / "corpus").iterdir()) - {entry}
    for path in entry.iterdir():
        (theirs / path.name).write_bytes(path.read_bytes())
    assert ids_of(open_it(other)) == expected
    assert len(builds) == 3


def test_a_file_with_the_name_of_an_entry_is_replaced(
    text: Path, builds: list[str], cache: Path
) -> None:
    expected = ids_of(open_it(text))
    entry = only_entry(cache)
    entry.rename(entry.with_name(".aside.old"))
    entry.write_bytes(b"not a folder")
    assert ids_of(open_it(text)) == expected
    assert len(builds) == 2


def test_an_interrupted_build_leaves_nothing(
    text: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> int:
        assert len(list((cache / "corpus").glob(".*.tmp"))) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(preparation, "encode_all", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_it(text)
    assert list((cache / "corpus").iterdir()) == []


def test_the_folders_of_killed_builds_are_removed_after_a_day(text: Path, cache: Path) -> None:
    old, fresh = cache / "corpus" / ".old.tmp", cache / "corpus" / ".fresh.tmp"
    for folder in (old, fresh):
        folder.mkdir(parents=True)
        (folder / "tokens-00000.bin").write_bytes(b"ab")
    yesterday = time.time() - 25 * 3600
    os.utime(old, (yesterday, yesterday))
    open_it(text)
    assert not old.exists()
    assert fresh.exists()


def test_a_full_disk_is_an_error_with_a_hint(
    text: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preparation, "encode_all", full)
    with pytest.raises(GptcliError) as caught:
        open_it(text)
    assert caught.value.message == (
        f"cannot write the encoded text into {cache / 'corpus'}: No space left on device"
    )
    assert caught.value.hint is not None
    assert "GPTCLI_CACHE" in caught.value.hint
    assert caught.value.exit_code == 1
    assert list((cache / "corpus").iterdir()) == []


UNWRITABLE = """
import sys
from gptcli.corpus import open_corpus
for _ in range(2):
    corpus = open_corpus(
        sys.argv[1], kind="byte", vocab_size=0, val_fraction=0.1, block_size=8
    )
    print(len(corpus.train) + len(corpus.val), *corpus.notes, sep="\\n")
"""


def test_without_a_cache_the_entry_is_in_a_temporary_folder(
    text: Path, tmp_path: Path, cache: Path
) -> None:
    cache.write_bytes(b"a file where the folder should be")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    done = run_in_process(UNWRITABLE, text, TMPDIR=temporary, TEMP=temporary, TMP=temporary)
    lines = done.communicate(timeout=300)[0].splitlines()
    assert done.returncode == 0
    assert lines[0] == lines[2] == str(len(TEXT) + 1)
    assert lines[1].startswith(f"the cache folder {cache / 'corpus'} cannot be written (")
    assert lines[1].endswith(
        "every run encodes the text again; GPTCLI_CACHE can name another folder"
    )
    assert list(temporary.iterdir()) == []


def run_in_process(code: str, *arguments: object, **environment: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
    )


RACE = """
import hashlib, sys
from gptcli.corpus import open_corpus
sys.stdin.readline()
for _ in range(6):
    corpus = open_corpus(
        sys.argv[1], kind="char", vocab_size=0, val_fraction=0.1, block_size=8
    )
    ids = corpus.train.read(0, len(corpus.train))
    print(hashlib.sha256(ids.tobytes()).hexdigest(), corpus.notes)
"""


@pytest.mark.slow
def test_processes_that_build_at_once_all_read_the_right_tokens(text: Path, cache: Path) -> None:
    text.write_text(TEXT * 3000, encoding="utf-8", newline="")
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(text)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    stop = threading.Event()

    def vandal() -> None:
        while not stop.wait(0.1):
            for path in (cache / "corpus").glob("[!.]*/tokens-00000.bin"):
                path.unlink(missing_ok=True)

    damaging = threading.Thread(target=vandal)
    damaging.start()
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    lines = [line for racer in racers for line in racer.communicate(timeout=300)[0].splitlines()]
    stop.set()
    damaging.join()
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert len(lines) == 18
    assert len({line.partition(" ")[0] for line in lines}) == 1
    assert [path.name for path in (cache / "corpus").iterdir() if path.name[0] == "."] == []


def test_threads_that_build_at_once_share_one_entry(
    text: Path, cache: Path, builds: list[str]
) -> None:
    found: list[list[int]] = []
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait()
        found.append(ids_of(open_it(text)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(ids == found[0] for ids in found)
    assert only_entry(cache).name[0] != "."


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {}, "home/.cache/gptcli"),
        ("linux", {"XDG_CACHE_HOME": "{root}/xdg"}, "xdg/gptcli"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "home/.cache/gptcli"),
        ("darwin", {"XDG_CACHE_HOME": "{root}/xdg"}, "home/Library/Caches/gptcli"),
        ("win32", {"LOCALAPPDATA": "{root}/local"}, "local/gptcli"),
        ("win32", {}, "home/AppData/Local/gptcli"),
        ("win32", {"GPTCLI_CACHE": "{root}/mine"}, "mine"),
        ("linux", {"GPTCLI_CACHE": "~/mine"}, "home/mine"),
    ],
)
def test_the_cache_is_in_the_cache_folder_of_the_system(
    platform: str,
    environment: dict[str, str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("GPTCLI_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(root=tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr("gptcli.files.caches.sys.platform", platform)
        found = cache_folder()
    assert found == tmp_path / expected


def test_a_given_cache_folder_is_used(text: Path, tmp_path: Path, cache: Path) -> None:
    open_it(text, cache=tmp_path / "elsewhere")
    assert not cache.exists()
    assert only_entry(tmp_path / "elsewhere").is_dir()


def test_the_tokenizer_of_an_entry_is_a_tokenizer_json(text: Path, cache: Path) -> None:
    tokenizer: Tokenizer = open_it(text, "char").tokenizer
    stored = (only_entry(cache) / "tokenizer.json").read_text(encoding="utf-8")
    assert stored == tokenizer.to_json()
