"""The lesson on byte-pair encoding: compare a learner's tokenizer with the reference."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptcli.course.exercises import tokenizer as reference
from gptcli.course.exercises.explainer import Explainer, named_in, quoted_line
from gptcli.course.exercises.tokenizer import Pair
from gptcli.course.exercises.tokenizer_mistakes import MISTAKES, STEPS
from gptcli.course.lesson import CheckFailed, Lesson, Say
from gptcli.course.report import Check
from gptcli.course.sandbox.learner_file import LearnerFile, in_words
from gptcli.course.sandbox.running import run_file
from gptcli.errors import GptcliError

FUNCTIONS = {1: "train", 3: "encode", 4: "decode", 5: "load"}
CLASSIC = "aaabdaaabac"
UMLAUTS = "größer, größte, Größe; naïve façade, 你好你好 你们好"
WORDS = (
    "low low low low low lower lower newest newest newest newest newest newest widest widest "
    "widest she sells sea shells by the sea shore"
)
# A text in which rank, place, length and frequency all suggest a different first merge.
MIXED = "ccadbabacdbdababdcbdbabdbbaabbbbccbbbbdcacdbbcaccacacccdcbddbacacdadcdadabbabdcccdaccadabc"
TRAINED = (
    (CLASSIC, 3),
    (WORDS, 30),
    ("aaaaaaabaaaabaaaaaaaaaac", 6),
    (UMLAUTS, 12),
    ("the theme of the thesis: xyxyzyzxzx", 12),
    ("baab abba baba", 5),
)
SHORT = (("ab", 10), ("a", 3), ("", 3), ("aaaa", 9))
ENCODED = (
    CLASSIC,
    WORDS[::-1],
    "lowest shells newer slower widely",
    "eeessst she she she aaaa",
    UMLAUTS,
    "sees these shores wewewest lololower",
)


class LearnerTokenizer(Explainer):
    """A learner's tokenizer class. Failures become CheckFailed."""

    def __init__(self, file: LearnerFile, cls: Any, say: Say) -> None:
        super().__init__(file, STEPS, MISTAKES, FUNCTIONS)
        self.cls, self.say = cls, say

    def ask(self, doing: str, step: int, call: Callable[[], Any]) -> Any:
        """The result of `call`, which runs the learner's code. An exception becomes CheckFailed."""
        self.say(f"step {step}: {doing}")
        try:
            return call()
        except (Exception, SystemExit) as error:
            raise self.stopped(error, doing, step) from error

    def trained(self, text: str, n: int) -> Any:
        """A new instance of the learner's class, after `train(text, n)`."""
        doing = f"train({_short(text)}, {n})"
        mine = self.ask("building a Tokenizer()", 1, self.cls)
        self.ask(doing, 1, lambda: mine.train(text, n))
        return mine

    def merges(self, mine: Any, n: int = 0) -> list[Pair]:
        """The learner's merges in order, from a dict of pairs to ids or from a list of pairs.

        Raises CheckFailed if a dict has `n` merges and the smallest id is not 256."""
        found: Any = getattr(mine, "merges", None)
        try:
            if isinstance(found, dict):
                new = {pair: int(i) for pair, i in found.items()}
                ordered = sorted(new, key=lambda pair: new[pair])
                ids = sorted(new.values())
                if len(ids) == n > 0 and ids[0] != 256:
                    raise self.mistake("wrong-new-id", f" (your ids are {ids[0]} to {ids[-1]})")
                found = ordered
            return [(int(a), int(b)) for a, b in found]
        except (TypeError, ValueError):
            raise self.failed_at(
                1,
                "no-merges",
                f"after train, your `merges` is {_short(found)}; expected a dict from pairs of ids "
                "to new ids, or a list of pairs",
                "start with self.merges = {}, and set self.merges[pair] = new_id for each merge",
            ) from None


class TokenizerLesson(Lesson[LearnerTokenizer]):
    """Byte-pair encoding, in five steps."""

    name = "tokenizer"
    steps = STEPS
    mistakes = MISTAKES

    def load(self, file: LearnerFile, say: Say) -> LearnerTokenizer:
        """Run the file and return its tokenizer class, ready to be tried."""
        return LearnerTokenizer(file, tokenizer_class(file), say)

    def check(self, learner: LearnerTokenizer, done: list[Check]) -> str:
        """Compare training, encoding, decoding, saving and loading with the reference."""
        mine, merges = _training(learner)
        _encoding(learner, mine, merges)
        _decoding(learner, mine, merges)
        _saving(learner, mine, merges)
        verdict = f"the same as the reference on {len(TRAINED)} texts"
        done += self.all_steps(verdict)
        return verdict


