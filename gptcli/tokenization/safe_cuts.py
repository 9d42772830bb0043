"""Finds places where a text can be cut into pieces without changing any BPE token."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

# The characters that \s matches in tiktoken and in tokenizers: Unicode's White_Space. Python's
# str.isspace() cannot be used instead, because it also accepts U+001C to U+001F.
WHITE_SPACE = (
    "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009"
    "\u200a\u2028\u2029\u202f\u205f\u3000"
)

LONGEST = 2**22
"""If this many characters have no safe place, `safe_cuts` cuts at a place that is not safe."""


def last_safe_cut(text: str) -> int:
    """The last position at which `text` can be cut without changing a token; 0 if there is none.

    The position is directly after a character that is not white space, and directly before a run of
    white space that contains a space or a newline. A match of GPT-2's split pattern has white space
    only at its beginning. So a match that begins before the position cannot extend beyond it, and
    does not depend on the text after the position.
    """
    end = max(text.rfind(" "), text.rfind("\n"))
    return len(text[: end + 1].rstrip(WHITE_SPACE))


def safe_cuts(
    pieces: Iterable[str],
    minimum: int,
    longest: int = LONGEST,
    last_cut: Callable[[str], int] = last_safe_cut,
) -> Iterator[str]:
    """Regroup the pieces of a text so that each can be encoded independently.

    Yields new pieces of about `minimum` characters, which together are the same text. If safe
    places are rare, a piece can be longer or shorter. The cuts change no token: they are at the
    safe places that `last_cut` finds. `last_cut` returns the last safe place in a text, or 0 if
    there is none. The default of `last_cut` is for a BPE with GPT-2's split pattern.

    If `longest` characters have no safe place, the text is cut after them, to limit the memory.
    Such a cut can change the tokens next to it, but all tokens decode to the same text. No piece is
    longer than `longest + 2 * minimum`.
    """
    assert minimum > 0
    held: list[str] = []
    size, wanted = 0, minimum
    for piece in pieces:
        start = 0
        while start < len(piece):
            # Collect exactly `wanted` characters, so that the cuts do not depend on how the text is
            # divided into `pieces`.
            part = piece[start : start + wanted - size]
            held.append(part)
            start += len(part)
            size += len(part)
            if size < wanted:
                break
            text = "".join(held)
            cut = last_cut(text)
            if not cut and size >= longest:
                cut = size
            if cut:
                yield text[:cut]
                text = text[cut:]
            held, size = [text], len(text)
            # `text` has no safe place. If it is long, collect `minimum` more characters before the
            # next search, because a search after every small piece would take quadratic time.
            wanted = minimum if size < minimum else size + minimum
    if size:
        yield "".join(held)
