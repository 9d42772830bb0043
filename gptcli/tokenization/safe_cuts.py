"""Where a text may be cut without changing its tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

# Unicode's White_Space, which is what \s means to tiktoken and to tokenizers. Python's own
# str.isspace() also takes U+001C to U+001F, which are not.
WHITE_SPACE = (
    "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009"
    "\u200a\u2028\u2029\u202f\u205f\u3000"
)

LONGEST = 2**22
"""Characters without a place to cut after which `safe_cuts` cuts all the same."""


def last_safe_cut(text: str) -> int:
    """The last place in `text` between a non-white-space character and a space or newline; or 0.

    No token of GPT-2's split pattern reaches across such a place, and none depends on what
    stands beyond it: white space only ever begins a piece.
    """
    end = max(text.rfind(" "), text.rfind("\n"))
    return len(text[: end + 1].rstrip(WHITE_SPACE))


def safe_cuts(pieces: Iterable[str], minimum: int, longest: int = LONGEST) -> Iterator[str]:
    """Regroups pieces of a text so that each can be encoded on its own.

    Yields pieces of about `minimum` to twice `minimum` characters (the last may be shorter),
    which joined are the same text, cut where no token of GPT-2's split pattern is changed.
    Memory is bounded: after `longest` characters (4 Mi, unless said otherwise) without such a
    place, the text is cut where it stands, which changes the few tokens at that cut but not the
    text that they decode to. No piece is longer than `longest + 2 * minimum`.
    """
    assert minimum > 0
    held: list[str] = []
    size, wanted = 0, minimum
    for piece in pieces:
        start = 0
        while start < len(piece):
            # Exactly as much as is wanted, so that the cuts do not depend on how the text came.
            part = piece[start : start + wanted - size]
            held.append(part)
            start += len(part)
            size += len(part)
            if size < wanted:
                break
            text = "".join(held)
            cut = last_safe_cut(text)
            if not cut and size >= longest:
                cut = size
            if cut:
                yield text[:cut]
                text = text[cut:]
            held, size = [text], len(text)
            # What is held now has no place to cut: searching it again after every small piece
            # would take quadratic time.
            wanted = minimum if size < minimum else size + minimum
    if size:
        yield "".join(held)
