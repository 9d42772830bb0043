"""Checks that the output which the pages quote has the words of gptcli's code.

Each string of the code is a pattern, in which a placeholder stands for any text. The test marks the
words of the pages that come from a pattern. If several words in a row have no mark, the page quotes
a message that gptcli does not print. This happens if somebody rewords a message only in the code.

The test sees only words. It does not see figures, names of files, the heads of tables, quotes in
the text that are not code, and messages with fewer than LEAST_QUOTED words in a row. It also does
not see that a message has other words today if another string of the code still has the old words.
"""

from __future__ import annotations

import ast
import html
import re
from collections.abc import Iterator

from tests.docs.markdown import PAGES, ROOT, blocks, code_in_text, text_of

Pattern = tuple[str, ...]
"""A string of the code: its texts between the placeholders."""

Quote = tuple[str, list[str]]
"""The place of a quoted output, and its lines."""

LEAST_FIXED = 3  # a pattern with fewer words fits too many texts
LEAST_QUOTED = 3  # so many words in a row must come from the code
LONGEST_VALUE = 200  # the most characters for which a placeholder stands

LETTERS = re.compile(r"[A-Za-z]{2,}")
WORD = re.compile(r"[(\"'`•\[]*[A-Za-z][A-Za-z'’-]*[)\"'`\],;:.!?…]*")
"""A word of a sentence. A file name, an option or a key is none."""

PLACEHOLDER = re.compile(r"\{[A-Za-z_][\w.]*(?:[!:][^{}]*)?\}|%[sd]")
"""A placeholder of a string that the code fills in with `format` or `%`."""

NOT_CHECKED = {
    "CHANGELOG.md": "it tells what messages were before",
    "docs/reference/": "docs/reference.py writes these pages from the code",
    "docs/train": "these pictures show texts that a model wrote, others in each drawing",
    "gptcli/native/README.md": "its blocks are drawings",
}
"""Beginnings of pages and pictures whose quotes are not checked -> the reason."""

MODEL = "a model wrote it"
JOINED = "the code joins it from shorter strings"

EXCEPTIONS = {
    ("README.md", "Call you, my lord?"): MODEL,
    ("README.md", "O, away, confess in you."): MODEL,
    ("README.md", "[Exeunt MessoCcelor and Att, Brutus.]"): MODEL,
    ("docs/compare.md", "KINGer. As freark; a'e shear."): MODEL,
    ("docs/compare.md", "mend ler o theacecef p e"): MODEL,
    ("docs/finetune.md", "sample AND SUCH A HOURS THE CHAUGH EVEN HER MUCH KITSHIP IS DEFE…"):
        MODEL,
    ("docs/library.md", "the shall piter"): MODEL,
    ("docs/live.md", "Andrit bwainlnst wen al wmo coc tafonethend y wimeer d nd f tut iatis san"):
        MODEL,
    ("data/README.md", "SCENE III. Another part of the field."): "Shakespeare wrote it",
    ("docs/loggers.md", "loggers: [csv, tensorboard]"): "a line of a config",
    ("docs/ranks.md", "for shard in shards])"): "a line of Python",
    ("docs/course/week-4", "low low low lower lower newest newest newest"): "a text to train on",
    ("docs/course/week-4", "codec can't decode byte"): "an error of Python",
    ("docs/course/week-4", "invalid start byte, at line"): "an error of Python",
    ("docs/course/week-8", "size of tensor a"): "an error of PyTorch",
    ("docs/course/week-8", "must match the size of tensor b"): "an error of PyTorch",
    ("docs/check-attention.svg", "recognised: query, key, value: `qkv`; output:"): JOINED,
    ("docs/course/check-attention.svg",
     "recognised: query: `query`; key: `key`; value: `value`; output:"): JOINED,
}  # fmt: skip
"""(Beginning of the place, words) -> the reason why the strings of gptcli do not have them."""


def strings(tree: ast.AST) -> Iterator[Pattern]:
    """The strings of a module, each as the texts between its placeholders.

    Docstrings are left out, because gptcli does not print them."""
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.JoinedStr):
            yield _pattern(map(_text_of_part, node.values))
            stack.extend(part for part in node.values if isinstance(part, ast.FormattedValue))
        elif isinstance(node, ast.Constant):
            if isinstance(node.value, str):
                yield _pattern([node.value])
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            stack.extend(ast.iter_child_nodes(node))


def _text_of_part(part: ast.expr) -> str:
    """A part of an f-string, with NUL bytes for what varies.

    The noun in `{counted(n, "token")}` is a text that varies at its end: "token" or "tokens"."""
    if isinstance(part, ast.Constant):
        return str(part.value)
    call = part.value if isinstance(part, ast.FormattedValue) else None
    if isinstance(call, ast.Call) and ast.unparse(call.func) == "counted":
        noun = call.args[1]
        return f"\0 {noun.value}\0" if isinstance(noun, ast.Constant) else "\0"
    return "\0"


