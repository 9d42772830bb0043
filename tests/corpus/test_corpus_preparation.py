"""open_corpus gives the same ids as if each document were encoded in one piece. It refuses texts
that cannot be used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptcli.config import DataConfig
from gptcli.corpus import Corpus, open_corpus
from gptcli.corpus.encoding import characters, encode_all
from gptcli.corpus.reading import Piece
from gptcli.errors import GptcliError
from gptcli.tokenization import Tokenizer, build_tokenizer
from gptcli.tokenization.unknown_characters import Rule

SENTENCE = "A sentence, or  two\n\n; naïve 🙂 words\tmake   documents of 1234 characters.\n"
TOKENIZERS = {
    kind: build_tokenizer(kind, 300, lambda: iter([SENTENCE] * 20))
    for kind in ("char", "byte", "bpe", "gpt2")
}


RULES: tuple[Rule, ...] = ("drop", "replace")


def corpus_of(
    source: Path | str,
    kind: str = "byte",
    *,
    val_fraction: float = 0.0,
    val_split: Literal["auto", "tail", "documents"] = "tail",
    block_size: int = 4,
    tokenizer: Tokenizer | None = None,
    vocab_size: int = 300,
    unknown: Rule = "error",
    **data: Any,
) -> Corpus:
    return open_corpus(
        DataConfig(source=str(source), val_split=val_split, val_fraction=val_fraction, **data),
        kind=kind,
        vocab_size=vocab_size,
        block_size=block_size,
        tokenizer=tokenizer,
        unknown=unknown,
    )


def ids_of(corpus: Corpus) -> list[int]:
    ids: list[int] = corpus.train.read(0, len(corpus.train)).tolist()
    if corpus.val is not None:
        ids += corpus.val.read(0, len(corpus.val)).tolist()
    return ids


def one_shot(documents: list[str], tokenizer: Tokenizer) -> list[int]:
    """The ids that the corpus should have.

    Each document is encoded in one piece, after an end-of-text. If the tokenizer has no
    end-of-text, newlines join the documents, and the whole text is encoded in one piece."""
    if tokenizer.eot is not None:
        return [id for text in documents for id in (tokenizer.eot, *tokenizer.encode(text))]
    joined = ""
    for text in documents:
        joined += "\n" if joined and not joined.endswith("\n") else ""
        joined += text
    return tokenizer.encode(joined)


@pytest.mark.long_series
@pytest.mark.parametrize("kind", list(TOKENIZERS))
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_streaming_gives_the_ids_of_each_complete_document(
    kind: str, data: st.DataObject, small_chunks: None
) -> None:
    tokenizer = TOKENIZERS[kind]
    alphabet = st.sampled_from(SENTENCE) if kind == "char" else st.characters(codec="utf-8")
    text = st.text(st.one_of(alphabet, st.sampled_from(" \n\tae,1")), min_size=1, max_size=40)
    documents = data.draw(st.lists(text, min_size=1, max_size=5))
    pieces = []
    for document in documents:
        cuts = data.draw(st.lists(st.integers(1, len(document)), max_size=4).map(sorted))
        parts = [
            document[a:b] for a, b in zip([0, *cuts], [*cuts, len(document)], strict=True) if a < b
        ]
        pieces += [Piece(part, index == 0) for index, part in enumerate(parts)]
    found: list[int] = []
    count = encode_all(iter(pieces), tokenizer, lambda ids: found.extend(ids.tolist()))
    assert count == len(documents)
    assert found == one_shot(documents, tokenizer)
    assert set("".join(characters(iter(pieces)))) == set("".join(documents))


@pytest.mark.parametrize("kind", list(TOKENIZERS))
def test_a_folder_becomes_documents(kind: str, tmp_path: Path, small_chunks: None) -> None:
    documents = [SENTENCE * 3, "no newline at the end", "third", "fourth\n", SENTENCE, "last"]
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "1.txt").write_text(documents[0], encoding="utf-8", newline="")
    (folder / "2.txt").write_text("\ufeff" + documents[1], encoding="utf-8", newline="")
    lines = [json.dumps({"text": text}) for text in ("", *documents[2:5])]
    (folder / "3.jsonl").write_bytes("\n".join(lines).encode())
    (folder / "4.txt").write_bytes(b"")
    (folder / "5.txt").write_text(documents[5], encoding="utf-8", newline="")
    corpus = corpus_of(folder, kind, val_fraction=0.25)
    assert corpus.tokenizer.kind == kind
    assert ids_of(corpus) == one_shot(documents, corpus.tokenizer)
    assert corpus.documents == len(documents)
    assert corpus.source_bytes == sum(path.stat().st_size for path in folder.iterdir())
    total = len(ids_of(corpus))
    assert len(corpus.train) == int(total * 0.75)
    assert corpus.val is not None
    assert len(corpus.val) == total - int(total * 0.75)
    if kind == "char":
        expected = set("\n".join(documents))
        vocabulary = range(corpus.tokenizer.vocab_size)
        assert {corpus.tokenizer.token_bytes(id).decode() for id in vocabulary} == expected
    if kind == "bpe":
        assert 257 < corpus.tokenizer.vocab_size <= 300


def test_end_of_text_separates_the_documents_of_a_bpe(tmp_path: Path) -> None:
    """Without a separator between documents, the BPE would learn the token ` xy` across their
    borders."""
    (tmp_path / "a.jsonl").write_text('{"text": "y x"}\n' * 500, encoding="utf-8")
    corpus = corpus_of(tmp_path / "a.jsonl", "bpe")
    pieces = [corpus.tokenizer.token_bytes(id) for id in range(corpus.tokenizer.vocab_size)]
    assert b" x" in pieces
    assert not [piece for piece in pieces if b"xy" in piece]


def test_end_of_text_within_a_text_ends_a_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one<|endoftext|>two<|endoftext|>\n", encoding="utf-8")
    corpus = corpus_of(tmp_path / "a.txt")
    assert ids_of(corpus) == [256, *b"one", 256, *b"two"]
    assert corpus.notes == ["`<|endoftext|>` ends a document 2 times"]
    assert corpus_of(tmp_path / "a.txt").notes == corpus.notes, "also from the cache"
    corpus = corpus_of(tmp_path / "a.txt", "char")
    assert corpus.tokenizer.decode(ids_of(corpus)) == "one\ntwo"
    corpus = corpus_of(tmp_path / "a.txt", documents="file")
    assert ids_of(corpus).count(256) == 1
    assert corpus.notes == []


def test_val_fraction_can_be_0(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"0123456789")
    corpus = corpus_of(tmp_path / "a.txt", "char")
    assert corpus.val is None
    assert len(corpus.train) == 10
    corpus = corpus_of(tmp_path / "a.txt", "char", val_fraction=0.2)
    assert corpus.val is not None
    assert corpus.tokenizer.decode(corpus.val.read(0, 2).tolist()) == "89"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.txt",
            b"caf\xe9",
            "a.txt is not UTF-8: byte 0xE9 at offset 3 (line 1) does not belong there (the last "
            "byte: cut off?); it looks like WINDOWS-1252",
        ),
        ("a.txt", b"", "a.txt is empty"),
        ("a.txt", b"\xef\xbb\xbf", "a.txt has no text in it"),
        ("a.jsonl", b'{"text": ""}\n\n', "a.jsonl has no text in it"),
        ("a.jsonl", b"text", "a.jsonl:1: not JSON: Expecting value (column 1)"),
        ("a.txt", b"a\0b", "a.txt looks binary: byte 1 is NUL"),
        ("a.txt", b"abcd", "a.txt is too short: it has 4 tokens, and block_size = 4 needs 5"),
    ],
)
def test_texts_that_cannot_be_trained_on_are_refused(
    name: str, content: bytes, message: str, tmp_path: Path, cache: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(GptcliError) as caught:
        corpus_of(tmp_path / name, "char")
    assert caught.value.message == str(tmp_path / name).removesuffix(name) + message
    assert caught.value.hint
    assert caught.value.exit_code == 2
    assert not list(cache.glob("corpus/.*")), "nothing half made stays behind"


def test_an_empty_validation_split_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"0123456789")
    with pytest.raises(GptcliError, match="has no validation split") as caught:
        corpus_of(tmp_path / "a.txt", "char", val_fraction=0.1)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("raise data.val_fraction to 0.2, or ")


def test_characters_that_a_given_tokenizer_lacks_are_counted_and_named(tmp_path: Path) -> None:
    tokenizer = build_tokenizer("char", 0, lambda: iter(["abc"]))
    (tmp_path / "a.txt").write_text("abé" + "abc" * 500_000 + "éxyz🙂qé", encoding="utf-8")
    with pytest.raises(GptcliError) as caught:
        corpus_of(tmp_path / "a.txt", tokenizer=tokenizer)
    assert caught.value.message == (
        f"{tmp_path / 'a.txt'} has 8 characters that this char tokenizer does not know: "
        "'é' (U+00E9) 3 times, 'q' (U+0071) once, 'x' (U+0078) once, 'y' (U+0079) once, "
        "'z' (U+007A) once and 1 more"
    )
    for way in ("data.unknown=drop", "data.unknown=replace", "tokenizer.kind=byte"):
        assert way in caught.value.hint


@pytest.mark.parametrize("chunk", [1 << 18, 2])
@pytest.mark.parametrize(
    ("rule", "text", "verb"),
    [("drop", "abc b\n\nabc", "left out"), ("replace", "abac b\n a\nabc", "replaced")],
)
def test_unknown_characters_are_dropped_or_replaced_with_a_note(
    rule: Rule, text: str, verb: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptcli.corpus.reading.CHUNK", chunk)
    monkeypatch.setenv("GPTCLI_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "texts"
    folder.mkdir()
    tokenizer = build_tokenizer("char", 0, lambda: iter(["abc \n"]))
    for name, document in (("1", "abác b"), ("2", "漢á"), ("3", "abc")):
        (folder / f"{name}.txt").write_text(document, encoding="utf-8")
    for _ in range(2):  # the second call reads the text from the cache, and gives the same note
        corpus = corpus_of(folder, tokenizer=tokenizer, unknown=rule)
        assert tokenizer.decode(ids_of(corpus)) == text
        assert [note for note in corpus.notes if verb in note] == [
            f"{folder}: {verb} 3 characters that this char tokenizer does not know: "
            "'á' (U+00E1) 2 times, '漢' (U+6F22) once"
        ]


def test_each_rule_has_its_own_entry_in_the_cache(tmp_path: Path) -> None:
    tokenizer = build_tokenizer("char", 0, lambda: iter(["abce"]))
    (tmp_path / "a.txt").write_text("abé" * 10, encoding="utf-8")
    sizes = [
        len(corpus_of(tmp_path / "a.txt", tokenizer=tokenizer, unknown=rule).train)
        for rule in RULES
    ]
    assert sizes == [20, 30]
    with pytest.raises(GptcliError, match="10 characters"):
        corpus_of(tmp_path / "a.txt", tokenizer=tokenizer)


def test_a_corpus_from_the_cache_has_its_notes(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"some text")
    (folder / "b.png").write_bytes(b"\0")
    expected = [f"skipped 1 file that is not text, in {folder}: b.png"]
    assert corpus_of(folder).notes == expected
    assert corpus_of(folder).notes == expected


def test_nothing_is_printed_if_stderr_is_not_a_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_bytes(b"some text of 10 words at the very least, friends" * 9)
    for kind in TOKENIZERS:
        corpus_of(tmp_path / "a.txt", kind)
    assert capfd.readouterr() == ("", "")


MEASURE = """
import sys, threading
from pathlib import Path
import gptcli.corpus.preparation, gptcli.tokenization, numpy, concurrent.futures

def anonymous():
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10

before = peak = anonymous()
done = threading.Event()
def watch():
    global peak
    while not done.wait(0.001):
        peak = max(peak, anonymous())
watcher = threading.Thread(target=watch)
watcher.start()
corpus = gptcli.corpus.open_corpus(
    sys.argv[1], kind=sys.argv[2], vocab_size=0, val_fraction=0.1, block_size=8
)
done.set()
watcher.join()
print(len(corpus.train) + len(corpus.val), peak - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("kind", ["char", "byte"])
def test_memory_does_not_grow_with_the_text(kind: str, tmp_path: Path) -> None:
    size = 64 << 20
    with (tmp_path / "a.txt").open("wb") as file:
        for _ in range(64):
            file.write(b"Sixteen letters\n" * (1 << 16))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "a.txt"), kind],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    tokens, grown = map(int, done.stdout.split())
    assert tokens == size + (kind == "byte")
    assert grown < 40 << 20


def test_opening_a_corpus_does_not_import_torch(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"some text that is long enough")
    code = """
import sys
from gptcli.corpus import open_corpus
open_corpus(sys.argv[1], kind="bpe", vocab_size=257, val_fraction=0.1, block_size=8)
print("torch" in sys.modules)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "a.txt")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout == "False\n"
