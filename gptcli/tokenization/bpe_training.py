"""Trains a BPE on an even sample of a text: counts pairs and merges the most frequent pair."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from gptcli.errors import GptcliError
from gptcli.tokenization.bpe import BpeTokenizer
from gptcli.tokenization.byte_level import from_characters
from gptcli.tokenization.safe_cuts import safe_cuts
from gptcli.tokenization.tokenizer import utf8

SMALLEST_VOCABULARY = 257
"""The smallest vocabulary: the 256 single bytes and end-of-text."""
LARGEST_VOCABULARY = 1_000_000
"""The largest vocabulary, larger than those of well-known models. There is a limit because
the trainer allocates memory for the complete size that the user asks for."""

SAMPLE_BYTES = 16 * 2**20
"""The largest number of bytes of text that training reads; see `even_sample`."""
DISTINCT_BYTES = 3 * 2**20
"""The largest total size of the different words in the text that training reads; see
`few_words`."""

_BLOCK = 2**16  # characters in each block of the sample

# The time for training is proportional to the length of the text times the length of its words.
# Therefore, words are cut after 64 characters. Hardly any word of a language is longer, but the
# words of base64 are. White space is cut after 64 characters, too.
_LONG_WORD = re.compile(r"\S{64}(?=\S)|\s{64}(?=\s)")


def train_bpe(texts: Iterable[str], vocab_size: int) -> BpeTokenizer:
    """A BPE of at most `vocab_size` tokens, end-of-text included, trained on a text.

    It has fewer tokens than `vocab_size` if too few pairs occur twice. The `vocab_size` of the
    returned tokenizer is the number of its tokens. The same text always gives the same tokens.

    Training reads a sample spread evenly over the text, so memory does not grow with the text. The
    sample has at most SAMPLE_BYTES. Its different words have at most DISTINCT_BYTES together,
    because the trainer needs up to 100 times as much memory for them.

    Raises GptcliError if `vocab_size` is out of bounds or the text has a lone surrogate.
    """
    if not SMALLEST_VOCABULARY <= vocab_size <= LARGEST_VOCABULARY:
        raise GptcliError(
            f"tokenizer.vocab_size is {vocab_size}, which is too "
            f"{'small' if vocab_size < SMALLEST_VOCABULARY else 'large'} for bpe",
            f"choose {SMALLEST_VOCABULARY} (the 256 bytes and end-of-text) to "
            f"{LARGEST_VOCABULARY}; 512 to 8192 suits a small model",
        )
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # without end-of-text
        min_frequency=2,  # merging a pair that occurs only once hardly helps other texts
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with _one_thread():
        model.train_from_iterator(_without_long_words(few_words(even_sample(texts))), trainer)
    # Use only the order of the merges, and not the trainer's ids. BpeTokenizer numbers the tokens
    # itself: first the single bytes, then the merges. Merges with the same bytes become one token.
    merges = json.loads(model.to_str())["model"]["merges"]
    return BpeTokenizer(list(dict.fromkeys(from_characters("".join(merge)) for merge in merges)))


def even_sample(texts: Iterable[str], limit: int = SAMPLE_BYTES, block: int = _BLOCK) -> list[str]:
    """Blocks of about `block` characters, spread evenly over a text; at most `limit` bytes in all.

    Reads the text once and keeps little more than `limit` bytes in memory. It keeps every block at
    first. Whenever the kept blocks exceed `limit` bytes, it drops every second one of them, and
    from then on it keeps only half as many of the next blocks. A text of at most `limit` bytes is
    returned completely.
    """
    kept: list[tuple[str, int]] = []
    total, step = 0, 1
    for number, text in enumerate(safe_cuts(texts, block, longest=block)):
        size = len(utf8(text))
        if number % step:
            continue
        kept.append((text, size))
        total += size
        while total > limit and len(kept) > 1:
            kept = kept[::2]
            total = sum(size for _, size in kept)
            step *= 2
    return [text for text, _ in kept]


def few_words(blocks: Sequence[str], limit: int = DISTINCT_BYTES) -> Sequence[str]:
    """All blocks, or only every 2nd, 4th, 8th, ..., so that their words have at most `limit` bytes.

    Each word is counted once, because the trainer needs memory only for different words. An English
    text repeats most of its words, so the result is all blocks. In a script without spaces, nearly
    everything between two white spaces is a new word.
    """
    step = 1
    while step < len(blocks) and not _few_words(blocks[::step], limit):
        step *= 2
    return blocks[::step]


def _few_words(blocks: Iterable[str], limit: int) -> bool:
    seen: set[str] = set()
    size = 0
    for block in blocks:
        new = set(block.split()) - seen
        seen |= new
        size += sum(len(utf8(word)) for word in new)
        if size > limit:
            return False
    return True


def _without_long_words(blocks: Iterable[str]) -> Iterator[str]:
    for block in blocks:
        start = 0
        for word in _LONG_WORD.finditer(block):
            yield block[start : word.end()]
            start = word.end()
        yield block[start:]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let the package `tokenizers` use only one thread inside the `with` block.

    More threads save little time in this training. If `tokenizers` has used several threads, it
    prints a warning in every process that is forked later, for example by a data loader.
    """
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