def tokenizer_class(file: LearnerFile) -> type[Any]:
    """Run the file and return its tokenizer class.

    Raises GptcliError if a method is missing or the constructor needs an argument."""
    cls: type[Any] = named_in(run_file(file), file, file.class_name, "class")
    for method in ("train", "encode", "decode", "save", "load"):
        if not callable(getattr(cls, method, None)):
            raise GptcliError(
                f"{file.name}: `{file.class_name}` has no method `{method}`",
                "it needs train(text, num_merges), encode(text), decode(ids), save(path) and "
                "load(path)",
            )
    needed = [
        p.name
        for p in inspect.signature(cls).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if needed:
        raise GptcliError(
            f"{file.name}: `{file.class_name}` needs an argument `{needed[0]}`, "
            "which is not available",
            "gptcli calls Tokenizer() without arguments; train(text, num_merges) gets the text",
        )
    return cls


def _training(learner: LearnerTokenizer) -> tuple[Any, list[Pair]]:
    found = []
    for text, n in TRAINED:
        found.append(learner.merges(learner.trained(text, n), n))
    for least in (1, 2):  # it is also right to stop when every pair occurs only once
        if all(
            got == reference.learn(text, n, least=least)
            for got, (text, n) in zip(found, TRAINED, strict=True)
        ):
            break
    else:
        raise _wrong_training(learner, found)
    for text, n in SHORT:
        mine = learner.cls()
        learner.say(f"step 1: train({_short(text)}, {n})")
        try:
            mine.train(text, n)
        except (Exception, SystemExit) as error:
            raise learner.mistake(
                "too-few-pairs", "", text=text, n=n, error=in_words(error)
            ) from error
        got = learner.merges(mine)
        if got not in [reference.learn(text, n, least=least) for least in (1, 2)]:
            raise learner.failed_at(
                1,
                "wrong-merges",
                f"train({text!r}, {n}) learns the merges {_short(got)}, expected "
                f"{_short(reference.learn(text, n))}",
            )
    mine = learner.trained(WORDS, 30)
    return mine, learner.merges(mine)


def _wrong_training(learner: LearnerTokenizer, found: list[list[Pair]]) -> CheckFailed:
    text, n, got, wanted = next(
        (text, n, got, wanted)
        for got, (text, n) in zip(found, TRAINED, strict=True)
        if got != (wanted := reference.learn(text, n))
    )
    at = next(
        (i for i, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b),
        min(len(got), len(wanted)),
    )
    have = str(got[at]) if at < len(got) else "missing"
    want = str(wanted[at]) if at < len(wanted) else "none"
    evidence = f" (train({_short(text)}, {n}): merge number {at} is {have}, expected {want})"
    for mistake in MISTAKES:
        for form in mistake.forms if mistake.step <= 2 else ():
            if all(
                got in (learnt := form(text, n), _last_of_each(learnt))
                for got, (text, n) in zip(found, TRAINED, strict=True)
            ):
                return learner.mistake(mistake.slug, evidence)
    first = any(
        got[:1] != reference.learn(text, n)[:1]
        for got, (text, n) in zip(found, TRAINED, strict=True)
    )
    step = 1 if first else 2
    what = "the first merge" if first else "a later merge"
    return learner.failed_at(step, "wrong-merges", f"{what} is wrong{evidence}")


def _last_of_each(merges: list[Pair]) -> list[Pair]:
    """What a dict keeps of `merges` if a pair was learnt twice: the pair with its last id."""
    return list(dict.fromkeys(reversed(merges)))[::-1]


def _encoding(learner: LearnerTokenizer, mine: Any, merges: list[Pair]) -> None:
    classic = learner.trained(CLASSIC, 3)
    tried = [(classic, learner.merges(classic), CLASSIC)]
    tried += [(mine, merges, text) for text in ENCODED]
    umlauts = learner.trained(UMLAUTS, 12)
    tried.append((umlauts, learner.merges(umlauts), UMLAUTS[::-1]))
    mixed = learner.trained(MIXED, 14)
    tried += [(mixed, learner.merges(mixed), text) for text in (MIXED[::-1], MIXED[7:])]
    found = [_encoded(learner, t, text) for t, _, text in tried]
    for ids, (_, got, text) in zip(found, tried, strict=True):
        wanted = reference.encode(got, text)
        if ids == wanted:
            continue
        at = next((i for i, (a, b) in enumerate(zip(ids, wanted, strict=False)) if a != b), 0)
        evidence = (
            f" (encode({_short(text)}) returns {_short(ids[at : at + 6])} from token {at} on, "
            f"expected {_short(wanted[at : at + 6])})"
        )
        for mistake in MISTAKES:
            for form in mistake.forms if mistake.step == 3 else ():
                if all(i == form(m, t) for i, (_, m, t) in zip(found, tried, strict=True)):
                    raise learner.mistake(mistake.slug, evidence)
        raise learner.failed_at(3, "wrong-ids", f"your encode does not merge by rank{evidence}")
    for text in ("", "a", "é"):
        learner.say(f"step 3: encode({text!r})")
        try:
            ids = list(mine.encode(text))
        except (Exception, SystemExit) as error:
            raise learner.mistake("short-text", "", text=text, error=in_words(error)) from error
        if ids != reference.encode(merges, text):
            raise learner.failed_at(
                3, "wrong-ids", f"encode({text!r}) returns {ids}, expected {list(text.encode())}"
            )


def _decoding(learner: LearnerTokenizer, mine: Any, merges: list[Pair]) -> None:
    tried = [reference.encode(merges, text) for text in (WORDS, UMLAUTS, "")]
    invalid = [[128], [255, 65, 254], [*"é".encode()[:1], 66], [*"你".encode()[:2], 97]]
    found = [_decoded(learner, mine, ids) for ids in tried]
    for ids in invalid:
        learner.say(f"step 4: decode({ids})")
        try:
            found.append(mine.decode(ids))
        except UnicodeDecodeError as error:
            raise learner.mistake("strict-utf8", "", ids=ids, error=in_words(error)) from error
        except (Exception, SystemExit) as error:
            raise learner.stopped(error, f"decode({ids})", 4) from error
    tried += invalid
    for text, ids in zip(found, tried, strict=True):
        wanted = reference.decode(merges, ids)
        if text == wanted:
            continue
        evidence = f" (decode({_short(ids)}) returns {_short(text)}, expected {_short(wanted)})"
        for mistake in MISTAKES:
            for form in mistake.forms if mistake.step == 4 else ():
                if all(t == form(merges, i) for t, i in zip(found, tried, strict=True)):
                    raise learner.mistake(mistake.slug, evidence)
        raise learner.failed_at(4, "wrong-text", f"your decode returns another text{evidence}")


def _saving(learner: LearnerTokenizer, mine: Any, merges: list[Pair]) -> None:
    with tempfile.TemporaryDirectory(prefix="gptcli-check-") as folder:
        path = str(Path(folder) / "my tokenizer.json")
        learner.ask("save(path)", 5, lambda: mine.save(path))
        other = learner.trained(CLASSIC, 3)
        held = learner.merges(other)

        def load() -> Any:
            static = inspect.getattr_static(learner.cls, "load")
            if isinstance(static, classmethod | staticmethod):
                return learner.cls.load(path)
            fresh = learner.cls()
            given = fresh.load(path)
            return fresh if given is None else given

        again = learner.ask("load(path)", 5, load)
        if again is None:
            quote = quoted_line(learner.file.path, r"def load")
            raise learner.failed_at(
                5, "returns-nothing", f"your load returned None, not a Tokenizer{quote}"
            )
        got = learner.merges(again)
        if got == held != merges:
            raise learner.mistake("load-ignores-file", f" ({len(got)} of {len(merges)} merges)")
        if len(got) != len(merges):
            raise learner.mistake("load-loses-merges", "", count=len(got), wanted=len(merges))
        for i, (a, b) in enumerate(zip(got, merges, strict=True)):
            if a != b:
                raise learner.mistake("load-changes-merges", "", i=i, yours=a, wanted=b)
        ids = learner.ask("encode after load", 5, lambda: list(again.encode(WORDS)))
        text = learner.ask("decode after load", 5, lambda: again.decode(ids))
        if ids != reference.encode(merges, WORDS) or text != WORDS:
            raise learner.failed_at(
                5,
                "load-incomplete",
                f"after load the merges are right, but encode and decode turn {_short(WORDS)} into "
                f"{_short(text)}",
            )


def _encoded(learner: LearnerTokenizer, mine: Any, text: str) -> list[int]:
    ids = learner.ask(f"encode({_short(text)})", 3, lambda: mine.encode(text))
    try:
        return [int(i) for i in ids]
    except (TypeError, ValueError):
        quote = quoted_line(learner.file.path, r"def encode")
        raise learner.failed_at(
            3, "no-list", f"encode({_short(text)}) returned {_short(ids)}, not a list{quote}"
        ) from None


def _decoded(learner: LearnerTokenizer, mine: Any, ids: list[int]) -> Any:
    return learner.ask(f"decode({_short(ids)})", 4, lambda: mine.decode(ids))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
