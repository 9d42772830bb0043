"""Tokenizers like those of Qwen3 and Llama 3 give the ids of Hugging Face's library. gptcli cuts
texts safely for them, encodes prompts with them, and stores them in runs."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

from gptcli.corpus.encoding import Piece, encode_all
from gptcli.errors import GptcliError
from gptcli.tokenization import load_tokenizer, safe_cuts
from gptcli.tokenization.imported import ImportedTokenizer, read_imported
from gptcli.tokenization.split_patterns import GPT2, GPT4O, LLAMA3, QWEN2, TEKKEN, splitting_of
from tests.conftest import TEXT

SAMPLE = TEXT + "naïve größer, 你好 世界; don't I'LL 123 45678 x == 1;\n\n  y\r\n" * 20
PATTERNS = {"qwen3": QWEN2, "llama3": LLAMA3, "gpt4o": GPT4O, "tekken": TEKKEN}
KINDS = (*PATTERNS, "smollm")


def special(*names: str, is_special: bool = True) -> list[AddedToken]:
    return [AddedToken(name, special=is_special, normalized=False) for name in names]


@cache
def theirs(kind: str) -> tokenizers.Tokenizer:
    """A small tokenizer of Hugging Face's library, with the steps of the model `kind`."""
    made = tokenizers.Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "smollm")
    split: Any = pre_tokenizers.Digits(individual_digits=True)
    if kind in PATTERNS:
        split = pre_tokenizers.Split(Regex(PATTERNS[kind]), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    made.decoder = decoders.ByteLevel()
    if kind == "qwen3":
        made.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([SAMPLE], trainer)
    if kind == "llama3":
        made.add_special_tokens(special("<|begin_of_text|>", "<|end_of_text|>"))
        begin = made.token_to_id("<|begin_of_text|>")
        first = processors.TemplateProcessing(
            single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)]
        )
        made.post_processor = processors.Sequence([processors.ByteLevel(), first])
    else:
        made.add_special_tokens(special("<|endoftext|>", "<|im_start|>"))
        made.add_tokens(special("<think>", "</think>", is_special=False))
    return made


@cache
def ours(kind: str) -> ImportedTokenizer:
    return read_imported(json.loads(theirs(kind).to_str()))


def ids_of(kind: str, text: str) -> list[int]:
    return list(theirs(kind).encode(text, add_special_tokens=False).ids)


SCRIPTS = (
    (0x20, 0x7E), (0xA0, 0x17F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF), (0x5D0, 0x5EA),
    (0x620, 0x64A), (0x900, 0x97F), (0xE01, 0xE3A), (0x1100, 0x11FF), (0x3041, 0x30FF),
    (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0x1F300, 0x1F64F),
)  # fmt: skip


