"""Training a BPE vocabulary, with Hugging Face `tokenizers`."""

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
"""The single bytes and end-of-text."""
LARGEST_VOCABULARY = 1_000_000
"""More than any published vocabulary; the trainer sets memory aside for what it is asked for."""

SAMPLE_BYTES = 16 * 2**20
"""At most this much of a text is learned from; see `even_sample`."""
DISTINCT_BYTES = 3 * 2**20
"""At most this much of what is learned from is words that differ; see `few_words`."""

_BLOCK = 2**16  # characters of the blocks that a sample is made of

# Learning takes time in proportion to the length of a word times the length of the text, so what
# has no white space for long (base64, say) is cut; no word of a language is this long.
_LONG_WORD = re.compile(r"\S{64}(?=\S)|\s{64}(?=\s)")


def train_bpe(texts: Iterable[str], vocab_size: int) -> BpeTokenizer:
    """Learns a vocabulary of at most `vocab_size` tokens, end-of-text included.

    A text that has too few pairs which occur twice yields a smaller one: `vocab_size` of the
    result tells the truth. The same text always gives the same tokens. What is learned from is
    spread evenly over the text and bounded, so memory does not grow with the text: at most
    SAMPLE_BYTES (16 MiB), with at most DISTINCT_BYTES (3 MiB) of different words, for which the
    trainer needs up to 100 times as much memory.
    Raises GptcliError where `vocab_size` is out of bounds or the text holds a lone surrogate.
    """
    if not SMALLEST_VOCABULARY <= vocab_size <= LARGEST_VOCABULARY:
        raise GptcliError(
            f"tokenizer.vocab_size is {vocab_size}, which is too "
            f"{'small' if vocab_size < SMALLEST_VOCABULARY else 'large'} for bpe",
            f"choose {SMALLEST_VOCABULARY} (the 256 bytes and end-of-text) to "
            f"{LARGEST_VOCABULARY}; 512 to 8192 suits a small model",
        )
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # end-of-text stands beside what is learned
        min_frequency=2,  # a pair that occurs once teaches nothing
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with _one_thread():
        learner.train_from_iterator(_without_long_words(few_words(even_sample(texts))), trainer)
    # Only the order of the merges is taken over: our ids are the ranks, bytes first. Should two
    # merges give the same bytes, they are one token.
    merges = json.loads(learner.to_str())["model"]["merges"]
    return BpeTokenizer(list(dict.fromkeys(from_characters("".join(merge)) for merge in merges)))


def even_sample(texts: Iterable[str], limit: int = SAMPLE_BYTES, block: int = _BLOCK) -> list[str]:
    """Blocks of about `block` characters from all over a text, together at most `limit` bytes.

    Reads the text once and holds little more than `limit`: all blocks are kept as long as they
    fit; each time they do not, every second one is dropped, and from then on every second one of
    those that come is kept. A text that fits is returned whole.
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
    """All of `blocks`, or every second, fourth, ... so that different words fill `limit` bytes.

    Only different words cost the trainer memory. English repeats most of its words, so that all
    blocks stay; in a script without spaces nearly every run between two marks is a new word.
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
    """Has `tokenizers` work in this thread alone.

    Its threads gain little here, and once they have run it prints a warning into every process
    that is forked later (by a data loader, say).
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
