"""tokenizer.json files of other programs: gptcli gives the same ids as Hugging Face's library, or
refuses the file with a reason."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from gptcli.errors import GptcliError
from gptcli.tokenization import load_tokenizer
from gptcli.tokenization.gpt2 import gpt2_tokenizer
from tests.conftest import TEXT

SPECIAL = ["<s>", "<pad>", "</s>", "<|im_start|>"]


def trained(special: list[str], **byte_level: Any) -> tokenizers.Tokenizer:
    """A byte-level BPE that Hugging Face's library trained.

    As usual, its special tokens have the first ids."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    options = {"add_prefix_space": False} | byte_level
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(**options)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT, "größer, größte; 你好你好"], trainer)
    return tokenizer


THEIRS = trained(SPECIAL)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokenizer.json"


def load(path: Path, content: str) -> Any:
    path.write_text(content, encoding="utf-8")
    return load_tokenizer(path, other_programs=True)


@cache
def ours() -> Any:
    """gptcli's tokenizer, loaded from the tokenizer.json that THEIRS writes."""
    with tempfile.TemporaryDirectory() as folder:
        return load(Path(folder, "tokenizer.json"), THEIRS.to_str())


@given(st.text())
def test_the_ids_are_those_of_hugging_face(text: str) -> None:
    if any(name in text for name in SPECIAL):
        return
    for one in (text, f"KING: {text} by night?\n\n", f"größte {text}你好"):
        ids = THEIRS.encode(one, add_special_tokens=False).ids
        assert ours().encode(one) == ids
        assert ours().encode_array(one).tolist() == ids
        assert ours().decode(ids) == one


def test_special_tokens_keep_their_ids_and_one_ends_texts(path: Path) -> None:
    loaded = load(path, THEIRS.to_str())
    assert loaded.kind == "bpe"
    assert loaded.vocab_size == THEIRS.get_vocab_size()
    assert loaded.eot == 2
    assert [loaded.token_bytes(id).decode() for id in range(4)] == SPECIAL
    assert loaded.encode("a<|endoftext|>b", allow_eot=True) == [
        THEIRS.token_to_id("a"), 2, THEIRS.token_to_id("b")
    ]  # fmt: skip


def test_our_copy_of_it_is_read_back_and_is_the_same_for_hugging_face(path: Path) -> None:
    copy = path.with_name("copy.json")
    copy.write_text(ours().to_json(), encoding="utf-8")
    again = load_tokenizer(copy)
    assert again.fingerprint() == ours().fingerprint()
    theirs = tokenizers.Tokenizer.from_file(str(copy))
    assert theirs.encode("What größer light?").ids == ours().encode("What größer light?")
    assert theirs.token_to_id("</s>") == 2


@pytest.mark.slow
def test_a_file_with_gpt2s_tokens_is_gpt2(path: Path) -> None:
    stored = json.loads(gpt2_tokenizer().to_json())
    del stored["model"]["kind"]
    stored["model"]["merges"] = [merge.split(" ") for merge in stored["model"]["merges"]]
    assert load(path, json.dumps(stored)) is gpt2_tokenizer()


def test_other_programs_files_are_refused_in_a_run_folder(path: Path) -> None:
    path.write_text(THEIRS.to_str(), encoding="utf-8")
    with pytest.raises(GptcliError, match=r"not a tokenizer of gptcli"):
        load_tokenizer(path)


def change(section: str, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda stored: stored[section].update(values)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (change("model", type="WordPiece"), "it is a WordPiece tokenizer"),
        (change("model", dropout=0.1), "skips merges at random"),
        (change("model", end_of_word_suffix="</w>"), "marks the end of words"),
        (change("model", byte_fallback=True), "is not byte-level"),
        (change("pre_tokenizer", add_prefix_space=True), "puts a space before every text"),
        (change("pre_tokenizer", type="Whitespace"), "not byte-level .* ends with Whitespace"),
        (change("pre_tokenizer", use_regex=False), "does not split texts into words"),
        (change("post_processor", type="TemplateProcessing"), "adds tokens after every text"),
        (change("post_processor", type="BertProcessing"), "adds tokens to every text .*Bert"),
        (lambda s: s.update(normalizer={"type": "Lowercase"}), "changes texts .* Lowercase"),
        (lambda s: s.update(normalizer={"type": "Sequence", "normalizers": [1]}), "changes texts"),
        (
            lambda s: s["added_tokens"][0].update(special=False, rstrip=True),
            "added token '<s>' has white space, or rules",
        ),
        (lambda s: s["model"]["vocab"].pop("a"), "ids do not count up"),
        (lambda s: s["model"]["merges"].append("a z z"), "cannot read it"),
        (lambda s: s["model"]["merges"].append(["a", 1]), "is not two tokens"),
        (lambda s: s["model"]["merges"].append(["a", "漢"]), "cannot read it"),
        (lambda s: s["model"].pop("vocab"), "no `model.vocab`"),
        (lambda s: s["model"]["vocab"].update({"漢": 320}), "is not byte-level"),
    ],
)
def test_a_file_that_asks_for_something_else_is_refused_and_says_why(
    changed: Callable[[dict[str, Any]], None], words: str, path: Path
) -> None:
    stored = json.loads(THEIRS.to_str())
    changed(stored)
    with pytest.raises(GptcliError, match=words) as caught:
        load(path, json.dumps(stored))
    assert str(path) in caught.value.message
    assert caught.value.exit_code == 2


def test_a_file_without_end_of_text_is_refused(path: Path) -> None:
    with pytest.raises(GptcliError, match="no special token for the end of a text"):
        load(path, trained(["<pad>"]).to_str())


def test_a_bert_tokenizer_is_refused(path: Path) -> None:
    theirs = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    theirs.normalizer = normalizers.BertNormalizer()
    with pytest.raises(GptcliError, match="WordPiece"):
        load(path, theirs.to_str())


@pytest.mark.parametrize("content", ["[]", "null", '{"a": 1}', '{"model": []}', '{"hello": 0}'])
def test_other_json_is_refused(content: str, path: Path) -> None:
    with pytest.raises(GptcliError, match=r"tokenizer"):
        load(path, content)
