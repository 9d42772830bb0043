"""A byte-pair encoding (BPE) that the user wrote, as the tokenizer of a model."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from gptcli.course.exercises.tokenizer import Tokenizer as Reference
from gptcli.errors import GptcliError
from gptcli.tokenization import load_tokenizer, train_user_bpe
from gptcli.tokenization.user_bpe import LEARNS_FROM, LONGEST_LINE, line_cuts
from tests.course.tokenizer_files import RIGHT

TEXT = "low low low lower lowest\nnewest newest wider\n\nübermütig, long " + "x" * 2100 + "\nend"


def class_of(source: str) -> type[Any]:
    space: dict[str, Any] = {}
    exec(source, space)
    cls: type[Any] = space["Tokenizer"]
    return cls


@pytest.mark.parametrize("name", RIGHT)
def test_every_accepted_form_trains_encodes_and_loads(name: str, tmp_path: Path) -> None:
    cls = class_of(RIGHT[name])
    tokenizer, read = train_user_bpe(cls, [TEXT[:10], TEXT[10:]], 257 + 12)
    assert read == len(TEXT)
    reference = Reference()
    reference.train(TEXT, 12)
    assert tokenizer.vocab_size == 257 + len(reference.merges)
    lines = [line + "\n" for line in TEXT.split("\n")[:3]]
    assert tokenizer.encode("".join(lines)) == [id for x in lines for id in reference.encode(x)]
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.encode_array(TEXT).tolist() == ids
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_json(), encoding="utf-8")
    again = load_tokenizer(path, cls)
    assert again.fingerprint() == tokenizer.fingerprint()
    assert again.encode(TEXT) == ids
    assert again.eot == again.vocab_size - 1
    assert again.encode("a<|endoftext|>b", allow_eot=True) == [97, again.eot, 98]
    with pytest.raises(GptcliError, match="belongs to your own tokenizer"):
        load_tokenizer(path)


def test_training_reads_only_the_beginning() -> None:
    seen = []

    class Watching(Reference):
        def train(self, text: str, num_merges: int) -> None:
            seen.append((text, num_merges))
            self.merges = {(97, 97): 256}

    _, read = train_user_bpe(Watching, iter(["a" * 60_000] * 1000), 300)
    assert seen == [("a" * LEARNS_FROM, 43)]
    assert read == LEARNS_FROM


@pytest.mark.parametrize("size", [1, 7, 1000, 5000])
def test_a_text_is_cut_at_its_lines_for_any_pieces(size: int) -> None:
    tokenizer, _ = train_user_bpe(Reference, [TEXT], 270)
    pieces = [TEXT[i : i + size] for i in range(0, len(TEXT), size)]
    cut = list(line_cuts(pieces, 16))
    assert "".join(cut) == TEXT
    assert [id for piece in cut for id in tokenizer.encode(piece)] == tokenizer.encode(TEXT)
    assert all(len(piece) <= size + 16 + 2 * LONGEST_LINE for piece in cut)


class TooMany(Reference):
    def train(self, text: str, num_merges: int) -> None:
        super().train(text, num_merges + 1)


class Stops(Reference):
    def train(self, text: str, num_merges: int) -> None:
        raise ValueError("not today")


class SavesNothing(Reference):
    def save(self, path: str) -> None:
        pass


class LoadsNothing(Reference):
    @classmethod
    def load(cls, path: str) -> Reference:
        return cls()


class Later(Reference):
    def train(self, text: str, num_merges: int) -> None:
        self.merges = {(97, 256): 256}


class NoIds(Reference):
    def encode(self, text: str) -> list[int]:
        return [10_000]


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (TooMany, "made 4 merges, but at most 3 are allowed"),
        (Stops, "its train raises ValueError: not today"),
        (SavesNothing, "wrote no file"),
        (LoadsNothing, "does not restore the merges"),
        (Later, r"merge number 0 is \(97, 256\)"),
        (NoIds, r"gave the id 10000; ids go from 0 to 258"),
    ],
)
def test_an_unusable_tokenizer_is_explained(cls: type[Any], message: str) -> None:
    with pytest.raises(GptcliError, match=message):
        train_user_bpe(cls, ["low lower lowest"], 260)[0].encode("low")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    tokenizer, _ = train_user_bpe(Reference, ["low lower lowest"], 260)
    good = tokenizer.to_json()
    path = tmp_path / "tokenizer.json"
    for old, new in (
        ('"108 111"', '"108 x"'),
        ('"108 111"', '"108 999"'),
        ('"saved": "', '"saved": "*'),
        ('"type": "BPE"', '"type": "BPX"'),
        ('"merges"', '"nothing"'),
    ):
        assert old in good
        path.write_text(good.replace(old, new), encoding="utf-8")
        with pytest.raises(GptcliError):
            load_tokenizer(path, Reference)


@pytest.mark.slow
def test_a_long_text_is_encoded_by_one_thread_without_output_on_stdout(tmp_path: Path) -> None:
    from gptcli.corpus import open_corpus
    from gptcli.corpus.reading import CHUNK

    asked_in = set()

    class Watching(Reference):
        def encode(self, text: str) -> list[int]:
            asked_in.add(threading.get_ident())
            time.sleep(1e-4)
            return super().encode(text)

    path = tmp_path / "long.txt"
    lines = (f"line {i % 3000}, low lower lowest\n" for i in range(4 * CHUNK // 30))
    path.write_text("".join(lines), encoding="utf-8")
    before = sys.stdout
    open_corpus(
        str(path), kind="bpe", vocab_size=270, val_fraction=0.1, block_size=8,
        user_tokenizer=Watching, cache=tmp_path / "cache", progress=False,
    )  # fmt: skip
    assert asked_in == {threading.get_ident()}
    assert sys.stdout is before
