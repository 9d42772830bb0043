"""Tokenizers turn text into token ids and back: by characters, by bytes or by BPE.

An order for reading: `tokenizer.py` (what every kind of tokenizer can do), `char.py`, `byte.py`,
`bpe.py`, `gpt2.py`, `user_bpe.py` (the user's tokenizer); then `bpe_training.py`, `building.py`,
`loading.py` and `safe_cuts.py`. The import of this package does not import numpy, tiktoken or
tokenizers. These libraries are imported when they are first needed.
"""

from __future__ import annotations

from gptcli.tokenization.building import KINDS, build_tokenizer
from gptcli.tokenization.loading import load_tokenizer
from gptcli.tokenization.safe_cuts import safe_cuts
from gptcli.tokenization.tokenizer import END_OF_TEXT, StreamDecoder, Tokenizer
from gptcli.tokenization.user_bpe import line_cuts, train_user_bpe

__all__ = [
    "END_OF_TEXT",
    "KINDS",
    "StreamDecoder",
    "Tokenizer",
    "build_tokenizer",
    "train_user_bpe",
    "line_cuts",
    "load_tokenizer",
    "safe_cuts",
]
