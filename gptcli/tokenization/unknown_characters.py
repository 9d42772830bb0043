"""Characters that a char tokenizer does not know (data.unknown): counted, dropped or replaced."""

from __future__ import annotations

import unicodedata
from collections import Counter
from typing import Literal, NamedTuple

from gptcli.errors import GptcliError
from gptcli.plurals import counted, times
from gptcli.tokenization.tokenizer import Tokenizer

Rule = Literal["error", "drop", "replace"]
MOST_NAMED = 5  # the most characters that one message names

# A character -> a similar spelling, which is tried before Unicode's decomposition.
_ALIKE = {
    **dict.fromkeys("‘’‚‛′´`ʼ", "'"),
    **dict.fromkeys("“”„‟″«»", '"'),
    **dict.fromkeys("‐‑‒–—―−", "-"),
    "…": "...", "•": "*", "·": ".", "ß": "ss", "ẞ": "SS", "æ": "ae", "Æ": "AE", "œ": "oe",
    "Œ": "OE", "ø": "o", "Ø": "O", "đ": "d", "Đ": "D", "ł": "l", "Ł": "L", "ı": "i", "þ": "th",
    "Þ": "Th", "ð": "d", "Ð": "D", "\r": "", "\t": " ",
}  # fmt: skip


class UnknownCharactersError(GptcliError):
    """A text has characters that the tokenizer does not know."""


class UnknownSummary(NamedTuple):
    """How many unknown characters a text has, how many different ones, and the most frequent."""

    total: int
    different: int
    most: list[tuple[str, int]]

    def __str__(self) -> str:
        """The summary as words that follow a verb such as "replaced".

        For example: `1,234 characters ...: 'é' (U+00E9) 1,200 times, ...`."""
        named = ", ".join(
            f"{char!r} (U+{ord(char):04X}) {times(f'{count:,}')}" for char, count in self.most
        )
        more = self.different - len(self.most)
        return (
            f"{counted(self.total, 'character')} that this char tokenizer "
            f"does not know: {named}" + (f" and {more:,} more" if more else "")
        )


class KnownCharacters:
    """Applies the rule of data.unknown to texts, and counts the characters that were unknown.

    With the rule "error", texts do not change, and the caller must raise an error if `counts` is
    not empty. "drop" leaves unknown characters out. "replace" writes the most similar known
    characters instead (see `replacement`)."""

    def __init__(self, tokenizer: Tokenizer, rule: Rule) -> None:
        self._known = {piece.decode("utf-8") for piece in tokenizer.pieces}
        self.rule = rule
        self._instead: dict[int, str] = {}
        self.counts: Counter[str] = Counter()

    def apply(self, text: str) -> str:
        """The text with known characters only; the unchanged text if the rule is "error"."""
        unknown = set(text) - self._known
        if not unknown:
            return text
        for char in unknown:
            self.counts[char] += text.count(char)
            if self.rule == "replace" and ord(char) not in self._instead:
                self._instead[ord(char)] = replacement(char, self._known)
        if self.rule == "error":
            return text
        table = self._instead if self.rule == "replace" else dict.fromkeys(map(ord, unknown), "")
        return text.translate(table)

    def summary(self) -> UnknownSummary | None:
        """A summary of the unknown characters of all texts so far; None if there were none."""
        if not self.counts:
            return None
        most = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_NAMED]
        return UnknownSummary(self.counts.total(), len(self.counts), most)


def replacement(char: str, known: set[str]) -> str:
    """The known characters that are written instead of the unknown character `char`.

    Returns "" if `char` is left out.

    Tries these in turn, and returns the first that has only known characters: a similar punctuation
    mark or spelling (— becomes -, ß becomes ss), the letter without its accents, the letter in
    upper or lower case. Accents, joiners and soft hyphens are left out. Rare line ends such as
    U+2028 become a newline if the newline is known. Any other character becomes a space, or is left
    out if the space is unknown."""
    if char in _ALIKE and set(_ALIKE[char]) <= known:
        return _ALIKE[char]
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):  # accents, joiners, soft hyphens
        return ""
    if char in "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029" and "\n" in known:
        return "\n"
    plain = "".join(
        _ALIKE.get(part, part)
        for part in unicodedata.normalize("NFKD", char)
        if unicodedata.category(part) != "Mn"
    )
    for candidate in (plain, plain.swapcase()):
        if candidate and set(candidate) <= known:
            return candidate
    return " " if " " in known else ""


def readable(tokenizer: Tokenizer, rule: Rule, text: str) -> tuple[str, str | None]:
    """The prompt `text` after data.unknown was applied, and a note that says what was changed.

    The text does not change, and the note is None, if all characters are known or if the rule is
    "error". With this rule, `encode` later raises an error with the position of the first unknown
    character."""
    if tokenizer.kind != "char" or rule == "error":
        return text, None
    known = KnownCharacters(tokenizer, rule)
    changed = known.apply(text)
    summary = known.summary()
    return changed, None if summary is None else f"{done(rule)} {summary}"


def done(rule: Rule) -> str:
    """What was done with the unknown characters, as the verb of a note: left out or replaced."""
    return "left out" if rule == "drop" else "replaced"
