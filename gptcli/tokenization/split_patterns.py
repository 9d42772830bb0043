r"""The patterns by which byte-level tokenizers split texts, and where texts can be cut safely.

A tokenizer.json contains its pattern as a regular expression. gptcli accepts a pattern if it knows
each of its alternatives (the parts between `|`). It never runs an unknown pattern, because some
patterns take for ever on some texts. Sources: the tokenizer.json files of GPT-2, GPT-4, GPT-4o,
Llama 3, Qwen2, Mistral Nemo and SmolLM.

In a pattern, \p{L} is a letter, \p{N} a digit or another number, \p{M} a combining mark, and \s
white space.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gptcli.tokenization.safe_cuts import last_safe_cut

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_TWO_CASES = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+",
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*",
)
_REST_SLASH = _REST.replace(r"[\r\n]*", r"[\r\n/]*")
GPT4O = "|".join(words + _CONTRACTIONS + "?" for words in _TWO_CASES) + r"|\p{N}{1,3}" + _REST_SLASH
TEKKEN = "|".join(_TWO_CASES) + r"|\p{N}" + _REST_SLASH

_CUT_BEFORE_SPACE = {
    *GPT2.split("|"), "'ll", r"\p{N}", r"\p{N}+", r"\p{N}{1,3}", r"\s", r"\s+$", r"\s++$",
    r" ?\p{L}++", r" ?\p{N}++", r" ?[^\s\p{L}\p{N}]++", "'(?:[sdmt]|ll|ve|re)",
}  # fmt: skip
"""Alternatives of patterns. In a match, white space never follows a character that is not white
space."""
_CUT_AFTER_LETTER = {
    _CONTRACTIONS, "'(?i:[sdmt]|ll|ve|re)", *_TWO_CASES,
    *(words + _CONTRACTIONS + "?" for words in _TWO_CASES),
    r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[^\r\n\p{L}\p{N}]?+\p{L}+", r"[^\r\n\p{L}\p{N}]?+\p{L}++",
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", r"\p{N}{1,3}+",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]++[\r\n]*", r" ?[^\s\p{L}\p{N}]++[\r\n]*+",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+", r"\s*[\r\n]",
}  # fmt: skip
"""Alternatives of patterns. In a match, white space never follows a letter or digit."""

_LLAMA_CPP = {GPT2: "gpt-2", QWEN2: "qwen2", LLAMA3: "llama-bpe", GPT4O: "gpt-4o", TEKKEN: "tekken"}


@dataclass(frozen=True)
class Splitting:
    """How a tokenizer splits texts.

    `last_cut(text)` returns the last place at which `text` can be cut without changing a token, or
    0 if there is none. `llama_cpp` is the name of the splitting in llama.cpp (tokenizer.ggml.pre),
    or None if gptcli does not know it."""

    last_cut: Callable[[str], int]
    llama_cpp: str | None


def splitting_of(pre_tokenizer: Any) -> Splitting:
    """How `pre_tokenizer`, a part of a tokenizer.json, splits texts.

    Raises ValueError, with a message for the user, if gptcli does not know the splitting."""
    parts = [pre_tokenizer]
    if isinstance(pre_tokenizer, dict) and pre_tokenizer.get("type") == "Sequence":
        parts = pre_tokenizer.get("pretokenizers") or []
    if not isinstance(parts, list) or not parts or not all(isinstance(p, dict) for p in parts):
        raise ValueError("it does not split texts as a byte-level BPE does (`pre_tokenizer`)")
    *before, last = parts
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space", True):
        raise ValueError(
            "it puts a space before every text (`add_prefix_space`)"
            if last.get("type") == "ByteLevel"
            else f"it is not byte-level (its `pre_tokenizer` ends with {last.get('type')})"
        )
    patterns, digits = [], False
    for part in before:
        if part.get("type") == "Digits":
            digits = True
            patterns.append(r"\p{N}" if part.get("individual_digits") else r"\p{N}+")
        else:
            patterns.append(_pattern_of(part))
    if last.get("use_regex", True):
        patterns.append(GPT2)
    if not patterns:
        raise ValueError("it does not split texts into words, so encoding could take very long")
    known = _CUT_BEFORE_SPACE | _CUT_AFTER_LETTER
    alternatives = [each for pattern in patterns for each in _alternatives(pattern)]
    unknown = next((each for each in alternatives if each not in known), None)
    if unknown is not None:
        raise ValueError(f"it splits texts by a pattern that gptcli does not know: `{unknown:.60}`")
    name = _LLAMA_CPP.get(patterns[0]) if len(patterns) == 1 else None
    if digits and patterns == [r"\p{N}", GPT2]:
        name = "smollm"
    plain = all(each in _CUT_BEFORE_SPACE for each in alternatives)
    return Splitting(last_safe_cut if plain else last_cut_after_letter, name)


def _pattern_of(part: dict[str, Any]) -> str:
    """The regular expression with which a `Split` pre-tokenizer finds the parts of a text."""
    pattern = part.get("pattern")
    found = pattern.get("Regex") if isinstance(pattern, dict) else None
    keeps = (part.get("behavior"), part.get("invert", False)) in (
        ("Isolated", False),
        ("Removed", True),
    )
    if part.get("type") != "Split" or not isinstance(found, str) or not keeps:
        raise ValueError(f"it splits texts in a way that gptcli does not know ({part.get('type')})")
    return found


def _alternatives(pattern: str) -> list[str]:
    """The alternatives of a pattern: its parts, separated by the `|` outside groups and classes."""
    found, depth, start, at = [], 0, 0, 0
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            at += 1
        elif char in "([":
            depth += 1
        elif char in ")]":
            depth -= 1
        elif char == "|" and depth == 0:
            found.append(pattern[start:at])
            start = at + 1
        at += 1
    return [*found, pattern[start:]]


def last_cut_after_letter(text: str) -> int:
    """The last position in `text` after a letter or digit and before a space or newline, or 0.

    No match of the alternatives in this file crosses such a position. No match before such a
    position depends on the text after it."""
    end = len(text)
    while end:
        end = max(text.rfind(" ", 0, end), text.rfind("\n", 0, end))
        if end <= 0:
            return 0
        if text[end - 1].isalnum():
            return end
    return 0
