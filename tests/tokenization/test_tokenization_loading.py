"""tokenizer.json: gptcli and Hugging Face's library read it in the same way. gptcli refuses damaged
files and files of other programs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from gptcli.errors import GptcliError
from gptcli.files.shipped import shipped_texts
from gptcli.tokenization import KINDS, build_tokenizer, load_tokenizer

SHAKESPEARE = shipped_texts()["shakespeare"].read_text(encoding="utf-8")[:100_000]
TOKENIZERS = {kind: build_tokenizer(kind, 300, lambda: iter([SHAKESPEARE])) for kind in KINDS}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokenizer.json"


def store(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="\n")
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_tokenizer_is_the_same(kind: str, path: Path) -> None:
    tokenizer = TOKENIZERS[kind]
    loaded = load_tokenizer(store(path, tokenizer.to_json()))
    assert loaded.kind == kind
    assert loaded.fingerprint() == tokenizer.fingerprint()
    assert loaded.vocab_size == tokenizer.vocab_size
    assert loaded.eot == tokenizer.eot
    assert loaded.encode(SHAKESPEARE) == tokenizer.encode(SHAKESPEARE)


@pytest.mark.parametrize("kind", KINDS)
def test_hugging_face_reads_it_with_the_same_ids(kind: str, path: Path) -> None:
    tokenizer = TOKENIZERS[kind]
    theirs = tokenizers.Tokenizer.from_file(str(store(path, tokenizer.to_json())))
    ids = tokenizer.encode(SHAKESPEARE)
    assert theirs.encode(SHAKESPEARE).ids == ids
    assert theirs.decode(ids) == SHAKESPEARE
    assert theirs.get_vocab_size() == tokenizer.vocab_size
    if tokenizer.eot is not None:
        assert theirs.token_to_id("<|endoftext|>") == tokenizer.eot


def test_unusual_characters_can_be_saved_and_loaded(path: Path) -> None:
    text = '\x00\x1f"\\\u2028\u0301é🙂\U0010ffff\r\n'
    tokenizer = build_tokenizer("char", 0, lambda: iter([text]))
    loaded = load_tokenizer(store(path, tokenizer.to_json()))
    assert loaded.decode(loaded.encode(text)) == text
    assert tokenizers.Tokenizer.from_file(str(path)).encode(text).ids == tokenizer.encode(text)


def test_different_tokenizers_have_different_fingerprints() -> None:
    others = [
        build_tokenizer("bpe", 299, lambda: iter([SHAKESPEARE])),
        build_tokenizer("char", 0, lambda: iter([SHAKESPEARE + "🙂"])),
    ]
    prints = [tokenizer.fingerprint() for tokenizer in [*TOKENIZERS.values(), *others]]
    assert len(set(prints)) == len(prints)
    assert all(len(digest) == 64 for digest in prints)


def test_other_white_space_in_the_json_is_accepted(path: Path) -> None:
    tokenizer = TOKENIZERS["bpe"]
    store(path, json.dumps(json.loads(tokenizer.to_json()), indent=4).replace("\n", "\r\n"))
    assert load_tokenizer(path).fingerprint() == tokenizer.fingerprint()


def test_missing_file_and_folder_are_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(GptcliError, match="the tokenizer cannot be read"):
            load_tokenizer(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON at line 1"),
        (b'{"model": \n\n', "not JSON at line 3"),
        (b"\xff\xfe{}", "not UTF-8 at byte 0"),
        (b"[" * 200_000, "JSON that cannot be read"),
        (b"1" * 10_000, "JSON that cannot be read"),
        (b"null", "not a tokenizer of gptcli"),
        (b"[]", "not a tokenizer of gptcli"),
        (b'{"model": []}', "not a tokenizer of gptcli"),
        (b'{"model": {"type": "BPE", "vocab": {}}}', "not a tokenizer of gptcli"),
        (b'{"model": {"kind": "words"}}', "model.kind is 'words'"),
        (b'{"model": {"kind": ["char"]}}', r"model.kind is \['char'\]"),
        (b'{"model": {"kind": "char"}}', "no model.vocab"),
        (b'{"model": {"kind": "char", "vocab": {}}}', "no model.vocab"),
        (b'{"model": {"kind": "char", "vocab": ["a"]}}', "no model.vocab"),
        (b'{"model": {"kind": "bpe", "vocab": {"a": 0}}}', "lacks end-of-text"),
    ],
)
def test_files_that_are_not_tokenizers_are_refused(content: bytes, words: str, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(GptcliError, match=words) as caught:
        load_tokenizer(path)
    assert str(path) in caught.value.message
    assert "damaged or was not written by gptcli" in str(caught.value.hint)


def _set(*keys: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(stored: dict[str, Any]) -> None:
        for key in keys[:-1]:
            stored = stored[key]
        stored[keys[-1]] = to

    return change


def _drop(*keys: str) -> Callable[[dict[str, Any]], None]:
    def change(stored: dict[str, Any]) -> None:
        for key in keys[:-1]:
            stored = stored[key]
        del stored[keys[-1]]

    return change


def _swap_merges(stored: dict[str, Any]) -> None:
    merges = stored["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]


def _rename_last_merge(stored: dict[str, Any]) -> None:
    vocab = stored["model"]["vocab"]
    token = next(token for token, id in vocab.items() if id == 298)
    stored["model"]["vocab"] = {"zqxj" if name == token else name: id for name, id in vocab.items()}


@pytest.mark.long_series
@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("char", _set("model", "vocab", "a", to=True), "token 'a' has the id True"),
        ("char", _set("model", "vocab", "a", to=-1), "token 'a' has the id -1"),
        ("char", _set("model", "vocab", "a", to=0.0), r"token 'a' has the id 0\.0"),
        ("char", _set("model", "vocab", "a", to="1"), "token 'a' has the id '1'"),
        ("char", _set("model", "vocab", "a", to=0), "have the same id 0"),
        ("char", _set("model", "vocab", "é", to=10**9), "token 'é' has the id 1000000000"),
        ("char", _drop("model", "vocab", "a"), "has the id"),
        ("char", _set("model", "unk_token", to="a"), "`model` is not what a char tokenizer"),
        ("char", _set("normalizer", to={"type": "NFC"}), "`normalizer` is not what"),
        ("char", _set("extra", to=1), "`extra` is not what"),
        ("char", _drop("decoder"), "`decoder` is not what"),
        ("char", _set("model", "kind", to="byte"), "is not what a byte tokenizer"),
        ("byte", _set("model", "kind", to="char"), "is not one character"),
        ("byte", _set("model", "kind", to="gpt2"), "is not what a gpt2 tokenizer"),
        ("byte", _set("model", "vocab", to={"a": 0}), "is not what a byte tokenizer"),
        ("bpe", _swap_merges, "`model` is not what a bpe tokenizer"),
        ("bpe", _rename_last_merge, "is not a merge of two earlier tokens"),
        ("bpe", _set("model", "merges", to=[]), "`model` is not what a bpe tokenizer"),
        ("bpe", _set("added_tokens", to=[]), "lacks end-of-text"),
        ("bpe", _drop("model", "vocab", "<|endoftext|>"), "special tokens are not in"),
        ("gpt2", _set("model", "vocab", "Hello", to=995), "have the same id 995"),
        ("gpt2", _swap_merges, "is not what a gpt2 tokenizer"),
    ],
)
def test_changed_file_is_refused(
    kind: str, change: Callable[[dict[str, Any]], None], words: str, path: Path
) -> None:
    stored = json.loads(TOKENIZERS[kind].to_json())
    change(stored)
    with pytest.raises(GptcliError, match=words):
        load_tokenizer(store(path, json.dumps(stored)))


@pytest.mark.parametrize(
    ("vocab", "words"),
    [
        ({"ab": 0}, "'ab' is not one character"),
        ({"": 0}, "'' is not one character"),
        ({"\ud800": 0}, "is not one character"),
    ],
)
def test_a_char_vocabulary_with_longer_tokens_is_refused(
    vocab: dict[str, int], words: str, path: Path
) -> None:
    with pytest.raises(GptcliError, match=words):
        load_tokenizer(store(path, json.dumps({"model": {"kind": "char", "vocab": vocab}})))


@pytest.mark.parametrize("token", ["世", "", " "])
def test_a_bpe_vocabulary_with_unknown_characters_is_refused(token: str, path: Path) -> None:
    stored = json.loads(TOKENIZERS["bpe"].to_json())
    last = next(name for name, id in stored["model"]["vocab"].items() if id == 298)
    del stored["model"]["vocab"][last]
    stored["model"]["vocab"][token] = 298
    with pytest.raises(GptcliError, match="the vocabulary has"):
        load_tokenizer(store(path, json.dumps(stored)))


def test_bytes_in_another_order_are_another_tokenizer(path: Path) -> None:
    stored = json.loads(TOKENIZERS["bpe"].to_json())
    vocab = stored["model"]["vocab"]
    a, b = vocab["a"], vocab["b"]
    vocab["a"], vocab["b"] = b, a
    stored["model"]["vocab"] = dict(sorted(vocab.items(), key=lambda item: item[1]))
    path.write_text(json.dumps(stored), encoding="utf-8")
    loaded = load_tokenizer(path)
    assert loaded.encode("\x00a\x00b") == [0, b, 0, a]
    assert loaded.fingerprint() != TOKENIZERS["bpe"].fingerprint()


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_is_refused_at_any_length(kind: str, path: Path) -> None:
    content = TOKENIZERS[kind].to_json().encode()
    for end in range(0, len(content) - 1, len(content) // 7):
        path.write_bytes(content[:end])
        with pytest.raises(GptcliError, match=r"not (JSON|UTF-8)"):
            load_tokenizer(path)


def test_importing_the_package_is_cheap() -> None:
    program = (
        "import sys, gptcli.tokenization; "
        "print([m for m in ('numpy', 'tiktoken', 'tokenizers', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.split() == [b"[]"]