def strings(count: int) -> Iterator[str]:
    """Yield random strings of many scripts, with spaces, line ends, digits and added tokens."""
    draw = random.Random(7)
    for i in range(count):
        low, high = SCRIPTS[i % len(SCRIPTS)]
        characters = [chr(draw.randint(low, high)) for _ in range(20)]
        mixed = [*"  \n\r\t'sSdonLl0123.,-/\u0301\u0308", "'re", "<think>", *characters]
        yield "".join(draw.choices(mixed, k=draw.randint(0, 30)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_ids_of_5000_strings_are_the_librarys(kind: str, slow: bool) -> None:
    for text in strings(5000 if slow else 1000):
        ids = ours(kind).encode(text)
        assert ids == ids_of(kind, text), text
        # Normalising a whole text can compose an added token with a combining mark after it, but
        # encoding keeps them apart. So both texts are normalised before they are compared.
        again = ours(kind).decode(ids)
        assert ours(kind).normalised(again) == ours(kind).normalised(text)
        assert kind == "qwen3" or again == text


@given(st.sampled_from(KINDS), st.lists(st.sampled_from("ab1é \n\r\t'!?世²ǅ/") | st.characters()))
@settings(max_examples=200)
def test_cuts_change_no_id(kind: str, characters: list[str]) -> None:
    text = "".join(characters)
    for minimum in (1, 5):
        pieces = list(safe_cuts([text], minimum, len(text) + 1, ours(kind).last_cut))
        assert "".join(pieces) == text
        assert [id for piece in pieces for id in ours(kind).encode(piece)] == ids_of(kind, text)


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_text_is_encoded_in_pieces(kind: str) -> None:
    text = SAMPLE * 15 + " " * 30_000 + "x" + "\n" * 30_000 + "y 12"
    written: list[int] = []
    encode_all([Piece(text, starts=True)], ours(kind), lambda ids: written.extend(ids.tolist()))
    assert written[1:] == ids_of(kind, text)
    assert ours(kind).encode_array(text).tolist() == ids_of(kind, text)


def test_a_text_of_special_names_is_text_and_one_of_added_names_is_not() -> None:
    tokenizer = ours("qwen3")
    assert tokenizer.decode(tokenizer.encode("<|im_start|>")) == "<|im_start|>"
    assert len(tokenizer.encode("<|im_start|>")) > 3
    assert tokenizer.encode("a<think>b")[1] == theirs("qwen3").token_to_id("<think>")
    assert tokenizer.encode("a<|endoftext|>", allow_eot=True)[-1] == tokenizer.eot
    names = {tokenizer.token_bytes(id).decode() for id in tokenizer.special_ids}
    assert names == {"<|endoftext|>", "<|im_start|>"}


def test_begin_of_text_precedes_prompts_but_not_texts() -> None:
    tokenizer = ours("llama3")
    (begin,) = tokenizer.prefix
    assert tokenizer.token_bytes(begin) == b"<|begin_of_text|>"
    assert tokenizer.token_bytes(tokenizer.eot) == b"<|end_of_text|>"
    assert tokenizer.prompt_ids("a b") == theirs("llama3").encode("a b").ids
    assert tokenizer.encode("a b") == tokenizer.prompt_ids("a b")[1:]
    assert tokenizer.start_ids() == tokenizer.prompt_ids("") == [begin]
    assert ours("qwen3").prompt_ids("") == [ours("qwen3").eot]


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_of_a_run_is_read_back(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(theirs(kind).to_str(), encoding="utf-8")
    first = load_tokenizer(path, other_programs=True)
    path.write_text(first.to_json(), encoding="utf-8")
    again = load_tokenizer(path)
    assert again.fingerprint() == first.fingerprint()
    assert again.to_json() == first.to_json()
    assert again.kind == "bpe"
    assert again.vocab_size == theirs(kind).get_vocab_size()
    copy = tokenizers.Tokenizer.from_file(str(path))
    assert copy.encode(SAMPLE).ids == theirs(kind).encode(SAMPLE).ids


def test_rows_without_a_token_get_names() -> None:
    size = ours("qwen3").vocab_size
    padded = ours("qwen3").with_rows(size + 3)
    assert padded.vocab_size == size + 3
    assert padded.token_bytes(size + 2) == f"<|unused_{size + 2}|>".encode()
    assert padded.encode(SAMPLE) == ours("qwen3").encode(SAMPLE)


def damaged(name: str) -> Any:
    stored = json.loads(ours("llama3").to_json())
    split = stored["pre_tokenizer"]["pretokenizers"][0]
    if name == "pattern":  # matching this pattern takes exponential time
        split["pattern"]["Regex"] = r"(\p{L}+)+$"
    elif name == "behavior":
        split["behavior"] = "Removed"
    elif name == "string pattern":
        split["pattern"] = {"String": " "}
    elif name == "merge":
        stored["model"]["merges"][3] = "Ġ 漢"
    elif name == "flag":
        stored["added_tokens"][0]["special"] = "yes"
    elif name == "prefix":
        stored["post_processor"]["processors"][1]["single"][0]["SpecialToken"]["id"] = "a"
    elif name == "suffix":
        stored["post_processor"]["processors"][1]["single"].reverse()
    elif name == "decoder":
        stored["decoder"] = None
    elif name == "more":
        stored["more"] = 1
    else:
        stored["model"]["vocab"]["a" * 2000] = len(ours("llama3").pieces)
    return stored


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pattern", r"a pattern that gptcli does not know: `\(\\p\{L\}\+\)\+\$`"),
        ("behavior", "in a way that gptcli does not know"),
        ("string pattern", "in a way that gptcli does not know"),
        ("merge", "cannot read it"),
        ("flag", "`added_tokens` cannot be read"),
        ("prefix", "a token that is not special"),
        ("suffix", "adds tokens after every text"),
        ("decoder", "does not decode bytes"),
        ("more", "`more` is not what a bpe tokenizer"),
        ("long token", "too long"),
    ],
)
def test_a_damaged_file_of_a_run_is_refused(name: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(damaged(name)), encoding="utf-8")
    with pytest.raises(GptcliError, match=words):
        load_tokenizer(path)


def test_gpt2s_pattern_in_other_forms_is_known() -> None:
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    for pattern in (
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"
        r"|\s*[\r\n]|\s+(?!\S)|\s+",
    ):
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
        for part in (split, split | {"behavior": "Removed", "invert": True}):
            found = splitting_of({"type": "Sequence", "pretokenizers": [part, bytes_]})
            assert found.llama_cpp == ("gpt-2" if pattern == GPT2 else None)
            assert found.last_cut("a\n b!\nc") == (5 if pattern == GPT2 else 1)
