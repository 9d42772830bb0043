"""GPT-2's tokenizer: reads its vocabulary of 50,257 tokens from the rank file in data/."""

from __future__ import annotations

import binascii
import hashlib
from functools import cache
from pathlib import Path

from gptcli.errors import GptcliError
from gptcli.files.shipped import shipped_folder
from gptcli.tokenization.bpe import RankedTokenizer

RANK_FILE = "gpt2.tiktoken"
RANK_FILE_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"


@cache
def gpt2_tokenizer() -> RankedTokenizer:
    """GPT-2's tokenizer: 50,257 tokens, of which end-of-text is the last.

    Only the first call reads the rank file. Raises GptcliError if this file is missing or is not
    the shipped one.
    """
    return RankedTokenizer("gpt2", read_ranks(shipped_folder("data") / RANK_FILE))


def read_ranks(path: Path) -> list[bytes]:
    """The bytes of GPT-2's tokens, in the order of their ids, without end-of-text.

    Each line of the file is a token in base64, a space, and the rank of the token (tiktoken's
    format). Raises GptcliError if the file cannot be read or is not the shipped one.
    """
    reinstall = "install gptcli again, or in a checkout: git checkout -- data/" + RANK_FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise GptcliError(
            f"{path}: GPT-2's rank file cannot be read ({error.strerror})", reinstall
        ) from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != RANK_FILE_SHA256:
        raise GptcliError(
            f"{path}: GPT-2's rank file is damaged: its SHA-256 is {digest}, "
            f"not {RANK_FILE_SHA256}",
            reinstall,
        )
    lines = [line.split() for line in content.splitlines()]
    assert [int(rank) for _, rank in lines] == list(range(len(lines))), "ranks count up from 0"
    return [binascii.a2b_base64(token) for token, _ in lines]