def _pattern(parts: Iterator[str] | list[str]) -> Pattern:
    """The texts between the placeholders, which are NUL bytes. Spaces are as in `one_line`."""
    text = one_line(PLACEHOLDER.sub("\0", "".join(parts)))
    return tuple(text for text in text.split("\0") if text.strip())


def one_line(text: str) -> str:
    """The text in one line, with single blanks, and with the arrows that a terminal shows."""
    return " ".join(text.replace("->", "→").split())


def patterns() -> set[Pattern]:
    """The patterns of all strings of gptcli that have at least LEAST_FIXED words."""
    return {
        pattern
        for path in (ROOT / "gptcli").rglob("*.py")
        for pattern in strings(ast.parse(path.read_text("utf-8")))
        if len(LETTERS.findall(" ".join(pattern))) >= LEAST_FIXED
    }


def quotes() -> Iterator[Quote]:
    """The place of each quoted output, and its lines. A picture has its text in <desc>."""
    pictures = [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.svg")]
    for page in (*PAGES, *sorted(pictures)):
        if page.startswith(tuple(NOT_CHECKED)):
            continue
        if page.endswith(".svg"):
            found = re.search(r"<desc[^>]*>(.*?)</desc>", text_of(page), re.DOTALL)
            yield page, _without_commands(html.unescape(found[1])) if found else []
            continue
        for block in blocks(page):
            if block.language in ("text", "json", "console"):
                yield str(block), _without_commands(block.text)
        for code in code_in_text(page):
            if not code.startswith(("gptcli ", "python ", "pip ")):
                yield page, [code]


def _without_commands(text: str) -> list[str]:
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in lines if not line.startswith("$ ")]


def marks(text: str, known: set[Pattern]) -> bytearray:
    """For each character of `text`, 1 if it belongs to a known pattern. No pattern matches across
    the end of a line."""
    marked = bytearray(len(text))
    for pattern in known:
        rarest = max(range(len(pattern)), key=lambda place: len(pattern[place]))
        at = text.find(pattern[rarest])
        while at >= 0:
            found = _around(text, pattern, rarest, at)
            for start, end in found:
                marked[start:end] = b"\1" * (end - start)
            at = text.find(pattern[rarest], at + 1)
    return marked


def _around(text: str, pattern: Pattern, place: int, at: int) -> list[tuple[int, int]]:
    """Where the parts of a pattern are, if part `place` is at `at`. Empty if it does not match."""
    found = [(at, at + len(pattern[place]))]
    for part in reversed(pattern[:place]):
        end = found[0][0]
        start = text.rfind(part, max(0, end - len(part) - LONGEST_VALUE), end)
        found.insert(0, (start, start + len(part)))
        if start < 0:
            return []
    for part in pattern[place + 1 :]:
        start = text.find(part, found[-1][1], found[-1][1] + LONGEST_VALUE + len(part))
        found.append((start, start + len(part)))
        if start < 0:
            return []
    return found if "\n" not in text[found[0][0] : found[-1][1]] else []


def unknown(quoted: list[Quote], known: set[Pattern]) -> list[tuple[str, str]]:
    """Each row of at least LEAST_QUOTED words that no pattern has, with the place of its quote."""
    texts = [one_line(" ".join(lines)) for _, lines in quoted]
    marked = marks("\n".join(texts), known)
    found = []
    for (place, lines), text in zip(quoted, texts, strict=True):
        here, marked = marked[: len(text)], marked[len(text) + 1 :]
        end = 0
        for line in lines:
            for cell in re.split(r"\s{2,}", line.strip()):  # the columns of a table are apart
                row: list[str] = []
                for word in [*one_line(cell).split(), ""]:
                    at = text.index(word, end)
                    end = at + len(word)
                    if WORD.fullmatch(word) and not any(here[at:end]):
                        row.append(word)
                        continue
                    if sum(bool(LETTERS.search(one)) for one in row) >= LEAST_QUOTED:
                        found.append((place, " ".join(row)))
                    row = []
    return found


def test_quoted_output_has_the_words_of_the_code() -> None:
    found = unknown(list(quotes()), patterns())
    needed = {
        (page, words) for page, words in EXCEPTIONS
        if any(place.startswith(page) and words == other for place, other in found)
    }  # fmt: skip
    wrong = [
        f"{place}: {words}" for place, words in found
        if not any(place.startswith(page) and words == known for page, known in needed)
    ]  # fmt: skip
    assert not wrong, "gptcli does not print these words; quote its output of today, or add an " + (
        "exception with a reason:\n" + "\n".join(wrong)
    )
    assert needed == set(EXCEPTIONS), "some exceptions are not needed any more"
