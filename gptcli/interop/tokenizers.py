"""Finds the tokenizer of an imported model, and pads it to the number of rows of the embedding."""

from __future__ import annotations

import tempfile
from json import dumps
from pathlib import Path

from gptcli.errors import GptcliError
from gptcli.files.bounded import read_bounded
from gptcli.interop.foreign import read_json
from gptcli.plurals import counted
from gptcli.tokenization import Tokenizer
from gptcli.tokenization.bpe import RankedTokenizer
from gptcli.tokenization.char import CharTokenizer
from gptcli.tokenization.gpt2 import gpt2_tokenizer
from gptcli.tokenization.imported import ImportedTokenizer
from gptcli.tokenization.loading import load_tokenizer
from gptcli.tokenization.tokenizer import END_OF_TEXT

_MOST_BYTES = 64 << 20
GPT2 = "gpt2"
"""The name that means gptcli's own GPT-2 tokenizer, unless a file or folder has this name."""
_GPT2_SIZES = (50_257, 50_304)  # nanoGPT rounds the number of rows up to a multiple of 64


def tokenizer_of_folder(path: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer in a folder or file.

    It is GPT-2's if `path` is `gpt2`, or if `path` is a ckpt.pt with GPT-2's `vocab_size`. A folder
    must have a tokenizer.json, or a vocab.json and a merges.txt. A file must be a tokenizer.json,
    or a text whose characters are the vocabulary. `vocab_size` is the number of rows of the
    embedding. Raises GptcliError if gptcli finds no tokenizer that it can use."""
    if path == Path(GPT2) and not path.exists():
        return gpt2_tokenizer()
    if path.is_dir():
        if (path / "tokenizer.json").is_file():
            return load_tokenizer(path / "tokenizer.json", other_programs=True)
        if (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
            return _from_two_files(path / "vocab.json", path / "merges.txt")
        raise GptcliError(
            f"{path} has no tokenizer.json, and no vocab.json with merges.txt",
            f"name the tokenizer: --tokenizer FOLDER, or --tokenizer {GPT2} for GPT-2's",
        )
    if path.suffix == ".json":
        return load_tokenizer(path, other_programs=True)
    if path.suffix in (".pt", ".pth"):
        if vocab_size in _GPT2_SIZES:
            return gpt2_tokenizer()
        raise GptcliError(
            f"{path} has {counted(vocab_size, 'token')} but no tokenizer",
            "for a model of characters, name its text: --tokenizer input.txt",
        )
    try:
        text = read_bounded(path, 1 << 30).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise GptcliError(
            f"{path} cannot be read as a tokenizer or as a text: {error}",
            "name a tokenizer.json or its folder; for a model of characters, its training text",
        ) from None
    return CharTokenizer.from_texts([text])


def padded(tokenizer: Tokenizer, rows: int, path: Path) -> tuple[Tokenizer, str | None]:
    """The tokenizer with exactly `rows` tokens, and a note if tokens were added.

    `rows` is the number of rows of the embedding. The embedding of a model often has more rows
    than there are tokens, because round numbers are faster. Raises GptcliError if there are more
    tokens than rows, or if a tokenizer of characters or bytes has too few tokens. No token can be
    added to such a tokenizer."""
    missing = rows - tokenizer.vocab_size
    if missing == 0:
        return tokenizer, None
    if missing < 0 or not isinstance(tokenizer, RankedTokenizer | ImportedTokenizer):
        raise GptcliError(
            f"{path}: its embedding has {counted(rows, 'row')}, but the tokenizer has "
            f"{counted(tokenizer.vocab_size, 'token')}",
            "name the tokenizer with which the model was trained: --tokenizer FILE",
            exit_code=1,
        )
    size = tokenizer.vocab_size
    unused = (
        "has no token; it gets the name"
        if missing == 1
        else "have no token; they get names such as"
    )
    note = f"{counted(missing, 'row')} of its embedding {unused} <|unused_{size}|>"
    if isinstance(tokenizer, ImportedTokenizer):
        return tokenizer.with_rows(rows), note
    special = dict(tokenizer.special)
    ranked = [piece for id, piece in enumerate(tokenizer.pieces) if id not in special]
    special |= {id: f"<|unused_{id}|>" for id in range(size, rows)}
    return RankedTokenizer("bpe", ranked, special), note


def _from_two_files(vocab: Path, merges: Path) -> Tokenizer:
    """The tokenizer of GPT-2's older format: vocab.json (token: id) and merges.txt."""
    table = read_json(vocab, _MOST_BYTES)
    try:
        lines = read_bounded(merges, _MOST_BYTES).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise GptcliError(f"{merges} cannot be read: {error}", "download it again") from None
    pairs = [line for line in lines if line and not line.startswith("#version")]
    end = table.get(END_OF_TEXT)
    stored = {
        "model": {"type": "BPE", "vocab": table, "merges": pairs},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "added_tokens": [{"id": end, "content": END_OF_TEXT, "special": True}],
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tokenizer.json")
        path.write_text(dumps(stored), encoding="utf-8")
        return load_tokenizer(path, other_programs=True)
